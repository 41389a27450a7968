"""A teacher that is a local model: any precision, int4 or int8, any device map; loaded when first needed.

It is never in the optimizer, in a checkpoint or in the student's parameters, writes and scores in evaluation mode
and without gradients. A model that is the caller's own gets back the modes it came with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from ...config.devices import on_device
from ...errors import TeacherError
from ...losses.lm_head import LOGITS
from ...losses.signals import DenseSignal
from ...models.architectures import check_causal, vocabulary_rows
from ...models.batch_layout import BatchLayout, Places, Side, layout_of
from ...models.completion_forward import FORWARD_BEFORE, OWN_LOGITS, add_completion_forward, completion_arguments
from ...models.generation import (
    Completion,
    GenerationSettings,
    configured,
    continuations,
    cut_at_stop,
    drawing,
    evaluating,
    length_limit,
    padded_left,
)
from ...models.lm_head import lm_head_of
from ...models.loading import ModelSource
from ...models.logits_check import attempt, check_logits
from ...models.padding_free import keeps_apart
from ...prompts.chat_template import ChatTemplate
from ..completions.stop_strings import cut_at_string, stopping
from . import fingerprint
from .forward_batches import MOST, Pass, flattened, plan
from .prefix_cache import Prefix

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class LocalTeacher:
    """A causal language model read from a folder or the Hub, or one that is already loaded.

    Args:
        name: What it is called in messages and in the model card.
        config: The model's configuration, enough to refuse a model that cannot teach.
        tokenizer: Its tokenizer.
        load: Returns the model; called once, when a completion or a score is first asked for.
        generation_config: The model's, for the tokens it stops at.
        content: Returns what tells its weights from others'; None for a model that is the caller's own: its weights
            are looked at, and it is neither frozen nor left in another mode or with another forward.
        source: Where the same weights can be loaded from by another process; None for those in memory alone.

    Raises:
        TeacherError: The model is no causal language model.
    """

    def __init__(
        self,
        name: str,
        *,
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        load: Callable[[], PreTrainedModel],
        generation_config: GenerationConfig | None = None,
        content: Callable[[], Any] | None = None,
        source: ModelSource | None = None,
    ) -> None:
        check_causal(name, config, role="teacher_model")
        self.name = name
        self.config = config
        self.tokenizer = tokenizer
        self.source = source
        self.vocabulary: int | None = None
        self._load = load
        self._generation_config = generation_config
        self._content = content
        self._scoring: torch.nn.Module | None = None
        self._wrapped: dict[str, Any] = {}
        self._sharded = False
        self._checked = False
        self._flattens: bool | None = None
        self.prefix = Prefix(config)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model; frozen and in evaluation mode unless it is the caller's own."""
        model = self._load()
        if not self.lent:
            model.requires_grad_(False)
            model.eval()
        return model

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return "model" in self.__dict__

    @property
    def lent(self) -> bool:
        """Whether the model is the caller's own."""
        return self._content is None

    def restrict_vocabulary(self, vocabulary: int) -> None:
        """Restrict what is written and scored to the rows [0, vocabulary) that the student has too."""
        self.vocabulary = vocabulary

    @property
    def vocabulary_rows(self) -> int:
        """Rows of the LM head."""
        return vocabulary_rows(self.config)

    @property
    def suppressed(self) -> list[int]:
        """The ids it must not write: rows that only pad the embedding, or that the student does not have."""
        rows = self.vocabulary_rows
        return list(range(min(len(self.tokenizer), rows if self.vocabulary is None else self.vocabulary), rows))

    @property
    def length_limit(self) -> int | None:
        """`max_position_embeddings`, where the configuration has one."""
        return length_limit(self.config)

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end what it writes: its generation configuration's, its tokenizer's, its chat's turn end."""
        config = self.model.generation_config if self.loaded else self._generation_config
        return ChatTemplate(self.tokenizer).stop_ids(config)

    @property
    def sharded(self) -> bool:
        """Whether ranks hold a part of its weights each."""
        return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in self.model.parameters())

    def identity(self) -> dict[str, Any]:
        """What its completions depend on: weights, precision, configuration, stop tokens and the rows it may write.

        Names and paths are no part of it, so that a folder that was moved is found again.
        """
        config = {k: v for k, v in self.config.to_diff_dict().items() if k != "transformers_version"}
        return {
            "weights": self.weights(),
            "config": json.dumps(config, sort_keys=True, default=str),
            "stops": sorted(self.stop_ids),
            "rows": self.vocabulary_rows - len(self.suppressed),
        }

    def weights(self) -> Any:
        """Return what tells its weights from others'."""
        return fingerprint.of_model(self.model) if self._content is None else self._content()

    @property
    def _through(self) -> Any:
        """PEFT's wrapper if a learned prompt of this teacher's lives there, which scores and writes then; else None."""
        return None

    @property
    def writes_through_peft(self) -> bool:
        """Whether it writes through a learned prompt in PEFT's wrapper."""
        return self._through is not None

    def acting(self) -> AbstractContextManager[None]:
        """Return a context in which the model's weights are the teacher's; a subclass may share them."""
        return nullcontext()

    def prepare(self, wrap: Callable[[Any], Any]) -> None:
        """Let accelerate or DeepSpeed wrap the model for scoring; generation keeps the bare one."""
        self._wrapped, self._checked = {}, False  # another run's wrapping may have another precision
        self.prefix.forget()
        with self._teaching():
            self._scoring = wrap(self.model)
        self._sharded = self._scoring is not self.model or self.sharded
        if self._sharded:
            self.prefix.off = "its weights are sharded, and ranks need not find the same prefix"

    def expect(self, prompts: Sequence[Sequence[int]]) -> None:
        """Take what a run's prompts (token ids) begin with as the prefix that is read once; see `Prefix.expect`."""
        self.prefix.expect(prompts)

    @contextmanager
    def _teaching(self) -> Iterator[None]:
        """Have the model's forward end at the completion, as accelerate has wrapped it; then give it its own back."""
        attributes = self.model.__dict__
        own = {name: attributes.pop(name) for name in FORWARD if name in attributes}
        attributes.update(self._wrapped or own)
        add_completion_forward(self.model)
        try:
            yield
        finally:
            self._wrapped = {name: attributes.pop(name) for name in FORWARD if name in attributes}
            attributes.update(own)

    @property
    def _scorer(self) -> Any:
        """The model as it is called to score."""
        if self._through is not None:
            return self._through
        return self.model if self._scoring is None else self._scoring

    def precision(self) -> AbstractContextManager[Any]:
        """Return a context in which the model computes in its own precision.

        A trainer's autocast would cast the weights of a frozen model anew for every batch.
        """
        return torch.autocast(self.model.device.type, enabled=False)

    def check_logits(self) -> str:
        """Find out once whether the LM head gives the model's logits; return a line if it does not, see `check_logits`.

        All ranks call it together if weights are sharded, under the autocast that scoring is under.
        """
        if self._checked:
            return ""
        self._checked = True
        model = self._scorer
        with self.precision(), self.acting(), evaluating(model), self._teaching():
            line = check_logits(self.model, model)
        return line and f"Teacher {self.name!r}: {line}"

    @torch.no_grad()
    def score(self, batch: Mapping[str, Any]) -> DenseSignal:
        """Return the hidden states [N, H_t] that predict the batch's completion tokens, and the head."""
        layout = layout_of(batch)
        side = layout.teacher
        assert side is not None
        device = self.model.device
        ids, mask, labels = (batch[f"teacher_{name}"].to(device) for name in ("input_ids", "attention_mask", "labels"))
        self.check_logits()
        with self.precision(), self.acting(), evaluating(self._scorer), self._teaching():
            # the state that predicts the first completion token has to be computed, not taken from the cache
            start = 0 if self._through else self.prefix.of(side.ids, side.places.first - 1, self._fill)
            states = []
            for rows, flat in self._passes(layout, side.lengths.tolist(), start):
                if flat:
                    read = flattened(self.model, ids, labels, side, rows)
                else:
                    read = self._padded(ids, mask, labels, side, rows, start)
                states.append(self._scorer(**read).hidden)
            head = LOGITS if hasattr(self.model, OWN_LOGITS) else lm_head_of(self.model)
        return DenseSignal(states[0] if len(states) == 1 else torch.cat(states), head, self.vocabulary)

    def _passes(self, layout: BatchLayout, lengths: list[int], start: int) -> list[Pass]:
        """Return in which passes a batch is read; one where the student's rows are padded, see `passes`.

        Padded rows stay so in attention that has a mask, where a row's states to the bit do not depend on its place.
        """
        masked = "flash" not in (self.model.config._attn_implementation or "")
        flattens = (layout.flat or not masked) and self._through is None
        if flattens and self._flattens is None:
            self._flattens = attempt(lambda: keeps_apart(self.model, self._scorer)) is True
        # ranks that share a teacher's weights have to read as often
        most = max(MOST, layout.student_tokens) if layout.flat and not self._sharded else None
        width = self.config.get_text_config().hidden_size
        how: Any = {"flattens": flattens and self._flattens, "hidden_size": width, "masked": masked}
        return plan(lengths, start=start, most=most, **how)

    def _padded(self, ids: Any, mask: Any, labels: Any, side: Side, rows: slice, start: int) -> dict[str, Any]:
        """Return what the model is given to read padded rows whose first `start` tokens the prefix has."""
        width = ids.shape[1] if len(side.lengths[rows]) == len(ids) else int(side.lengths[rows].max())
        places = side.places.of_rows(rows, width).behind(start)
        past = {"past_key_values": self.prefix.for_scoring()} if start else {}
        some = {"input_ids": ids[rows, start:width], "attention_mask": mask[rows, :width], **past}
        return {**some, **completion_arguments(self.model, labels[rows, start:width], places)}

    def _fill(self, ids: np.ndarray, cache: Any) -> None:
        """Run the model over a prefix [1, P] into a cache; no logits are made."""
        model: Any = self.model
        prefix = on_device(ids, model.device)
        nothing = completion_arguments(model, torch.full_like(prefix, -100), Places.nowhere(ids.shape[1]))
        model(input_ids=prefix, attention_mask=torch.ones_like(prefix), **nothing, past_key_values=cache)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Write one completion per prompt, as one batch padded on the left.

        The same prompts and settings give the same completions: drawing has a generator of its own, seeded by
        the settings and the prompts, and leaves the program's random state alone. Nothing but the settings and
        `stop_ids` decides what is written: penalties and limits of the model's own generation configuration do not.
        A completion that a stop string ended is finished, by the tokenizer's end-of-sequence token.

        Raises:
            TeacherError: Its weights are sharded, and ranks need not write equally many tokens.
        """
        if self.sharded:
            raise TeacherError(
                f"teacher {self.name!r} is sharded over ranks and cannot write completions; have them written before "
                "(`aitraining teach`), or give rows that have one."
            )
        config = self.generation(max(len(p) for p in prompts), settings)
        with self.acting(), drawing(settings.seed, prompts, self.model.device):
            written = self._written(prompts, config, settings.stop)
        return [self.completion(row, settings.stop) for row in written]

    def completion(self, ids: Sequence[int], stop: Sequence[str] = ()) -> Completion:
        """Return what was written as a completion: up to the first stop token or stop string.

        Args:
            ids: Token ids, which may go on behind its end.
            stop: Stop strings.
        """
        stops, end = self.stop_ids, self.tokenizer.eos_token_id
        return cut_at_string(cut_at_stop(ids, stops), stop, self.tokenizer, end=stops[0] if end is None else end)

    @contextmanager
    def writing(self, config: Any) -> Iterator[Any]:
        """Have the model write as the teacher, by a generation configuration alone, and yield it."""
        with self.acting(), evaluating(self.model), configured(self.model, config):
            yield self.model

    def room(self, width: int, settings: GenerationSettings) -> int:
        """Return how many tokens may be written behind a prompt of `width` tokens."""
        limit = self.length_limit
        return max(1, settings.max_new_tokens if limit is None else min(settings.max_new_tokens, limit - width))

    def _written(self, prompts: Sequence[Sequence[int]], config: Any, stop: Sequence[str]) -> list[list[int]]:
        """Return the ids written behind each prompt, padding included."""
        if self._through is not None:
            with evaluating(self._through):
                how = lambda width: stopping(self.tokenizer, stop, start=width)  # noqa: E731
                return continuations(self._through, prompts, config, more=how)
        ids, mask, past = self._prompts(prompts, config.pad_token_id)
        width = ids.shape[1]
        ends = stopping(self.tokenizer, stop, start=width)
        with self.writing(config) as model:
            written = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **past, **ends)
        return list(written[:, width:].tolist())

    def _prompts(self, prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Return prompts' ids [B, S] and mask for generation, padded on the left, and the cache of their prefix."""
        device = self.model.device
        least = min(len(p) for p in prompts)
        heads = np.array([p[:least] for p in prompts], np.int64)
        with self.acting(), evaluating(self.model), self._teaching():
            start = self.prefix.of(heads, least - 1, self._fill)
        ids, mask = padded_left(prompts, pad)
        pads = [ids.shape[1] - len(p) for p in prompts]
        past = {"past_key_values": self.prefix.for_writing(pads)} if start else {}
        return ids.to(device), mask.to(device), past

    def generation(self, width: int, settings: GenerationSettings) -> GenerationConfig:
        """Return the generation configuration for prompts of `width` tokens."""
        from transformers import GenerationConfig

        draw = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
        stops, pad = self.stop_ids, self.tokenizer.pad_token_id
        return GenerationConfig(
            max_new_tokens=self.room(width, settings),
            do_sample=settings.do_sample,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=stops,
            pad_token_id=stops[0] if pad is None else pad,
            suppress_tokens=self.suppressed or None,
            **(draw if settings.do_sample else {}),
        )


# what a taught forward and accelerate's wrapping of it leave on a model
FORWARD = (FORWARD_BEFORE, OWN_LOGITS, "forward", "_original_forward", "_is_accelerate_prepared")


def check_apart(*, student: Any, teacher: Any) -> None:
    """Refuse a model as its own teacher: training would move what it learns from.

    Args:
        student: A loaded model; a name is loaded anew and passes.
        teacher: A loaded model or a teacher that holds one; anything else passes.

    Raises:
        TeacherError: Both have a parameter in common.
    """
    theirs = teacher.model if type(teacher) is LocalTeacher and teacher.lent else teacher
    if not isinstance(student, torch.nn.Module) or not isinstance(theirs, torch.nn.Module):
        return
    if {id(p) for p in student.parameters()} & {id(p) for p in theirs.parameters()}:
        raise TeacherError(
            "teacher_model is the model that is trained, so it would move with it; give a copy "
            "(copy.deepcopy(model)) or the folder it was saved to."
        )
