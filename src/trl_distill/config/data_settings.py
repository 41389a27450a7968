"""The settings of `aitraining data` that a run does not have. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .fields import CheckedSettings, option

# settings of a run that say how rows are read and sampled
OF_RUNS = frozenset(
    ("text_column", "prompt_text_column", "completion_column", "max_bad_rows", "data_config", "train_split", "seed")
)


@dataclass
class DataSettings(CheckedSettings):
    """Which rows are sampled from data, and where they are written.

    Raises:
        ParamsError: An unknown name, or a value outside what is accepted.
    """

    output: str | None = option(
        None, "File to write, required; it ends in .jsonl or .ndjson.", group="Basic", path=True
    )
    per_category: int = option(1000, "Maximum number of rows of each category.", low=1, group="Basic")
    category_column: str | None = option(None, "Column with each row's category.", group="Categories")
    category_function: str | None = option(
        None,
        "Python function, as module:name, that returns the category of a row, a dict of its columns.",
        group="Categories",
    )
    clusters: int | None = option(
        None,
        "Number of clusters of inputs with similar words, found by scikit-learn, to use as categories.",
        low=2,
        high=10_000,
        group="Categories",
    )
    holdout: str | None = option(
        None,
        "Rows that nothing in the output may be a near-duplicate of: a file, a folder or a Hub dataset; or a share of "
        "the rows, such as 0.1, to hold out and write to a file of their own.",
        group="Removal",
    )
    keep_duplicates: bool = option(
        False, "Keep near-duplicates of other rows; those of held-out rows are still removed.", group="Removal"
    )
    compared_columns: str | None = option(
        None,
        "Columns to compare in addition to the input, separated by commas: others that the templates name.",
        group="Removal",
        listed=True,
    )
    overwrite: bool = option(False, "Replace the files of an earlier run of this command.", group="Basic")


DATA_FIELDS = {spec.name: spec for spec in fields(DataSettings)}


def held_out_of(rows: int, share: float) -> int:
    """Return how many of so many rows a share holds out: at least one."""
    return max(1, round(share * rows))
