"""Datasets that stream: read and aligned block by block, as the same rows are when all are there."""

from __future__ import annotations

import pytest
from conftest import make_model_that_writes
from datasets import Dataset, IterableDataset
from forms import MARKED, assistant, distilling, losses, settings, user
from transformers import AutoTokenizer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer
from trl_distill.data.streaming import BLOCK
from trl_distill.errors import DataError, ParamsError

WORDS = "abcdefg"
PAIRS = [{"prompt": f"{a} {b}", "completion": f" {c}"} for a in WORDS for b in WORDS for c in WORDS[:4]]
TEACHER = {"teacher_prompt_template": "g f {input} d"}


def streamed(rows, read=None):
    """Return a stream of rows that knows no columns, and counts what was read of it."""

    def generate():
        for row in rows:
            if read is not None:
                read.append(row)
            yield row

    return IterableDataset.from_generator(generate)


def test_a_stream_has_the_batches_of_the_same_rows(tiny_model_dir, tiny_teacher_dir, tmp_path):
    rows = PAIRS[: 2 * BLOCK + 10]
    whole = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, rows, **TEACHER)
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, streamed(rows), **TEACHER)
    assert list(trainer.train_dataset) == list(whole.train_dataset)
    assert losses(trainer)[0] == pytest.approx(
        whole.compute_loss(whole.model, whole.data_collator(list(whole.train_dataset)[:2])).item(), rel=1e-5
    )


def test_rows_are_read_as_they_are_needed(tiny_model_dir, tiny_teacher_dir, tmp_path, capsys):
    read = []
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, streamed(PAIRS, read), **TEACHER)
    assert f"{BLOCK} of {BLOCK} used" in capsys.readouterr().out
    read.clear()
    trainer.train()
    assert len(read) < len(PAIRS)


def test_a_bad_row_of_a_later_block_is_named_by_its_place_in_the_stream(tiny_model_dir, tiny_teacher_dir, tmp_path):
    rows = [dict(row) for row in PAIRS]
    rows[BLOCK + 5]["prompt"] = None
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, streamed(rows), **TEACHER)
    with pytest.raises(DataError, match=rf"row {BLOCK + 6} \('prompt' is missing\)"):
        list(trainer.train_dataset)
    with pytest.raises(DataError, match=r"row 6 \('prompt' is missing\)"):
        distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, streamed(rows[BLOCK:]), **TEACHER)


def test_an_evaluation_set_may_be_a_stream(tiny_model_dir, tiny_teacher_dir, tmp_path):
    rows = PAIRS[: BLOCK + 3]
    sets = {"flow": streamed(rows), "all": Dataset.from_list(rows)}
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, PAIRS[:4], evaluation=sets, **TEACHER)
    figures = trainer.evaluate()
    for name in ("loss", "kl", "ce", "num_tokens"):
        assert figures[f"eval_flow_{name}"] == pytest.approx(figures[f"eval_all_{name}"], rel=1e-6)
    assert trainer.evaluate(streamed(rows))["eval_kl"] == pytest.approx(figures["eval_all_kl"], rel=1e-6)


def test_the_teacher_generates_one_block_at_a_time(tiny_model_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    teacher = make_model_that_writes(tmp_path / "teacher", end)
    rows = [{"text": row["prompt"] + row["completion"]} for row in PAIRS[: BLOCK + 4]]
    more = {"distill_max_teacher_length": 3, "completions": "teacher", **TEACHER}
    whole = distilling(tiny_model_dir, teacher, tmp_path / "whole", rows, **more)
    trainer = distilling(tiny_model_dir, teacher, tmp_path / "flow", streamed(rows), **more)
    written = tmp_path / "flow" / "teacher_completions.jsonl"
    first = len(written.read_text().splitlines())
    assert list(trainer.train_dataset)[-1] == whole.train_dataset[-1]
    assert len(written.read_text().splitlines()) > first
    with pytest.raises(ParamsError, match="train is a stream, and the teacher is asked about its completions"):
        distilling(tiny_model_dir, teacher, tmp_path / "flow", streamed(rows), dataloader_num_workers=1, **more)


def test_conversations_and_token_ids_may_be_streamed(tiny_model_dir, tiny_teacher_dir, tmp_path):
    one, two = [user("a"), assistant("b")], [user("c"), assistant("d"), user("e"), assistant("f g")]
    rows = [{"messages": one}] * BLOCK + [{"messages": two}]  # no row of the first block has a gap
    more = {"chat_template": MARKED, "assistant_only_loss": True}
    whole = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, rows, **more)
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, streamed(rows), **more)
    assert list(trainer.train_dataset) == list(whole.train_dataset)
    ids = [{"input_ids": [10, 11, 12], "labels": [-100, 11, 12]}] * BLOCK
    ids.append({"input_ids": [10, 11, 12, 13], "labels": [-100, 11, -100, 13]})
    last = list(distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, streamed(ids)).train_dataset)[-1]
    assert (last["student_prompt"], last["completion"], last["completion_mask"]) == ([10], [11, 12, 13], [1, 0, 1])


def test_a_formatting_function_and_a_shuffling_buffer(tiny_model_dir, tiny_teacher_dir, tmp_path):
    data = streamed(PAIRS[:40])
    trainer = distilling(
        tiny_model_dir, tiny_teacher_dir, tmp_path, data, formatting=lambda row: f"g{row['completion']}",
        shuffle_dataset=True,
    )  # fmt: skip
    tokenizer = trainer.processing_class
    texts = [tokenizer.decode(row["completion"], skip_special_tokens=True) for row in trainer.train_dataset]
    assert sorted(texts) == sorted(f"g{row['completion']}" for row in PAIRS[:40])
    assert texts != [f"g{row['completion']}" for row in PAIRS[:40]]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"max_steps": -1}, "train_dataset is a stream, whose length is not known; set max_steps"),
        ({"packing": True}, "packing needs all rows at once"),
        ({"retain_data": "rows.jsonl"}, "retain_data needs all rows at once"),
        ({"train_sampling_strategy": "group_by_length"}, "group_by_length needs all rows at once"),
        ({"distill_on_policy_fraction": 0.5}, "distill_on_policy_fraction 0.5 needs all rows at once"),
        ({"teacher_store": "store"}, "teacher_store keeps the targets of rows that are known beforehand"),
    ],
)
def test_what_needs_all_rows_at_once_is_refused(more, message, tiny_model_dir, tiny_teacher_dir, tmp_path):
    with pytest.raises(ParamsError, match=message):
        distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, streamed(PAIRS), **more)


def test_an_empty_stream_is_an_error(tiny_model_dir, tiny_teacher_dir, tmp_path):
    with pytest.raises(DataError, match="eval_dataset has no rows"):
        distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, PAIRS[:4], evaluation=streamed([]))


def test_rows_skipped_in_a_later_block_are_reported(tiny_model_dir, tiny_teacher_dir, tmp_path, caplog):
    rows = [*PAIRS[:BLOCK], {"prompt": "a", "completion": ""}, *PAIRS[: BLOCK - 1], {"prompt": "", "completion": "b"}]
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, streamed(rows), **TEACHER)
    with caplog.at_level("WARNING", "trl_distill"):
        found = [row["row"] for row in trainer.train_dataset]
    assert found == [n for n in range(1, 2 * BLOCK + 1) if n != BLOCK + 1]
    assert f"{BLOCK - 1} of {BLOCK} used; 1 set aside" in caplog.text
    assert "train (streamed): none of 1 rows can be used" in caplog.text


def test_a_teacher_of_a_list_need_take_no_row_of_a_later_block(tiny_model_dir, tiny_teacher_dir, tmp_path):
    rows = [{**row, "team": "xy"[i % 2] if i < BLOCK else "x"} for i, row in enumerate(PAIRS[: BLOCK + 4])]
    listed = [
        {"model": str(model), "template": "{input}", "rows": f"team={team}"}
        for model, team in ((tiny_model_dir, "x"), (tiny_teacher_dir, "y"))
    ]
    config = DistillationSFTConfig(**settings(tmp_path), use_distillation=True, teacher_config=listed)
    trainer = DistillationSFTTrainer(str(tiny_model_dir), config, train_dataset=streamed(rows))
    assert [row["teachers"] for row in trainer.train_dataset] == [["xy".index(row["team"])] for row in rows]
    assert len(losses(trainer)) == 2
