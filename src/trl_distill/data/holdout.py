"""`--holdout`: rows held out for evaluation, and their near-duplicates removed from the training rows."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import DataError
from .file_readers import PLACE
from .loading import read_rows
from .pretokenized import IDS, is_tokenized
from .row_report import RowReport
from .rows import Columns, rows_of

if TYPE_CHECKING:
    from datasets import Dataset

INDEX = "__index__"  # column with the place of a row in the data
SHINGLE = 5  # characters
ALIKE = 0.8  # Jaccard similarity of two rows' shingles from which they are near-duplicates
PERMUTATIONS = 128
NEAR = "it is a near-duplicate of a row held out for evaluation"


@dataclass(frozen=True)
class HoldoutSplit:
    """Data split into training and held-out rows.

    Attributes:
        train: The rows to train on.
        held_out: The rows held out.
        near: Indices of the rows that are in neither part, since they are near-duplicates of a held-out row.
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

    Two rows are near-duplicates if the Jaccard similarity of their runs of five characters is 0.8 or more, which the
    package `datasketch` finds by MinHash (A. Broder, "On the resemblance and containment of documents", 1997); without
    it, if their inputs differ only in case, punctuation and white space. Completions are not compared.

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
        dataset = dataset.add_column(PLACE, [f"row {i + 1}" for i in range(len(dataset))])
    texts = _texts(dataset, columns, fields)
    count = max(1, round(share * len(texts)))
    held_out = set(sorted(texts, key=lambda i: _draw(seed, texts[i], i))[:count])
    near = _near(texts, held_out)
    train = [i for i in range(len(dataset)) if i not in held_out and i not in near]
    if not set(texts) & set(train):
        raise DataError(
            f"holdout {share:g} of {len(texts):,} rows leaves no row to train on ({len(near):,} are near-duplicates "
            f"of those held out); lower --holdout, or give more rows."
        )
    places = dataset[PLACE]
    return HoldoutSplit(dataset.select(train), dataset.select(sorted(held_out)), tuple(places[i] for i in sorted(near)))


def _texts(dataset: Dataset, columns: Columns, fields: Collection[str]) -> dict[int, str]:
    """Return the normalised input of each usable row, by index."""
    if is_tokenized(dataset):
        return {i: " ".join(map(str, ids)) for i, ids in enumerate(dataset[IDS])}
    numbered = dataset.add_column(INDEX, list(range(len(dataset))))
    found = {}
    for row in rows_of(read_rows(numbered, columns, fields=fields)[0]):
        asked = [row.input] if row.history is None else [m["content"] for m in row.history if m["role"] == "user"]
        others = [str(row.values.get(name, "")) for name in sorted(fields)]
        found[int(row.values[INDEX])] = _normalised(" ".join(map(str, [*asked, *others])))
    return found


def _normalised(text: str) -> str:
    """Return a text without case, punctuation and white space in excess."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words) or text


def _draw(seed: int, text: str, place: int) -> tuple[str, int]:
    return hashlib.sha256(f"{seed} {text}".encode()).hexdigest(), place


def _near(texts: Mapping[int, str], held_out: Collection[int]) -> set[int]:
    """Return the indices of the other rows that are near-duplicates of a held-out row."""
    others = [i for i in texts if i not in held_out]
    same = {texts[i] for i in held_out}
    found = {i for i in others if texts[i] in same}
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        return found
    index, kept = MinHashLSH(threshold=ALIKE, num_perm=PERMUTATIONS), {i: _shingles(texts[i]) for i in held_out}

    def hashed(places: Sequence[int], sets: Iterable[set[bytes]]) -> Iterable[tuple[int, MinHash]]:
        return zip(places, MinHash.generator(sets, num_perm=PERMUTATIONS), strict=True)

    for place, signature in hashed([*kept], kept.values()):
        index.insert(place, signature)
    rest = [i for i in others if i not in found]
    for place, signature in hashed(rest, (_shingles(texts[i]) for i in rest)):
        own = _shingles(texts[place])
        if any(_jaccard(own, kept[other]) >= ALIKE for other in index.query(signature)):
            found.add(place)
    return found


def _shingles(text: str) -> set[bytes]:
    return {text[i : i + SHINGLE].encode() for i in range(max(1, len(text) - SHINGLE + 1))}


def _jaccard(one: set[bytes], other: set[bytes]) -> float:
    return len(one & other) / len(one | other)
