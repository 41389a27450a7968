"""The trainers: a drop-in SFTTrainer that can distil, and one with the guide's methods to override."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from trl import SFTTrainer

from ..data.collator import DistillationCollator, numbered_as, prompts_of
from ..errors import ParamsError, TeacherError
from ..losses import divergence
from ..models.generation import Completion, GenerationSettings, cut_at_stop, padded_left
from ..models.padding_free import student_inputs
from ..teachers.compatibility import OWN_WRITER, require
from ..teachers.completions.stop_strings import cut_at_string
from ..teachers.local.teacher import LocalTeacher
from .mixin import DistillationMixin
from .on_policy import BatchRandom

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..config.sft_config import DistillationSFTConfig


class DistillationSFTTrainer(DistillationMixin, SFTTrainer):
    """SFTTrainer that learns from a teacher when `args.use_distillation` is set, and is SFTTrainer when not.

    Example:
        >>> from trl_distill import DistillationSFTTrainer as SFTTrainer, DistillationSFTConfig as SFTConfig

    Arguments are SFTTrainer's, and `teacher_model=` (see `DistillationMixin`).
    """


class PromptDistillationTrainer(DistillationSFTTrainer):
    """A distilling trainer to subclass, with access to the teacher's and the student's logits.

    `self.teacher_model` is the teacher's model, `self.config` the configuration. Override `compute_loss` for a loss
    of your own (it may take just `model, inputs`), or `generate_teacher_outputs` to have the teacher write fresh
    completions for every training batch. A batch holds `input_ids`, `attention_mask`, `labels` of the student and
    the same with the prefix `teacher_`.

    Raises:
        ParamsError: `use_distillation` is not set.
    """

    must_distil = True

    def check_teacher(self) -> None:
        """Refuse settings that cannot be used with a subclass's own completions."""
        if self.online:
            named = ("teacher_config", "teacher_prompt_mixture", "retain_data")
            setting = next((name for name in named if getattr(self.args, name) is not None), "")
            require(OWN_WRITER, self.teacher, setting=setting)
        if self.online and (self.args.packing or self.args.padding_free):
            raise ParamsError(
                "packing and padding_free cannot be used with a generate_teacher_outputs of your own: completions "
                "that do not exist yet have no length; set both to False."
            )
        if self.online and self.args.assistant_only_loss:
            raise ParamsError(
                "assistant_only_loss trains on turns of the data, but generate_teacher_outputs generates them."
            )

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Let an overridden compute_loss take `model, inputs` alone: its loss is then a batch's mean."""
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("compute_loss")
        if own is not None:
            cls.compute_loss = _accepting_any(own)  # type: ignore[method-assign]

    @property
    def config(self) -> DistillationSFTConfig:
        """The configuration, by the name the guide uses."""
        return self.args

    @property
    def teacher_model(self) -> PreTrainedModel:
        """The teacher's model in evaluation mode; call it without gradients, it is not trained.

        One read for this run writes no token that the student does not have; of a loaded one that was passed in,
        the generation configuration is left alone.
        """
        teacher = self.teacher
        if not isinstance(teacher, LocalTeacher):
            raise ParamsError(f"teacher {teacher.name!r} has no local model.")
        model = teacher.model.eval()
        if not teacher.weights.is_caller_owned:
            model.generation_config.suppress_tokens = teacher.suppressed or None
        return model

    @property
    def online(self) -> bool:
        """Whether every training batch has new completions: from a subclass, or with `distill_online`."""
        return self._writes_itself or super().online

    @property
    def _writes_itself(self) -> bool:
        return type(self).generate_teacher_outputs is not PromptDistillationTrainer.generate_teacher_outputs

    @property
    def _stop(self) -> tuple[str, ...]:
        return tuple(self.config.teacher_stop or ())

    def prepare_teacher_inputs(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the teacher's prompts of a batch for `teacher_model.generate`: [B, S], padded on the left."""
        return self._padded_prompts(batch, "teacher_", self.teacher.tokenizer.pad_token_id)

    def prepare_sequences(self, batch: Mapping[str, torch.Tensor], *, teacher: bool = False) -> dict[str, torch.Tensor]:
        """Return one model's whole sequences of a batch, prompt and completion: [B, S], padded on the right.

        Under `packing` and `padding_free` the student's are one, [1, S], with its row boundaries.
        """
        if not teacher:
            return student_inputs(batch, self.base_student)
        return {key: batch[f"teacher_{key}"].to(self.teacher_model.device) for key in ("input_ids", "attention_mask")}

    def completion_logits(
        self, logits: torch.Tensor, batch: Mapping[str, torch.Tensor], *, teacher: bool = False
    ) -> torch.Tensor:
        """Return the rows [N, V] of a model's logits [B, S, V] that predict the batch's completion tokens."""
        labels = batch["teacher_labels" if teacher else "labels"][:, 1:].to(logits.device)
        return logits[:, :-1][labels != -100]

    def completion_targets(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the completion tokens [N] of a batch, in the order of `completion_logits`."""
        labels = batch["labels"][:, 1:]
        return labels[labels != -100]

    def compute_kl_loss(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float | None = None
    ) -> torch.Tensor:
        """Return T^2 times the mean divergence of aligned logits [..., V], by the configured kind.

        Args:
            student_logits: Rows that predict the completion, see `completion_logits`.
            teacher_logits: Rows for the same tokens; of wider or narrower vocabularies the shared rows are used.
            temperature: T (default: `distill_temperature`).

        Raises:
            ValueError: The two have different numbers of rows.
        """
        if student_logits.shape[:-1] != teacher_logits.shape[:-1]:
            raise ValueError(
                f"student_logits {tuple(student_logits.shape)} and teacher_logits {tuple(teacher_logits.shape)} are "
                "for different tokens; select the completion's rows of both with completion_logits()."
            )
        temperature = self.config.distill_temperature if temperature is None else temperature
        per_token = divergence(
            student_logits[..., : self.vocabulary].flatten(0, -2),
            teacher_logits[..., : self.vocabulary].flatten(0, -2).to(student_logits.device),
            temperature=temperature,
            kind=self.config.distill_divergence,
            jsd_beta=self.config.distill_jsd_beta,
        )
        return temperature**2 * per_token.mean()

    def generate_teacher_outputs(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Generate completions for a batch under the teacher's prompts; override to generate new ones for every batch.

        Returns:
            Token ids [B, S + new], prompts padded on the left, each followed by its completion, as `generate` gives.
        """
        inputs = self.prepare_teacher_inputs(batch)
        prompts = prompts_of(batch)
        settings = GenerationSettings(
            max_new_tokens=self.config.distill_max_teacher_length, seed=self.config.seed, stop=self._stop
        )
        written = self.teacher.generate(prompts, settings)
        width, pad = max(len(c.ids) for c in written), self.teacher.tokenizer.pad_token_id
        new = torch.tensor([[*c.ids, *[pad] * (width - len(c.ids))] for c in written])
        return torch.cat([inputs["input_ids"], new.to(inputs["input_ids"].device)], dim=1)

    def by_teacher(self, batch: Mapping[str, torch.Tensor], randomness: BatchRandom) -> dict[str, torch.Tensor]:
        """Return a training batch with new completions, those of a subclass if it writes them."""
        return self._rewritten(batch) if self._writes_itself else super().by_teacher(batch, randomness)

    def _rewritten(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the batch with the completions that the subclass generates now."""
        prompts = prompts_of(batch)
        width = self.prepare_teacher_inputs(batch)["input_ids"].shape[1]
        with torch.no_grad():
            written = self.generate_teacher_outputs(batch)
        stops, reader = self.teacher.stop_ids, self.teacher.tokenizer
        end = stops[0] if reader.eos_token_id is None else reader.eos_token_id
        fresh: list[Completion] = [
            cut_at_string(cut_at_stop(row, stops), self._stop, reader, end=end) for row in written[:, width:].tolist()
        ]
        unknown = sorted({i for c in fresh for i in c.ids if self.vocabulary is not None and i >= self.vocabulary})
        if unknown:
            raise TeacherError(
                f"generate_teacher_outputs wrote token {unknown[0]}, but teacher and student share the tokens below "
                f"{self.vocabulary}; pass suppress_tokens=self.teacher.suppressed to the teacher's generate()."
            )
        rows = [
            {"student_prompt": mine, "teacher_prompt": theirs, "completion": completion.ids}
            for mine, theirs, completion in zip(prompts_of(batch, ""), prompts, fresh, strict=True)
        ]
        assert isinstance(self.data_collator, DistillationCollator)
        made = self.data_collator(numbered_as(batch, rows))
        return {key: value.to(self.accelerator.device) for key, value in made.items()}

    def _padded_prompts(self, batch: Mapping[str, torch.Tensor], prefix: str, pad: int) -> dict[str, torch.Tensor]:
        ids, mask = padded_left(prompts_of(batch, prefix), pad)
        device = self.teacher_model.device if prefix else self.accelerator.device
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _accepting_any(compute_loss: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a `compute_loss(self, model, inputs)` so that Trainer can call it; one with more arguments stays.

    Such a loss is the mean over a batch, so it is divided by the batches of an optimizer step here.
    """
    accepted = inspect.signature(compute_loss).parameters
    if "num_items_in_batch" in accepted or any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        return compute_loss

    def wrapped(
        self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = compute_loss(self, model, inputs)
        if num_items_in_batch is not None and self.model.training:
            loss = loss / self.current_gradient_accumulation_steps
        return (loss, None) if return_outputs else loss

    wrapped.__doc__ = compute_loss.__doc__
    return wrapped
