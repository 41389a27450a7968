"""`aitraining data`: diverse rows of files, written to a file, with a report of what was removed and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..config.data_settings import DataSettings
from ..config.fields import number_in
from ..config.setting_names import flag_of
from ..config.training_params import LLMTrainingParams
from ..config.user_function import function_named
from ..errors import DataError, ParamsError, printable
from .data_output import DataOutput

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data.diversity import Categorize, DiversityReport, HeldOut
    from ..data.near_duplicates import RowInputs
    from ..data.rows import Columns

MOST_HELD_OUT = 0.9  # share of the rows, as of --holdout of a run
WAYS = ("category_column", "category_function", "clusters")


def prepare_data(sources: Sequence[str], settings: DataSettings, reading: LLMTrainingParams) -> DiversityReport:
    """Sample rows evenly from the categories of data and write them; print what was removed.

    Args:
        sources: Files, folders or Hub datasets.
        settings: What to sample, and where to write.
        reading: How the rows are read and sampled: columns, split, bad rows, seed.

    Raises:
        UsageError: Settings that contradict each other, rows that cannot be read, or a file that would be lost.
        DistillError: The disk is full.
    """
    output, share = DataOutput.of(settings.output), share_of(settings.holdout)
    by, function = _categories_by(settings)
    _check_there(sources, settings)
    read = [*sources, *([] if share is not None or settings.holdout is None else [settings.holdout])]
    output.check(read, holds_out=share is not None, overwrite=settings.overwrite)
    with output.locked():
        output.check(read, holds_out=share is not None, overwrite=settings.overwrite)  # another may have just ended
        return _prepare(sources, settings, reading, output=output, share=share, by=by, function=function)


def _prepare(
    sources: Sequence[str],
    settings: DataSettings,
    reading: LLMTrainingParams,
    *,
    output: DataOutput,
    share: float | None,
    by: str | None,
    function: Callable[..., object] | None,
) -> DiversityReport:
    from ..data.diversity import select_diverse
    from ..data.holdout import sampled
    from ..data.loading import load_sources
    from ..data.near_duplicates import inputs_of
    from ..data.plain_rows import columns_of_bytes, plain_rows
    from ..data.rows import Columns
    from ..data.streaming import without_dataset_bars

    columns, compared = Columns.of(reading), _listed(settings.compared_columns)
    with without_dataset_bars():
        data = load_sources(sources, split=reading.train_split, config_name=reading.data_config)
        categorize = _categorize(data, settings, function)  # a missing column is named before the rows are read
        _check_compared(data, compared)
        inputs = inputs_of(data, columns, compared)
        here = set() if share is None else sampled(inputs.texts, share, seed=reading.seed)
        kept, report = select_diverse(
            inputs,
            categorize(inputs, reading.seed),
            per_category=settings.per_category,
            seed=reading.seed,
            held_out=None if share is not None else held_out_rows(settings.holdout, columns, compared),
            held_out_here=sorted(here),
            keep_duplicates=settings.keep_duplicates,
        )
        content = {
            "sources": list(sources), "output": str(output.rows), "holdout": settings.holdout, "categories_by": by,
            "seed": reading.seed, **report.to_dict(),
        }  # fmt: skip
        held_out = None if share is None else plain_rows(data.select(sorted(here)))
        output.write(plain_rows(data.select(kept)), held_out, content)
    flags = ", ".join(map(flag_of, WAYS[:-1])) + f" or {flag_of(WAYS[-1])}"
    print(printable(f"Categories by {by}:" if by is not None else f"All rows are one category, without {flags}:"))
    print(printable("\n".join(report.lines())))
    left_out = columns_of_bytes(data)
    if left_out:
        print(printable(f"Columns of bytes are not written: {', '.join(left_out)}."))
    if share is not None:
        print(printable(f"The held-out rows are in {output.held_out}."))
    said = f"The rows are in {output.rows}; {output.report.name} lists every row that is not, with the reason."
    print(printable(said))
    return report


def share_of(holdout: str | None) -> float | None:
    """Return the share of rows to hold out, if it is one and not the name of a file."""
    if holdout is None:
        return None
    try:
        share = number_in(holdout)
    except ValueError:
        return None
    if not 0 < share <= MOST_HELD_OUT:
        raise ParamsError(
            f"holdout is {holdout}; expected a share above 0 and at most {MOST_HELD_OUT:g}, or rows that are held out."
        )
    return share


def _categories_by(settings: DataSettings) -> tuple[str | None, Callable[..., object] | None]:
    """Return what the categories come from, in words, and the user's function; None for what there is not."""
    given = [name for name in WAYS if getattr(settings, name) is not None]
    if len(given) > 1:
        raise ParamsError(f"{flag_of(given[0])} and {flag_of(given[1])} contradict each other; give one of them.")
    if settings.category_function is not None:
        name = settings.category_function
        return f"the function {name}", function_named(name, setting="category_function", takes=1, of="a row")
    if settings.clusters is not None:
        from ..data.clusters import check_clusters

        check_clusters()
        return f"{settings.clusters:,} clusters", None
    if settings.category_column is not None:
        return f"the column {settings.category_column!r}", None
    return None, None


def _categorize(
    data: Dataset, settings: DataSettings, function: Callable[..., object] | None
) -> Callable[[RowInputs, int], Categorize]:
    """Return what makes the categories when the inputs are known."""
    from ..data.categories import by_clusters, by_column, by_function, one_category

    if settings.category_column is not None:
        column = by_column(data, settings.category_column)
        return lambda inputs, seed: column
    if function is not None:
        name = str(settings.category_function)
        return lambda inputs, seed: by_function(data, function, name=name, places=inputs.places)
    if settings.clusters is not None:
        count = settings.clusters
        return lambda inputs, seed: by_clusters(inputs, count, seed=seed)
    return lambda inputs, seed: one_category


def _check_there(sources: Sequence[str], settings: DataSettings) -> None:
    from ..data.loading import check_there

    for source in sources:
        check_there(source, setting="source")
    if settings.holdout is not None and share_of(settings.holdout) is None:
        check_there(settings.holdout, setting="holdout")


def held_out_rows(data: object, columns: Columns, compared: Sequence[str]) -> HeldOut | None:
    """Return the inputs of held-out rows from elsewhere; None without such rows.

    Args:
        data: Texts, or what `load_data` takes; its test split is read, else its validation split, else all of it.
        columns: The `Columns` of the rows that are compared with them.
        compared: Columns that are compared in addition.
    """
    is_table = isinstance(data, (str, Mapping)) or hasattr(data, "columns") or hasattr(data, "column_names")
    if isinstance(data, Iterable) and not is_table:
        data = list(data)  # of a generator too, which can be read once
        if all(isinstance(one, str) for one in data):
            data = [{columns.text_column: one} for one in data] or None
    if data is None:
        return None
    from ..data.diversity import HeldOut
    from ..data.near_duplicates import inputs_of
    from .evaluation_inputs import rows_to_evaluate

    try:
        rows, _ = rows_to_evaluate(None, data)
    except DataError as error:
        sentence = str(error.args[0])
        if sentence.startswith("data_path "):
            raise DataError("holdout" + sentence.removeprefix("data_path")) from error
        raise
    _check_compared(rows, compared, source="holdout")
    inputs = inputs_of(rows, columns, compared, source="holdout")
    return HeldOut(list(inputs.texts.values()), [inputs.places[i] for i in inputs.texts])


def _check_compared(rows: Dataset, compared: Sequence[str], *, source: str = "data") -> None:
    from ..data.categories import check_column

    for column in compared:
        check_column(rows, column, flag="--compared-columns", source=source)


def _listed(names: str | None) -> list[str]:
    return [name.strip() for name in (names or "").split(",") if name.strip()]
