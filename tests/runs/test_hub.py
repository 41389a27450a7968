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
    check_token(LLMTrainingParams(model="x", push_to_hub=True))


def test_an_unreachable_hub_is_one_sentence_without_the_token(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    with pytest.raises(DistillError, match="is complete in") as error:
        push(tmp_path, LLMTrainingParams(model="x", push_to_hub=True), files=[], card=str)
    assert "hf_very_secret" not in str(error.value)
    assert error.value.exit_code == 1
