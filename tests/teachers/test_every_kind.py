"""A run of each kind of teacher on the embedded model, by the command, and what the loss had of it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from conftest import make_model
from teachers.writers import make_t5

from trl_distill import generate_with_teacher
from trl_distill.cli import main

pytestmark = pytest.mark.usefixtures("device")

WORDS = ["red cat", "blue dog moon", "tall tree", "old green house"]
TEMPLATE = "Write the words in reverse order.\n{input}\n"
OTHER = "Put a comma between the words.\n\nText: {input}\nResult:"
RUN = ["--epochs", "1", "--batch-size", "2", "--gradient-accumulation", "1", "--logging-steps", "1"]
EVERYTHING = {"loss", "kl", "ce", "top1_agreement"}
TEXT_ALONE = {"loss", "ce"}
PARTLY = EVERYTHING | {"teacher_coverage"}


def local(place, request):
    return ["--teacher-model", "embedded"], EVERYTHING


def quantized(place, request):
    return ["--teacher-model", "embedded", "--teacher-quantization", "int8"], EVERYTHING


def its_own(place, request):
    return ["--teacher-model", "self", "--peft"], EVERYTHING


def stored(kind):
    def make(place, request):
        store = str(place / "store")
        command = [
            "teach",
            "--model",
            "embedded",
            "--teacher-model",
            "embedded",
            "--data-path",
            str(place / "data.json"),
        ]
        done = CliRunner().invoke(
            main, [*command, "--teacher-prompt-template", TEMPLATE, "--output", store, "--kind", kind]
        )
        assert done.exit_code == 0, done.output
        return ["--teacher-store", store], EVERYTHING

    make.__name__ = f"stored_{kind}"
    return make


def server_of_text(place, request):
    return ["--teacher-model", request.getfixturevalue("server").teacher, "--distill-alpha", "0"], TEXT_ALONE


def server_of_log_probabilities(place, request):
    server = request.getfixturevalue("server")
    server.give("prompt")
    how = ["--distill-temperature", "1", "--teacher-endpoint", "completions"]
    return ["--teacher-model", server.teacher, *how], PARTLY


def other_tokenizer(place, request):
    return ["--teacher-model", str(make_model(place / "other", chat=True)), "--cross-tokenizer"], PARTLY


def encoder_decoder(place, request):
    return ["--teacher-model", str(make_t5(place / "t5")), "--distill-alpha", "0"], TEXT_ALONE


def several(combine):
    def make(place, request):
        teachers = [{"model": "embedded", "template": TEMPLATE}, {"model": "embedded", "template": OTHER}]
        content = {"combine": combine, "teachers": teachers}
        (place / "teachers.json").write_text(json.dumps(content))  # JSON is YAML
        return ["--teacher-config", str(place / "teachers.json")], EVERYTHING

    make.__name__ = f"several_{combine}"
    return make


def none_any_more(place, request):
    rows = generate_with_teacher("embedded", TEMPLATE, WORDS, max_new_tokens=8, progress=False)
    (place / "data.json").write_text(json.dumps(rows))
    return [], TEXT_ALONE


KINDS = [
    local, quantized, its_own, stored("topk"), stored("sample"), stored("hidden"), server_of_text,
    server_of_log_probabilities, other_tokenizer, encoder_decoder, several("completions"), several("mixture"),
    none_any_more,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_kind_of_teacher_runs(kind, request, tmp_path):
    rows = [{"text": words, "completion": " ".join(reversed(words.split()))} for words in WORDS]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    teacher, expected = kind(tmp_path, request)
    template = [] if "--teacher-config" in teacher or not teacher else ["--teacher-prompt-template", TEMPLATE]
    command = ["llm", "--model", "embedded", "--data-path", str(tmp_path / "data.json"), *RUN, *template, *teacher]
    done = CliRunner().invoke(main, [*command, "--project-name", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())["history"]
    line = next(line for line in history if "loss" in line)
    assert {"loss", "kl", "ce", "top1_agreement", "teacher_coverage"} & line.keys() == expected
    if "kl" in expected:
        assert line["kl"] > 0 or kind.__name__ == "stored_sample"  # an estimate
    assert (tmp_path / "run" / "README.md").is_file()
