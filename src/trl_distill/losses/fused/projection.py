"""One model's LM head, applied to tiles: a block of vocabulary rows times a tile of hidden states.

Tiles of logits lie as [block, rows], vocabulary first: the products run twice as fast so on a CPU, and what is one
number per token is contiguous. They are wide (float32, or float64 for float64 inputs) whatever the inputs are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..result import vocabulary_rows
from .products import multiply
from .tile_plan import padded

if TYPE_CHECKING:
    from .gpu import Head
    from .tile_plan import KernelPlan


def product_dtype(hidden: torch.Tensor) -> torch.dtype:
    """Return the precision `nn.Linear` would multiply in: autocast's where it is on, else that of the hidden states."""
    device = hidden.device.type
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of logits, sums and accumulators."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Projection:
    """Softened logits z = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap) / temperature.

    Attributes:
        hidden: [N, H].
        weight: [V, H]; None if `hidden` is hidden @ weight.T already, [N, V].
        bias: [V] or None.
        softcap: Bound of the logits, or None.
        scale: Factor of the logits before the softcap.
        temperature: T, by which they are divided in the same go.
        dtype: Precision of the factors of every product.
        wide: Precision of logits and sums.
    """

    hidden: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    softcap: float | None
    scale: float
    temperature: float
    dtype: torch.dtype
    wide: torch.dtype

    @property
    def vocabulary(self) -> int:
        """Rows of the vocabulary, V."""
        return vocabulary_rows(self.hidden, self.weight)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return hidden states, weight and bias."""
        return self.hidden, self.weight, self.bias

    def with_tensors(self, hidden: Any, weight: Any, bias: Any) -> Projection:
        """Return the same head with other tensors."""
        return replace(self, hidden=hidden, weight=weight, bias=bias)

    def kernel_head(self, plan: KernelPlan, columns: int) -> Head:
        """Return its first `columns` as the kernels of a GPU read them."""
        from .gpu import Head

        return Head(self, plan, columns)

    def kernel_room(self, columns: int) -> int:
        """Return how many numbers a row of them takes beyond what is there."""
        return 0 if self.weight is None else padded(columns)

    @property
    def rules_out(self) -> bool:
        """Whether a logit may be -inf: only a bias can rule a token out, and a softcap bounds it again."""
        return self.bias is not None and self.softcap is None

    def rows(self, index: slice | torch.Tensor) -> torch.Tensor:
        """Hidden states of a tile of tokens, [R, H], as a factor of products; or its logits, [R, V]."""
        rows = self.hidden[index]
        return rows if self.weight is None else self._factor(rows)

    def block(self, vocabulary: slice) -> torch.Tensor:
        """A block of the weight's rows, [B, H], as a factor of products."""
        assert self.weight is not None
        return self._factor(self.weight[vocabulary])

    def logits(self, rows: torch.Tensor, vocabulary: slice, out: torch.Tensor) -> torch.Tensor:
        """Write z of a tile's `rows` over a block of the vocabulary into `out` [B, R]."""
        factor = self.scale / (self.temperature if self.softcap is None else self.softcap)
        if self.weight is None:
            out.copy_(rows[:, vocabulary].t()).mul_(factor)
        else:
            multiply(self.block(vocabulary), rows.t(), out, alpha=factor)
        if self.bias is not None:
            out.add_(self.bias[vocabulary].to(out.dtype)[:, None], alpha=factor)
        if self.softcap is not None:
            out.tanh_().mul_(self.softcap / self.temperature)
        return out

    def slope(self, z: torch.Tensor, out: torch.Tensor) -> torch.Tensor | None:
        """Write T dz / d (hidden @ weight.T + bias) into `out`, or return None where it is the scale alone."""
        if self.softcap is None:
            return None
        torch.mul(z, self.temperature / self.softcap, out=out)
        return out.square_().neg_().add_(1.0).mul_(self.scale)

    def add_hidden_gradient(self, hidden: torch.Tensor, gradient: torch.Tensor, vocabulary: slice) -> None:
        """Add a block's gradient [B, R] in hidden @ weight.T to that of a tile's rows, `hidden` [R, H] or [R, V]."""
        if self.weight is None:
            hidden[:, vocabulary] += gradient.t()
        else:
            multiply(gradient.t(), self.block(vocabulary), hidden, add=True)

    def _factor(self, matrix: torch.Tensor) -> torch.Tensor:
        """Round to the product's precision; on a CPU half precision is then widened, which loses nothing."""
        matrix = matrix.to(self.dtype)
        return matrix.to(self.wide) if matrix.device.type == "cpu" else matrix
