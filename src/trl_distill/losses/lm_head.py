"""A causal language model's LM head as a value: how its hidden states become logits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F


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

    def logits(self, hidden: torch.Tensor, rows: int | None = None) -> torch.Tensor:
        """Project hidden states [..., H] to logits [..., rows], as a model's own forward does.

        Args:
            hidden: [..., H]; logits [..., V] before bias, scale and softcap if there is no weight.
            rows: First rows of the vocabulary, all by default.
        """
        rows = self.rows if rows is None else rows
        weight, bias = (None if parameter is None else parameter[:rows] for parameter in (self.weight, self.bias))
        if weight is not None:
            logits = F.linear(hidden.to(weight.dtype), weight, bias)
        else:
            logits = hidden[..., :rows] if bias is None else hidden[..., :rows] + bias
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


LOGITS = LMHead(None)  # of a model whose own forward gives the logits


@dataclass(frozen=True)
class ModelSide:
    """One of the models that a loss compares, at N tokens.

    Attributes:
        hidden: [N, H], its hidden states; its logits [N, V] if the head has no weight.
        head: Its LM head.
    """

    hidden: torch.Tensor
    head: LMHead

    @property
    def vocabulary_rows(self) -> int:
        """Rows of its vocabulary, V."""
        return self.hidden.shape[1] if self.head.weight is None else len(self.head.weight)

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Hidden states, weight and bias."""
        return self.hidden, self.head.weight, self.head.bias

    def logits(self) -> torch.Tensor:
        """Return [N, V], as the model's own forward computes them."""
        return self.head.logits(self.hidden)

    def at(self, tokens: torch.Tensor | slice) -> ModelSide:
        """Return the same model at some of the tokens."""
        return replace(self, hidden=self.hidden[tokens])
