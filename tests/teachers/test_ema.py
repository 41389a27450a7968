"""The teacher that is an exponential moving average of the student."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig
from ranks import run_in
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, run
from trl_distill.config.devices import accelerator
from trl_distill.errors import ParamsError, TeacherError
from trl_distill.trainer.distributed import check_sharding

pytestmark = pytest.mark.usefixtures("device")

PAIRS = {"prompt": ["a b", "c", "d e f", "g"], "completion": [" c d", " e f g a", " b", " d c b"]}
TEMPLATES = {
    "teacher_prompt_template": "g f e d c b a g f e d c b a g f e {input}",  # long enough for its cache to be kept
    "student_prompt_template": "{input}",
}
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
DECAY = 0.7


def make(student, folder, teacher="ema", *, lora=False, model=None, **settings):
    config = DistillationSFTConfig(
        output_dir=str(folder), use_cpu=accelerator() is None, report_to="none", logging_steps=1, disable_tqdm=True,
        gradient_checkpointing=False, dataloader_pin_memory=False, use_distillation=True, teacher_model=teacher,
        **{"per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 1e-2, "save_strategy": "no",
           "bf16": False, "teacher_ema_decay": DECAY, **TEMPLATES, **settings},
    )  # fmt: skip
    torch.manual_seed(0)
    return DistillationSFTTrainer(
        model or AutoModelForCausalLM.from_pretrained(student), config, train_dataset=Dataset.from_dict(PAIRS),
        processing_class=AutoTokenizer.from_pretrained(student), peft_config=copy.deepcopy(LORA) if lora else None,
    )  # fmt: skip


class Students(TrainerCallback):
    """Keeps the student's trained weights after each optimizer step."""

    def __init__(self, model):
        self.model = model
        self.seen = [self.now()]

    def now(self):
        return {n: p.detach().clone().double() for n, p in self.model.named_parameters() if p.requires_grad}

    def on_step_end(self, *args, **kwargs):
        self.seen.append(self.now())


def lines(trainer, *names):
    return [line[name] for line in trainer.state.log_history if "loss" in line for name in names]


@pytest.mark.parametrize("lora", [False, True])
def test_an_ema_teacher_is_the_average_of_past_students(lora, tiny_model_dir, tmp_path):
    trainer = make(tiny_model_dir, tmp_path, lora=lora)
    students = Students(trainer.model)
    trainer.add_callback(students)
    trainer.train()
    assert len(students.seen) == 5
    assert all(("lora_" in name) == lora for name in trainer.teacher.weights.average)
    for name, average in trainer.teacher.weights.average.items():
        first, *later = (seen[name] for seen in students.seen)
        expected = DECAY ** len(later) * first
        for steps_ago, weights in enumerate(reversed(later)):
            expected = expected + (1 - DECAY) * DECAY**steps_ago * weights
        torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lora", [False, True])
def test_an_ema_teacher_scores_as_a_model_with_the_averaged_weights(lora, tiny_model_dir, tmp_path):
    trainer = make(tiny_model_dir, tmp_path, lora=lora)
    batch = next(iter(trainer.get_train_dataloader()))
    for steps in (0, 4):  # the cache of the prompt's beginning is that of the weights now
        if steps:
            trainer.teacher.score(batch)
            trainer.train()
        own = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        targets = trainer.teacher.score(batch)
        found = targets.hidden @ targets.head.weight.T
        assert all(torch.equal(p, own[name]) for name, p in trainer.model.named_parameters())
        averaged = make(tiny_model_dir, tmp_path, lora=lora).model.eval()
        averaged.load_state_dict(trainer.teacher.weights.average, strict=False)
        ids, mask, labels = (batch[f"teacher_{name}"] for name in ("input_ids", "attention_mask", "labels"))
        logits = averaged(input_ids=ids, attention_mask=mask).logits[:, :-1][labels[:, 1:] != -100]
        torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    assert trainer.teacher.prefix.off is None
    assert len(trainer.teacher.prefix.ids) >= 16


def test_an_ema_teacher_starts_as_a_copy_of_the_student(tiny_model_dir, tmp_path):
    found = [
        make(tiny_model_dir, tmp_path, teacher, teacher_ema_decay=decay)
        for teacher, decay in (("ema", 0.5), ("ema", 1.0), (str(tiny_model_dir), 0.5))
    ]
    for trainer in found:
        trainer.train()
    moving, kept, fixed = (lines(trainer, "loss", "kl") for trainer in found)
    assert kept == pytest.approx(fixed, rel=1e-4)  # a decay of 1 keeps the start
    assert moving[:2] == pytest.approx(fixed[:2], rel=1e-5)
    assert moving[-1] != pytest.approx(fixed[-1], rel=1e-2)


@pytest.mark.cpu
@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_restores_the_average_to_the_bit(lora, tiny_model_dir, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "lora": lora}
    whole = make(tiny_model_dir, tmp_path, **settings)
    whole.train()
    resumed = make(tiny_model_dir, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert lines(resumed, "loss", "kl") == lines(whole, "loss", "kl")
    for name, tensor in whole.teacher.weights.average.items():
        assert torch.equal(tensor, resumed.teacher.weights.average[name]), name
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_a_checkpoint_without_the_average_is_refused(tiny_model_dir, tmp_path):
    make(tiny_model_dir, tmp_path, str(tiny_model_dir), save_strategy="steps", save_steps=2).train()
    with pytest.raises(TeacherError, match=r"has no teacher_ema.safetensors.*start over"):
        make(tiny_model_dir, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_an_ema_teacher_is_not_trained_and_leaves_the_student_as_it_is(tiny_model_dir, tmp_path):
    trainer = make(tiny_model_dir, tmp_path, bf16=True)  # autocast keeps copies of weights, which must be the student's
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    with trainer.accelerator.autocast():
        trainer.compute_loss(trainer.model, batch).backward()
    mine = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    other = make(tiny_model_dir, tmp_path, str(tiny_model_dir), bf16=True)
    other.model.train()
    with other.accelerator.autocast():
        other.compute_loss(other.model, batch).backward()
    for name, p in other.model.named_parameters():
        assert (mine[name] - p.grad).norm() <= 0.02 * p.grad.norm(), name
    assert all(module.training for module in trainer.model.modules())
    trainer.create_optimizer()
    trained = {p.data_ptr() for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not trained & {tensor.data_ptr() for tensor in trainer.teacher.weights.average.values()}


def test_half_precision_weights_are_averaged_in_full(tiny_model_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16)
    trainer = make(tiny_model_dir, tmp_path, model=model, teacher_ema_decay=0.999)
    before = {name: tensor.clone() for name, tensor in trainer.teacher.weights.average.items()}
    trainer.train()
    assert {tensor.dtype for tensor in trainer.teacher.weights.average.values()} == {torch.float32}
    assert any(not torch.equal(tensor, before[name]) for name, tensor in trainer.teacher.weights.average.items())


def test_an_ema_teacher_scores_on_policy_batches(tiny_model_dir, tmp_path):
    """Self-distillation as SDFT has it: the student writes under the short prompt, its average reads the long one."""
    trainer = make(
        tiny_model_dir, tmp_path, lora=True, distill_on_policy_fraction=1.0, distill_on_policy_max_new_tokens=4,
        max_steps=40, teacher_ema_decay=0.99,
    )  # fmt: skip
    trainer.train()
    kl = lines(trainer, "on_policy_kl")
    assert sum(kl[-5:]) < 0.9 * sum(kl[:5])


def test_the_command_trains_with_an_ema_teacher_and_the_card_names_it(tiny_model_dir, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps({"text": row}) for row in ("a b", "c d e")))
    result = run(
        LLMTrainingParams(
            model=str(tiny_model_dir), teacher_model="ema", data_path=str(data), epochs=1,
            distill_max_teacher_length=4, project_name=str(tmp_path / "out"), **TEMPLATES,
        )
    )  # fmt: skip
    assert "exponential moving average" in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out" / "teacher_ema.safetensors").exists()
    assert result.metrics["train_kl"] > 0


RANK = """
from teachers.test_ema import lines, make
trainer = make({student!r}, {folder!r}, per_device_train_batch_size={batch})
trainer.train()
result = lines(trainer, "loss", "kl") + [float(t.double().sum()) for t in trainer.teacher.weights.average.values()]
"""


def test_two_processes_have_the_ema_of_one(tiny_model_dir, tmp_path):
    one, two = (
        run_in(n, RANK.format(student=str(tiny_model_dir), folder=str(tmp_path / "out"), batch=4 // n), tmp_path)
        for n in (1, 2)
    )
    assert two == pytest.approx(one, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_store": "somewhere"}, "teacher_store keeps the targets of a teacher that stays as it is"),
        ({"cross_tokenizer": True}, "whose tokenizer is the student's"),
        ({"teacher_dtype": "bfloat16"}, "teacher_dtype is 'bfloat16', but teacher_model is 'ema'"),
        ({"teacher_ema_decay": 1.1}, "expected a number from 0 to 1"),
    ],
)
def test_ema_settings_that_cannot_be_combined_are_refused(settings, message):
    with pytest.raises(ParamsError, match=message):
        LLMTrainingParams(model="x", teacher_model="ema", data_path="x.json", **settings).validate()


def test_sharded_weights_and_a_list_of_teachers_are_refused(tiny_model_dir, tmp_path):
    trainer = make(tiny_model_dir, tmp_path)
    sharding = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=True, state=None)
    with pytest.raises(TeacherError, match=r"'ema' cannot be used if weights are sharded.*train with DDP"):
        check_sharding(sharding, trainer.teacher)
    listed = [{"model": name, "template": "g {input}"} for name in ("ema", str(tiny_model_dir))]
    with pytest.raises(ParamsError, match="teacher_config cannot list 'ema'"):
        make(tiny_model_dir, tmp_path, None, teacher_config=listed, teacher_prompt_template="{input}")
