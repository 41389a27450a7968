"""A teacher that is a local model: any precision, int4 or int8, any device map; loaded when first needed.

It is never in the optimizer, in a checkpoint or in the student's parameters, and generates and scores in evaluation '
'mode and without gradients. The training modes of a caller's own model are restored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, PretrainedConfig, PreTrainedModel

from ...config.devices import on_device
from ...errors import TeacherError
from ...losses.lm_head import LOGITS
from ...losses.signals import DenseSignal, TeacherSignal
from ...models.architectures import check_causal, vocabulary_rows
from ...models.batch_layout import BatchLayout, Places, Side, layout_of
from ...models.completion_forward import OWN_LOGITS, add_completion_forward, completion_arguments, completion_view
from ...models.finite_logits import FiniteLogits
from ...models.generation import (
    Completion,
    GenerationSettings,
    configured,
    continuations,
    evaluating,
    length_limit,
    padded_left,
    seeded_sampling,
)
from ...models.loading import ModelSource
from ...models.logits_check import check_logits, value_or_none
from ...models.padding_free import keeps_rows_apart
from ..base import Capabilities
from ..completions.stop_strings import stopping
from .forward_batches import MOST, Pass, flattened, plan
from .model import LocalModel
from .prefix_cache import PrefixCache
from .weights import CallersModel, is_sharded


class LocalTeacher(LocalModel):
    """A causal language model read from a folder or the Hub, one that is in memory, or the student itself.

    Arguments are those of `LocalModel`.

    Attributes:
        vocabulary: Rows that are written and scored; None is all.
        prefix: The prompts' common prefix and its cache.
    """

    vocabulary: int | None = None
    _scoring: torch.nn.Module | None = None
    _sharded = False
    _checked = False
    _flattens: bool | None = None

    @staticmethod
    def check_architecture(name: str, config: PretrainedConfig) -> None:
        check_causal(name, config, role="teacher_model")

    @cached_property
    def prefix(self) -> PrefixCache:
        """See above."""
        return PrefixCache(self.config)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, whose forward can end at the completion; a caller's own model keeps its forward."""
        model = self.weights.model()
        if self.weights.prompt_wrapper is None:
            return completion_view(model)
        add_completion_forward(model)  # PEFT's wrapper calls this one
        return model

    def unload(self) -> None:
        super().unload()
        self.prefix.forget()

    def attach_student(self, student: Any, *, fresh: bool) -> None:
        """Attach the student whose weights it uses, see `WeightSource.attach_student`."""
        if self.weights.attach_student(student, fresh=fresh):
            self.unload()

    @property
    def capabilities(self) -> Capabilities:
        """All, except that a student's own weights cannot be averaged or switched if they are sharded."""
        own = not self.weights.of_student
        return Capabilities(of_student=not own, moves=self.weights.moves, shardable=own)

    @property
    def source(self) -> ModelSource | None:
        return self.weights.source

    def restrict_vocabulary(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    @property
    def vocabulary_rows(self) -> int:
        return vocabulary_rows(self.config)

    @property
    def suppressed(self) -> list[int]:
        """The ids it must not write: rows that only pad the embedding, or that the student does not have."""
        rows = self.vocabulary_rows
        return list(range(min(len(self.tokenizer), rows if self.vocabulary is None else self.vocabulary), rows))

    @property
    def length_limit(self) -> int | None:
        return length_limit(self.config)

    @property
    def sharded(self) -> bool:
        return is_sharded(self.model)

    def identity(self) -> dict[str, object]:
        """What its completions depend on, including the rows it may generate; see `LocalModel.identity`."""
        return {**super().identity(), "rows": self.vocabulary_rows - len(self.suppressed)}

    @property
    def writes_through_peft(self) -> bool:
        """Whether it generates through a learned prompt in PEFT's wrapper."""
        return self.weights.prompt_wrapper is not None

    def prepare(self, wrap: Callable[[PreTrainedModel], torch.nn.Module]) -> None:
        """Let accelerate or DeepSpeed wrap a model of its own for scoring; generation keeps the bare one.

        A student is wrapped by its trainer.
        """
        self._checked = False
        self.prefix.forget()
        if self.weights.shares_student or self.weights.prompt_wrapper is not None:
            return
        vars(self.model).pop(OWN_LOGITS, None)  # another run's wrapping may have another precision
        self._scoring = wrap(self.model)
        self._sharded = self._scoring is not self.model or self.sharded
        if self._sharded:
            self.prefix.off = "its weights are sharded, and ranks need not find the same prefix"

    def expect_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        """Say which prompts (token ids) are to come; see `PrefixCache.expect_prompts`."""
        self.prefix.expect_prompts(prompts)

    @property
    def _scorer(self) -> torch.nn.Module:
        """The model as it is called to score."""
        wrapped = self._scoring if self.weights.prompt_wrapper is None else self.weights.prompt_wrapper
        return self.model if wrapped is None else wrapped

    def precision(self) -> AbstractContextManager[object]:
        """Return a context in which a model of its own computes in its own precision.

        A trainer's autocast would cast the weights of a frozen model anew for every batch. A student's weights are read
        as the student reads them.
        """
        if self.weights.of_student:
            return nullcontext()
        return torch.autocast(self.model.device.type, enabled=False)

    def check_logits(self) -> str:
        """Check once whether the LM head reproduces the model's logits; return a line if not, see `check_logits`.

        All ranks call it together if weights are sharded, under the autocast that scoring is under.
        """
        if self._checked:
            return ""
        self._checked = True
        scorer = self._scorer
        with self.precision(), self.weights.active(), evaluating(scorer):
            line = check_logits(self.model, scorer)
        return line and f"Teacher {self.name!r}: {line}"

    @torch.no_grad()
    def score(self, batch: Mapping[str, Any]) -> TeacherSignal:
        """Return the hidden states [N, H_t] that predict the batch's completion tokens, and the head."""
        layout = layout_of(batch)
        side = layout.teacher
        assert side is not None
        device = self.model.device
        ids, mask, labels = (batch[f"teacher_{name}"].to(device) for name in ("input_ids", "attention_mask", "labels"))
        self.check_logits()
        scorer = self._scorer
        with self.precision(), self.weights.active(), evaluating(scorer):
            # the state that predicts the first completion token has to be computed, not taken from the cache
            start = (
                0
                if self.writes_through_peft
                else self.prefix.cached_length(side.ids, side.places.first - 1, self._fill)
            )
            states = []
            for rows, flat in self._passes(layout, side.lengths.tolist(), start):
                if flat:
                    read = flattened(self.model, ids, labels, side, rows)
                else:
                    read = self._padded(ids, mask, labels, side, rows, start)
                states.append(scorer(**read).hidden)
            head = LOGITS if hasattr(self.model, OWN_LOGITS) else self.weights.head_of(self.model)
        return DenseSignal(states[0] if len(states) == 1 else torch.cat(states), head, self.vocabulary)

    def _passes(self, layout: BatchLayout, lengths: list[int], start: int) -> list[Pass]:
        """Return the passes that read a batch; one if the student's rows are padded, see `plan`.

        Padded rows stay so in attention that has a mask, where a row's states to the bit do not depend on its place.
        """
        masked = "flash" not in (self.model.config._attn_implementation or "")
        flattens = (layout.flat or not masked) and not self.writes_through_peft
        if flattens and self._flattens is None:
            self._flattens = value_or_none(lambda: keeps_rows_apart(self.model, self._scorer)) is True
        return plan(
            lengths,
            start=start,
            flattens=bool(flattens and self._flattens),
            # ranks that share a teacher's weights have to read as often
            most=max(MOST, layout.student_tokens) if layout.flat and not self._sharded else None,
            hidden_size=self.model.config.get_text_config().hidden_size,
            masked=masked,
        )

    def _padded(
        self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, side: Side, rows: slice, start: int
    ) -> dict[str, Any]:
        """Return the model's inputs for padded rows whose first `start` tokens the prefix has."""
        width = ids.shape[1] if len(side.lengths[rows]) == len(ids) else int(side.lengths[rows].max())
        places = side.places.of_rows(rows, width).behind(start)
        past = {"past_key_values": self.prefix.for_scoring()} if start else {}
        some = {"input_ids": ids[rows, start:width], "attention_mask": mask[rows, :width], **past}
        return {**some, **completion_arguments(self.model, labels[rows, start:width], places)}

    def _fill(self, ids: np.ndarray, cache: DynamicCache) -> None:
        """Run the model over a prefix [1, P] into a cache; no logits are made."""
        prefix = on_device(ids, self.model.device)
        nothing = completion_arguments(self.model, torch.full_like(prefix, -100), Places.nowhere(ids.shape[1]))
        self.model(input_ids=prefix, attention_mask=torch.ones_like(prefix), **nothing, past_key_values=cache)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Write one completion per prompt, as one batch padded on the left.

        The same prompts and settings give the same completions: sampling has a generator of its own, seeded by
        the settings and the prompts, and leaves the program's random state alone. Nothing but the settings and
        `stop_ids` decides what is written: penalties and limits of the model's own generation configuration do not.
        A completion that a stop string ended is finished, by the tokenizer's end-of-sequence token.

        Raises:
            TeacherError: Its weights are sharded, and ranks need not write equally many tokens; or its logits are NaN
                or infinite.
        """
        if self.sharded:
            raise TeacherError(
                f"teacher {self.name!r} is sharded over ranks and cannot write completions; have them written before "
                "(`aitraining teach`), or give rows that have one."
            )
        config, logits = self.generation_config(max(len(p) for p in prompts), settings), FiniteLogits()
        with self.weights.active(), seeded_sampling(settings.seed, prompts, self.model.device):
            written = self._written(prompts, config, settings.stop, logits)
        completions = [self.completion(row, settings.stop) for row in written]
        self.check_written(logits, prompts, completions)
        return completions

    @contextmanager
    def writing(self, config: GenerationConfig) -> Iterator[Any]:
        """Yield the model, set up to generate as the teacher with the given generation configuration."""
        with self.weights.active(), evaluating(self.model), configured(self.model, config):
            yield self.model

    def new_tokens(self, prompt_length: int, settings: GenerationSettings) -> int:
        """Return how many tokens may be written behind a prompt of `prompt_length` tokens; at least 1."""
        limit = self.length_limit
        return max(1, settings.max_new_tokens if limit is None else min(settings.max_new_tokens, limit - prompt_length))

    def generation_config(self, prompt_length: int, settings: GenerationSettings) -> GenerationConfig:
        """Return the generation configuration for prompts of `prompt_length` tokens."""
        new_tokens = self.new_tokens(prompt_length, settings)
        return self.make_generation_config(settings, new_tokens, bos_token_id=self.tokenizer.bos_token_id)

    def _written(
        self, prompts: Sequence[Sequence[int]], config: GenerationConfig, stop: Sequence[str], logits: FiniteLogits
    ) -> list[list[int]]:
        wrapper = self.weights.prompt_wrapper
        if wrapper is not None:
            with evaluating(wrapper):
                how = lambda width: stopping(self.tokenizer, stop, start=width)  # noqa: E731
                return continuations(wrapper, prompts, config, more=how)
        ids, mask, past = self._prompts(prompts, config.pad_token_id)
        width = ids.shape[1]
        given = {**past, **stopping(self.tokenizer, stop, start=width), **logits.argument}
        with self.writing(config) as model:
            written = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **given)
        return list(written[:, width:].tolist())

    def _prompts(
        self, prompts: Sequence[Sequence[int]], pad: int
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, DynamicCache]]:
        """Return prompts' ids [B, S] and mask for generation, padded on the left, and the cache of their prefix."""
        device = self.model.device
        least = min(len(p) for p in prompts)
        heads = np.array([p[:least] for p in prompts], np.int64)
        with self.weights.active(), evaluating(self.model):
            start = self.prefix.cached_length(heads, least - 1, self._fill)
        ids, mask = padded_left(prompts, pad)
        pads = [ids.shape[1] - len(p) for p in prompts]
        past = {"past_key_values": self.prefix.for_writing(pads)} if start else {}
        return ids.to(device), mask.to(device), past


def check_apart(*, student: object, teacher: object) -> None:
    """Refuse a loaded model as its own teacher: training would change the teacher.

    Raises:
        TeacherError: Student and teacher (a model, or a `LocalTeacher` of the caller's) have a parameter in common.
    """
    if isinstance(teacher, LocalTeacher) and isinstance(teacher.weights, CallersModel):
        teacher = teacher.model
    if not isinstance(student, torch.nn.Module) or not isinstance(teacher, torch.nn.Module):
        return
    if {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}:
        raise TeacherError(
            "teacher_model is the model that is trained, so it would change with it; give a copy "
            "(copy.deepcopy(model)) or the folder it was saved to."
        )
