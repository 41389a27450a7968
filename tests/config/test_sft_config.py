"""One translation from flat parameters to TRL's configuration, and the same settings as flags under TrlParser."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, TrlParser

from trl_distill.config.devices import accelerator
from trl_distill.config.distillation_arguments import DistillationArguments
from trl_distill.config.sft_config import DistillationSFTConfig, from_params
from trl_distill.config.training_params import LLMTrainingParams
from trl_distill.errors import ParamsError
from trl_distill.runs.api import run
from trl_distill.trainer.trainer import DistillationSFTTrainer

ROWS = Dataset.from_list([{"text": "red cat"}])
CPU = ["--output_dir", "out", "--use_cpu", "--bf16", "False"]


def parsed(*flags):
    return TrlParser(DistillationSFTConfig).parse_args_into_dataclasses([*CPU, *flags])[0]


@pytest.mark.parametrize("flag", ["--use_distillation", "--use-distillation"])
def test_a_trl_script_takes_use_distillation_with_dash_or_underscore(flag):
    assert not parsed().use_distillation
    assert parsed(flag).use_distillation


def test_every_setting_is_a_flag_with_its_default():
    config = parsed()
    for spec in fields(DistillationArguments):
        assert getattr(config, spec.name) == spec.default, spec.name
    config = parsed(
        "--distill-alpha", "0.25", "--teacher_model", "t", "--distill_divergence", "jsd", "--teacher-top-p", "0.5"
    )
    assert (config.distill_alpha, config.teacher_model) == (0.25, "t")
    assert (config.distill_divergence, config.teacher_top_p) == ("jsd", 0.5)


def test_a_value_outside_what_is_accepted_is_refused():
    with pytest.raises(ParamsError, match=r"distill_alpha is 1\.5; expected a number from 0 to 1"):
        parsed("--distill_alpha", "1.5")


def test_inherited_settings_keep_trls_defaults():
    ours, theirs = parsed(), TrlParser(SFTConfig).parse_args_into_dataclasses(CPU)[0]
    for spec in fields(SFTConfig):
        if spec.name not in ("logging_dir",):
            assert getattr(ours, spec.name) == getattr(theirs, spec.name), spec.name


def test_training_params_become_a_trl_config(tmp_path):
    params = LLMTrainingParams(
        model="m", teacher_model="t", project_name=str(tmp_path / "a_2.5-x"), epochs=5, batch_size=2, lr=1e-4,
        warmup_ratio=0.2, gradient_accumulation=3, scheduler="cosine", optimizer="adafactor", weight_decay=0.1,
        max_grad_norm=0.5, seed=7, block_size=99, distill_temperature=2.5, distill_alpha=0.75, eval_steps=3,
        logging_steps=2, save_total_limit=4, max_steps=11, text_column="question",
    )  # fmt: skip
    config = from_params(params)
    assert config.use_distillation
    assert (config.num_train_epochs, config.per_device_train_batch_size) == (5, 2)
    assert (config.learning_rate, config.gradient_accumulation_steps) == (1e-4, 3)
    assert config.get_warmup_steps(100) == 20
    assert (config.lr_scheduler_type, config.optim) == ("cosine", "adafactor")
    assert (config.weight_decay, config.max_grad_norm, config.seed, config.max_length) == (0.1, 0.5, 7, 99)
    assert (config.distill_temperature, config.distill_alpha) == (2.5, 0.75)
    assert (config.eval_steps, config.logging_steps, config.save_total_limit) == (3, 2, 4)
    assert (config.max_steps, config.dataset_text_field) == (11, "question")
    assert config.output_dir == str(tmp_path / "a_2.5-x")


@pytest.mark.parametrize(("ratio", "warm"), [(0.0, 0), (0.001, 1), (0.5, 112), (0.999, 223), (1.0, 223)])
def test_the_warm_up_is_a_share_of_the_steps_all_of_them_included(ratio, warm, tmp_path):
    config = from_params(LLMTrainingParams(model="m", project_name=str(tmp_path), warmup_ratio=ratio))
    assert config.get_warmup_steps(223) == warm


@pytest.mark.parametrize(("trainer", "source"), [("sft", "text"), ("distillation", "teacher")])
def test_plain_text_is_learned_as_a_whole_under_sft_only(trainer, source, tiny_model_dir, tiny_teacher_dir, tmp_path):
    params = LLMTrainingParams(
        model=str(tiny_model_dir), teacher_model=str(tiny_teacher_dir), data_path=ROWS, project_name=str(tmp_path),
        trainer=trainer, use_distillation=True, distill_max_teacher_length=2, dry_run=True,
    )  # fmt: skip
    assert run(params).metrics["preflight_train"]["completions_from"] == {source: 1}


@pytest.mark.parametrize(
    ("name", "field", "value", "hint"),
    [
        ("optimizer", "optim", "adamw_troch", "Did you mean 'adamw_torch'"),
        ("optimizer", "optim", "muon!", "Expected one of adamw_torch, "),
        ("scheduler", "lr_scheduler_type", "linaer", "Did you mean 'linear'"),
    ],
)
def test_a_name_that_transformers_does_not_know_is_refused_with_the_nearest(name, field, value, hint, tmp_path):
    said = f"{value}', which transformers does not know. {hint}"
    with pytest.raises(ParamsError, match=f"^{name} is '{said}"):
        run(LLMTrainingParams(model="embedded", trainer="sft", project_name=str(tmp_path / "a"), data_path=ROWS,
                              **{name: value}))  # fmt: skip
    with pytest.raises(ParamsError, match=f"^{field} is '{said}"):
        DistillationSFTConfig(output_dir=str(tmp_path), **{field: value})


@pytest.mark.parametrize("trainer", ["sft", "distillation"])
@pytest.mark.parametrize("name", ["lomo", "grokadamw", "adamw_torch_xla"])
def test_an_optimizer_whose_package_is_missing_is_refused_before_the_teacher_writes(name, trainer, tmp_path):
    teacher = {"teacher_model": "embedded"} if trainer == "distillation" else {}
    settings = {"model": "embedded", "trainer": trainer, "project_name": str(tmp_path / "run"), "data_path": ROWS}
    with pytest.raises(ParamsError, match=f"^optimizer is '{name}', which cannot be used here .*; choose another"):
        run(LLMTrainingParams(**settings, **teacher, optimizer=name))
    assert not list(tmp_path.iterdir())
    args = DistillationSFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, use_distillation=True, teacher_model="embedded", optim=name
    )
    with pytest.raises(ParamsError, match=f"^optim is '{name}'"):
        DistillationSFTTrainer("embedded", args, train_dataset=ROWS)


@pytest.mark.parametrize("found", [True, False])
def test_a_run_uses_the_accelerator_that_torch_finds(found, tmp_path, monkeypatch):
    """Of whatever kind: torch has one question for all of them."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: found)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    config = from_params(LLMTrainingParams(model="m", project_name=str(tmp_path)))
    assert config.use_cpu is not found
    assert config.dataloader_pin_memory is found


def test_accelerate_use_cpu_keeps_a_run_on_the_cpu(tmp_path, monkeypatch):
    """`accelerate launch --cpu` sets it; transformers alone would put the model on a GPU and the batches on the CPU."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert DistillationSFTConfig(str(tmp_path), bf16=False).use_cpu
    assert accelerator() is None


def test_a_recipe_gives_the_trainers_configuration(tmp_path):
    more = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    config = DistillationSFTConfig.from_recipe("sdft", **more)
    assert config.use_distillation
    assert (config.teacher_model, config.teacher_ema_decay, config.distill_divergence) == ("ema", 0.99, "forward_kl")
    assert (config.learning_rate, config.lr_scheduler_type, config.warmup_steps) == (2e-5, "cosine", 0.1)
    given = DistillationSFTConfig.from_recipe("prompt-baking", teacher_model="t", learning_rate=1e-3, **more)
    assert (given.teacher_model, given.learning_rate, given.warmup_steps) == ("t", 1e-3, 0)
    assert given.lr_scheduler_type == "constant"
    with pytest.raises(ParamsError, match=r"recipe is 'gdk'; expected one of prompt-baking, .* Did you mean 'gkd'"):
        DistillationSFTConfig.from_recipe("gdk", **more)
