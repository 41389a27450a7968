"""Completions already paid for: kept by content, whatever happens to the process."""

from __future__ import annotations

import json
import random

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


def test_a_flipped_bit_loses_lines_but_changes_none(tmp_path):
    path = tmp_path / "store.jsonl"
    kept = {"a" * 64: Completion((1, 22, 333), True), "b" * 64: Completion((), False, "na\u00efve \u2028 text", "hm")}
    CompletionStore(path).add(kept)
    whole, drawn = path.read_bytes(), random.Random(0)
    lost = 0
    for place in (drawn.randrange(8 * len(whole)) for _ in range(400)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        store = CompletionStore(path)
        found = {key: store[key] for key in kept if key in store}
        assert found.items() <= kept.items()
        assert len(store) == len(found)
        lost += len(found) < len(kept)
    assert lost > 200


@pytest.mark.parametrize(
    "fields",
    [
        {"ids": "12", "finished": True},
        {"ids": [1, -2], "finished": True},
        {"ids": [1.5], "finished": True},
        {"ids": [1], "finished": "yes"},
        {"ids": [1]},
        {"text": 3, "finished": True},
        {"text": "a", "finished": True, "reasoning": None},
        {"ids": [1], "finished": True, "crc32": 5},
    ],
)
def test_a_line_with_another_shape_than_a_completions_is_ignored(fields, tmp_path, capsys):
    path = tmp_path / "store.jsonl"
    good = json.dumps({"key": "good", "ids": [1], "finished": True})
    path.write_text("\n".join([json.dumps({"key": "bad", **fields}), "[" * 100_000, "3", "null", good]) + "\n")
    store = CompletionStore(path)
    assert "good" in store
    assert len(store) == 1
    for _ in range(2):
        with store.asking(["bad"]):
            pass
    assert capsys.readouterr().out == (
        f"{path}: lines 1, 2, 3, ... are damaged and ignored; what is missing is made again.\n"
    )


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
    settled = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(len(line.pop("crc32")) == 8 for line in settled)
    assert settled == [json.loads(lines[1]), json.loads(lines[0])]
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
