"""Short runs of the trainer on tiny models, for tests of what SFTTrainer offers beside a teacher."""

from __future__ import annotations

from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer
from trl_distill.config.devices import accelerator

PAIRS = {
    "prompt": ["a b", "c", "d e f", "g", "b a", "c d", "e", "f g"],
    "completion": [" c d", " e f g a", " b", " d c b", " e", " f", " g a b c", " d"],
}
TEMPLATES = {"teacher_prompt_template": "g f e d c b a g f e {input}", "student_prompt_template": "{input}"}


def make(
    student, teacher, folder, *, model=None, peft=None, rows=8, kind=DistillationSFTTrainer, more=None, **settings
):
    """Return a trainer on the first `rows` of PAIRS, seeded, for three steps.

    Args:
        student: Folder of the student.
        teacher: Folder, or "self".
        folder: Where checkpoints go.
        model: The student, where it is not the folder's in float32.
        peft: Configuration of an adapter.
        rows: Rows to train and evaluate on.
        kind: The class of the trainer.
        more: Other arguments of the trainer.
        **settings: Of the configuration.
    """
    base = {
        "per_device_train_batch_size": 4, "max_steps": 3, "learning_rate": 1e-2, "bf16": False,
        "use_cpu": accelerator() is None, "report_to": "none", "logging_steps": 1, "save_strategy": "no",
        "disable_tqdm": True, "gradient_checkpointing": False, "dataloader_pin_memory": False,
    }  # fmt: skip
    config = DistillationSFTConfig(
        output_dir=str(folder), use_distillation=True, teacher_model=str(teacher), **{**base, **TEMPLATES, **settings}
    )
    data = Dataset.from_dict({name: values[:rows] for name, values in PAIRS.items()})
    torch.manual_seed(0)
    return kind(
        AutoModelForCausalLM.from_pretrained(student) if model is None else model, config, train_dataset=data,
        eval_dataset=data, processing_class=AutoTokenizer.from_pretrained(student), peft_config=peft, **(more or {}),
    )  # fmt: skip


def on_device(trainer, batch):
    """Return a batch that a collator made on the device on which a trainer computes."""
    return {name: value.to(trainer.args.device) for name, value in batch.items()}


def no_model(*_, **__):
    """Take the place of `ModelSource.load_model` in a test in which nothing may be loaded."""
    raise AssertionError("a model was loaded")


def losses(trainer):
    """Train and return the loss of each step."""
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def check_teacher_is_apart(trainer, checkpoint: Path | None = None):
    """Fail if a teacher's weight is the student's, is trained, or is in a checkpoint."""
    student, teacher = trainer.model, trainer.teacher.model
    theirs = {id(p) for p in teacher.parameters()}
    assert theirs
    assert not theirs & {id(p) for p in student.parameters()}
    assert not theirs & {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    if checkpoint is not None:
        files = [*checkpoint.glob("*.safetensors")]
        assert files
        shapes = {tuple(p.shape) for p in teacher.parameters()} - {tuple(p.shape) for p in student.parameters()}
        assert shapes  # the teacher is wider, so that its weights are known by their shapes
        assert not shapes & {tuple(t.shape) for file in files for t in load_file(file).values()}
