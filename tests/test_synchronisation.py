"""No step reads a tensor's value on the host, whatever teaches and however rows share sequences."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from forms import settings
from peft import LoraConfig
from reads import Reads
from small_runs import PAIRS
from test_cross_tokenizer import make_other
from tokenizing import byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer
from trl_distill.batch_layout import LAYOUT

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


def trainer_of(kind, student, teacher, folder):
    """Return a trainer after a step, in which everything is found out that is found out once."""
    how = {"teacher_model": str(teacher), "teacher_prompt_template": f"{PREFIX} {{input}}", **KINDS[kind]}
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
    model, tokenizer = AutoModelForCausalLM.from_pretrained(student), AutoTokenizer.from_pretrained(student)
    trainer = DistillationSFTTrainer(
        model, config, train_dataset=Dataset.from_dict(PAIRS), processing_class=tokenizer, peft_config=peft
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_reads_nothing_back(kind, tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = trainer_of(kind, tiny_model_dir, tiny_teacher_dir, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    with Reads() as reads:
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(8))
    assert reads.found == []
    assert loss.isfinite()
    trainer.model.eval()
    with Reads() as reads, torch.no_grad():
        trainer.compute_loss(trainer.model, batch)
    assert reads.found == []


def test_what_reads_is_seen(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = trainer_of("local", tiny_model_dir, tiny_teacher_dir, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    right = trainer.compute_loss(trainer.model, batch)
    del batch[LAYOUT]  # what the collator knows has to be read then
    with Reads() as reads:
        again = trainer.compute_loss(trainer.model, batch)
    assert {line.split()[1] for line in reads.found} == {"cpu", "numpy"}
    assert again == right
    values = torch.arange(4.0)
    for read in (
        lambda: values.tolist(), lambda: float(values.sum()), lambda: values[values > 1], lambda: values.nonzero(),
        lambda: values.unique(), lambda: torch.tensor([1.0], device="cpu"), lambda: values.new_tensor([1]),
        lambda: torch.repeat_interleave(torch.tensor([1, 2])),
    ):  # fmt: skip
        with Reads() as reads:
            read()
        assert reads.found
