"""A local model that generates completions: the common part of causal teachers and encoder-decoders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...errors import TeacherError
from ...models.finite_logits import FiniteLogits
from ...models.generation import Completion, GenerationSettings, cut_at_stop
from ...prompts.chat_template import ChatTemplate
from ..completions.stop_strings import cut_at_string
from . import fingerprint
from .weights import WeightSource

FLOAT16 = "float16 holds no number above 65,504: "


class LocalModel:
    """A model read from a folder or the Hub, or one that is in memory; its weights are read when they are needed.

    Args:
        name: What it is called in messages and in the model card.
        weights: Where its weights come from.
        config: The model's configuration, enough to refuse a model that cannot teach.
        tokenizer: Its tokenizer.
        generation_config: The model's, for the tokens it starts and stops with.

    Raises:
        TeacherError: A model of another architecture.
    """

    def __init__(
        self,
        name: str,
        *,
        weights: WeightSource,
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        self.check_architecture(name, config)
        self.name = name
        self.weights = weights
        self.config = config
        self.tokenizer = tokenizer
        self._generation_config = generation_config

    @staticmethod
    def check_architecture(name: str, config: PretrainedConfig) -> None:
        """Refuse a model of another architecture."""
        raise NotImplementedError

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, without PEFT's wrapper."""
        return self.weights.model()

    @property
    def loaded(self) -> bool:
        return "model" in self.__dict__

    def unload(self) -> None:
        """Give the model's memory back; it is loaded again when it is needed."""
        self.__dict__.pop("model", None)

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end what it writes: its generation configuration's, its tokenizer's, its chat's turn end."""
        config = self.model.generation_config if self.loaded else self._generation_config
        return ChatTemplate(self.tokenizer).stop_ids(config)

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Generate one completion per prompt (token ids), as one batch, in the given order."""
        raise NotImplementedError

    def check_written(
        self, logits: FiniteLogits, prompts: Sequence[Sequence[int]], completions: Sequence[Completion]
    ) -> None:
        """Raise TeacherError if any completion has a token whose logits are NaN or infinite."""
        broken = logits.broken([len(completion.ids) for completion in completions])
        if broken:
            prompt = str(self.tokenizer.decode(list(prompts[broken[0]])))
            raise TeacherError(
                f"the logits of {self.name!r} are NaN or infinite on {len(broken)} of {len(prompts)} prompts, such as "
                f"{prompt!r:.100}; {self.numerical_remedy}."
            )

    @property
    def numerical_remedy(self) -> str:
        """What a user can do if its numbers are NaN or infinite, for an error."""
        source = self.weights.source
        role = "teacher_model" if source is None else source.role
        setting = "--teacher-dtype" if role == "teacher_model" else "--dtype"
        if self.loaded and self.model.dtype == torch.float16:
            return f"{FLOAT16}load it with {setting} bfloat16 or float32"
        return f"give another model, or load it with {setting} float32"

    @property
    def suppressed(self) -> list[int]:
        """The ids it must not write."""
        raise NotImplementedError

    def identity(self) -> dict[str, object]:
        """What its completions depend on, apart from prompt and settings: weights, configuration and stop tokens.

        Names and paths are not part of it, so that a moved folder keeps its completions.
        """
        config = {k: v for k, v in self.config.to_diff_dict().items() if k != "transformers_version"}
        return {
            "weights": self.fingerprint(),
            "config": json.dumps(config, sort_keys=True, default=str),
            "stops": sorted(self.stop_ids),
        }

    def fingerprint(self) -> list[object] | str:
        """Return the fingerprint of its weights: of its files, or of the tensors in memory."""
        content = self.weights.content()
        if content is not None:
            return content
        with self.weights.active():
            return fingerprint.of_model(
                self.weights.prompt_wrapper or self.model, adapters=not self.weights.adapter_off
            )

    def completion(self, ids: Sequence[int], stop: Sequence[str] = ()) -> Completion:
        """Return written ids as a completion: up to the first stop token or stop string."""
        stops, end = self.stop_ids, self.tokenizer.eos_token_id
        return cut_at_string(cut_at_stop(ids, stops), stop, self.tokenizer, end=stops[0] if end is None else end)

    def make_generation_config(
        self, settings: GenerationSettings, new_tokens: int, **first: int | None
    ) -> GenerationConfig:
        """Return a configuration that writes at most `new_tokens` tokens.

        Of the model's own configuration only the first tokens, `first`, and the stop tokens are used.
        """
        from transformers import GenerationConfig

        drawn = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0} if settings.do_sample else {}
        stops, pad = self.stop_ids, self.tokenizer.pad_token_id
        return GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=settings.do_sample,
            eos_token_id=stops,
            pad_token_id=stops[0] if pad is None else pad,
            suppress_tokens=self.suppressed or None,
            **first,
            **drawn,
        )
