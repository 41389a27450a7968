"""`prepare_distillation_data(queries)`: the guide's function, for queries in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from ..config.data_settings import DATA_FIELDS
from ..config.fields import check_value
from ..config.setting_names import in_python, settings_named_as
from ..config.training_params import FIELDS
from ..errors import DataError, ParamsError
from .prepare_data import held_out_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data.diversity import Categorize, DiversityReport
    from ..data.near_duplicates import RowInputs

CATEGORY = "category"  # column that is used if nothing is said
NAMES = {
    "clusters": "categorize",
    "category_column": "categorize",
    **dict.fromkeys(("holdout", "data_path"), "held_out"),
}
FORMS = "the name of a column, a number of clusters, or a function of all queries"
Query = str | Mapping[str, Any]


class DiverseQueries(list[Query]):
    """Queries, in random order, and what was removed.

    Attributes:
        report: What was removed and why; rows are numbered from 1, in the order in which the categories have them if a
            function returned lists of queries.
    """

    def __init__(self, queries: Iterable[Query], report: DiversityReport) -> None:
        super().__init__(queries)
        self.report = report


@settings_named_as(in_python({**FIELDS, **DATA_FIELDS}, NAMES))
def prepare_distillation_data(
    queries: Sequence[Query] | Dataset,
    categorize: str | int | Callable[[list[Any]], Any] | None = None,
    per_category: int = 1000,
    seed: int = 42,
    *,
    held_out: Any = None,
    keep_duplicates: bool = False,
    text_column: str = "text",
    max_bad_rows: int = 0,
) -> DiverseQueries:
    """Sample queries evenly from their categories, without near-duplicates, and shuffle them.

    Example:
        >>> data = prepare_distillation_data(queries, lambda queries: [q.split()[0] for q in queries])  # doctest: +SKIP
        >>> train(LLMTrainingParams(data_path=[{"text": query} for query in data], ...))  # doctest: +SKIP

    Args:
        queries: Texts, rows as dicts (of text, of a prompt, or of messages), a pandas DataFrame, or a dataset.
        categorize: The column with the category; a number of clusters of similar words, which needs scikit-learn; or a
            function that is called with all queries and returns lists of queries, a dict of them by category, or the
            category of each query. None is the column "category" if there is one, else all queries are one category.
        per_category: The most queries of a category.
        seed: Sampling seed.
        held_out: Queries that none in the result may be a near-duplicate of: texts, or what `data_path` accepts.
        keep_duplicates: Whether near-duplicates of earlier queries stay.
        text_column: Column with the query, if rows are given.
        max_bad_rows: How many queries that are no text are skipped before it is an error.

    Returns:
        A list of the queries as they were given, those of a DataFrame or dataset as dicts; its `report` says what was
        removed.

    Raises:
        DataError: A query that is no text, a column that is not there, or no query left.
        ParamsError: A value that is not accepted, or a function that returns something else.
        UsageError: Clusters are wanted, and scikit-learn is missing.
    """
    from ..data.diversity import select_diverse
    from ..data.memory import as_dataset
    from ..data.near_duplicates import inputs_of
    from ..data.rows import Columns
    from ..data.streaming import without_dataset_bars

    per_category = check_value("per_category", per_category, DATA_FIELDS["per_category"])
    seed = check_value("seed", seed, FIELDS["seed"])
    columns = Columns(text_column, max_bad_rows=check_value("max_bad_rows", max_bad_rows, FIELDS["max_bad_rows"]))
    with without_dataset_bars():
        items, names = _categorized(_listed(queries), categorize)
        data = as_dataset(_rows(items, text_column), name="queries")
        inputs = inputs_of(data, columns, source="queries")
        kept, report = select_diverse(
            inputs,
            _categories(data, inputs, names if names is not None else categorize, seed),
            per_category=per_category,
            seed=seed,
            held_out=held_out_rows(held_out, columns, ()),
            keep_duplicates=keep_duplicates,
        )
    return DiverseQueries([items[i] for i in kept], report)


def _listed(queries: Any) -> list[Query]:
    """Return queries as a list, those of a DataFrame or dataset as dicts."""
    from datasets import Dataset

    from ..data.memory import KNOWN_TYPES, as_dataset, is_frame
    from ..data.plain_rows import plain_rows

    if isinstance(queries, (str, bytes, Mapping)) or not hasattr(queries, "__iter__"):
        raise DataError(f"queries is a {type(queries).__name__}; give a list of texts, {KNOWN_TYPES}.")
    if isinstance(queries, Dataset) or is_frame(queries):
        return list(plain_rows(as_dataset(queries, name="queries")))
    return list(queries)


def _rows(queries: Sequence[Any], text_column: str) -> list[dict[str, Any]]:
    return [dict(query) if isinstance(query, Mapping) else {text_column: query} for query in queries]


def _categorized(queries: list[Query], categorize: Any) -> tuple[list[Any], list[str] | None]:
    """Return queries and the category of each, by the caller's function; those as they are and None without one."""
    from ..data.categories import category_name

    if not callable(categorize):
        return queries, None
    found = categorize(queries)
    if isinstance(found, (str, bytes)) or not hasattr(found, "__iter__"):
        raise ParamsError(_refusal(f"returned a {type(found).__name__}", len(queries)))
    groups = found if isinstance(found, Mapping) else None
    found = list(found.values() if groups is not None else found)
    kinds = [type(one).__name__ for one in found if isinstance(one, (str, bytes)) or not hasattr(one, "__iter__")]
    if groups is not None and kinds:  # each letter of a text would be a query
        raise ParamsError(_refusal(f"returned a dict of a {kinds[0]}, not of lists,", len(queries)))
    if groups is not None or (found and all(isinstance(one, (list, tuple)) for one in found)):
        names = (
            [category_name(name) for name in groups] if groups is not None else [f"{i + 1}" for i in range(len(found))]
        )
        pairs = [(query, name) for name, group in zip(names, found, strict=True) for query in group]
        if not pairs:
            raise ParamsError(_refusal("returned no query", len(queries)))
        if groups is None and len(found) == len(queries) and not _has_query_of(queries, pairs):
            raise ParamsError(_refusal(f"returned a {type(found[0]).__name__} for each query", len(queries)))
        return [query for query, _ in pairs], [name for _, name in pairs]
    if len(found) != len(queries):
        raise ParamsError(_refusal(f"returned {len(found):,} categories", len(queries)))
    return queries, [category_name(one) for one in found]


def _has_query_of(queries: Sequence[Any], pairs: Sequence[tuple[Any, str]]) -> bool:
    """Whether a function's lists have queries in them, and not the parts of a category for each query."""
    texts = {query for query in queries if isinstance(query, str)}
    return any(isinstance(one, Mapping) or (isinstance(one, str) and (one in texts or not texts)) for one, _ in pairs)


def _refusal(what: str, count: int) -> str:
    return (
        f"the function of categorize {what} for a list of {count:,} queries; it must return lists of queries, or the "
        "category of each query, as in lambda queries: [kind(query) for query in queries]."
    )


def _categories(data: Dataset, inputs: RowInputs, by: Any, seed: int) -> Categorize:
    """Return what makes the categories: names of all queries, a column, a number of clusters, or nothing."""
    from ..data.categories import by_clusters, by_column, one_category

    if isinstance(by, list):
        return lambda order: [by[i] for i in order]
    if by is None:
        return by_column(data, CATEGORY) if CATEGORY in data.column_names else one_category
    if isinstance(by, str):
        return by_column(data, by, source="queries")
    if isinstance(by, Integral) and not isinstance(by, bool):
        count = check_value("categorize", by, DATA_FIELDS["clusters"])
        return by_clusters(inputs, count, seed=seed)
    raise ParamsError(f"categorize is {by!r}; expected {FORMS}.")
