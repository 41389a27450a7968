"""A report on the rows of a dataset: how many are used, and why the others are skipped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import DataError, printable
from ..prompts.messages import ROLES, UNKNOWN_ROLE

SHOWN = 10


class NoUsableRows(DataError):
    """Data without a row that can be learned."""


class Problem(NamedTuple):
    """Why a row cannot be used; a `bad` one counts against the limit."""

    place: str
    problem: str
    bad: bool


@dataclass(frozen=True)
class RowReport:
    """How many rows of a dataset are used, and why the others are skipped.

    Attributes:
        total: Rows read.
        used: Rows that can be learned from.
        set_aside: (place, reason) of each other row, for example ("line 7", "'text' is empty").
    """

    total: int
    used: int
    set_aside: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, problems: Sequence[Problem], total: int, *, max_bad_rows: int, source: str) -> RowReport:
        """Return the report on rows some of which have a problem.

        Raises:
            DataError: More bad rows than allowed, or (`NoUsableRows`) no row left to use.
        """
        bad = [problem for problem in problems if problem.bad]
        if len(bad) > max_bad_rows:
            rows, them = ("row", "it") if len(bad) == 1 else ("rows", "them")
            roles = f" Known roles are {', '.join(ROLES)}." if any(UNKNOWN_ROLE in one.problem for one in bad) else ""
            raise DataError(
                f"{source}: {len(bad):,} bad {rows}, more than --max-bad-rows {max_bad_rows}: {_list(bad)}; repair "
                f"{them}, or raise --max-bad-rows to set {them} aside.{roles}"
            )
        if len(problems) == total:
            raise NoUsableRows(f"{source}: none of {total:,} rows can be used: {_list(problems)}; repair the data.")
        return cls(total, total - len(problems), tuple((one.place, one.problem) for one in problems))

    def summary(self) -> str:
        """Return one line: rows used and, for each reason, how many were set aside and where the first stand."""
        if not self.set_aside:
            return f"{self.used:,} of {self.total:,} used"
        reasons: dict[str, list[str]] = {}
        for place, reason in self.set_aside:
            reasons.setdefault(reason, []).append(place)
        parts = [
            f"{len(places):,} because {reason} ({', '.join(places[:3])}{', ...' if len(places) > 3 else ''})"
            for reason, places in reasons.items()
        ]
        return printable(f"{self.used:,} of {self.total:,} used; {len(self.set_aside):,} set aside: {'; '.join(parts)}")


def numbered(rows: Iterable[int]) -> str:
    """Return "row 3" or "rows 3, 7 and 9" for an error; of many rows the first ones."""
    numbers = sorted(set(rows))
    shown = [str(number) for number in numbers[:SHOWN]]
    if len(numbers) == 1:
        return f"row {shown[0]}"
    last = f"{len(numbers) - SHOWN:,} more" if len(numbers) > SHOWN else shown.pop()
    return f"rows {', '.join(shown)} and {last}"


def _list(problems: Sequence[Problem]) -> str:
    more = f", and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
    return ", ".join(f"{one.place} ({one.problem})" for one in problems[:SHOWN]) + more
