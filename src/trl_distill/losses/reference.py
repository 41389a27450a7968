"""The distillation loss written plainly, from full logits: what the fused version is checked against.

Every value is one line of the formula; autograd finds the gradient. Float64 logits give a float64 result, every
other precision is computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .result import DistillationLoss, check_divergence, check_settings, check_targets, shared_vocabulary


def divergence(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    temperature: float,
    kind: str = "forward_kl",
    jsd_beta: float = 0.5,
) -> torch.Tensor:
    """Divergence per token between the teacher's p = softmax(z_T / T) and the student's q = softmax(z_S / T).

    Args:
        student_logits: [..., V], any float precision.
        teacher_logits: [..., V], the same vocabulary rows.
        temperature: T > 0.
        kind: "forward_kl" is KL(p || q), "reverse_kl" is KL(q || p), "jsd" is the generalised Jensen-Shannon
            divergence beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, as in GKD
            (arXiv:2306.13649, eq. 1).
        jsd_beta: beta of "jsd", strictly between 0 and 1.

    Returns:
        [...] in nats, without the factor T^2; float64 for float64 logits, else float32.

    Raises:
        ValueError: Logits of unequal shape, T <= 0, an unknown kind, a beta outside (0, 1).
    """
    check_divergence(kind, temperature, jsd_beta)
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student_logits {tuple(student_logits.shape)} and teacher_logits {tuple(teacher_logits.shape)} differ in "
            "shape; pass the same tokens, and of both only the vocabulary rows that they share."
        )
    log_p = F.log_softmax(_wide(teacher_logits) / temperature, -1)
    log_q = F.log_softmax(_wide(student_logits) / temperature, -1)
    if kind == "forward_kl":
        return _kl(log_p, log_q)
    if kind == "reverse_kl":
        return _kl(log_q, log_p)
    neither = torch.isneginf(log_p) & torch.isneginf(log_q)  # ruled out by both, which logaddexp cannot differentiate
    a, b = (x.masked_fill(neither, 0.0) for x in (log_p, log_q))
    log_m = torch.logaddexp(a + math.log(jsd_beta), b + math.log1p(-jsd_beta))
    return jsd_beta * _kl(log_p, log_m) + (1 - jsd_beta) * _kl(log_q, log_m)


def distillation_loss_from_logits(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    targets: torch.Tensor,
    *,
    alpha: float,
    temperature: float,
    divergence: str = "forward_kl",
    jsd_beta: float = 0.5,
    vocabulary: int | None = None,
    ignore_index: int = -100,
) -> DistillationLoss:
    """Sum of alpha T^2 KL(teacher_T, student_T) + (1 - alpha) CE(student, targets) over N tokens, from logits.

    Args:
        student_logits: [N, V_s].
        teacher_logits: [N, V_t]; may be None when alpha is 0.
        targets: [N] int64; rows of `ignore_index` contribute nothing.
        alpha: Weight of the divergence, between 0 and 1.
        temperature: T > 0 of the divergence.
        divergence: "forward_kl", "reverse_kl" or "jsd"; see `divergence()`.
        jsd_beta: Mixing weight of "jsd".
        vocabulary: Rows [0, vocabulary) that both models share, over which the divergence is taken; min(V_s, V_t).
        ignore_index: Target that marks a row to leave out.

    Returns:
        A `DistillationLoss`; every field that depends on the student's logits can be differentiated but the
        entropy and the two counts.

    Raises:
        ValueError: Arguments that do not fit together; the sentence names them.
    """
    check_settings(alpha, temperature, divergence, jsd_beta)
    check_targets(targets, student_logits, teacher_logits, alpha)
    valid = targets != ignore_index
    student, labels = _wide(student_logits)[valid], targets[valid]
    log_q = F.log_softmax(student, -1)
    ce = -log_q.gather(1, labels[:, None])[:, 0]
    kl, agreement = torch.zeros_like(ce), ce.new_zeros(())
    if alpha > 0 and teacher_logits is not None:
        shared = shared_vocabulary(vocabulary, student_logits.shape[1], teacher_logits.shape[1])
        ours, theirs = student[:, :shared], teacher_logits[valid][:, :shared]
        kl = _divergence(ours, theirs, temperature=temperature, kind=divergence, jsd_beta=jsd_beta)
        agreement = (ours.argmax(1) == theirs.argmax(1)).sum().to(ce.dtype)
    with torch.no_grad():
        entropy = -times(log_q.exp(), log_q).sum()
        correct = (student.argmax(1) == labels).sum().to(ce.dtype)
    weight = torch.full_like(ce, 1 - alpha)
    loss = (alpha * temperature**2 * kl + times(weight, ce)).sum()
    full = ce.new_zeros(len(targets))
    return DistillationLoss(
        full.masked_scatter(valid, ce), full.masked_scatter(valid, kl), entropy, agreement, correct, loss
    )


def mixture_logits(
    logits: Sequence[torch.Tensor], weights: torch.Tensor, *, temperature: float, vocabulary: int
) -> torch.Tensor:
    """Return logits [N, vocabulary] whose softmax at T is sum_i w_i softmax(z_i / T), the teachers' mixture.

    Args:
        logits: Of the M teachers, [N, V_i] each.
        weights: [N, M], at least 0; rows are normalised.
        temperature: T > 0.
        vocabulary: Rows [0, vocabulary) that are mixed, each teacher renormalised to them.
    """
    log_p = torch.stack([F.log_softmax(_wide(z)[:, :vocabulary] / temperature, -1) for z in logits])
    shares = (weights / weights.sum(1, keepdim=True)).to(log_p.dtype)
    return temperature * torch.logsumexp(log_p + shares.t()[:, :, None].log(), 0)


def topk_loss_from_logits(
    student_logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    token_ids: torch.Tensor,
    log_probs: torch.Tensor,
    log_normalizer: torch.Tensor,
    vocabulary: int,
    alpha: float,
    temperature: float,
    ignore_index: int = -100,
) -> DistillationLoss:
    """The loss against stored top-k targets from full logits: both distributions as k tokens and one tail.

    Args:
        student_logits: [N, V_s].
        targets: [N] int64; rows of `ignore_index` contribute nothing.
        token_ids: [N, k], the teacher's likeliest first.
        log_probs: [N, k], their log-probabilities at T = 1.
        log_normalizer: [N], log sum_v exp(log p_v / T) over `vocabulary`.
        vocabulary: Rows [0, vocabulary) over which the divergence is taken.
        alpha: Weight of the divergence, between 0 and 1.
        temperature: T > 0 of the divergence.
        ignore_index: Target that marks a row to leave out.

    Returns:
        As `distillation_loss_from_logits`.
    """
    valid = targets != ignore_index
    student, labels, ids = _wide(student_logits)[valid], targets[valid], token_ids[valid]
    log_q = F.log_softmax(student[:, :vocabulary] / temperature, -1)
    there = ids >= 0
    p = (log_probs[valid].to(log_q.dtype) / temperature - log_normalizer[valid].to(log_q.dtype)[:, None]).exp()
    p = torch.where(there, p, 0.0)
    mass, whole = p.sum(1, keepdim=True), there.sum(1) == vocabulary
    p = p / torch.where(whole[:, None], mass, mass.clamp(min=1))  # rounded ones may add up to more
    kl = (torch.xlogy(p, p) - times(p, log_q.gather(1, ids.clamp(min=0)))).sum(1)
    stored = torch.zeros_like(log_q).scatter_add(1, ids.clamp(min=0), there.to(log_q.dtype)) > 0
    z = student[:, :vocabulary] / temperature
    rest = z.masked_fill(stored & ~whole[:, None], -torch.inf)
    none = torch.isneginf(rest).all(1)  # a tail that is ruled out, whose sum has no gradient of its own
    log_rest = torch.logsumexp(rest.masked_fill(none[:, None], 0.0), 1).masked_fill(none, -torch.inf)
    log_tail = log_rest - torch.logsumexp(z, 1)
    tail = (1 - p.sum(1)).clamp(min=0).masked_fill(whole, 0.0)
    kl = kl + (torch.xlogy(tail, tail) - times(tail, log_tail)).masked_fill(~there.any(1), 0.0)
    return _outcome(student, labels, kl, ids, vocabulary, alpha, temperature, valid)


def sampled_loss_from_logits(
    student_logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    token_ids: torch.Tensor,
    probs: torch.Tensor,
    negentropy: torch.Tensor,
    vocabulary: int,
    alpha: float,
    temperature: float,
    ignore_index: int = -100,
) -> DistillationLoss:
    """The loss against drawn tokens from full logits: sum_v p log p - sum_drawn share log q.

    Args:
        student_logits: [N, V_s].
        targets: [N] int64; rows of `ignore_index` contribute nothing.
        token_ids: [N, k], the teacher's likeliest first, drawn or not; -1 where there is none.
        probs: [N, k], each token's share of the draws at T.
        negentropy: [N], sum_v p log p of the teacher at T.
        vocabulary: Rows over which the divergence is taken.
        alpha: Weight of the divergence, between 0 and 1.
        temperature: T > 0 of the divergence.
        ignore_index: Target that marks a row to leave out.

    Returns:
        As `distillation_loss_from_logits`.
    """
    valid = targets != ignore_index
    student, labels, ids = _wide(student_logits)[valid], targets[valid], token_ids[valid]
    log_q = F.log_softmax(student[:, :vocabulary] / temperature, -1)
    drawn = probs[valid].to(log_q.dtype).masked_fill(ids < 0, 0.0)
    kl = negentropy[valid].to(log_q.dtype) - times(drawn, log_q.gather(1, ids.clamp(min=0))).sum(1)
    return _outcome(student, labels, kl, ids, vocabulary, alpha, temperature, valid)


def _outcome(
    student: torch.Tensor,
    labels: torch.Tensor,
    kl: torch.Tensor,
    ids: torch.Tensor,
    vocabulary: int,
    alpha: float,
    temperature: float,
    valid: torch.Tensor,
) -> DistillationLoss:
    """Return the outcome of n tokens that count, [n, V_s] logits, of which the teacher's first token is ids[:, 0]."""
    log_q = F.log_softmax(student, -1)
    ce = -log_q.gather(1, labels[:, None])[:, 0]
    with torch.no_grad():
        entropy = -times(log_q.exp(), log_q).sum()
        agreement = (student[:, :vocabulary].argmax(1) == ids[:, 0]).sum().to(ce.dtype)
        correct = (student.argmax(1) == labels).sum().to(ce.dtype)
    weight = torch.full_like(ce, 1 - alpha).masked_fill((ids < 0).all(1), 1.0)
    loss = (alpha * temperature**2 * kl + times(weight, ce)).sum()
    full = ce.new_zeros(len(valid))
    return DistillationLoss(
        full.masked_scatter(valid, ce), full.masked_scatter(valid, kl), entropy, agreement, correct, loss
    )


_divergence = divergence  # the name is a keyword argument above


def head_logits(
    hidden: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None = None,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """Project hidden states [..., H] by a head [V, H] to logits [..., V], as a model's own forward does.

    Args:
        hidden: [..., H].
        weight: [V, H]; None if `hidden` are logits [..., V] before scale and softcap.
        bias: [V] or None.
        softcap: Bound of the logits (Gemma 2's, arXiv:2408.00118), or None.
        scale: Factor of the logits before the softcap.
    """
    logits = hidden if weight is None else F.linear(hidden, weight, bias)
    if scale != 1.0:
        logits = logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def times(weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return weight * value, and 0 with a gradient of 0 where the weight is 0, even if the value is infinite.

    A head's bias of -inf rules a token out: its probability of 0 times its logarithm adds nothing.
    """
    return weight * torch.where(weight != 0, value, 0.0)


def _kl(log_a: torch.Tensor, log_b: torch.Tensor) -> torch.Tensor:
    a = log_a.exp()
    return times(a, torch.where(a > 0, log_a, 0.0) - torch.where(a > 0, log_b, 0.0)).sum(-1)


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
