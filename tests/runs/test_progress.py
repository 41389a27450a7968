"""A run's log lines: what stands in them, and that they take the place of transformers' own."""

from __future__ import annotations

import json
import re

import psutil
import pytest
import torch

from trl_distill import LLMTrainingParams, run
from trl_distill.runs.progress import Pace, line, peak_memory

TRAIN = {
    "loss": 2.34512, "grad_norm": 3.1, "learning_rate": 9.1234e-06, "kl": 0.21234, "ce": 1.9312, "entropy": 2.0,
    "top1_agreement": 0.4512, "mean_token_accuracy": 0.4951, "num_tokens": 12345.0, "tokens_per_second": 1234.4,
    "epoch": 0.1333,
}  # fmt: skip
EVAL = {
    "eval_loss": 12.3456, "eval_runtime": 1.2, "eval_samples_per_second": 3.0, "eval_kl": 0.5, "eval_ce": 2.0,
    "eval_entropy": 1.0, "eval_top1_agreement": 1.0, "eval_mean_token_accuracy": 0.05, "epoch": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        (
            TRAIN,
            "step  10/225  epoch 0.13   loss 2.345    kl 0.2123   ce 1.931    agree 45%   right 50%   lr 9.1e-06  "
            "1,234 tok/s",
        ),
        (EVAL, "eval  10/225  epoch 1.00   loss 12.35    kl 0.5      ce 2        agree 100%  right 5%"),
        ({f"eval_easy_{k[5:]}": v for k, v in EVAL.items() if k == "eval_loss"}, "eval easy  10/225  loss 12.35"),
        ({"loss": 1.0, "learning_rate": 0.0, "epoch": 12.345}, "step  10/225  epoch 12.35  loss 1        lr 0"),
        ({"loss": 1.0, "my_figure": 0.123456, "note": "text"}, "step  10/225  loss 1        my_figure 0.1235"),
        ({"loss": float("nan")}, "step  10/225  loss nan"),
    ],
)
def test_a_log_entry_is_one_line(logs, expected):
    assert line(logs, step=10, steps=225) == expected


def test_columns_of_log_lines_are_aligned():
    small = line({**TRAIN, "loss": 0.012345, "kl": 1e-5, "ce": 123.456, "epoch": 2.0}, step=9, steps=225)
    for label in ("epoch", "loss", "kl", "ce", "agree", "right", "lr"):
        assert small.index(f" {label} ") == line(TRAIN, step=200, steps=225).index(f" {label} "), label
    assert line(EVAL, step=10, steps=225).index("right") == small.index("right")


def log_lines(shown):
    """Return the log lines without the time of day with which each begins."""
    return [found[1] for found in re.finditer(r"^\d\d:\d\d:\d\d  ((?:step|eval) .*)$", shown, re.MULTILINE)]


def test_the_time_left_is_measured_after_the_first_step(monkeypatch):
    now = iter([100.0, 110.0, 130.0])
    monkeypatch.setattr("trl_distill.runs.progress.time.monotonic", lambda: next(now))
    pace = Pace()
    assert pace.left(7, 100) == ""
    assert pace.add(7) == 1  # a resumed run begins later
    assert pace.left(7, 100) == ""
    assert pace.add(9) == 3
    assert pace.left(9, 100) == "07:35"  # 10 s for two steps
    assert pace.left(12, 1012) == "1:40:00"  # 30 s for five
    assert pace.left(100, 100) == ""


def test_done_counts_loading_and_writing(settings, capsys):
    run(LLMTrainingParams(**settings, max_steps=1))
    found = re.search(r"^Done in (\d+) s \(training (\d+) s\): train_loss", capsys.readouterr().out, re.MULTILINE)
    assert found is not None
    assert int(found[1]) >= int(found[2])


def test_the_memory_of_this_process_is_that_of_the_system():
    shown = float(peak_memory(torch.device("cpu")).removesuffix(" GiB"))
    assert shown >= round(psutil.Process().memory_info().rss / 2**30, 2) - 0.01


@pytest.fixture
def settings(tiny_model_dir, tiny_teacher_dir, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train", "validation"):
        (folder / f"{name}.jsonl").write_text(
            "\n".join(json.dumps({"text": w, "completion": "a b"}) for w in "abcdefgh")
        )
    return {
        "model": str(tiny_model_dir), "data_path": str(folder), "project_name": str(tmp_path / "run"), "epochs": 2,
        "teacher_model": str(tiny_teacher_dir), "gradient_accumulation": 1, "logging_steps": 1,
    }  # fmt: skip


def test_a_run_prints_a_line_for_each_log(settings, capsys):
    run(LLMTrainingParams(**settings))
    shown = capsys.readouterr()
    lines = log_lines(shown.out)
    assert [text[:8] for text in lines] == ["step 1/4", "step 2/4", "eval 2/4", "step 3/4", "step 4/4", "eval 4/4"]
    assert [bool(re.search(r"  \d\d:\d\d left$", text)) for text in lines] == [False, True, False, True, False, False]
    (first,) = (text for text in shown.out.splitlines() if " about " in text)
    assert re.fullmatch(r"\d\d:\d\d:\d\d  about \d\d:\d\d left; peak memory \d+\.\d\d GiB", first)
    assert shown.out.index("step 2/4") < shown.out.index(first) < shown.out.index("step 3/4")
    assert all(" kl " in text and " agree " in text for text in lines)
    assert "{'" not in shown.out
    assert "Training" not in shown.err  # no terminal, no bar


def test_plain_sft_has_fewer_columns(settings, capsys):
    settings.pop("teacher_model")
    run(LLMTrainingParams(**settings, trainer="sft", text_column="completion"))
    lines = [text for text in log_lines(capsys.readouterr().out) if text.startswith("step")]
    assert len(lines) == 4
    assert all(" loss " in text and " kl " not in text for text in lines)
