"""`--eval-samples`: the student's own completions at each evaluation, next to its initial ones and the teacher's.

Teacher-forced metrics can improve while the student generates thirty newlines for every question; this shows it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ..data.atomic_file import append, write_text
from ..models.generation import GenerationSettings
from ..trainer.completion_source import student_writes
from ..trainer.mixin import DistillationMixin
from .log_lines import read_lines
from .progress import clock, show

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from ..models.generation import Completion

SHOWN = 100  # characters of a text on the terminal
PreparedRow = Mapping[str, Any]  # columns of `Recipe.prepare`


class EvalSamples(TrainerCallback):
    """Generates the student's completions of a few rows before training and at each evaluation.

    The main process generates, prints and saves them: a line of JSON for each row, with `step`, `row`, `prompt`,
        `before`,
    `now` and `teacher`. A run that is resumed keeps the lines up to its checkpoint.

    Args:
        rows: Prepared rows with the teacher's completions.
        path: The file.
        max_new_tokens: Tokens of a completion at most.
    """

    def __init__(self, rows: Sequence[PreparedRow], path: Path, *, max_new_tokens: int) -> None:
        self.rows, self.path = rows, path
        self.settings = GenerationSettings(max_new_tokens=max_new_tokens)
        self.trainer: DistillationMixin | None = None
        self.before: list[str] = []

    def attach(self, trainer: Trainer) -> None:
        """Attach to a trainer; if its weights are sharded, print that there are no samples."""
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            trainer.accelerator.print("Samples: none are written, since the student's weights are sharded.")
        elif isinstance(trainer, DistillationMixin) and trainer.distilling:
            self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Generate the completions before training; a resumed run has them in the file."""
        if self.trainer is None or not state.is_world_process_zero:
            return
        kept = (
            [line for line in read_lines(self.path) if line["step"] <= state.global_step] if state.global_step else []
        )
        known = {line["row"]: line["before"] for line in kept}
        numbers = [row["row"] for row in self.rows]
        self.before = [known[n] for n in numbers] if known.keys() >= set(numbers) else self._written()
        write_text(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Generate, print and save the current completions."""
        if self.trainer is None or not state.is_world_process_zero or not self.before:
            return
        lines = self._lines(state.global_step)
        append(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
        width = len(str(state.max_steps))
        show(f"{clock()}  samples {state.global_step:{width}}/{state.max_steps}")
        for line in lines:
            show(f"  {_short(line['prompt'], end=True)}")
            for name in ("before", "now", "teacher"):
                show(f"    {name:<8}{_short(line[name])}")

    def _lines(self, step: int) -> list[dict[str, Any]]:
        assert self.trainer is not None
        decode = self.trainer.tokenizer.decode
        return [
            {
                "step": step,
                "row": row["row"],
                "prompt": str(decode(row["student_prompt"])),
                "before": before,
                "now": now,
                "teacher": str(decode(row["completion"], skip_special_tokens=True)),
            }
            for row, before, now in zip(self.rows, self.before, self._written(), strict=True)
        ]

    def _written(self) -> list[str]:
        assert self.trainer is not None
        prompts = [list(row["student_prompt"]) for row in self.rows]
        written: list[Completion] = student_writes(self.trainer, prompts, self.settings)
        return [str(self.trainer.tokenizer.decode(list(one.ids), skip_special_tokens=True)) for one in written]


def _short(text: str, *, end: bool = False) -> str:
    """Return a text on one line, its beginning or its end."""
    line = text.strip().replace("\n", "\\n")
    if len(line) <= SHOWN:
        return line
    return f"...{line[-SHOWN:]}" if end else f"{line[:SHOWN]}..."
