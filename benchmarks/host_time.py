"""What a step costs beside the arithmetic: ours minus TRL's SFTTrainer's, on models so small that little is computed.

On a GPU this is the time in which Python asks for kernels, so it is what a step takes at least. Both train on the same
completion tokens of the same rows; steps of both are taken in turn, in both orders, and a step is a batch from the
data loader, its loss, the gradients and the optimizer.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import pstats
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import torch
from _measure import alternating, machine, print_json, table
from step_time import SIDES, Size, make_trainer

SMALL = Size(student=(8, 1), teacher=(16, 1), vocabulary=64, batch=4, sequence=32)
PAIRS = {"local": "sft", "stored": "sft", "self": "sft-lora"}


def stepper(side: str) -> Callable[[], None]:
    """Return what takes one step of a side."""
    trainer = make_trainer(side, SMALL, 1)
    trainer.create_optimizer()
    batches = itertools.chain.from_iterable(itertools.repeat(trainer.get_train_dataloader()))

    def step() -> None:
        (batch,), items = trainer.get_batch_samples(batches, 1, trainer.args.device)
        trainer.training_step(trainer.model, batch, items)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step


def profile(step: Callable[[], Any], steps: int) -> None:
    """Print where the time of many steps goes."""
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(steps):
        step()
    profiler.disable()
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(60)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="steps of each side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", choices=[*PAIRS, *dict.fromkeys(PAIRS.values())], help="show where time goes")
    parser.add_argument("--json", action="store_true", help="print the differences as one last line too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    if options.profile:
        profile(stepper(options.profile), options.steps)
        return
    print(machine("torch", "transformers", "trl", "peft"))
    print(f"{SMALL}, fp32; medians of {options.steps} alternating steps\n")
    steppers = {side: stepper(side) for side in dict.fromkeys([*PAIRS.values(), *PAIRS])}
    seconds = alternating(steppers, rounds=options.steps, warmup=10)
    medians = {side: 1e3 * statistics.median(own) for side, own in seconds.items()}
    rows, figures = [], {}
    for side, median in medians.items():
        other = PAIRS.get(side)
        more = median - medians[other] if other else None
        rows.append([SIDES[side], f"{median:.2f}", "" if more is None else f"{more:+.2f}"])
        if more is not None:
            figures[f"ms_{side}_minus_{other}"] = more
    print(table(["side", "ms per step", "minus TRL's"], rows))
    if options.json:
        print_json(figures)


if __name__ == "__main__":
    main()
