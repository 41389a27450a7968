"""Importing costs nothing: no torch behind the package, the help, a parse error or a refused value."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("accelerate", "datasets", "huggingface_hub", "numpy", "openai", "peft", "torch", "transformers", "trl")
SOURCE = Path(__file__).parents[1] / "src" / "trl_distill"
FOUNDATION = (
    "config.choices",
    "config.distillation_arguments",
    "config.setting_names",
    "config.endpoints",
    "config.fields",
    "config.training_params",
    "config.validation",
    "errors",
    "printable",
    "prompts.template",
    "trainer.registry",
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
        "from autotrain.trainers.clm import evaluate, train; import autotrain.trainers.clm.params",
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
        (["llm", "--model", "m", "--teacher-model", "t", "--teacher-prompt-template", "no field"], 2),
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
