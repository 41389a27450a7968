"""Each page of docs/howto is followed from its first block to its last, on few rows and with small models."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from page_blocks import blocks, follow, lines

from trl_distill.embedded import embedded_path

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(path for path in (DOCS / "howto").glob("*.md") if path.name != "README.md")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The tutorial's files as its first step makes them, with a fifth of the messages and a quarter of the prompt."""
    folder = tmp_path_factory.mktemp("data")
    for _, _, code in blocks(DOCS / "tutorial.md")[:2]:
        follow("bash", code.replace("range(60)", "range(12)"), folder)
    prompt = (folder / "handbook.txt").read_text()
    (folder / "handbook.txt").write_text(prompt[prompt.rindex("\nRules:") :].strip() + "\n")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_each_block_of_a_how_to_page_runs(page, data, student_dir, server, tmp_path):
    for name, source in (("small", student_dir), ("large", embedded_path())):
        (tmp_path / name).symlink_to(source)
    for path in data.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    environment = {name: os.environ[name] for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL")}
    printed, ran = "", 0
    for _, language, code in blocks(page):
        if language == "text":
            assert [line for line in lines(code) if line != "..." and line not in lines(printed)] == []
        else:
            printed = follow(language, code, tmp_path, environment)
            ran += 1
    assert ran
    for project in re.findall(r"--project-name (\S+)", page.read_text("utf-8")):
        assert (tmp_path / project / "run.json").is_file(), project
