"""Which temperature and learning rate close most of the gap to a teacher, by the number of rows.

Every combination trains on the demo's routing policy with several seeds, for the same number of optimizer steps on any
number of rows. The student is taught by its own weights under the policy (a prompt baked in), or by `--teacher`.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path

import torch
from _measure import machine, print_json, table, table_row
from _routing import LONG_PROMPT, ROWS, SHORT_PROMPT, UNSEEN, outcome_of, write_rows

from trl_distill import LLMTrainingParams

HEAD = ("rows", "temperature", "lr", "gap closed, each seed", "mean", "seconds of training")


def outcomes(
    folder: Path, rows: int, temperature: float, lr: float, options: argparse.Namespace
) -> tuple[list[float], float]:
    """Return the share of the gap that each seed closes, and the mean seconds of a run."""
    closed, seconds = [], []
    for seed in range(options.seeds):
        write_rows(folder, count=rows, unseen=options.unseen, seed=seed + 10)
        params = LLMTrainingParams(
            model=options.model, teacher_model=options.teacher or options.model, teacher_prompt_template=LONG_PROMPT,
            student_prompt_template=SHORT_PROMPT, data_path=str(folder / ROWS), project_name=str(folder / "run"),
            overwrite=True, max_steps=options.steps, batch_size=16, gradient_accumulation=1, save_strategy="no",
            distill_temperature=temperature, distill_alpha=options.alpha, lr=lr, seed=seed,
            distill_max_teacher_length=16, peft=options.peft,
        )  # fmt: skip
        found = outcome_of(params, teacher=options.teacher or options.model, unseen=folder / UNSEEN)
        closed.append(found.closed)
        seconds.append(found.seconds)
    return closed, statistics.fmean(seconds)


def main() -> None:
    """Print a line for each combination as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--teacher", help="a larger teacher (default: the model itself)")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 2.0, 3.0, 4.0])
    parser.add_argument("--lrs", type=float, nargs="+", default=[5e-5, 2e-4, 1e-3])
    parser.add_argument("--rows", type=int, nargs="+", default=[60, 480])
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--alpha", type=float, default=0.7)
    parser.add_argument("--peft", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--unseen", type=int, default=90)
    parser.add_argument("--json", action="store_true", help="print the figures as one last line too")
    options = parser.parse_args()
    torch.set_num_threads(2)
    print(machine("torch", "transformers", "trl"))
    print(f"{options.steps} steps of 16 rows, alpha {options.alpha:g}, {options.seeds} seeds\n")
    print(table(HEAD, []), flush=True)
    figures = {}
    with tempfile.TemporaryDirectory() as place:
        for rows, temperature, lr in itertools.product(options.rows, options.temperatures, options.lrs):
            closed, seconds = outcomes(Path(place), rows, temperature, lr, options)
            mean = statistics.fmean(closed)
            each = ", ".join(f"{share:.0%}" for share in closed)
            cells = (f"{rows:,}", f"{temperature:g}", f"{lr:g}", each, f"{mean:.0%}", f"{seconds:.0f}")
            print(table_row(cells), flush=True)
            figures[f"{rows} rows, T={temperature:g}, lr {lr:g}"] = mean
    if options.json:
        print_json(figures)


if __name__ == "__main__":
    main()
