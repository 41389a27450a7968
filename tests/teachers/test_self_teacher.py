"""The student as its own teacher: the weights under the adapter, which learns; no copy, and no trace on the student."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from ranks import run_in
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, run
from trl_distill.config.devices import accelerator
from trl_distill.errors import ParamsError, TeacherError
from trl_distill.teachers.local import fingerprint

pytestmark = pytest.mark.usefixtures("device")

PAIRS = {"prompt": ["a b", "c", "d e f", "g"], "completion": [" c d", " e f g a", " b", " d c b"]}
TEMPLATES = {
    "teacher_prompt_template": "g f e d c b a g f e d c b a g f e {input}",
    "student_prompt_template": "{input}",
}


def make(student, folder, teacher="self", *, lora_dropout=0.0, model=None, **settings):
    """Return a trainer with an adapter on all layers."""
    config = DistillationSFTConfig(
        output_dir=str(folder), max_steps=3, learning_rate=1e-2, use_cpu=accelerator() is None,
        bf16=False, report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, dataloader_pin_memory=False, use_distillation=True, teacher_model=teacher,
        **{"per_device_train_batch_size": 4, **TEMPLATES, **settings},
    )  # fmt: skip
    torch.manual_seed(0)
    return DistillationSFTTrainer(
        model or AutoModelForCausalLM.from_pretrained(student), config, train_dataset=Dataset.from_dict(PAIRS),
        processing_class=AutoTokenizer.from_pretrained(student),
        peft_config=LoraConfig(
            r=4, lora_dropout=lora_dropout, target_modules="all-linear", task_type="CAUSAL_LM", bias="none"
        ),
    )  # fmt: skip


def losses(trainer):
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_a_self_teacher_gives_the_losses_of_a_copy(tiny_model_dir, tmp_path):
    own = losses(make(tiny_model_dir, tmp_path))
    copy = losses(make(tiny_model_dir, tmp_path, str(tiny_model_dir)))
    assert own == pytest.approx(copy, rel=1e-6)
    assert own[-1] < own[0]


def test_a_self_teacher_makes_no_copy_and_keeps_the_base_weights(tiny_model_dir, tmp_path):
    trainer = make(tiny_model_dir, tmp_path)
    before = fingerprint.of_model(trainer.base_student, adapters=False)
    trainer.train()
    mine, theirs = (
        [p.data_ptr() for p in model.parameters()] for model in (trainer.base_student, trainer.teacher.model)
    )
    assert mine == theirs
    assert fingerprint.of_model(trainer.base_student, adapters=False) == before
    assert before == fingerprint.of_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir))


@pytest.mark.cpu
def test_a_self_teachers_score_leaves_the_student_as_it_was(tiny_model_dir, tmp_path):
    trainer = make(tiny_model_dir, tmp_path, lora_dropout=0.5)
    trainer.model.train()
    modes = {name: module.training for name, module in trainer.model.named_modules()}
    learning = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    batch = next(iter(trainer.get_train_dataloader()))
    scores = [trainer.teacher.score(batch).hidden for _ in range(2)]
    assert torch.equal(*scores)  # the teacher has no dropout
    assert {name: module.training for name, module in trainer.model.named_modules()} == modes
    assert {name for name, p in trainer.model.named_parameters() if p.requires_grad} == learning
    assert all("lora_" in name for name in learning)
    torch.nn.init.normal_(trainer.model.get_parameter(next(n for n in learning if "lora_B" in n)))
    drawn = [trainer.compute_loss(trainer.model, batch).item() for _ in range(2)]
    assert drawn[0] != drawn[1]  # the student has


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_a_self_teacher_works_on_a_quantized_student(kind, tmp_path, tmp_path_factory):
    from conftest import make_model

    folder = make_model(tmp_path_factory.mktemp("models") / "wide", hidden=64)
    how = {"load_in_4bit": True} if kind == "int4" else {"load_in_8bit": True}
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**how))
    found = losses(make(folder, tmp_path, model=model))
    assert found[-1] < found[0]


def test_a_4_bit_student_that_was_evaluated_still_has_its_gradients(tmp_path, tmp_path_factory):
    """On some processors bitsandbytes repacks weights in evaluation mode, and then they have none."""
    from conftest import make_model

    folder = make_model(tmp_path_factory.mktemp("models") / "wide", hidden=64)
    found = []
    for evaluated in (False, True):
        how = BitsAndBytesConfig(load_in_4bit=True)
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=how)
        trainer = make(folder, tmp_path, str(folder), model=model)
        if evaluated:
            trainer.evaluate(trainer.train_dataset)
        found.append(losses(trainer))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_self_teacher_writes_the_completions_of_the_base_model(tiny_model_dir, tmp_path):
    text = {"text": ["a b", "c d e"]}
    data = Dataset.from_dict(text)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": row}) for row in text["text"]))
    common = {
        "model": str(tiny_model_dir), "data_path": data, "peft": True, "distill_max_teacher_length": 5, "epochs": 1,
        **TEMPLATES,
    }  # fmt: skip
    written = []
    for name, teacher in (("own", "self"), ("copy", str(tiny_model_dir))):
        result = run(LLMTrainingParams(**common, teacher_model=teacher, project_name=str(tmp_path / name)))
        written.append([row["completion"] for row in result.trainer.train_dataset])
    assert written[0] == written[1]
    assert "itself, its adapter switched off" in (tmp_path / "own" / "README.md").read_text()
    store = (tmp_path / "own" / "teacher_completions.jsonl").read_text()
    run(LLMTrainingParams(**common, teacher_model="self", project_name=str(tmp_path / "own"), overwrite=True))
    assert (tmp_path / "own" / "teacher_completions.jsonl").read_text() == store  # paid for once


def test_a_self_teacher_without_an_adapter_is_refused(tiny_model_dir, tmp_path):
    given = LLMTrainingParams(model=str(tiny_model_dir), teacher_model="self", data_path="x.json")
    with pytest.raises(ParamsError, match="there is no adapter; add peft=True, or give teacher_model the model's own"):
        given.validate()
    given.peft, given.teacher_dtype = True, "bfloat16"
    with pytest.raises(ParamsError, match="teacher_dtype is 'bfloat16', but teacher_model is 'self'"):
        given.validate()
    config = DistillationSFTConfig(output_dir=str(tmp_path), use_cpu=accelerator() is None, bf16=False,
                                   use_distillation=True,
                                   teacher_model="self", report_to="none")  # fmt: skip
    with pytest.raises(TeacherError, match="the student has none; train a LoRA adapter"):
        DistillationSFTTrainer(str(tiny_model_dir), config, train_dataset=Dataset.from_dict(PAIRS))


RANK = """
from teachers.test_self_teacher import make, losses
result = losses(make({student!r}, {folder!r}, per_device_train_batch_size={batch}))
"""


def test_two_processes_with_a_self_teacher_have_the_losses_of_one(tiny_model_dir, tmp_path):
    one, two = (
        run_in(n, RANK.format(student=str(tiny_model_dir), folder=str(tmp_path / "out"), batch=4 // n), tmp_path)
        for n in (1, 2)
    )
    assert two == pytest.approx(one, rel=1e-5)
