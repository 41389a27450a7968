"""Rows to a batch: the student's and the teacher's sequences, padded separately, ending in the same completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch

from ..errors import DataError
from ..models.batch_layout import IGNORE, LAYOUT, BatchLayout, layout_of
from ..models.padding_free import flatten_student
from ..prompts.fitting import skipped_tokens
from .cross_tokenizer.byte_spans import mark_spans

PreparedRow = Mapping[str, Any]  # token ids by column, and of several teachers' prompts lists of them


@dataclass
class DistillationCollator:
    """Make a batch from rows with `student_prompt`, `teacher_prompt` and `completion` (lists of token ids).

    The batch holds `input_ids`, `attention_mask`, `labels` ([B, S_s], the student's) and the same three with
    the prefix `teacher_` ([B, S_t]). Labels are -100 but on completion tokens; both sides label the same tokens
    in the same order, so their counts are equal row by row.

    With a teacher of another tokenizer rows also have `teacher_completion` and the spans of both, see
    `TokenizerPair.fit`; the batch then also holds `student_spans` and `teacher_spans`, see `mark_spans`. Rows of which
    several turns are learned have a `completion_mask`, and a `teacher_completion` with a mask of its own.

    If rows come in groups (`PackedRows`), or `padding_free` is set, the student's sequences are one, see
    `flatten_student`. The teacher's stay padded, since each kind of teacher reads them in its own way.

    The batch also has the lengths and completion positions as host numbers, see `BatchLayout`.

    Args:
        pad_token_id: Padding id of the student.
        teacher_pad_token_id: Padding id of the teacher (default: the student's).
        pad_to_multiple_of: Pad both lengths to a multiple of this.
        padding_free: Put the student's sequences into one.
    """

    pad_token_id: int
    teacher_pad_token_id: int | None = None
    pad_to_multiple_of: int | None = None
    padding_free: bool = False

    def __call__(self, rows: Sequence[PreparedRow | list[PreparedRow]]) -> dict[str, Any]:
        """Return the batch of `rows`, or of groups of them."""
        groups = [item if isinstance(item, list) else [item] for item in rows]
        batch: dict[str, Any] = self._padded(list(chain.from_iterable(groups)))
        layout = replace(BatchLayout.of(batch), numbers=_numbers(groups))
        if self.padding_free or isinstance(rows[0], list):
            flatten_student(batch, pad_token_id=self.pad_token_id, multiple=self.pad_to_multiple_of)
            layout = replace(layout, items=tuple(map(len, groups)))
        return {**batch, LAYOUT: layout}

    def _padded(self, rows: Sequence[PreparedRow]) -> dict[str, torch.Tensor]:
        skipped = [skipped_tokens(row["student_prompt"], row["teacher_prompt"]) for row in rows]
        batch: dict[str, torch.Tensor] = {}
        for prefix, pad in (("", self.pad_token_id), ("teacher_", self.teacher_pad_token_id)):
            prompts = [row["teacher_prompt" if prefix else "student_prompt"] for row in rows]
            completions = [row.get(f"{prefix}completion", row["completion"]) for row in rows]
            masks = [row.get(f"{prefix}completion_mask") for row in rows]
            batch |= self._side(prefix, prompts, completions, skipped, pad, masks)
        if "span_kinds" in rows[0]:
            mark_spans(batch, rows, skipped)
        return batch

    def _side(
        self,
        prefix: str,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        skipped: Sequence[int],
        pad: int | None,
        masks: Sequence[Sequence[int] | None] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return one model's sequences, padded on the right; completion tokens that a mask leaves out have no label."""
        width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
        multiple = self.pad_to_multiple_of or 1
        shape = (len(prompts), -(-width // multiple) * multiple)
        ids = torch.full(shape, self.pad_token_id if pad is None else pad, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORE, dtype=torch.long)
        for b, (prompt, completion, skip) in enumerate(zip(prompts, completions, skipped, strict=True)):
            end = len(prompt) + len(completion)
            ids[b, :end] = torch.tensor([*prompt, *completion])
            mask[b, :end] = 1
            labels[b, len(prompt) + skip : end] = torch.tensor(completion[skip:])
            bits = masks[b] if masks is not None else None
            if bits is not None:
                labels[b, len(prompt) : end].masked_fill_(torch.tensor(bits) == 0, IGNORE)
        return {f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask, f"{prefix}labels": labels}


@dataclass
class MultiTeacherCollator(DistillationCollator):
    """Make a batch from rows with `student_prompt`, `completion`, `teachers` and `teacher_prompts`.

    The batch holds `input_ids`, `attention_mask` and `labels` of the student, [B, S_s]. For each teacher i that reads a
    row of it, it holds the same three with the prefix `teacher{i}_`, [R_i, S_i], and `teacher{i}_rows`, [R_i], the
    places of those rows in the batch. A completion token that one of a row's prompts does not predict has no label.

    Args:
        teacher_pad_token_ids: Padding id of each teacher; None is the student's.
    """

    teacher_pad_token_ids: Sequence[int | None] = ()

    def _padded(self, rows: Sequence[PreparedRow]) -> dict[str, torch.Tensor]:
        if "teacher_prompts" not in rows[0]:
            raise DataError("rows were prepared for one teacher, but teacher_config names several; prepare them again.")
        completions = [row["completion"] for row in rows]
        skipped = [max(skipped_tokens(row["student_prompt"], p) for p in row["teacher_prompts"]) for row in rows]
        batch = self._side("", [row["student_prompt"] for row in rows], completions, skipped, None)
        for i, pad in enumerate(self.teacher_pad_token_ids):
            places = [b for b, row in enumerate(rows) if i in row["teachers"]]
            if not places:
                continue
            prompts = [rows[b]["teacher_prompts"][list(rows[b]["teachers"]).index(i)] for b in places]
            theirs = [completions[b] for b in places], [skipped[b] for b in places]
            batch |= self._side(f"teacher{i}_", prompts, *theirs, pad)
            batch[f"teacher{i}_rows"] = torch.tensor(places)
        return batch


def _numbers(groups: Sequence[Sequence[PreparedRow]]) -> tuple[int, ...]:
    """Return the numbers of the rows in their data; empty if they have none."""
    rows = list(chain.from_iterable(groups))
    return tuple(int(row["row"]) for row in rows) if all("row" in row for row in rows) else ()


def numbered_as(batch: Mapping[str, Any], rows: Sequence[PreparedRow]) -> list[PreparedRow]:
    """Return the rows that replace a batch's, with its rows' numbers in their data."""
    numbers = layout_of(batch).numbers
    return [{**row, "row": number} for row, number in zip(rows, numbers, strict=True)] if numbers else list(rows)


def prompts_of(batch: Mapping[str, Any], prefix: str = "teacher_") -> list[list[int]]:
    """Return the prompts that a batch was made from: the ids before the first completion token."""
    layout = layout_of(batch)
    side = layout.teacher if prefix else layout.student
    assert side is not None
    return side.prompts
