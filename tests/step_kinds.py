"""A trainer of each kind of teacher and form of batch, for tests of what a step does."""

from __future__ import annotations

from data.test_cross_tokenizer import make_other
from datasets import Dataset
from forms import settings
from peft import LoraConfig
from small_runs import PAIRS
from tokenizing import byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer

LORA = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
PREFIX = " ".join("abcdefgh" * 3)  # long enough to be read once


def listed(teacher, student, combine):
    """Return a list of teachers; the student's folder is one of them, so that both widths are there."""
    templates = (f"{PREFIX} {{input}}", "g f {input}")
    return {
        "combine": combine,
        "teachers": [{"model": str(m), "template": t} for m, t in zip((teacher, student), templates, strict=True)],
    }


KINDS = {
    "local": {},
    "local, LoRA": {"peft": LORA},
    "self": {"teacher_model": "self", "peft": LORA},
    "ema": {"teacher_model": "ema"},
    "top-k store": {"teacher_store": True},
    "sampled store": {"teacher_store": True, "teacher_store_kind": "sample"},
    "store of hidden states": {"teacher_store": True, "teacher_store_kind": "hidden"},
    "packing": {"packing": True, "max_length": 64},
    "padding_free": {"padding_free": True},
    "a mixture of teachers": {"combine": "mixture"},
    "several teachers": {"combine": "completions"},
    "retention": {"retain_data": True},
    "retention alone": {"retain_data": True, "distill_alpha": 0.0},
    "no teacher asked": {"distill_alpha": 0.0},
    "another tokenizer": {"cross_tokenizer": True},
}


def trainer_of(kind, student, teacher, folder, *, dtype="float32", **more):
    """Return a trainer after a step, in which everything is found out that is found out once.

    Args:
        kind: One of `KINDS`.
        student: Folder of the student.
        teacher: Folder of the teacher.
        folder: Where the run writes.
        dtype: Of the student's weights.
        **more: Of the configuration.
    """
    how = {"teacher_model": str(teacher), "teacher_prompt_template": f"{PREFIX} {{input}}", **KINDS[kind], **more}
    peft = how.pop("peft", None)
    if "teacher_store" in how:
        how["teacher_store"] = str(folder / "store")
    if "retain_data" in how:
        how["retain_data"] = [{"prompt": p, "completion": c} for p, c in zip(*PAIRS.values(), strict=True)]
    if "cross_tokenizer" in how:
        how["teacher_model"] = str(make_other(folder / "other", byte_level()))
    if "combine" in how:
        how["teacher_config"] = listed(teacher, student, how.pop("combine"))
        how |= {"teacher_prompt_template": "{input}", "teacher_model": None}
    config = DistillationSFTConfig(**settings(folder, use_distillation=True, max_steps=1, **how))
    model = AutoModelForCausalLM.from_pretrained(student, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(student)
    trainer = DistillationSFTTrainer(
        model, config, train_dataset=Dataset.from_dict(PAIRS), processing_class=tokenizer, peft_config=peft
    )
    trainer.train()
    return trainer
