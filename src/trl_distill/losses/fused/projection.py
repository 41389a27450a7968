"""A model's LM head, applied to tiles: a block of vocabulary rows times a tile of hidden states.

Tiles of logits lie as [block, rows], vocabulary first: the products run twice as fast so on a CPU, and what is one
number per token is contiguous. They are wide (float32, or float64 for float64 inputs) whatever the inputs are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ..lm_head import ModelSide
from ..settings import LossSettings
from .products import multiply
from .tile_plan import blocks, padded

Tensor = torch.Tensor
TileLogits = Callable[[slice, Tensor], Tensor]  # writes a tile's logits over a block of the vocabulary
BLOCK = 4096  # vocabulary rows at a time in the pass for a mixture's log-normalisers
WHOLE = (1, 2, 3, 4)  # temperatures whose powers are cheap products


def product_dtype(hidden: Tensor) -> torch.dtype:
    """Return the precision `nn.Linear` would multiply in: autocast's if it is on, else that of the hidden states."""
    device = hidden.device.type
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def projection_of(side: ModelSide, settings: LossSettings, wide: torch.dtype) -> Projection:
    """Return a model's softened logits, in the precision that `nn.Linear` multiplies in."""
    return Projection(side.hidden, side.head, settings.temperature, product_dtype(side.hidden), wide)


@dataclass(frozen=True)
class Projection(ModelSide):
    """Softened logits z = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap) / temperature.

    Attributes:
        temperature: T, by which the logits are divided in the same go.
        dtype: Precision of the factors of every product.
        wide: Precision of logits and sums.
    """

    temperature: float
    dtype: torch.dtype
    wide: torch.dtype

    def with_tensors(self, tensors: Sequence[Any]) -> Projection:
        """Return the same head with other hidden states, weight and bias."""
        hidden, weight, bias = tensors
        return replace(self, hidden=hidden, head=replace(self.head, weight=weight, bias=bias))

    def kernel_room(self, columns: int) -> int:
        """Return how many additional numbers a tile's row needs on a GPU."""
        return 0 if self.head.weight is None else padded(columns)

    @property
    def rules_out(self) -> bool:
        """Whether a logit may be -inf: only a bias can rule a token out, and a softcap bounds it again."""
        return self.head.bias is not None and self.head.softcap is None

    def rows(self, index: slice | Tensor) -> Tensor:
        """Hidden states of a tile of tokens, [R, H], as a factor of products; or its logits, [R, V]."""
        rows = self.hidden[index]
        return rows if self.head.weight is None else self._factor(rows)

    def block(self, vocabulary: slice) -> Tensor:
        """A block of the weight's rows, [B, H], as a factor of products."""
        assert self.head.weight is not None
        return self._factor(self.head.weight[vocabulary])

    def tile_logits(self, index: slice | Tensor) -> TileLogits:
        """Return a function that writes the logits of a tile of tokens."""
        return partial(self.logits_of, self.rows(index))

    def logits_of(self, rows: Tensor, vocabulary: slice, out: Tensor) -> Tensor:
        """Write z of a tile's `rows` over a block of the vocabulary into `out` [B, R]."""
        head = self.head
        factor = head.scale / (self.temperature if head.softcap is None else head.softcap)
        if head.weight is None:
            out.copy_(rows[:, vocabulary].t()).mul_(factor)
        else:
            multiply(self.block(vocabulary), rows.t(), out, alpha=factor)
        if head.bias is not None:
            out.add_(head.bias[vocabulary].to(out.dtype)[:, None], alpha=factor)
        if head.softcap is not None:
            out.tanh_().mul_(head.softcap / self.temperature)
        return out

    @property
    def is_softened(self) -> bool:
        """Whether T is not 1."""
        return self.temperature != 1

    @property
    def has_cheap_powers(self) -> bool:
        """Whether `power` needs the exponentials alone."""
        return self.temperature in WHOLE

    def at_one(self, z: Tensor) -> Tensor:
        """Return the logits T z of softened ones, or of differences of them."""
        return z * self.temperature

    def softened(self, weight: Tensor) -> Tensor:
        """Return a weight of the gradient in z as that in the logits, over T."""
        return weight / self.temperature

    def power(self, e: Tensor, z: Tensor | None, out: Tensor) -> Tensor:
        """Write exp(T z) into `out`, given e = exp(z); whole powers cost an eighth of an exponential.

        `z` may be None if `has_cheap_powers`; `out` may be `z`, or `e` if that is no longer needed.
        """
        if self.temperature == 1:
            return e if out is e else out.copy_(e)
        if self.temperature == 4:
            return torch.square(e, out=out).square_()
        if self.temperature in WHOLE:
            return torch.pow(e, int(self.temperature), out=out)
        assert z is not None
        return torch.mul(z, self.temperature, out=out).exp_()

    def divergence_weight(self, alpha: float) -> float:
        """Return alpha T^2: with T^2 the gradient keeps its size (Hinton et al., arXiv:1503.02531)."""
        return alpha * self.temperature**2

    def slope(self, z: Tensor, out: Tensor) -> Tensor | None:
        """Write T dz / d (hidden @ weight.T + bias) into `out`, or return None if it is the scale alone."""
        if self.head.softcap is None:
            return None
        torch.mul(z, self.temperature / self.head.softcap, out=out)
        return out.square_().neg_().add_(1.0).mul_(self.head.scale)

    def add_hidden_gradient(self, hidden: Tensor, gradient: Tensor, vocabulary: slice) -> None:
        """Add a block's gradient [B, R] in hidden @ weight.T to that of a tile's rows, `hidden` [R, H] or [R, V]."""
        if self.head.weight is None:
            hidden[:, vocabulary] += gradient.t()
        else:
            multiply(gradient.t(), self.block(vocabulary), hidden, add=True)

    def _factor(self, matrix: Tensor) -> Tensor:
        """Round to the product's precision; on a CPU half precision is then widened, which loses nothing."""
        matrix = matrix.to(self.dtype)
        return matrix.to(self.wide) if matrix.device.type == "cpu" else matrix


@dataclass(frozen=True)
class MixtureProjection:
    """Several teachers in the place of one: the "logits" are the log-probabilities of their mixture.

    log p(v) = logsumexp_i (log w_i + z_i(v) - lse_i), with z_i teacher i's softened logits and lse_i their
    log-normaliser, which an earlier pass over that teacher's vocabulary gives.

    Attributes:
        sides: The M teachers' heads, of one temperature.
        weights: [N, M], at least 0; rows are normalised.
        vocabulary: Rows [0, vocabulary) over which each of them is normalised.
    """

    sides: tuple[Projection, ...]
    weights: Tensor
    vocabulary: int

    @property
    def rules_out(self) -> bool:
        """Whether a log-probability may be -inf."""
        return any(side.rules_out for side in self.sides)

    @property
    def tensors(self) -> tuple[()]:
        """Nothing for autograd to keep: teachers have no gradient and stay with this object."""
        return ()

    def with_tensors(self, tensors: Sequence[Any]) -> MixtureProjection:
        """Return itself; see `tensors`."""
        return self

    def kernel_room(self, columns: int) -> int:
        """Return how many numbers a row needs on a GPU: the mixture, and one teacher's logits at a time."""
        return padded(columns) + max(side.kernel_room(columns) for side in self.sides)

    def tile_logits(self, index: slice | Tensor) -> TileLogits:
        """Return a function that writes log p of a tile, after a pass over each teacher for its normaliser."""
        weights = self.weights[index].to(self.sides[0].wide)
        log_weights = (weights / weights.sum(1, keepdim=True)).log().unbind(1)  # -inf for a weight of 0
        tiles = [side.tile_logits(index) for side in self.sides]
        shifts = [log_w - self._log_normalizer(tile, log_w) for tile, log_w in zip(tiles, log_weights, strict=True)]
        return partial(_mix, tuple(zip(tiles, shifts, strict=True)))

    def _log_normalizer(self, tile: TileLogits, like: Tensor) -> Tensor:
        """Return log sum_v exp(z(v)) of one teacher's tile, [R]."""
        total = torch.full_like(like, -torch.inf)
        for block in blocks(0, self.vocabulary, BLOCK):
            place = like.new_empty(block.stop - block.start, len(like))
            total = torch.logaddexp(total, tile(block, place).logsumexp(0))
        return total


def _mix(teachers: Sequence[tuple[TileLogits, Tensor]], vocabulary: slice, out: Tensor) -> Tensor:
    """Write log p over a block of the vocabulary into `out` [B, R], from each teacher's log w - lse, [R]."""
    place = torch.empty_like(out)
    out.fill_(-torch.inf)
    for tile, shift in teachers:
        torch.logaddexp(out, tile(vocabulary, place).add_(shift), out=out)
    return out
