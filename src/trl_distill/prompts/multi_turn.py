"""Conversations with several learned turns: both sides' token ids, and masks over the completions.

Each side has a prompt, which ends before the first learned turn, and after it all ids up to the end of the last learned
turn, with a mask that is 1 on what is learned. Between the turns the sides may read different user messages. The ids
under the masks are the same, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..errors import DataError
from .fitting import Limits, fit
from .messages import Message, Prompt, is_learned, users_places
from .rendering import render
from .row import Row
from .template import SYSTEM_ROLES, Template

# columns beside the student's prompt, the teacher's prompt and the completion
COLUMNS = ("completion_mask", "teacher_completion", "teacher_completion_mask")


class MaskedSequence(NamedTuple):
    """One side's ids: the prompt, what follows it, and a mask over the latter, 1 on what is learned."""

    prompt: list[int]
    rest: list[int]
    mask: list[int]

    @classmethod
    def from_ids(cls, ids: Sequence[int], mask: Sequence[int]) -> MaskedSequence:
        """Return a sequence that is tokenized already, its prompt being all before the first token of the mask."""
        places = [k for k, bit in enumerate(mask) if bit]
        if not places:
            return cls(list(ids), [], [])
        first, end = places[0], places[-1] + 1
        return cls(list(ids[:first]), list(ids[first:end]), [int(bool(bit)) for bit in mask[first:end]])

    @property
    def supervised_ids(self) -> list[int]:
        """The ids under the mask."""
        return [token for token, bit in zip(self.rest, self.mask, strict=True) if bit]


def conversation_of(template: Template, row: Row, own: Prompt | None = None) -> tuple[list[Message], list[int]]:
    """Return a row's whole conversation as one side reads it, and the places of the messages that are learned.

    The template renders every user message. Messages of a chat template without {input} are rendered once, before the
    first learned turn. A message with `"weight": 0`, or an empty one, is not learned. A prompt that the row brings for
    the teacher (`own`) replaces all before the first learned turn (messages) or its user message (text).
    """
    assert row.history is not None
    assert row.turns is not None
    messages = [*row.history, row.turns.last]
    start = max(row.turns.start, users_places(messages)[0])
    first = next(i for i in range(start, len(messages)) if is_learned(messages[i]))
    before = messages[:first]
    asked = before[users_places(before)[-1]]["content"]
    prompt = render(template, replace(row, input=asked, history=before), own)
    assert not isinstance(prompt, str)
    again = next((text for role, text in template.messages if role in ("", "user") and "input" in text.fields), None)
    rest = [
        {**m, "content": again.render({**row.values, "input": m["content"]})} if m["role"] == "user" and again else m
        for m in messages[first:]
        if template.system.keep or m["role"] not in SYSTEM_ROLES
    ]
    places = [len(prompt) + i for i, message in enumerate(rest) if is_learned(message)]
    return [*prompt, *rest], places


def aligned_columns(mine: MaskedSequence, theirs: MaskedSequence, *, where: str) -> dict[str, list[int]]:
    """Return the columns of a row; without gaps, they are those of an ordinary one and the masks are empty.

    Raises:
        DataError: The two chat templates write what is learned in different tokens.
    """
    if mine.supervised_ids != theirs.supervised_ids:
        raise DataError(
            f"{where}: the chat templates of teacher and student turn the assistant's messages into different tokens; "
            "give both the same one with --chat-template and --teacher-chat-template."
        )
    row = {"student_prompt": mine.prompt, "teacher_prompt": theirs.prompt, "completion": mine.rest}
    if all(mine.mask) and all(theirs.mask):
        return row
    return {**row, **dict(zip(COLUMNS, (mine.mask, theirs.rest, theirs.mask), strict=True))}


def fit_masked(student: MaskedSequence, teacher: MaskedSequence, limits: Limits) -> dict[str, object]:
    """Return the columns of two sequences as each fits its own model, see `fitting.fit`; both keep the same tokens."""
    mine = fit(student.prompt, [], student.rest, limits._replace(teacher=None))
    theirs = fit([], teacher.prompt, teacher.rest, limits._replace(student=None))
    tokens = min(sum(student.mask[: len(mine.completion)]), sum(teacher.mask[: len(theirs.completion)]))
    ends = _end_of(student.mask, tokens), _end_of(teacher.mask, tokens)
    unpredictable = int(tokens > 0 and not (mine.student_prompt and theirs.teacher_prompt))
    return {
        "student_prompt": mine.student_prompt,
        "teacher_prompt": theirs.teacher_prompt,
        "completion": student.rest[: ends[0]],
        "completion_mask": student.mask[: ends[0]],
        "teacher_completion": teacher.rest[: ends[1]],
        "teacher_completion_mask": teacher.mask[: ends[1]],
        "prompt_cut": mine.prompt_cut + theirs.prompt_cut,
        "completion_cut": sum(student.mask) - tokens,
        "kept": tokens - unpredictable,
    }


def with_masks(row: dict[str, Any]) -> dict[str, Any]:
    """Return a fitted row with masks, also if its completion has no gaps."""
    if row["completion_mask"]:
        return row
    ids = row["completion"]
    return {**row, **dict(zip(COLUMNS, ([1] * len(ids), ids, [1] * len(ids)), strict=True))}


def _end_of(mask: Sequence[int], tokens: int) -> int:
    places = [k for k, bit in enumerate(mask, 1) if bit]
    return places[tokens - 1] if tokens else 0
