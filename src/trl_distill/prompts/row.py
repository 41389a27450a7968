"""One row of any accepted form, for templates, chat templates and teachers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .messages import Message


class AssistantTurns(NamedTuple):
    """The learned messages of a conversation, if they are more than the text of its last message.

    Attributes:
        last: The last message, which is the assistant's.
        start: The place in the conversation from which assistant messages are learned; one of weight 0 is not.
    """

    last: Message
    start: int


@dataclass(frozen=True, slots=True)
class Row:
    """One row, read and checked.

    Attributes:
        number: Its line in a line-based file, else its number in the data from 1.
        input: The text column, or the text of the conversation's last user message.
        values: The other columns as texts and numbers.
        history: The messages before the completion, the last one being the user's or a tool's; None for text.
        completion: The text to learn; None if the data has none.
        turns: More than a text to learn, see `AssistantTurns`.
        ids: Token ids of a row that is tokenized already; it then has neither input nor values.
        mask: 1 on each of those ids that is learned.
    """

    number: int
    input: str
    values: Mapping[str, str | int | float]
    history: list[Message] | None = None
    completion: str | None = None
    turns: AssistantTurns | None = None
    ids: list[int] | None = None
    mask: list[int] | None = None

    @property
    def fields(self) -> dict[str, str | int | float]:
        """The template fields: the other columns, and `input`."""
        return {**self.values, "input": self.input}

    def to_columns(self) -> dict[str, Any]:
        """Return the row as a dataset holds it; what differs in shape between rows is JSON there."""
        return {
            "row": self.number,
            "input": self.input,
            "history": None if self.history is None else _json(self.history),
            "completion": self.completion,
            "turns": None if self.turns is None else _json(self.turns._asdict()),
            "values": _json(self.values),
        }

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Row:
        """Return the row that `to_columns` wrote; one that is tokenized also has the columns `ids` and `mask`."""
        history, turns = columns["history"], columns["turns"]
        return cls(
            columns["row"],
            columns["input"],
            json.loads(columns["values"]),
            None if history is None else json.loads(history),
            columns["completion"],
            None if turns is None else AssistantTurns(**json.loads(turns)),
            columns.get("ids"),
            columns.get("mask"),
        )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
