"""The source of a training batch's completions: the data, the teacher during training, or the student."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..config.setting_names import name_settings
from ..data.collator import prompts_of
from ..data.preparation import Recipe
from ..models.architectures import vocabulary_rows
from ..models.generation import Completion, GenerationSettings, generating_model
from ..prompts.chat_template import ChatTemplate
from .on_policy import (
    BatchRandom,
    Bounds,
    check_prompts,
    with_completions,
    written_by_student,
)
from .vllm import VLLMWriter

if TYPE_CHECKING:
    import torch

    from .base import DistillingTrainer
    from .setup import DistillationSetup

    Batch = Mapping[str, torch.Tensor]

ON_POLICY = "on_policy"  # in a batch: whether the student wrote its completions
GREEDY = (
    "distill_online: the teacher uses greedy decoding, so every epoch learns the same completions, as with "
    "--completions teacher; give --teacher-do-sample for fresh ones."
)


class CompletionSource:
    """Generates fresh completions for the batches that need them.

    Args:
        trainer: The trainer of the batches.
        setup: The teacher and the recipe.

    Raises:
        DataError: A row has no prompt, see `on_policy.check_prompts`.
    """

    def __init__(self, trainer: DistillingTrainer, setup: DistillationSetup) -> None:
        self.trainer, self.setup, self.args = trainer, setup, trainer.args
        self.settings, teachers = setup.settings.completions, setup.settings.teacher
        self.vllm: VLLMWriter | None = None
        if teachers.fresh_completions is not None:
            check_prompts(trainer.train_dataset, teachers.fresh_completions)
        moves = teachers.generation.do_sample or setup.teacher.capabilities.moves
        if self.settings.online and not moves:
            trainer.accelerator.print(name_settings(GREEDY))

    def start_vllm(self) -> None:
        """Start the student's generation engine, if one is requested."""
        engine, trainer = self.settings.vllm, self.trainer
        if engine is not None:
            length = self._recipe.student.limit
            self.vllm = VLLMWriter(trainer.model, trainer.accelerator, trainer.tokenizer, engine, length=length)

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Return an optimizer step's batches, with new completions if the settings require them."""
        if self.trainer.online or self.settings.fraction > 0:
            return self._fresh(batches)
        return batches

    def _fresh(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches: the student's share with its completions, the rest with the teacher's if that is online."""
        for place, batch in enumerate(batches):
            randomness = BatchRandom(self.args.seed, self.trainer.state.global_step, place)
            if randomness.is_on_policy(self.settings.fraction):
                on_policy: dict[str, Any] = {**self.by_student(batch, randomness), ON_POLICY: True}
                yield on_policy
            else:
                yield self.trainer.by_teacher(batch, randomness) if self.trainer.online else batch

    def by_student(self, batch: Batch, randomness: BatchRandom) -> dict[str, torch.Tensor]:
        """Return a batch with completions that the student generates now, under its own prompts."""
        trainer, prompts = self.trainer, prompts_of(batch, "")
        seed = randomness.generation_seed(trainer.accelerator.process_index)
        settings = replace(self.settings.student, seed=seed)
        bounds = _bounds(trainer, prompts, settings, limit=self._recipe.student.limit)
        if self.vllm is not None and self.args.use_vllm:
            written = self.vllm.written(prompts, bounds, randomness)
        else:
            written = self._generated(prompts, settings, bounds)
        return with_completions(batch, written, recipe=self._recipe, collate=trainer.data_collator)

    def by_teacher(self, batch: Batch, randomness: BatchRandom) -> dict[str, torch.Tensor]:
        """Return a batch with completions that the teacher generates now, under its prompts."""
        seed = randomness.generation_seed(self.trainer.accelerator.process_index)
        settings = replace(self.setup.settings.teacher.generation, seed=seed)
        written = self.setup.teacher.generate(prompts_of(batch), settings)
        return with_completions(batch, written, recipe=self._recipe, collate=self.trainer.data_collator)

    @property
    def _recipe(self) -> Recipe:
        """The recipe: a run with fresh completions has one teacher."""
        assert isinstance(self.setup.recipe, Recipe)
        return self.setup.recipe

    def _generated(
        self, prompts: Sequence[Sequence[int]], settings: GenerationSettings, bounds: Bounds
    ) -> list[Completion]:
        from trl.models import unwrap_model_for_generation

        trainer = self.trainer
        how: dict[str, Any] = {"gradient_checkpointing_kwargs": self.args.gradient_checkpointing_kwargs}
        with warnings.catch_warnings():  # TRL 1.16 calls gradient checkpointing by its older name
            warnings.filterwarnings("ignore", "`gradient_checkpointing_", FutureWarning)
            with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator, **how) as model:
                return written_by_student(
                    generating_model(model), prompts, settings, bounds, tokenizer=trainer.tokenizer
                )


def student_writes(
    trainer: DistillingTrainer, prompts: Sequence[Sequence[int]], settings: GenerationSettings
) -> list[Completion]:
    """Have a trainer's student complete prompts (token ids), as one batch; see `written_by_student`."""
    bounds = _bounds(trainer, prompts, settings, limit=trainer.args.max_length)
    with trainer.accelerator.autocast():
        model = generating_model(trainer.model)
        return written_by_student(model, prompts, settings, bounds, tokenizer=trainer.tokenizer)


def _bounds(
    trainer: DistillingTrainer, prompts: Sequence[Sequence[int]], settings: GenerationSettings, *, limit: int | None
) -> Bounds:
    student, tokenizer, shared = trainer.base_student, trainer.tokenizer, trainer.vocabulary
    rows = vocabulary_rows(student.config)
    room = settings.max_new_tokens if limit is None else limit - max(len(p) for p in prompts)
    return Bounds(
        stops=ChatTemplate(tokenizer).stop_ids(student.generation_config),
        max_new_tokens=max(1, min(settings.max_new_tokens, room)),
        known=min(len(tokenizer), rows if shared is None else shared),
        rows=rows,
    )
