"""In a notebook the table shows the figures of distillation, with an evaluation in the row of its step."""

from __future__ import annotations

import re

import pytest
from small_runs import make
from transformers import TrainerControl, TrainerState

pytest.importorskip("IPython")

from transformers.utils.notebook import NotebookProgressCallback

from trl_distill.trainer.notebook import show_in_notebook
from trl_distill.trainer.notebook_table import DistillationTable


def rows(html):
    """Return the cells of a table, the header first."""
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in re.findall(r"<tr.*?</tr>", html, re.DOTALL)]


def test_training_shows_divergence_cross_entropy_and_agreement(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, eval_strategy="steps", eval_steps=2)
    trainer.add_callback(NotebookProgressCallback())
    show_in_notebook(trainer)
    (table,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, NotebookProgressCallback))
    assert type(table) is DistillationTable
    shown = []
    table.on_train_end = lambda *_, **__: shown.append(table.training_tracker.html_code)
    trainer.train()
    header, *logged = rows(shown[0])
    named = ["Loss", "Divergence", "Cross-Entropy", "Agreement"]
    assert header == ["Step", "Training Loss", *named[1:], *(f"Validation {name}" for name in named)]
    assert [row[0] for row in logged] == ["1", "2", "3"]
    history = [entry for entry in trainer.state.log_history if "kl" in entry]
    assert [row[2] for row in logged] == [f"{entry['kl']:.4f}" for entry in history]
    evaluated = next(entry for entry in trainer.state.log_history if "eval_kl" in entry)
    assert logged[1][6] == f"{evaluated['eval_kl']:.4f}"
    assert logged[1][8] == f"{evaluated['eval_top1_agreement']:.0%}"


def test_an_evaluation_outside_training_shows_the_same_figures(capsys):
    metrics = {"eval_loss": 1.0, "eval_kl": 0.5, "eval_ce": 2.0, "eval_num_tokens": 9.0, "eval_runtime": 1.0}
    given = dict(metrics)
    table, shown = DistillationTable(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.utils.notebook.disp.HTML", shown.append)
        state = TrainerState(global_step=4, log_history=[{"loss": 3.0}])
        args = type("Args", (), {"eval_strategy": "steps"})()
        table.on_evaluate(args, state, TrainerControl(), metrics=given)
    header, figures = rows(shown[-1])
    assert {"Validation Loss", "Divergence", "Cross-entropy"} <= set(header)
    assert "Num Tokens" not in header
    assert figures[header.index("Divergence")] == "0.500000"
    assert given == metrics


def test_outside_a_notebook_nothing_is_replaced(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path)
    before = list(trainer.callback_handler.callbacks)
    show_in_notebook(trainer)
    assert trainer.callback_handler.callbacks == before


def test_the_name_of_an_evaluation_dataset_is_text():
    table = DistillationTable()
    args, state = type("Args", (), {"eval_strategy": "steps"})(), TrainerState(max_steps=4, global_step=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.utils.notebook.disp.display", lambda *_, **__: None)
        table.on_train_begin(args, state, TrainerControl())
        table.on_evaluate(args, state, TrainerControl(), metrics={"eval_<img src=x>\x1b_loss": 1.0})
    assert "<img" not in table.training_tracker.html_code.lower()
    assert "&lt;img src=x&gt;\\x1b loss" in table.training_tracker.html_code.lower()
