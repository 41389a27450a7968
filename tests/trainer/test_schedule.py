"""Alpha and temperature that move over training, each step by its formula."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams
from trl_distill.config.devices import accelerator
from trl_distill.errors import ParamsError

pytestmark = pytest.mark.usefixtures("device")

PAIRS = {"prompt": ["a b", "c", "d e f", "g"], "completion": [" c d", " e f g a", " b", " d c b"]}
STEPS = 5


def make(student, teacher, folder, data=PAIRS, **settings):
    config = DistillationSFTConfig(
        output_dir=str(folder), use_cpu=accelerator() is None, bf16=False, report_to="none", logging_steps=1,
        disable_tqdm=True,
        gradient_checkpointing=False, dataloader_pin_memory=False, use_distillation=True,
        teacher_model=None if teacher is None else str(teacher),
        **{"per_device_train_batch_size": 2, "max_steps": STEPS, "learning_rate": 1e-3, "save_strategy": "no",
           "gradient_accumulation_steps": 2, "teacher_prompt_template": "g {input}", **settings},
    )  # fmt: skip
    return DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(student), config, train_dataset=Dataset.from_dict(data),
        eval_dataset=Dataset.from_dict(data), processing_class=AutoTokenizer.from_pretrained(student),
    )  # fmt: skip


def lines(trainer):
    return [line for line in trainer.state.log_history if "loss" in line]


def way(schedule, start, end, step):
    """Return the value of a step, written another way than the code has it."""
    done = step / STEPS
    weight = 1 - done if schedule == "linear" else math.cos(math.pi * done / 2) ** 2
    return weight * start + (1 - weight) * end


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_each_step_has_the_alpha_and_temperature_of_the_formula(schedule, tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make(
        tiny_model_dir, tiny_teacher_dir, tmp_path, distill_alpha=0.9, distill_alpha_end=0.2, distill_temperature=4.0,
        distill_temperature_end=1.0, distill_schedule=schedule,
    )  # fmt: skip
    trainer.train()
    assert len(lines(trainer)) == STEPS
    for step, line in enumerate(lines(trainer)):
        alpha, temperature = way(schedule, 0.9, 0.2, step), way(schedule, 4.0, 1.0, step)
        assert line["distill_alpha"] == pytest.approx(alpha, rel=1e-12)
        assert line["distill_temperature"] == pytest.approx(temperature, rel=1e-12)
        assert line["loss"] == pytest.approx(alpha * temperature**2 * line["kl"] + (1 - alpha) * line["ce"], rel=1e-4)


@pytest.mark.cpu
def test_evaluation_measures_with_the_end_values_at_any_time(tiny_model_dir, tiny_teacher_dir, tmp_path):
    moving = make(
        tiny_model_dir,
        tiny_teacher_dir,
        tmp_path,
        distill_alpha=0.9,
        distill_alpha_end=0.2,
        distill_temperature_end=1.5,
    )
    there = make(tiny_model_dir, tiny_teacher_dir, tmp_path, distill_alpha=0.2, distill_temperature=1.5)
    before, expected = moving.evaluate(), there.evaluate()
    for name in ("eval_loss", "eval_kl", "eval_ce"):
        assert before[name] == expected[name]
    moving.train()
    figures = moving.evaluate()
    loss = 0.2 * 1.5**2 * figures["eval_kl"] + 0.8 * figures["eval_ce"]
    assert figures["eval_loss"] == pytest.approx(loss, rel=1e-5)


def test_an_evaluation_between_steps_does_not_move_the_schedule(tiny_model_dir, tiny_teacher_dir, tmp_path):
    found = []
    for more in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, distill_temperature_end=1.0, **more)
        trainer.train()
        found.append([(line["loss"], line["distill_temperature"]) for line in lines(trainer)])
    assert found[0] == found[1]


@pytest.mark.cpu
def test_without_an_end_nothing_moves_and_nothing_is_logged(tiny_model_dir, tiny_teacher_dir, tmp_path):
    still = make(tiny_model_dir, tiny_teacher_dir, tmp_path)
    still.train()
    assert not any(name.startswith("distill_") for line in lines(still) for name in line)
    same = make(tiny_model_dir, tiny_teacher_dir, tmp_path, distill_temperature_end=3.0)
    same.train()
    assert [line["distill_temperature"] for line in lines(same)] == [3.0] * STEPS
    assert all(torch.equal(t, same.model.state_dict()[name]) for name, t in still.model.state_dict().items())


def test_alpha_may_start_at_zero(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, distill_alpha=0.0, distill_alpha_end=1.0)
    trainer.train()
    assert ["kl" in line for line in lines(trainer)] == [False, *[True] * (STEPS - 1)]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(9 * trainer.evaluate()["eval_kl"], rel=1e-5)


@pytest.mark.cpu
def test_a_resumed_run_continues_its_schedule(tiny_model_dir, tiny_teacher_dir, tmp_path):
    settings = {"distill_temperature_end": 1.0, "distill_alpha_end": 0.1, "save_strategy": "steps", "save_steps": 1}
    whole = make(tiny_model_dir, tiny_teacher_dir, tmp_path, **settings)
    whole.train()
    resumed = make(tiny_model_dir, tiny_teacher_dir, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    names = ("loss", "distill_alpha", "distill_temperature")
    assert [[line[n] for n in names] for line in lines(whole)] == [[line[n] for n in names] for line in lines(resumed)]
    assert all(torch.equal(t, resumed.model.state_dict()[name]) for name, t in whole.model.state_dict().items())


@pytest.mark.parametrize("kind", ["topk", "sample"])
def test_stored_targets_at_single_temperatures_are_refused(kind, tiny_model_dir, tiny_teacher_dir, tmp_path):
    message = f"a store of the kind '{kind}' has targets at single temperatures"
    store = {"teacher_store": str(tmp_path / "store"), "teacher_store_kind": kind}
    with pytest.raises(ParamsError, match=message):
        make(tiny_model_dir, tiny_teacher_dir, tmp_path, distill_temperature_end=1.0, **store)
    make(tiny_model_dir, tiny_teacher_dir, tmp_path, distill_alpha_end=0.1, **store).train()  # alpha may move
    with pytest.raises(ParamsError, match=message):
        make(tiny_model_dir, None, tmp_path, distill_temperature_end=1.0, teacher_store=store["teacher_store"])


def test_stored_hidden_states_take_any_temperature(tiny_model_dir, tiny_teacher_dir, tmp_path):
    store = {"teacher_store": str(tmp_path / "store"), "teacher_store_kind": "hidden"}
    found = []
    for more in (store, {}):
        trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, distill_temperature_end=1.0, **more)
        trainer.train()
        found.append([line["loss"] for line in lines(trainer)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_schedule_settings_that_contradict_each_other_are_refused(tiny_model_dir, tmp_path):
    given = {"model": "x", "teacher_model": "y", "data_path": "x.json"}
    with pytest.raises(ParamsError, match="distill_schedule is 'cosine', but neither alpha nor temperature changes"):
        LLMTrainingParams(**given, distill_schedule="cosine").validate()
    with pytest.raises(ParamsError, match=r"distill_temperature_end is 0\.0; expected a number above 0"):
        LLMTrainingParams(**given, distill_temperature_end=0)
    data = {**PAIRS, "teacher": ["someone"] * 4}
    with pytest.raises(ParamsError, match=r"distill_alpha_end is 0\.5, but teacher_model 'someone' gives text only"):
        make(tiny_model_dir, None, tmp_path, data, distill_alpha_end=0.5, strict=True)
    trainer = make(tiny_model_dir, None, tmp_path, data, distill_alpha_end=0.5)
    assert (trainer.setup.schedule.start.alpha, trainer.setup.schedule.end.alpha) == (0, 0)
