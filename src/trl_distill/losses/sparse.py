"""The loss against stored targets: the teacher's k likeliest tokens, and all others as one bucket, the tail.

Per token, p_T(v) = exp(log p_v / T - c_T) of the stored tokens needs no teacher, c_T = log sum_v exp(log p_v / T)
being stored with them; the tail's mass is what they leave of 1. The divergence is the forward KL over these k + 1
buckets, with the student's tail taken from all of its logits:

    sum_stored p (log p - log q) + p_tail (log p_tail - log q_tail)

It is never negative, at most the full divergence, and equal to it where k is the whole vocabulary. Its gradient in the
student's softened logits is q_v - p_v for a stored token and q_v (1 - p_tail / q_tail) for any other.
"""

from __future__ import annotations

import torch

from .fused.projection import wide_dtype
from .fused.sparse_tile import Sparse, checked_rows, sparse_loss
from .reference import head_logits, topk_loss_from_logits
from .result import DistillationLoss

Tensor = torch.Tensor


def topk_distillation_loss(
    student_hidden: Tensor,
    student_weight: Tensor | None,
    targets: Tensor,
    *,
    token_ids: Tensor,
    log_probs: Tensor,
    log_normalizer: Tensor,
    vocabulary: int,
    alpha: float,
    temperature: float,
    divergence: str = "forward_kl",
    student_bias: Tensor | None = None,
    student_softcap: float | None = None,
    student_scale: float = 1.0,
    ignore_index: int = -100,
    impl: str = "fused",
    tile_bytes: int | None = None,
) -> DistillationLoss:
    """Sum of alpha T^2 KL(teacher_T, student_T) + (1 - alpha) CE(student, targets), the teacher's side from a store.

    Only the student is projected, in tiles as by `fused_distillation_loss`. The tail as one bucket is that of
    "Sparse Logit Sampling" (arXiv:2503.16870, the ghost token).

    Args:
        student_hidden: [N, H_s], the student's hidden states.
        student_weight: [V_s, H_s] of its LM head; None if `student_hidden` are its logits [N, V_s] already.
        targets: [N] int64 token ids; rows of `ignore_index` are dropped before anything is computed.
        token_ids: [N, k] int64, distinct in a row, the teacher's likeliest first; -1 where fewer are known. A token
            with none trains on the cross-entropy alone, as with alpha 0. These and what follows of the teacher's may be
            on the CPU; there ids are checked, while on a GPU an id that is no row makes the loss NaN.
        log_probs: [N, k], the teacher's log-probabilities of them in nats at T = 1 over `vocabulary`.
        log_normalizer: [N], log sum_v exp(log p_v / T) over `vocabulary`, at the temperature given here.
        vocabulary: Rows [0, vocabulary) over which teacher and student are normalised; at most V_s.
        alpha: Weight of the divergence, from 0 to 1.
        temperature: T > 0 of the divergence.
        divergence: "forward_kl"; the others need the teacher's whole distribution.
        student_bias: [V_s] or None.
        student_softcap: Bound of the student's logits, or None.
        student_scale: Factor of the student's logits before the softcap.
        ignore_index: Target that marks a token to leave out.
        impl: "fused", or "plain" with the logits of all tokens in memory.
        tile_bytes: Working memory of "fused" at most, in bytes.

    Returns:
        As `fused_distillation_loss`; `top1_agreement` counts by the first stored token.

    Raises:
        ValueError: Arguments that do not fit together or lie outside what is accepted; the sentence names them.
    """
    valid = checked_rows(
        "topk",
        (student_hidden, student_weight, student_bias),
        targets,
        (token_ids, {"log_probs": log_probs}, {"log_normalizer": log_normalizer}),
        vocabulary=vocabulary,
        alpha=alpha,
        temperature=temperature,
        divergence=divergence,
        ignore_index=ignore_index,
        impl=impl,
    )
    token_ids, log_probs, log_normalizer = (
        t.to(targets.device, non_blocking=True) for t in (token_ids, log_probs, log_normalizer)
    )
    token_ids = token_ids.long()
    if impl == "plain":
        return topk_loss_from_logits(
            head_logits(student_hidden, student_weight, student_bias, softcap=student_softcap, scale=student_scale),
            targets,
            token_ids=token_ids,
            log_probs=log_probs,
            log_normalizer=log_normalizer,
            vocabulary=vocabulary,
            alpha=alpha,
            temperature=temperature,
            ignore_index=ignore_index,
        )
    wide = wide_dtype(student_hidden.dtype)
    known = _at_temperature(token_ids, log_probs.to(wide), log_normalizer.to(wide), vocabulary, temperature)
    return sparse_loss(
        *(student_hidden, student_weight, targets, known, valid),
        student_bias=student_bias,
        student_softcap=student_softcap,
        student_scale=student_scale,
        vocabulary=vocabulary,
        alpha=alpha,
        temperature=temperature,
        tile_bytes=tile_bytes,
    )


def _at_temperature(
    token_ids: Tensor, log_probs: Tensor, log_normalizer: Tensor, vocabulary: int, temperature: float
) -> Sparse:
    """Return the stored tokens' probabilities at T, and the tail's."""
    there = token_ids >= 0
    p = (log_probs / temperature - log_normalizer[:, None]).exp().masked_fill(~there, 0.0)
    mass, whole = p.sum(1, keepdim=True), there.sum(1) == vocabulary
    # rounded log-probabilities may add up to more than 1; scaled, both sides stay distributions
    p = p / torch.where(whole[:, None], mass, mass.clamp(min=1))
    return Sparse(token_ids, p, (1 - p.sum(1)).clamp(min=0).masked_fill(whole, 0.0))
