"""The losses against sparse teacher distributions: the top-k tokens, or sampled ones.

Likeliest (top-k): p_T(v) = exp(log p_v / T - c_T) of the stored tokens needs no teacher, as c_T = log sum_v exp(log p_v
/ T) is stored with them. All other tokens are one bucket, the tail; its mass is what the stored ones leave of 1. The
divergence is the forward KL over these k + 1 buckets, with the student's tail from all of its logits:

    sum_stored p (log p - log q) + p_tail (log p_tail - log q_tail)

It is never negative, at most the full divergence, and equal to it if k is the whole vocabulary. Its gradient in the
student's softened logits is q_v - p_v for a stored token and q_v (1 - p_tail / q_tail) for any other.

Sampled ("Sparse Logit Sampling", arXiv:2503.16870, Random Sampling Knowledge Distillation with the proposal q = p): of
m tokens sampled from the teacher's p at T, each token's share estimates its probability. With the teacher's sum p log
p,

    sum_v p log p - sum_drawn share log q

is in expectation the forward KL, and so is its gradient q_v - share_v. An estimate may be negative.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .checks import check_head, check_labels, check_sparse_divergence, valid_rows
from .fused.autograd import fused_loss
from .fused.problem import KnownTokens, Problem
from .fused.projection import projection_of
from .lm_head import ModelSide
from .reference import sparse_loss_from_logits
from .result import DistillationLoss, wide_dtype
from .settings import LossSettings

Tensor = torch.Tensor


class TopKTokens(NamedTuple):
    """A teacher's k likeliest tokens at N positions, with the normalisers for one temperature.

    Attributes:
        token_ids: [N, k] int64, distinct in a row, the likeliest first; -1 if fewer are known.
        log_probs: [N, k], their log-probabilities in nats at T = 1 over the vocabulary.
        log_normalizer: [N], log sum_v exp(log p_v / T) over the vocabulary.
    """

    token_ids: Tensor
    log_probs: Tensor
    log_normalizer: Tensor

    def known(self, vocabulary: int, temperature: float) -> KnownTokens:
        """Return the tokens' probabilities at the temperature T of the normaliser, and the tail's."""
        there = self.token_ids >= 0
        p = (self.log_probs / temperature - self.log_normalizer[:, None]).exp().masked_fill(~there, 0.0)
        mass, whole = p.sum(1, keepdim=True), there.sum(1) == vocabulary
        # rounded log-probabilities may add up to more than 1; scaled, both sides stay distributions
        p = p / torch.where(whole[:, None], mass, mass.clamp(min=1))
        return KnownTokens(self.token_ids, p, (1 - p.sum(1)).clamp(min=0).masked_fill(whole, 0.0))


class SampledTokens(NamedTuple):
    """Tokens sampled from a teacher's distributions at N positions, at one temperature.

    Attributes:
        token_ids: [N, k] int64, distinct in a row, the teacher's likeliest first, sampled or not; -1 if there is none.
        probs: [N, k], each token's share of the samples.
        negentropy: [N], the teacher's sum_v p log p in nats.
    """

    token_ids: Tensor
    probs: Tensor
    negentropy: Tensor

    def known(self, vocabulary: int, temperature: float) -> KnownTokens:
        """Return the tokens, without a tail."""
        return KnownTokens(self.token_ids, self.probs.masked_fill(self.token_ids < 0, 0.0), negentropy=self.negentropy)


def sparse_loss(
    student: ModelSide,
    labels: Tensor,
    stored: TopKTokens | SampledTokens,
    settings: LossSettings,
    vocabulary: int,
) -> DistillationLoss:
    """Sum of alpha T^2 KL(teacher_T, student_T) + (1 - alpha) CE(student, labels), the teacher's side from a store.

    Only the student is projected, in tiles as by `fused_distillation_loss`. `stored` may be on the CPU, where ids are
    checked; on a GPU an invalid id makes the loss NaN. A token with no known token trains on the cross-entropy alone,
    as with alpha 0.

    Args:
        student: At N tokens.
        labels: [N] int64; rows of `ignore_index` are left out.
        stored: The teacher's known tokens, at the settings' temperature.
        settings: Loss settings. `divergence` has to be "forward_kl"; the others need the teacher's whole distribution.
        vocabulary: Rows [0, vocabulary) over which teacher and student are normalised, at most V_s.

    Returns:
        As `fused_distillation_loss`; `top1_agreement` counts by the first token.

    Raises:
        ValueError: Arguments that do not fit together; the sentence names them.
    """
    check_sparse_divergence(settings.divergence, "topk" if isinstance(stored, TopKTokens) else "sample")
    check_labels(labels, student.hidden)
    _check_stored(stored, len(labels), vocabulary, check_head("student", student))
    valid = valid_rows(labels, student, settings)
    wide = wide_dtype(student.hidden.dtype)
    ids, *numbers = (t.to(labels.device, non_blocking=True) for t in stored)
    known = type(stored)(ids.long(), *(t.to(wide) for t in numbers)).known(vocabulary, settings.temperature)
    if settings.impl == "plain":
        return sparse_loss_from_logits(student.logits(), labels, known, vocabulary, settings)
    own = projection_of(student, settings, wide)
    return fused_loss(Problem(own, labels, settings, known=known, vocabulary=vocabulary), valid)


def _check_stored(stored: TopKTokens | SampledTokens, tokens: int, vocabulary: int, rows: int) -> None:
    """Raise ValueError unless two tensors [N, k] and one [N] are stored, with ids below the vocabulary or -1."""
    *of_tokens, of_row = stored
    token_ids, k = stored.token_ids, stored.token_ids.shape[-1]
    for name, tensor in zip(stored._fields, of_tokens, strict=False):
        if tensor.dim() != 2 or tensor.shape != token_ids.shape or len(tensor) != tokens or k == 0:
            raise ValueError(
                f"{name} {tuple(tensor.shape)} must be [N, k] like token_ids {tuple(token_ids.shape)}, for the N = "
                f"{tokens} targets and at least one token."
            )
    if of_row.shape != (tokens,):
        raise ValueError(
            f"{stored._fields[-1]} {tuple(of_row.shape)} must be [N], one for each of the N = {tokens} targets."
        )
    if not 0 < vocabulary <= rows or k > vocabulary:
        raise ValueError(f"vocabulary {vocabulary} must lie between k = {k} and {rows}, the student's rows.")
    if token_ids.device.type != "cpu" or not token_ids.numel():
        return  # a GPU is not waited for: there such an id makes the loss NaN
    low, high = (int(i) for i in token_ids.aminmax())
    if low < -1 or high >= vocabulary:
        wrong = low if low < -1 else high
        raise ValueError(
            f"token_ids hold {wrong}, which is not a row below vocabulary {vocabulary}; the targets are another's."
        )
