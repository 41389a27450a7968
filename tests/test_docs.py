"""The documentation is checked as code is: links, flags, commands, examples, and the tests that it names."""

from __future__ import annotations

import ast
import copy
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from forks import run_fork

from trl_distill.cli.data_command import data
from trl_distill.cli.evaluate_command import evaluate
from trl_distill.cli.export_command import export
from trl_distill.cli.llm_command import llm, params_from_command, params_of
from trl_distill.cli.queries_command import queries
from trl_distill.cli.teach_command import teach
from trl_distill.cli.tune_command import searched, tune
from trl_distill.runs.tuning.plan import combinations

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
pages = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the code blocks of a page in these languages."""
    return [code for language, code in BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


def slugs(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_of_the_docs_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), target
        assert not anchor or anchor in slugs(found), target


def test_the_docs_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"]({name})" in index, name


@pages
def test_tests_named_in_the_docs_exist(page):
    for file, name in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text(encoding="utf-8")):
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not name or name in functions, f"{file}::{name}"


@pages
def test_tests_are_named_in_comments_alone(page):
    if page.name != "CONTRIBUTING.md":  # for those who write tests
        assert re.findall(r"\btest_\w+", COMMENT.sub("", page.read_text(encoding="utf-8"))) == []


@pages
def test_flags_in_the_docs_exist(page):
    known = {"--help", "--version"} | {
        flag
        for command in (llm, data, queries, teach, evaluate, export, tune)
        for option in command.params
        for flag in (*option.opts, *option.secondary_opts)
    }
    for span in re.findall(r"`([^`\n]+)`", BLOCK.sub("", page.read_text(encoding="utf-8"))):
        flag = re.match(r"--[\w-]+", span)
        assert flag is None or flag[0].replace("_", "-") in known, span


@pages
def test_commands_in_the_docs_are_accepted(page, tmp_path, monkeypatch):
    if page.parent.name == "howto":
        return  # test_howtos.py runs them
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("lr: 1e-4\n")
    for code in blocks(page, "bash", "sh", "console"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:2] == ["aitraining", "llm"]:
                params = params_from_command(words[2:])
                params.validate()
                assert params.model, line
            if words[:2] == ["aitraining", "evaluate"]:
                assert evaluate.make_context("evaluate", words[2:])
            if words[:2] == ["aitraining", "data"]:
                assert data.make_context("data", words[2:])
            if words[:2] == ["aitraining", "queries"]:
                assert queries.make_context("queries", words[2:])
            if words[:2] == ["aitraining", "export"]:
                assert export.make_context("export", words[2:])
            if words[:2] == ["aitraining", "tune"]:
                shared, space = searched(tune.make_context("tune", words[2:]))
                assert space, line
                for settings in combinations(space):
                    params = copy.copy(shared)
                    for name, value in settings.items():
                        params.set(name, value)
                    params.validate()
            if words[:2] == ["aitraining", "teach"]:
                params = params_of(teach.make_context("teach", words[2:]))
                params.validate()
                assert params.teacher_model, line


@pages
def test_python_in_the_docs_compiles(page):
    for code in blocks(page, "python"):
        assert compile(code, str(page), "exec")


def test_the_flag_tables_of_the_docs_are_up_to_date():
    spec = importlib.util.spec_from_file_location("flags", ROOT / "docs" / "flags.py")
    assert spec is not None
    assert spec.loader is not None
    flags = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(flags)
    for name in flags.PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert flags.TABLE.search(text), name
        assert flags.filled(text) == text, f"run `python docs/flags.py`: {name} differs"
    complete = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    missing = [field for field in flags.FIELDS if f"| `--{field.replace('_', '-')}` |" not in complete]
    assert missing == []


def test_make_targets_in_the_docs_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"^ *make ([a-z-]+)|`make ([a-z-]+)`", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert {first or second for first, second in named} <= targets, page.name


def test_the_readme_runs_as_written(tmp_path):
    """Its shell blocks but for `make`, then its Python blocks, in one empty folder."""
    readme = ROOT / "README.md"
    shell = [code for code in blocks(readme, "bash") if "make " not in code]
    code = "\n".join(blocks(readme, "python"))
    assert len(shell) == 3
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "-ec", "\n".join(shell)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (tmp_path / "library.py").write_text(code)
    ended = run_fork(["library.py"], tmp_path)
    assert ended.code == 0, ended.errors
    for name in ("command", "library"):
        assert (tmp_path / "runs" / name / "model.safetensors").is_file()
        assert (tmp_path / "runs" / name / "README.md").is_file()
