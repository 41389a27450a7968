"""A dataset's role is a value: an evaluation set called "train" is one, and a stream to train on is trained on."""

from __future__ import annotations

import json

import pytest
from data.test_streams import PAIRS, streamed
from datasets import Dataset
from forms import distilling, losses

from trl_distill.data.packing import PackedRows
from trl_distill.data.split import Split

TEACHER = {"teacher_prompt_template": "g f {input} d"}
DROPOUT = {**TEACHER, "teacher_prompt_dropout": 0.5}


def test_an_evaluation_set_called_train_is_read_as_evaluation(tiny_model_dir, tiny_teacher_dir, tmp_path):
    retain = tmp_path / "retain.jsonl"
    retain.write_text("\n".join(json.dumps({"prompt": "a", "completion": " b"}) for _ in range(4)))
    rows = Dataset.from_list(PAIRS[:24])
    more = {**DROPOUT, "retain_data": str(retain), "packing": True, "eval_packing": False}
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, PAIRS[:24], evaluation={"train": rows}, **more)
    assert isinstance(trainer.train_dataset, PackedRows)
    seen = trainer.train_dataset.rows
    assert len(seen) == 32  # a quarter of them retained
    assert any(mine == theirs for mine, theirs in zip(seen["student_prompt"], seen["teacher_prompt"], strict=True))
    evaluated = trainer.eval_dataset["train"]
    again = trainer.datasets.prepare(rows, Split.EVAL, "train")
    for data in (evaluated, again):
        assert not isinstance(data, PackedRows)
        assert len(data) == 24
        assert all(mine != theirs for mine, theirs in zip(data["student_prompt"], data["teacher_prompt"], strict=True))
    assert "eval_train_loss" in trainer.evaluate()
    assert trainer.evaluate({"train": rows}).keys() >= {"eval_train_kl"}


def test_a_store_has_the_rows_of_both_sets_called_train(tiny_model_dir, tiny_teacher_dir, tmp_path):
    evaluation = {"train": Dataset.from_list(PAIRS[40:44])}
    more = {**TEACHER, "teacher_store": str(tmp_path / "store")}
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, PAIRS[:4], evaluation=evaluation, **more)
    assert len(losses(trainer)) == 2
    assert trainer.evaluate()["eval_train_kl"] > 0


def test_a_stream_drops_the_prompts_that_its_pre_flight_counts(tiny_model_dir, tiny_teacher_dir, tmp_path, capsys):
    whole = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, PAIRS[:100], **DROPOUT)
    capsys.readouterr()
    trainer = distilling(
        tiny_model_dir, tiny_teacher_dir, tmp_path, streamed(PAIRS[:100]), evaluation=streamed(PAIRS[:80]), **DROPOUT
    )
    shown = capsys.readouterr().out
    rows = list(trainer.train_dataset)
    assert rows == list(whole.train_dataset)
    dropped = [row["student_prompt"] == row["teacher_prompt"] for row in rows]
    assert 0 < sum(dropped[64:]) < 36  # of a later block too
    assert f"dropout       {sum(dropped[:64])} rows show the student" in shown
    assert all(row["student_prompt"] != row["teacher_prompt"] for row in trainer.eval_dataset)


@pytest.mark.parametrize("split", list(Split))
def test_the_name_of_a_dataset_is_used_in_messages_only(split, tiny_model_dir, tiny_teacher_dir, tmp_path, capsys):
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, PAIRS[:2], **TEACHER)
    capsys.readouterr()
    trainer.datasets.prepare(Dataset.from_list(PAIRS[:2]), split, "mine")
    assert "Pre-flight (mine)" in capsys.readouterr().out
