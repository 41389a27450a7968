"""A batch's layout on the host, so that no step has to read it from a device.

The collator has lengths and places of tokens as numbers before the batch goes to a device. Reading them back would
synchronise with the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Batch = Mapping[str, Any]  # tensors by name, and a layout
IGNORE = -100
LAYOUT = "layout"  # its key in a batch


@dataclass(frozen=True)
class Places:
    """Positions of N completion tokens in sequences of equal width.

    Attributes:
        rows: [N] int64, ascending.
        columns: [N] int64, from 1 on: the first token of a sequence is predicted by nothing.
        width: Tokens of a sequence, padding included.
    """

    rows: np.ndarray
    columns: np.ndarray
    width: int

    @classmethod
    def nowhere(cls, width: int) -> Places:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), width)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def predicting(self) -> np.ndarray:
        """[N]: the places in the flattened sequences, [B * S], of the tokens before the completion's."""
        return self.rows * self.width + self.columns - 1

    @property
    def predicting_columns(self) -> np.ndarray:
        """[C]: the columns that predict any of the tokens, ascending."""
        return np.unique(self.columns - 1)

    @property
    def first(self) -> int:
        """The first column that has a completion token in any row; the width if there is none."""
        return int(self.columns.min()) if len(self) else self.width

    def behind(self, start: int) -> Places:
        """Return the same tokens in sequences without their first `start` columns."""
        return Places(self.rows, self.columns - start, self.width - start)

    def of_rows(self, rows: slice, width: int) -> Places:
        """Return the tokens of a range of rows, as places in these rows cut to `width` columns."""
        own = (self.rows >= rows.start) & (self.rows < rows.stop)
        return Places(self.rows[own] - rows.start, self.columns[own], width)

    def flattened(self, lengths: np.ndarray) -> Places:
        """Return the tokens' places in one sequence of all rows, of these lengths [B], without padding."""
        starts = np.cumsum(lengths) - lengths
        return Places(np.zeros_like(self.rows), starts[self.rows] + self.columns, int(lengths.sum()))


@dataclass(frozen=True)
class Side:
    """One model's sequences of a batch.

    Attributes:
        ids: [B, S] token ids, padded on the right.
        lengths: [B], tokens of each row.
        places: Its completion tokens.
    """

    ids: np.ndarray
    lengths: np.ndarray
    places: Places

    @classmethod
    def of(cls, batch: Batch, prefix: str, *, labels: str = "labels") -> Side:
        """Return one side of a padded batch by its keys: `labels` is that of what marks its completion tokens."""
        ids, mask, marked = (_host(batch[prefix + name]) for name in ("input_ids", "attention_mask", labels))
        rows, columns = (marked[:, 1:] != IGNORE).nonzero()
        return cls(ids, mask.sum(1), Places(rows, columns + 1, ids.shape[1]))

    @property
    def counts(self) -> np.ndarray:
        """[B]: completion tokens of each row."""
        return np.bincount(self.places.rows, minlength=len(self.lengths))

    @property
    def prompts(self) -> list[list[int]]:
        """The ids before each row's first completion token; empty for a row without any."""
        starts = np.zeros(len(self.lengths), np.int64)
        starts[self.places.rows[::-1]] = self.places.columns[::-1]  # the first one of a row is written last
        return [row[:start].tolist() for row, start in zip(self.ids, starts, strict=True)]

    @property
    def sequences(self) -> list[list[int]]:
        """The ids of each row without padding."""
        return [row[:length].tolist() for row, length in zip(self.ids, self.lengths, strict=True)]

    def kept(self, rows: np.ndarray) -> Side:
        """Return the side without the completion tokens of rows that are not marked in `rows`, [B] bool."""
        places, some = self.places, rows[self.places.rows]
        return replace(self, places=replace(places, rows=places.rows[some], columns=places.columns[some]))


@dataclass(frozen=True)
class BatchLayout:
    """The layout of a batch of `DistillationCollator` or `MultiTeacherCollator`, on the host.

    It is in the batch under `LAYOUT` and goes to every device unchanged. Labels that are masked later are left out
    of the loss. Code that relabels tokens must remove the layout from the batch, so that it is rebuilt from the
    tensors.

    Attributes:
        student: The student's side, as it was before its sequences were flattened.
        teacher: The side of a run's one teacher.
        teachers: By place in the list, the side of each of several teachers and the rows [R] that it has.
        items: Rows of each item of the dataset, if the student's sequences are one; else None.
        kinds: [N], how tokens match those of a teacher with another tokenizer, see `mark_spans`; else None.
        numbers: The number in its data of each row, for messages; empty if they have none.
    """

    student: Side
    teacher: Side | None = None
    teachers: Mapping[int, tuple[Side, np.ndarray]] = field(default_factory=dict)
    items: tuple[int, ...] | None = None
    kinds: np.ndarray | None = None
    numbers: tuple[int, ...] = ()

    @classmethod
    def of(cls, batch: Batch) -> BatchLayout:
        """Return the layout of a padded batch, read from its tensors."""
        student = Side.of(batch, "")
        has_spans = "student_spans" in batch
        one = "teacher_input_ids" in batch
        teacher = Side.of(batch, "teacher_", labels="spans" if has_spans else "labels") if one else None
        numbers = [int(key[len("teacher") : -len("_rows")]) for key in batch if key.endswith("_rows")]
        several = {i: (Side.of(batch, f"teacher{i}_"), _host(batch[f"teacher{i}_rows"])) for i in numbers}
        places = student.places
        kinds = _host(batch["student_spans"])[places.rows, places.columns] if has_spans else None
        return cls(student, teacher, several, kinds=kinds)

    @property
    def flat(self) -> bool:
        """Whether the student's sequences are one."""
        return self.items is not None

    @cached_property
    def student_places(self) -> Places:
        """The completion tokens in what the student reads."""
        return self.student.places.flattened(self.student.lengths) if self.flat else self.student.places

    @property
    def tokens_of_teachers(self) -> dict[int, np.ndarray]:
        """By place in the list of teachers: which of the N completion tokens are of the rows that one has."""
        rows = self.student.places.rows
        return {i: np.isin(rows, own).nonzero()[0] for i, (_, own) in self.teachers.items()}

    @property
    def student_tokens(self) -> int:
        """Tokens of the student's rows that have any label, without padding."""
        return int(self.student.lengths[self.student.counts > 0].sum())

    def rows_of(self, items: int) -> int:
        """Return how many rows the first `items` items of the dataset have."""
        sizes = (1,) * len(self.student.lengths) if self.items is None else self.items
        return sum(sizes[:items])

    def without_labels_from(self, row: int) -> BatchLayout:
        """Return the layout with the completion tokens of the first `row` rows alone."""
        kept = np.arange(len(self.student.lengths)) < row
        return replace(
            self,
            student=self.student.kept(kept),
            teacher=None if self.teacher is None else self.teacher.kept(kept),
            teachers={i: (side.kept(kept[rows]), rows) for i, (side, rows) in self.teachers.items()},
            kinds=None if self.kinds is None else self.kinds[kept[self.student.places.rows]],
        )

    def to(self, *args: object, **kwargs: object) -> BatchLayout:
        """Return itself: the layout stays on the host when a batch is moved."""
        return self


def layout_of(batch: Batch) -> BatchLayout:
    """Return a batch's layout, or read it from the tensors of a padded batch, which synchronises with their device."""
    return batch[LAYOUT] if LAYOUT in batch else BatchLayout.of(batch)


def _host(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
