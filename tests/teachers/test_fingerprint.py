"""Fingerprints of weights by content: a copy is the same, one other value is not."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from trl_distill.teachers.local.fingerprint import of_model
from trl_distill.teachers.local.folder_fingerprint import of_folder


@pytest.fixture
def model(tiny_teacher_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)


def test_equal_weights_have_equal_fingerprints(model, tiny_teacher_dir):
    assert of_model(model) == of_model(AutoModelForCausalLM.from_pretrained(tiny_teacher_dir))


@pytest.mark.parametrize("place", [0, 1, 1001, -1])
def test_changing_one_value_changes_the_fingerprint(place, model):
    before = of_model(model)
    with torch.no_grad():
        model.lm_head.weight.view(-1)[place] += 1e-3
    assert of_model(model) != before


def test_another_dtype_changes_the_fingerprint(model):
    before = of_model(model)
    assert of_model(model.to(torch.bfloat16)) != before


def test_an_active_adapter_changes_the_fingerprint(model):
    before = of_model(model)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    on = of_model(adapted.get_base_model())
    with adapted.disable_adapter():
        assert of_model(adapted.get_base_model()) not in (before, on)
    assert of_model(adapted.get_base_model()) == on != before


def test_a_copied_folder_has_the_same_fingerprint(tiny_teacher_dir, tmp_path):
    shutil.copytree(tiny_teacher_dir, tmp_path / "copy")
    assert of_folder(str(tmp_path / "copy")) == of_folder(str(tiny_teacher_dir))
    assert of_folder("a-hub/name") is None


@pytest.mark.parametrize("size", [1000, 2**20, 40 * 2**20])
def test_a_layer_that_was_edited_shows_in_a_file_of_any_size(size, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(size))
    before = of_folder(str(tmp_path))
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\1" * min(64 * 2**10, size // 2))
    assert of_folder(str(tmp_path)) != before


def test_the_fingerprint_of_an_adapter_includes_its_base(tiny_teacher_dir, tmp_path):
    base = shutil.copytree(tiny_teacher_dir, tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (adapter / "adapter_model.safetensors").write_bytes(b"adapter")
    before = of_folder(str(adapter))
    (base / "model.safetensors").write_bytes(b"other")
    assert of_folder(str(adapter)) != before
