"""What baking one prompt in costs the embedded model's other tasks, with rows to retain and without."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from _measure import machine, print_json, table
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer
from trl_distill.embedded import embedded_path

sys.path.insert(0, str(Path(__file__).parents[1]))  # tools/ is beside this folder
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from demo import LONG_PROMPT, SHORT_PROMPT, make_messages

from tools.embedded_model.measure import accuracy_by_kind, exact_match
from tools.embedded_model.tasks import KINDS, make_example

PLAIN = "{input}"


def embedded() -> tuple[Any, Any]:
    """Return the embedded model in float32, and its tokenizer."""
    path = embedded_path()
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)


def other_tasks(kinds: Sequence[str], count: int, *, held_out: bool, seed: int) -> Dataset:
    """Return `count` prompts with completions of each kind of the embedded model's tasks."""
    rng = Random(seed)
    made = [make_example(rng, kind=kind, held_out=held_out) for _ in range(count) for kind in kinds]
    return Dataset.from_dict({"prompt": [e.prompt for e in made], "completion": [e.completion for e in made]})


def trainer_of(model: Any, rows: Dataset, **settings: Any) -> Any:
    """Return a trainer of which nothing is printed."""
    config = DistillationSFTConfig(
        output_dir=tempfile.mkdtemp(), use_distillation=True, teacher_model="embedded", teacher_dtype="float32",
        use_cpu=True, bf16=False, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, dataloader_pin_memory=False, per_device_train_batch_size=16,
        per_device_eval_batch_size=16, **settings,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):  # the pre-flight
        return DistillationSFTTrainer(model, config, train_dataset=rows, processing_class=embedded()[1])


def baked(steps: int, *, retain: Dataset | None = None, fraction: float = 0.25, lr: float = 1e-3, seed: int = 0) -> Any:
    """Return the embedded model after the demo's routing policy was distilled into it.

    Args:
        steps: Batches of 16 rows of the policy; with rows to retain as many more as the fraction asks for.
        retain: Rows to retain.
        fraction: Their share.
        lr: Learning rate.
        seed: Of the run.
    """
    messages = make_messages(16 * steps, held_out=False, seed=1)
    rows = Dataset.from_dict({"prompt": list(messages), "completion": list(messages.values())})
    kept = {} if retain is None else {"retain_data": retain, "retain_fraction": fraction}
    trainer = trainer_of(
        embedded()[0], rows, teacher_prompt_template=LONG_PROMPT, student_prompt_template=SHORT_PROMPT,
        num_train_epochs=1, learning_rate=lr, seed=seed, **kept,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return trainer.accelerator.unwrap_model(trainer.model)


def drift(model: Any, rows: Dataset) -> float:
    """Return the divergence of a model from the embedded one on rows of the other tasks, nats a token at T = 1."""
    settings = {"distill_alpha": 1.0, "distill_temperature": 1.0, "teacher_prompt_template": PLAIN}
    trainer = trainer_of(model, rows, max_steps=1, **settings)
    with contextlib.redirect_stdout(io.StringIO()):
        return float(trainer.evaluate(rows)["eval_kl"])


def measured(model: Any, held_out: Dataset, count: int) -> dict[str, float]:
    """Return the drift, the accuracy on the policy under the short prompt, and that on each other task."""
    from trl_distill.models.completion_forward import restore_forward

    found = {"drift": drift(model, held_out)}
    restore_forward(model)
    messages = make_messages(count, held_out=True, seed=2)
    prompts = [SHORT_PROMPT.replace("{input}", text) for text in messages]
    tokenizer = embedded()[1]
    found["the policy"] = exact_match(model, tokenizer, prompts, list(messages.values()))
    return {**found, **accuracy_by_kind(model, tokenizer, count=count)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40, help="batches of 16 rows of the policy")
    parser.add_argument("--rows", type=int, default=40, help="rows to retain of each kind")
    parser.add_argument("--count", type=int, default=50, help="held-out examples of each kind to measure on")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    retain = other_tasks(tuple(KINDS), options.rows, held_out=False, seed=3)
    held_out = other_tasks(tuple(KINDS), 16, held_out=True, seed=4)
    sides = {"before": embedded()[0], "baked in": baked(options.steps)}
    for fraction in (0.25, 0.5):
        sides[f"baked in, {fraction:g} retained"] = baked(options.steps, retain=retain, fraction=fraction)
    results = {name: measured(model, held_out, options.count) for name, model in sides.items()}
    print(machine("torch", "transformers", "trl"))
    names = list(results["before"])
    lines = [[who, *(f"{r[n]:.4f}" if n == "drift" else f"{r[n]:.0%}" for n in names)] for who, r in results.items()]
    print(f"{options.steps} batches of 16 rows of the policy, lr 1e-3; drift in nats a token\n")
    print(table(["", *names], lines))
    if options.json:
        print_json({f"drift, {name}": found["drift"] for name, found in results.items()})


if __name__ == "__main__":
    main()
