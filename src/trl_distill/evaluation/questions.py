"""The rows of an evaluation: each side's prompt, and the reference completion."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from ..config.evaluation_settings import ROWS as NAME
from ..data.row_tokens import tokenize_row
from ..data.rows import rows_of
from ..errors import DataError
from ..prompts.chat_template import ChatTemplate
from ..prompts.fitting import fit
from ..prompts.prefix_tokenizer import PromptTokens
from ..prompts.rendering import options_of, own_prompt, render
from ..prompts.serving_template import Frame
from ..prompts.system_message import for_reader

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..data.aligned_row import AlignedRow
    from ..data.recipe import RowRecipe
    from ..prompts.chat_template import Options
    from ..prompts.messages import Prompt
    from ..prompts.row import Row
    from ..prompts.template import Template


class SidePrompt(NamedTuple):
    """A prompt as one model reads it: token ids, and the text that they stand for."""

    ids: list[int]
    text: str


@dataclass(frozen=True)
class Question:
    """One row of an evaluation.

    Attributes:
        row: The row.
        aligned: Its token ids, to which the teacher's completion is added.
        student: The student's prompt.
        teacher: The teacher's prompt; if the teacher reads text, the ids only estimate its length.
        asked: The prompt of a teacher that reads text; None if it reads token ids.
        reference: The completion that all sides are compared with; None if the row has none.
    """

    row: Row
    aligned: AlignedRow
    student: SidePrompt
    teacher: SidePrompt
    asked: Prompt | None
    reference: str | None


@dataclass(frozen=True)
class QuestionReader:
    """Renders rows for both sides, as a run does for rows whose completions the teacher writes.

    Attributes:
        recipe: How rows become token ids.
        opening: How the student's prompts differed in training from its own generation prompt, see `Turn.opening`.
        room: Tokens that a completion may have: `prompt_overflow="left"` cuts prompts until there is room for them, as
            far as half of the model's length.
    """

    recipe: RowRecipe
    opening: Mapping[str, object] = field(default_factory=dict)
    room: int = 1

    def questions(self, rows: Dataset, references: Sequence[str | None]) -> list[Question]:
        """Return the rows that `preparation.read` has read, each with its reference.

        Raises:
            DataError: A prompt that is too long for its model.
        """
        return [self._question(row, reference) for row, reference in zip(rows_of(rows), references, strict=True)]

    def prompted(self, question: Question) -> SidePrompt:
        """Return the teacher's prompt of a row as the student reads it.

        Raises:
            TemplateError: Chat messages, and the student has no chat template.
        """
        row, options = question.row, self._options(question.row)
        prompt = render(self._teachers_template_for_student, row, self._own_prompt(row))
        return SidePrompt(
            self._prompted_tokens(prompt, options), _text_of(self.recipe.student.tokenizer, prompt, options)
        )

    def _question(self, row: Row, reference: str | None) -> Question:
        recipe = replace(self.recipe, completions="teacher", prompt_dropout=0.0)
        aligned, options = tokenize_row(row, recipe, name=NAME), self._options(row)
        student = Frame(render(recipe.student.template, row), options)
        teacher = Frame(render(recipe.teacher.template, row, self._own_prompt(row)), options)
        if self.opening and aligned.chat:
            student, teacher = student.opened(self.opening), teacher.opened(self.opening)
            aligned.student_prompt = student.prompt_ids(recipe.student.tokenizer)
            if not recipe.reads_text:
                aligned.teacher_prompt = teacher.prompt_ids(recipe.teacher.tokenizer)
        self._fit(aligned)
        asked = json.loads(aligned.prompt_json) if recipe.reads_text else None
        theirs = _text_in(teacher, recipe.teacher.tokenizer) if asked is None else _said(asked)
        return Question(
            row,
            aligned,
            SidePrompt(aligned.student_prompt, _text_in(student, recipe.student.tokenizer)),
            SidePrompt(aligned.teacher_prompt, theirs),
            asked,
            reference,
        )

    def _fit(self, aligned: AlignedRow) -> None:
        """Refuse prompts that leave no room for a completion, or cut their start."""
        limits = self.recipe.limits(f"{NAME}, row {aligned.row}")
        room = 1
        if limits.overflow == "left":
            given = [limit // 2 for limit in (limits.student, limits.teacher) if limit is not None]
            room = max(1, min([self.room, *given]))
        fitted = fit(aligned.student_prompt, aligned.teacher_prompt, [0] * room, limits)
        aligned.student_prompt, aligned.teacher_prompt = fitted.student_prompt, fitted.teacher_prompt

    def _own_prompt(self, row: Row) -> Prompt | None:
        return own_prompt(row.values, self.recipe.teacher.template, where=f"{NAME}, row {row.number}")

    def _options(self, row: Row) -> dict[str, object]:
        own = {} if row.history is None else options_of(row.values, where=f"{NAME}, row {row.number}")
        return {**self.recipe.options, **own}

    @cached_property
    def _prompted_tokens(self) -> PromptTokens:
        return PromptTokens(self.recipe.student.tokenizer)

    @cached_property
    def _teachers_template_for_student(self) -> Template:
        return for_reader(self.recipe.teacher.template, self.recipe.student.tokenizer)


def references_of(rows: Dataset, *, column: str | None = None) -> list[str | None]:
    """Return the reference of each row: a column's, else the data's own completion; None if it has none.

    Args:
        rows: Rows from `Recipe.read`.
        column: The column that was asked for.

    Raises:
        DataError: It is empty in all rows.
    """
    read = list(rows_of(rows))
    found = [_reference(row, column) for row in read]
    if column is not None and not any(found):
        raise DataError(f"{NAME}: the column {column!r} is empty in all rows; name another with --reference-column.")
    return found


def _reference(row: Row, column: str | None) -> str | None:
    """Return a row's reference; a column that was read as the completion is not among the row's values."""
    found = row.completion if column is None or column not in row.values else str(row.values[column])
    return found if found is not None and found.strip() else None


def _text_in(frame: Frame, tokenizer: PreTrainedTokenizerBase) -> str:
    return _text_of(tokenizer, frame.prompt, frame.options).removesuffix(frame.left_out)


def _text_of(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, options: Options) -> str:
    return ChatTemplate(tokenizer).render_prompt(prompt, options)[0]


def _said(prompt: Prompt) -> str:
    """Return the part of a prompt that is sent to a server."""
    return prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)
