"""Sources of a local teacher's weights: a model of its own, or the student's own weights in some state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ...errors import TeacherError
from ...losses.lm_head import LMHead
from ...models.adapters import base_of, is_peft_model
from ...models.broken_weights import check_finite
from ...models.generation import generating_model, has_learned_prompt
from ...models.lm_head import lm_head_of
from ...models.loading import ModelSource
from ...models.out_of_memory import doing
from .folder_fingerprint import of_folder

SELF = "self"
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # LoRA's ways to begin that change the weights under it
SHARDED = (
    "retain_data needs the weights that the student starts from, and those are sharded (FSDP, ZeRO-3); drop "
    "--retain-data."
)


class WeightSource:
    """A teacher's weights.

    Attributes:
        of_student: Whether they are the student's own, which are read in the precision that the student is read in.
        shares_student: Whether they are in the student's layers, which its trainer wraps.
        is_caller_owned: Whether the model is the caller's own, which is neither frozen nor left in another mode.
        moves: Whether they change while the student trains.
        adapter_off: Whether an adapter in the model's layers is disabled.
        source: Where another process can load them; None if they are in memory alone.
    """

    of_student = True
    shares_student = True
    is_caller_owned = True
    moves = False
    adapter_off = False
    source: ModelSource | None = None

    def model(self) -> PreTrainedModel:
        """Return the model that they are in, without PEFT's wrapper."""
        raise NotImplementedError

    @property
    def prompt_wrapper(self) -> PeftModel | None:
        """PEFT's wrapper if the teacher has a learned prompt there, through which it then scores and writes."""
        return None

    def active(self) -> AbstractContextManager[None]:
        """Return a context in which the model has these weights."""
        return nullcontext()

    def head_of(self, model: PreTrainedModel) -> LMHead:
        """Return the LM head as it is inside `active`, to be used outside of it."""
        return lm_head_of(model)

    def content(self) -> list[object] | None:
        """An identity of the weights that is known without reading them; None if they have to be read."""
        return None

    def attach_student(self, student: PreTrainedModel | PeftModel, *, fresh: bool) -> bool:
        """Attach the student as its trainer has wrapped it; return whether the model has changed.

        `fresh` says whether its adapter was made for this run.
        """
        return False


class FrozenModel(WeightSource):
    """A model that is read from its files once and never trained."""

    of_student = shares_student = is_caller_owned = False

    def __init__(self, source: ModelSource) -> None:
        self.source: ModelSource = source

    def model(self) -> PreTrainedModel:
        """Return the model; frozen and in evaluation mode."""
        with doing("loading the teacher"):
            model = self.source.load_model()
            place = None if self.source.is_placed else self.source.device
            return _on_device(model, place).requires_grad_(False).eval()

    def content(self) -> list[object]:
        """The hash of its files, its precision and its quantization."""
        source = self.source
        hub = [source.path, source.revision, getattr(source.config, "_commit_hash", None)]
        return [of_folder(source.path) or hub, source.dtype, source.quantization]


class CallersModel(WeightSource):
    """A model that the caller has loaded, on a device; None leaves it where it is."""

    of_student = shares_student = False

    def __init__(
        self, model: PreTrainedModel, device: str | torch.device | None = None, *, role: str = "teacher_model"
    ) -> None:
        self._model, self._device, self._role = model, device, role

    def model(self) -> PreTrainedModel:
        """Return the model; its weights may not hold NaN or an infinity (ModelError, TeacherError)."""
        check_finite(self._model, self._role)
        return _on_device(self._model, self._device)


class AdapterOff(WeightSource):
    """The student with its adapter switched off: no second copy in memory. It may still be without an adapter."""

    adapter_off = True

    def __init__(self, student: Callable[[], PreTrainedModel | PeftModel], source: ModelSource | None = None) -> None:
        self._student, self.source = student, source

    def model(self) -> PreTrainedModel:
        student = self._student()
        if is_peft_model(student):
            check_untouched(student)
        return base_of(student)

    def active(self) -> AbstractContextManager[None]:
        return _without_adapter(self._student())

    def attach_student(self, student: PreTrainedModel | PeftModel, *, fresh: bool) -> bool:
        """Raise TeacherError for a student without an adapter, or with one that changes the weights under it."""
        if not is_peft_model(student):
            raise TeacherError(
                "teacher_model 'self' is the student with its adapter switched off, but the student has none; train a "
                "LoRA adapter (--peft), or give the model's own name for a teacher that is a copy."
            )
        check_untouched(student)
        self._student = lambda: student
        return True


class FrozenCopy(WeightSource):
    """The student's starting point, which a run with `retain_data` keeps.

    It is the student with its adapter switched off, and needs no memory, if that adapter does nothing yet. Otherwise it
    is a copy, an adapter that was trained before included, made when the student is attached.
    """

    def __init__(self, student: Callable[[], PreTrainedModel | PeftModel]) -> None:
        self._student = student
        self.is_copy = False
        self._is_noop: bool | None = None

    @property
    def shares_student(self) -> bool:  # type: ignore[override]
        """Whether it is in the student's layers."""
        return not self.is_copy

    @property
    def adapter_off(self) -> bool:  # type: ignore[override]
        """Whether the adapter did nothing before training, so that the weights under it are the starting point."""
        return adapter_is_noop(self._student()) if self._is_noop is None else self._is_noop

    @property
    def prompt_wrapper(self) -> PeftModel | None:
        """PEFT's wrapper if a prompt that was learned before this run is in it."""
        student = self._student()
        return student if has_learned_prompt(student) and not self.adapter_off else None

    def model(self) -> PreTrainedModel:
        return base_of(self._student())

    def active(self) -> AbstractContextManager[None]:
        return _without_adapter(self._student()) if self.adapter_off else nullcontext()

    def attach_student(self, student: PreTrainedModel | PeftModel, *, fresh: bool) -> bool:
        """Raise TeacherError if a copy is needed and the weights are sharded."""
        self._is_noop = adapter_is_noop(student, fresh=fresh)
        if not self._is_noop:
            whole = generating_model(student)
            if is_sharded(whole):
                raise TeacherError(SHARDED)
            student, self.is_copy = copy.deepcopy(whole).requires_grad_(False).eval(), True
        self._student = lambda: student
        return True


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether ranks hold a part of a model's weights each."""
    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())


def adapter_is_noop(student: Any, *, fresh: bool = False) -> bool:
    """Whether a student's adapter does not change its output; False without an adapter.

    `fresh` says whether the adapter was made for this run, which decides for those that are no LoRA.
    """
    if not is_peft_model(student) or touches_base(student) is not None:
        return False
    starts = [p for name, p in student.named_parameters() if "lora_B" in name or "lora_embedding_B" in name]
    return not any(p.detach().any() for p in starts) if starts else fresh


def touches_base(student: PeftModel) -> str | None:
    """Return the setting of a student's adapter that changes base weights, with its value; None if there is none."""
    for name in student.active_adapters:
        config = student.peft_config[name]
        bias, start = getattr(config, "bias", "none"), getattr(config, "init_lora_weights", True)
        if bias != "none":
            return f"bias {bias!r}"
        if isinstance(start, str) and start.startswith(CHANGES_BASE):
            return f"init_lora_weights {start!r}"
    return None


def check_untouched(student: PeftModel) -> None:
    """Raise TeacherError for a student whose adapter changes base weights."""
    found = touches_base(student)
    if found is not None:
        raise TeacherError(
            f"teacher_model 'self' is the student with its adapter switched off, but the adapter has {found}, which "
            "changes weights of the model itself; leave that out of the adapter, or give the model's own name for a "
            "teacher that is a copy."
        )


def _without_adapter(student: Any) -> AbstractContextManager[None]:
    return student.disable_adapter() if is_peft_model(student) else nullcontext()


def _on_device(model: PreTrainedModel, device: str | torch.device | None) -> PreTrainedModel:
    return model if device is None else model.to(device)  # type: ignore[arg-type]
