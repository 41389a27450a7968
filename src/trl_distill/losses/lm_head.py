"""A causal language model's LM head as one value: how its hidden states become logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .reference import head_logits


@dataclass(frozen=True)
class LMHead:
    """logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap), the softcap if there is one.

    Attributes:
        weight: [V, H]; None if the hidden states are the logits that the model's own forward gave, [N, V].
        bias: [V] or None.
        softcap: `final_logit_softcapping` of Gemma and others, or None.
        scale: Factor of the logits before the softcap (Cohere multiplies, Granite divides).
        rows: Rows of `weight` and `bias` that the logits have; None is all. The others pad the matrix.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    rows: int | None = None

    def logits(self, hidden: torch.Tensor, rows: int) -> torch.Tensor:
        """Return the logits [N, rows] of hidden states [N, H] over the first rows of the vocabulary."""
        if self.weight is None:
            return hidden[:, :rows]
        bias = None if self.bias is None else self.bias[:rows]
        hidden = hidden.to(self.weight.dtype)
        return head_logits(hidden, self.weight[:rows], bias, softcap=self.softcap, scale=self.scale)


LOGITS = LMHead(None)  # of a model whose own forward gives the logits
