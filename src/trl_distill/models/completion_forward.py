"""The model's own forward, extended to end at the completion instead of at the logits.

The head runs inside the wrapped model's forward, so that the hooks of DDP, FSDP2 and DeepSpeed fire and sharded
weights are there. Called without the new keyword, the forward is the model's own.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..config.devices import on_device
from ..losses.lm_head import LOGITS, ModelSide
from ..losses.signals import LossSettings, TeacherSignal, cross_entropy
from .architectures import backbone_of
from .batch_layout import Places
from .lm_head import head_input, lm_head_of
from .router_loss import balance_loss


@dataclass
class CompletionOutput(ModelOutput):
    """The output of the extended forward.

    Attributes:
        hidden: [N, H], the hidden states that predict the N completion tokens (without `settings`); their logits
            [N, V] if the model has an `OwnLogits`.
        loss: Sum over the N tokens (with `settings`), as the fields below.
        ce: Sum of the cross-entropy.
        kl: Sum of the divergence, without T^2; None if alpha is 0, as is the agreement.
        entropy: Sum of the student's entropy.
        top1_agreement: Tokens on which teacher and student rank the same token first.
        top1_correct: Tokens that the student ranks first.
        teacher_coverage: Tokens with a teacher's signal, if that may be fewer than all.
        distilled: `loss` before PEFT adds an adapter's own penalty to it.
        retain_kl: Sum of the divergence at the tokens of rows to retain, which `kl` leaves out; None if the batch has
            none.
        retain_tokens: Those tokens.
        token_ce: [N], the cross-entropy of each token, without gradient.
        token_kl: [N], the divergence.
        aux_loss: The load-balancing loss of a mixture of experts, a mean that `loss` leaves out; None if the model's
            configuration does not ask for router logits.
    """

    hidden: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    ce: torch.Tensor | None = None
    kl: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    top1_agreement: torch.Tensor | None = None
    top1_correct: torch.Tensor | None = None
    teacher_coverage: torch.Tensor | int | None = None
    distilled: torch.Tensor | None = None
    retain_kl: torch.Tensor | None = None
    retain_tokens: int | None = None
    token_ce: torch.Tensor | None = None
    token_kl: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None


def add_completion_forward(model: PreTrainedModel) -> None:
    """Extend `model.forward` by the keywords of `completion_arguments`, `teacher_signal` and `loss_settings`.

    `model(input_ids=..., attention_mask=..., completion_labels=labels)` with labels [B, S] (-100 but on
    completion tokens) returns the hidden states that predict them; with `loss_settings` (and `teacher_signal`
    unless alpha is 0) it returns the distillation loss, summed. Without `completion_places` the labels are read, which
    waits for their device. Call before the model is wrapped by accelerate. A model that is extended already stays as
    it is.
    """
    if hasattr(model, FORWARD_BEFORE):
        return
    setattr(model, FORWARD_BEFORE, model.__dict__.get("forward"))  # what a device map or TRL has put there
    kind: Any = type(model)
    model.forward = types.MethodType(_forward_of(kind), model)


def restore_forward(model: PreTrainedModel) -> None:
    """Restore a model's own forward, so that it can be copied and pickled as before it was trained.

    TRL's replacement is removed too; a device map's hooks stay.
    """
    before = model.__dict__.pop(FORWARD_BEFORE, model.__dict__.get("forward"))
    model.__dict__.pop(OWN_LOGITS, None)
    model.__dict__.pop("forward", None)
    if before is not None and hasattr(model, "_hf_hook"):
        model.forward = before


def completion_view(model: PreTrainedModel) -> PreTrainedModel:
    """Return a second module that shares a model's layers and weights and has the extended forward.

    Nothing is copied, and the model itself, without PEFT's wrapper, stays unchanged.
    """
    kind: Any = type(model)
    view = object.__new__(_extended_class(kind))
    own = view.__dict__
    own.update(model.__dict__)
    own.setdefault(FORWARD_BEFORE, own.get("forward"))  # what a device map or TRL has put there
    for name in WRAPPING:
        own.pop(name, None)
    return view


@functools.cache
def _extended_class(kind: Any) -> type[PreTrainedModel]:
    return type(kind.__name__, (kind,), {"forward": _forward_of(kind), "__module__": kind.__module__})


@dataclass(frozen=True)
class OwnLogits:
    """Marks a model whose logits are computed by its own forward, since head(hidden) differs from them.

    Attributes:
        selects: Whether that forward can compute those of some positions alone (`logits_to_keep`).
    """

    selects: bool

    def selection(self, columns: torch.Tensor, width: int) -> dict[str, torch.Tensor]:
        """Return the argument of a forward that computes the logits of these columns [C] of sequences of a width."""
        # counted from the end, since a learned prompt of PEFT's may stand in front
        return {"logits_to_keep": columns - width} if self.selects else {}


FORWARD_BEFORE = "_forward_before_distillation"
WRAPPING = ("forward", "_original_forward", "_compiled_call_impl", "_is_accelerate_prepared")  # of the forward itself
OWN_LOGITS = "_own_logits_in_distillation"  # an `OwnLogits` that `logits_check` sets on a model


def completion_arguments(model: PreTrainedModel, labels: torch.Tensor, places: Places) -> dict[str, torch.Tensor]:
    """Return the keywords of an extended forward that locate the completion: by labels [B, S], and on the host."""
    given = {"completion_labels": labels, "completion_places": on_device(places.predicting, labels.device)}
    if hasattr(model, OWN_LOGITS):
        given["completion_columns"] = on_device(places.predicting_columns, labels.device)
    return given


@functools.cache
def _forward_of(kind: type[PreTrainedModel]) -> Callable[..., Any]:
    """Return the extended forward of a model class; it has no reference to a model, so copies get their own."""

    @functools.wraps(kind.forward)  # generate() looks at this signature
    def forward(
        self: PreTrainedModel,
        *args: Any,
        completion_labels: torch.Tensor | None = None,
        completion_places: torch.Tensor | None = None,
        completion_columns: torch.Tensor | None = None,
        teacher_signal: TeacherSignal | None = None,
        loss_settings: LossSettings | None = None,
        **kwargs: Any,
    ) -> Any:
        before = getattr(self, FORWARD_BEFORE) or functools.partial(kind.forward, self)
        if completion_labels is None:
            return before(*args, **kwargs)
        kwargs.pop("labels", None)  # PEFT passes labels=None on; the backbone takes none
        kwargs["use_cache"] = False
        labels, how = completion_labels, getattr(self, OWN_LOGITS, None)
        columns = None
        if how is None:
            read = backbone_of(self)(*args, **kwargs)
        else:
            columns = completion_columns
            if columns is None:
                columns = (_places_in(labels) % labels.shape[1]).unique()
            read = before(*args, **kwargs, **how.selection(columns, labels.shape[1]))
            columns = columns if how.selects else None
        completion, mask = (labels, completion_places, columns), kwargs.get("attention_mask")
        return _output(self, read, completion, teacher_signal, loss_settings, mask)

    return forward


@torch.compiler.disable  # it would be compiled anew for each number of tokens; the model is compiled
def _output(
    model: PreTrainedModel,
    read: Any,
    completion: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None],
    teacher: TeacherSignal | None,
    settings: LossSettings | None,
    attention_mask: torch.Tensor | None,
) -> CompletionOutput:
    """Return the extended forward's output from the backbone's; labels, places and columns are as in `_predicting`."""
    labels, given, columns = completion
    places = _places_in(labels) if given is None else given
    if hasattr(model, OWN_LOGITS):
        hidden = _predicting(read.logits, labels, places, columns)
    else:
        hidden = head_input(model, _predicting(read.last_hidden_state, labels, places))
    if settings is None:
        return CompletionOutput(hidden=hidden)
    head = LOGITS if hasattr(model, OWN_LOGITS) else lm_head_of(model)
    tokens = labels.flatten().index_select(0, places + 1).to(hidden.device)
    output = _loss(ModelSide(hidden, head), tokens, teacher, settings)
    output.aux_loss = balance_loss(model, getattr(read, "router_logits", None), attention_mask)
    return output


def _places_in(labels: torch.Tensor) -> torch.Tensor:
    """Return the places [N] in flattened labels [B, S] of the tokens that predict a completion token."""
    rows, columns = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    return rows * labels.shape[1] + columns


def _predicting(
    states: torch.Tensor, labels: torch.Tensor, places: torch.Tensor, columns: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the states or logits [N, ...] of sequences [B, S, ...] at places in flattened labels [B, S].

    Args:
        states: Of all tokens, a learned prompt of PEFT's in front of them; or of some columns.
        labels: [B, S].
        places: [N].
        columns: [C], those columns, ascending; None is all.
    """
    width = labels.shape[1]
    if columns is not None:
        columns = columns.to(places.device)
        among = torch.searchsorted(columns, places % width)
        places = torch.div(places, width, rounding_mode="floor") * len(columns) + among
    else:
        states = states[:, -width:]
    return states.flatten(0, 1).index_select(0, places.to(states.device))


def _loss(
    student: ModelSide, labels: torch.Tensor, teacher: TeacherSignal | None, settings: LossSettings
) -> CompletionOutput:
    """Return the student's loss against the completion tokens [N]."""
    if teacher is not None and teacher.tokens != len(labels):
        raise RuntimeError(
            f"the teacher scored {teacher.tokens} completion tokens and the student {len(labels)}; "
            "both labels of a batch must mark the same tokens."
        )
    retained = getattr(teacher, "retained", None)
    if settings.alpha == 0 and retained is None:
        out = cross_entropy(student, labels, settings)
    elif teacher is None:
        raise ValueError(f"alpha {settings.alpha} weighs a divergence, but no targets were given; set alpha to 0.")
    else:
        out = teacher.loss(student, labels, settings)
    output = CompletionOutput(
        loss=out.loss.clone(),  # PEFT and FSDP2 want one that can be changed in place
        ce=out.ce.detach().sum(),
        entropy=out.entropy,
        top1_correct=out.top1_correct,
        distilled=out.loss.clone(),
        token_ce=out.ce.detach(),
        token_kl=out.kl.detach(),
    )
    kl = out.kl.detach()
    if retained is not None:
        places = retained.to(kl.device)
        output.retain_kl, output.retain_tokens = kl.index_select(0, places).sum(), len(places)
        kl = kl.index_fill(0, places, 0.0)
    if settings.alpha > 0 and not getattr(teacher, "silent", False):
        output.kl, output.top1_agreement = kl.sum(), out.top1_agreement
        output.teacher_coverage = getattr(teacher, "covered", None)
    return output
