"""The loss and the training step on a GPU, beside the bare matrix products, torch.compile, TRL and Liger.

Three parts. `head` is the loss with its gradients. `step` is a training step on the same rows for all, `prompt` one in
the case that prompt distillation is for: an instruction of 1,000 tokens that the teacher reads, and TRL's trainers read
with every row. Liger is a side if liger-kernel is installed. `--tiny` runs every side once in small, on a CPU too.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from typing import Any

import torch
from _device import card
from _measure import table, table_row

from trl_distill.config.devices import accelerator

SIZES = [(8192, 4096, 128_256), (8192, 896, 151_936), (1024, 4096, 128_256)]
TINY = [(64, 32, 500)]
PARTS = ["head", "step", "prompt"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NEAR = 0.005  # of a standard deviation between hidden states: models that agree nearly, as converging ones do


def cell(found: dict[str, Any], name: str, form: str) -> str:
    """Return a figure as text, "-" if it was not measured."""
    value = found.get(name, math.nan)
    return "-" if math.isnan(value) else format(value, form)


def head(device: torch.device, *, tiny: bool, rounds: int) -> dict[str, float]:
    """Print the tables of the loss, each row as it is measured, and return its figures."""
    from _gpu_head import Head, errors, measure, problems

    figures = {}
    print("\nLoss with gradients, bf16, alpha 0.7; MiB above inputs and gradients\n")
    print(table(["N x H x V, divergence, T", "side", "ms", "time/bare", "MiB", "failed with"], []))
    for problem in problems(TINY if tiny else SIZES):
        for side, found in measure(problem, torch.bfloat16, device, rounds).items():
            shown = [cell(found, "ms", ".1f"), cell(found, "time/bare", ".2f"), cell(found, "MiB", ",.0f")]
            print(table_row([problem.name, side, *shown, found.get("failed", "")]), flush=True)
            figures |= {f"{problem.name}: {side}: {name}": x for name, x in found.items() if name != "failed"}
    size = (64, 32, 500) if tiny else (512, 512, 32_000)
    print("\nRelative errors of gradients against float64 on the same inputs\n")
    print(table(["case", "side", "hidden states", "weight"], []))
    for temperature, apart in ((1.0, 1.0), (3.0, 1.0), (1.0, NEAR)):
        for dtype in DTYPES:
            found_errors = errors(Head(*size, temperature), dtype, device, apart)
            for side, (hidden, weight) in found_errors.items():
                named = f"T={temperature:g}{', near agreement' if apart == NEAR else ''}, {str(dtype)[6:]}"
                print(table_row([named, side, f"{hidden:.1e}", f"{weight:.1e}"]), flush=True)
                figures[f"error of hidden states: {named}: {side}"] = hidden
    return figures


def steps(part: str, device: torch.device, *, tiny: bool, rounds: int, count: int) -> dict[str, float]:
    """Print the table of a part's steps and return its figures."""
    from _gpu_steps import PROMPT_SIDES, SIDES, Case, measure, sides_at_hand

    small = {"student": (32, 1), "teacher": (64, 1), "vocabulary": 600, "batch": 2} if tiny else {}
    if part == "step":
        labels, case = SIDES, Case(**small, **({"input": 8, "completion": 8} if tiny else {}))
    else:
        lengths = (24, 4, 6) if tiny else (1000, 32, 64)
        named = dict(zip(("instruction", "input", "completion"), lengths, strict=True))
        labels, case = PROMPT_SIDES, Case(**small, **named)
    found = measure(sides_at_hand(labels, device), case, device, rounds=rounds, steps=count)
    base = found["sft"].get("ms", math.nan)
    rows = [
        [labels[side], cell(one, "ms", ".1f"), cell({"x": one.get("ms", math.nan) / base}, "x", ".2f"),
         cell(one, "MiB", ",.0f"), one.get("failed", "")]
        for side, one in found.items()
    ]  # fmt: skip
    print(f"\n{case}\n")
    print(table([part, "ms per step", "time/SFT", "peak MiB", "failed with"], rows))
    return {f"{part}: {side}: {name}": x for side, one in found.items() for name, x in one.items() if name != "failed"}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=PARTS, help="of head, step, prompt (default: all)")
    parser.add_argument("--tiny", action="store_true", help="small problems, to see that all sides run; on a CPU too")
    parser.add_argument("--rounds", type=int, default=7, help="counted runs of each side of the loss")
    parser.add_argument("--steps", type=int, default=6, help="steps of each of a trainer's two runs")
    parser.add_argument("--json", action="store_true", help="print the figures as one last line too")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; expected one of head, step and prompt.")
    found = accelerator()
    cuda = found is not None and found.type == "cuda"
    if not cuda and not options.tiny:
        print("No CUDA device is present, so nothing is measured; --tiny runs every side once on the CPU.")
        return
    warnings.simplefilter("ignore")
    device = torch.device("cuda:0" if cuda else "cpu")
    tiny, rounds, count = options.tiny, 2 if options.tiny else options.rounds, 3 if options.tiny else options.steps
    print(card(device, "torch", "transformers", "trl", "peft"))
    figures: dict[str, float] = {}
    for part in options.parts:
        if part == "head":
            figures |= head(device, tiny=tiny, rounds=rounds)
        else:
            figures |= steps(part, device, tiny=tiny, rounds=1 if tiny else 2, count=count)
    if options.json:
        print(json.dumps({name: float(f"{x:.4g}") for name, x in figures.items() if not math.isnan(x)}))


if __name__ == "__main__":
    main()
