"""Ends training at the first loss that is not a finite number.

The losses of batches and of their tokens stay on the device until it is waited for in any case: when metrics are
logged, and before a checkpoint. They say what is at fault, since the cross-entropy depends on the student alone: if it
is NaN the student's logits are, and if the divergence alone is NaN the teacher's are. By then the student's weights
are lost, so that a second forward would not tell. An infinite loss is a probability of 0 where the other side has one.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object

from ..data.row_report import numbered
from ..data.split import Split
from ..errors import DistillError
from ..teachers.local.model import FLOAT16
from ..teachers.not_finite import numerical_remedy
from .checkpoints import kept

if TYPE_CHECKING:
    from ..models.batch_layout import BatchLayout
    from ..models.completion_forward import CompletionOutput
    from .base import DistillingTrainer

KEPT = 64  # batches whose losses stay on the device at most; reading them waits for little beside their steps
ZERO = "gives a probability of 0 to tokens"


DATA = {Split.TRAIN: "training", Split.EVAL: "validation"}


class Fault(Enum):
    """What makes a loss NaN or infinite; of several the first is named."""

    STUDENT = "the student's logits are NaN or infinite"
    TEACHER = "the log-probabilities of the teacher, not of the student, are NaN or infinite"
    STUDENT_RULES_OUT = f"the student {ZERO} that the teacher may write"
    TEACHER_RULES_OUT = f"the teacher {ZERO} that the student may write"
    LABEL_RULED_OUT = f"the student {ZERO} of the completion"
    LOSS = "the loss is NaN or infinite, though that of no token is,"


class FaultyBatch(NamedTuple):
    """A batch whose loss is not finite.

    Attributes:
        fault: What is at fault.
        numbers: The rows where it is, as their data numbers them; empty if that is not known.
        is_whole: Whether these are all rows of the batch.
    """

    fault: Fault
    numbers: tuple[int, ...] = ()
    is_whole: bool = False


class TokenLosses(NamedTuple):
    """The losses of a batch's N completion tokens.

    Attributes:
        ce: [N], cross-entropy.
        kl: [N], divergence.
        counts: [B], tokens of each row.
        numbers: The rows' numbers in their data; empty if they have none.
    """

    ce: torch.Tensor
    kl: torch.Tensor
    counts: np.ndarray
    numbers: tuple[int, ...]


class FiniteLosses:
    """Keeps the losses of a trainer's batches until they are read.

    Args:
        trainer: The trainer of the batches.
        split: Which batches: those of training, or of evaluations.

    Attributes:
        fault: What was at fault in an evaluation, as a sentence; empty if nothing was.
    """

    def __init__(self, trainer: DistillingTrainer, split: Split) -> None:
        self.trainer, self.split, self.fault = trainer, split, ""
        self._seen: list[tuple[int, torch.Tensor, TokenLosses | None]] = []
        self._noted: TokenLosses | None = None

    def restart(self) -> None:
        """Forget what was added."""
        self._seen, self._noted, self.fault = [], None, ""

    def note(self, output: CompletionOutput, layout: BatchLayout) -> None:
        """Keep the losses of a batch's tokens for `add`; nothing is read from the device."""
        if output.token_ce is not None and output.token_kl is not None:
            self._noted = TokenLosses(output.token_ce, output.token_kl, layout.student.counts, layout.numbers)

    def add(self, loss: torch.Tensor) -> None:
        """Add the loss of a batch, a scalar on the device."""
        step = self.trainer.state.global_step + (self.split is Split.TRAIN)
        self._seen.append((step, loss, self._noted))
        self._noted = None
        if len(self._seen) == KEPT:  # on all ranks alike
            self.check()

    def check(self) -> None:
        """Read the losses since the last call; all ranks call it together.

        Raises:
            DistillError: One of training is not a finite number, on any rank.
        """
        fault = self._read()
        if fault and self.split is Split.TRAIN:
            raise DistillError(fault)
        self.fault = self.fault or fault

    def _read(self) -> str:
        """Return what is at fault in the first loss that is not finite, as a sentence; an empty one if all are."""
        seen, self._seen = self._seen, []
        if not seen:
            return ""
        losses = torch.stack([loss.float() for _, loss, _ in seen])
        finite = self.trainer.accelerator.gather(losses.isfinite().int()[None]).amin(0).tolist()
        if all(finite):
            return ""
        step, _, tokens = seen[finite.index(0)]
        own = [] if losses[finite.index(0)].isfinite() else [_fault_of(tokens, self.trainer.args.distill_divergence)]
        faults: list[FaultyBatch] = gather_object(own)
        found = next(fault for fault in Fault if any(fault is batch.fault for batch in faults))
        batches = [batch for batch in faults if batch.fault is found]
        rows = [number for batch in batches for number in batch.numbers]
        where = f" at {numbered(rows)} of the {DATA[self.split]} data" if rows else ""
        if len(rows) > 1 and all(batch.is_whole for batch in batches):
            where += ", all of its batch"
        left = kept(self.trainer.args.output_dir)
        what = "training stopped" if self.split is Split.TRAIN else "the evaluation has no figures"
        return f"{what} at step {step}: {found.value}{where}; {remedy(self.trainer, found)}; {left}."


def evaluation_fault(trainer: object) -> str:
    """Return what was at fault in a trainer's last evaluation, as a sentence; an empty one if nothing was."""
    distiller = getattr(trainer, "distiller", None)
    return "" if distiller is None else str(distiller.losses[Split.EVAL].fault)


def remedy(trainer: DistillingTrainer, fault: Fault) -> str:
    """Return what a user can do about a fault."""
    if fault is Fault.TEACHER:
        return numerical_remedy(trainer.teacher)
    if fault is Fault.STUDENT and trainer.args.fp16:
        return f"{FLOAT16}train in bfloat16 or float32 (--mixed-precision)"
    if fault is Fault.STUDENT and trainer.base_student.dtype == torch.float16:
        return f"{FLOAT16}load the student in bfloat16 or float32"
    if fault in (Fault.STUDENT_RULES_OUT, Fault.TEACHER_RULES_OUT):
        return "choose --distill-divergence jsd, which is finite then"
    if fault is Fault.LABEL_RULED_OUT:
        return "leave these rows out, or give --distill-alpha 1"
    return f"lower --lr (it is {trainer.args.learning_rate:g})"


def _fault_of(tokens: TokenLosses | None, divergence: str) -> FaultyBatch:
    """Return what is at fault in a batch whose loss is not finite, and where."""
    if tokens is None:
        return FaultyBatch(Fault.LOSS)
    ce, kl = (values.float().cpu().numpy() for values in (tokens.ce, tokens.kl))
    rules_out = Fault.TEACHER_RULES_OUT if divergence == "reverse_kl" else Fault.STUDENT_RULES_OUT
    row_of = np.repeat(np.arange(len(tokens.counts)), tokens.counts)
    for fault, bad in (
        (Fault.STUDENT, np.isnan(ce)),
        (Fault.TEACHER, np.isnan(kl)),
        (rules_out, np.isinf(kl)),
        (Fault.LABEL_RULED_OUT, np.isinf(ce)),
    ):
        if bad.any():
            rows = np.unique(row_of[bad])
            numbers = tuple(tokens.numbers[row] for row in rows) if tokens.numbers else ()
            return FaultyBatch(fault, numbers, len(rows) == np.count_nonzero(tokens.counts))
    return FaultyBatch(Fault.LOSS, tokens.numbers, is_whole=True)
