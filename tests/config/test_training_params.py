"""`LLMTrainingParams`: the guide's names and defaults, and a sentence for every name or value it does not take."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from trl_distill import run, train
from trl_distill.config.other_names import INSTEAD
from trl_distill.config.training_params import ALIASES, FIELDS, LLMTrainingParams
from trl_distill.errors import ParamsError, UsageError

GUIDE_DEFAULTS = {
    "trainer": "distillation",
    "use_distillation": False,
    "teacher_model": None,
    "teacher_prompt_template": "{input}",
    "student_prompt_template": "{input}",
    "distill_temperature": 3.0,
    "distill_alpha": 0.7,
    "distill_max_teacher_length": 512,
    "epochs": 3,
    "batch_size": 4,
    "lr": 5e-5,
    "warmup_ratio": 0.1,
    "gradient_accumulation": 4,
    "text_column": "text",
}

QUICK_START = {
    "model": "gpt2",
    "trainer": "distillation",
    "teacher_model": "gpt2-large",
    "teacher_prompt_template": "Think.\n\nQuestion: {input}\n\nDetailed Answer:",
    "student_prompt_template": "{input}",
    "distill_temperature": 3.0,
    "distill_alpha": 0.7,
    "distill_max_teacher_length": 512,
    "data_path": "./queries.json",
    "text_column": "text",
    "project_name": "distilled-gpt2",
    "epochs": 3,
    "batch_size": 4,
    "lr": 5e-5,
}

LARGE_TO_SMALL = {
    "model": "meta-llama/Llama-2-7b-hf",
    "trainer": "distillation",
    "teacher_model": "meta-llama/Llama-2-70b-hf",
    "distill_temperature": 4.0,
    "distill_alpha": 0.8,
    "peft": True,
    "lora_r": 64,
    "lora_alpha": 128,
    "quantization": "int4",
    "data_path": "./diverse_instructions.json",
    "text_column": "instruction",
    "project_name": "llama-7b-distilled",
    "epochs": 2,
    "batch_size": 1,
    "gradient_accumulation": 16,
}

WITH_SFT = {
    "model": "gpt2",
    "trainer": "sft",
    "use_distillation": True,
    "teacher_model": "gpt2-large",
    "teacher_prompt_template": "Expert: {input}",
    "data_path": "./data",
    "project_name": "sft-distilled",
}


def good(**settings):
    return LLMTrainingParams(**{"model": "gpt2", "teacher_model": "gpt2-large", **settings})


@pytest.mark.parametrize(("name", "default"), GUIDE_DEFAULTS.items())
def test_defaults_are_those_of_the_guide(name, default):
    assert getattr(LLMTrainingParams(), name) == default


@pytest.mark.parametrize("settings", [QUICK_START, LARGE_TO_SMALL, WITH_SFT])
def test_configurations_of_the_guide_are_accepted(settings):
    config = LLMTrainingParams(**settings)
    config.validate()
    assert {name: getattr(config, name) for name in settings} == settings


def test_attributes_set_after_construction_are_checked_and_used():
    config = good()
    later = {
        "distill_temperature": 4.0,
        "distill_alpha": 0.5,
        "teacher_model": "smaller-teacher",
        "gradient_checkpointing": True,
        "batch_size": 1,
        "gradient_accumulation": 16,
    }
    for name, value in later.items():
        setattr(config, name, value)
    config.validate()
    assert {name: getattr(config, name) for name in later} == later


@pytest.mark.parametrize("name", ["distill_temp_2.0", "stage_1", "runs/2026-11-24/a.b", "."])
def test_a_project_name_is_any_path(name):
    assert good(project_name=name).project_name == name


def test_a_model_may_be_a_loaded_one():
    model = object()
    config = good(model=model, data_path=model)
    assert config.model is model
    assert config.to_dict()["model"] == config.to_dict()["data_path"] == "<object>"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("teacher_modle", "unknown parameter 'teacher_modle'. Did you mean 'teacher_model'"),
        ("distil_alpha", "Did you mean 'distill_alpha'"),
        ("learning_rate", "it is called 'lr' here"),
        ("max_seq_length", "it is called 'block_size' here"),
        ("gradient_accumulation_steps", "it is called 'gradient_accumulation' here"),
        ("xyzzy", "`aitraining llm --help-all` lists all"),
        ("token", "set the environment variable HF_TOKEN"),
        ("hub_token", "set the environment variable HF_TOKEN"),
    ],
)
def test_an_unknown_setting_is_an_error_as_keyword_and_as_attribute(name, message):
    with pytest.raises(ParamsError) as caught:
        LLMTrainingParams(**{name: 1})
    assert message in str(caught.value)
    config = LLMTrainingParams()
    with pytest.raises(ParamsError) as caught:
        setattr(config, name, 1)
    assert message in str(caught.value)


def test_an_unknown_setting_is_also_a_type_error():
    with pytest.raises(TypeError):
        LLMTrainingParams(nonsense=1)
    with pytest.raises(ValueError, match="nonsense"):
        LLMTrainingParams(nonsense=1)


def test_every_alias_leads_to_a_field():
    assert set(ALIASES.values()) <= set(FIELDS)
    assert not set(ALIASES) & set(FIELDS)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [("lr", "5e-5", 5e-5), ("epochs", "2", 2.0), ("batch_size", "8", 8), ("peft", "yes", True), ("lr", 1, 1.0)],
)
def test_numbers_given_as_text_become_numbers(name, given, expected):
    assert getattr(good(**{name: given}), name) == expected
    config = good()
    setattr(config, name, given)
    assert getattr(config, name) == expected


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("lr", 0, "a number above 0"),
        ("lr", float("nan"), "a number above 0"),
        ("epochs", 0, "a number above 0"),
        ("epochs", -1, "a number above 0"),
        ("lr", float("inf"), "a finite number above 0"),
        ("epochs", "inf", "a finite number above 0"),
        ("weight_decay", 10**400, "a number of at least 0"),
        ("max_steps", -2, "a whole number of at least 1, or -1"),
        ("max_steps", 0, "a whole number of at least 1, or -1"),
        ("batch_size", 0, "a whole number of at least 1"),
        ("batch_size", 1.5, "a whole number of at least 1"),
        ("gradient_accumulation", 0, "a whole number of at least 1"),
        ("warmup_ratio", 1.5, "a number from 0 to 1"),
        ("weight_decay", float("nan"), "a number of at least 0"),
        ("block_size", 1, "a whole number of at least 2"),
        ("seed", -1, "a whole number from 0 to 4294967295"),
        ("seed", 2**40, "a whole number from 0 to 4294967295"),
        ("seed", 10**400, "a whole number from 0 to 4294967295"),
        ("project_name", 5, "expected text"),
        ("text_column", 5, "expected text"),
        ("train_split", ["train"], "expected text"),
        ("trainer", 3, "expected text"),
        ("valid_split", False, "expected text"),
        ("target_modules", ["q_proj", 3], "expected text"),
        ("target_modules", [], "expected text"),
        ("quantization", "int3", "'int4', 'int8'"),
        ("mixed_precision", "fp8", "'no', 'bf16', 'fp16'"),
        ("eval_strategy", "never", "'no', 'steps', 'epoch'"),
        ("distill_alpha", 2, "a number from 0 to 1"),
        ("peft", "perhaps", "true or false"),
        ("lr", None, "a number above 0"),
    ],
)
def test_a_value_outside_its_range_is_refused_when_it_is_set(name, value, accepted):
    with pytest.raises(ParamsError, match=name) as caught:
        LLMTrainingParams(**{name: value})
    assert accepted in str(caught.value)
    config = LLMTrainingParams()
    before = getattr(config, name)
    with pytest.raises(ParamsError, match=name):
        setattr(config, name, value)
    assert getattr(config, name) == before


@pytest.mark.parametrize("modules", [["q_proj", "v_proj"], ("q_proj", "v_proj"), "q_proj,v_proj"])
def test_target_modules_may_be_a_list(modules):
    assert good(target_modules=modules).target_modules == "q_proj,v_proj"


@pytest.mark.parametrize("name", ["mixed_precision", "eval_strategy", "save_strategy"])
def test_false_is_read_as_no_for_settings_with_that_choice(name):
    assert getattr(good(**{name: False}), name) == "no"
    with pytest.raises(ParamsError, match=f"{name} is True"):
        good(**{name: True})


def test_a_chat_templates_path_is_text():
    assert good(chat_template=Path("chat.jinja")).chat_template == "chat.jinja"


@pytest.mark.parametrize("start", [train, run])
@pytest.mark.parametrize("given", ["x", {"model": "gpt2"}, None, LLMTrainingParams])
def test_a_run_takes_parameters_only(start, given):
    with pytest.raises(ParamsError, match=r"a run takes LLMTrainingParams, not \w+; make one with LLMTrainingParams"):
        start(given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": 5}, "model is of type int; give a name, a folder or a loaded model"),
        ({"teacher_model": ["t"]}, "teacher_model is of type list; give"),
        ({"teacher_model": dict}, "teacher_model is of type type; give"),
        ({"model": None}, "model is missing; give model a folder"),
        ({"teacher_model": None}, "teacher_model is missing; distillation needs a teacher"),
        ({"teacher_model": None, "trainer": "sft", "use_distillation": True}, "teacher_model is missing"),
        ({"trainer": "sft"}, "'sft' does not distil; add use_distillation=True, or drop teacher_model"),
        ({"quantization": "int4"}, "quantization 'int4' trains an adapter; add peft=True"),
        ({"lora_r": 32}, "lora_r is 32, and no adapter is trained; add peft=True, or drop lora_r"),
        ({"target_modules": "q_proj"}, "target_modules is 'q_proj', and no adapter is trained; add peft=True, or drop"),
        ({"valid_split": "train"}, "valid_split is 'train', the split that is trained on; name another, give slices"),
        ({"merge_adapter": True}, "merge_adapter has no adapter to merge; add peft=True"),
        ({"merge_adapter": True, "peft": True, "quantization": "int8"}, "cannot merge into a quantized model"),
        ({"overwrite": True, "resume": True}, "overwrite and resume contradict each other"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    config = good(**settings)
    with pytest.raises(UsageError, match=message):
        config.validate()


def test_plain_sft_needs_no_teacher():
    config = LLMTrainingParams(model="gpt2", trainer="sft")
    config.validate()
    assert not config.distills
    assert good().distills
    assert good(trainer="sft", use_distillation=True).distills


def test_to_dict_round_trips():
    config = good(lr="1e-4", peft=True)
    assert LLMTrainingParams(**config.to_dict()) == config
    secret = [name for name in config.to_dict() if "token" in name and "max" not in name]
    assert secret == ["cross_tokenizer"]  # which is none


def test_each_field_has_a_group_a_help_text_and_a_default_that_passes():
    config = LLMTrainingParams()
    for spec in fields(LLMTrainingParams):
        assert str(spec.metadata["help"]).strip(), spec.name
        assert spec.metadata["help"].group, spec.name
        setattr(config, spec.name, getattr(config, spec.name))


# the fields of AutoTrain 0.8.36's LLMTrainingParams and the flags of its command
AUTOTRAIN = [
    "model", "project_name", "data_path", "train_split", "valid_split", "add_eos_token", "block_size",
    "model_max_length", "padding", "trainer", "use_flash_attention_2", "log", "disable_gradient_checkpointing",
    "logging_steps", "eval_strategy", "save_total_limit", "auto_find_batch_size", "mixed_precision", "lr",
    "epochs", "batch_size", "warmup_ratio", "gradient_accumulation", "optimizer", "scheduler", "weight_decay",
    "max_grad_norm", "seed", "chat_template", "quantization", "target_modules", "merge_adapter", "peft",
    "lora_r", "lora_alpha", "lora_dropout", "model_ref", "dpo_beta", "max_prompt_length",
    "max_completion_length", "prompt_text_column", "text_column", "rejected_text_column", "push_to_hub",
    "username", "token", "unsloth", "distributed_backend", "train", "deploy", "inference", "backend",
]  # fmt: skip


def test_each_setting_of_autotrain_works_or_says_what_to_do_instead():
    for name in AUTOTRAIN:
        if name not in FIELDS and name not in ALIASES:
            with pytest.raises(ParamsError, match=r"; (give [a-z]|drop it|set the environment)"):
                LLMTrainingParams(**{name: None})


def test_what_to_do_instead_names_settings_that_there_are():
    assert not set(INSTEAD) & {*FIELDS, *ALIASES}
    for advice in INSTEAD.values():
        for flag in re.findall(r"--([a-z-]+)", advice):
            assert flag.replace("-", "_") in FIELDS, advice


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("use_peft", "give peft=True."),
        ("use_int4", "give quantization='int4'."),
        ("use_flash_attention_2", "give attn_implementation='flash_attention_2'."),
        ("max_completion_length", "give distill_max_teacher_length, for what the teacher generates."),
    ],
)
def test_what_to_do_instead_is_in_the_words_of_python(name, instead):
    with pytest.raises(ParamsError) as caught:
        LLMTrainingParams(**{name: True})
    assert str(caught.value) == f"unknown parameter {name!r}; {instead}"


@pytest.mark.parametrize(
    ("name", "meant"),
    [("quantization", None), ("teacher_quantization", None), ("mixed_precision", "no"), ("eval_strategy", "no")],
)
def test_the_word_none_makes_no_choice(name, meant):
    assert getattr(good(**{name: "none"}), name) == meant
    assert good(teacher_logprobs="none").teacher_logprobs == "none"  # which is a choice there
