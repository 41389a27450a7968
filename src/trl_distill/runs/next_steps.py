"""What a user does next with a finished project: the commands that ask the student, evaluate it and serve it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.split import Split
from .usage_snippet import answers_a_message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..data.preflight import Example, Preflight
    from .prepare import PreparedRun

ASK = (
    'from transformers import pipeline; print(pipeline("text-generation", {folder})({asked}, max_new_tokens=64, '
    'do_sample=False, return_full_text=False)[0]["generated_text"])'
)
ASKS = "ask it"  # what the first of the commands does
LONGEST = 60  # characters of an input that a line shows


def next_steps(
    folder: Path, preflight: Preflight | None, tokenizer: PreTrainedTokenizerBase, *, held_out: bool = False
) -> dict[str, str]:
    """Return command lines for a shell by what they do.

    The first asks the student, by transformers alone; it is missing if a user's message alone is not rendered as in
    training, so that only the code of the card builds the prompt.

    Args:
        folder: Of the project, as the commands name it.
        preflight: Of the training rows; None if there is no teacher.
        tokenizer: As it is saved.
        held_out: Whether the evaluation finds rows of the run's own that nothing was trained on.
    """
    named = shlex.quote(str(folder))
    steps = {}
    if preflight is not None and answers_a_message(preflight.example, tokenizer):
        steps[ASKS] = _ask(folder, preflight.example)
    if preflight is not None:
        steps["evaluate it"] = f"aitraining evaluate {named}{'' if held_out else ' --data-path heldout.jsonl'}"
    return {**steps, "serve it": f"aitraining export {named} --to vllm"}


def steps_after(
    prepared: PreparedRun, tokenizer: PreTrainedTokenizerBase, *, place: Path | None = None
) -> dict[str, str]:
    """Return `next_steps` of a run, whose evaluation finds held-out or validation rows again if a file has them.

    Args:
        prepared: The run.
        tokenizer: As it is saved.
        place: What the commands call the project's folder, if not as the run does.
    """
    params = prepared.checked.params
    held_out = Split.EVAL in prepared.datasets and (params.holdout > 0 or isinstance(params.data_path, str))
    preflight = prepared.preflights.get(Split.TRAIN)
    return next_steps(place or prepared.checked.project.folder, preflight, tokenizer, held_out=held_out)


def _ask(folder: Path, example: Example) -> str:
    """Return the command that sends a row's input as a user's message."""
    text = example.values.get("input", "")
    text = text if isinstance(text, str) and 0 < len(text) <= LONGEST and text.isprintable() else "Hello"
    asked = json.dumps([{"role": "user", "content": text}], ensure_ascii=False)
    return f"python -c {shlex.quote(ASK.format(folder=json.dumps(str(folder), ensure_ascii=False), asked=asked))}"
