"""Distillation, then rewards: a distilled student is trained further with TRL's GRPOTrainer or RLOOTrainer.

The student learns to put commas between words without an instruction. A reward then scores its completions, by the
share of words that are right, comma included; KL keeps it near the distilled student (`beta`).

Run it with `python examples/distil_then_reward.py --trainer grpo --output-dir runs/reward`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from trl_distill import LLMTrainingParams, run

# fmt: off
WORDS = [
    "apple", "pear", "plum", "lemon", "cherry", "grape", "peach", "melon", "berry", "onion", "carrot",
    "tomato", "potato", "bean", "rice", "bread", "butter", "cheese", "honey", "sugar", "salt",
]
# fmt: on
INPUTS = [f"{a} {b} {c}" for a, b, c in zip(WORDS[:12], WORDS[5:], WORDS[9:], strict=False)]
TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def reward(completions: list[str], goal: list[str], **kwargs) -> list[float]:
    """Return the share of words that stand as they should, for each completion."""
    rewards = []
    for completion, wanted in zip(completions, goal, strict=True):
        words = completion.split()
        right = sum(a == b for a, b in zip(words, wanted.split(), strict=False))
        rewards.append(right / max(len(words), len(wanted.split())))
    return rewards


def main(args: list[str] | None = None) -> GRPOTrainer | RLOOTrainer:
    """Distil, then train on the reward."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainer", choices=TRAINERS, default="grpo")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/reward"))
    parser.add_argument("--max-steps", type=int, default=8, help="steps on the reward")
    options = parser.parse_args(args)
    student = run(
        LLMTrainingParams(
            model="embedded", teacher_model="embedded",
            teacher_prompt_template="Put a comma between the words.\n\nText: {input}\nResult:",
            student_prompt_template="{input}\nResult:", distill_max_teacher_length=16,
            data_path=Dataset.from_dict({"text": INPUTS}), project_name=str(options.output_dir / "distilled"),
            epochs=2, gradient_accumulation=1, lr=1e-3, overwrite=True,
        )
    )  # fmt: skip
    rows = {"prompt": [f"{text}\nResult:" for text in INPUTS], "goal": [text.replace(" ", ", ") for text in INPUTS]}
    accelerated = torch.cuda.is_available()
    trainer_class, config_class = TRAINERS[options.trainer]
    config = config_class(
        output_dir=str(options.output_dir / options.trainer), max_steps=options.max_steps, num_generations=4,
        per_device_train_batch_size=8, max_completion_length=16, beta=0.05, learning_rate=1e-4, logging_steps=1,
        use_cpu=not accelerated, bf16=accelerated, report_to="none", dataloader_pin_memory=accelerated,
    )  # fmt: skip
    trainer = trainer_class(
        student.model, reward, args=config, train_dataset=Dataset.from_dict(rows), processing_class=student.tokenizer
    )
    trainer.train()
    trainer.save_model(config.output_dir)
    return trainer


if __name__ == "__main__":
    main()
