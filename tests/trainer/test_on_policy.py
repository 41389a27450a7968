"""Batches that the student writes under its own prompt and the teacher scores under its own."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import make_model_that_writes
from datasets import Dataset
from peft import LoraConfig
from ranks import run_in
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams
from trl_distill.config.devices import accelerator
from trl_distill.errors import DataError, ParamsError, TeacherError
from trl_distill.losses import distillation_loss_from_logits
from trl_distill.trainer.on_policy import BatchRandom

pytestmark = pytest.mark.usefixtures("device")

PAIRS = {
    "prompt": ["a b", "c", "d e f", "g", "b a", "c d", "e", "f g"],
    "completion": [" c d", " e f g a", " b", " d c b", " e", " f", " g a b c", " d"],
}
TEMPLATES = {"teacher_prompt_template": "g f e {input} d", "student_prompt_template": "{input}"}


def make(student, teacher, folder, data=PAIRS, *, model=None, teacher_model=None, peft=None, **settings):
    """Return a trainer all of whose batches are the student's, six tokens at most."""
    config = DistillationSFTConfig(
        output_dir=str(folder), use_cpu=accelerator() is None, bf16=False, report_to="none", logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False, use_distillation=True,
        teacher_model=None if teacher is None else str(teacher),
        **{"per_device_train_batch_size": 4, "max_steps": 3, "learning_rate": 1e-3, "save_strategy": "no",
           "gradient_checkpointing": False, "distill_on_policy_fraction": 1.0,
           "distill_on_policy_max_new_tokens": 6, **TEMPLATES, **settings},
    )  # fmt: skip
    return DistillationSFTTrainer(
        model or AutoModelForCausalLM.from_pretrained(student), config, train_dataset=Dataset.from_dict(data),
        eval_dataset=Dataset.from_dict(data), processing_class=AutoTokenizer.from_pretrained(student),
        teacher_model=teacher_model, peft_config=copy.deepcopy(peft),
    )  # fmt: skip


def lines(trainer, *names):
    return [line[name] for line in trainer.state.log_history if "loss" in line for name in names]


def written(trainer, count=1):
    """Return the batches of the optimizer step that comes next."""
    batches, _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), count, trainer.args.device)
    return batches


def by_hand(batch, student, teacher, **settings):
    """Return the mean loss of a batch from full logits, each row read alone."""
    rows = []
    for b in range(len(batch["input_ids"])):
        sides = []
        for model, prefix in ((student, ""), (teacher, "teacher_")):
            length = int(batch[f"{prefix}attention_mask"][b].sum())
            labels = batch[f"{prefix}labels"][b, 1:length]
            logits = model(batch[f"{prefix}input_ids"][b : b + 1, :length]).logits[0, :-1]
            sides.append((logits[labels != -100], labels[labels != -100]))
        assert torch.equal(sides[0][1], sides[1][1])
        rows.append((sides[0][0], sides[1][0], sides[0][1]))
    parts = [torch.cat(part) for part in zip(*rows, strict=True)]
    return distillation_loss_from_logits(*parts, **settings).loss / len(parts[2])


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_the_loss_is_the_divergence_on_what_the_student_wrote(kind, tiny_model_dir, tiny_teacher_dir, tmp_path):
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        for folder in (tiny_model_dir, tiny_teacher_dir)
    )
    trainer = make(
        tiny_model_dir, None, tmp_path, model=copy.deepcopy(student), teacher_model=teacher, distill_divergence=kind,
        distill_alpha=0.3, distill_temperature=2.0,
    )  # fmt: skip
    (batch,) = written(trainer)
    loss = trainer.compute_loss(trainer.model, batch)
    student, teacher = (model.to(loss.device) for model in (student, teacher))
    expected = by_hand(batch, student, teacher, alpha=1.0, temperature=2.0, divergence=kind)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0.0)
    loss.backward()
    expected.backward()
    for (name, mine), other in zip(trainer.model.named_parameters(), student.parameters(), strict=True):
        assert (mine.grad - other.grad).norm() <= 1e-9 * other.grad.norm(), name


def test_the_student_generates_under_its_own_prompt_and_the_teacher_reads_its_own(
    tiny_model_dir, tiny_teacher_dir, tmp_path
):
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, distill_on_policy_temperature=0.0)
    (batch,) = written(trainer)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model_dir), trainer.processing_class
    known = list(range(len(tokenizer), model.config.vocab_size)) or None
    for b in range(4):
        own, theirs = (
            batch[f"{prefix}input_ids"][b][batch[f"{prefix}labels"][b] == -100] for prefix in ("", "teacher_")
        )
        mine = tokenizer.decode(own, skip_special_tokens=True)
        assert tokenizer.decode(theirs, skip_special_tokens=True) == f"g f e {mine} d"
        prompt = tokenizer(mine, return_tensors="pt").input_ids
        alone = model.generate(prompt, max_new_tokens=6, do_sample=False, suppress_tokens=known, pad_token_id=0)
        completion = batch["labels"][b][batch["labels"][b] != -100]
        assert completion.tolist() == alone[0, prompt.shape[1] :].tolist()


def test_a_completion_cut_by_the_student_is_taught_no_end(tiny_teacher_dir, tmp_path):
    endless = make_model_that_writes(tmp_path / "endless", 20)
    (batch,) = written(make(endless, tiny_teacher_dir, tmp_path / "run", distill_on_policy_temperature=0.0))
    assert (batch["labels"] != -100).sum(1).tolist() == [6, 6, 6, 6]
    assert set(batch["labels"][batch["labels"] != -100].tolist()) == {20}
    (batch,) = written(
        make(endless, tiny_teacher_dir, tmp_path / "short", max_length=8, distill_on_policy_max_new_tokens=50)
    )
    assert batch["attention_mask"].sum(1).max() <= 8


def test_on_policy_training_lowers_the_divergence(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make(
        tiny_model_dir, tiny_teacher_dir, tmp_path, max_steps=60, learning_rate=1e-2, distill_divergence="reverse_kl"
    )
    before = trainer.evaluate()["eval_kl"]
    trainer.train()
    assert trainer.evaluate()["eval_kl"] < 0.8 * before
    kl = lines(trainer, "on_policy_kl")
    assert sum(kl[-5:]) < 0.5 * sum(kl[:5])


@pytest.mark.cpu
def test_fraction_zero_leaves_batches_random_state_and_weights_as_without_it(
    tiny_model_dir, tiny_teacher_dir, tmp_path
):
    """The batches, the random state and the weights are those of a run that knows nothing of on-policy settings."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, attention_dropout=0.3)
    found = []
    for settings in (
        {"distill_on_policy_max_new_tokens": None},
        {"distill_on_policy_temperature": 0.3, "distill_on_policy_max_new_tokens": 2},
    ):
        trainer = make(
            tiny_model_dir, tiny_teacher_dir, tmp_path, model=copy.deepcopy(model), distill_on_policy_fraction=0.0,
            **settings,
        )  # fmt: skip
        trainer.train()
        assert "on_policy" not in trainer.state.log_history[0]
        found.append(trainer.model.state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_on_policy_generation_restores_random_state_and_training_mode(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path)
    trainer.model.train()
    loader = iter(trainer.get_train_dataloader())
    batch = next(loader)
    before, config = torch.random.get_rng_state(), trainer.model.generation_config
    written = trainer.distiller.completions.by_student(batch, BatchRandom(1, 2, 3))
    assert not torch.equal(written["labels"], batch["labels"])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert trainer.model.generation_config is config
    assert all(module.training for module in trainer.model.modules())


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (2, 4)])
def test_on_policy_loss_does_not_depend_on_batch_and_accumulation(
    batch, accumulation, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    found = []
    for size, steps in ((8, 1), (batch, accumulation)):
        trainer = make(
            tiny_model_dir, tiny_teacher_dir, tmp_path, per_device_train_batch_size=size,
            gradient_accumulation_steps=steps, distill_on_policy_temperature=0.0,
        )  # fmt: skip
        trainer.train()
        found.append(lines(trainer, "loss", "on_policy_kl"))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_on_policy_fraction_is_of_all_batches_and_equal_in_every_process(tmp_path):
    draws = [BatchRandom(42, step, place).is_on_policy(0.3) for step in range(500) for place in range(4)]
    assert sum(draws) / len(draws) == pytest.approx(0.3, abs=0.03)
    assert draws != [BatchRandom(43, step, place).is_on_policy(0.3) for step in range(500) for place in range(4)]
    code = (
        "from trl_distill.trainer.on_policy import BatchRandom\n"
        "result = [BatchRandom(42, s, p).is_on_policy(0.3) for s in range(500) for p in range(4)]\n"
    )
    assert run_in(1, code, tmp_path) == draws
    assert BatchRandom(42, 1, 0).generation_seed(0) != BatchRandom(42, 1, 0).generation_seed(1)


@pytest.mark.cpu
def test_on_policy_batches_are_logged_apart(tiny_model_dir, tiny_teacher_dir, tmp_path):
    all_own = make(tiny_model_dir, tiny_teacher_dir, tmp_path, distill_temperature=2.0)
    all_own.train()
    for line in all_own.state.log_history[:3]:
        loss, kl, own = (line[name] for name in ("loss", "kl", "on_policy_kl"))
        assert line["on_policy"] == 1
        assert kl == own
        assert loss == pytest.approx(4 * kl, rel=1e-4)
    mixed = make(
        tiny_model_dir, tiny_teacher_dir, tmp_path, distill_on_policy_fraction=0.5, distill_alpha=0.0, max_steps=12,
        per_device_train_batch_size=2, num_train_epochs=1,
    )  # fmt: skip
    mixed.train()
    shares = [line["on_policy"] for line in mixed.state.log_history if "on_policy" in line]
    assert set(shares) == {0.0, 1.0}
    assert shares == [float(BatchRandom(42, step, 0).is_on_policy(0.5)) for step in range(12)]
    for line in mixed.state.log_history[:12]:
        assert ("kl" in line) == ("on_policy_kl" in line) == (line["on_policy"] == 1)  # alpha is 0 on the others
        expected = 9 * line["kl"] if line["on_policy"] else line["ce"]
        assert line["loss"] == pytest.approx(expected, rel=1e-4)


def test_on_policy_evaluation_uses_the_datas_completions(tiny_model_dir, tiny_teacher_dir, tmp_path):
    figures = [
        make(tiny_model_dir, tiny_teacher_dir, tmp_path, distill_on_policy_fraction=share).evaluate()
        for share in (0.0, 1.0)
    ]
    for name in ("eval_loss", "eval_kl", "eval_ce", "eval_num_tokens"):
        assert figures[0][name] == figures[1][name]
    assert not any("on_policy" in name for name in figures[1])


@pytest.mark.cpu
def test_a_resumed_on_policy_run_samples_as_if_uninterrupted(tiny_model_dir, tiny_teacher_dir, tmp_path):
    settings = {
        "distill_on_policy_fraction": 0.5, "max_steps": 6, "save_strategy": "steps", "save_steps": 1,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
    }  # fmt: skip
    whole = make(tiny_model_dir, tiny_teacher_dir, tmp_path, **settings)
    whole.train()
    resumed = make(tiny_model_dir, tiny_teacher_dir, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert lines(resumed, "loss", "on_policy") == lines(whole, "loss", "on_policy")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


RANK = """
from trainer.test_on_policy import lines, make
trainer = make({student!r}, {teacher!r}, {folder!r}, per_device_train_batch_size={batch},
               distill_on_policy_temperature=0.0, gradient_accumulation_steps=2, distill_on_policy_fraction=0.7)
trainer.train()
result = lines(trainer, "loss", "kl", "on_policy")
"""


def test_two_on_policy_processes_have_the_losses_of_one(tiny_model_dir, tiny_teacher_dir, tmp_path):
    names = {"student": str(tiny_model_dir), "teacher": str(tiny_teacher_dir), "folder": str(tmp_path / "out")}
    one, two = (run_in(n, RANK.format(**names, batch=4 // n), tmp_path) for n in (1, 2))
    assert two == pytest.approx(one, rel=1e-5)
    assert 0 < sum(one[2::3]) < 3  # batches of both kinds


def test_an_adapter_learns_from_its_own_completions(tiny_model_dir, tiny_teacher_dir, tmp_path):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = make(
        tiny_model_dir, tiny_teacher_dir, tmp_path, peft=lora, gradient_checkpointing=True, max_steps=30,
        learning_rate=1e-2,
    )  # fmt: skip
    config = trainer.base_student.generation_config
    trainer.train()
    assert trainer.base_student.generation_config is config
    assert trainer.model.is_gradient_checkpointing
    kl = lines(trainer, "on_policy_kl")
    assert sum(kl[-5:]) < 0.9 * sum(kl[:5])


def test_no_token_is_written_that_the_teacher_does_not_have(tiny_model_dir, tiny_teacher_dir, tmp_path):
    """The teacher here has fewer rows than the student, whose likeliest token is one of the others."""
    rows = AutoModelForCausalLM.from_pretrained(tiny_model_dir).config.vocab_size
    wide = make_model_that_writes(tmp_path / "wide", 20)
    model = AutoModelForCausalLM.from_pretrained(wide)
    model.resize_token_embeddings(rows + 8)
    with torch.no_grad():
        model.lm_head.weight[-1] = 5.0
    (batch,) = written(make(wide, tiny_model_dir, tmp_path / "run", model=model, distill_on_policy_temperature=0.0))
    assert batch["labels"].max() < rows


def test_rows_of_plain_text_are_prompts_for_on_policy_batches(tiny_model_dir, tiny_teacher_dir, tmp_path):
    settings = {"teacher_prompt_template": "{input}", "distill_max_teacher_length": 3}
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, {"text": ["a b", "c d e"]}, **settings)
    assert all(row["student_prompt"] for row in trainer.train_dataset)
    with pytest.raises(DataError, match="row 1 has none: its text is learned as a whole"):
        make(tiny_model_dir, tiny_teacher_dir, tmp_path, {"text": ["a b"]}, completions="data", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_store": "somewhere"}, "cannot be used with teacher_store"),
        ({"cross_tokenizer": True}, "cannot be used with cross_tokenizer"),
        ({"teacher_model": None, "teacher_config": "teachers.yaml"}, "cannot be used with teacher_config"),
        ({"packing": True}, "cannot be used with packing"),
        ({"assistant_only_loss": True}, "cannot be used with assistant_only_loss"),
        ({"padding_free": True}, "cannot be used with padding_free"),
        ({"teacher_model": "http://host:8000/v1#m"}, "a server, which is only asked before training"),
        ({"teacher_model": "openai:gpt-4o-mini"}, "a server, which is only asked before training"),
        ({"distill_on_policy_fraction": 1.5}, "expected a number from 0 to 1"),
    ],
)
@pytest.mark.parametrize("fresh", [{"distill_on_policy_fraction": 0.5}, {"distill_online": True}])
def test_what_cannot_score_fresh_completions_is_refused(fresh, settings, message):
    given = {"model": "x", "teacher_model": "y", "data_path": "x.json", **fresh, **settings}
    with pytest.raises(ParamsError, match=message):
        LLMTrainingParams(**given).validate()


def test_on_policy_refuses_a_text_teacher_before_it_is_asked(tiny_model_dir, tmp_path):
    data = {**PAIRS, "teacher": ["someone"] * 8}
    with pytest.raises(TeacherError, match=r"distill_on_policy_fraction 1 cannot be used .*asked for text before"):
        make(tiny_model_dir, None, tmp_path, data)
