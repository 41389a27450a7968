"""The model's own forward, taught to end at the completion instead of at the logits.

The head runs inside the wrapped model's forward, so that the hooks of DDP, FSDP2 and DeepSpeed fire and sharded
weights are there. Called without the new keyword, the forward is the model's own.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ._trl import gathered
from .lm_head import LMHead
from .losses import DistillationLoss, fused_distillation_loss, topk_distillation_loss


@dataclass
class TeacherTargets:
    """What the loss needs of a teacher: its hidden states at N completion positions, and its head.

    Attributes:
        hidden: [N, H_t], without gradient.
        head: The teacher's LM head.
        vocabulary: Rows shared with the student; None is the smaller of the two.
    """

    hidden: torch.Tensor
    head: LMHead
    vocabulary: int | None = None

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.hidden)


@dataclass
class TopKTargets:
    """What the loss needs of a teacher that is not there: its k likeliest tokens at N completion positions.

    Attributes:
        token_ids: [N, k] int64, the likeliest first.
        log_probs: [N, k], their log-probabilities in nats at T = 1 over `vocabulary`.
        log_normalizers: [N] of log sum_v exp(log p_v / T) by temperature T.
        vocabulary: Rows over which the teacher was normalised.
    """

    token_ids: torch.Tensor
    log_probs: torch.Tensor
    log_normalizers: Mapping[float, torch.Tensor]
    vocabulary: int

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.token_ids)


@dataclass
class LossSettings:
    """How the loss weighs its two terms; units as in `losses.fused_distillation_loss`."""

    alpha: float
    temperature: float
    divergence: str = "forward_kl"
    jsd_beta: float = 0.5
    impl: str = "fused"


@dataclass
class CompletionOutput(ModelOutput):
    """What the taught forward returns.

    Attributes:
        hidden: [N, H], the hidden states that predict the N completion tokens (without `settings`).
        loss: Sum over the N tokens (with `settings`), as the fields below.
        ce: Sum of the cross-entropy.
        kl: Sum of the divergence, without T^2.
        entropy: Sum of the student's entropy.
        top1_agreement: Tokens on which teacher and student rank the same token first.
        top1_correct: Tokens that the student ranks first.
    """

    hidden: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    ce: torch.Tensor | None = None
    kl: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    top1_agreement: torch.Tensor | None = None
    top1_correct: torch.Tensor | None = None


def add_completion_forward(model: PreTrainedModel) -> None:
    """Teach `model.forward` the keywords `completion_labels`, `teacher_targets` and `loss_settings`.

    `model(input_ids=..., attention_mask=..., completion_labels=labels)` with labels [B, S] (-100 but on
    completion tokens) returns the hidden states that predict them; with `loss_settings` (and `teacher_targets`
    unless alpha is 0) it returns the distillation loss, summed. Call before the model is wrapped by accelerate. A
    model that is taught already stays as it is.
    """
    if hasattr(model, TAUGHT):
        return
    setattr(model, TAUGHT, model.__dict__.get("forward"))  # what a device map or TRL has put there
    kind: Any = type(model)
    model.forward = types.MethodType(_forward_of(kind), model)


def restore_forward(model: PreTrainedModel) -> None:
    """Give a model its own forward back, so that it can be copied and pickled as before it was trained.

    What TRL has put in the place of its forward goes too; what a device map has put there stays.
    """
    before = model.__dict__.pop(TAUGHT, model.__dict__.get("forward"))
    model.__dict__.pop("forward", None)
    if before is not None and hasattr(model, "_hf_hook"):
        model.forward = before


TAUGHT = "_forward_before_distillation"


@functools.cache
def _forward_of(kind: Any) -> Callable[..., Any]:
    """Return the taught forward of a class of models; it holds no model, so that a copy's is the copy's own."""

    @functools.wraps(kind.forward)  # generate() looks at this signature
    def forward(
        self: Any,
        *args: Any,
        completion_labels: torch.Tensor | None = None,
        teacher_targets: TeacherTargets | TopKTargets | None = None,
        loss_settings: LossSettings | None = None,
        **kwargs: Any,
    ) -> Any:
        if completion_labels is None:
            before = getattr(self, TAUGHT)
            return before(*args, **kwargs) if before is not None else kind.forward(self, *args, **kwargs)
        kwargs.pop("labels", None)  # PEFT passes labels=None on; the backbone takes none
        states = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state
        targets = completion_labels[:, 1:].to(states.device)
        mask = targets != -100
        hidden = states[:, :-1][mask]
        if loss_settings is None:
            return CompletionOutput(hidden=hidden)
        return _loss(LMHead.of(self), hidden, targets[mask], teacher_targets, loss_settings)

    return forward


def _loss(
    head: LMHead,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    teacher: TeacherTargets | TopKTargets | None,
    settings: LossSettings,
) -> CompletionOutput:
    """Return the loss of the student's hidden states [N, H_s] against the targets [N]."""
    if teacher is not None and teacher.tokens != len(hidden):
        raise RuntimeError(
            f"the teacher scored {teacher.tokens} completion tokens and the student {len(hidden)}; "
            "both labels of a batch must mark the same tokens."
        )
    if isinstance(teacher, TopKTargets) and settings.alpha > 0:
        out = _stored_loss(head, hidden, targets, teacher, settings)
    else:
        out = _full_loss(head, hidden, targets, teacher if isinstance(teacher, TeacherTargets) else None, settings)
    return CompletionOutput(
        loss=out.loss,
        ce=out.ce.detach().sum(),
        kl=out.kl.detach().sum(),
        entropy=out.entropy,
        top1_agreement=out.top1_agreement,
        top1_correct=out.top1_correct,
    )


def _full_loss(
    head: LMHead,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    teacher: TeacherTargets | None,
    settings: LossSettings,
) -> DistillationLoss:
    """Return the loss against a teacher's hidden states and head."""
    theirs = teacher.head if teacher else None
    with gathered(head.weight, head.bias, theirs.weight if theirs else None, theirs.bias if theirs else None):
        weight = _full(head.weight)
        return fused_distillation_loss(
            hidden.to(weight.device),
            weight,
            teacher.hidden.to(weight.device) if teacher else None,
            _full(theirs.weight).to(weight.device) if theirs else None,
            targets.to(weight.device),
            student_bias=_full(head.bias),
            teacher_bias=_full(theirs.bias) if theirs else None,
            student_softcap=head.softcap,
            teacher_softcap=theirs.softcap if theirs else None,
            student_scale=head.scale,
            teacher_scale=theirs.scale if theirs else 1.0,
            vocabulary=teacher.vocabulary if teacher else None,
            alpha=settings.alpha,
            temperature=settings.temperature,
            divergence=settings.divergence,
            jsd_beta=settings.jsd_beta,
            impl=settings.impl,
        )


def _stored_loss(
    head: LMHead, hidden: torch.Tensor, targets: torch.Tensor, teacher: TopKTargets, settings: LossSettings
) -> DistillationLoss:
    """Return the loss against stored targets."""
    if settings.temperature not in teacher.log_normalizers:
        known = ", ".join(f"{t:g}" for t in sorted(teacher.log_normalizers))
        raise ValueError(
            f"temperature {settings.temperature:g} is not among those of the stored targets ({known}); train at one of "
            "them, or store the targets at it too."
        )
    with gathered(head.weight, head.bias):
        weight = _full(head.weight)
        return topk_distillation_loss(
            hidden.to(weight.device),
            weight,
            targets.to(weight.device),
            token_ids=teacher.token_ids.to(weight.device),
            log_probs=teacher.log_probs.to(weight.device),
            log_normalizer=teacher.log_normalizers[settings.temperature].to(weight.device),
            vocabulary=teacher.vocabulary,
            alpha=settings.alpha,
            temperature=settings.temperature,
            divergence=settings.divergence,
            student_bias=_full(head.bias),
            student_softcap=head.softcap,
            student_scale=head.scale,
            impl=settings.impl,
        )


def _full(parameter: Any) -> Any:
    """Gather a parameter that FSDP2 has sharded, once a step."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
