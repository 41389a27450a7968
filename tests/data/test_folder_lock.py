"""One process at a time holds a folder, and none that has ended."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import threading

import pytest
from holding import another_process

from trl_distill.data import folder_lock as module
from trl_distill.data.folder_lock import file_lock, folder_lock
from trl_distill.errors import ProjectError


def hold(folder):
    return folder_lock(folder, what=f"project_name {folder.name!r}", instead="another --project-name")


def test_the_second_process_is_refused_and_told_who_holds_the_folder(tmp_path):
    with another_process(tmp_path / "run") as (other, _):
        with pytest.raises(ProjectError) as error, hold(tmp_path / "run"):
            pass
        there = json.loads((tmp_path / "run" / ".lock").read_text())
    host = re.escape(socket.gethostname())
    said = rf"project_name 'run' is in use by process {other.pid} on this machine \({host}\) since {there['since']}; "
    assert re.fullmatch(said + "wait until it ends, or give another --project-name.", str(error.value))


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    with another_process(tmp_path / "run") as (other, _):
        other.kill()
        other.wait()
        assert json.loads((tmp_path / "run" / ".lock").read_text())["pid"] == other.pid
        with hold(tmp_path / "run"):
            assert json.loads((tmp_path / "run" / ".lock").read_text())["pid"] == os.getpid()


def test_a_fork_that_outlives_a_killed_process_does_not_hold_its_lock(tmp_path):
    with another_process(tmp_path / "run", forks=True) as (other, forks):
        other.kill()
        other.wait()
        for fork in forks:
            os.kill(fork, 0)  # it lives
        with hold(tmp_path / "run"):
            pass


def test_a_thread_may_hold_a_folder_again_and_another_thread_may_not(tmp_path):
    said = []

    def other_thread():
        with pytest.raises(ProjectError, match="in use by another thread of this process") as error, hold(tmp_path):
            pass
        said.append(error)

    (tmp_path / "link").symlink_to(tmp_path)
    with hold(tmp_path):
        with hold(tmp_path / "link"):  # the same folder
            pass
        assert (tmp_path / ".lock").is_file()
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
    assert said
    assert not (tmp_path / ".lock").exists()


def test_a_folder_that_stays_empty_is_deleted_and_any_other_stays(tmp_path):
    with hold(tmp_path / "a" / "b"):
        pass
    assert not (tmp_path / "a").exists()
    with hold(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "result").write_text("")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["result"]


def test_temporary_files_of_a_killed_run_are_deleted_by_the_next(tmp_path):
    (tmp_path / ".metrics.json.0123abcd.writing").write_text("half")
    (tmp_path / "notes.writing").write_text("mine")
    with hold(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "notes.writing"}


def test_other_ranks_of_a_launch_hold_nothing(tmp_path, monkeypatch):
    with another_process(tmp_path / "run"):
        monkeypatch.setenv("RANK", "1")
        with hold(tmp_path / "run"):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(ProjectError), hold(tmp_path / "run"):
            pass


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with hold(tmp_path):
        pass
    said = capsys.readouterr().out
    assert said == (
        f"Warning: project_name {tmp_path.name!r} is not protected from a second run: its file system has no locks "
        "(No locks available); start only one.\n"
    )


def test_a_platform_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "fcntl", None)
    with hold(tmp_path), hold(tmp_path):
        pass
    assert "this platform has no flock; start only one." in capsys.readouterr().out


def test_a_lock_that_another_machine_has_left_is_a_warning(tmp_path, capsys):
    (tmp_path / ".lock").write_text(json.dumps({"pid": 7, "host": "node-3", "since": "2026-01-02 03:04"}))
    with hold(tmp_path):
        pass
    assert "process 7 on node-3 since 2026-01-02 03:04 has not released it" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1, "host": "\\u001b[31m", "since": ""}', "x" * 5000])
def test_a_lock_file_of_any_content_is_no_obstacle(content, tmp_path, capsys):
    (tmp_path / ".lock").write_text(content)
    with hold(tmp_path):
        pass
    assert not capsys.readouterr().out


def test_a_lock_is_never_made_through_a_link(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "victim")
    said = r"cannot be locked: '.*/\.lock': is a link; give another"
    with pytest.raises(ProjectError, match=said), hold(tmp_path / "run"):
        pass
    (tmp_path / "run" / ".lock").unlink()
    os.mkfifo(tmp_path / "run" / ".lock")
    with pytest.raises(ProjectError, match="it is not a file"), hold(tmp_path / "run"):
        pass
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_file_is_held_beside_it_whatever_its_name(tmp_path):
    for name in ("completions.jsonl", "é" * 120):
        with file_lock(tmp_path / name, what="it", instead="another"):
            assert len(list(tmp_path.iterdir())) == 1
        assert not list(tmp_path.iterdir())
