"""A run's loaded rows, for training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.setting_names import name_settings
from ..config.training_params import LLMTrainingParams
from ..data.atomic_file import replacing
from ..data.file_readers import PLACE
from ..data.holdout import HoldoutSplit, hold_out
from ..data.loading import load_data
from ..data.row_report import RowReport
from ..data.rows import Columns
from ..data.split import Split
from ..errors import ParamsError, quoted
from .project_folder import HELD_OUT

SEEN_ROWS = 1000  # in which a column may have nothing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasets import Dataset

    from ..prompts.template import Template


@dataclass(frozen=True)
class RunData:
    """The rows of a run.

    Attributes:
        train: To train on.
        held_out: Rows to evaluate on: a validation split, or those held out; None if there are none.
        holdout_split: The result of `--holdout`; None without it.
        note: A line for the user; empty if there is nothing to say.
    """

    train: Dataset
    held_out: Dataset | None = None
    holdout_split: HoldoutSplit | None = None
    note: str = ""

    @property
    def datasets(self) -> dict[Split, Dataset]:
        """The rows by what they are for."""
        return {Split.TRAIN: self.train} | ({} if self.held_out is None else {Split.EVAL: self.held_out})

    def counted(self, report: RowReport, split: Split) -> RowReport:
        """Return the report on rows that were read, with the near-duplicates that were left out."""
        return report if self.holdout_split is None or split is not Split.TRAIN else self.holdout_split.counted(report)

    def keep(self, folder: Path) -> None:
        """Write the held-out rows into the project, for evaluations; those of an earlier run are deleted."""
        if self.holdout_split is None:
            (folder / HELD_OUT).unlink(missing_ok=True)
            return
        rows = self.holdout_split.held_out
        with replacing(folder / HELD_OUT) as temporary:
            rows.remove_columns([name for name in (PLACE,) if name in rows.column_names]).to_json(temporary)


def load_run_data(
    params: LLMTrainingParams, templates: Sequence[Template], written: Sequence[Mapping[str, object]] | None = None
) -> RunData:
    """Load a run's rows; with `holdout` some are held out if there is no validation split.

    Args:
        params: The run's parameters.
        templates: The student's and the teacher's.
        written: The rows that the teacher wrote, if it writes them; before, others stand in their place.

    Raises:
        DataError: See `load_data` and `hold_out`.
        ParamsError: There is nothing to evaluate on, and a setting needs it.
    """
    from ..data.streaming import without_dataset_bars

    with without_dataset_bars():
        if params.queries_from_prompt is not None:
            rows = _rows_to_be_written(params) if written is None else written
            train, valid = load_data(list(rows))[0], None
        else:
            train, valid = _loaded(params)
    needs = params.evaluations_needed_by
    if valid is None and params.holdout == 0 and needs is not None:
        raise ParamsError(
            f"{needs} needs rows to evaluate on, and the data has none; add --holdout 0.1, or name a split with "
            "--valid-split."
        )
    if params.holdout == 0 or valid is not None:
        note = "The data has validation rows; --holdout holds out no others." if params.holdout else ""
        return RunData(train, valid, note=name_settings(note))
    if params.queries_from_prompt is not None and written is None:
        return RunData(train, train.select([0]))
    fields = {name for template in templates for name in template.fields} - {"input"}
    with without_dataset_bars():
        kept = hold_out(train, params.holdout, columns=Columns.of(params), fields=fields, seed=params.seed)
    count = f"{len(kept.held_out):,} of {len(train):,} rows"
    note = f"{count} are held out for evaluation (--holdout {params.holdout:g})."
    return RunData(kept.train, kept.held_out, kept, name_settings(note))


def _loaded(params: LLMTrainingParams) -> tuple[Dataset, Dataset | None]:
    return load_data(
        params.data_path,
        train_split=params.train_split,
        valid_split=params.valid_split,
        config_name=params.data_config,
    )


def _rows_to_be_written(params: LLMTrainingParams) -> list[dict[str, str]]:
    """Return as many rows as the teacher is to write, for the checks that come first."""
    return [{input_column(params): f"input {i + 1}"} for i in range(params.queries_from_prompt or 0)]


def input_column(params: LLMTrainingParams) -> str:
    """Return the column that a run reads inputs from."""
    return params.prompt_text_column or params.text_column


def unread_input(params: LLMTrainingParams, data: Dataset) -> list[str]:
    """Return a line if the rows have a column "input" that nothing reads, as rows of instructions with inputs do."""
    column = params.text_column
    if (
        not params.distills
        or column == "input"
        or not {column, "input"} <= {*data.column_names}
        or not any(data[:SEEN_ROWS]["input"])
    ):
        return []
    return [
        name_settings(
            f"Note: {{input}} is the column {quoted(column)}, and the column 'input' is not read; to use it in a "
            "template, rename it."
        )
    ]
