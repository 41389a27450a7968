"""Fit prompts and completion into both models' limits and vocabularies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import DataError


class Limit(int):
    """Tokens that a sequence may have.

    Args:
        tokens: How many.
        whose: What sets the limit, in messages.
        remedy: What to do about it, if something can be done.
    """

    whose: str
    remedy: str

    def __new__(cls, tokens: int, whose: str, remedy: str = "") -> Limit:
        """Make the number with its source."""
        limit = super().__new__(cls, tokens)
        limit.whose, limit.remedy = whose, remedy
        return limit

    def __getnewargs__(self) -> tuple[int, str, str]:  # type: ignore[override]
        """Support copying and pickling."""
        return int(self), self.whose, self.remedy


class Limits(NamedTuple):
    """The length limits of a row's two sequences.

    Attributes:
        student: Tokens the student's sequence may have; None is no limit.
        teacher: Tokens the teacher's sequence may have; None is no limit.
        overflow: "error", or "left" to cut a prompt's start so that the completion fits.
        where: The row's name in messages.
    """

    student: int | None = None
    teacher: int | None = None
    overflow: str = "error"
    where: str = "a row"


class Fitted(NamedTuple):
    """A row's ids as they fit both models, and how many tokens were cut from its prompts and from its completion."""

    student_prompt: list[int]
    teacher_prompt: list[int]
    completion: list[int]
    prompt_cut: int
    completion_cut: int


def fit(student_prompt: list[int], teacher_prompt: list[int], completion: list[int], limits: Limits) -> Fitted:
    """Fit prompts and a completion of at least one token into both models' limits, each prompt by its own model's.

    Raises:
        DataError: A prompt that leaves no room for a completion token, under `overflow="error"`.
    """
    room, cut, prompts = len(completion), 0, []
    sides = (("student", student_prompt, limits.student), ("teacher", teacher_prompt, limits.teacher))
    for side, prompt, limit in sides:
        if limit is None:
            prompts.append(prompt)
            continue
        keep = len(prompt)
        if limits.overflow == "left":
            keep = min(keep, max(limit - len(completion), 1))
        elif keep >= limit:
            whose, remedy = (limit.whose, limit.remedy) if isinstance(limit, Limit) else ("the limit", "")
            raise DataError(
                f"{limits.where}: the {side}'s prompt has {keep} tokens, which leaves no room for a completion: "
                f"{whose} is {limit}; shorten the template or the input, {f'{remedy}, ' if remedy else ''}or cut "
                "the prompt's start with --prompt-overflow left."
            )
        prompts.append(prompt[len(prompt) - keep :])
        cut += len(prompt) - keep
        room = min(room, limit - keep)
    return Fitted(prompts[0], prompts[1], completion[:room], cut, len(completion) - room)


def check_ids(ids: Sequence[int], rows: int | None, *, what: str, whose: str, where: str) -> None:
    """Refuse token ids outside a vocabulary: a model would fail on them, or read a meaningless row.

    A vocabulary of None `rows` is not known. Messages say `what` the ids are, `where`, and `whose` vocabulary lacks
    them (with a verb).

    Raises:
        DataError: An id outside of it.
    """
    highest = max(ids, default=-1)
    if rows is not None and highest >= rows:
        raise DataError(
            f"{where}: {what} holds token {highest}, and {whose} the tokens 0 to {rows - 1}; leave it out of the data, "
            "or choose models that have it."
        )


def skipped_tokens(student_prompt: Sequence[int], teacher_prompt: Sequence[int]) -> int:
    """Return how many completion tokens have no token before them: 1 under an empty prompt, else 0."""
    return int(not student_prompt or not teacher_prompt)
