"""`--holdout`: which rows are held out, and which near-duplicates of them are left out of training."""

from __future__ import annotations

import json
import sys

import pytest
from datasets import Dataset

from trl_distill import LLMTrainingParams, run
from trl_distill.data.file_readers import PLACE
from trl_distill.data.holdout import hold_out
from trl_distill.data.rows import Columns
from trl_distill.errors import DataError, ParamsError

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]
ROWS = [{"text": f"what is {one} of {other}?"} for one in WORDS for other in WORDS if one != other]


def parts(rows, share=0.1, **more):
    kept = hold_out(Dataset.from_list(rows), share, columns=Columns(), **more)
    return kept.train["text"], kept.held_out["text"], kept.near


def test_a_share_of_the_rows_is_held_out_and_no_row_is_in_both_parts(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    train, held_out, near = parts(ROWS)
    assert len(held_out) == 13
    assert near == ()
    assert sorted([*train, *held_out]) == sorted(row["text"] for row in ROWS)


def test_the_order_of_the_rows_does_not_matter_and_the_seed_does():
    _, held_out, _ = parts(ROWS)
    _, again, _ = parts(ROWS[::-1])
    _, other, _ = parts(ROWS, seed=1)
    assert sorted(held_out) == sorted(again) != sorted(other)


def test_what_asks_the_same_but_for_case_and_punctuation_leaves_training():
    _, (first, *_), _ = parts(ROWS)
    copy = {"text": f"  {first.upper()[:-1]} !!"}
    train, held_out, near = parts([*ROWS, copy], share=13 / 133)
    assert first in held_out or copy["text"] in held_out
    assert first not in train
    assert copy["text"] not in train
    assert len(near) <= 1


def test_near_duplicates_leave_training():
    pytest.importorskip("datasketch")
    long = "The customer writes that the parcel with the red lamp was left in the rain at the back door on Monday"
    rows = [*ROWS, *({"text": f"{long}, {end}."} for end in ("again", "sadly", "twice"))]
    places = {row["text"]: f"row {i + 1}" for i, row in enumerate(rows)}
    for seed in range(50):
        train, held_out, near = parts(rows, seed=seed)
        held = [text for text in held_out if text.startswith(long)]
        if held:
            break
    others = [text for text in places if text.startswith(long) and text not in held]
    assert not any(text.startswith(long) for text in train)
    assert {places[text] for text in others} <= set(near)


def test_rows_of_one_system_message_are_not_alike():
    system = {"role": "system", "content": "You answer politely and at length, in whole sentences. " * 20}
    rows = [{"messages": [system, {"role": "user", "content": word}]} for word in WORDS]
    kept = hold_out(Dataset.from_list(rows), 0.25, columns=Columns())
    assert kept.near == ()
    assert len(kept.held_out) == 3


def test_other_columns_of_the_prompt_count():
    rows = [{"text": "Summarize this.", "article": f"{one} {two} " * 9} for one in WORDS for two in WORDS if one < two]
    kept = hold_out(Dataset.from_list(rows), 0.1, columns=Columns(), fields={"article"})
    assert kept.near == ()
    with pytest.raises(DataError, match=r"leaves no row to train on \(59 are near-duplicates of those held out\)"):
        hold_out(Dataset.from_list(rows), 0.1, columns=Columns())


def test_rows_keep_their_places_in_messages():
    kept = hold_out(Dataset.from_list(ROWS), 0.5, columns=Columns())
    for part in (kept.train, kept.held_out):
        assert all(
            ROWS[int(place.split()[1]) - 1]["text"] == text
            for place, text in zip(part[PLACE], part["text"], strict=True)
        )


def test_a_run_evaluates_on_what_it_keeps_aside_and_counts_what_it_leaves_out(tiny_model_dir, tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    rows = [{"text": word} for word in "abcdefgh"]
    data.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, *({"text": row["text"].upper()} for row in rows)])
    )
    params = LLMTrainingParams(
        model=str(tiny_model_dir), teacher_model=str(tiny_model_dir), teacher_prompt_template="g f {input}",
        data_path=str(data), project_name=str(tmp_path / "run"), holdout=0.2, distill_max_teacher_length=3, max_steps=2,
        save_strategy="no",
    )  # fmt: skip
    result = run(params)
    kept = [json.loads(line)["text"] for line in (tmp_path / "run" / "held_out.jsonl").read_text().splitlines()]
    learned = {result.tokenizer.decode(ids).lower() for ids in result.trainer.train_dataset["student_prompt"]}
    assert learned == set("abcdefgh") - {text.lower() for text in kept}
    assert len(kept) == 3  # a pair, and one of another pair
    printed = capsys.readouterr().out
    assert "3 of 16 rows are held out for evaluation (holdout=0.2).\n" in printed
    assert "12 of 13 used; 1 set aside: 1 because it is a near-duplicate of a row held out for evaluation (l" in printed
    assert result.metrics["preflight_validation"]["rows"] == 3
    assert result.metrics["eval_loss"] > 0
    params.holdout, params.overwrite = 0.0, True
    run(params)
    assert not (tmp_path / "run" / "held_out.jsonl").exists()


def test_a_validation_split_replaces_held_out_rows(tiny_model_dir, tmp_path, capsys):
    rows = [{"text": word} for word in "abcdefgh"]
    result = run(
        LLMTrainingParams(
            model=str(tiny_model_dir), teacher_model=str(tiny_model_dir), teacher_prompt_template="g f {input}",
            data_path={"train": rows, "validation": rows[:2]}, project_name=str(tmp_path / "run"), holdout=0.5,
            distill_max_teacher_length=3, max_steps=1, save_strategy="no",
        )
    )  # fmt: skip
    assert "The data has validation rows; holdout holds out no others." in capsys.readouterr().out
    assert result.metrics["preflight_train"]["rows"] == 8


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(ParamsError, match=r"holdout is 1\.5; expected a number from 0 to 0\.9"):
        LLMTrainingParams(holdout=1.5)
