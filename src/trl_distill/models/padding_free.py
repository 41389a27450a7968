"""Rows of different lengths as one sequence without padding, and whether a model keeps them apart in it.

The rows are concatenated into a sequence [1, S]. Positions restart at 0 in each, and there is no attention mask, which
a model would use instead of them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import pad

from ..config.devices import on_device
from .architectures import backbone_of, vocabulary_rows
from .batch_layout import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .completion_forward import CompletionOutput

Inputs = dict[str, Any]  # tensors by name, and `max_length_q` and `max_length_k` as numbers
# how TRL marks the rows: kernels of variable length take the bounds, so that no layer has to find them
MARKS = ("position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
STUDENT = {"labels": -100, "student_spans": 0}  # what is as long as `input_ids`, and its value in padding
PROBE = 8  # tokens
LEAK = 0.1  # of what a row that is read after another differs by without any separation


def marks_of(lengths: Sequence[int], *, device: torch.device | None = None) -> Inputs:
    """Return the row boundaries of these lengths in one sequence: `MARKS`, keywords of the model's forward."""
    sizes = np.asarray(lengths)
    bounds = np.concatenate([[0], sizes.cumsum()])
    rows = np.repeat(np.arange(len(sizes)), sizes)
    positions = np.arange(len(rows)) - bounds[rows]
    kernels_take = bounds.astype(np.int32), rows.astype(np.int32)[None]
    places, ends, numbers = (on_device(values, device) for values in (positions[None], *kernels_take))
    longest = max(lengths)
    return dict(zip(MARKS, (places, ends, ends, longest, longest, numbers), strict=True))


def flatten_student(batch: Inputs, *, pad_token_id: int, multiple: int | None = None) -> None:
    """Put the student's sequences of a batch, [B, S_s], into one, [1, S].

    The batch then has `MARKS` instead of `attention_mask`; the teacher's side stays as it is.

    Args:
        batch: Padded on the right. No row's first token has a label: it is predicted by nothing of its row.
        pad_token_id: Padding id of the student.
        multiple: Fill the sequence up to a multiple of this; what fills it is a row without labels.
    """
    kept = batch.pop("attention_mask").bool()
    lengths = kept.sum(1)
    filling = -int(lengths.sum()) % (multiple or 1)
    for name, fill in {"input_ids": pad_token_id, **STUDENT}.items():
        if name in batch:
            batch[name] = pad(batch[name][kept], (0, filling), value=fill)[None]
    batch.update(marks_of([*lengths.tolist(), *[filling] * bool(filling)]))


def student_inputs(batch: Batch, model: PreTrainedModel) -> Inputs:
    """Return the inputs of the student, without wrappers, for a padded or flattened batch."""
    if "attention_mask" in batch:
        return {name: batch[name] for name in ("input_ids", "attention_mask")}
    return {"input_ids": batch["input_ids"], **accepted_marks(model, {name: batch[name] for name in MARKS})}


def accepted_marks(model: PreTrainedModel, marks: Inputs) -> Inputs:
    """Return the marks that a model's forward accepts: all if it accepts any keyword."""
    names, anything = _keywords(type(backbone_of(model)).forward)
    return {name: mark for name, mark in marks.items() if anything or name in names}


@functools.cache
def _keywords(forward: Callable[..., object]) -> tuple[frozenset[str], bool]:
    """Return which keywords a forward accepts, and whether it accepts any."""
    parameters = inspect.signature(forward).parameters
    return frozenset(parameters), any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def keeps_rows_apart(model: PreTrainedModel, forward: Callable[..., CompletionOutput]) -> bool:
    """Whether a model computes the same states for a row after another row as for the row alone.

    The states of a row after another, marked, are compared with those of the row alone. What half precision or another
    kernel changes is small beside what the other row changes if nothing is marked.

    Args:
        model: The model without wrappers, extended by `add_completion_forward`.
        forward: The model as it is called in training, in evaluation mode.
    """
    device = model.device
    rows = vocabulary_rows(model.config)
    both = ((torch.arange(2 * PROBE) * 7 + 1) % rows).to(device)[None]

    def states(ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        marks = accepted_marks(model, marks_of(lengths, device=device))
        found = forward(input_ids=ids, completion_labels=torch.zeros_like(ids), **marks).hidden
        assert found is not None
        return found[1 - PROBE :].float()  # those of the last row; its last token predicts nothing

    with torch.no_grad():
        alone = states(both[:, PROBE:], [PROBE])
        marked, joined = (states(both, lengths) - alone for lengths in ([PROBE, PROBE], [2 * PROBE]))
    rounding = 8 * torch.finfo(model.dtype).eps * alone.norm()
    return bool(marked.norm() <= torch.maximum(LEAK * joined.norm(), rounding))
