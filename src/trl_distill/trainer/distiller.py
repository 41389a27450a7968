"""The distillation of a trainer: fresh completions, loss settings, and metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..data.split import Split
from ..models.adapters import split_adapter_penalty
from ..models.batch_layout import layout_of
from ..models.completion_forward import completion_arguments
from ..models.generation import evaluating
from ..models.padding_free import student_inputs
from ..teachers.multi.teacher import MultiTeacher
from .completion_source import ON_POLICY, CompletionSource
from .distributed import without_repeats
from .finite import FiniteLosses
from .metrics import DistillationMetrics
from .model_setup import check_student, is_sharded

if TYPE_CHECKING:
    from ..losses.settings import LossSettings
    from ..losses.signals import TeacherSignal
    from ..models.completion_forward import CompletionOutput
    from .base import DistillingTrainer
    from .setup import DistillationSetup

    Batch = Mapping[str, torch.Tensor]


class Distiller:
    """Computes and counts the distillation loss of a trainer's batches.

    Args:
        trainer: Whose model learns.
        setup: The teacher, the recipe and the schedule.

    Attributes:
        completions: The source of a training batch's completions.
        settings: The loss settings of this step.
        metrics: The metrics of training and of evaluation.
        losses: The losses of batches until they are read.
        is_evaluating: Whether an evaluation is running.
    """

    def __init__(self, trainer: DistillingTrainer, setup: DistillationSetup) -> None:
        self.trainer, self.setup = trainer, setup
        self.completions = CompletionSource(trainer, setup)
        self.settings: LossSettings = setup.schedule.start
        self.metrics = {split: DistillationMetrics() for split in Split}
        self.losses = {split: FiniteLosses(trainer, split) for split in Split}
        self.is_evaluating = False
        self._last_batch: Batch | None = None
        self._is_checked = not is_sharded(trainer)  # else the student's weights may not be here yet

    @property
    def learns_distribution(self) -> bool:
        """Whether any step learns the teacher's distribution, including its stop tokens."""
        return self.setup.schedule.learns_distribution or self.setup.settings.completions.fraction > 0

    def begin_step(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Set the loss settings of this optimizer step by the schedule, and return the step's batches."""
        state = self.trainer.state
        self.settings = self.setup.schedule.at(state.global_step, state.max_steps)
        return self.completions.batches(batches)

    def settings_of(self, inputs: Batch) -> LossSettings:
        """Return a batch's loss settings: only the divergence if the student generated it, as in GKD."""
        return replace(self.settings, alpha=1.0) if inputs.get(ON_POLICY) else self.settings

    def signal(self, inputs: Batch) -> TeacherSignal | None:
        """Return the teacher's signal for a batch's completions; None if alpha is 0."""
        teacher = self.setup.teacher
        with self.trainer.accelerator.autocast():  # for those who read as the student does
            if self.settings_of(inputs).alpha > 0:
                return teacher.score(inputs)
            return teacher.score_retained(inputs) if isinstance(teacher, MultiTeacher) else None

    def loss(
        self, model: torch.nn.Module, inputs: Batch, items: torch.Tensor | int | None
    ) -> tuple[torch.Tensor, CompletionOutput]:
        """Return a batch's loss and its sums, which are counted; see `DistillationMixin.compute_loss`."""
        trainer = self.trainer
        if not self._is_checked:
            check_student(trainer, model)
            self._is_checked = True
        training, student = trainer.model.training, trainer.base_student
        if not training:
            inputs = without_repeats(inputs, trainer.accelerator)
        layout = layout_of(inputs)
        output: CompletionOutput = model(
            **student_inputs(inputs, student),
            **completion_arguments(student, inputs["labels"], layout.student_places),
            teacher_signal=self.signal(inputs),
            loss_settings=self.settings_of(inputs),
        )
        self.losses[self._split].note(output, layout)
        if training:
            self._last_batch = inputs
        tokens = (inputs["labels"] != -100).sum()
        apart = split_adapter_penalty(trainer.model, output)
        if output.aux_loss is not None:
            balance = trainer.router_aux_loss_coef * output.aux_loss
            apart = balance if apart is None else apart + balance
        own = bool(inputs.get(ON_POLICY)) if training and self.setup.settings.completions.fraction > 0 else None
        self._current_metrics.add(output, tokens, layout.student_tokens, on_policy=own)
        assert output.loss is not None
        divisor = tokens if items is None else items
        at_least_1 = divisor.to(output.loss.device).clamp(min=1) if torch.is_tensor(divisor) else max(divisor, 1)
        loss = output.loss / at_least_1
        if trainer.args.average_tokens_across_devices and items is not None:
            loss = loss * trainer.accelerator.num_processes  # DDP averages gradients over ranks
        if apart is not None:  # a mean of its own, whatever the batch holds
            loss = loss + apart / (1 if items is None else trainer.current_gradient_accumulation_steps)
        return loss, output

    @torch.no_grad()
    def student_cross_entropy(self) -> torch.Tensor | None:
        """Return the student's cross-entropy on its last training batch, summed.

        None if it has trained on none, or was moved to another device since. All ranks call it together if weights are
        sharded.
        """
        inputs, student, model = self._last_batch, self.trainer.base_student, self.trainer.model
        if inputs is None or not (is_sharded(self.trainer) or student.device == inputs["labels"].device):
            return None
        places = layout_of(inputs).student_places
        with self.trainer.accelerator.autocast(), evaluating(model):
            output: CompletionOutput = model(
                **student_inputs(inputs, student),
                **completion_arguments(student, inputs["labels"], places),
                loss_settings=replace(self.settings, alpha=0.0),
            )
        return output.ce

    def add_metrics(self, logs: dict[str, float]) -> None:
        """Add the metrics of distillation to a log line; evaluation's carry its prefix.

        Evaluation's loss is replaced by the mean over its tokens: Trainer's is a mean over batches.
        """
        trainer, metrics = self.trainer, self._current_metrics
        training = trainer.model.training
        if training and not metrics.tokens_seen:  # a resumed run continues the count
            seen = (line["num_tokens"] for line in reversed(trainer.state.log_history) if "num_tokens" in line)
            metrics.tokens_seen = next(seen, 0.0)
        means = metrics.pop_means(trainer.accelerator.gather, trainer.accelerator.device)
        prefix = "" if training else next((k for k in logs if k.endswith("_loss")), "loss").removesuffix("loss")
        if training:
            means.pop("loss", None)
            means |= self.setup.schedule.figures(self.settings)
        else:
            metrics.tokens_seen = 0.0
        logs.update({prefix + name: value for name, value in means.items()})

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Use the loss settings after the last step, and restart evaluation's metrics."""
        before, self.settings = self.settings, self.setup.schedule.end
        self.metrics[Split.EVAL].restart()
        outer, self.is_evaluating = self.is_evaluating, True
        if not outer:  # a dict of datasets is evaluated within
            self.losses[Split.EVAL].restart()
        try:
            yield
        finally:
            self.settings, self.is_evaluating = before, outer

    @property
    def _current_metrics(self) -> DistillationMetrics:
        return self.metrics[self._split]

    @property
    def _split(self) -> Split:
        return Split.TRAIN if self.trainer.model.training else Split.EVAL
