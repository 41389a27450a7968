"""The trained student on a few rows: its own completions, and its divergence token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils import send_to_device

from ..data.split import Split
from ..evaluation.metrics import repeats
from ..evaluation.page.content import TrainedRow
from ..evaluation.pieces import token_pieces
from ..losses.lm_head import LOGITS, ModelSide
from ..losses.signals import cross_entropy
from ..models.adapters import base_of
from ..models.batch_layout import layout_of
from ..models.completion_forward import OWN_LOGITS, add_completion_forward, completion_arguments
from ..models.generation import GenerationSettings, evaluating
from ..models.lm_head import lm_head_of
from ..models.padding_free import student_inputs
from ..trainer.completion_source import student_writes
from ..trainer.mixin import DistillationMixin

if TYPE_CHECKING:
    from datasets import Dataset

    from ..losses.result import DistillationLoss
    from .fit import Trained

ROWS = 8  # that the student writes for
TOKEN_ROWS = 4  # of them that are measured token by token
ROOM = 16  # tokens that the student may write beyond the longest learned completion
MOST_NEW_TOKENS = 256
PreparedRow = dict[str, Any]  # columns of `data.preparation.prepare`


class TrainedRows(NamedTuple):
    """A few rows of a run's data after training.

    Attributes:
        split: Which data they are of.
        rows: The rows.
        divergence: What their divergence is, in words.
    """

    split: Split
    rows: tuple[TrainedRow, ...]
    divergence: str


def trained_rows(trained: Trained) -> TrainedRows:
    """Generate the student's completions of rows spread over the validation or training data, and score some.

    Call it in one process, while the trainer's model is as it was trained. Without a teacher, and for a trainer that is
    not ours, there are no rows.
    """
    trainer, datasets = trained.trainer, trained.prepared.datasets
    split = Split.EVAL if Split.EVAL in datasets else Split.TRAIN
    if not isinstance(trainer, DistillationMixin) or not trainer.distilling:
        return TrainedRows(split, (), "")
    chosen = _spread(datasets[split], ROWS)
    rows = _written(trainer, chosen)
    settings = trainer.setup.schedule.end
    for place, row in enumerate(chosen[:TOKEN_ROWS]):
        loss, ids = _token_losses(trainer, row)
        rows[place] = replace(
            rows[place],
            pieces=token_pieces(trainer.tokenizer, ids),
            divergence=() if loss.silent else tuple(loss.of.kl.float().tolist()),
            cross_entropy=tuple(loss.of.ce.float().tolist()),
        )
    kind = {"forward_kl": "KL(teacher ‖ student)", "reverse_kl": "KL(student ‖ teacher)", "jsd": "JSD"}
    what = f"{kind[settings.divergence]} at T = {settings.temperature:g} of each token of the learned completion"
    return TrainedRows(split, tuple(rows), what)


def _spread(data: Dataset, count: int) -> list[PreparedRow]:
    """Return rows at equal distances."""
    places = [i * len(data) // count for i in range(count)] if len(data) > count else range(len(data))
    return [data[place] for place in places]


def _written(trainer: DistillationMixin, rows: Sequence[PreparedRow]) -> list[TrainedRow]:
    """Return rows with what the student writes, greedily, in one batch; not of an empty prompt or several turns."""
    tokenizer = trainer.tokenizer
    asked = [i for i, row in enumerate(rows) if row["student_prompt"] and not row.get("completion_mask")]
    longest = max((len(rows[i]["completion"]) for i in asked), default=0)
    settings = GenerationSettings(max_new_tokens=min(longest + ROOM, MOST_NEW_TOKENS))
    written = {}
    if asked:
        prompts = [list(rows[i]["student_prompt"]) for i in asked]
        written = dict(zip(asked, student_writes(trainer, prompts, settings), strict=True))
    shown = []
    for i, row in enumerate(rows):
        prompt, learned = tokenizer.decode(row["student_prompt"]), list(row["completion"])
        shown_row = TrainedRow(int(row["row"]), str(prompt), str(tokenizer.decode(learned, skip_special_tokens=True)))
        if i in written:
            ids = list(written[i].ids)
            could_end = written[i].finished or len(ids) > len(learned)
            text = str(tokenizer.decode(ids, skip_special_tokens=True))
            shown_row = replace(
                shown_row,
                written=text,
                finished=written[i].finished if could_end else None,
                tokens=len(ids),
                repeats=repeats(text, finished=written[i].finished),
            )
        shown.append(shown_row)
    return shown


class _TokenLosses(NamedTuple):
    of: DistillationLoss
    silent: bool  # whether nothing is compared with a teacher


@torch.no_grad()
def _token_losses(trainer: DistillationMixin, row: PreparedRow) -> tuple[_TokenLosses, list[int]]:
    """Return the loss of each completion token of a row, as evaluation weighs it, and the tokens' ids."""
    student, base = trainer.model, base_of(trainer.model)
    add_completion_forward(base)
    batch: dict[str, Any] = send_to_device(trainer.data_collator([row]), trainer.args.device)
    places, settings = layout_of(batch).student_places, trainer.setup.schedule.end
    with evaluating(student), trainer.accelerator.autocast():
        signal = trainer.teacher.score(batch) if settings.alpha > 0 else None
        read = student(**student_inputs(batch, base), **completion_arguments(base, batch["labels"], places))
        side = ModelSide(read.hidden, LOGITS if hasattr(base, OWN_LOGITS) else lm_head_of(base))
        labels = batch["labels"][:, 1:]
        labels = labels[labels != -100]
        loss = cross_entropy(side, labels, settings) if signal is None else signal.loss(side, labels, settings)
    silent = signal is None or bool(getattr(signal, "silent", False))
    return _TokenLosses(loss, silent), labels.tolist()
