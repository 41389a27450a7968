"""`dataset_num_proc`: several processes prepare the data, none of which gets the teacher."""

from __future__ import annotations

import os

import pytest
from forms import MARKED, SYSTEM, assistant, distilling, user

from trl_distill import LLMTrainingParams, run
from trl_distill.config.sft_config import from_params
from trl_distill.data import loading as data
from trl_distill.data import preparation
from trl_distill.errors import DataError
from trl_distill.teachers.local.teacher import LocalTeacher

PAIRS = [{"prompt": f"{a} {b}", "completion": f" {b} {a}"} for a in "abcdefg" for b in "abcdefg"]
TALKS = [
    {"messages": [user(row["prompt"]), assistant("c d"), user("e"), assistant(row["completion"].strip())]}
    for row in PAIRS
]


@pytest.fixture(autouse=True)
def unpicklable_teacher(monkeypatch):
    def refuse(self, protocol):
        raise AssertionError("the teacher is pickled")

    monkeypatch.setattr(LocalTeacher, "__reduce_ex__", refuse)


@pytest.mark.parametrize(
    ("rows", "more"),
    [
        (PAIRS, {"teacher_prompt_template": "g f e d {input}", "teacher_prompt_dropout": 0.3}),
        (TALKS, {"teacher_prompt_template": SYSTEM}),
        (TALKS, {"teacher_prompt_template": SYSTEM, "assistant_only_loss": True}),
        ([{"text": row["prompt"]} for row in PAIRS], {"teacher_prompt_template": "g {input}"}),
    ],
    ids=["pairs", "one-turn", "turns", "written"],
)
def test_several_processes_prepare_what_one_does(rows, more, tiny_model_dir, tiny_teacher_dir, tmp_path):
    made = [
        distilling(
            tiny_model_dir, tiny_teacher_dir, tmp_path, rows, chat_template=MARKED, distill_max_teacher_length=2,
            dataset_num_proc=count, **more,
        ).train_dataset
        for count in (None, 2)
    ]  # fmt: skip
    assert made[0].column_names == made[1].column_names
    assert list(made[0]) == list(made[1])


def test_the_work_is_done_in_other_processes(tiny_model_dir, tiny_teacher_dir, tmp_path, monkeypatch):
    seen = tmp_path / "seen"
    tokenize = preparation.tokenize_row

    def note(row, recipe, *, name):
        with seen.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return tokenize(row, recipe, name=name)

    monkeypatch.setattr(preparation, "tokenize_row", note)
    params = LLMTrainingParams(
        model=str(tiny_model_dir), teacher_model=str(tiny_teacher_dir), data_path=PAIRS, dataset_num_proc=2,
        teacher_prompt_template="g {input}", project_name=str(tmp_path / "run"), max_steps=1,
    )  # fmt: skip
    assert from_params(params).dataset_num_proc == 2
    run(params)
    processes = set(seen.read_text().split())
    assert len(processes) == 2
    assert str(os.getpid()) not in processes


def test_a_bad_row_is_named_from_any_process(tmp_path):
    rows, _ = data.load_data([{"text": "a"}] * 9 + [{"text": 3}])
    with pytest.raises(DataError, match=r"row 10 \('text' is a number"):
        data.read_rows(rows, num_proc=2)


def test_a_prompt_that_is_too_long_is_named_from_any_process(tiny_model_dir, tiny_teacher_dir, tmp_path):
    rows = [*PAIRS, {"prompt": "a " * 200, "completion": "b"}]
    with pytest.raises(DataError, match=f"row {len(rows)}: the .* prompt has"):
        distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, rows, dataset_num_proc=2,
                   teacher_prompt_template="g {input}")  # fmt: skip
