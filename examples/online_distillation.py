"""Online distillation: the teacher samples new completions for every training batch.

Run it with `python examples/online_distillation.py --model embedded --teacher-model embedded --output-dir runs/online`.
"""

from __future__ import annotations

import torch
from datasets import Dataset
from trl import TrlParser

from trl_distill import DistillationSFTConfig, PromptDistillationTrainer
from trl_distill.models.loading import ModelSource, resolve


class OnlineDistillationTrainer(PromptDistillationTrainer):
    """Overriding `generate_teacher_outputs` is all it takes to generate every batch anew."""

    def generate_teacher_outputs(self, batch):
        """Return prompts and new completions, [B, S + new], as `generate` gives them."""
        with torch.no_grad():
            teacher_inputs = self.prepare_teacher_inputs(batch)
            return self.teacher_model.generate(
                **teacher_inputs,
                max_new_tokens=self.config.distill_max_teacher_length,
                temperature=0.8,
                do_sample=True,
                pad_token_id=self.teacher.tokenizer.pad_token_id,
            )


def main(args: list[str] | None = None) -> OnlineDistillationTrainer:
    """Train for a few steps on a handful of inputs."""
    parser = TrlParser(DistillationSFTConfig)
    parser.add_argument("--model", default="embedded")
    parser.set_defaults(
        use_distillation=True, output_dir="runs/online", max_steps=8, use_cpu=not torch.cuda.is_available(),
        bf16=False, report_to="none", completions="teacher", distill_max_teacher_length=16,
        dataloader_pin_memory=torch.cuda.is_available(), logging_steps=1,
        teacher_model="embedded", teacher_prompt_template="Reverse the order of the words.\n\nText: {input}\nResult:",
    )  # fmt: skip
    config, rest = parser.parse_args_and_config(args)
    source = ModelSource(resolve(rest.model, role="model"))
    trainer = OnlineDistillationTrainer(
        source.load_model(),
        config,
        train_dataset=Dataset.from_dict({"text": ["red green blue", "lamp river stone", "sun moon star", "cat dog"]}),
        processing_class=source.load_tokenizer(),
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
