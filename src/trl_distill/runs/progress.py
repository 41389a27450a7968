"""Readable log lines: one short aligned line per log, and a progress bar on a terminal.

The figures in full are in the project's metrics.jsonl and in the trackers of `--log`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from ..errors import printable

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

AnyTrainer = TypeVar("AnyTrainer", bound="Trainer")
# name in the logs, label, width of the value
FIGURES = (("loss", "loss", 7), ("kl", "kl", 7), ("ce", "ce", 7), ("retain_kl", "retain", 7))
SHARES = (("top1_agreement", "agree", 4), ("mean_token_accuracy", "right", 4), ("teacher_coverage", "covered", 4))
# left out of a line, or shown under another name
HIDDEN = ("grad_norm", "entropy", "num_tokens", "num_input_tokens_seen", "total_flos", "epoch", "learning_rate")
TIMES = ("runtime", "_per_second")
FIRST_STEPS = 3  # after which the time left and the memory are known well enough to be shown
GIB = 2**30


def show_lines(trainer: AnyTrainer) -> AnyTrainer:
    """Replace transformers' progress output by `ProgressLines`, except in a notebook, which has a table.

    Args:
        trainer: A transformers Trainer.

    Returns:
        The same trainer.
    """
    own = [c for c in trainer.callback_handler.callbacks if type(c) in (ProgressCallback, PrinterCallback)]
    for callback in own:
        trainer.remove_callback(callback)
    if own:
        trainer.add_callback(ProgressLines())
    return trainer


class Pace:
    """The speed of this process's steps; the first one, which includes set-up work, is not counted."""

    def __init__(self) -> None:
        self.since: tuple[int, float] | None = None

    def add(self, step: int) -> int:
        """Count a step that has ended and return how many there were."""
        if self.since is None:
            self.since = step, time.monotonic()
        return step - self.since[0] + 1

    def left(self, step: int, steps: int) -> str:
        """Return the time until the last step, such as 01:10 or 1:02:03; "" if it is not known, or over."""
        if self.since is None or not self.since[0] < step < steps:
            return ""
        first, then = self.since
        return str(tqdm.format_interval((time.monotonic() - then) / (step - first) * (steps - step)))


class FirstSteps(TrainerCallback):
    """Prints the remaining time and the peak memory once, after three steps."""

    def __init__(self) -> None:
        self.pace = Pace()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Print the line; this synchronises with the device once, since the host runs ahead of it."""
        if not state.is_world_process_zero or self.pace.add(state.global_step) != FIRST_STEPS:
            return
        torch.get_device_module(args.device).synchronize()
        left, memory = self.pace.left(state.global_step, state.max_steps), peak_memory(args.device)
        if left:
            show(f"{clock()}  about {left} left{f'; peak memory {memory}' if memory else ''}")


class ProgressLines(TrainerCallback):
    """Prints a line for each log to stdout and shows a progress bar on stderr if that is a terminal.

    A line begins with the time of day. Without a bar, which shows it, the line ends with the time left.
    """

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.last = ""
        self.pace = Pace()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Show the bar; a resumed run starts at its step, and so does one that begins again with a smaller batch."""
        if self.bar is not None:
            self.bar.close()
        if state.is_world_process_zero and sys.stderr.isatty() and not args.disable_tqdm:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc="Training",
                unit="step",
                dynamic_ncols=True,
                leave=False,
                disable=False,
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Advance the bar."""
        self.pace.add(state.global_step)
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_prediction_step(self, *args: object, **kwargs: object) -> None:
        """Show "evaluating" on the bar."""
        if self.bar is not None:
            self.bar.set_postfix_str("evaluating")

    def on_evaluate(self, *args: object, **kwargs: object) -> None:
        """Clear that note."""
        if self.bar is not None:
            self.bar.set_postfix_str("")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Print the line; the summary of the training is printed when the run ends."""
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            text = line(logs, step=state.global_step, steps=state.max_steps)
            if text != self.last:  # the end of the last epoch and the end of the run evaluate the same model
                left = self.pace.left(state.global_step, state.max_steps) if self.bar is None and "loss" in logs else ""
                show(f"{clock()}  {text}" + (f"  {left} left" if left else ""))
            self.last = text

    def on_train_end(self, *args: object, **kwargs: object) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def show(text: str) -> None:
    """Print a line above the bar, if there is one, with control characters written out."""
    tqdm.write(printable(text), file=sys.stdout)
    sys.stdout.flush()


def clock() -> str:
    """Return the time of day."""
    return time.strftime("%H:%M:%S")


def peak_memory(device: torch.device) -> str:
    """Return the peak memory of this process: allocated on the accelerator, or resident on a CPU.

    It is "" if it is not known.
    """
    module = torch.get_device_module(device)
    if device.type == "cpu":
        try:
            import resource
        except ImportError:  # on Windows
            return ""
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return f"{resident * (1 if sys.platform == 'darwin' else 1024) / GIB:.2f} GiB"
    if not hasattr(module, "max_memory_allocated"):  # Apple's
        return ""
    used = f"{module.max_memory_allocated(device) / GIB:.2f}"
    if not hasattr(module, "get_device_properties"):
        return f"{used} GiB"
    return f"{used} of {module.get_device_properties(device).total_memory / GIB:.1f} GiB"


def line(logs: Mapping[str, object], *, step: int, steps: int) -> str:
    """Return one log as one line, the same columns in the same places each time.

    Args:
        logs: Figures by name, as a Trainer logs them; evaluation's begin with `eval_`.
        step: The optimizer step.
        steps: All of them.
    """
    prefix = next((key[:-4] for key in logs if key.startswith("eval_") and key.endswith("_loss")), "")
    values = {key.removeprefix(prefix): value for key, value in logs.items() if isinstance(value, (int, float))}
    kind = prefix.rstrip("_").replace("_", " ") or "step"
    cells = [f"{kind} {step:{len(str(steps))}}/{steps}"]
    if "epoch" in values:
        cells.append(f"epoch {values['epoch']:<5.2f}")
    cells += [f"{label} {values[key]:<{width}.4g}" for key, label, width in FIGURES if key in values]
    cells += [f"{label} {values[key]:<{width}.0%}" for key, label, width in SHARES if key in values]
    if "learning_rate" in values:
        cells.append(f"lr {values['learning_rate']:<7.2g}")
    if "tokens_per_second" in values:
        cells.append(f"{values['tokens_per_second']:,.0f} tok/s")
    known = {key for key, *_ in (*FIGURES, *SHARES)} | set(HIDDEN)
    own = {key: value for key, value in values.items() if key not in known and not key.endswith(TIMES)}
    return "  ".join([*cells, *(f"{key} {value:.4g}" for key, value in own.items())]).rstrip()
