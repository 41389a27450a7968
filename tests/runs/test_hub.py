"""Uploading needs a token from the environment, and a refusal loses nothing."""

from __future__ import annotations

import pytest

from trl_distill.config.training_params import LLMTrainingParams
from trl_distill.errors import DistillError, ParamsError
from trl_distill.runs.hub import check_token, push


def test_push_to_hub_needs_a_token_before_the_run(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ParamsError, match="HF_TOKEN"):
        check_token(LLMTrainingParams(model="x", push_to_hub=True))
    check_token(LLMTrainingParams(model="x"))
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr("trl_distill.runs.hub.is_switched_off", lambda: False)
    check_token(LLMTrainingParams(model="x", push_to_hub=True))


def test_push_to_hub_is_refused_before_the_run_if_the_hub_is_switched_off(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ParamsError, match="HF_HUB_OFFLINE switches off; unset it, or drop --push-to-hub"):
        check_token(LLMTrainingParams(model="x", push_to_hub=True))
    check_token(LLMTrainingParams(model="x"))


@pytest.mark.parametrize("settings", [{"project_name": "my project"}, {"username": "a/b"}, {"project_name": "a--b"}])
def test_a_name_that_no_repository_can_have_is_refused_before_the_run(settings, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr("trl_distill.runs.hub.is_switched_off", lambda: False)
    with pytest.raises(ParamsError, match="a name that no repository can have; give --project-name and --username"):
        check_token(LLMTrainingParams(model="x", push_to_hub=True, **settings))
    check_token(LLMTrainingParams(model="x", push_to_hub=True, project_name="runs/distill_temp_2.0", username="me"))


def test_an_unreachable_hub_is_one_sentence_without_the_token(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    with pytest.raises(DistillError, match="is complete in") as error:
        push(tmp_path, LLMTrainingParams(model="x", push_to_hub=True), files=[], card=str)
    assert "hf_very_secret" not in str(error.value)
    assert error.value.exit_code == 1
