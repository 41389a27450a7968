"""Rows with prompts of several teachers to a batch: the student's sequences, and each teacher's of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import DataError
from ..prompts.fitting import skipped_tokens
from .collator import DistillationCollator


@dataclass
class SeveralCollator(DistillationCollator):
    """Make a batch from rows with `student_prompt`, `completion`, `teachers` and `teacher_prompts`.

    The batch holds `input_ids`, `attention_mask` and `labels` of the student, [B, S_s], and for teacher i of those that
    take a row of the batch the same three with the prefix `teacher{i}_`, [R_i, S_i], and `teacher{i}_rows`, [R_i], the
    places of those rows in the batch. A completion token that one of a row's prompts does not predict is labelled for
    none.

    Args:
        teacher_pad_token_ids: Padding id of each teacher; None is the student's.
    """

    teacher_pad_token_ids: Sequence[int | None] = ()

    def _padded(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch with every side padded."""
        if "teacher_prompts" not in rows[0]:
            raise DataError("rows were prepared for one teacher, but teacher_config names several; prepare them again.")
        completions = [list(row["completion"]) for row in rows]
        skipped = [max(skipped_tokens(row["student_prompt"], p) for p in row["teacher_prompts"]) for row in rows]
        batch = self._side([list(row["student_prompt"]) for row in rows], completions, skipped, self.pad_token_id)
        for i, pad in enumerate(self.teacher_pad_token_ids):
            places = [b for b, row in enumerate(rows) if i in row["teachers"]]
            if not places:
                continue
            prompts = [list(rows[b]["teacher_prompts"][list(rows[b]["teachers"]).index(i)]) for b in places]
            theirs = ([completions[b] for b in places], [skipped[b] for b in places])
            side = self._side(prompts, *theirs, self.pad_token_id if pad is None else pad)
            batch |= {f"teacher{i}_{name}": tensor for name, tensor in side.items()}
            batch[f"teacher{i}_rows"] = torch.tensor(places)
        return batch
