"""How much of the gap to its teacher each recipe closes on the embedded model: the demo's routing policy, once each.

The learning rate, the batch size and the epochs are the same for all, since a recipe's learning rate is that of models
a thousand times larger. The demonstration of sdft is the policy.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from _measure import machine, print_json, table, table_row
from _routing import COLUMN, LONG_PROMPT, MESSAGE, ROWS, SHORT_PROMPT, UNSEEN, Outcome, outcome_of, write_rows

from trl_distill import LLMTrainingParams
from trl_distill.config.recipes import NAMES, RECIPES

HEAD = ("recipe", "before", "after", "teacher", "gap closed (95% interval)", "divergence removed", "CPU seconds")


def settings_of(name: str) -> dict[str, Any]:
    """Return what a recipe leaves to the user; sdft's template with its parts in the order of this model's prompts."""
    teacher = {} if "teacher_model" in RECIPES[name].values else {"teacher_model": "embedded"}
    return {**teacher, "teacher_prompt_template": f"{{{COLUMN}}}{MESSAGE}" if name == "sdft" else LONG_PROMPT}


def outcome(name: str, folder: Path, options: argparse.Namespace) -> Outcome:
    """Return what the student of a recipe has reached."""
    params = LLMTrainingParams(
        recipe=name, model="embedded", student_prompt_template=SHORT_PROMPT, data_path=str(folder / ROWS),
        project_name=str(folder / name), lr=options.lr, epochs=options.epochs, batch_size=16, gradient_accumulation=1,
        distill_max_teacher_length=16, seed=options.seed, **settings_of(name),
    )  # fmt: skip
    return outcome_of(params, teacher="embedded", unseen=folder / UNSEEN)


def main() -> None:
    """Print a line for each recipe as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=240, help="messages to train on")
    parser.add_argument("--unseen", type=int, default=60, help="messages to evaluate on")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recipes", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--json", action="store_true", help="print the figures as one last line too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine("torch", "transformers", "trl", "peft"))
    print(f"{options.rows} rows, {options.epochs:g} epochs of batches of 16, lr {options.lr:g}, seed {options.seed}\n")
    print(table(HEAD, []), flush=True)
    figures = {}
    with tempfile.TemporaryDirectory() as place:
        write_rows(Path(place), count=options.rows, unseen=options.unseen)
        for name in options.recipes:
            one = outcome(name, Path(place), options)
            right = (f"{share:.0f}%" for share in one.right)
            print(table_row((name, *right, one.shown, f"{one.removed:.0%}", f"{one.seconds:.0f}")), flush=True)
            figures[name] = one.closed
    if options.json:
        print_json(figures)


if __name__ == "__main__":
    main()
