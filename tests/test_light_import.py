"""Importing costs nothing: no torch behind the package, the help, a parse error or a refused value."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

HEAVY = ("accelerate", "datasets", "huggingface_hub", "numpy", "openai", "peft", "torch", "transformers", "trl")
SOURCE = Path(__file__).parents[1] / "src" / "trl_distill"
FOUNDATION = (
    "config.choices",
    "config.distillation_arguments",
    "config.setting_names",
    "config.endpoints",
    "config.evaluation_checks",
    "config.fields",
    "config.other_names",
    "config.recipes",
    "config.server_keys",
    "config.training_params",
    "config.user_files",
    "config.validation",
    "errors",
    "prompts.template",
    "trainer.registry",
    "trainer.standard_streams",
)


def heavy_after(code: str) -> list[str]:
    """Run code in a fresh interpreter and return the heavy packages that it loaded."""
    tell = f"\nimport sys\nprint('LOADED', *[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + tell], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def test_heavy_imports_are_detected():
    assert heavy_after("import numpy") == ["numpy"]


@pytest.mark.parametrize(
    "code",
    [
        "import trl_distill; dir(trl_distill); trl_distill.__version__",
        "from trl_distill import LLMTrainingParams, export, get_trainer, parse_template, register_trainer, run, train",
        "from trl_distill import ParamsError; from trl_distill.trainer.registry import names_of_trainers as n; n()",
        "from autotrain.trainers.clm import evaluate, train, train_stages; import autotrain.trainers.clm.params",
        "from trl_distill.evaluation import cost, metrics, result",
    ],
)
def test_importing_loads_nothing_heavy(code):
    assert heavy_after(code) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["llm", "--help"], 0),
        (["evaluate", "--help"], 0),
        (["data", "--help"], 0),
        (["queries", "--help"], 0),
        (["data", "queries.jsonl"], 2),
        (["export", "--help"], 0),
        (["export", "nowhere"], 2),
        (["llm", "--help-all"], 0),
        (["llm", "--teacher-modle", "x"], 2),
        (["llm", "--distill-alpha", "7"], 2),
        (["llm", "--token", "hf_secret_secret"], 2),
        (["llm", "--config", "/nowhere.yaml"], 2),
        (["llm"], 2),
        (["teach", "--help"], 0),
        (["teach", "--outptu", "x"], 2),
        (["teach", "--model", "m", "--teacher-model", "t"], 2),
        (["llm", "--model", "m"], 2),
        (["llm", "--model", "m", "--teacher-model", "t", "--teacher-prompt-template", "{role}"], 2),
    ],
)
def test_help_and_usage_errors_load_nothing_heavy(arguments, code):
    run = f"""
from trl_distill.cli import main
try:
    main({arguments})
except SystemExit as end:
    assert end.code == {code}, end.code
"""
    assert heavy_after(run) == []


# each is refused with this text in its sentence
MISTAKES = {
    "llm --model embedded --data-path {data}": "--teacher-model is missing",
    "llm --model embedded --data-path {data} --teacher-store {there}/store": "is no complete store",
    "{run} --data-path {there}/nowhere.jsonl": "no such file or folder",
    "{run} --data-path {data} --retain-data {there}/nowhere.jsonl": "--retain-data",
    "{run} --data-path {data} --text-column question": "no column 'question'",
    "llm --model embedded --trainer sft --data-path {data} --completion-column answer": "no column 'answer'",
    "{run} --data-path {data} --teacher-prompt-template {{topic}}{{input}}": "the field {{topic}}",
    "{run} --data-path {data} --valid-split test": "--valid-split is 'test'",
    "{run} --data-path {data} --eval-samples 3": "--eval-samples needs rows",
    "{run} --data-path {data} --chat-template {there}/no.jinja": "is not a template, a file or a model",
    "{run} --data-path {data} --log wandb": "`pip install wandb`",
    "{run} --data-path {data} --trainer foo": "not registered",
    "{run} --data-path {data} --project-name {project}": "holds a finished run",
    "llm --model ./nowhere --teacher-model embedded --data-path {data}": "--model './nowhere' is not a folder",
    "llm --model nowhere --teacher-model embedded --data-path {data}": "--model 'nowhere': no configuration",
    "llm --model embedded --teacher-model ./nowhere --data-path {data}": "--teacher-model './nowhere'",
    "llm --model embedded --teacher-config {there}/teachers.yaml --data-path {data}": "'./nowhere' is not a folder",
    "{run} --data-path {data} --stages {there}/stages.yaml": "stage 2: train has no column 'question'",
    "{run} --data-path {data} --stages {there}/teachers.yaml": "stage 1: model cannot differ",
    "teach --model embedded --teacher-model embedded --data-path {there}/nowhere.jsonl --output store": "no such file",
    "evaluate {project} --data-path {there}/nowhere.jsonl": "no such file or folder",
    "evaluate {project} --data-path {data} --metric foo": "--metric 'foo' is unknown",
    "evaluate {project} --data-path {data} --reference-column answer": "no column 'answer'",
    "evaluate {project} --data-path {data} --judge foo": "--judge 'foo' is not a model on a server",
    "evaluate {project} --data-path {data} --teacher-model ./nowhere": "--teacher-model './nowhere'",
    "evaluate {project} --data-path {data} --before ./nowhere": "'./nowhere' is not a folder",
    "evaluate --student ./nowhere --teacher-model embedded --data-path {data}": "'./nowhere' is not a folder",
    "data {there}/nowhere.jsonl --output {there}/out.jsonl": "no such file or folder",
    "data {data} --output {data} --overwrite": "is read, and would be replaced",
    "queries --teacher ./nowhere --teacher-system x --output {there}/q.jsonl": "'./nowhere' is not a folder",
    "queries --teacher embedded --output {there}/q.jsonl": "there is no prompt to write inputs for",
    "{tune} --data-path {data} --holdout 0.5 --distill-temperature 1,0": "--distill-temperature is 0.0",
    "{tune} --data-path {data} --holdout 0.5": "nothing to tune",
    "{tune} --data-path {data} --lr 1e-3,1e-4": "no held-out rows",
    "export {project} --to gguf": "llama.cpp's converter",
    "export {project} --to mlx": "mlx_lm is not installed",
    "export {project} --to vllm --output {data}": "is a file",
    "export {project} --to vllm --verify 3 --data-path {there}/nowhere.jsonl": "no such file or folder",
}  # fmt: skip
RUN_ALL = """
import contextlib, io, sys
from trl_distill.cli import main

def said(words):
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main(words)
        except SystemExit as end:
            return end.code, errors.getvalue()

for words, expected in {commands}:
    code, errors = said(words)
    assert code == 2 and errors.count(chr(10)) == 1 and expected in errors, (words, code, errors)
    assert "torch" not in sys.modules, words
"""


def finished_project(folder):
    """Make the files that say that a run has finished, all of its settings but the model at their defaults."""
    folder.mkdir()
    files = {"run.json": {"files": {}}, "metrics.json": {"metrics": {}}, "config.json": {}}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "config.yaml").write_text("model: embedded\nteacher_model: embedded\n")
    return folder


def test_mistakes_that_need_no_torch_are_found_before_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "data.jsonl").write_text('{"text": "red cat"}\n')
    (tmp_path / "teachers.yaml").write_text("- model: ./nowhere\n")
    (tmp_path / "stages.yaml").write_text("- epochs: 1\n- text_column: question\n")
    places = {"there": tmp_path, "data": tmp_path / "data.jsonl", "project": finished_project(tmp_path / "project")}
    places["run"] = f"llm --model embedded --teacher-model embedded --project-name {tmp_path / 'run'}"
    places["tune"] = places["run"].replace("llm", "tune", 1)
    commands = [(command.format(**places).split(), expected.format()) for command, expected in MISTAKES.items()]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PATH", "/nowhere")  # no converter
    assert "torch" not in heavy_after(RUN_ALL.format(commands=commands))


class EmptyHub(BaseHTTPRequestHandler):
    """A Hub that has no model."""

    def do_GET(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


def test_a_hub_model_is_looked_for_before_torch_is_imported(tmp_path, monkeypatch):
    (tmp_path / "data.jsonl").write_text('{"text": "red cat"}\n')
    with HTTPServer(("127.0.0.1", 0), EmptyHub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        for name, value in {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"}.items():
            monkeypatch.setenv(name, value)
        command = f"llm --model embedded --teacher-model me/typo --data-path {tmp_path / 'data.jsonl'}".split()
        try:
            loaded = heavy_after(RUN_ALL.format(commands=[(command, "--teacher-model 'me/typo': no configuration")]))
        finally:
            hub.shutdown()
    assert "torch" not in loaded


@pytest.mark.parametrize("module", FOUNDATION)
def test_the_foundation_imports_the_standard_library_and_itself(module):
    for node in ast.walk(ast.parse((SOURCE / (module.replace(".", "/") + ".py")).read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.partition(".")[0] for alias in node.names} <= sys.stdlib_module_names
        elif isinstance(node, ast.ImportFrom) and node.level:
            package = module.split(".")[: -node.level]
            assert ".".join([*package, node.module]) in FOUNDATION, f"{module} imports {node.module}"
        elif isinstance(node, ast.ImportFrom):
            assert str(node.module).partition(".")[0] in sys.stdlib_module_names
