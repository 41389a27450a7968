"""One row's token ids for both models, as an aligned dataset holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Source = Literal["data", "text", "teacher"]


@dataclass
class AlignedRow:
    """A row's token ids and statistics; each field is a column of the aligned dataset.

    Attributes:
        row: The row's number.
        source: Where its completion comes from, see `row_tokens.source_of`.
        student_prompt: Ids that the student reads before the completion.
        teacher_prompt: Ids that the teacher reads before it.
        completion: The ids to learn; the student's, if the teacher has others.
        completion_mask: 1 on the ids to learn, if they have gaps; else empty.
        teacher_completion: The teacher's ids, if they are others than the student's; else empty.
        teacher_completion_mask: As `completion_mask`, of `teacher_completion`.
        student_starts: First tokens of the spans that both tokenizers have, see `TokenizerPair.fit`.
        teacher_starts: The same of the teacher's ids.
        span_kinds: How the tokens of a span match, see `byte_spans.ByteSpan`.
        finished: Whether the completion ends there; one that was cut is taught no end.
        chat: Whether the student's prompt is chat messages.
        dropped: Whether the student reads the teacher's prompt.
        own_system: Whether the row has a system message of its own.
        foreign: Whether the teacher's chat template would write the assistant's turn in other words.
        unusable: Why there is nothing to learn; empty if there is.
        opening: `Turn.opening` as JSON; empty if the prompt ends in the generation prompt.
        frame: The key of what surrounds the user's message, or `row_tokens.WITH_TOOLS`; empty if there is none.
        prompt_json: The prompt of a teacher that is asked in text, as JSON; else empty.
        text: The completion of such a teacher, the key of a server's log-probabilities.
        whole: Its ids before they are fitted.
        prompt_cut: Tokens cut from the start of the prompts.
        completion_cut: Tokens cut from the end of the completion.
        kept: Tokens to learn.
    """

    row: int
    source: Source
    student_prompt: list[int] = field(default_factory=list)
    teacher_prompt: list[int] = field(default_factory=list)
    completion: list[int] = field(default_factory=list)
    completion_mask: list[int] = field(default_factory=list)
    teacher_completion: list[int] = field(default_factory=list)
    teacher_completion_mask: list[int] = field(default_factory=list)
    student_starts: list[int] = field(default_factory=list)
    teacher_starts: list[int] = field(default_factory=list)
    span_kinds: list[int] = field(default_factory=list)
    finished: bool = True
    chat: bool = False
    dropped: bool = False
    own_system: bool = False
    foreign: bool = False
    unusable: str = ""
    opening: str = ""
    frame: str = ""
    prompt_json: str = ""
    text: str = ""
    whole: list[int] = field(default_factory=list)
    prompt_cut: int = 0
    completion_cut: int = 0
    kept: int = 0

    def update(self, columns: Mapping[str, object]) -> None:
        """Set several columns."""
        for name, value in columns.items():
            setattr(self, name, value)
