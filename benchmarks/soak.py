"""A long run in one process: whether memory and the time of a step stay what they are.

    python benchmarks/soak.py [--steps 2000] [--folder DIR] [--json]

The embedded model is distilled into itself by `run()`, which the command calls too, from a store of targets, with an
evaluation, samples of completions and a checkpoint every 100 steps. After each evaluation the same process writes a new
store: it loads the teacher, which completes new rows and scores them. Memory is read at the end of each step; a step's
time is that from its beginning to its end, without evaluations, checkpoints and stores. On a CPU it is processor time,
on which other programs have less influence.

A tenth of the steps is warm-up. After it, the medians of the tenths' memory may differ by at most 2 %, and those of the
first and the last quarter's step times by at most 10 %. Otherwise the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from _measure import MIB, machine, print_json, table
from datasets import Dataset
from transformers import TrainerCallback

from trl_distill import DistillationSFTTrainer, LLMTrainingParams, register_trainer, run
from trl_distill.config.devices import accelerator
from trl_distill.data.split import Split
from trl_distill.trainer.plan import plan_setup
from trl_distill.trainer.settings import settings_of
from trl_distill.trainer.setup import build_setup

WORDS = ["red", "blue", "green", "cat", "dog", "bird", "sun", "moon", "tree", "fish"]
PROMPT = "Write the words in reverse order.\n{input}\n"
MEMORY, TIME = 0.02, 0.10  # how much may change
PARTS, QUARTER = 10, 4


@dataclass
class Measured:
    """What each step left.

    Attributes:
        seconds: From its beginning to its end; processor time on a CPU.
        resident: Bytes of this process in main memory at its end.
        on_device: Bytes of tensors on the accelerator at its end; empty without one.
    """

    seconds: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    on_device: list[int] = field(default_factory=list)


class Watch(TrainerCallback):
    """Measures each step, and writes another store after each evaluation."""

    def __init__(self, trainer: DistillationSFTTrainer, measured: Measured, folder: Path) -> None:
        self.trainer, self.measured, self.folder, self.stores = trainer, measured, folder, 0
        self.process = psutil.Process()
        self.clock = time.process_time if trainer.args.device.type == "cpu" else time.perf_counter

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Look at the clock."""
        self.began = self.clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the step's time and the memory; the device is waited for."""
        if args.device.type != "cpu":
            memory = torch.get_device_module(args.device)
            memory.synchronize()
            self.measured.on_device.append(memory.memory_allocated())
        self.measured.seconds.append(self.clock() - self.began)
        self.measured.resident.append(self.process.memory_info().rss)

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Have new rows completed and scored, as `teach()` does, which would make another Accelerator."""
        self.stores += 1
        rows = Dataset.from_list([{"text": text} for text in texts(16, first=1000 * self.stores)])
        args = copy.copy(self.trainer.args)
        args.teacher_store = str(self.folder / f"store-{self.stores}")
        plan = plan_setup(args, "embedded", student=self.trainer.model, data=rows)
        setup = build_setup(settings_of(args), self.trainer.setup.student, plan, writing=True)
        prepared, _ = setup.recipe.prepare(rows, split=Split.TRAIN, name="new rows")
        assert setup.write_store([("new rows", prepared)]) == 1


def texts(count: int, *, first: int = 0) -> list[str]:
    """Return texts of three words, which no other call with another `first` returns."""
    return [f"{WORDS[i % 10]} {WORDS[i // 10 % 10]} {i}" for i in range(first, first + count)]


def soak(steps: int, every: int, folder: Path) -> Measured:
    """Run and return what was measured.

    Args:
        steps: Optimizer steps.
        every: Steps between evaluations, and between checkpoints.
        folder: Where everything is written.
    """
    measured = Measured()

    class Watched(DistillationSFTTrainer):
        """The command's trainer, measured."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(Watch(self, measured, folder))

    register_trainer("soak", Watched)
    run(
        LLMTrainingParams(
            model="embedded", teacher_model="embedded", data_path=[{"text": text} for text in texts(200)],
            teacher_prompt_template=PROMPT, trainer="soak", project_name=str(folder / "project"),
            teacher_store=str(folder / "store"), distill_max_teacher_length=8, batch_size=2, gradient_accumulation=1,
            holdout=0.1, lr=1e-5, max_steps=steps, logging_steps=50, eval_samples=2, eval_strategy="steps",
            eval_steps=every, save_strategy="steps", save_steps=every, save_total_limit=2,
        )
    )  # fmt: skip
    return measured


def after_warmup(values: Sequence[float], parts: int) -> list[float]:
    """Return the medians of equal parts of what follows the first tenth."""
    rest = values[len(values) // 10 :]
    return [statistics.median(rest[len(rest) * i // parts : len(rest) * (i + 1) // parts]) for i in range(parts)]


def changes(measured: Measured) -> dict[str, float]:
    """Return how much memory and the time of a step change after the warm-up, as shares, by name."""
    memory = {"resident memory": measured.resident, "device memory": measured.on_device}
    found = {}
    for name, values in memory.items():
        if values:
            medians = after_warmup(values, PARTS)
            found[name] = max(medians) / min(medians) - 1
    first, *_, last = after_warmup(measured.seconds, QUARTER)
    return {**found, "time of a step": last / first - 1}


def failures(changed: dict[str, float]) -> list[str]:
    """Return a line for each figure that changes by more than it may."""
    limits = {name: TIME if name == "time of a step" else MEMORY for name in changed}
    return [
        f"{name} changes by {share:+.1%}, and {limits[name]:.0%} is the limit"
        for name, share in changed.items()
        if abs(share) > limits[name]
    ]


def report(measured: Measured) -> str:
    """Return the medians of each tenth of the steps after the warm-up as a table."""
    seconds, resident = after_warmup(measured.seconds, PARTS), after_warmup(measured.resident, PARTS)
    rows = [[f"{1000 * s:.1f}", f"{r / MIB:,.1f}"] for s, r in zip(seconds, resident, strict=True)]
    head = ["part", "ms per step", "resident MiB"]
    if measured.on_device:
        head.append("device MiB")
        rows = [[*row, f"{d / MIB:,.1f}"] for row, d in zip(rows, after_warmup(measured.on_device, PARTS), strict=True)]
    return table(head, [[str(number), *row] for number, row in enumerate(rows, 1)])


def main() -> int:
    """Print the figures and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps")
    parser.add_argument("--every", type=int, default=100, help="steps between evaluations, and between checkpoints")
    parser.add_argument("--folder", type=Path, help="where everything is written (default: a temporary folder)")
    parser.add_argument("--verbose", action="store_true", help="show what the runs print")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as hidden:
        if not options.verbose:
            hidden.enter_context(contextlib.redirect_stdout(io.StringIO()))
        measured = soak(options.steps, options.every, options.folder or Path(temporary))
    changed = changes(measured)
    on = accelerator()
    print(machine("torch", "transformers", "trl"))
    print(
        f"{options.steps:,} steps{'' if on is None else f' on {torch.get_device_module(on).get_device_name()}'}, ",
        end="",
    )
    print(f"every {options.every} an evaluation, a checkpoint and a new store; the first tenth is warm-up\n")
    print(report(measured))
    print("\n" + ", ".join(f"{name} {share:+.2%}" for name, share in changed.items()))
    if options.json:
        print_json(changed)
    found = failures(changed)
    for line in found:
        print(f"soak.py: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
