"""How a local teacher reads the rows of a packed student: in which passes, padded behind a cached prefix or flattened.

A flattened sequence has no padding, but cannot go on from a prefix that is read once: every row brings its own. Rows
are read the way that has fewer tokens to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MOST = 4096  # tokens; a pass may have as many whatever the student's batch has, since fewer leave a device idle


class Pass(NamedTuple):
    """Rows that are read at once.

    Attributes:
        rows: Their places.
        flat: Whether they are one sequence; else they are padded to the longest of them.
    """

    rows: slice
    flat: bool


def plan(lengths: Sequence[int], *, start: int, flattens: bool, most: int | None) -> list[Pass]:
    """Return the passes that read all rows in their order.

    Args:
        lengths: Tokens of each row.
        start: Tokens of each that a cache has already.
        flattens: Whether rows may be put into one sequence.
        most: Tokens of a pass at most, but for a single row that is longer; None reads all in one.
    """
    flat = flattens and sum(lengths) < len(lengths) * (max(lengths) - start)
    found, first = [], 0
    for end in range(1, len(lengths) + 1):
        behind = lengths[first : end + 1]  # with the next row
        tokens = sum(behind) if flat else len(behind) * (max(behind) - start)
        if end == len(lengths) or (most is not None and tokens > most):
            found.append(Pass(slice(first, end), flat))
            first = end
    return found
