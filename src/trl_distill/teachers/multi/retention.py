"""`retain_data`: rows that the student learns to answer as it did before the run.

Their prompts are their own, without a template, and the same for both models. Who teaches them is the student's
starting point.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from ...data.loading import RowReport, load_data, read_rows
from ...data.rows import Columns
from ...errors import DataError
from ...prompts.template import IDENTITY, parse_template
from .entries import TeacherEntry, model_name

if TYPE_CHECKING:
    from datasets import Dataset

SETTING = "retain_data"
START = "the student as it starts"


@dataclass(frozen=True)
class Retained:
    """Rows to retain.

    Attributes:
        rows: What `rows.read_rows` made of them.
        report: On the rows read.
        source: Where they come from, for the pre-flight.
        fraction: Share of a training epoch's rows that are to be of these.
    """

    rows: Dataset
    report: RowReport
    source: str
    fraction: float

    def count(self, others: int) -> int:
        """Return how many of these stand beside `others` rows; at least one."""
        return max(1, round(others * self.fraction / (1 - self.fraction)))

    def drawn(self, count: int, *, seed: int) -> Dataset:
        """Return `count` of the rows, drawn by the seed; all of them where there are fewer."""
        order = list(range(len(self.rows)))
        Random(f"{seed} {SETTING}").shuffle(order)
        return self.rows.select(sorted(order[:count]))


def read_retained(settings: Any) -> TeacherEntry:
    """Return the teacher that `retain_data` adds to a run, with the rows that are its own; needs no model.

    Args:
        settings: Anything with the fields of `DistillationArguments` and the name of the text column.

    Raises:
        DataError: Rows that cannot be found, read or used.
    """
    given = settings.retain_data
    if isinstance(given, str) and given.startswith("<"):
        raise DataError(f"{SETTING} was a {given.strip('<>')} in memory, not a file; give its path.")
    text = settings.dataset_text_field if hasattr(settings, "dataset_text_field") else settings.text_column
    try:
        data, _ = load_data(given)
    except DataError as error:
        raise DataError(str(error).replace("data_path", SETTING)) from error
    columns = Columns(text, settings.prompt_text_column, settings.completion_column, settings.max_bad_rows)
    rows, report = read_rows(data, columns, source=SETTING)
    source = given if isinstance(given, str) else f"a {model_name(given)} in memory"
    retained = Retained(rows, report, source, settings.retain_fraction)
    return TeacherEntry(START, IDENTITY, parse_template(IDENTITY, name=SETTING), SETTING, retained=retained)


def mixed_in(rows: Dataset, retained: Dataset, count: int) -> Dataset:
    """Return rows with `count` retained ones spread evenly among them, each of those as often as it takes."""
    from datasets import concatenate_datasets

    places = [((i + 0.5) / len(rows), i) for i in range(len(rows))]
    places += [((j + 0.5) / count, len(rows) + j % len(retained)) for j in range(count)]
    return concatenate_datasets([rows, retained]).select([i for _, i in sorted(places)])
