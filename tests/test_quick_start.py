"""The guide's quick start, run: its three commands and both Python forms, on local models of the names it uses."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from cli.test_llm import GUIDE
from conftest import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

QUERIES = ["What is 2+2?", "Name a colour.", "Why is the sky blue?", "Spell 'cat'."]
PROGRAM = Path(sys.executable).with_name("aitraining")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory in which the guide's names are folders and files."""
    folder = tmp_path_factory.mktemp("guide")
    for name, width in {"gpt2": 32, "gpt2-large": 48, "gpt-3.5-turbo": 40, "meta-llama/Llama-2-7b-hf": 64,
                        "meta-llama/Llama-2-70b-hf": 128}.items():  # fmt: skip
        make_model(folder / name, hidden=width)
    rows = [{"text": text} for text in QUERIES]
    for name in ("queries.json", "instructions.json"):
        (folder / name).write_text(json.dumps(rows))
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize(("command", "expected"), GUIDE, ids=["basic", "sft", "lora"])
def test_the_commands(command, expected, place):
    words = [*shlex.split(command.replace("\\\n", " ")), "--distill-max-teacher-length", "12"]
    done = subprocess.run(
        [str(PROGRAM), *words[1:]], cwd=place, capture_output=True, text=True, timeout=300, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert "Pre-flight (train)" in done.stdout
    project = place / expected.get("project_name", "project-name")
    assert f"Model, card and metrics are in {project.name}" in done.stdout
    settings = yaml.safe_load((project / "config.yaml").read_text())
    assert {name: settings[name] for name in expected} == expected
    history = json.loads((project / "metrics.json").read_text())["history"]
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in history if "loss" in entry)
    model = AutoModelForCausalLM.from_pretrained(project)
    ids = AutoTokenizer.from_pretrained(project)("What is 2+2?", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=3).shape[1] > ids["input_ids"].shape[1]


def test_python(place, monkeypatch):
    from autotrain.trainers.clm import train
    from autotrain.trainers.clm.params import LLMTrainingParams

    monkeypatch.chdir(place)
    config = LLMTrainingParams(
        model="gpt2",
        trainer="distillation",
        teacher_model="gpt2-large",
        teacher_prompt_template="You know a lot.\n    Think before you speak.\n\n    Question: {input}\n\n    Reply:",
        student_prompt_template="{input}",
        distill_temperature=3.0,
        distill_alpha=0.7,
        distill_max_teacher_length=16,
        data_path="./queries.json",
        text_column="text",
        project_name="distilled-gpt2",
        epochs=3,
        batch_size=4,
        lr=5e-5,
    )
    before = AutoModelForCausalLM.from_pretrained("gpt2").lm_head.weight
    assert not torch.equal(train(config).lm_head.weight, before)
    assert (place / "distilled-gpt2" / "model.safetensors").is_file()


def test_python_with_sft(place, monkeypatch):
    from autotrain.trainers.clm import train
    from autotrain.trainers.clm.params import LLMTrainingParams

    monkeypatch.chdir(place)
    config = LLMTrainingParams(
        model="gpt2", trainer="sft", use_distillation=True, teacher_model="gpt2-large",
        teacher_prompt_template="Expert: {input}", student_prompt_template="{input}", distill_temperature=3.0,
        distill_alpha=0.7, data_path="./data", text_column="text", project_name="sft-distilled", epochs=3,
        distill_max_teacher_length=16,
    )  # fmt: skip
    assert train(config).config.hidden_size == 32
    assert "Expert: {input}" in (place / "sft-distilled" / "README.md").read_text()
