"""Detect a teacher that is the student itself: the same weights teach nothing if both read the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from ..errors import UsageError
from ..models.adapters import base_of, is_peft_model
from ..models.loading import ModelSource, resolve
from .base import Teacher
from .local import fingerprint
from .local.folder_fingerprint import of_folder
from .local.teacher import LocalTeacher
from .target_store.reader import StoredTeacher

if TYPE_CHECKING:
    from ..losses.schedule import LossSchedule

LIBRARIES = ("trl_distill", "autotrain", "trl", "transformers")


@dataclass(frozen=True)
class Student:
    """The weights that a student starts from.

    Attributes:
        load: Returns the model.
        source: Where it is loaded from; None for a model that is in memory already.
        trainer: The class that trains it.
    """

    load: Callable[[], Any]
    source: ModelSource | None = None
    trainer: type | None = None


def teaches_nothing(loss: LossSchedule, teacher: Teacher, student: Student) -> bool:
    """Whether a teacher that reads the student's tokens teaches nothing.

    A divergence from the same weights is 0. It is allowed if alpha is 0, so that the teacher is not asked; for a moving
    average if alpha is below 1, since the cross-entropy moves the student away from it; and under a loss of the user's
    own.
    """
    alphas = {loss.start.alpha, loss.end.alpha}
    if alphas == {0.0} or _has_own_loss(student.trainer):
        return False
    if teacher.capabilities.moves:
        return alphas == {1.0}
    return shares_weights(teacher, student)


def shares_weights(teacher: Teacher, student: Student) -> bool:
    """Whether a teacher's weights are those that the student starts from; models are loaded only to compare them.

    A quantized model is another one than its original. An adapter that was trained before makes a student another
    model than its base.
    """
    if isinstance(teacher, StoredTeacher):
        return _was_loaded_alike(teacher.identity().get("weights"), student)
    if not isinstance(teacher, LocalTeacher):
        return False
    if teacher.weights.of_student:
        starts_anew = student.source is not None and student.source.under_adapter is student.source
        return starts_anew or _is_fresh(student.load())
    if student.source is not None and not teacher.weights.is_caller_owned:
        return _was_loaded_alike(teacher.fingerprint(), student)
    if student.source is None and teacher.weights.is_caller_owned:
        return _are_equal(teacher.model, student.load())
    named = str(student.source.path if student.source else getattr(student.load().config, "_name_or_path", ""))
    return _place(named) == _place(teacher.name) and _are_equal(teacher.model, student.load())


def _was_loaded_alike(theirs: Any, student: Student) -> bool:
    """Whether a teacher's files, precision and quantization are those of the student."""
    source = student.source
    if source is None or not isinstance(theirs, list) or theirs[-1] != source.quantization:
        return False
    files = of_folder(source.path)
    if files is not None:
        return bool(files) and theirs[0] == files
    name, *version = theirs[0]
    commit = getattr(source.config, "_commit_hash", None)
    return name == source.path and (commit in version if commit else version[0] in (None, "main"))


def _place(name: str) -> str:
    try:
        return resolve(name, role="model")
    except UsageError:
        return name


def _is_fresh(student: Any) -> bool:
    """Whether a student is its base, since it has no adapter or a LoRA adapter that does nothing yet."""
    if not is_peft_model(student):
        return True
    new = [p for name, p in student.named_parameters() if "lora_B" in name or "lora_embedding_B" in name]
    return bool(new) and not any(p.is_meta or p.detach().any() for p in new)


def _are_equal(teacher: Any, student: Any) -> bool:
    """Whether two loaded models have the same weights; sharded ones are not compared."""
    if not _is_fresh(student):
        return False
    mine, theirs = fingerprint.without_adapters(base_of(student)), teacher.state_dict()
    return mine.keys() == theirs.keys() and all(_is_same(theirs[name], tensor) for name, tensor in mine.items())


def _is_same(one: Any, other: Any) -> bool:
    """Whether two tensors are the same, in the lower of their precisions."""
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return bool(one == other)
    if one.shape != other.shape or any(
        isinstance(t, DTensor) or hasattr(t, "ds_id") or t.is_meta for t in (one, other)
    ):
        return False
    dtype = min((one.dtype, other.dtype), key=lambda dtype: dtype.itemsize)
    return torch.equal(one.to(dtype), other.to(device=one.device, dtype=dtype))


def _has_own_loss(trainer: type | None) -> bool:
    """Whether a trainer class overrides the loss."""
    classes = () if trainer is None else trainer.__mro__
    return any("compute_loss" in vars(c) and c.__module__.split(".")[0] not in LIBRARIES for c in classes)
