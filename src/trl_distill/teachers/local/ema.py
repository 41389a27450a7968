"""The student's own past as its teacher: an exponential moving average of its weights, as in SDFT (arXiv:2601.19897).

Only trained weights are averaged: with an adapter the adapter, whose base both share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, TrainerCallback

from ...data.atomic_file import replacing
from ...errors import TeacherError
from ...losses.lm_head import LMHead
from ...models.adapters import base_of
from ...models.generation import has_learned_prompt
from ..base import Teacher
from .teacher import LocalTeacher
from .weights import WeightSource

EMA = "ema"
FILE = "teacher_ema.safetensors"


class MovingAverage(WeightSource):
    """The student with its trained weights replaced by their average.

    The average starts as the student does. After each optimizer step it becomes decay * average + (1 - decay) *
    student, where decay is 1 minus TRL's `teacher_update_rate`; of weights in half precision it is kept in float32,
    which small steps need. It is empty until the student is attached.
    """

    moves = True

    def __init__(self, student: Callable[[], PreTrainedModel | PeftModel], *, decay: float) -> None:
        self._student, self.decay = student, decay
        self.average: dict[str, torch.Tensor] = {}
        self._is_active = False

    def model(self) -> PreTrainedModel:
        return base_of(self._student())

    @property
    def prompt_wrapper(self) -> PeftModel | None:
        student = self._student()
        return student if has_learned_prompt(student) else None

    def attach_student(self, student: PreTrainedModel | PeftModel, *, fresh: bool) -> bool:
        """Start the average from the student's trained weights; raise TeacherError if there are none."""
        self._student = lambda: student
        self.average = {name: p.detach().clone() for name, p in self._trained()}
        for name, average in self.average.items():
            if average.dtype in (torch.float16, torch.bfloat16):
                self.average[name] = average.float()
        if not self.average:
            raise TeacherError("teacher_model 'ema' is an average of what is trained, but no weight of the student is.")
        return True

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, p) for name, p in self._student().named_parameters() if p.requires_grad)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the student, as after an optimizer step."""
        for name, parameter in self._trained():
            average = self.average[name]
            average.mul_(self.decay).add_(parameter.detach().to(average.device, average.dtype), alpha=1 - self.decay)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Replace the student's weights by the average; before there is one, both are the same."""
        if self._is_active or not self.average:
            yield
            return
        held: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        self._is_active = True
        torch.clear_autocast_cache()  # it holds the student's weights in half precision, by parameter
        try:
            for name, parameter in self._trained():
                held.append((parameter, parameter.data))
                parameter.data = self.average[name].to(parameter.device, parameter.dtype)
            yield
        finally:
            for parameter, own in held:
                parameter.data = own
            self._is_active = False
            torch.clear_autocast_cache()

    def head_of(self, model: PreTrainedModel) -> LMHead:
        """Return the average's head: the parameters themselves have the student's weights again outside of `active`."""
        head = super().head_of(model)
        weight, bias = (None if t is None else t.detach() for t in (head.weight, head.bias))
        return replace(head, weight=weight, bias=bias)

    def save(self, folder: Path) -> Path:
        """Write the average into the folder of a checkpoint and return its file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        with replacing(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in self.average.items()}, temporary)
        return path

    def load(self, folder: Path) -> None:
        """Read the average of a checkpoint; raise TeacherError if there is none, or one of other weights."""
        path = folder / FILE
        if not path.is_file():
            raise TeacherError(
                f"{folder} has no {FILE}, the average of teacher_model 'ema'; the checkpoint is from a run with "
                f"another teacher: start over."
            )
        kept = load_file(path)
        if {k: v.shape for k, v in kept.items()} != {k: v.shape for k, v in self.average.items()}:
            raise TeacherError(f"{path} averages other weights than this run trains; start over.")
        self.average = {name: kept[name].to(own.device) for name, own in self.average.items()}


class EmaCallback(TrainerCallback):
    """Updates a teacher's moving average after each optimizer step."""

    def __init__(self, teacher: Teacher) -> None:
        assert isinstance(teacher, LocalTeacher)
        assert isinstance(teacher.weights, MovingAverage)
        self.teacher, self.average = teacher, teacher.weights

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.average.update()
        self.teacher.prefix.forget()

    def load(self, folder: Path) -> None:
        """Read the average of a checkpoint; see `MovingAverage.load`."""
        self.average.load(folder)
        self.teacher.prefix.forget()
