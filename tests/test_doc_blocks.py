"""The blocks of the reference pages run, on small models: what trains does so up to its first step (`--dry-run`).

Where a later block needs the student, it is trained. The pages that are followed as they stand have tests of their own:
test_tutorial.py, test_howtos.py, and test_docs.py for the README.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from contextlib import nullcontext
from pathlib import Path

import pytest
from page_blocks import BLOCK, NOT_RUN, blocks, follow
from safetensors.torch import load_file, save_file
from teachers.list_writer import serving
from teachers.writers import make_t5

from trl_distill.trainer.registry import ENTRY_POINTS

DOCS = Path(__file__).parents[1] / "docs"
PAGES = (
    "cli", "data", "distillation", "distributed", "embedded", "evaluation", "queries", "recipes", "serving", "stages",
    "teachers", "trl", "tuning",
)  # fmt: skip
PROJECTS = {"distillation": "command", "evaluation": "first", "serving": "first", "trl": "first"}  # that pages name
FENCE = re.compile(r"^ *(?:```|~~~)([^\n]*)\n.*?^ *(?:```|~~~) *$", re.DOTALL | re.MULTILINE)
ROWS = [
    {"text": f"where is my {thing}?", "answer": topic, "topic": topic, "team": topic}
    for topic, things in (("billing", ("invoice", "refund")), ("delivery", ("parcel", "letter")))
    for thing in things
]
SETTINGS = "data_path: queries.jsonl\nteacher_model: ./large\nteacher_prompt_template: '@prompt.txt'\n"
TRAIN = re.compile(r"\b(?:aitraining|trl_distill\.cli) llm (?:.*\\\n)*.*")
WRITE = re.compile(r"\b(?:aitraining|trl_distill\.cli) (?:llm|teach|tune|evaluate) (?:.*\\\n)*.*")
SMALLER = {  # as much as a test has time for, and what is in the folder
    "--count 500": "--count 20",
    "--trials 20": "--trials 2",
    "--teacher-system @prompt.txt": "--teacher-system @system.txt",
    '"@prompt.txt", 500': '"@system.txt", 20',
    "Qwen/Qwen2.5-7B-Instruct": "./large",
}


@pytest.fixture(scope="module")
def models(student_dir, tiny_model_dir, tmp_path_factory):
    """The models that the pages name."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("small", "base", "model", "trained", "billing"):
        (folder / name).symlink_to(student_dir)
    (folder / "other-family").symlink_to(tiny_model_dir)
    shutil.copytree(student_dir, folder / "large")  # with other weights, so that it has something to teach
    weights = load_file(folder / "large" / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, folder / "large" / "model.safetensors")
    make_t5(folder / "t5-large")
    return folder


def first_command() -> str:
    """Return the command with which evaluation.md begins; it trains the student that other pages name too."""
    return blocks(DOCS / "evaluation.md")[0][2].partition("aitraining evaluate")[0]


@pytest.fixture(scope="module")
def student(models, tmp_path_factory):
    """The project that the first command of evaluation.md writes."""
    folder = filled(tmp_path_factory.mktemp("student"), models)
    follow("bash", small(first_command(), dry=False), folder)
    return folder / "runs" / "first"


@pytest.fixture
def folder(models, tmp_path):
    """A folder with what the pages name."""
    return filled(tmp_path, models)


def filled(folder: Path, models: Path) -> Path:
    """Put models, prompts and rows into a folder, and return it."""
    for path in models.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "examples").symlink_to(DOCS.parent / "examples")
    (folder / "data").mkdir()
    for name in ("queries.jsonl", "data/queries.jsonl", "heldout.jsonl", "prompts.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    chats = [{"messages": [{"role": "user", "content": row["text"]}]} for row in ROWS]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    (folder / "prompt.txt").write_text("Answer kindly. {input}\n")
    (folder / "system.txt").write_text("Answer kindly.\n")
    (folder / "run.yaml").write_text(SETTINGS)
    return folder


def small(code: str, *, dry: bool) -> str:
    """Return a block that asks for little."""
    for name, smaller in SMALLER.items():
        code = code.replace(name, smaller)
    if dry:
        code = TRAIN.sub(r"\g<0> --dry-run", code)
    return WRITE.sub(r"\g<0> --distill-max-teacher-length 4", code)


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_reference_page_run(page, folder, server, request):
    if page in PROJECTS:
        shutil.copytree(request.getfixturevalue("student"), folder / "runs" / PROJECTS[page])
    if page == "queries":
        (folder / "queries.jsonl").unlink()  # this page writes them
    environment = {"LAB_KEY": "k3y", **{name: os.environ[name] for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL")}}
    ran = 0
    with serving() if page == "queries" else nullcontext((server.teacher, None)) as (teacher, _):
        url = environment["OPENAI_BASE_URL"] = teacher.partition("#")[0]
        for not_run, language, code in blocks(DOCS / f"{page}.md"):
            assert not not_run
            code = re.sub(r"https?://[\w.:]+/v1#my-model", teacher, code.replace(first_command(), ""))
            code = small(re.sub(r"https?://[\w.:]+/v1\b", url, code), dry=page != "queries")
            if language == "yaml":
                (folder / f"{page}.yaml").write_text(code)
            elif language == "toml":
                assert list(tomllib.loads(code)["project"]["entry-points"]) == [ENTRY_POINTS]
            elif language != "text":
                follow(language, code, folder, environment)
                ran += 1
    assert ran


def test_no_block_of_a_page_is_left_out():
    """Each is of a page that is run, or shows an output; what cannot be run is on a list, which names nothing else."""
    everything = ""
    for page in sorted(DOCS.rglob("*.md")):
        text, name = page.read_text("utf-8"), page.relative_to(DOCS).with_suffix("").as_posix()
        languages = [language for _, language, _ in BLOCK.findall(text)]
        assert FENCE.findall(text) == languages, f"{name}: a block is not seen, or names no language"
        followed = name == "tutorial" or (name.startswith("howto/") and name != "howto/README")
        assert not set(languages) - {"text"} or followed or name in PAGES, name
        everything += text
    for command in NOT_RUN:
        assert command in everything, command
