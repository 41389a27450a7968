"""Divergence and agreement of a student's and the teacher's next-token distributions, on the teacher's completions.

Both are computed as in training: the teacher's signal, the forward that ends at the completion, and the losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils import send_to_device

from ..data.row_report import numbered
from ..errors import DistillError
from ..losses.lm_head import ModelSide
from ..losses.settings import LossSettings
from ..losses.signals import DenseSignal
from ..models.batch_layout import LAYOUT, layout_of
from ..teachers.not_finite import numerical_remedy
from .result import Fidelity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..data.aligned_row import AlignedRow
    from ..data.collator import DistillationCollator
    from ..losses.signals import TeacherSignal
    from ..teachers.base import Teacher
    from ..teachers.local.teacher import LocalTeacher

COMPARED = LossSettings(alpha=1.0, temperature=1.0)  # KL(teacher || student) in nats at T = 1


class RowFidelity(NamedTuple):
    """One row's figures.

    Attributes:
        divergences: KL(teacher || student) in nats of each completion token that has a token before it.
        agreed: Tokens whose likeliest token is the teacher's.
        compared: Tokens that were compared.
        student_is_nan: Whether the student's cross-entropy of any token is NaN.
    """

    divergences: tuple[float, ...]
    agreed: float
    compared: int
    student_is_nan: bool = False

    @property
    def is_nan(self) -> bool:
        """Whether any divergence is NaN."""
        return any(map(math.isnan, self.divergences))


@torch.no_grad()
def fidelity_of(
    student: LocalTeacher,
    teacher: Teacher,
    rows: Sequence[AlignedRow],
    *,
    collator: DistillationCollator,
    columns: Sequence[str],
    batch_size: int = 16,
) -> list[RowFidelity]:
    """Compare a student with a teacher that scores, on rows with the teacher's completions.

    Args:
        student: The student, as a model that scores.
        teacher: The teacher.
        rows: Their prompts and completions; one without a completion token has no figures.
        collator: Makes batches of them.
        columns: The fields of a row that it reads.
        batch_size: Rows in a batch; what a teacher without hidden states says is read row by row.

    Raises:
        DistillError: The log-probabilities of one of them are NaN or infinite, so that nothing can be said of it.
    """
    if not teacher.capabilities.dense:
        batch_size = 1
    found = [RowFidelity((), 0.0, 0) for _ in rows]
    usable = sorted((i for i, row in enumerate(rows) if row.kept > 0), key=lambda i: -len(rows[i].teacher_prompt))
    for start in range(0, len(usable), batch_size):
        places = usable[start : start + batch_size]
        made = collator([{name: getattr(rows[i], name) for name in columns} for i in places])
        batch = send_to_device(made, student.model.device)
        signal, side = teacher.score(batch), student.score(_for_student(batch))
        assert isinstance(side, ModelSide)
        labels = batch["labels"][:, 1:]
        labels = labels[labels != -100].to(side.hidden.device)
        counts = layout_of(batch).student.counts.tolist()
        for i, (part, own, tokens) in zip(places, _by_row(signal, side, labels, counts), strict=True):
            found[i] = _compared(part, own, tokens)
    _check(student, rows, [row.student_is_nan for row in found])
    _check(teacher, rows, [row.is_nan for row in found])
    return found


def _check(model: Teacher, rows: Sequence[AlignedRow], bad: Sequence[bool]) -> None:
    """Raise DistillError if a model's log-probabilities are NaN or infinite on any row."""
    if any(bad):
        numbers = [row.row for row, is_bad in zip(rows, bad, strict=True) if is_bad]
        raise DistillError(
            f"the log-probabilities of {model.name!r} are NaN or infinite at {numbered(numbers)} of the evaluated "
            f"data, so that there is no verdict; {numerical_remedy(model)}."
        )


def summed(rows: Sequence[RowFidelity]) -> Fidelity:
    """Return the figures of a side from those of its rows."""
    return Fidelity(
        divergence=tuple(sum(row.divergences) / row.compared if row.compared else 0.0 for row in rows),
        agreement=tuple(row.agreed / row.compared if row.compared else 0.0 for row in rows),
        tokens=tuple(row.compared for row in rows),
    )


def _for_student(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch in which the teacher's side is the student's, which then scores as a teacher does."""
    layout = layout_of(batch)
    own = {f"teacher_{name}": batch[name] for name in ("input_ids", "attention_mask", "labels")}
    return {**batch, **own, LAYOUT: replace(layout, teacher=layout.student, kinds=None)}


def _by_row(
    signal: TeacherSignal, side: ModelSide, labels: torch.Tensor, counts: Sequence[int]
) -> Iterator[tuple[TeacherSignal, ModelSide, torch.Tensor]]:
    """Yield signal, student and labels of each row; a batch of one row is not cut."""
    if len(counts) == 1:
        yield signal, side, labels
        return
    assert isinstance(signal, DenseSignal)
    start = 0
    for count in counts:
        tokens = slice(start, start + count)
        yield signal.at(tokens), side.at(tokens), labels[tokens]  # type: ignore[misc]
        start += count


def _compared(signal: TeacherSignal, side: ModelSide, labels: torch.Tensor) -> RowFidelity:
    own = ModelSide(side.hidden, side.head)
    loss = signal.loss(own, labels, COMPARED)
    covered = getattr(signal, "covered", None)
    count = len(labels) if covered is None else int(covered)
    student_is_nan = bool(loss.ce.isnan().any())
    return RowFidelity(tuple(loss.kl.tolist()), float(loss.top1_agreement), count, student_is_nan)
