"""Diverse rows: as many of each category, without near-duplicates and without what is much like a held-out row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tqdm.auto import tqdm

from ..errors import DataError, printable
from .holdout import draw
from .near_duplicates import HOW_WITHOUT_DATASKETCH, NearDuplicates, RowInputs

SHOWN = 3  # rows of each reason that a line names
MOST_CATEGORIES = 20  # that are listed on a terminal
LONGEST_NAME = 60  # characters of a category there
NO_CATEGORY = "(none)"  # of a row whose category is empty

Categorize = Callable[[Sequence[int]], Sequence[str]]  # row indices to the category of each


class Reason(StrEnum):
    """Why a row is not in the result."""

    UNUSABLE = "unusable"
    HELD_OUT = "held_out"
    LEAK = "leak"
    NEAR_DUPLICATE = "near_duplicate"
    BEYOND = "beyond_per_category"


IN_WORDS = {
    Reason.UNUSABLE: "unusable",
    Reason.HELD_OUT: "held out",
    Reason.LEAK: "like a held-out row",
    Reason.NEAR_DUPLICATE: "like an earlier row",
    Reason.BEYOND: "beyond {per_category:,} of a category",
}


@dataclass(frozen=True)
class Removed:
    """A row that is not in the result.

    Attributes:
        row: Its place, such as "line 7".
        reason: Why it is not.
        detail: The row that it is a near-duplicate of, its category, or what is wrong with it; None if held out.
    """

    row: str
    reason: Reason
    detail: str | None

    def to_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        names = {Reason.UNUSABLE: "problem", Reason.BEYOND: "category"}
        more = {} if self.detail is None else {names.get(self.reason, "of"): self.detail}
        return {"row": self.row, "reason": str(self.reason), **more}


@dataclass(frozen=True)
class Category:
    """A category's rows.

    Attributes:
        name: What its rows have in the column, or the words of a cluster.
        rows: Rows that may be sampled, after near-duplicates are removed.
        kept: Rows that are in the result.
    """

    name: str
    rows: int
    kept: int


@dataclass(frozen=True)
class DiversityReport:
    """What was removed, and why.

    Attributes:
        rows: Rows that were read.
        kept: Rows of the result.
        per_category: The most rows of a category.
        categories: Each category, the largest first.
        removed: Every other row, in the order of the reasons.
        compared_by: When two rows are near-duplicates; None if duplicates are kept.
    """

    rows: int
    kept: int
    per_category: int
    categories: tuple[Category, ...]
    removed: tuple[Removed, ...]
    compared_by: str | None

    @property
    def counts(self) -> dict[Reason, int]:
        """How many rows were removed for each reason; of one without a row nothing."""
        found = Counter(one.reason for one in self.removed)
        return {reason: found[reason] for reason in Reason if found[reason]}

    def lines(self) -> list[str]:
        """Return the lines for a terminal: rows of each category, and how many others there are and why."""
        names = [_short(printable(one.name.replace("\n", " "))) for one in self.categories[:MOST_CATEGORIES]]
        width = max(map(len, ("category", *names)))
        found = [f"  {'category':{width}}  {'rows':>9}  {'kept':>9}"]
        for name, one in zip(names, self.categories, strict=False):
            found.append(f"  {name:{width}}  {one.rows:9,}  {one.kept:9,}")
        rest = self.categories[MOST_CATEGORIES:]
        if rest:
            others = f"{len(rest):,} others"
            found.append(f"  {others:{width}}  {sum(c.rows for c in rest):9,}  {sum(c.kept for c in rest):9,}")
        found.append(f"{self.kept:,} of {self.rows:,} rows kept.")
        for reason, count in self.counts.items():
            rows = [one for one in self.removed if one.reason is reason][:SHOWN]
            shown = "; ".join(self._shown(one) for one in rows) + ("; ..." if count > SHOWN else "")
            words = IN_WORDS[reason].format(per_category=self.per_category)
            found.append(printable(f"  {count:,} {words}" + (f": {shown}" if shown else "")))
        if self.compared_by == HOW_WITHOUT_DATASKETCH:
            install = '`pip install "trl-distill[near-duplicates]"`'
            found.append(f"Near-duplicates are {self.compared_by}; {install} to find those with other words too.")
        return found

    @staticmethod
    def _shown(one: Removed) -> str:
        joins = {Reason.LEAK: " is like ", Reason.NEAR_DUPLICATE: " is like ", Reason.UNUSABLE: ": "}
        return one.row + (f"{joins[one.reason]}{one.detail}" if one.reason in joins else "")

    def to_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        return {
            "rows": self.rows,
            "kept": self.kept,
            "per_category": self.per_category,
            "near_duplicates": self.compared_by,
            "categories": [vars(one) for one in self.categories],
            "counts": {str(reason): count for reason, count in self.counts.items()},
            "removed": [one.to_dict() for one in self.removed],
        }


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows that no row of the result may be much like.

    Attributes:
        texts: Their normalised inputs.
        places: The place of each in messages.
    """

    texts: Sequence[str] = ()
    places: Sequence[str] = ()


@dataclass
class _Selection:
    """Rows on their way through the steps: `texts` are those that are still there."""

    inputs: RowInputs
    texts: dict[int, str]
    removed: list[Removed] = field(default_factory=list)

    def remove(self, found: Mapping[int, str | None], reason: Reason) -> None:
        for i, detail in found.items():
            del self.texts[i]
            self.removed.append(Removed(self.inputs.places[i], reason, detail))


def select_diverse(
    inputs: RowInputs,
    categorize: Categorize,
    *,
    per_category: int,
    seed: int,
    held_out: HeldOut | None = None,
    held_out_here: Iterable[int] = (),
    keep_duplicates: bool = False,
) -> tuple[list[int], DiversityReport]:
    """Choose rows: none that is much like a held-out one or an earlier one, and as many of each category.

    Of near-duplicates the first row stays. Which rows of a large category are sampled, and the order of the result,
    depend on the texts and the seed, not on the order of the rows.

    Args:
        inputs: What the rows ask.
        categorize: Returns the category of each of the rows that are left after near-duplicates are removed.
        per_category: The most rows of a category.
        seed: Sampling seed.
        held_out: Rows from elsewhere that are held out.
        held_out_here: Indices of rows that are held out.
        keep_duplicates: Whether near-duplicates of earlier rows stay; those of held-out rows never do.

    Returns:
        The indices of the chosen rows, shuffled, and the report.

    Raises:
        DataError: No row is left.
    """
    left = _Selection(inputs, dict(inputs.texts))
    left.removed += [Removed(place, Reason.UNUSABLE, problem) for place, problem in inputs.report.set_aside]
    here = dict.fromkeys(held_out_here)
    kept_apart = held_out or HeldOut()
    kept_apart = HeldOut(
        [*kept_apart.texts, *(inputs.texts[i] for i in here)], [*kept_apart.places, *(inputs.places[i] for i in here)]
    )
    left.remove(here, Reason.HELD_OUT)
    left.remove(_leaks(left.texts, kept_apart), Reason.LEAK)
    if not keep_duplicates:
        left.remove(_duplicates(left.texts, inputs.places), Reason.NEAR_DUPLICATE)
    if not left.texts:
        reasons = Counter(one.reason for one in left.removed)
        why = ", ".join(f"{count:,} {IN_WORDS[reason]}" for reason, count in reasons.items())
        raise DataError(f"no row is left of {inputs.report.total:,} ({why}); give more rows, or other held-out rows.")
    order = list(left.texts)
    labels = dict(zip(order, categorize(order), strict=True))
    chosen, categories = _even(left.texts, labels, per_category, seed)
    left.remove({i: labels[i] for i in order if i not in chosen}, Reason.BEYOND)
    kept = sorted(chosen, key=lambda i: draw(f"{seed} order", inputs.texts[i], i))
    compared_by = None if keep_duplicates and not kept_apart.texts else NearDuplicates.how()
    removed = tuple(left.removed)
    return kept, DiversityReport(inputs.report.total, len(kept), per_category, categories, removed, compared_by)


def _short(name: str) -> str:
    """Return a name without its middle if it is long: long names often differ in their ends."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 3]}...{name[-half:]}"


def _leaks(texts: Mapping[int, str], held_out: HeldOut) -> dict[int, str | None]:
    """Return the rows that are near-duplicates of a held-out row, and the place of that."""
    if not held_out.texts:
        return {}
    index = NearDuplicates(held_out.texts)
    found = ((i, index.find(index.sketch(text))) for i, text in _shown(texts, "held-out rows"))
    return {i: f"held-out {held_out.places[like]}" for i, like in found if like is not None}


def _duplicates(texts: Mapping[int, str], places: Sequence[str]) -> dict[int, str | None]:
    """Return the rows that are near-duplicates of an earlier row that stays, and the place of that."""
    index, stays = NearDuplicates(), list[int]()
    found: dict[int, str | None] = {}
    for i, text in _shown(texts, "near-duplicates"):
        like = index.find_or_add(text)
        if like is None:
            stays.append(i)
        else:
            found[i] = places[stays[like]]
    return found


def _shown(texts: Mapping[int, str], name: str) -> Iterable[tuple[int, str]]:
    """Yield rows, with a progress bar on a terminal if they take more than a few seconds."""
    return tqdm(texts.items(), desc=f"looking for {name}", unit="row", leave=False, delay=3, disable=None)


def _even(
    texts: Mapping[int, str], labels: Mapping[int, str], most: int, seed: int
) -> tuple[set[int], tuple[Category, ...]]:
    """Return a sample of at most so many rows of each category, and the categories, the largest first."""
    members: dict[str, list[int]] = {}
    for i in texts:
        members.setdefault(labels[i], []).append(i)
    chosen: set[int] = set()
    for rows in members.values():
        chosen.update(sorted(rows, key=lambda i: draw(seed, texts[i], i))[:most])
    sizes = sorted(members.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    return chosen, tuple(Category(name, len(rows), min(most, len(rows))) for name, rows in sizes)
