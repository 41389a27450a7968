"""The student as it was when the run began: its weights without the adapter that is trained, or a frozen copy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

from torch.distributed.tensor import DTensor

from ...errors import TeacherError
from ...models.adapters import is_peft_model
from ...models.generation import generating_model, has_learned_prompt
from . import fingerprint
from .self_teacher import SelfTeacher, touches_base
from .teacher import LocalTeacher

SHARDED = (
    "retain_data needs the weights that the student starts from, and those are sharded (FSDP, ZeRO-3); drop "
    "--retain-data."
)


class StartingTeacher(SelfTeacher):
    """The student's starting point.

    Under an adapter that does nothing yet it is the student with the adapter switched off, without a second copy in
    memory. Otherwise it is a frozen copy of the student's weights, an adapter that was trained before included.

    Args:
        student: Returns the student; called when a completion or a score is first asked for.
        name: What it is called in messages.
        **more: As in `SelfTeacher`.
    """

    def __init__(self, student: Callable[[], Any], *, name: str, **more: Any) -> None:
        super().__init__(student, **more)
        self.name = name
        self.copied = False
        self.fresh = False  # an adapter that is there before a trainer makes one comes from elsewhere

    @cached_property
    def plain(self) -> bool:
        """Whether the weights under the adapter are the starting point, asked before training."""
        student = self._student()
        if not is_peft_model(student) or touches_base(student) is not None:
            return False
        starts = [p for name, p in student.named_parameters() if "lora_B" in name or "lora_embedding_B" in name]
        return not any(p.detach().any() for p in starts) if starts else self.fresh

    def take(self, student: Any, *, fresh: bool = True) -> None:
        """Go on with the student as its trainer has wrapped it, copied where it has no adapter to switch off.

        Args:
            student: As it is before the first step.
            fresh: Whether its adapter was made for this run.

        Raises:
            TeacherError: Weights that are sharded, of which no copy can be made.
        """
        self.__dict__.pop("plain", None)
        self._student, self.fresh = lambda: student, fresh
        if self.plain:
            super().take(student)
            return
        whole = generating_model(student)
        if any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in whole.parameters()):
            raise TeacherError(SHARDED)
        frozen = copy.deepcopy(whole).requires_grad_(False).eval()
        self.__dict__.pop("model", None)
        self._student = lambda: frozen
        self.copied = True

    @property
    def _through(self) -> Any:
        """PEFT's wrapper if a prompt that was learned before this run lives there; else None."""
        student = self._student()
        return student if has_learned_prompt(student) and not self.plain else None

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Switch an adapter off that does nothing yet; one that was trained before is part of the starting point."""
        with super().acting() if self.plain else nullcontext():
            yield

    def weights(self) -> Any:
        """Return a hash of the weights."""
        if self.plain:
            return super().weights()
        return fingerprint.of_model(self.model if self._through is None else self._through)

    def prepare(self, wrap: Callable[[Any], Any]) -> None:
        """Have a copy wrapped for scoring as any teacher is; the student itself is wrapped by its trainer."""
        if self.copied and self._through is not None:
            return  # it is where its student is
        if self.copied:
            LocalTeacher.prepare(self, wrap)
            return
        try:
            super().prepare(wrap)
        except TeacherError:
            raise TeacherError(SHARDED) from None
