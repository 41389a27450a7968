"""`metrics.jsonl`: one line per log during the run, for dashboards."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ..data.atomic_file import append, write_text
from .log_lines import read_lines

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

Line = dict[str, Any]  # figures by name, with step, epoch and time


class MetricsFile(TrainerCallback):
    """Appends each log to a file on the main process: step, epoch, time (UTC, ISO 8601), then the figures.

    A run that is resumed begins with the lines up to its checkpoint, so that none is lost or there twice; the summary
    of a run that was stopped is left out then. A figure that is not finite is null, since JSON has no such numbers.

    Args:
        path: The file; an earlier run's is replaced when training begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Write the lines up to the checkpoint that is resumed from, including those missing from its history."""
        if not state.is_world_process_zero:
            return
        lines = {_key(line): line for line in read_lines(self.path) if line["step"] <= state.global_step}
        history = [_figures(entry) for entry in state.log_history]
        kept = [lines.pop(_key(entry), {**entry, "time": None}) for entry in history]
        # an evaluation at the end of an epoch follows a checkpoint of the same step
        kept += [line for line in lines.values() if not _is_repeated(line, state)]
        write_text(self.path, "".join(map(_text, sorted(kept, key=lambda line: line["step"]))))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Append the newest log."""
        if state.is_world_process_zero:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = _text({**_figures(state.log_history[-1]), "time": now}).encode()
            append(self.path, line, flushed=False)  # training does not wait for the disk


def _is_repeated(line: Line, state: TrainerState) -> bool:
    """Whether a resumed run logs this again: its summary and, after the last step, the evaluation."""
    at_end = line["step"] == state.global_step >= state.max_steps
    return "train_runtime" in line or (at_end and any(name.startswith("eval_") for name in line))


def _figures(entry: Mapping[str, float]) -> Line:
    """Return a log as JSON keeps it."""
    return {
        name: value if isinstance(value, (str, int)) else float(value) if math.isfinite(value) else None
        for name, value in entry.items()
    }


def _text(line: Line) -> str:
    front = {name: line.get(name) for name in ("step", "epoch", "time")}
    return json.dumps({**front, **{name: value for name, value in line.items() if name not in front}}) + "\n"


def _key(line: Line) -> str:
    return json.dumps({name: value for name, value in line.items() if name != "time"}, sort_keys=True)
