"""The guide's subclassing interface really works."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import DistillationSFTConfig, PromptDistillationTrainer
from trl_distill.config.devices import accelerator
from trl_distill.errors import ParamsError, TeacherError

pytestmark = pytest.mark.usefixtures("device")

PAIRS = {"prompt": ["a b", "c", "d e f", "g"], "completion": [" c d", " e f g a", " b", " d c b"]}


def trainer_of(trainer_class, student, teacher, folder, **settings):
    config = DistillationSFTConfig(
        output_dir=str(folder), per_device_train_batch_size=2, max_steps=4, learning_rate=1e-3, bf16=False,
        use_cpu=accelerator() is None, report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, dataloader_pin_memory=False,
        **{"use_distillation": True, "teacher_model": str(teacher), "teacher_prompt_template": "g {input}", **settings},
    )  # fmt: skip
    return trainer_class(
        AutoModelForCausalLM.from_pretrained(student), config, train_dataset=Dataset.from_dict(PAIRS),
        processing_class=AutoTokenizer.from_pretrained(student),
    )  # fmt: skip


class GuideLoss(PromptDistillationTrainer):
    """The guide's shape: no keyword but model and inputs, and the usual loss from its parts."""

    def compute_loss(self, model, inputs):
        with torch.no_grad():
            teacher = self.teacher_model(**self.prepare_sequences(inputs, teacher=True))
        student = model(**self.prepare_sequences(inputs))
        mine = self.completion_logits(student.logits, inputs)
        theirs = self.completion_logits(teacher.logits, inputs, teacher=True)
        kl = self.compute_kl_loss(mine, theirs, temperature=self.config.distill_temperature)
        ce = torch.nn.functional.cross_entropy(mine, self.completion_targets(inputs))
        return self.config.distill_alpha * kl + (1 - self.config.distill_alpha) * ce


def test_distillation_and_task_loss_add_up_to_the_trainers_loss(tiny_model_dir, tiny_teacher_dir, tmp_path):
    own = trainer_of(PromptDistillationTrainer, tiny_model_dir, tiny_teacher_dir, tmp_path)
    parts = trainer_of(GuideLoss, tiny_model_dir, tiny_teacher_dir, tmp_path)
    batch = next(iter(own.get_train_dataloader()))
    torch.testing.assert_close(parts.compute_loss(parts.model, batch), own.compute_loss(own.model, batch))


def test_a_compute_loss_without_num_items_is_averaged_over_accumulation(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = trainer_of(GuideLoss, tiny_model_dir, tiny_teacher_dir, tmp_path, gradient_accumulation_steps=2)
    batches = list(trainer.get_train_dataloader())
    with torch.no_grad():
        expected = sum(float(trainer.compute_loss(trainer.model, b)) for b in batches) / len(batches)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_prompt_trainer_has_the_attributes_and_methods_of_the_guide(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = trainer_of(PromptDistillationTrainer, tiny_model_dir, tiny_teacher_dir, tmp_path)
    assert trainer.config.distill_temperature == 3.0
    assert not trainer.teacher_model.training
    batch = next(iter(trainer.get_train_dataloader()))
    inputs = trainer.prepare_teacher_inputs(batch)
    assert (inputs["attention_mask"][:, -1] == 1).all()
    written = trainer.generate_teacher_outputs(batch)
    width = inputs["input_ids"].shape[1]
    assert torch.equal(written[:, :width], inputs["input_ids"])
    assert width < written.shape[1] <= width + 512


def test_logits_of_different_tokens_are_refused(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = trainer_of(PromptDistillationTrainer, tiny_model_dir, tiny_teacher_dir, tmp_path)
    with pytest.raises(ValueError, match="completion_logits"):
        trainer.compute_kl_loss(torch.zeros(3, 8), torch.zeros(4, 8), 2.0)


class Online(PromptDistillationTrainer):
    """Writes anew for every batch and remembers how often."""

    written = 0

    def generate_teacher_outputs(self, batch):
        type(self).written += 1
        return self.teacher_model.generate(
            **self.prepare_teacher_inputs(batch), max_new_tokens=3, do_sample=True, pad_token_id=0
        )


def test_overriding_generate_teacher_outputs_writes_completions_for_every_batch(
    tiny_model_dir, tiny_teacher_dir, tmp_path
):
    trainer = trainer_of(Online, tiny_model_dir, tiny_teacher_dir, tmp_path, gradient_accumulation_steps=2)
    Online.written = 0
    trainer.train()
    assert Online.written == 8
    assert trainer.online
    assert all(entry["ce"] > 0 for entry in trainer.state.log_history if "ce" in entry)


def test_a_student_of_fresh_completions_gets_its_teachers_stop_tokens(tiny_model_dir, chat_model_dir, tmp_path):
    trainer = trainer_of(Online, tiny_model_dir, chat_model_dir, tmp_path)
    assert trainer.model.generation_config.eos_token_id == trainer.teacher.stop_ids
    assert len(trainer.teacher.stop_ids) == 2


class OnlineBeyond(PromptDistillationTrainer):
    """Writes a token that the student does not have."""

    def generate_teacher_outputs(self, batch):
        prompts = self.prepare_teacher_inputs(batch)["input_ids"]
        return torch.cat([prompts, torch.full_like(prompts[:, :1], self.vocabulary)], dim=1)


def test_fresh_tokens_that_the_student_does_not_have_are_refused(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = trainer_of(OnlineBeyond, tiny_model_dir, tiny_teacher_dir, tmp_path)
    with pytest.raises(TeacherError, match="wrote token 286, but teacher and student share"):
        trainer.train()


def test_prompt_trainer_refuses_use_distillation_false(tiny_model_dir, tiny_teacher_dir, tmp_path):
    with pytest.raises(ParamsError, match="for distillation only"):
        trainer_of(
            PromptDistillationTrainer, tiny_model_dir, tiny_teacher_dir, tmp_path,
            use_distillation=False, teacher_model=None,
        )  # fmt: skip
