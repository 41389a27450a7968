"""What the package promises to others: its names, where they live, and how they are called."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import fields
from importlib.metadata import version

import pytest

import trl_distill

NAMES = {
    "DataError": "errors",
    "DistillError": "errors",
    "DistillationMixin": "trainer.mixin",
    "DistillationSFTConfig": "config.sft_config",
    "DistillationSFTTrainer": "trainer.trainer",
    "LLMTrainingParams": "config.training_params",
    "ModelError": "errors",
    "ParamsError": "errors",
    "ProjectError": "errors",
    "PromptDistillationTrainer": "trainer.trainer",
    "RunInterrupted": "errors",
    "RunResult": "runs.api",
    "TeacherError": "errors",
    "TemplateError": "errors",
    "TuningResult": "runs.tuning.result",
    "UsageError": "errors",
    "distillation_loss_from_logits": "losses",
    "evaluate": "runs.evaluate",
    "evaluate_distillation": "runs.evaluate",
    "export": "runs.export.api",
    "fused_distillation_loss": "losses",
    "generate_with_teacher": "runs.generate_with_teacher",
    "get_trainer": "trainer.registry",
    "load_teacher": "teachers.loading",
    "parse_template": "prompts.template",
    "prepare_distillation_data": "runs.diverse_queries",
    "queries_from_prompt": "runs.queries_from_prompt",
    "register_trainer": "trainer.registry",
    "run": "runs.api",
    "train": "runs.api",
    "train_stages": "runs.stages",
    "tune": "runs.tuning.api",
}

# by position, then after the star by keyword; "=" where there is a default
SIGNATURES = {
    "train": "params * verbose=",
    "run": "params * verbose=",
    "train_stages": "params stages * verbose=",
    "tune": "params space * trials= keep_all= reference_column= metrics= verbose=",
    "evaluate": "model data= **settings",
    "evaluate_distillation": (
        "student_model teacher_model= test_data= * teacher_prompt= student_prompt= before= reference_column= metrics= "
        "output= verbose= **settings"
    ),
    "export": "project to * verbose= **settings",
    "get_trainer": "name * use_distillation=",
    "register_trainer": "name target * use_distillation=",
    "prepare_distillation_data": (
        "queries categorize= per_category= seed= * held_out= keep_duplicates= text_column= max_bad_rows="
    ),
    "parse_template": "source * name adds_input=",
    "queries_from_prompt": (
        "teacher prompt count= * holdout= holdout_by= held_out= most_kinds= kinds= lengths= max_new_tokens= "
        "temperature= top_p= seed= batch_size= engine= store= progress= tokenizer= revision= dtype= quantization= "
        "device_map= trust_remote_code= device= remote="
    ),
    "load_teacher": (
        "spec * tokenizer= revision= dtype= quantization= device_map= attn_implementation= trust_remote_code= device= "
        "remote="
    ),
    "generate_with_teacher": (
        "model template queries * text_column= max_new_tokens= do_sample= temperature= top_p= seed= batch_size= stop= "
        "engine= store= progress= tokenizer= revision= dtype= quantization= device_map= trust_remote_code= device= "
        "remote="
    ),
    "fused_distillation_loss": (
        "student_hidden student_weight teacher_hidden teacher_weight targets * alpha temperature divergence= jsd_beta= "
        "student_bias= teacher_bias= student_softcap= teacher_softcap= student_scale= teacher_scale= vocabulary= "
        "ignore_index= impl= tile_bytes="
    ),
    "distillation_loss_from_logits": (
        "student_logits teacher_logits targets * alpha temperature divergence= jsd_beta= vocabulary= ignore_index="
    ),
    "DistillationMixin": (
        "model args= data_collator= train_dataset= eval_dataset= processing_class= *positional * teacher_model= setup= "
        "**kwargs"
    ),
    "PromptDistillationTrainer.compute_kl_loss": "self student_logits teacher_logits temperature=",
    "PromptDistillationTrainer.prepare_teacher_inputs": "self batch",
    "PromptDistillationTrainer.generate_teacher_outputs": "self batch",
}


def described(function) -> str:
    """Return a signature's names in the short form used above."""
    words, keyword_only = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            words.append("*")
            keyword_only = True
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        words.append(star + parameter.name + ("=" if parameter.default is not parameter.empty else ""))
    return " ".join(words)


def test_public_names_are_unchanged():
    assert sorted(trl_distill.__all__) == sorted(NAMES)
    assert {*NAMES, "__version__"} <= set(dir(trl_distill))


@pytest.mark.parametrize(("name", "module"), NAMES.items())
def test_each_name_is_what_its_module_defines(name, module):
    public = getattr(trl_distill, name)
    assert public is getattr(importlib.import_module(f"trl_distill.{module}"), name)
    assert public.__doc__, f"{name} has no docstring"


@pytest.mark.parametrize(("name", "expected"), SIGNATURES.items())
def test_public_signatures_are_unchanged(name, expected):
    first, _, method = name.partition(".")
    function = getattr(trl_distill, first)
    assert described(getattr(function, method) if method else function) == expected


def test_run_result_has_its_fields():
    names = [field.name for field in fields(trl_distill.RunResult)]
    assert names == ["model", "tokenizer", "metrics", "paths", "trainer"]


def test_a_star_import_gives_the_public_names():
    names: dict[str, object] = {}
    exec("from trl_distill import *", names)
    assert {name for name in names if not name.startswith("__")} == set(NAMES)


def test_the_version_is_the_installed_one():
    assert trl_distill.__version__ == version("trl-distill")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        trl_distill.Trainer  # noqa: B018
