"""The three divergences, written for one block of a tile whose softmax is not complete yet.

Per token, s = (z_S - max z_S) / T and t = (z_T - max z_T) / T are the shifted log-odds, Z_s and Z_t the sums of
their exponentials, q = e^s / Z_s and p = e^t / Z_t. Every tensor here is [block, rows] or [rows].
"""

from __future__ import annotations

from typing import Protocol

import torch

from ..settings import LossSettings

Tensor = torch.Tensor


class Sums(Protocol):
    """The sums of a pass over the vocabulary, one for each token, [rows]."""

    total_s: Tensor  # Z_s
    total_t: Tensor  # Z_t
    cross: Tensor  # the divergence's own sum
    rules_out: bool  # whether a logit may be -inf


def nan_to_zero(product: Tensor, rules_out: bool) -> Tensor:
    """Return a product of probabilities and logarithms in which 0 * inf is 0, changed in place if a logit may be -inf.

    A logit that is NaN makes its side's total NaN too, and with it every value, so that none is hidden here.
    """
    return product.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf) if rules_out else product


class KL:
    """KL(p || q) = sum p (t - s) - log Z_t + log Z_s, or KL(q || p) = sum q (s - t) - log Z_s + log Z_t in reverse.

    The gradient in s is q - p, or q (log q - log p - KL) in reverse.
    """

    def __init__(self, *, reverse: bool) -> None:
        self.reverse = reverse
        self.of_exponentials = not reverse  # whether the gradient is made of e^s and e^t alone

    def add(self, sums: Sums, gap: Tensor, es: Tensor, et: Tensor) -> None:
        """Add a block's sum of e^t (t - s), e^s (t - s) in reverse; `gap` is t - s and is overwritten."""
        sums.cross += nan_to_zero(gap.mul_(es if self.reverse else et), sums.rules_out).sum(0)

    def rescale(self, sums: Sums, factor_s: Tensor, factor_t: Tensor, shift: Tensor) -> None:
        """Follow both maxima, before the totals do: e^s and e^t shrink by the factors, t - s moves by the shift."""
        total, factor = (sums.total_s, factor_s) if self.reverse else (sums.total_t, factor_t)
        nan_to_zero(sums.cross.add_(shift * total).mul_(factor), sums.rules_out)

    def value(self, sums: Sums) -> Tensor:
        """Return the divergence once all blocks are in."""
        log_gap = sums.total_t.log() - sums.total_s.log()
        return log_gap - sums.cross / sums.total_s if self.reverse else sums.cross / sums.total_t - log_gap

    def gradient(self, sums: Sums, weight: Tensor, s: Tensor, t: Tensor, es: Tensor, out: Tensor) -> None:
        """Write weight * d KL / d s into `out`; `t` is overwritten."""
        if self.reverse:  # log q - log p - KL is s - t less the mean of s - t under q
            torch.sub(s, t, out=out)
            nan_to_zero(out.add_(sums.cross / sums.total_s).mul_(es), sums.rules_out).mul_(weight / sums.total_s)
        else:
            torch.mul(es, weight / sums.total_s, out=out)
            out.sub_(t.exp_().mul_(weight / sums.total_t))


class JensenShannon:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q; arXiv:2306.13649, equation 1.

    With d = log p - log q and L = log(m / q) = log1p(beta (e^d - 1)), it is the sum of beta p (d - L) - (1 - beta) q L;
    its gradient in s is (1 - beta) q (-L - KL(q || m)). Both need complete softmaxes, hence a pass more.
    """

    of_exponentials = False

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self._value = self._to_mixture = torch.zeros(())

    def add(self, sums: Sums, gap: Tensor, es: Tensor, et: Tensor) -> None:
        """Nothing can be summed before the softmaxes are complete."""

    def rescale(self, sums: Sums, factor_s: Tensor, factor_t: Tensor, shift: Tensor) -> None:
        """Nothing to rescale."""

    def add_complete(self, sums: Sums, s: Tensor, t: Tensor) -> None:
        """Add a block to the value and to KL(q || m); `s` and `t` are overwritten."""
        gap, log_ratio = self._log_ratio(sums, s, t)
        q = s.exp_().div_(sums.total_s)
        p = t.exp_().div_(sums.total_t)
        to_mixture = -q.mul_(log_ratio).sum(0)
        self._to_mixture = self._to_mixture + to_mixture
        part = self.beta * p.mul_(gap.sub_(log_ratio)).sum(0) + (1 - self.beta) * to_mixture
        self._value = self._value + part

    def value(self, sums: Sums) -> Tensor:
        """Return the divergence after the second pass."""
        return self._value

    def gradient(self, sums: Sums, weight: Tensor, s: Tensor, t: Tensor, es: Tensor, out: Tensor) -> None:
        """Write weight * d JSD / d s into `out`."""
        _, log_ratio = self._log_ratio(sums, s, t)
        out.copy_(log_ratio.add_(self._to_mixture)).mul_(es).mul_(weight * (self.beta - 1) / sums.total_s)

    def _log_ratio(self, sums: Sums, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return d and L; d is cut at 80, where q has vanished beside p and e^d would overflow, and at -1000.

        There p has vanished in every precision. For a token that both rule out d is 0.
        """
        gap = nan_to_zero((t - s).sub_(sums.total_t.log() - sums.total_s.log()), sums.rules_out).clamp_(-1000.0, 80.0)
        return gap, torch.expm1(gap).mul_(self.beta).log1p_()


def divergence_of(settings: LossSettings) -> KL | JensenShannon:
    if settings.divergence == "jsd":
        return JensenShannon(settings.jsd_beta)
    return KL(reverse=settings.divergence == "reverse_kl")
