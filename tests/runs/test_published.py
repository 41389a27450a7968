"""What others get to see of a run: its card and what is uploaded, with hostile names and rows that are private."""

from __future__ import annotations

import getpass
import json
import re
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import html5lib
import pytest
import yaml
from huggingface_hub.utils import filter_repo_objects
from markdown_it import MarkdownIt

from trl_distill import LLMTrainingParams, run
from trl_distill.trainer.card_text import code, escaped, fenced, public_name

EVIL = "x`|<img src=x onerror=alert(1)>[y](javascript:alert(2))"
TEMPLATE = "g `|<script>alert(3)</script> {input}\n```\n---\n<img src=x onerror=alert(4)>\x1b[2J\u202e"
PRIVATE = ["private alpha", "private beta", "private gamma", "private delta"]
CARD_LESS = ("checkpoints", "teacher_completions.jsonl", "eval_samples.jsonl", "held_out.jsonl", "tensorboard")


class Hub:
    """Stands for huggingface_hub's client: keeps what is uploaded."""

    def __init__(self, token):
        assert token == "hf_private_token"
        Hub.files: dict[str, bytes] = {}

    def create_repo(self, name, **_):
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, *, folder_path, allow_patterns, ignore_patterns, **_):
        found = [p.relative_to(folder_path).as_posix() for p in Path(folder_path).rglob("*") if p.is_file()]
        for name in filter_repo_objects(found, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            Hub.files[name] = (Path(folder_path) / name).read_bytes()

    def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id):
        Hub.files[path_in_repo] = path_or_fileobj


@pytest.fixture(scope="module", params=[False, True], ids=["private", "with example"])
def published(request, tiny_model_dir, tiny_teacher_dir, tmp_path_factory):
    """Return whether rows may be shown, the project's folder, its card and the uploaded files of a run."""
    place = tmp_path_factory.mktemp("home") / "someone"
    place.mkdir()
    for name, folder in ((f"student{EVIL}", tiny_model_dir), ("teacher|x", tiny_teacher_dir)):
        shutil.copytree(folder, place / name)
    data = place / f"rows {EVIL}.jsonl"
    data.write_text("\n".join(json.dumps({"text": text, "completion": " b"}) for text in PRIVATE))
    settings = {
        "model": str(place / f"student{EVIL}"), "teacher_model": str(place / "teacher|x"), "data_path": str(data),
        "teacher_prompt_template": TEMPLATE, "max_steps": 1, "project_name": str(place / f"run {EVIL}"), "peft": True,
        "holdout": 0.25, "eval_samples": 1, "log": "tensorboard", "push_to_hub": True, "username": "me",
        "card_example": request.param,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_TOKEN", "hf_private_token")
        patched.setattr("huggingface_hub.HfApi", Hub)
        patched.setattr("trl_distill.runs.checks.check_token", lambda params: None)  # the tests' Hub takes any name
        folder = run(LLMTrainingParams(**settings)).paths["project"]
    return SimpleNamespace(shows=request.param, place=place, folder=folder, files=dict(Hub.files))


def cards(published):
    return [(published.folder / "README.md").read_text(), published.files["README.md"].decode()]


def test_a_card_has_no_row_of_the_data_unless_asked(published):
    for card in cards(published):
        assert ("Your input" in card) != published.shows
        assert any(text in card for text in PRIVATE) == published.shows
        assert ("it printed:" in card) == published.shows


def test_a_card_names_no_place_of_the_machine(published):
    for card in cards(published):
        for secret in (str(published.place), str(Path.home()), "someone", "hf_private_token"):
            assert secret not in card


def test_nothing_that_is_uploaded_names_a_row_a_place_or_a_token_unless_asked(published):
    files = published.files
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "metrics.json", "metrics.jsonl"} <= {
        *files
    }
    assert {"tokenizer.json", "tokenizer_config.json"} <= {*files}
    assert ({"report.html", "report.json", "config.yaml"} <= {*files}) == published.shows
    assert not any(name.startswith(CARD_LESS) or name.endswith((".bin", ".pt", ".pth")) for name in files)
    assert not any(b"hf_private_token" in content for content in files.values())
    if published.shows:
        return
    texts = {name: content for name, content in files.items() if not name.endswith(("safetensors", "tokenizer.json"))}
    secrets = [str(published.place), str(Path.home()), f"{getpass.getuser()}@", socket.gethostname() + ".", *PRIVATE]
    leaks = {name: s for name, content in texts.items() for s in secrets if s.encode() in content}
    assert leaks == {}
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == f"student{EVIL}"


def test_the_card_renders_names_and_templates_as_text(published):
    for card in cards(published):
        head, _, body = card.removeprefix("---\n").partition("\n---\n")
        assert yaml.safe_load(head)["tags"] == ["trl", "trl-distill", "prompt-distillation"]
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e]", card)
        html = MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(body)
        page = html5lib.parse(html, namespaceHTMLElements=False)
        assert {element.tag for element in page.iter()} & {"img", "script", "a", "hr"} == set()
        rows = [[len(row) for row in table.iter("tr")] for table in page.iter("table")]
        assert rows
        assert {cells for table in rows for cells in table} == {2}
        assert TEMPLATE.split("\n")[0] in body
        assert page.find(".//h1").text.startswith(("run x`|<img", "me"))


@pytest.mark.parametrize(
    "text", ["a`b", "``", "`", "a|b", "<b>", "a\nb", "\x1b[0m", "[a](b)", "*a*", "\\", "&lt;", "a`` `b"]
)
def test_text_of_others_is_markdowns_text(text):
    render = MarkdownIt("gfm-like", {"linkify": False, "html": True}).render
    seen = text.replace("\n", " ").replace("\x1b", "\\x1b")
    for made in (f"x {escaped(text)} x", f"x {code(text)} x"):
        page = html5lib.parse(render(made), namespaceHTMLElements=False)
        assert "".join(page.find(".//p").itertext()) == f"x {seen} x"
        assert {e.tag for e in page.find(".//p").iter()} <= {"p", "code"}
    table = render(f"| a | b |\n|---|---|\n| x | {escaped(text)} |\n")
    assert "".join(html5lib.parse(table, namespaceHTMLElements=False).findall(".//td")[1].itertext()) == seen
    block = html5lib.parse(render(fenced(text)), namespaceHTMLElements=False).find(".//code")
    assert block.text == text.replace("\x1b", "\\x1b") + "\n"


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("embedded", "embedded"),
        ("runs/first", "runs/first"),
        ("/home/me/models/small/", "small"),
        ("~/models/small", "small"),
        ("../me/small", "small"),
        ("C:\\Users\\me\\small", "small"),
        ("/", "a folder"),
        ("http://10.0.0.7:8000/v1#org/model", "org/model (on a server)"),
        ("HTTPS://me:secret@internal/v1", "a server"),
        ("openai:gpt-5", "openai:gpt-5"),
    ],
)
def test_a_name_on_a_card_does_not_say_where_something_is(name, public):
    assert public_name(name) == public
