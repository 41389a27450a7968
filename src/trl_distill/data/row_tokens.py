"""Tokenize one row for both models: both prompts, and the completion if the data has one."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from ..errors import DataError
from ..models.generation import EMPTY
from ..prompts.assistant_turn import Turn
from ..prompts.fitting import fit
from ..prompts.messages import REASONING, Message, Prompt, with_reasoning
from ..prompts.multi_turn import MaskedSequence, aligned_columns, conversation_of, fit_masked
from ..prompts.rendering import options_of, own_prompt, render
from ..prompts.row import AssistantTurns, Row
from ..prompts.serving_template import Frame, frame_of
from ..prompts.template import SYSTEM_ROLES
from ..prompts.tokenization import tokenize_after, tokenize_completion, tokenize_prompt
from .aligned_row import AlignedRow, Source
from .rows import was_cut

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..models.generation import Completion
    from ..prompts.prefix_tokenizer import PromptTokens
    from .cross_tokenizer.tokenizer_pair import TokenizerPair
    from .recipe import PromptSide, RowRecipe

UNWRITTEN = "the completion is only reasoning, which the chat template leaves out"
WITH_TOOLS = "tools"  # in the column `frame` of a row that brings some


def source_of(row: Row, recipe: RowRecipe) -> Source:
    """Return the source of a row's completion: "data", "text" (the input itself) or "teacher"."""
    if recipe.completions == "teacher":
        return "teacher"
    if row.completion is not None or row.ids is not None:
        return "data"
    alike = recipe.student.template.is_identity and recipe.teacher.template.is_identity
    alike = alike and own_prompt(row.values, recipe.teacher.template, where="") is None
    if alike and row.history is None and (recipe.plain_text or recipe.completions == "data"):
        return "text"
    return "teacher"


def tokenize_row(row: Row, recipe: RowRecipe, *, name: str) -> AlignedRow:
    """Return a row with both prompts' ids, and the completion's if there is one, before they are fitted."""
    tokens = RowTokens(row, recipe, name=name)
    tokens.put()
    return tokens.out


def fit_row(row: AlignedRow, recipe: RowRecipe, *, name: str) -> AlignedRow:
    """Fit a row from `tokenize_row` into both models, see `fit`; `kept` counts the tokens to learn."""
    if not row.completion:
        return row
    limits = recipe.limits(f"{name}, row {row.row}")
    if row.completion_mask:
        mine = MaskedSequence(row.student_prompt, row.completion, row.completion_mask)
        theirs = MaskedSequence(row.teacher_prompt, row.teacher_completion, row.teacher_completion_mask)
        row.update(fit_masked(mine, theirs, limits))
        return row
    if recipe.tokenizer_pair is not None:
        row.update(recipe.tokenizer_pair.fit(row, limits))
    else:
        row.update(fit(row.student_prompt, row.teacher_prompt, row.completion, limits)._asdict())
    row.kept = len(row.completion) - (not row.student_prompt or not row.teacher_prompt)
    return row


class RowTokens:
    """Puts the token ids of a row into `out`, the columns of its aligned row."""

    def __init__(self, row: Row, recipe: RowRecipe, *, name: str, out: AlignedRow | None = None) -> None:
        self.row, self.recipe, self.where = row, recipe, f"{name}, row {row.number}"
        self.out = AlignedRow(row.number, source_of(row, recipe)) if out is None else out
        self.student, self.teacher, self.pair = recipe.student, recipe.teacher, recipe.tokenizer_pair

    @cached_property
    def own_prompt(self) -> Prompt | None:
        return own_prompt(self.row.values, self.teacher.template, where=self.where)

    @cached_property
    def own_options(self) -> dict[str, object]:
        return {} if self.row.history is None else options_of(self.row.values, where=self.where)

    @cached_property
    def options(self) -> dict[str, object]:
        return {**self.recipe.options, **self.own_options}

    @cached_property
    def prompts(self) -> tuple[Prompt, Prompt]:
        """The prompts of student and teacher."""
        teacher = render(self.teacher.template, self.row, self.own_prompt)
        return teacher if self.recipe.drops(self.row) else render(self.student.template, self.row), teacher

    def frame(self, opening: Mapping[str, object] | None = None) -> Frame | None:
        """Return the student's prompt around a user message; see `frame_of`."""
        return frame_of(self.row, self.student.template, self.options, opening)

    def put(self) -> None:
        """Put what `tokenize_row` returns."""
        out, row, recipe = self.out, self.row, self.recipe
        if row.ids is not None:
            both = MaskedSequence.from_ids(row.ids, row.mask or [])
            out.update(aligned_columns(both, both, where=self.where))
            return
        if out.source == "text":
            self._put_text()
            return
        out.finished = out.source == "teacher" or not was_cut(row.values)
        out.own_system = any(message["role"] in SYSTEM_ROLES for message in row.history or [])
        frame = self.frame()
        out.frame = WITH_TOOLS if frame is None else frame.key
        if row.history is not None and out.source == "data" and recipe.columns.assistant_turns:
            self._put_turns(row.history)
            return
        out.dropped = recipe.drops(row)
        student, teacher = self.prompts
        out.chat = not isinstance(student, str)
        if recipe.reads_text:
            if self.own_options and out.source == "teacher":
                raise DataError(
                    f"{self.where}: there are {', '.join(sorted(self.own_options))} for a chat template, but the "
                    f"teacher is sent only text and messages; give completions, or a local teacher."
                )
            out.prompt_json = json.dumps(teacher)
        if out.source == "teacher":
            out.student_prompt = self._student_tokens(student, self.options)
            out.teacher_prompt = self.teacher.prompt_tokens(self._formatted(teacher), self.options)
        else:
            self._put_completion(student, teacher)

    def put_written(self, written: Completion) -> None:
        """Put a completion that the teacher wrote into the columns of a row without one."""
        out, text = self.out, written.text
        out.unusable = "" if text is None else written.unusable or ("" if text.strip() else EMPTY)
        if out.unusable:
            return
        out.finished = written.finished
        if self.pair is not None:
            out.completion, out.teacher_completion = self.pair.written(
                written.ids, finished=out.finished, chat=out.chat
            )
        elif text is None:
            out.completion = list(written.ids)
        else:
            self._put_written_text(text, written.reasoning)

    def _put_text(self) -> None:
        """Put a text that is learned as a whole, after the tokenizers' leading special tokens."""
        out, text, tokenizer = self.out, self.row.input, self.student.tokenizer
        opening, completion = tokenize_prompt(tokenizer, ""), tokenize_completion(tokenizer, text)
        if opening and completion[:1] == opening[-1:] and text.startswith(str(tokenizer.bos_token)):
            completion = completion[1:]
        out.student_prompt, out.completion = opening, completion
        out.teacher_prompt = tokenize_prompt(self.teacher.tokenizer, "")
        if self.pair is not None:
            out.teacher_completion = self.pair.teacher_completion(text, completion)

    def _put_written_text(self, text: str, reasoning: str) -> None:
        """Put a text, its reasoning in the chat template's place for it if that has one, else in a thinking block."""
        out, asked = self.out, self.prompts[0]
        out.text = text
        thought = with_reasoning(text, reasoning) if reasoning else text
        if isinstance(asked, str):
            tokenizer = self.student.tokenizer
            out.completion = tokenize_completion(tokenizer, thought, finished=out.finished, prompt=asked)
        else:
            apart = [{"content": text, "reasoning_content": reasoning}] if reasoning else []
            for way in [*apart, {"content": thought}]:
                turn = self._student_turn([*asked, {"role": "assistant", **way}])
                if reasoning.strip() in turn.learned:
                    break
            self._put_turn(turn, self.student.prompt_tokens)
        out.whole = out.completion

    def _student_turn(self, messages: list[Message]) -> Turn:
        return self.student.turns.last(messages, self.options, finished=self.out.finished, where=self.where)

    def _put_turn(self, turn: Turn, tokens: PromptTokens) -> None:
        out = self.out
        out.student_prompt = tokens.of_text(turn.prompt, False)
        out.completion = tokenize_after(self.student.tokenizer, turn.learned, prompt=turn.prompt)
        out.opening = json.dumps(turn.opening) if turn.opening else ""

    def _put_completion(self, student: Prompt, teacher: Prompt) -> None:
        """Put the prompts and the completion of the data; the student's template writes an assistant's turn."""
        out, row, body = self.out, self.row, self.row.completion
        assert body is not None
        last: Message = {"role": "assistant", "content": body} if row.turns is None else row.turns.last
        if isinstance(student, str):
            turn = Turn(student, body, self.options, body=body)
            out.student_prompt = self._student_tokens.of_text(student, True)
            out.completion = tokenize_completion(self.student.tokenizer, body, finished=out.finished, prompt=student)
        else:
            turn = self._student_turn([*student, last])
            if _says_nothing(last, turn):
                out.unusable = UNWRITTEN
                return
            self._put_turn(turn, self._student_tokens)
        theirs = self._formatted(teacher)
        if isinstance(theirs, str):
            out.teacher_prompt = self.teacher.prompt_tokens(theirs)
        else:
            prompt, same = self.teacher.turns.before([*theirs, last], turn, where=self.where)
            out.teacher_prompt = self.teacher.prompt_tokens.of_text(prompt, False)
            out.foreign = not same and not self.recipe.reads_text
        if self.pair is not None:
            out.completion = self._up_to_end(out.completion, self.pair)
            out.teacher_completion = self.pair.teacher_completion(turn.body, out.completion)

    def _put_turns(self, history: list[Message]) -> None:
        """Put the ids of a conversation of which several turns are learned."""
        out, row, pair = self.out, self.row, self.pair
        out.chat = True
        if row.turns is None:  # of a last turn that is a text there is no more to say
            last = {"role": "assistant", "content": row.completion}
            row = replace(row, turns=AssistantTurns(last, start=len(history)))

        def tokenized(side: PromptSide, own: Prompt | None) -> MaskedSequence | None:
            messages, places = conversation_of(side.template, row, own)
            if not places:
                return None
            return side.turns.tokenize_turns(messages, places, self.options, finished=out.finished, where=self.where)

        mine = tokenized(self.student, None)
        if mine is None:
            return
        # what gives text is not compared token by token
        theirs = mine if self.recipe.gives_text_alone else tokenized(self.teacher, self.own_prompt)
        assert theirs is not None
        if pair is None:
            out.update(aligned_columns(mine, theirs, where=self.where))
            return
        out.update({**aligned_columns(mine, mine, where=self.where), "teacher_prompt": theirs.prompt})
        if not out.completion_mask:
            out.completion = self._up_to_end(out.completion, pair)
        tokenizer = self.student.tokenizer
        text = tokenizer.decode(mine.supervised_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        out.teacher_completion = pair.teacher_completion(str(text), out.completion)

    @property
    def _student_tokens(self) -> PromptTokens:
        return self.recipe.student_tokens(self.out.dropped)

    def _up_to_end(self, ids: list[int], pair: TokenizerPair) -> list[int]:
        """Drop white space after a completion's end, which a teacher with another tokenizer does not read."""
        ends = [k for k, token in enumerate(ids, 1) if token in pair.ends]
        return ids[: ends[-1]] if ends and not str(self.student.tokenizer.decode(ids[ends[-1] :])).strip() else ids

    def _formatted(self, prompt: Prompt) -> Prompt:
        """Return the part of the teacher's prompt that is tokenized."""
        if not self.recipe.reads_text:
            return prompt
        if self.recipe.format_prompt is not None:
            return self.recipe.format_prompt(prompt)
        # without what tells the messages of a chat apart: the ids only estimate the length
        return prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)


def _says_nothing(last: Message, turn: Turn) -> bool:
    """Whether a chat template leaves out the reasoning that is all an assistant's message says."""
    if str(last["content"]).strip() or last.get("tool_calls"):
        return False
    thoughts = [str(last.get(key) or "").strip() for key in REASONING]
    return not any(thought and thought in turn.learned for thought in thoughts)
