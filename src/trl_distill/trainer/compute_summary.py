"""A one-line summary of a run's compute: trained weights, device, precision, processes, optimizer and attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..models.adapters import is_peft_model
from ..teachers.base import Teacher
from ..teachers.local.teacher import LocalTeacher

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import dtype
    from transformers import PreTrainedModel

    from ..config.sft_config import DistillationSFTConfig

UNITS = ((10**9, "B"), (10**6, "M"), (10**3, "K"))
BITS = (("is_loaded_in_4bit", "int4"), ("is_loaded_in_8bit", "int8"))


def describe_compute(
    args: DistillationSFTConfig,
    student: Any,
    *,
    trained: str,
    teacher: Teacher | None = None,
    quantization: str | None = None,
    optimizer: Any = None,
) -> str:
    """Return the line.

    Args:
        args: The configuration.
        student: The model, with or without its weights.
        trained: What is trained; see `describe_trained` and `describe_adapter`.
        teacher: Whose weights are named if they are in another precision.
        quantization: What a student without weights will be loaded in.
        optimizer: Replaces the configuration's.
    """
    device = args.device.type
    own = quantization or _precision(student)
    computes = f"in {own}"
    if args.mixed_precision == "fp16" and device == "cpu":
        computes += " (fp16 needs an accelerator)"
    elif args.mixed_precision != "no":
        computes = f"in {args.mixed_precision} mixed precision, weights in {own}"
    theirs = _teachers_precision(args, teacher)
    attention = getattr(student.config, "_attn_implementation", None)
    named = getattr(args.optim, "value", args.optim) if optimizer is None else type(optimizer).__name__
    parts = [
        f"{trained}, on {device} {computes}" + (f", the teacher in {theirs}" if theirs not in (None, own) else ""),
        "1 process" if args.world_size == 1 else f"{args.world_size} processes",
        f"optimizer {named}",
        *([f"attention {attention}"] if attention else []),
        *([f"compiled by {args.torch_compile_backend}"] if args.torch_compile else []),
    ]
    return "; ".join(parts)


def describe_trained(model: PreTrainedModel | PeftModel) -> str:
    """Return which weights of a model are trained, and how many."""
    counts = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    whole = sum(count for count, _ in counts)
    trained = sum(count for count, learns in counts if learns) or whole  # a frozen model is unfrozen to be trained
    if is_peft_model(model):
        config = model.active_peft_config
        return describe_adapter(trained, kind=str(config.peft_type.value), rank=getattr(config, "r", None))
    return f"all {_short(whole)} parameters" if trained == whole else f"{_short(trained)} of {_short(whole)} parameters"


def describe_adapter(count: int, *, kind: str = "LORA", rank: int | None = None) -> str:
    """Return the same of an adapter with `count` parameters; `kind` is PEFT's name."""
    named = "LoRA" if kind == "LORA" else kind
    return f"adapter of {_short(count)} parameters ({named}{'' if rank is None else f' r={rank}'})"


def _short(count: int) -> str:
    unit, letter = next((pair for pair in UNITS if count >= pair[0]), (1, ""))
    return f"{count / unit:.1f}{letter}" if letter else str(count)


def _precision(model: Any) -> str:
    bits = next((name for attribute, name in BITS if getattr(model, attribute, False)), None)
    return bits or _named(model.dtype)


def _teachers_precision(args: DistillationSFTConfig, teacher: Teacher | None) -> str | None:
    """Return the precision of a teacher's weights; None unless it is a local model of its own."""
    if not isinstance(teacher, LocalTeacher) or teacher.weights.of_student:
        return None
    if teacher.loaded:
        return _precision(teacher.model)
    asked = args.teacher_quantization or args.teacher_dtype
    saved = getattr(teacher.config, "dtype", None)
    if asked != "auto":
        return asked
    return None if saved is None else _named(saved)


def _named(kind: dtype | str) -> str:
    return str(kind).removeprefix("torch.")
