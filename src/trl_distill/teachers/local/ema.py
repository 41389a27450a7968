"""The student's own past as its teacher: an exponential moving average of its weights, as in SDFT (arXiv:2601.19897).

Only what is trained is averaged: with an adapter the adapter, whose base both share.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from ...errors import TeacherError
from ...losses.signals import DenseSignal
from ...models.generation import has_learned_prompt
from . import fingerprint
from .self_teacher import SelfTeacher

EMA = "ema"
FILE = "teacher_ema.safetensors"


class EmaTeacher(SelfTeacher):
    """The student with the average of its trained weights in the place of the weights themselves.

    The average starts as the student does. After each optimizer step it becomes decay * average + (1 - decay) *
    student; of weights in half precision it is kept in float32, which small steps need.

    Args:
        student: Returns the student; called when a completion or a score is first asked for.
        decay: Share of the average that each step keeps, 0 to 1; 1 minus TRL's `teacher_update_rate`.
        **more: As `SelfTeacher`.
    """

    def __init__(self, student: Callable[[], Any], *, decay: float, **more: Any) -> None:
        super().__init__(student, **more)
        self.name = EMA
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {}
        self._acts = False

    def take(self, student: Any) -> None:
        """Go on with the student as its trainer has it, and start the average from its trained weights.

        Raises:
            TeacherError: Nothing of it is trained.
        """
        self.__dict__.pop("model", None)
        self._student = lambda: student
        self.average = {name: _wide(p.detach().clone()) for name, p in self._trained()}
        if not self.average:
            raise TeacherError("teacher_model 'ema' is an average of what is trained, but no weight of the student is.")

    @property
    def _through(self) -> Any:
        """PEFT's wrapper if the student learns a prompt, which is averaged too; else None."""
        student = self._student()
        return student if has_learned_prompt(student) else None

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield the trained parameters by name."""
        return ((name, p) for name, p in self._student().named_parameters() if p.requires_grad)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the student, as after an optimizer step."""
        for name, parameter in self._trained():
            average = self.average[name]
            average.mul_(self.decay).add_(parameter.detach().to(average.device, average.dtype), alpha=1 - self.decay)
        self.prefix.forget()

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Put the average in the place of the student's weights; before there is one, both are the same."""
        if self._acts or not self.average:
            yield
            return
        held: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        self._acts = True
        torch.clear_autocast_cache()  # it holds the student's weights in half precision, by parameter
        try:
            for name, parameter in self._trained():
                held.append((parameter, parameter.data))
                parameter.data = self.average[name].to(parameter.device, parameter.dtype)
            yield
        finally:
            for parameter, own in held:
                parameter.data = own
            self._acts = False
            torch.clear_autocast_cache()

    @torch.no_grad()
    def score(self, batch: Mapping[str, torch.Tensor]) -> DenseSignal:
        """Return the hidden states [N, H] that predict the batch's completion tokens, and the average's head."""
        with self.acting():  # the head has to be looked at while the average is in its place
            targets = super().score(batch)
            head = targets.head
            weight, bias = (None if t is None else t.detach() for t in (head.weight, head.bias))
            return replace(targets, head=replace(head, weight=weight, bias=bias))

    def weights(self) -> Any:
        """Return a hash of the weights."""
        with self.acting():
            return fingerprint.of_model(self.model if self._through is None else self._through)

    def prepare(self, wrap: Callable[[Any], Any]) -> None:
        """Nothing is wrapped: the student's trainer has done so.

        Raises:
            TeacherError: The weights are sharded.
        """
        self.check_whole(any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in self.model.parameters()))
        self.prefix.forget()

    @staticmethod
    def check_whole(sharded: bool) -> None:
        """Refuse to average weights of which a rank holds a part only.

        Raises:
            TeacherError: They are sharded.
        """
        if sharded:
            raise TeacherError(
                "teacher_model 'ema' cannot be used where weights are sharded (FSDP, ZeRO-3); train with DDP or "
                "ZeRO-2, or give a teacher that is a copy."
            )

    def save(self, folder: Path) -> Path:
        """Write the average into the folder of a checkpoint and return its file."""
        folder.mkdir(parents=True, exist_ok=True)
        path, temporary = folder / FILE, folder / f".{FILE}.writing"
        save_file({name: tensor.contiguous() for name, tensor in self.average.items()}, temporary)
        os.replace(temporary, path)
        return path

    def load(self, folder: Path) -> None:
        """Go on with the average of a checkpoint.

        Raises:
            TeacherError: There is none, or one of other weights.
        """
        path = folder / FILE
        if not path.is_file():
            raise TeacherError(
                f"{folder} has no {FILE}, the average that teacher_model 'ema' is; it is from a run with another "
                "teacher, start anew."
            )
        kept = load_file(path)
        if {k: v.shape for k, v in kept.items()} != {k: v.shape for k, v in self.average.items()}:
            raise TeacherError(f"{path} averages other weights than this run trains; start anew.")
        self.average = {name: kept[name].to(own.device) for name, own in self.average.items()}
        self.prefix.forget()


class EmaCallback(TrainerCallback):
    """Moves the average after each optimizer step.

    Args:
        teacher: The average.
    """

    def __init__(self, teacher: EmaTeacher) -> None:
        self.teacher = teacher

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move it; a checkpoint of this step is written later."""
        self.teacher.update()


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float32 where it is in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
