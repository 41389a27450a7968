"""Near-duplicates: the normalised input of each row, and an index that finds the texts much like a new one."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .loading import places_of, read_rows
from .pretokenized import IDS, is_tokenized
from .row_faults import INDEX
from .row_report import RowReport
from .rows import Columns, rows_of

if TYPE_CHECKING:
    from datasets import Dataset
    from datasketch import MinHash, MinHashLSH

SHINGLE = 5  # characters
ALIKE = 0.8  # Jaccard similarity of two texts' shingles from which they are near-duplicates
PERMUTATIONS = 128
# bands of hashes, one of which is equal in a candidate: 95% of the pairs at 0.8, 99% at 0.85. datasketch's own for 0.8
# find 40% and 69%: they spare candidates, which are compared exactly here
BANDS = (16, 8)
LEAST_EQUAL = 83  # hashes of a candidate that is compared: four standard deviations below those expected at 0.8
COMPARED = 48  # texts that are compared exactly with a new one: those with the most equal hashes
_NO_LETTER = re.compile(r"[^\w\s]")  # nor digit
HOW = f"runs of {SHINGLE} characters with a Jaccard similarity of at least {ALIKE:g}"
HOW_WITHOUT_DATASKETCH = "inputs that differ only in case, punctuation and white space"


@dataclass(frozen=True)
class RowInputs:
    """What the usable rows of a dataset ask.

    Attributes:
        texts: The normalised input of each usable row, by index.
        places: The place of each row in messages, such as "line 7", by index.
        report: How many rows are used, and why the others are not.
    """

    texts: dict[int, str]
    places: list[str]
    report: RowReport


def inputs_of(dataset: Dataset, columns: Columns, fields: Collection[str] = (), *, source: str = "data") -> RowInputs:
    """Return what rows ask: their text column or the user's messages, and other columns that a prompt is made of.

    Args:
        dataset: Rows of any form that `read_rows` reads, or of token ids, which are compared as numbers.
        columns: Which columns hold what.
        fields: Other columns that a row's prompt is made of.
        source: The dataset in messages.

    Raises:
        DataError: See `read_rows`.
    """
    places = places_of(dataset)
    if is_tokenized(dataset):
        texts = {i: " ".join(map(str, ids)) for i, ids in enumerate(dataset[IDS])}
        return RowInputs(texts, places, RowReport(len(texts), len(texts), ()))
    numbered = dataset.add_column(INDEX, list(range(len(dataset))))
    read, report = read_rows(numbered, columns, fields=fields, source=source)
    texts = {}
    for row in rows_of(read):
        asked = [row.input] if row.history is None else [m["content"] for m in row.history if m["role"] == "user"]
        others = [str(row.values.get(name, "")) for name in sorted(fields)]
        texts[int(row.values[INDEX])] = normalised(" ".join(map(str, [*asked, *others])))
    return RowInputs(texts, places, report)


def normalised(text: str) -> str:
    """Return a text without case, punctuation and white space in excess; marks in words, as of Hindi vowels, stay."""
    text_alone = _NO_LETTER.sub(_mark_or_space, unicodedata.normalize("NFKC", text).casefold())
    return " ".join(word for word in text_alone.split() if re.search(r"\w", word)) or text


def _mark_or_space(found: re.Match[str]) -> str:
    return found[0] if unicodedata.category(found[0]).startswith("M") else " "


class Sketch(NamedTuple):
    """A normalised text with what it is compared by; the latter is None without datasketch."""

    text: str
    shingles: set[str]
    signature: MinHash | None


class NearDuplicates:
    """An index of normalised texts.

    Two texts are near-duplicates if the Jaccard similarity of their runs of five characters is 0.8 or more, which the
    package `datasketch` finds by MinHash (A. Broder, "On the resemblance and containment of documents", 1997); without
    it, if they are equal. Memory is proportional to the texts that are added.

    Args:
        texts: The first texts, which are added.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._texts: list[str] = []
        self._sizes: list[int] = []  # how many shingles each text has
        self._places: dict[str, int] = {}
        self._hashes = np.empty((64, PERMUTATIONS), np.uint8)  # of each text, the lowest byte, and room for more
        for text in texts:
            self.add(self.sketch(text))

    @staticmethod
    def how() -> str:
        """Say when two texts are near-duplicates, which depends on what is installed."""
        return HOW if find_spec("datasketch") else HOW_WITHOUT_DATASKETCH

    def sketch(self, text: str) -> Sketch:
        """Return what `find` and `add` compare a normalised text by, so that it is computed once for both."""
        if self._blank is None:
            return Sketch(text, set(), None)
        shingles, signature = _shingles(text), self._blank.copy()
        signature.update_batch([shingle.encode() for shingle in shingles])
        return Sketch(text, shingles, signature)

    def find(self, one: Sketch) -> int | None:
        """Return the number of a text in the index that is equal to this one, or much like it; None without one."""
        same = self._places.get(one.text)
        if same is not None or one.signature is None or self._index is None:
            return same
        found = np.sort(np.array(self._index.query(one.signature), np.int64))
        equal = np.count_nonzero(self._hashes[found] == _low_bytes(one.signature), axis=1)
        best = np.argsort(-equal, kind="stable")[:COMPARED]  # rows with the same long instruction are all found
        for number in found[best[equal[best] >= LEAST_EQUAL]].tolist():
            if _likeness(one, self._texts[number], self._sizes[number]) >= ALIKE:
                return int(number)
        return None

    def add(self, one: Sketch) -> int:
        """Add a text and return its number, from 0 in the order in which texts are added."""
        number = len(self._texts)
        self._texts.append(one.text)
        self._sizes.append(len(one.shingles))
        self._places.setdefault(one.text, number)
        if self._index is not None and one.signature is not None:
            self._index.insert(number, one.signature)
            if number == len(self._hashes):
                self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
            self._hashes[number] = _low_bytes(one.signature)
        return number

    def find_or_add(self, text: str) -> int | None:
        """Return the number of a text that is equal to this one, or much like it; without one add this, and None."""
        sketch = self.sketch(text)
        like = self.find(sketch)
        if like is None:
            self.add(sketch)
        return like

    @cached_property
    def _blank(self) -> MinHash | None:
        """A signature of nothing, whose copies share its permutations; None without datasketch."""
        try:
            from datasketch import MinHash
        except ImportError:
            return None
        return MinHash(num_perm=PERMUTATIONS)

    @cached_property
    def _index(self) -> MinHashLSH | None:
        try:
            from datasketch import MinHashLSH
        except ImportError:
            return None
        return MinHashLSH(threshold=ALIKE, num_perm=PERMUTATIONS, params=BANDS)


def _low_bytes(signature: MinHash) -> np.ndarray:
    return np.asarray(signature.hashvalues).astype(np.uint8)


def _shingles(text: str) -> set[str]:
    return {text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1))}


def _likeness(one: Sketch, text: str, size: int) -> float:
    """Return the Jaccard similarity of one text and another, which has `size` shingles.

    Only the shingles of the other that may be absent from the first are made: not those of a long beginning that both
    have, such as an instruction.
    """
    equal = bisect_left(range(min(len(one.text), len(text))), True, key=lambda k: one.text[: k + 1] != text[: k + 1])
    starts = range(max(0, equal - SHINGLE + 1), max(1, len(text) - SHINGLE + 1))
    absent = {shingle for i in starts if (shingle := text[i : i + SHINGLE]) not in one.shingles}
    return (size - len(absent)) / (len(one.shingles) + len(absent))
