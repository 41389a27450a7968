"""How a local teacher reads a batch: in which passes, padded after a cached prefix or flattened.

A flattened sequence has no padding, but cannot continue a cached prefix, and attention with a mask computes every token
against the whole of it. Rows are read in the way that needs fewer multiplications: in each layer of width H a token
needs 12 H^2 of them for the projections (4 H^2 of attention, 8 H^2 of an MLP four times as wide) and 2 S H to attend
to S tokens, which is in proportion to 6 H + S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from ...config.devices import on_device
from ...models.batch_layout import Side
from ...models.completion_forward import completion_arguments
from ...models.padding_free import accepted_marks, marks_of

MOST = 4096  # tokens of a pass, however few the student's batch has: fewer leave a device idle


class Pass(NamedTuple):
    """Rows that are read at once: as one sequence if `flat`, else padded to the longest of them."""

    rows: slice
    flat: bool


def plan(
    lengths: Sequence[int], *, start: int, flattens: bool, most: int | None, hidden_size: int, masked: bool
) -> list[Pass]:
    """Return the passes that read all rows in their order.

    Args:
        lengths: Tokens of each row.
        start: Tokens of each that a cache has already.
        flattens: Whether rows may be put into one sequence.
        most: Tokens of a pass at most, but for a single row that is longer; None reads all in one.
        hidden_size: H.
        masked: Whether attention computes a whole sequence and masks it, unlike kernels of variable length.
    """
    longest, together = max(lengths), sum(lengths)
    sequence = max(longest, min(together, most or together)) if masked else longest
    costs = together * (6 * hidden_size + sequence), len(lengths) * (longest - start) * (6 * hidden_size + longest)
    flat = flattens and costs[0] < costs[1]
    found, first = [], 0
    for end in range(1, len(lengths) + 1):
        behind = lengths[first : end + 1]  # with the next row
        tokens = sum(behind) if flat else len(behind) * (max(behind) - start)
        if end == len(lengths) or (most is not None and tokens > most):
            found.append(Pass(slice(first, end), flat))
            first = end
    return found


def flattened(
    model: PreTrainedModel, ids: torch.Tensor, labels: torch.Tensor, side: Side, rows: slice
) -> dict[str, Any]:
    """Return the model's inputs for a range of the rows of `ids` and `labels`, [B, S], as one sequence."""
    lengths, width = side.lengths[rows], ids.shape[1]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kept = on_device(np.repeat(np.arange(rows.start, rows.stop), lengths) * width + within, ids.device)
    some, marked = (tensor.flatten().index_select(0, kept)[None] for tensor in (ids, labels))
    places = side.places.of_rows(rows, width).flattened(lengths)
    marks = accepted_marks(model, marks_of(lengths.tolist(), device=ids.device))
    return {"input_ids": some, **completion_arguments(model, marked, places), **marks}
