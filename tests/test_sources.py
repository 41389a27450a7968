"""From a name to a model, with a sentence when there is none."""

from __future__ import annotations

import pytest

from trl_distill.errors import ModelError, TeacherError
from trl_distill.sources import load_model, load_tokenizer, resolve


def test_embedded_is_a_folder_with_a_model():
    from pathlib import Path

    assert (Path(resolve("embedded", role="model")) / "config.json").is_file()


def test_a_folder_is_itself_and_a_hub_name_too(tiny_model_dir):
    assert resolve(str(tiny_model_dir), role="model") == str(tiny_model_dir)
    assert resolve("org/name", role="model") == "org/name"
    assert resolve("gpt2", role="model") == "gpt2"


def test_a_missing_folder_names_its_neighbour(tmp_path):
    (tmp_path / "student").mkdir()
    with pytest.raises(ModelError, match="Did you mean 'student'"):
        resolve(str(tmp_path / "studnet"), role="model")


def test_a_folder_without_a_model_is_said(tmp_path):
    with pytest.raises(TeacherError, match=r"teacher_model .* without config\.json"):
        resolve(str(tmp_path), role="teacher_model")


def test_a_tokenizer_gets_a_padding_token_and_needs_an_end(tiny_model_dir, tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    assert load_tokenizer(str(tiny_model_dir), role="model").pad_token_id is not None
    backend = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        load_tokenizer(str(tmp_path), role="model")


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_a_quantized_model_is_quantized(kind, tiny_model_dir):
    model = load_model(str(tiny_model_dir), role="model", quantization=kind, dtype="auto")
    assert model.is_quantized
