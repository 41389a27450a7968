"""`distill_online`: the teacher writes the completions of every training batch anew, under its prompt."""

from __future__ import annotations

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, run
from trl_distill.config.devices import accelerator

pytestmark = pytest.mark.usefixtures("device")

PROMPTS = {"prompt": ["a b", "c", "d e f", "g"]}
PAIRS = {**PROMPTS, "completion": [" c d", " e f g a", " b", " d c b"]}


def make(student, teacher, folder, data=PAIRS, **settings):
    config = DistillationSFTConfig(
        output_dir=str(folder), use_cpu=accelerator() is None, bf16=False, report_to="none", logging_steps=1,
        disable_tqdm=True,
        gradient_checkpointing=False, dataloader_pin_memory=False, use_distillation=True, teacher_model=str(teacher),
        **{"per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 1e-3, "save_strategy": "no",
           "teacher_prompt_template": "g f e {input} d", "distill_max_teacher_length": 5, **settings},
    )  # fmt: skip
    return DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(student), config, train_dataset=Dataset.from_dict(data),
        processing_class=AutoTokenizer.from_pretrained(student),
    )  # fmt: skip


def losses(trainer):
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_greedy_online_completions_are_those_written_before_training(
    tiny_model_dir, tiny_teacher_dir, tmp_path, capsys
):
    online = make(tiny_model_dir, tiny_teacher_dir, tmp_path / "on", distill_online=True)
    assert "every epoch learns the same completions, as with completions='teacher'" in capsys.readouterr().out
    offline = make(tiny_model_dir, tiny_teacher_dir, tmp_path / "off", completions="teacher")
    assert "every epoch learns the same" not in capsys.readouterr().out
    assert losses(online) == pytest.approx(losses(offline), rel=1e-5)


def test_sampled_online_completions_differ_each_time(tiny_model_dir, tiny_teacher_dir, tmp_path, capsys):
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, distill_online=True, teacher_do_sample=True)
    assert "every epoch learns the same" not in capsys.readouterr().out
    seen, given = [], [row["completion"] for row in trainer.train_dataset]
    for step in (0, 1):
        trainer.state.global_step = step
        (batch,), items = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
        rows = [row[row != -100].tolist() for row in batch["labels"]]
        assert int(items) == sum(map(len, rows))
        seen.append(sorted(rows))
    assert seen[0] != seen[1]
    assert not set(map(tuple, given)) & set(map(tuple, seen[0]))


@pytest.mark.parametrize(("batch", "accumulation"), [(2, 2), (1, 4)])
def test_online_loss_does_not_depend_on_batch_and_accumulation(
    batch, accumulation, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    one, other = (
        make(tiny_model_dir, tiny_teacher_dir, tmp_path, distill_online=True, per_device_train_batch_size=size,
             gradient_accumulation_steps=steps)
        for size, steps in ((4, 1), (batch, accumulation))
    )  # fmt: skip
    assert losses(other) == pytest.approx(losses(one), rel=1e-5)


@pytest.mark.cpu
def test_a_resumed_online_run_samples_as_if_uninterrupted(tiny_model_dir, tiny_teacher_dir, tmp_path):
    settings = {"distill_online": True, "teacher_do_sample": True, "save_strategy": "steps", "save_steps": 1}
    whole = make(tiny_model_dir, tiny_teacher_dir, tmp_path, **settings)
    expected = losses(whole)
    resumed = make(tiny_model_dir, tiny_teacher_dir, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [line["loss"] for line in resumed.state.log_history if "loss" in line] == expected


def test_on_policy_batches_are_the_students_and_the_rest_the_teachers(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make(
        tiny_model_dir, tiny_teacher_dir, tmp_path, PROMPTS, distill_online=True, distill_on_policy_fraction=0.5,
        distill_on_policy_temperature=0.0, max_steps=8,
    )  # fmt: skip
    written = {tuple(row["completion"]) for row in trainer.train_dataset}
    for step in range(8):
        trainer.state.global_step = step
        (batch,), _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
        rows = {tuple(row[row != -100].tolist()) for row in batch["labels"]}
        assert (rows == written) != batch.get("on_policy", False)
    losses(trainer)
    assert {line["on_policy"] for line in trainer.state.log_history if "on_policy" in line} == {0.0, 1.0}


def test_an_online_student_gets_its_teachers_stop_tokens(tiny_model_dir, chat_model_dir, tmp_path):
    trainer = make(tiny_model_dir, chat_model_dir, tmp_path, distill_online=True)
    assert trainer.model.generation_config.eos_token_id == trainer.teacher.stop_ids
    assert len(trainer.teacher.stop_ids) == 2


def test_a_run_combines_online_on_policy_and_a_schedule(tiny_model_dir, tiny_teacher_dir, tmp_path):
    result = run(
        LLMTrainingParams(
            model=str(tiny_model_dir), teacher_model=str(tiny_teacher_dir), data_path=Dataset.from_dict(PAIRS),
            text_column="prompt", project_name=str(tmp_path / "out"), max_steps=4, batch_size=2, logging_steps=1,
            gradient_accumulation=1, distill_online=True, teacher_do_sample=True, distill_on_policy_fraction=0.5,
            distill_on_policy_max_new_tokens=4, distill_max_teacher_length=4, distill_temperature_end=1.0,
            distill_schedule="cosine",
        )
    )  # fmt: skip
    assert 0 < result.metrics["train_on_policy"] < 1
    assert result.metrics["train_on_policy_kl"] > 0
