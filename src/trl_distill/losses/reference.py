"""The distillation loss written plainly, from full logits: what the fused version is checked against.

Every value is one line of the formula; autograd finds the gradient. Float64 logits give a float64 result, every
other precision is computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .checks import check_has_teacher, check_labels, check_settings, shared_vocabulary
from .fused.problem import KnownTokens
from .result import DistillationLoss, wide_dtype
from .settings import LossSettings


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
    check_settings(LossSettings(1.0, temperature, kind, jsd_beta))
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
    settings = LossSettings(alpha, temperature, divergence, jsd_beta, ignore_index=ignore_index)
    check_settings(settings)
    check_labels(targets, student_logits, teacher_logits)
    check_has_teacher(alpha, teacher_logits)
    shared = 0
    if alpha > 0 and teacher_logits is not None:
        shared = shared_vocabulary(vocabulary, student_logits.shape[1], teacher_logits.shape[1])
    return loss_from_logits(student_logits, teacher_logits, targets, shared, settings)


def loss_from_logits(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    labels: torch.Tensor,
    vocabulary: int,
    settings: LossSettings,
) -> DistillationLoss:
    """As `distillation_loss_from_logits`, of arguments that are checked; without a teacher `vocabulary` is 0."""
    valid = labels != settings.ignore_index
    student = _wide(student_logits)[valid]
    kl, top = student.new_zeros(len(student)), None
    if vocabulary and teacher_logits is not None:
        ours, theirs = student[:, :vocabulary], teacher_logits[valid][:, :vocabulary]
        kl = divergence(
            ours, theirs, temperature=settings.temperature, kind=settings.divergence, jsd_beta=settings.jsd_beta
        )
        top = theirs.argmax(1)
    ce_weight = torch.full_like(kl, 1 - settings.alpha)
    return _outcome(student, labels, valid, kl, ce_weight, top, vocabulary, settings)


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


def sparse_loss_from_logits(
    student_logits: torch.Tensor, labels: torch.Tensor, known: KnownTokens, vocabulary: int, settings: LossSettings
) -> DistillationLoss:
    """As `sparse_loss`, from full logits [N, V_s]: both distributions as k tokens and one tail, if any."""
    valid = labels != settings.ignore_index
    student, ids, p = _wide(student_logits)[valid], known.token_ids[valid], known.probs[valid]
    z = student[:, :vocabulary] / settings.temperature
    log_q, p, there = F.log_softmax(z, -1), p.to(z.dtype), ids >= 0
    own = torch.xlogy(p, p).sum(1) if known.negentropy is None else known.negentropy[valid].to(z.dtype)
    kl = own - times(p, log_q.gather(1, ids.clamp(min=0))).sum(1)
    if known.tail is not None:
        stored = torch.zeros_like(z).scatter_add(1, ids.clamp(min=0), there.to(z.dtype)) > 0
        rest = z.masked_fill(stored & ~stored.all(1, keepdim=True), -torch.inf)
        none = torch.isneginf(rest).all(1)  # a tail that is ruled out, whose sum has no gradient of its own
        log_rest = torch.logsumexp(rest.masked_fill(none[:, None], 0.0), 1).masked_fill(none, -torch.inf)
        tail = known.tail[valid].to(z.dtype)
        of_tail = torch.xlogy(tail, tail) - times(tail, log_rest - torch.logsumexp(z, 1))
        kl = kl + of_tail.masked_fill(~there.any(1), 0.0)
    ce_weight = torch.full_like(kl, 1 - settings.alpha).masked_fill(~there.any(1), 1.0)
    return _outcome(student, labels, valid, kl, ce_weight, ids[:, 0], vocabulary, settings)


class Matched(NamedTuple):
    """Which tokens of two vocabularies are the same; ids in none of the four are no tokens (padding of an embedding).

    Attributes:
        student: [M] int64, ids of the student's vocabulary.
        teacher: [M] int64, of the teacher's; entry k is the same token as `student[k]`.
        student_rest: [U_s] int64, the student's other tokens.
        teacher_rest: [U_t] int64, the teacher's.
    """

    student: torch.Tensor
    teacher: torch.Tensor
    student_rest: torch.Tensor
    teacher_rest: torch.Tensor

    def to(self, device: torch.device) -> Matched:
        """Return the same ids on another device."""
        return Matched(*(ids.to(device) for ids in self))


def cross_divergence_from_logits(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    matched: Matched,
    *,
    temperature: float,
    divergence: str = "forward_kl",
    jsd_beta: float = 0.5,
) -> torch.Tensor:
    """Divergence per position between p = softmax(z_T / T) over V_t tokens and q = softmax(z_S / T) over V_s others.

        p(M) D(p|M, q|M) + sum_k | p_(k) - q_(k) |

    M are the tokens that both vocabularies have, p(M) the mass that the teacher gives to them, p|M and q|M both
    distributions renormalised to them, and D the divergence of `divergence()`. p_(k) and q_(k) are the k-th largest
    probabilities among the tokens that only one side has, the shorter list filled up with 0.

    The split into a matched part by divergence and an unmatched one by sorted probabilities is that of GOLD (Patiño
    et al., "Unlocking On-Policy Distillation for Any Model Family", 2025; `ULDLoss` of TRL 1.16), the second part the
    distance of ULD (arXiv:2402.12030). Ours differs in that D is between distributions, so that it is never
    negative, and weighed by the teacher's mass instead of a share of the vocabulary: with all tokens matched it is D
    itself, with none it is ULD's.

    Args:
        student_logits: [n, V_s], any float precision.
        teacher_logits: [n, V_t], at positions where the teacher has read the same text.
        matched: Which tokens are the same.
        temperature: T > 0.
        divergence: "forward_kl", "reverse_kl" or "jsd".
        jsd_beta: beta of "jsd".

    Returns:
        [n], at least 0, without the factor T^2; float64 for float64 logits, else float32.

    Raises:
        ValueError: See `divergence()`.
    """
    student, teacher = _wide(student_logits), _wide(teacher_logits)
    count = len(matched.student)
    q = (student[:, torch.cat([matched.student, matched.student_rest])] / temperature).softmax(1)
    p = (teacher[:, torch.cat([matched.teacher, matched.teacher_rest])] / temperature).softmax(1)
    shared = _divergence(
        student[:, matched.student],
        teacher[:, matched.teacher],
        temperature=temperature,
        kind=divergence,
        jsd_beta=jsd_beta,
    )
    size = max(q.shape[1], p.shape[1]) - count
    sorted_q, sorted_p = (
        F.pad(x[:, count:].sort(1, descending=True).values, (0, size - (x.shape[1] - count))) for x in (q, p)
    )
    return p[:, :count].sum(1) * shared + (sorted_q - sorted_p).abs().sum(1)


def _outcome(
    student: torch.Tensor,
    labels: torch.Tensor,
    valid: torch.Tensor,
    kl: torch.Tensor,
    ce_weight: torch.Tensor,
    top: torch.Tensor | None,
    vocabulary: int,
    settings: LossSettings,
) -> DistillationLoss:
    """Return the loss of N tokens from the logits [n, V_s] of those that are valid.

    `kl` and the weight of the cross-entropy are [n], as is `top`, the teacher's likeliest shared token, if there is a
    teacher.
    """
    labels = labels[valid]
    log_q = F.log_softmax(student, -1)
    ce = -log_q.gather(1, labels[:, None])[:, 0]
    with torch.no_grad():
        entropy = -times(log_q.exp(), log_q).sum()
        agreement = ce.new_zeros(())
        if top is not None:
            agreement = (student[:, :vocabulary].argmax(1) == top).sum().to(ce.dtype)
        correct = (student.argmax(1) == labels).sum().to(ce.dtype)
    loss = (settings.alpha * settings.temperature**2 * kl + times(ce_weight, ce)).sum()
    full = ce.new_zeros(len(valid))
    return DistillationLoss(
        full.masked_scatter(valid, ce), full.masked_scatter(valid, kl), entropy, agreement, correct, loss
    )


def times(weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return weight * value, and 0 with a gradient of 0 if the weight is 0, even if the value is infinite.

    A head's bias of -inf rules a token out: its probability of 0 times its logarithm adds nothing.
    """
    return weight * torch.where(weight != 0, value, 0.0)


def _kl(log_a: torch.Tensor, log_b: torch.Tensor) -> torch.Tensor:
    a = log_a.exp()
    return times(a, torch.where(a > 0, log_a, 0.0) - torch.where(a > 0, log_b, 0.0)).sum(-1)


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(wide_dtype(logits.dtype))


_divergence = divergence  # the name is a keyword argument above
