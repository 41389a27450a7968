"""A custom loss: the distillation loss plus a regulariser against over-confidence.

Run it with `python examples/custom_loss.py --model embedded --teacher-model embedded --output-dir runs/custom-loss`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from datasets import Dataset
from trl import TrlParser

from trl_distill import DistillationSFTConfig, PromptDistillationTrainer
from trl_distill.models.loading import ModelSource, resolve


class CustomDistillationTrainer(PromptDistillationTrainer):
    """Adds 0.1 times the mean negative entropy of the student to the usual loss."""

    def compute_loss(self, model, inputs):
        """Return the mean loss of a batch; the trainer takes care of accumulation."""
        with torch.no_grad():
            teacher_outputs = self.teacher_model(**self.prepare_sequences(inputs, teacher=True))
        student_outputs = model(**self.prepare_sequences(inputs))
        student_logits = self.completion_logits(student_outputs.logits, inputs)
        teacher_logits = self.completion_logits(teacher_outputs.logits, inputs, teacher=True)

        kl_loss = self.compute_kl_loss(student_logits, teacher_logits, temperature=self.config.distill_temperature)
        ce_loss = F.cross_entropy(student_logits.float(), self.completion_targets(inputs))
        return (
            self.config.distill_alpha * kl_loss
            + (1 - self.config.distill_alpha) * ce_loss
            + 0.1 * self.compute_regularization(student_logits)
        )

    def compute_regularization(self, student_logits: torch.Tensor) -> torch.Tensor:
        """Return the student's mean negative entropy in nats over logits [N, V]."""
        log_probs = student_logits.float().log_softmax(-1)
        return (log_probs.exp() * log_probs).sum(-1).mean()


def main(args: list[str] | None = None) -> CustomDistillationTrainer:
    """Train for a few steps on a handful of questions that the teacher answers itself."""
    parser = TrlParser(DistillationSFTConfig)
    parser.add_argument("--model", default="embedded")
    parser.set_defaults(
        use_distillation=True, output_dir="runs/custom-loss", max_steps=8, use_cpu=not torch.cuda.is_available(),
        bf16=False, report_to="none", completions="teacher", distill_max_teacher_length=16,
        dataloader_pin_memory=torch.cuda.is_available(), logging_steps=1,
        teacher_model="embedded", teacher_prompt_template="Reverse the order of the words.\n\nText: {input}\nResult:",
    )  # fmt: skip
    config, rest = parser.parse_args_and_config(args)
    source = ModelSource(resolve(rest.model, role="model"))
    trainer = CustomDistillationTrainer(
        source.load_model(),
        config,
        train_dataset=Dataset.from_dict({"text": ["red green blue", "lamp river stone", "sun moon star", "cat dog"]}),
        processing_class=source.load_tokenizer(),
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
