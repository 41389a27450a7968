"""Rows to a batch: the student's sequences and the teacher's, padded apart, ending in the same completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..models.batch_layout import IGNORE, LAYOUT, BatchLayout, layout_of
from ..models.padding_free import flatten_student
from ..prompts.fitting import skipped_tokens
from .cross_tokenizer.byte_spans import mark_spans


@dataclass
class DistillationCollator:
    """Make a batch from rows with `student_prompt`, `teacher_prompt` and `completion` (lists of token ids).

    The batch holds `input_ids`, `attention_mask`, `labels` ([B, S_s], the student's) and the same three with
    the prefix `teacher_` ([B, S_t]). Labels are -100 but on completion tokens; both sides label the same tokens
    in the same order, so their counts are equal row by row.

    With a teacher of another tokenizer rows also have `teacher_completion` and the spans of both, see
    `Crossing.fit`; the batch then also holds `student_spans` and `teacher_spans`, see `mark_spans`. Rows of which
    several turns are learnt have a `completion_mask`, and a `teacher_completion` with a mask of its own (see `turns`).

    Where rows come in groups (`PackedRows`), or `padding_free` is set, the student's sequences are one, see
    `flatten_student`. The teacher's stay padded, since each kind of teacher reads them in its own way.

    Lengths, and where the completion tokens are, stand in the batch as numbers too, see `BatchLayout`.

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

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Return the batch of `rows`, or of groups of them."""
        groups = isinstance(rows[0], list)
        batch: dict[str, Any] = self._padded([row for group in rows for row in group] if groups else rows)
        layout = BatchLayout.of(batch)
        if groups or self.padding_free:
            flatten_student(batch, pad_token_id=self.pad_token_id, multiple=self.pad_to_multiple_of)
            layout = replace(layout, items=tuple(len(item) if groups else 1 for item in rows))
        return {**batch, LAYOUT: layout}

    def _padded(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch with both sides padded."""
        teacher_pad = self.pad_token_id if self.teacher_pad_token_id is None else self.teacher_pad_token_id
        skipped = [skipped_tokens(row["student_prompt"], row["teacher_prompt"]) for row in rows]
        batch = {}
        for prefix, side, pad in (
            ("", "student_prompt", self.pad_token_id),
            ("teacher_", "teacher_prompt", teacher_pad),
        ):
            prompts = [list(row[side]) for row in rows]
            completions = [list(row.get(f"{prefix}completion", row["completion"])) for row in rows]
            masks = [row.get(f"{prefix}completion_mask") for row in rows]
            for name, tensor in self._side(prompts, completions, skipped, pad, masks).items():
                batch[prefix + name] = tensor
        if "span_kinds" in rows[0]:
            mark_spans(batch, rows, skipped)
        return batch

    def _side(
        self,
        prompts: list[list[int]],
        completions: list[list[int]],
        skipped: list[int],
        pad: int,
        masks: Sequence[Sequence[int] | None] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return one model's sequences, padded on the right; completion tokens that a mask leaves out have no label."""
        width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
        multiple = self.pad_to_multiple_of or 1
        shape = (len(prompts), -(-width // multiple) * multiple)
        ids = torch.full(shape, pad, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORE, dtype=torch.long)
        for b, (prompt, completion, skip) in enumerate(zip(prompts, completions, skipped, strict=True)):
            end = len(prompt) + len(completion)
            ids[b, :end] = torch.tensor(prompt + completion)
            mask[b, :end] = 1
            labels[b, len(prompt) + skip : end] = torch.tensor(completion[skip:])
            bits = masks[b] if masks is not None else None
            if bits is not None:
                labels[b, len(prompt) : end].masked_fill_(torch.tensor(bits) == 0, IGNORE)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def prompts_of(batch: Mapping[str, Any], prefix: str = "teacher_") -> list[list[int]]:
    """Return the prompts that a batch was made from: the ids before the first completion token.

    Args:
        batch: A batch of `DistillationCollator`.
        prefix: "teacher_" for the teacher's prompts, "" for the student's.
    """
    layout = layout_of(batch)
    side = layout.teacher if prefix else layout.student
    assert side is not None
    return side.prompts
