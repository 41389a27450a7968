"""`--holdout`: rows held out for evaluation, and their near-duplicates removed from the training rows."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..config.data_settings import held_out_of
from ..errors import DataError
from .file_readers import PLACE
from .loading import places_of
from .near_duplicates import NearDuplicates, inputs_of
from .row_report import RowReport
from .rows import Columns

if TYPE_CHECKING:
    from datasets import Dataset

NEAR = "it is a near-duplicate of a row held out for evaluation"


@dataclass(frozen=True)
class HoldoutSplit:
    """Data split into training and held-out rows.

    Attributes:
        train: The rows to train on.
        held_out: The rows held out.
        near: Places of the rows that are in neither part, since they are near-duplicates of a held-out row.
    """

    train: Dataset
    held_out: Dataset
    near: tuple[str, ...]

    def counted(self, report: RowReport) -> RowReport:
        """Return the report on the training rows with the near-duplicates added."""
        left_out = tuple((place, NEAR) for place in self.near)
        return replace(report, total=report.total + len(left_out), set_aside=(*report.set_aside, *left_out))


def hold_out(
    dataset: Dataset, share: float, *, columns: Columns, fields: Collection[str] = (), seed: int = 42
) -> HoldoutSplit:
    """Hold out a share of the rows, sampled by a hash of their input, so that the order of the rows does not matter.

    Near-duplicates are those of `NearDuplicates`, of the rows' inputs; completions are not compared.

    Args:
        dataset: Rows of any form that `read_rows` reads, or of token ids.
        share: Share of the usable rows.
        columns: Which columns hold what.
        fields: Other columns that a row's prompt is made of.
        seed: Sampling seed.

    Raises:
        DataError: Too few rows are left to train on.
    """
    if PLACE not in dataset.column_names:
        dataset = dataset.add_column(PLACE, places_of(dataset))
    texts = inputs_of(dataset, columns, fields).texts
    held_out = sampled(texts, share, seed=seed)
    near = _near(texts, held_out)
    train = [i for i in range(len(dataset)) if i not in held_out and i not in near]
    if not set(texts) & set(train):
        raise DataError(
            f"holdout {share:g} of {len(texts):,} rows leaves no row to train on ({len(near):,} are near-duplicates "
            f"of those held out); lower --holdout, or give more rows."
        )
    places = dataset[PLACE]
    return HoldoutSplit(dataset.select(train), dataset.select(sorted(held_out)), tuple(places[i] for i in sorted(near)))


def sampled(texts: Mapping[int, str], share: float, *, seed: int) -> set[int]:
    """Return the indices of the rows to hold out: a share, at least one row."""
    return set(sorted(texts, key=lambda i: draw(seed, texts[i], i))[: held_out_of(len(texts), share)])


def draw(seed: object, text: str, place: int) -> tuple[str, int]:
    """Return what rows are sorted by for a sample that depends on their texts, not on their order."""
    return hashlib.sha256(f"{seed} {text}".encode()).hexdigest(), place


def _near(texts: Mapping[int, str], held_out: Collection[int]) -> set[int]:
    """Return the indices of the other rows that are near-duplicates of a held-out row."""
    index = NearDuplicates(texts[i] for i in held_out)
    others = (i for i in texts if i not in held_out)
    return {i for i in others if index.find(index.sketch(texts[i])) is not None}
