"""What changes while a distilling trainer trains: who writes a batch, how its loss is weighed, a teacher that moves."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..config.doors import spelled
from ..config.validation import freshness
from ..data.collator import prompts_of
from ..models.generation import Completion, GenerationSettings, generating_model
from ..teachers.local.ema import EmaCallback, EmaTeacher
from .on_policy import (
    Bounds,
    Draw,
    check_prompts,
    student_settings,
    teacher_settings,
    with_completions,
    written_by_student,
)
from .vllm import VLLMWriter

if TYPE_CHECKING:
    from trl import SFTTrainer as _Base

    from ..losses.signals import LossSettings
    from .schedule import Annealing
else:
    _Base = object  # so that it can stand in front of any subclass of SFTTrainer

ON_POLICY = "on_policy"  # in a batch: whether the student wrote its completions
GREEDY = (
    "distill_online: the teacher takes the likeliest tokens, so every epoch learns the same completions, as with "
    "--completions teacher; give --teacher-do-sample for fresh ones."
)


class StepMixin(_Base):
    """Fresh completions and moving settings of the loss, an optimizer step at a time; a part of `DistillationMixin`."""

    distilling: bool
    args: Any
    teacher: Any
    recipe: Any
    base_student: Any
    tokenizer: Any
    vocabulary: int | None
    annealing: Annealing
    loss_settings: LossSettings

    @property
    def online(self) -> bool:
        """Whether the teacher writes the completions of every training batch anew."""
        return bool(self.args.distill_online)

    @property
    def learns_distribution(self) -> bool:
        """Whether some step weighs the teacher's distribution, and with it where the teacher would end."""
        alphas = self.loss_settings.alpha, self.annealing.end.alpha
        return max(alphas) > 0 or self.args.distill_on_policy_fraction > 0

    def check_prompts(self) -> None:
        """Refuse rows that nothing can be written behind, and say so where fresh completions are always the same.

        Raises:
            DataError: See `on_policy.check_prompts`.
        """
        fresh = freshness(self.args)
        if fresh is None:
            return
        check_prompts(self.train_dataset, fresh)
        moves = self.args.teacher_do_sample or isinstance(self.teacher, EmaTeacher)
        if self.args.distill_online and not moves:
            self.accelerator.print(spelled(GREEDY))

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        """Return an optimizer step's batches and the number of their completion tokens over all ranks.

        Fresh completions are written for the whole step first, so that they are what is counted. The loss is weighed
        as the schedule has it for this step.
        """
        if self.distilling:
            self.loss_settings = self.annealing.at(self.state.global_step, self.state.max_steps)
            if self.online or self.args.distill_on_policy_fraction > 0:
                epoch_iterator = self._freshly_written(epoch_iterator)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _freshly_written(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield batches: the student's share with its completions, the rest with the teacher's where that is online."""
        for place, batch in enumerate(batches):
            draw = Draw(self.args.seed, self.state.global_step, place)
            if draw.falls(self.args.distill_on_policy_fraction):
                yield {**self.by_student(batch, draw), ON_POLICY: True}
            else:
                yield self.by_teacher(batch, draw) if self.online else batch

    def by_student(self, batch: Mapping[str, torch.Tensor], draw: Draw) -> dict[str, torch.Tensor]:
        """Return a batch with completions that the student writes now, under its own prompts."""
        prompts = prompts_of(batch, "")
        settings = student_settings(self.args, draw.generation_seed(self.accelerator.process_index))
        bounds = Bounds.of(
            self.base_student,
            prompts,
            settings,
            tokenizer=self.tokenizer,
            vocabulary=self.vocabulary,
            limit=self.recipe.student.limit,
        )
        if self.args.use_vllm:
            written = self.vllm_writer.written(prompts, bounds, draw)
        else:
            written = self._generated(prompts, settings, bounds)
        return with_completions(batch, written, recipe=self.recipe, collate=self.data_collator)

    def _generated(
        self, prompts: Sequence[Sequence[int]], settings: GenerationSettings, bounds: Bounds
    ) -> list[Completion]:
        """Have the student write by its own `generate`."""
        from trl.models import unwrap_model_for_generation

        how: dict[str, Any] = {"gradient_checkpointing_kwargs": self.args.gradient_checkpointing_kwargs}
        with warnings.catch_warnings():  # TRL 1.16 calls gradient checkpointing by its older name
            warnings.filterwarnings("ignore", "`gradient_checkpointing_", FutureWarning)
            with unwrap_model_for_generation(self.model_wrapped, self.accelerator, **how) as model:
                return written_by_student(generating_model(model), prompts, settings, bounds, tokenizer=self.tokenizer)

    def start_vllm(self) -> None:
        """Start the engine that writes for the student, where one is asked for."""
        if self.args.use_vllm:
            length = self.recipe.student.limit
            self.vllm_writer = VLLMWriter(self.model, self.accelerator, self.tokenizer, self.args, length=length)

    def by_teacher(self, batch: Mapping[str, torch.Tensor], draw: Draw) -> dict[str, torch.Tensor]:
        """Return a batch with completions that the teacher writes now, under its prompts."""
        settings = teacher_settings(self.args, draw.generation_seed(self.accelerator.process_index))
        written = self.teacher.generate(prompts_of(batch), settings)
        return with_completions(batch, written, recipe=self.recipe, collate=self.data_collator)

    def wrote(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the student wrote a batch's completions."""
        return bool(inputs.get(ON_POLICY, False))

    def settings_of(self, inputs: Mapping[str, Any]) -> LossSettings:
        """Return how a batch's loss is weighed: by the divergence alone where the student wrote, as in GKD."""
        return replace(self.loss_settings, alpha=1.0) if self.wrote(inputs) else self.loss_settings


class MovingTeacherMixin(_Base):
    """Checkpoints of a teacher that follows the student; a part of `DistillationMixin`."""

    distilling: bool
    teacher: Any

    def follow_student(self) -> None:
        """Have an average follow the student after each optimizer step.

        Raises:
            TeacherError: The student's weights are sharded.
        """
        if isinstance(self.teacher, EmaTeacher):
            plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
            self.teacher.check_whole(self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3))
            self.add_callback(EmaCallback(self.teacher))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint as SFTTrainer does, the average first: what ends a checkpoint is the trainer's state."""
        if self.distilling and isinstance(self.teacher, EmaTeacher) and self.args.should_save:
            self.teacher.save(Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Go on from a checkpoint as SFTTrainer does, with the average of the time."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.distilling and isinstance(self.teacher, EmaTeacher):
            self.teacher.load(Path(checkpoint))
