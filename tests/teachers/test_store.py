"""Completions already paid for: kept by content, whatever happens to the process."""

from __future__ import annotations

import json

import pytest
from holding import another_process

from trl_distill.errors import ProjectError
from trl_distill.models.generation import Completion
from trl_distill.teachers.completions.store import CompletionStore, JsonlStore, key_of


def test_stored_completions_are_there_for_the_next_run(tmp_path):
    path = tmp_path / "new" / "store.jsonl"
    CompletionStore(path).add({"a": Completion((1, 2), True), "b": Completion((3,), False)})
    again = CompletionStore(path)
    assert len(again) == 2
    assert again["a"] == Completion((1, 2), True)
    assert again["b"] == Completion((3,), False)


def test_a_line_torn_by_a_kill_loses_that_line_only(tmp_path):
    path = tmp_path / "store.jsonl"
    store = CompletionStore(path)
    store.add({"a": Completion((1,), True)})
    store.add({"b": Completion((2,), True)})
    path.write_text(path.read_text()[:-9])
    torn = CompletionStore(path)
    assert "a" in torn
    assert "b" not in torn
    torn.add({"c": Completion((3,), True)})
    after = CompletionStore(path)
    assert "a" in after
    assert "c" in after


def test_every_cut_of_the_file_keeps_all_whole_lines(tmp_path):
    path = tmp_path / "store.jsonl"
    store = CompletionStore(path)
    for i in range(5):
        store.add({str(i): Completion((i, i + 1), True)})
    text = path.read_text()
    for end in range(len(text)):
        path.write_text(text[:end])
        whole = sum(1 for line in text[:end].splitlines() if _parses(line))
        assert len(CompletionStore(path)) == whole


def _parses(line):
    try:
        return "finished" in json.loads(line)
    except ValueError:
        return False


def test_files_of_earlier_versions_are_read_and_settled_without_loss(tmp_path):
    path = tmp_path / "store.jsonl"
    lines = [
        '{"key": "b", "ids": [], "finished": false, "text": "", "reasoning": "hm", "unusable": "cut"}',
        '{"key": "a", "ids": [1, 2], "finished": true}',
        '{"key": "c", "ids": [], "fini',
    ]
    path.write_text("\n".join(lines))
    expected = {"a": Completion((1, 2), True), "b": Completion((), False, "", "hm", "cut")}
    store = CompletionStore(path)
    assert {key: store[key] for key in expected} == expected
    store.settle()
    assert path.read_text().splitlines() == [lines[1], lines[0]]
    assert {key: CompletionStore(path)[key] for key in expected} == expected


def test_what_another_process_adds_is_read_after_a_refresh(tmp_path):
    mine, other = (JsonlStore(tmp_path / "store.jsonl") for _ in range(2))
    other.add({"a": {"gives": "top", "k": 5}})
    assert "a" not in mine
    mine.refresh()
    assert mine["a"]["k"] == 5
    mine.add({"b": {"ids": [[1]]}})
    other.refresh()
    assert other["b"]["ids"] == [[1]]


def test_keys_tell_apart_teachers_settings_and_prompts():
    one = {"teacher": "a", "settings": {"max_new_tokens": 8}}
    keys = {
        key_of(one, [1, 2]),
        key_of(one, [1, 3]),
        key_of(one, [12]),
        key_of({**one, "teacher": "b"}, [1, 2]),
        key_of({**one, "settings": {"max_new_tokens": 9}}, [1, 2]),
    }
    assert len(keys) == 5
    assert key_of(one, (1, 2)) == key_of(dict(reversed(one.items())), [1, 2])


def test_two_processes_do_not_ask_for_the_same_completions(tmp_path):
    path = tmp_path / "store.jsonl"
    store, other = CompletionStore(path), CompletionStore(path)
    store.add({"a": Completion((1,), True)})
    with another_process(tmp_path, file=".store.jsonl.lock"):
        with store.asking(["a"]) as missing:  # a reader
            assert not missing
        with pytest.raises(ProjectError, match=r"store\.jsonl' is in use by process \d+"), store.asking(["a", "b"]):
            pass
    with other.asking(["a", "b"]) as missing:  # which has read what the first added since
        assert missing == {"b"}
    assert [path.name for path in tmp_path.iterdir()] == ["store.jsonl"]
