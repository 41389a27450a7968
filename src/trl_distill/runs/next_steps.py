"""The next commands for a finished project: ask, evaluate and serve the student."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.split import Split
from .usage_snippet import answers_a_message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..data.preflight import Example
    from .prepare import PreparedRun

ASK = (
    'from transformers import pipeline; print(pipeline("text-generation", {folder})({asked}, max_new_tokens=64, '
    'do_sample=False, return_full_text=False)[0]["generated_text"])'
)
ASKS = "ask it"  # what the first of the commands does
HELLO = "Hello"
LONGEST = 60  # characters of an input that a line shows


def steps_after(
    prepared: PreparedRun, tokenizer: PreTrainedTokenizerBase, *, place: Path | None = None
) -> dict[str, str]:
    """Return command lines for a shell by what they do: ask the student, evaluate it, serve it.

    The first, by transformers alone, is missing if a user's message alone is not rendered as in training, so that only
    the code of the card builds the prompt. The second is missing without a teacher.

    Args:
        prepared: The run.
        tokenizer: As it is saved.
        place: What the commands call the project's folder, if not as the run does.
    """
    params, preflight = prepared.checked.params, prepared.preflights.get(Split.TRAIN)
    place = place or prepared.checked.project.folder
    named, steps = shlex.quote(str(place)), {}
    if preflight is None:
        chat = "messages" in prepared.datasets[Split.TRAIN].column_names
        steps[ASKS] = _ask(place, _message(HELLO) if chat else HELLO)
    elif answers_a_message(preflight.example, tokenizer):
        steps[ASKS] = _ask(place, _message(_shown_input(preflight.example)))
    if preflight is not None:
        # held-out rows are kept in the folder, and validation rows are found again if a file has them
        held_out = Split.EVAL in prepared.datasets and (params.holdout > 0 or isinstance(params.data_path, str))
        steps["evaluate it"] = f"aitraining evaluate {named}{'' if held_out else ' --data-path heldout.jsonl'}"
    return {**steps, "serve it": f"aitraining export {named} --to vllm"}


def _ask(place: Path, asked: object) -> str:
    folder, prompt = (json.dumps(value, ensure_ascii=False) for value in (str(place), asked))
    return f"python -c {shlex.quote(ASK.format(folder=folder, asked=prompt))}"


def _message(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _shown_input(example: Example) -> str:
    """Return a row's input if a command line can show it."""
    text = example.values.get("input", "")
    return text if isinstance(text, str) and 0 < len(text) <= LONGEST and text.isprintable() else HELLO
