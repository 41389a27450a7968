"""The card that the trainer writes: TRL's, with the teacher, both prompts, alpha and T, and the Hub's graph."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from forms import settings
from huggingface_hub import ModelCard
from peft import LoraConfig
from small_runs import TEMPLATES, make
from transformers import AutoModelForCausalLM

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer
from trl_distill.errors import ParamsError
from trl_distill.trainer.card import base_model

ROWS = Dataset.from_list([{"prompt": "a b", "completion": " c d"}] * 2)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_saved_model_has_a_card_with_teacher_prompts_alpha_and_temperature(
    adapter, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.config._name_or_path = "desk/small"  # as one of the Hub is called
    trainer = make(
        tiny_model_dir, tiny_teacher_dir, tmp_path / "out", model=model, peft=LoraConfig() if adapter else None,
        distill_alpha=0.8, distill_alpha_end=0.2, distill_temperature=2.0,
    )  # fmt: skip
    trainer.save_model(str(tmp_path / "saved"))
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert card.data.library_name == ("peft" if adapter else "transformers")
    assert card.data.base_model == "desk/small"
    assert card.data.model_name == "saved"
    for part in (f"`{tiny_teacher_dir.name}`", "| distill_alpha | 0.8 to 0.2 |", "| distill_temperature | 2 |"):
        assert part in card.text
    for template in TEMPLATES.values():
        assert f"```text\n{template}\n```" in card.text
    assert 'model="saved"' in card.text
    assert str(tmp_path.parent) not in card.content
    assert (tmp_path / "saved" / "training_args.bin").is_file()  # as SFTTrainer saves a model
    assert trainer.args.output_dir == str(tmp_path / "out")


def test_the_card_of_a_local_model_names_no_base(tiny_model_dir, tmp_path):
    trainer = make(tiny_model_dir, "ema", tmp_path)
    trainer.create_model_card(dataset_name="desk/messages")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model is None
    assert card.data.datasets == "desk/messages"
    assert "None" not in card.text
    assert "the exponential moving average of" in card.text


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("place", ["constructor", "configuration"])
def test_a_teacher_is_named_and_not_saved_wherever_it_was_given(
    place, loaded, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    teacher = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir) if loaded else str(tiny_teacher_dir)
    given = {"configuration": None, "constructor": None, place: teacher}
    args = DistillationSFTConfig(**settings(tmp_path), use_distillation=True, teacher_model=given["configuration"])
    trainer = DistillationSFTTrainer(
        str(tiny_model_dir), args, train_dataset=ROWS, teacher_model=given["constructor"]
    )  # fmt: skip
    trainer.save_model()
    assert f"Teacher: `{tiny_teacher_dir.name}`" in ModelCard.load(tmp_path / "README.md").text
    saved = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert saved.teacher_model == str(tiny_teacher_dir)


def test_settings_are_checked_against_a_teacher_of_the_constructor(tiny_model_dir, tmp_path):
    args = DistillationSFTConfig(**settings(tmp_path), use_distillation=True, cross_tokenizer=True)
    with pytest.raises(ParamsError, match="cross_tokenizer cannot be used with teacher_model 'openai:gpt-4o', a serv"):
        DistillationSFTTrainer(str(tiny_model_dir), args, train_dataset=ROWS, teacher_model="openai:gpt-4o")


def test_the_base_model_is_that_of_an_earlier_stage(tmp_path):
    assert base_model("desk/small") == "desk/small"
    assert base_model("embedded") is None
    assert base_model(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nbase_model: desk/small\n---\n# A project\n")
    assert base_model(str(tmp_path)) == "desk/small"
    (tmp_path / "README.md").write_text(f"---\nbase_model: {tmp_path}\n---\n# PEFT names the folder\n")
    assert base_model(str(tmp_path)) is None


def test_a_card_does_not_say_where_a_model_was_that_is_gone(tiny_model_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.config._name_or_path = "/home/someone/gone/model"
    folder = tmp_path / "out <b>"
    trainer = make(tiny_model_dir, "ema", folder, model=model)
    trainer.create_model_card()
    card = ModelCard.load(folder / "README.md")
    assert "someone" not in card.content
    assert card.data.base_model is None
    assert "`model` itself" in card.text
    assert "# Model Card for out &lt;b&gt;" in card.text
