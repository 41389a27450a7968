"""One row to token ids that fit both models: both prompts, and the completion if the data has one."""

from __future__ import annotations

import json
from dataclasses import replace
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
from ..prompts.tokenization import tokenize_after, tokenize_completion, tokenize_prompt
from .aligned_row import AlignedRow, Source
from .arrow_values import lengths_of
from .rows import was_cut

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..models.generation import Completion
    from ..prompts.prefix_tokenizer import PromptTokens
    from .cross_tokenizer.tokenizer_pair import TokenizerPair
    from .recipe import PromptSide, RowRecipe

UNWRITTEN = "the completion is reasoning alone, which the chat template does not write"
WITH_TOOLS = "tools"  # in the column `frame` of a row that brings some


def check_in_one_piece(rows: Dataset, reason: str | None, *, name: str) -> None:
    """Refuse completions with gaps for a `reason`, which is the end of a sentence; None refuses none."""
    gaps = lengths_of(rows, "completion_mask") > 0
    if reason is not None and gaps.any():
        raise DataError(
            f"{name}, row {rows[int(gaps.argmax())]['row']}: what is learned is in several places of the "
            f"conversation, and {reason}; give one local teacher, or have one turn learned (no assistant_only_loss, no "
            "mask with gaps)."
        )


def source_of(row: Row, recipe: RowRecipe) -> Source:
    """Say where a row's completion comes from: "data", "text" (the input itself) or "teacher"."""
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
    out, where = AlignedRow(row.number, source_of(row, recipe)), f"{name}, row {row.number}"
    if row.ids is not None:
        both = MaskedSequence.from_ids(row.ids, row.mask or [])
        out.update(aligned_columns(both, both, where=where))
        return out
    if out.source == "text":
        _put_text(out, row.input, recipe)
        return out
    own = own_prompt(row.values, recipe.teacher.template, where=where)
    of_row = {} if row.history is None else options_of(row.values, where=where)
    options = {**recipe.options, **of_row}
    out.finished = out.source == "teacher" or not was_cut(row.values)
    frame = frame_of(row, recipe.student.template, options)
    out.frame = WITH_TOOLS if frame is None else frame.key
    if row.history is not None and out.source == "data" and recipe.columns.assistant_turns:
        _put_turns(out, row, recipe, own, options, where=where)
        return out
    out.dropped = recipe.drops(row)
    student, teacher = _prompts(row, recipe, own)
    out.chat = not isinstance(student, str)
    if recipe.reads_text:
        if of_row and out.source == "teacher":
            raise DataError(
                f"{where}: there are {', '.join(sorted(of_row))} for a chat template, and the teacher is asked in "
                "text and messages alone; give completions, or a local teacher."
            )
        out.prompt_json = json.dumps(teacher)
    if out.source == "teacher":
        out.student_prompt = recipe.student_tokens(out.dropped)(student, options)
        out.teacher_prompt = recipe.teacher.prompt_tokens(_formatted(teacher, recipe), options)
    else:
        _put_completion(out, row, student, teacher, recipe, options, where=where)
    return out


def fit_row(row: AlignedRow, recipe: RowRecipe, *, name: str) -> AlignedRow:
    """Return what `tokenize_row` made of a row as it fits both models; `kept` counts the tokens to learn.

    Raises:
        DataError: See `fitting.fit`.
    """
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


def row_frame(row: Row, recipe: RowRecipe, opening: Mapping[str, object] | None = None) -> Frame | None:
    """Return what the student reads around a user's message in the place of a row's; see `frame_of`."""
    options = {} if row.history is None else options_of(row.values, where="")
    return frame_of(row, recipe.student.template, {**recipe.options, **options}, opening)


def put_written(out: AlignedRow, row: Row, written: Completion, recipe: RowRecipe) -> None:
    """Put a completion that the teacher wrote into a row that `tokenize_row` left without one."""
    text, pair = written.text, recipe.tokenizer_pair
    out.unusable = "" if text is None else written.unusable or ("" if text.strip() else EMPTY)
    if out.unusable:
        return
    out.finished = written.finished
    if pair is not None:
        out.completion, out.teacher_completion = pair.written(written.ids, finished=out.finished, chat=out.chat)
    elif text is None:
        out.completion = list(written.ids)
    else:
        _put_written_text(out, row, text, recipe, reasoning=written.reasoning)


def _prompts(row: Row, recipe: RowRecipe, own: Prompt | None) -> tuple[Prompt, Prompt]:
    student, teacher = render(recipe.student.template, row), render(recipe.teacher.template, row, own)
    return teacher if recipe.drops(row) else student, teacher


def _put_text(out: AlignedRow, text: str, recipe: RowRecipe) -> None:
    """Put a text that is learned as a whole, behind what the tokenizers put in front of any text."""
    tokenizer = recipe.student.tokenizer
    opening, completion = tokenize_prompt(tokenizer, ""), tokenize_completion(tokenizer, text)
    if opening and completion[:1] == opening[-1:] and text.startswith(str(tokenizer.bos_token)):
        completion = completion[1:]
    out.student_prompt, out.completion = opening, completion
    out.teacher_prompt = tokenize_prompt(recipe.teacher.tokenizer, "")
    if recipe.tokenizer_pair is not None:
        out.teacher_completion = recipe.tokenizer_pair.teacher_completion(text, completion)


def _put_written_text(out: AlignedRow, row: Row, text: str, recipe: RowRecipe, *, reasoning: str) -> None:
    """Put a completion that the teacher wrote as text.

    Reasoning, if it is learned, is put in its place in the chat template, else in a thinking block.
    """
    own = own_prompt(row.values, recipe.teacher.template, where="")
    asked, tokenizer = _prompts(row, recipe, own)[0], recipe.student.tokenizer
    thought = with_reasoning(text, reasoning) if reasoning else text
    out.text = text
    if isinstance(asked, str):
        out.completion = tokenize_completion(tokenizer, thought, finished=out.finished, prompt=asked)
    else:
        apart = [{"content": text, "reasoning_content": reasoning}] if reasoning else []
        for way in [*apart, {"content": thought}]:
            messages = [*asked, {"role": "assistant", **way}]
            turn = recipe.student.turns.last(messages, recipe.options, finished=out.finished, where=f"row {out.row}")
            if reasoning.strip() in turn.learned:
                break
        _put_turn(out, turn, tokenizer, recipe.student.prompt_tokens)
    out.whole = out.completion


def _put_turn(out: AlignedRow, turn: Turn, tokenizer: PreTrainedTokenizerBase, tokens: PromptTokens) -> None:
    """Put an assistant's turn and the student's prompt before it."""
    out.student_prompt = tokens.of_text(turn.prompt, False)
    out.completion = tokenize_after(tokenizer, turn.learned, prompt=turn.prompt)
    out.opening = json.dumps(turn.opening) if turn.opening else ""


def _put_completion(
    out: AlignedRow,
    row: Row,
    student: Prompt,
    teacher: Prompt,
    recipe: RowRecipe,
    options: dict[str, object],
    *,
    where: str,
) -> None:
    """Put the prompts and the completion of the data; the student's template writes an assistant's turn."""
    assert row.completion is not None
    tokenizer, body = recipe.student.tokenizer, row.completion
    last: Message = {"role": "assistant", "content": body} if row.turns is None else row.turns.last
    tokens = recipe.student_tokens(out.dropped)
    if isinstance(student, str):
        turn = Turn(student, body, options, body=body)
        out.student_prompt = tokens.of_text(student, True)
        out.completion = tokenize_completion(tokenizer, body, finished=out.finished, prompt=student)
    else:
        turn = recipe.student.turns.last([*student, last], options, finished=out.finished, where=where)
        if _says_nothing(last, turn):
            out.unusable = UNWRITTEN
            return
        _put_turn(out, turn, tokenizer, tokens)
    theirs = _formatted(teacher, recipe)
    if isinstance(theirs, str):
        out.teacher_prompt = recipe.teacher.prompt_tokens(theirs)
    else:
        prompt, same = recipe.teacher.turns.before([*theirs, last], turn, where=where)
        out.teacher_prompt = recipe.teacher.prompt_tokens.of_text(prompt, False)
        out.foreign = not same and not recipe.reads_text
    if recipe.tokenizer_pair is not None:
        out.completion = _up_to_end(tokenizer, out.completion, recipe.tokenizer_pair)
        out.teacher_completion = recipe.tokenizer_pair.teacher_completion(turn.body, out.completion)


def _says_nothing(last: Message, turn: Turn) -> bool:
    """Whether a chat template leaves out the reasoning that is all an assistant's message says."""
    if str(last["content"]).strip() or last.get("tool_calls"):
        return False
    thoughts = [str(last.get(key) or "").strip() for key in REASONING]
    return not any(thought and thought in turn.learned for thought in thoughts)


def _put_turns(
    out: AlignedRow, row: Row, recipe: RowRecipe, own: Prompt | None, options: dict[str, object], *, where: str
) -> None:
    """Put the ids of a conversation of which several turns are learned."""
    assert row.history is not None
    out.chat = True
    if row.turns is None:  # of a last turn that is a text there is no more to say
        row = replace(
            row, turns=AssistantTurns({"role": "assistant", "content": row.completion}, start=len(row.history))
        )

    def tokenized(side: PromptSide, own: Prompt | None) -> MaskedSequence | None:
        messages, places = conversation_of(side.template, row, own)
        if not places:
            return None
        return side.turns.tokenize_turns(messages, places, options, finished=out.finished, where=where)

    mine = tokenized(recipe.student, None)
    if mine is None:
        return
    # what gives text is not compared token by token
    theirs = mine if recipe.reads_text and recipe.fetch_targets is None else tokenized(recipe.teacher, own)
    assert theirs is not None
    pair, tokenizer = recipe.tokenizer_pair, recipe.student.tokenizer
    if pair is None:
        out.update(aligned_columns(mine, theirs, where=where))
        return
    out.update({**aligned_columns(mine, mine, where=where), "teacher_prompt": theirs.prompt})
    if not out.completion_mask:
        out.completion = _up_to_end(tokenizer, out.completion, pair)
    text = tokenizer.decode(mine.supervised_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    out.teacher_completion = pair.teacher_completion(str(text), out.completion)


def _up_to_end(tokenizer: PreTrainedTokenizerBase, ids: list[int], pair: TokenizerPair) -> list[int]:
    """Return a completion without white space behind its end, which a teacher of another tokenizer does not read."""
    ends = [k for k, token in enumerate(ids, 1) if token in pair.ends]
    return ids[: ends[-1]] if ends and not str(tokenizer.decode(ids[ends[-1] :])).strip() else ids


def _formatted(prompt: Prompt, recipe: RowRecipe) -> Prompt:
    """Return what of the teacher's prompt its ids are made from."""
    if not recipe.reads_text:
        return prompt
    if recipe.format_prompt is not None:
        return recipe.format_prompt(prompt)
    # without what tells the messages of a chat apart: the ids only estimate the length
    return prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)
