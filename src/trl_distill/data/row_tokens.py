"""One row to token ids that fit both models: both prompts, and the completion if the data has one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..prompts.assistant_turn import Turn
from ..prompts.fitting import fit
from ..prompts.messages import REASONING, with_reasoning
from ..prompts.multi_turn import COLUMNS, Stretches, conversation_of, fit_stretches, of_ids, side_by_side
from ..prompts.rendering import options_of, own_prompt, prompt_of
from ..prompts.serving_template import Frame, frame_of
from ..prompts.tokenization import tokenize_behind, tokenize_completion, tokenize_prompt
from .arrow_values import lengths_of
from .cross_tokenizer.tokenizer_pair import COLUMNS as CROSSING_COLUMNS
from .rows import was_cut

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..prompts.rendering import Prompt
    from .recipe import Recipe


def check_in_one_piece(rows: Dataset, reason: str | None, *, name: str) -> None:
    """Refuse completions with gaps where the teacher takes none.

    Args:
        rows: With `row` and `completion_mask`.
        reason: Why it takes none, as the end of a sentence; None where it does.
        name: What to call the dataset in messages.

    Raises:
        DataError: Naming the first row.
    """
    gaps = lengths_of(rows, "completion_mask") > 0
    if reason is not None and gaps.any():
        raise DataError(
            f"{name}, row {rows[int(gaps.argmax())]['row']}: what is learnt stands in several places of the "
            f"conversation, and {reason}; give one local teacher, or have one turn learnt (no assistant_only_loss, no "
            "mask with gaps)."
        )


UNWRITTEN = "the completion is reasoning alone, which the chat template does not write"
WITH_TOOLS = "tools"  # in the column `frame` of a row that brings some
BLANK: dict[str, Any] = {  # what `tokenize_row` returns of a row of which there is nothing else to say
    **dict.fromkeys(("read", "asked", "opening", "unusable", "frame", "text"), ""),
    **{key: [] for key in ("student_prompt", "teacher_prompt", "completion", "whole", *COLUMNS, *CROSSING_COLUMNS)},
    **{"finished": True, "dropped": False, "chat": False, "foreign": False},
}
DECODED = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}


def source_of(row: Mapping[str, Any], recipe: Recipe) -> str:
    """Say where a row's completion comes from: "data", "text" (the input itself) or "teacher"."""
    if recipe.completions == "teacher":
        return "teacher"
    if row["completion"] is not None or row.get("ids") is not None:
        return "data"
    alike = recipe.student.template.is_identity and recipe.teacher.template.is_identity
    alike = alike and own_prompt(json.loads(row["values"]), recipe.teacher.template, where="") is None
    if alike and row["history"] is None and (recipe.plain_text or recipe.completions == "data"):
        return "text"
    return "teacher"


def tokenize_row(row: Mapping[str, Any], recipe: Recipe, *, name: str) -> dict[str, Any]:
    """Return both prompts' ids, and the completion's if there is one, in the columns of `preparation.TOKENS`."""
    source, where = source_of(row, recipe), f"{name}, row {row['row']}"
    out: dict[str, Any] = {**BLANK, "row": row["row"], "source": source}
    if row.get("ids") is not None:
        both = of_ids(row["ids"], row["mask"])
        return out | side_by_side(both, both, where=where)
    if source == "text":
        return out | _text_alone(row["input"], recipe)
    values = json.loads(row["values"])
    own = own_prompt(values, recipe.teacher.template, where=where)
    of_row = {} if row["history"] is None else options_of(values, where=where)
    options = {**recipe.options, **of_row}
    out["finished"] = source == "teacher" or not was_cut(values)
    frame = frame_of(row, recipe.student.template, options)
    out["frame"] = WITH_TOOLS if frame is None else frame.key
    if row["history"] is not None and source == "data" and recipe.columns.assistant_turns:
        return out | _several(row, recipe, own, options, finished=out["finished"], where=where)
    given = {**values, "input": row["input"]}, None if row["history"] is None else json.loads(row["history"])
    student, teacher = prompt_of(recipe.student.template, *given), prompt_of(recipe.teacher.template, *given, own)
    out["dropped"] = recipe.drops(row)
    student = teacher if out["dropped"] else student
    out["chat"] = not isinstance(student, str)
    if recipe.reads_text:
        if of_row and source == "teacher":
            raise DataError(
                f"{where}: there are {', '.join(sorted(of_row))} for a chat template, and the teacher is asked in "
                "text and messages alone; give completions, or a local teacher."
            )
        out["read"] = json.dumps(teacher)
    if source == "teacher":
        return out | _without_completion(student, teacher, recipe, options, dropped=out["dropped"])
    return out | _with_completion(row, student, teacher, recipe, options, out, where=where)


def fit_row(row: dict[str, Any], recipe: Recipe, *, name: str) -> dict[str, Any]:
    """Return what `tokenize_row` made of a row as it fits both models; `kept` counts the tokens to learn.

    Raises:
        DataError: See `fitting.fit`.
    """
    if not row["completion"]:
        return {**row, "prompt_cut": 0, "completion_cut": 0, "kept": 0}
    limits = {"student_limit": recipe.student.limit, "teacher_limit": recipe.teacher.limit}
    how: Any = {**limits, "overflow": recipe.overflow, "where": f"{name}, row {row['row']}"}
    if row["completion_mask"]:
        return {**row, **fit_stretches(row, **how)}
    if recipe.crossing is not None:
        pieces = recipe.crossing.fit(row, **how)
    else:
        pieces = vars(fit(row["student_prompt"], row["teacher_prompt"], row["completion"], **how))
    unpredictable = not pieces["student_prompt"] or not pieces["teacher_prompt"]
    return {**row, **pieces, "kept": len(pieces["completion"]) - unpredictable}


def row_frame(row: Mapping[str, Any], recipe: Recipe, opening: Mapping[str, Any] | None = None) -> Frame | None:
    """Return what the student reads around a user's message in the place of a row's; None if the row brings tools.

    Args:
        row: What `read_rows` made of it.
        recipe: How rows become token ids.
        opening: How its prompt differs from the student's own generation prompt, see `Turn.opening`.
    """
    options = {} if row["history"] is None else options_of(json.loads(row["values"]), where="")
    return frame_of(row, recipe.student.template, {**recipe.options, **options}, opening)


def _text_alone(text: str, recipe: Recipe) -> dict[str, Any]:
    """Return a text that is learned as a whole, behind what the tokenizers put in front of any text."""
    tokenizer = recipe.student.tokenizer
    opening, completion = tokenize_prompt(tokenizer, ""), tokenize_completion(tokenizer, text)
    if opening and completion[:1] == opening[-1:] and text.startswith(str(tokenizer.bos_token)):
        completion = completion[1:]
    theirs = {} if recipe.crossing is None else _crossed(text, completion, recipe)
    return {
        "student_prompt": opening,
        "teacher_prompt": tokenize_prompt(recipe.teacher.tokenizer, ""),
        "completion": completion,
        **theirs,
    }


def _without_completion(
    student: Prompt, teacher: Prompt, recipe: Recipe, options: dict[str, Any], *, dropped: bool
) -> dict[str, Any]:
    """Return the prompts of a row whose completion the teacher writes."""
    tokens = recipe.dropped_tokens if dropped else recipe.student.prompt_tokens
    out: dict[str, Any] = {
        "student_prompt": tokens(student, options),
        "teacher_prompt": recipe.teacher.prompt_tokens(_as_read(teacher, recipe), options),
    }
    if recipe.reads_text:
        out["asked"] = json.dumps(student)
    return out


def completion_of_text(
    row: Mapping[str, Any], text: str, recipe: Recipe, *, reasoning: str = "", finished: bool
) -> dict[str, Any]:
    """Return the student's prompt and the ids of a completion that a teacher wrote as text.

    Args:
        row: What `tokenize_row` made of it, with the prompt that the student is asked with.
        text: The completion.
        recipe: How rows become token ids.
        reasoning: What the teacher thought before it, if that is learned: in its place in the chat template, else in a
            thinking block.
        finished: Whether it ends there.
    """
    asked, tokenizer = json.loads(row["asked"]), recipe.student.tokenizer
    thought = with_reasoning(text, reasoning) if reasoning else text
    if isinstance(asked, str):
        ids = tokenize_completion(tokenizer, thought, finished=finished, behind=asked)
        return {"completion": ids, "whole": ids, "text": text}
    ways = (
        [{"content": text, "reasoning_content": reasoning}, {"content": thought}] if reasoning else [{"content": text}]
    )
    for way in ways:
        messages = [*asked, {"role": "assistant", **way}]
        turn = recipe.student.turns.last(messages, recipe.options, finished=finished, where=f"row {row['row']}")
        if reasoning.strip() in turn.learned:
            break
    ids = tokenize_behind(tokenizer, turn.learned, prompt=turn.prompt)
    prompt = recipe.student.prompt_tokens.of_text(turn.prompt, False)
    opening = json.dumps(turn.opening) if turn.opening else ""
    return {"student_prompt": prompt, "completion": ids, "whole": ids, "text": text, "opening": opening}


def _with_completion(
    row: Mapping[str, Any],
    student: Prompt,
    teacher: Prompt,
    recipe: Recipe,
    options: dict[str, Any],
    known: Mapping[str, Any],
    *,
    where: str,
) -> dict[str, Any]:
    """Return the prompts and the ids of a row with a completion; the student's template writes an assistant's turn."""
    turns, tokenizer = recipe.student.turns, recipe.student.tokenizer
    last = {"role": "assistant", "content": row["completion"]}
    if row["turns"] is not None:
        last = json.loads(row["turns"])["last"]
    tokens = recipe.dropped_tokens if known["dropped"] else recipe.student.prompt_tokens
    out: dict[str, Any] = {}
    if isinstance(student, str):
        turn = Turn(student, row["completion"], options, body=row["completion"])
        out["student_prompt"] = tokens.of_text(student, True)
        out["completion"] = tokenize_completion(
            tokenizer, row["completion"], finished=known["finished"], behind=student
        )
    else:
        turn = turns.last([*student, last], options, finished=known["finished"], where=where)
        if _says_nothing(last, turn):
            return {"student_prompt": [], "teacher_prompt": [], "unusable": UNWRITTEN}
        out["student_prompt"] = tokens.of_text(turn.prompt, False)
        out["completion"] = tokenize_behind(tokenizer, turn.learned, prompt=turn.prompt)
        out["opening"] = json.dumps(turn.opening) if turn.opening else ""
    theirs = _as_read(teacher, recipe)
    if isinstance(theirs, str):
        out["teacher_prompt"] = recipe.teacher.prompt_tokens(theirs)
    else:
        prompt, same = recipe.teacher.turns.before([*theirs, last], turn, where=where)
        out["teacher_prompt"] = recipe.teacher.prompt_tokens.of_text(prompt, False)
        out["foreign"] = not same and not recipe.reads_text
    if recipe.crossing is not None:
        out["completion"] = _up_to_end(tokenizer, out["completion"], recipe)
        out |= _crossed(turn.body, out["completion"], recipe)
    return out


def _says_nothing(last: Mapping[str, Any], turn: Turn) -> bool:
    """Whether a chat template leaves out the reasoning that is all an assistant's message says."""
    if str(last["content"]).strip() or last.get("tool_calls"):
        return False
    thoughts = [str(last.get(key) or "").strip() for key in REASONING]
    return not any(thought and thought in turn.learned for thought in thoughts)


def _several(
    row: Mapping[str, Any], recipe: Recipe, own: Any, options: dict[str, Any], *, finished: bool, where: str
) -> dict[str, Any]:
    """Return the ids of a conversation of which several turns are learned."""
    alone = {"last": {"role": "assistant", "content": row["completion"]}, "start": len(json.loads(row["history"]))}
    whole = {**row, "turns": row["turns"] or json.dumps(alone)}  # of a last turn that is a text there is no more to say

    def of(side: Any, own: Any) -> Stretches | None:
        messages, places = conversation_of(side.template, whole, own)
        return side.turns.several(messages, places, options, finished=finished, where=where) if places else None

    mine = of(recipe.student, None)
    if mine is None:
        return {"student_prompt": [], "teacher_prompt": [], "chat": True}
    # what gives text is not compared token by token
    theirs = mine if recipe.reads_text and recipe.take is None else of(recipe.teacher, own)
    assert theirs is not None
    if recipe.crossing is None:
        return {**side_by_side(mine, theirs, where=where), "chat": True}
    out = {**side_by_side(mine, mine, where=where), "teacher_prompt": theirs.prompt, "chat": True}
    if not out.get("completion_mask"):
        out["completion"] = _up_to_end(recipe.student.tokenizer, out["completion"], recipe)
    text = str(recipe.student.tokenizer.decode(mine.learnt, **DECODED))
    return out | _crossed(text, out["completion"], recipe)


def _up_to_end(tokenizer: PreTrainedTokenizerBase, ids: list[int], recipe: Recipe) -> list[int]:
    """Return a completion without white space behind its end, which a teacher of another tokenizer does not read."""
    assert recipe.crossing is not None
    ends = [k for k, token in enumerate(ids, 1) if token in recipe.crossing.ends]
    return ids[: ends[-1]] if ends and not str(tokenizer.decode(ids[ends[-1] :])).strip() else ids


def _crossed(text: str, completion: list[int], recipe: Recipe) -> dict[str, list[int]]:
    """Return a completion in the tokens of a teacher with another tokenizer."""
    assert recipe.crossing is not None
    return {"teacher_completion": recipe.crossing.teacher_completion(text, completion)}


def _as_read(prompt: Prompt, recipe: Recipe) -> Prompt:
    """Return what of the teacher's prompt its ids are made from."""
    if not recipe.reads_text:
        return prompt
    if recipe.as_read is not None:
        return recipe.as_read(prompt)
    # without what tells the messages of a chat apart: the ids only estimate the length
    return prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)
