"""Reading back the JSON lines that a run appends."""

from __future__ import annotations

import json

from trl_distill.runs.log_lines import read_lines


def test_a_line_that_a_kill_has_cut_is_left_out(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert list(read_lines(path)) == [{"step": 1}, {"step": 2}]
    assert list(read_lines(tmp_path / "missing.jsonl")) == []


def test_a_line_separator_inside_a_text_does_not_end_its_line(tmp_path):
    path, line = tmp_path / "lines.jsonl", {"step": 1, "now": "a\u2028b\x85c"}
    path.write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    assert list(read_lines(path)) == [line]
