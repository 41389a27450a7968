"""A run is not resumed on other rows: by the command before anything is paid, and by the trainer."""

from __future__ import annotations

import json

import pytest
from conftest import make_model_that_writes
from datasets import Dataset
from forms import distilling
from transformers import TrainerCallback

from trl_distill import LLMTrainingParams, run
from trl_distill.data.data_fingerprint import difference, fingerprint
from trl_distill.errors import ParamsError, ProjectError

ROWS = [{"text": f"{a} {b}", "tone": a, "note": "x"} for a in "abcd" for b in "ef"]


class Stop(TrainerCallback):
    """Ends a run after two steps, as a kill would, with a checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise KeyboardInterrupt


def changed(row, **values):
    return [{**r, **values} if i == row else r for i, r in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (changed(2, text="g"), "row 3 was different"),
        (changed(2, tone="g"), "row 3 was different"),
        (
            [*ROWS[:2], *[{**row, "text": "g"} for row in ROWS[2:]]],
            "6 of its 8 rows were different, the first of them row 3",
        ),
        (ROWS[::-1], "its rows were in another order"),
        (ROWS[:7], "it had 8 rows and now there are 7"),
        (changed(2, note="y"), None),
        (ROWS, None),
    ],
)
def test_a_run_is_not_resumed_on_other_rows(rows, said, tiny_model_dir, tmp_path, monkeypatch):
    goes_on = make_model_that_writes(tmp_path / "teacher", 5)
    path = tmp_path / "q.json"
    path.write_text(json.dumps(ROWS))
    params = LLMTrainingParams(
        model=str(tiny_model_dir), teacher_model=str(goes_on), teacher_prompt_template="{tone}: {input}",
        data_path=str(path), project_name=str(tmp_path / "run"), epochs=2, batch_size=4, gradient_accumulation=1,
        save_strategy="steps", save_steps=1, distill_max_teacher_length=2,
    )  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr("trl_distill.runs.callbacks.WatchCallback.on_step_end", Stop.on_step_end)
        with pytest.raises(KeyboardInterrupt):
            run(params)
    path.write_text(json.dumps(rows))
    params.resume = True
    if said is None:
        assert run(params).trainer.state.global_step == 4
        return
    paid = (tmp_path / "run" / "teacher_completions.jsonl").read_text()
    with pytest.raises(ProjectError, match=f"training data has changed: {said}; give the same data and add resume"):
        run(params)
    assert (tmp_path / "run" / "teacher_completions.jsonl").read_text() == paid
    params.resume, params.overwrite = False, True
    run(params)


def test_plain_sft_is_not_resumed_on_other_rows_either(tiny_model_dir, tmp_path, monkeypatch):
    params = LLMTrainingParams(
        model=str(tiny_model_dir), trainer="sft", data_path=ROWS, project_name=str(tmp_path / "run"), epochs=1,
        batch_size=4, gradient_accumulation=1, save_strategy="steps", save_steps=1,
    )  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr("trl_distill.runs.callbacks.WatchCallback.on_step_end", Stop.on_step_end)
        with pytest.raises(KeyboardInterrupt):
            run(params)
    params.resume, params.data_path = True, changed(0, text="g")
    with pytest.raises(ProjectError, match="row 1 was different"):
        run(params)


@pytest.mark.parametrize("packing", [False, True])
def test_a_trainer_does_not_go_on_from_a_checkpoint_of_other_rows(packing, tiny_model_dir, tiny_teacher_dir, tmp_path):
    rows = [{"prompt": "a b", "completion": " c"}, {"prompt": "d", "completion": " e f"}]
    how = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "packing": packing}
    dirs = (tiny_model_dir, tiny_teacher_dir, tmp_path)
    distilling(*dirs, rows, **how).train()
    other = distilling(*dirs, [rows[0], {"prompt": "d", "completion": " e g"}], **{**how, "max_steps": 2})
    for given in (True, str(tmp_path / "checkpoint-1")):
        with pytest.raises(ParamsError, match="was trained on other rows: row 2 was different; give the same rows"):
            other.train(resume_from_checkpoint=given)
    same = distilling(*dirs, rows, **{**how, "max_steps": 2})
    same.train(resume_from_checkpoint=True)
    assert same.state.global_step == 2
    for name in ("rows.txt", "checksums.json"):  # one of an earlier version does not say
        (tmp_path / "checkpoint-2" / name).unlink()
    distilling(*dirs, rows[:1], **{**how, "max_steps": 3}).train(resume_from_checkpoint=True)


def test_a_fingerprint_is_of_the_values_and_not_of_how_they_lie():
    rows = Dataset.from_dict({"row": range(100), "ids": [[i] * (i % 7) for i in range(100)], "s": ["x", None] * 50})
    parts = rows.select([5, *range(50), 70])
    copied = Dataset.from_list(list(parts), features=rows.features)
    assert fingerprint(parts) == fingerprint(copied)
    assert fingerprint(parts, leave_out=["s"]) != fingerprint(parts)
    assert difference(fingerprint(parts), fingerprint(copied), parts["row"]) is None
    assert len(fingerprint(rows)) == 800
