"""The loss against a teacher's full distribution, or without a teacher."""

from __future__ import annotations

import torch

from .checks import check_has_teacher, check_head, check_labels, check_settings, shared_vocabulary, valid_rows
from .fused.autograd import fused_loss
from .fused.problem import Problem
from .fused.projection import projection_of
from .lm_head import LMHead, ModelSide
from .reference import loss_from_logits
from .result import DistillationLoss, wide_dtype
from .settings import LossSettings


def fused_distillation_loss(
    student_hidden: torch.Tensor,
    student_weight: torch.Tensor | None,
    teacher_hidden: torch.Tensor | None,
    teacher_weight: torch.Tensor | None,
    targets: torch.Tensor,
    *,
    alpha: float,
    temperature: float,
    divergence: str = "forward_kl",
    jsd_beta: float = 0.5,
    student_bias: torch.Tensor | None = None,
    teacher_bias: torch.Tensor | None = None,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    student_scale: float = 1.0,
    teacher_scale: float = 1.0,
    vocabulary: int | None = None,
    ignore_index: int = -100,
    impl: str = "fused",
    tile_bytes: int | None = None,
) -> DistillationLoss:
    """Sum of alpha T^2 KL(teacher_T, student_T) + (1 - alpha) CE(student, targets) over N tokens.

    The formula is Hinton et al.'s (arXiv:1503.02531), computed from hidden states and LM heads. A model's logits are
    softcap * tanh(scale * (hidden @ weight.T + bias) / softcap), the softcap if there is one.
    Products run in the precision `nn.Linear` would use (autocast's, or that of the hidden states), sums in float32 or,
    for float64, in float64. `loss`, `ce` and `kl` are differentiable in the student's hidden states, weight and
    bias, with any weight per token; the gradient of `loss` is formed in the forward. Nothing flows to the teacher.

    Args:
        student_hidden: [N, H_s], the student's hidden states.
        student_weight: [V_s, H_s] of its LM head; None if `student_hidden` are its logits [N, V_s] already.
        teacher_hidden: [N, H_t], the teacher's at the same tokens; may be None when alpha is 0.
        teacher_weight: [V_t, H_t] of its LM head; None if `teacher_hidden` are its logits [N, V_t] already.
        targets: [N] int64 token ids; rows of `ignore_index` are left out. On a GPU, which is not waited for, an id that
            is no row of the head makes the loss NaN.
        alpha: Weight of the divergence, from 0 (the teacher is not projected) to 1.
        temperature: T > 0 of the divergence.
        divergence: "forward_kl" is KL(teacher || student), "reverse_kl" is KL(student || teacher), "jsd" the
            generalised Jensen-Shannon divergence of GKD (arXiv:2306.13649); see `divergence()`.
        jsd_beta: Weight of the teacher in the mixture of "jsd", strictly between 0 and 1.
        student_bias: [V_s] or None.
        teacher_bias: [V_t] or None.
        student_softcap: Bound of the student's logits, or None.
        teacher_softcap: The teacher's.
        student_scale: Factor of the student's logits before the softcap.
        teacher_scale: The teacher's.
        vocabulary: Rows [0, vocabulary) that both share; the divergence renormalises both models to them. The
            default is min(V_s, V_t). The cross-entropy uses the student's V_s.
        ignore_index: Target that marks a token to leave out.
        impl: "fused", or "plain" with the logits of all tokens in memory.
        tile_bytes: Working memory of "fused" at most, in bytes; 56 MiB on a CPU (up to 256 MiB if the weight gets no
            gradient and the vocabulary is large), 2 GiB elsewhere. A GPU's kernels take more if all tokens' gradient in
            the logits takes no more than a float32 gradient of the weight.

    Returns:
        A `DistillationLoss`. Without any token to count, everything is 0 and so are the gradients.

    Raises:
        ValueError: Arguments that do not fit together or lie outside what is accepted; the sentence names them.
    """
    settings = LossSettings(alpha, temperature, divergence, jsd_beta, impl, tile_bytes, ignore_index)
    check_settings(settings)
    check_has_teacher(alpha, teacher_hidden)
    student = ModelSide(student_hidden, LMHead(student_weight, student_bias, student_softcap, student_scale))
    teacher = None
    if teacher_hidden is not None:
        teacher = ModelSide(teacher_hidden, LMHead(teacher_weight, teacher_bias, teacher_softcap, teacher_scale))
    return dense_loss(student, teacher, targets, settings, vocabulary=vocabulary)


def dense_loss(
    student: ModelSide,
    teacher: ModelSide | None,
    labels: torch.Tensor,
    settings: LossSettings,
    *,
    vocabulary: int | None = None,
) -> DistillationLoss:
    """`fused_distillation_loss` with checked settings; `labels` are its `targets`."""
    check_labels(labels, student.hidden, None if teacher is None else teacher.hidden)
    rows, shared = check_head("student", student), 0
    if settings.alpha == 0:
        teacher = None
    if teacher is not None:
        shared = shared_vocabulary(vocabulary, rows, check_head("teacher", teacher))
    valid = valid_rows(labels, student, settings)
    if settings.impl == "plain":
        theirs = None if teacher is None else teacher.logits().detach()
        return loss_from_logits(student.logits(), theirs, labels, shared, settings)
    wide = wide_dtype(student.hidden.dtype)
    own = projection_of(student, settings, wide)
    other = None if teacher is None else projection_of(teacher, settings, wide)
    return fused_loss(Problem(own, labels, settings, other, vocabulary=shared), valid)
