"""The next commands for a finished project: ask, evaluate and serve the student."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.user_files import shell_path
from ..data.split import Split
from ..teachers.local.ema import EMA
from ..teachers.local.weights import SELF
from ..teachers.multi.entries import read_teachers
from ..trainer.card_text import public_name
from .usage_snippet import answers_a_message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..config.training_params import LLMTrainingParams
    from ..data.example import Example
    from .prepare import PreparedRun

ASK = (
    'from transformers import pipeline; print(pipeline("text-generation", {folder})({asked}, max_new_tokens=64, '
    'do_sample=False, return_full_text=False)[0]["generated_text"])'
)
ASKS = "ask it"  # what the first of the commands does
HELLO = "Hello"
LONGEST = 60  # characters of an input that a line shows


def steps_after(
    prepared: PreparedRun,
    tokenizer: PreTrainedTokenizerBase,
    *,
    place: Path | None = None,
    shows_input: bool = True,
) -> dict[str, str]:
    """Return command lines for a shell by what they do: ask the student, evaluate it, serve it.

    The first, by transformers alone, is missing if a user's message alone is not rendered as in training, so that only
    the code of the card builds the prompt. The second is missing without a teacher.

    Args:
        prepared: The run.
        tokenizer: As it is saved.
        place: What a card calls the project's folder; None, on the terminal, is as the run does.
        shows_input: Whether the first command may ask what the first row asks.
    """
    params, preflight = prepared.checked.params, prepared.preflights.get(Split.TRAIN)
    on_card, place = place is not None, place or prepared.checked.project.folder
    named, steps = shell_path(place), {}
    if preflight is None:
        chat = "messages" in prepared.datasets[Split.TRAIN].column_names
        steps[ASKS] = _ask(place, _message(HELLO) if chat else HELLO)
    elif answers_a_message(preflight.example, tokenizer):
        steps[ASKS] = _ask(place, _message(_shown_input(preflight.example) if shows_input else HELLO))
    if preflight is not None:
        # held-out rows are kept in the folder, and validation rows are found again if a file has them
        held_out = Split.EVAL in prepared.datasets and (params.holdout > 0 or isinstance(params.data_path, str))
        rows = "" if held_out else " --data-path heldout.jsonl"
        steps["evaluate it"] = f"aitraining evaluate {named}{rows}{_compared_with(params, public=on_card)}"
    return {**steps, "serve it": f"aitraining export {named} --to vllm"}


def _compared_with(params: LLMTrainingParams, *, public: bool) -> str:
    """Return the flags that name one teacher with one prompt, if the run had several, or one that is not kept.

    If they are `public`, they do not say where on the machine a teacher is.
    """
    prompt = " --teacher-prompt-template @prompt.txt"
    if params.teacher_config is not None:
        first = read_teachers(params.teacher_config).teachers[0].model
        named = isinstance(first, str) and (not public or public_name(first) == first)
        return f" --teacher-model {shell_path(str(first)) if named else 'NAME'}{prompt}"
    if params.teacher_prompt_mixture is not None:
        return prompt
    return f" --teacher-model {SELF}" if params.teacher_model == EMA else ""


def _ask(place: Path, asked: object) -> str:
    folder, prompt = (json.dumps(value, ensure_ascii=False) for value in (str(place), asked))
    return f"python -c {shlex.quote(ASK.format(folder=folder, asked=prompt))}"


def _message(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _shown_input(example: Example) -> str:
    """Return a row's input if a command line can show it."""
    text = example.values.get("input", "")
    return text if isinstance(text, str) and 0 < len(text) <= LONGEST and text.isprintable() else HELLO
