"""Rows on which the student keeps its earlier behaviour, and how they are mixed into a training dataset."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from datasets import concatenate_datasets

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Retained:
    """Rows to retain.

    Attributes:
        rows: The result of `rows.read_rows`.
        source: Where they come from, for the pre-flight.
        fraction: Share of a training epoch's rows that are to be of these.
    """

    rows: Dataset
    source: str
    fraction: float

    def count(self, others: int) -> int:
        """Return how many of these are mixed with `others` rows; at least one."""
        return max(1, round(others * self.fraction / (1 - self.fraction)))

    def sample(self, count: int, *, seed: int) -> Dataset:
        """Return `count` of the rows, chosen by the seed; all of them if there are fewer."""
        order = list(range(len(self.rows)))
        Random(f"{seed} retain_data").shuffle(order)  # nosec B311  # no secret is drawn
        return self.rows.select(sorted(order[:count]))


def mixed_in(rows: Dataset, retained: Dataset, count: int) -> Dataset:
    """Return rows with `count` retained rows spread evenly among them, repeated if necessary."""
    places = [((i + 0.5) / len(rows), i) for i in range(len(rows))]
    places += [((j + 0.5) / count, len(rows) + j % len(retained)) for j in range(count)]
    return concatenate_datasets([rows, retained]).select([i for _, i in sorted(places)])
