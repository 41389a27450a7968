"""docs/tutorial.md is followed from its first block to its last, and prints what the page shows."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from page_blocks import blocks, follow, lines

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
SERVE = "transformers serve "


class Followed(NamedTuple):
    """What the blocks up to the server's left and printed."""

    folder: Path
    printed: str


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """Each block is run up to the server's; each line that the page shows is printed, but for figures."""
    folder = tmp_path_factory.mktemp("tutorial")
    printed = everything = ""
    for not_run, language, code in blocks(PAGE):
        if code.startswith(SERVE):
            break
        if language == "text":
            assert [line for line in lines(code) if line != "..." and line not in lines(printed)] == []
        elif not not_run:
            printed = follow(language, code, folder)
            everything += printed
    return Followed(folder, everything)


def test_the_tutorial_runs_as_written(followed):
    """The verdict and what is equal are as shown."""
    assert "12 of 60 rows are held out" in followed.printed
    assert "It works: the student closes" in followed.printed
    assert "\n[Repair] battery\n" in followed.printed
    assert "12 of 12 greedy completions (100.0%) equal the trained student's, by transformers" in followed.printed
    assert (followed.folder / "support" / "report.html").is_file()


def test_the_tutorials_student_is_served(followed):
    """The last blocks: the server, on a free port, and the question, whose answer is that of the page."""
    for package in ("fastapi", "openai", "uvicorn"):  # all that the server needs and no other package brings
        pytest.importorskip(package, reason="transformers[serving] is not installed")
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    serve, ask, shown = (code for _, language, code in blocks(PAGE)[-3:])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [str(Path(sys.executable).parent / "transformers"), *shlex.split(serve.replace("8017", port))[1:]]
    assert serve.startswith(SERVE)
    with (followed.folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=followed.folder, stdout=log, stderr=log, env={**os.environ})
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server)
        answer = json.loads(follow("bash", ask.replace("8017", port), followed.folder))
    finally:
        server.terminate()
        server.wait(30)
    expected = json.loads(shown)
    assert answer["usage"] == expected["usage"]
    assert answer["choices"][0]["message"]["content"] == expected["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    """Return when a server answers."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert server.poll() is None, "the server ended; see server.log"
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError("the server does not start")
