"""Distillation, then preferences: a distilled student is trained further with TRL's DPOTrainer.

The student learns to put commas between words without an instruction. Pairs of completions then state a preference;
the distilled student is DPO's reference model.

Run it with `python examples/distil_then_dpo.py --output-dir runs/dpo`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from trl_distill import LLMTrainingParams, run

# fmt: off
WORDS = [
    "apple", "pear", "plum", "lemon", "cherry", "grape", "peach", "melon", "berry", "onion", "carrot",
    "tomato", "potato", "bean", "rice", "bread", "butter", "cheese", "honey", "sugar", "salt",
]
# fmt: on
INPUTS = [f"{a} {b} {c}" for a, b, c in zip(WORDS[:12], WORDS[5:], WORDS[9:], strict=False)]


def distil(folder: Path):
    """Return what a run leaves: the student, its tokenizer and the figures."""
    return run(
        LLMTrainingParams(
            model="embedded", teacher_model="embedded",
            teacher_prompt_template="Put a comma between the words.\n\nText: {input}\nResult:",
            student_prompt_template="{input}\nResult:", distill_max_teacher_length=16,
            data_path=Dataset.from_dict({"text": INPUTS}), project_name=str(folder / "distilled"), overwrite=True,
            epochs=5, gradient_accumulation=1, lr=1e-3,
        )
    )  # fmt: skip


def main(args: list[str] | None = None) -> DPOTrainer:
    """Distil, then have completions with commas preferred to those without."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/dpo"))
    parser.add_argument("--max-steps", type=int, default=8, help="steps of DPO")
    options = parser.parse_args(args)
    student = distil(options.output_dir)
    pairs = {
        "prompt": [f"{text}\nResult:" for text in INPUTS],
        "chosen": [f" {text.replace(' ', ', ')}" for text in INPUTS],
        "rejected": [f" {text}" for text in INPUTS],
    }
    accelerated = torch.cuda.is_available()
    config = DPOConfig(
        output_dir=str(options.output_dir / "dpo"), max_steps=options.max_steps, per_device_train_batch_size=2,
        learning_rate=1e-4, logging_steps=1, use_cpu=not accelerated, bf16=accelerated, report_to="none",
        dataloader_pin_memory=accelerated,
    )  # fmt: skip
    trainer = DPOTrainer(
        student.model, args=config, train_dataset=Dataset.from_dict(pairs), processing_class=student.tokenizer
    )
    trainer.train()
    trainer.save_model(config.output_dir)
    return trainer


if __name__ == "__main__":
    main()
