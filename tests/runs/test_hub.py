"""Uploading needs a token from the environment, and a refusal loses nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from huggingface_hub.utils import filter_repo_objects

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
        push(tmp_path, LLMTrainingParams(model="x", push_to_hub=True), card=str)
    assert "hf_very_secret" not in str(error.value)
    assert error.value.exit_code == 1


@pytest.mark.parametrize("asked", [False, True])
def test_the_page_with_rows_is_uploaded_only_if_asked(asked, monkeypatch, tmp_path):
    class Hub:
        def __init__(self, token):
            assert token == "hf_x"

        def create_repo(self, name, **_):
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, *, ignore_patterns, **_):
            uploaded.extend(filter_repo_objects(files, ignore_patterns=ignore_patterns))

        def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id):
            assert path_or_fileobj == f"the card of {repo_id}".encode()
            uploaded.append(path_in_repo)

    uploaded: list[str] = []
    files = [
        "model.safetensors",
        "README.md",
        "report.html",
        "report.json",
        "checkpoints/x",
        "teacher_completions.jsonl",
    ]
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    params = LLMTrainingParams(model="x", push_to_hub=True, username="me", card_example=asked)
    push(tmp_path, params, card="the card of {}".format)
    assert uploaded == ["model.safetensors", *(["report.html", "report.json"] if asked else []), "README.md"]
