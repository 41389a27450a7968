"""A file is complete or not there, and is never written through a link."""

from __future__ import annotations

import os

import pytest

from trl_distill.data.atomic_file import append, fresh_folder, remove, replacing, write_text
from trl_distill.data.folder_names import file_in, is_inside, link_to


@pytest.fixture
def outside(tmp_path):
    """A folder with a file of somebody else's."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "victim.txt").write_text("mine")
    yield folder
    assert [path.name for path in folder.iterdir()] == ["victim.txt"]
    assert (folder / "victim.txt").read_text() == "mine"


def test_a_link_is_replaced_and_not_written_through(tmp_path, outside):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "metrics.json"
    path.symlink_to(outside / "victim.txt")
    assert write_text(path, "new").read_text() == "new"
    assert not path.is_symlink()
    assert [path.name for path in path.parent.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_what_is_appended_reaches_no_other_name_of_a_file(link, tmp_path, outside):
    path = tmp_path / "completions.jsonl"
    link(outside / "victim.txt", path)
    append(path, b" and more")
    append(path, b" and more")
    assert path.read_text() == "mine and more and more"
    assert not path.is_symlink()


def test_a_pipe_in_the_place_of_a_file_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "completions.jsonl")
    append(tmp_path / "completions.jsonl", b"line")
    assert (tmp_path / "completions.jsonl").read_text() == "line"


def test_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("renamed"), replace(old, new)))
    write_text(tmp_path / "a.txt", "x")
    content, renamed, names = done
    assert content.endswith(".writing")
    assert (renamed, names) == ("renamed", str(tmp_path))


def test_an_error_leaves_the_earlier_file_and_no_other(tmp_path):
    path = write_text(tmp_path / "a.txt", "old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_file_has_the_permissions_of_any_new_one(tmp_path):
    (tmp_path / "usual").write_text("")
    with replacing(tmp_path / "a.bin") as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
    assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_what_a_link_leads_to_is_not_deleted(tmp_path, outside):
    for target in (outside, outside / "victim.txt"):
        link = tmp_path / "link"
        link.symlink_to(target)
        remove(link)
        assert not link.is_symlink()
        link.symlink_to(target)
        assert not list(fresh_folder(link).iterdir())
        link.rmdir()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer/tokenizer.json", "a//b", "...", "a b"])
def test_a_name_below_its_folder_is_used(name, tmp_path):
    assert file_in(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name",
    [
        "../victim.txt",
        "a/../../b",
        "/etc/passwd",
        "",
        ".",
        "..",
        "..\\b",
        "C:\\x",
        "C:x",
        "\\\\host\\x",
        "a\0b",
        None,
        5,
    ],
)
def test_a_name_that_may_lead_elsewhere_is_refused(name, tmp_path):
    assert not is_inside(name)
    with pytest.raises(ValueError, match="is not the name of a file inside the folder"):
        file_in(tmp_path, name)


def test_a_file_behind_a_link_is_refused_but_the_folder_may_be_one(tmp_path, outside):
    folder, linked = tmp_path / "run", tmp_path / "linked"
    folder.mkdir()
    linked.symlink_to(folder)
    (folder / "sub").symlink_to(outside)
    (folder / "file").symlink_to(outside / "victim.txt")
    for name, link in (("sub/victim.txt", "sub"), ("file", "file")):
        assert link_to(linked, name) == linked / link
        with pytest.raises(ValueError, match="is a link, or in a linked folder"):
            file_in(linked, name)
    assert file_in(linked, "other") == linked / "other"
