"""Prompts that PEFT learns (prompt, prefix and P-tuning): writing and scoring goes through them, as PEFT's own does."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM
from small_runs import make
from trainer.test_peft_kinds import KINDS
from transformers import AutoModelForCausalLM

from trl_distill.data.collator import DistillationCollator
from trl_distill.errors import ParamsError
from trl_distill.models.generation import GenerationSettings
from trl_distill.trainer.on_policy import BatchRandom

LEARNED = ("prompt", "prefix", "p_tuning")
each_kind = pytest.mark.parametrize("kind", LEARNED)
NEW = 6
pytestmark = pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # of PEFT's generate


def spread(model, seed=3):
    """Give all that is trained large weights, so that a prompt which is left out would show."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        if p.requires_grad:
            p.data = torch.randn(p.shape, generator=generator) * (2.0 if "embedding" in name else 0.5)


def saved(trainer, folder):
    """Return the student as PEFT loads it."""
    trainer.model.save_pretrained(folder)
    return AutoPeftModelForCausalLM.from_pretrained(folder).eval()


def greedy(model, prompt):
    ids = torch.tensor([prompt])
    return model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False,
    )[0, len(prompt) :].tolist()  # fmt: skip


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


@each_kind
def test_the_student_writes_what_pefts_generate_does(kind, tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make(
        tiny_model_dir, tiny_teacher_dir, tmp_path, peft=copy.deepcopy(KINDS[kind]), distill_on_policy_fraction=1.0,
        distill_on_policy_temperature=0.0, distill_on_policy_max_new_tokens=NEW, per_device_train_batch_size=8,
    )  # fmt: skip
    spread(trainer.model)
    batch = trainer.distiller.completions.by_student(first_batch(trainer), BatchRandom(0, 0, 0))
    alone, bare = saved(trainer, tmp_path / "saved"), AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    found, expected, without = [], [], []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        start = int((labels != -100).nonzero()[0])
        prompt = ids[:start].tolist()
        found.append(labels[labels != -100].tolist())
        expected.append(greedy(alone, prompt))
        ends = torch.tensor([prompt + expected[-1]])
        likeliest = alone(input_ids=ends, attention_mask=torch.ones_like(ends)).logits[0].argmax(-1)
        assert likeliest[-1 - len(expected[-1]) : -1].tolist() == expected[-1]  # as a training step reads it
        without.append(greedy(bare, prompt))
    assert found == expected
    assert found != without
    trainer.train()
    assert {line["on_policy"] for line in trainer.state.log_history if "on_policy" in line} == {1.0}


def log_probs(model, batch):
    """Return what PEFT's model says of the teacher's side of a batch, row by row, [N, V]."""
    rows = []
    for ids, mask, labels in zip(*(batch[f"teacher_{n}"] for n in ("input_ids", "attention_mask", "labels")),
                                 strict=True):  # fmt: skip
        read = int(mask.sum())
        logits = model(input_ids=ids[None, :read], attention_mask=mask[None, :read]).logits[0, -read:]
        rows.append(logits[:-1][labels[1:read] != -100])
    return torch.cat(rows).log_softmax(-1)


@torch.no_grad()
@each_kind
def test_an_average_scores_and_writes_through_its_averaged_prompt(kind, tiny_model_dir, tmp_path):
    trainer = make(tiny_model_dir, "ema", tmp_path, peft=copy.deepcopy(KINDS[kind]), teacher_ema_decay=0.5)
    teacher, first = trainer.teacher, copy.deepcopy(dict(trainer.model.named_parameters()))
    spread(trainer.model)
    teacher.weights.update()
    own = {name: p.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    batch = first_batch(trainer)
    targets = teacher.score(batch)
    found = (targets.hidden @ targets.head.weight.T).log_softmax(-1)
    prompts = [[70, 71, 72], [73, 74], [75, 76, 77]]
    written = [list(c.ids) for c in teacher.generate(prompts, GenerationSettings(NEW))]
    for name, p in trainer.model.named_parameters():
        if p.requires_grad:
            assert torch.equal(p, own[name])
            p.data = (first[name] + own[name]) / 2
    averaged = saved(trainer, tmp_path / "saved")
    torch.testing.assert_close(found, log_probs(averaged, batch), rtol=1e-4, atol=1e-4)
    assert written == [greedy(averaged, prompt) for prompt in prompts]
    bare = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    assert (found - log_probs(bare, batch)).abs().max() > 0.1


def test_vllm_and_a_learned_prompt_are_refused(tiny_model_dir, tiny_teacher_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_distill.trainer.compatibility.check_vllm", lambda model: None)
    with pytest.raises(ParamsError, match="kind PROMPT_TUNING also has a learned prompt"):
        make(
            tiny_model_dir, tiny_teacher_dir, tmp_path, peft=copy.deepcopy(KINDS["prompt"]), use_vllm=True,
            distill_on_policy_fraction=1.0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("prompt", {"padding_free": True}, "padding_free puts several rows .* kind PROMPT_TUNING has a learned prompt"),
        ("p_tuning", {"packing": True}, "packing puts several rows .* kind P_TUNING has a learned prompt"),
        ("prefix", {"gradient_checkpointing": True}, "gradient_checkpointing drops the keys .* kind PREFIX_TUNING"),
    ],
)
def test_what_a_learned_prompt_cannot_be_used_with_is_refused(
    kind, given, said, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    with pytest.raises(ParamsError, match=said):
        make(tiny_model_dir, tiny_teacher_dir, tmp_path, peft=copy.deepcopy(KINDS[kind]), **given)


ROWS = [
    {"student_prompt": [70], "teacher_prompt": [70, 71, 72], "completion": [73, 74, 1]},
    {"student_prompt": [75], "teacher_prompt": [75, 76], "completion": [77, 1]},
]
RETAINED = {"prompt": ["x y z", "z"], "completion": [" u v", " w"]}


def said(teacher, batch):
    targets = teacher.score(batch)
    return (targets.hidden @ targets.head.weight.T).log_softmax(-1)


@torch.no_grad()
@pytest.mark.parametrize("kind", [*LEARNED, "ia3", "loha", "lora"])
def test_rows_are_retained_as_an_adapter_of_an_earlier_stage_has_them(kind, tiny_model_dir, tiny_teacher_dir, tmp_path):
    """A fresh adapter starts at the model under it; one that was learned before is part of where the run starts."""
    how = {"retain_data": Dataset.from_dict(RETAINED)}
    batch, bare = DistillationCollator(0)(ROWS), AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    fresh = make(tiny_model_dir, tiny_teacher_dir, tmp_path, peft=copy.deepcopy(KINDS[kind]), **how)
    start = fresh.teacher.teachers[-1]
    spread(fresh.model)
    assert not start.weights.is_copy
    torch.testing.assert_close(said(start, batch), log_probs(bare, batch), rtol=1e-4, atol=1e-4)
    student = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir), copy.deepcopy(KINDS[kind]))
    spread(student)
    later = make(tiny_model_dir, tiny_teacher_dir, tmp_path, model=student, **how)
    start = later.teacher.teachers[-1]
    expected = log_probs(saved(later, tmp_path / "saved"), batch)
    spread(student, seed=4)
    assert start.weights.is_copy
    torch.testing.assert_close(said(start, batch), expected, rtol=1e-4, atol=1e-4)
    assert (expected - log_probs(bare, batch)).abs().max() > 0.1
    with torch.enable_grad():
        later.train()
