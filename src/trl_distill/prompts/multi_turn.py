"""Conversations of which several stretches are learnt: both sides' token ids, and which of them are completions.

Each side has a prompt, which ends where the first learnt turn begins, and from there on all ids up to the end of the
last one, with a mask that is 1 on what is learnt. Between the turns the sides may read different user messages; the
ids under the masks are the same, in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DataError
from .fitting import fit
from .messages import is_learned
from .rendering import Message, Prompt, prompt_of
from .template import SYSTEM_ROLES, Template

if TYPE_CHECKING:
    pass

# columns beside the student's prompt, the teacher's prompt and the completion
COLUMNS = ("completion_mask", "teacher_completion", "teacher_completion_mask")


class Stretches(NamedTuple):
    """One side's ids: the prompt, what follows it, and a mask over the latter, 1 on what is learnt."""

    prompt: list[int]
    rest: list[int]
    mask: list[int]

    @property
    def learnt(self) -> list[int]:
        """The ids under the mask."""
        return [token for token, bit in zip(self.rest, self.mask, strict=True) if bit]


def conversation_of(
    template: Template, row: Mapping[str, Any], own: Prompt | None = None
) -> tuple[list[Message], list[int]]:
    """Return a row's whole conversation as one side reads it, and the places of the messages that are learned.

    The template renders every user message. Messages of a chat template that do not hold {input} stand once, before
    the first learned turn. A message with `"weight": 0`, or an empty one, is not learned.

    Args:
        template: The side's.
        row: What `read_rows` made of a row, with `turns`.
        own: The teacher's prompt that the row brings, in the place of all before the first learned turn (messages) or
            of its user message (text).
    """
    turns, values = json.loads(row["turns"]), json.loads(row["values"])
    messages = [*json.loads(row["history"]), turns["last"]]
    asked = next(i for i, message in enumerate(messages) if message["role"] == "user")
    start = max(turns["start"], asked)
    first = next(i for i in range(start, len(messages)) if is_learned(messages[i]))
    before = messages[:first]
    put = max(i for i, message in enumerate(before) if message["role"] == "user")
    prompt = prompt_of(template, {**values, "input": before[put]["content"]}, before, own)
    assert not isinstance(prompt, str)
    again = next((text for role, text in template.messages if role in ("", "user") and "input" in text.fields), None)
    rest = [
        {**m, "content": again.render({**values, "input": m["content"]})} if m["role"] == "user" and again else m
        for m in messages[first:]
        if template.system.keep or m["role"] not in SYSTEM_ROLES
    ]
    places = [len(prompt) + i for i, message in enumerate(rest) if is_learned(message)]
    return [*prompt, *rest], places


def side_by_side(mine: Stretches, theirs: Stretches, *, where: str) -> dict[str, Any]:
    """Return the columns of a row; without gaps, they are those of an ordinary one and the masks are empty.

    Args:
        mine: The student's.
        theirs: The teacher's.
        where: The row's name in messages.

    Raises:
        DataError: The two chat templates write what is learnt in different tokens.
    """
    if mine.learnt != theirs.learnt:
        raise DataError(
            f"{where}: the chat templates of teacher and student write what the assistant says in different tokens; "
            "give both the same one with --chat-template and --teacher-chat-template."
        )
    row = {"student_prompt": mine.prompt, "teacher_prompt": theirs.prompt, "completion": mine.rest}
    if all(mine.mask) and all(theirs.mask):
        return row
    return {**row, **dict(zip(COLUMNS, (mine.mask, theirs.rest, theirs.mask), strict=True))}


def of_ids(ids: Sequence[int], mask: Sequence[int]) -> Stretches:
    """Return the stretches of a sequence that is tokenized already.

    Args:
        ids: The sequence.
        mask: 1 on what is learnt.
    """
    places = [k for k, bit in enumerate(mask) if bit]
    if not places:
        return Stretches(list(ids), [], [])
    first, end = places[0], places[-1] + 1
    return Stretches(list(ids[:first]), list(ids[first:end]), [int(bool(bit)) for bit in mask[first:end]])


def fit_stretches(
    row: Mapping[str, Any], *, student_limit: int | None, teacher_limit: int | None, overflow: str, where: str
) -> dict[str, Any]:
    """Return a row with gaps as it fits both models, each side by its own limit; both keep the same learnt tokens.

    Args:
        row: With both prompts, `completion` and `COLUMNS`.
        student_limit: As in `fitting.fit`.
        teacher_limit: As in `fitting.fit`.
        overflow: As in `fitting.fit`.
        where: The row's name in messages.

    Raises:
        DataError: See `fitting.fit`.
    """
    limits = {"overflow": overflow, "where": where}
    sides = [Stretches(row["student_prompt"], row["completion"], row["completion_mask"])]
    sides.append(Stretches(row["teacher_prompt"], row["teacher_completion"], row["teacher_completion_mask"]))
    mine = fit(sides[0].prompt, [], sides[0].rest, student_limit=student_limit, teacher_limit=None, **limits)
    theirs = fit([], sides[1].prompt, sides[1].rest, student_limit=None, teacher_limit=teacher_limit, **limits)
    tokens = min(sum(side.mask[: len(f.completion)]) for side, f in zip(sides, (mine, theirs), strict=True))
    ends = [_end_of(side.mask, tokens) for side in sides]
    unpredictable = int(tokens > 0 and not (mine.student_prompt and theirs.teacher_prompt))
    return {
        "student_prompt": mine.student_prompt,
        "teacher_prompt": theirs.teacher_prompt,
        "completion": sides[0].rest[: ends[0]],
        "completion_mask": sides[0].mask[: ends[0]],
        "teacher_completion": sides[1].rest[: ends[1]],
        "teacher_completion_mask": sides[1].mask[: ends[1]],
        "prompt_cut": mine.prompt_cut + theirs.prompt_cut,
        "completion_cut": sum(sides[0].mask) - tokens,
        "kept": tokens - unpredictable,
    }


def with_masks(row: dict[str, Any]) -> dict[str, Any]:
    """Return a fitted row with masks, also where its completion has no gaps."""
    if row["completion_mask"]:
        return row
    ids = row["completion"]
    return {**row, **dict(zip(COLUMNS, ([1] * len(ids), ids, [1] * len(ids)), strict=True))}


def _end_of(mask: Sequence[int], tokens: int) -> int:
    """Return the place behind the learnt token of that number."""
    places = [k for k, bit in enumerate(mask, 1) if bit]
    return places[tokens - 1] if tokens else 0
