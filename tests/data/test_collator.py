"""The batch: two sequences padded apart that end in the same completion."""

from __future__ import annotations

import torch

from trl_distill.data.collator import DistillationCollator, prompts_of

ROWS = [
    {"student_prompt": [1, 2], "teacher_prompt": [5, 6, 7, 8], "completion": [10, 11, 12]},
    {"student_prompt": [3], "teacher_prompt": [9], "completion": [13]},
]


def labelled(batch, prefix=""):
    return [row[row != -100].tolist() for row in batch[f"{prefix}labels"]]


def test_both_sides_label_the_completion_and_nothing_else():
    batch = DistillationCollator(pad_token_id=0)(ROWS)
    assert labelled(batch) == labelled(batch, "teacher_") == [[10, 11, 12], [13]]
    assert batch["input_ids"].tolist() == [[1, 2, 10, 11, 12], [3, 13, 0, 0, 0]]
    assert batch["teacher_input_ids"][0].tolist() == [5, 6, 7, 8, 10, 11, 12]
    assert torch.equal(batch["attention_mask"].sum(1), torch.tensor([5, 2]))


def test_pad_equal_to_eos_still_labels_the_eos():
    rows = [{"student_prompt": [1], "teacher_prompt": [1, 1], "completion": [4, 0]}, ROWS[0]]
    batch = DistillationCollator(pad_token_id=0)(rows)
    assert labelled(batch)[0] == [4, 0]
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 0, 0]


def test_each_side_is_padded_with_its_own_token():
    batch = DistillationCollator(pad_token_id=0, teacher_pad_token_id=99)(ROWS)
    assert batch["input_ids"][1, -1] == 0
    assert batch["teacher_input_ids"][1, -1] == 99


def test_the_first_token_under_an_empty_prompt_is_labelled_on_neither_side():
    rows = [{"student_prompt": [], "teacher_prompt": [5, 6], "completion": [10, 11]}]
    batch = DistillationCollator(pad_token_id=0)(rows)
    assert labelled(batch) == labelled(batch, "teacher_") == [[11]]


def test_lengths_are_padded_to_a_multiple():
    batch = DistillationCollator(pad_token_id=0, pad_to_multiple_of=8)(ROWS)
    assert batch["input_ids"].shape == (2, 8)
    assert batch["teacher_input_ids"].shape == (2, 8)


def test_prompts_can_be_recovered_from_a_batch():
    batch = DistillationCollator(pad_token_id=0)(ROWS)
    assert prompts_of(batch) == [[5, 6, 7, 8], [9]]
    assert prompts_of(batch, "") == [[1, 2], [3]]
