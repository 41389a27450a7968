"""The blocks of the reference pages run, on small models: what trains does so up to its first step (`--dry-run`).

The pages that are followed as they stand have tests of their own: test_tutorial.py, test_howtos.py, and
test_docs.py for the README.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from page_blocks import blocks, follow
from safetensors.torch import load_file, save_file
from teachers.writers import make_t5

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("cli", "data", "distillation", "embedded", "recipes", "stages", "teachers", "tuning")
ROWS = [
    {"text": f"where is my {thing}?", "topic": topic, "team": topic}
    for topic, things in (("billing", ("invoice", "refund")), ("delivery", ("parcel", "letter")))
    for thing in things
]
TEACHERS = """\
teachers:
  - {model: ./small, template: "You answer questions on invoices. {input}", rows: team=billing}
  - {model: ./large, rows: team=delivery}
"""
ELSEWHERE = {
    'model="runs/command"': "test_docs.py runs this after the README's command",
    "train_stages(": "tests/runs/test_stages.py trains in stages",
    "tune(": "tests/runs/test_tuning.py searches",
}


TRAIN = re.compile(r"^aitraining (?:llm|tune) (?:.*\\\n)*.*", re.MULTILINE)
WRITE = re.compile(r"^aitraining (?:llm|teach|tune) (?:.*\\\n)*.*", re.MULTILINE)


@pytest.fixture
def folder(student_dir, tiny_model_dir, server, tmp_path):
    """A folder with what the pages name: models, prompts and rows."""
    for name in ("small", "base", "model"):
        (tmp_path / name).symlink_to(student_dir)
    (tmp_path / "other-family").symlink_to(tiny_model_dir)
    shutil.copytree(student_dir, tmp_path / "large")  # with other weights, so that it has something to teach
    weights = load_file(tmp_path / "large" / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, tmp_path / "large" / "model.safetensors")
    make_t5(tmp_path / "t5-large")
    (tmp_path / "data").mkdir()
    for name in ("queries.jsonl", "data/queries.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    chats = [{"messages": [{"role": "user", "content": row["text"]}]} for row in ROWS]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    (tmp_path / "prompt.txt").write_text("Answer kindly. {input}\n")
    (tmp_path / "system.txt").write_text("Answer kindly.\n")
    (tmp_path / "teachers.yaml").write_text(TEACHERS)
    (tmp_path / "run.yaml").write_text("data_path: queries.jsonl\nteacher_prompt_template: '@prompt.txt'\n")
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_reference_page_run(page, folder, server):
    environment = {"LAB_KEY": "k3y", **{name: os.environ[name] for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL")}}
    ran = 0
    for _, language, code in blocks(DOCS / f"{page}.md"):
        if language not in ("bash", "python", "yaml") or any(part in code for part in ELSEWHERE):
            continue
        if language == "yaml":
            if page == "stages":
                (folder / "stages.yaml").write_text(code)
            continue
        code = re.sub(r"https?://[\w.:]+/v1#my-model", server.teacher, code)
        code = code.replace("--teacher-system @prompt.txt", "--teacher-system @system.txt")
        code = WRITE.sub(r"\g<0> --distill-max-teacher-length 4", TRAIN.sub(r"\g<0> --dry-run", code))
        follow(language, code, folder, environment)
        ran += 1
    assert ran
