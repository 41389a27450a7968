"""Problems for the loss: two heads over the same tokens, and their values and gradients by either implementation."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trl_distill.losses import (
    DistillationLoss,
    LMHead,
    LossSettings,
    ModelSide,
    SampledTokens,
    TopKTokens,
    fused_distillation_loss,
    mixture_loss,
    sparse_loss,
)

STUDENT = ("student_hidden", "student_weight", "student_bias")
TOKENS = 5 if os.environ.get("TRITON_INTERPRET") == "1" else 23  # Triton's interpreter takes 10 ms a token and more
TENSORS = (*STUDENT, "teacher_hidden", "teacher_weight", "teacher_bias")


@dataclass
class Case:
    """Inputs of `fused_distillation_loss` by name, and its settings."""

    tensors: dict[str, torch.Tensor | None]
    targets: torch.Tensor
    settings: dict[str, Any] = field(default_factory=dict)

    def to(self, dtype: torch.dtype) -> Case:
        """Return the same numbers in another precision."""
        return replace(self, tensors={k: None if t is None else t.to(dtype) for k, t in self.tensors.items()})

    def logits(self, side: str) -> torch.Tensor:
        """Return the logits of "student" or "teacher", without softcap and scale."""
        hidden, weight, bias = (self.tensors[f"{side}_{part}"] for part in ("hidden", "weight", "bias"))
        return LMHead(weight, bias).logits(hidden)

    def with_settings(self, **settings: Any) -> Case:
        """Return the same tensors under other settings."""
        return replace(self, settings={**self.settings, **settings})

    def run(self, **settings: Any) -> tuple[DistillationLoss, dict[str, torch.Tensor | None]]:
        """Return the loss, and its gradients by name after `loss.backward()`."""
        own = {k: None if t is None else t.clone().requires_grad_() for k, t in self.tensors.items()}
        out = fused_distillation_loss(**own, targets=self.targets, **{**self.settings, **settings})
        out.loss.backward()
        assert all(own[k] is None or own[k].grad is None for k in TENSORS if k not in STUDENT), (
            "the teacher was trained"
        )
        return out, {k: None if own[k] is None else own[k].grad for k in STUDENT}


def make_case(
    *,
    tokens: int = TOKENS,
    student: tuple[int, int] = (31, 8),
    teacher: tuple[int, int] = (31, 12),
    bias: bool = False,
    masked: float = 0.0,
    spread: float = 3.0,
    seed: int = 0,
    **settings: Any,
) -> Case:
    """Return a random problem in float64.

    Args:
        tokens: N.
        student: (V, H) of its head.
        teacher: (V, H) of its head.
        bias: Whether both heads have one.
        masked: Share of the tokens to leave out.
        spread: Standard deviation of the logits.
        seed: Of the numbers.
        **settings: Of the loss.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors: dict[str, torch.Tensor | None] = {}
    for side, (rows, width) in (("student", student), ("teacher", teacher)):
        tensors[f"{side}_hidden"] = normal(tokens, width)
        tensors[f"{side}_weight"] = normal(rows, width) * spread / math.sqrt(width)
        tensors[f"{side}_bias"] = normal(rows) * spread if bias else None
    targets = torch.randint(student[0], (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < masked] = -100
    return Case(tensors, targets, {"alpha": 0.7, "temperature": 3.0, **settings})


def student_of(arguments: dict[str, Any]) -> ModelSide:
    """Take the student's part out of flat arguments, such as those of `fused_distillation_loss`."""
    names = ("hidden", "weight", "bias", "softcap", "scale")
    given = {name: arguments.pop(f"student_{name}") for name in names if f"student_{name}" in arguments}
    return ModelSide(given.pop("hidden"), LMHead(**given))


def topk_loss(**arguments: Any) -> DistillationLoss:
    """Return the loss against top-k tokens, of flat arguments."""
    return _sparse_loss(TopKTokens, arguments)


def sampled_loss(**arguments: Any) -> DistillationLoss:
    """Return the loss against drawn tokens, of flat arguments."""
    return _sparse_loss(SampledTokens, arguments)


def _sparse_loss(kind: type[TopKTokens] | type[SampledTokens], arguments: dict[str, Any]) -> DistillationLoss:
    student, stored = student_of(arguments), kind(**{name: arguments.pop(name) for name in kind._fields})
    targets, vocabulary = arguments.pop("targets"), arguments.pop("vocabulary")
    return sparse_loss(student, targets, stored, LossSettings(**arguments), vocabulary)


def mixed_loss(
    *, targets: torch.Tensor, teachers: list[ModelSide], weights: torch.Tensor, vocabulary: int | None = None,
    **arguments: Any,
) -> DistillationLoss:  # fmt: skip
    """Return the loss against a mixture of teachers, of flat arguments."""
    student = student_of(arguments)
    return mixture_loss(student, teachers, weights, targets, LossSettings(**arguments), vocabulary=vocabulary)


class NoWaits(TorchDispatchMode):
    """Fails at an operation that would wait for a GPU: its result, or the size of it, is a number of Python's."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"), name
        return func(*args, **(kwargs or {}))
