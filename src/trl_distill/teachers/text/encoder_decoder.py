"""An encoder-decoder that writes completions: T5, BART and their kin. It scores nothing: the student has no encoder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from ...models.architectures import check_encoder_decoder
from ...models.generation import Completion, GenerationSettings, configured, cut_at_stop, drawing, evaluating
from ...prompts.chat_template import ChatTemplate
from ..completions.stop_strings import cut_at_string, stopping
from ..local import fingerprint

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class EncoderDecoder:
    """An encoder-decoder read from a folder or the Hub, or one that is already loaded.

    Args:
        name: What it is called in messages.
        config: The model's configuration, enough to refuse one that does not read text.
        tokenizer: Its tokenizer.
        load: Returns the model; called once, when a completion is first asked for.
        generation_config: The model's, for the tokens it starts and stops with.
        content: Returns what tells its weights from others'; None for a model that is the caller's own: its weights
            are looked at, and it is not frozen.

    Raises:
        TeacherError: The model is no encoder-decoder, or one that does not read text.
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
    ) -> None:
        check_encoder_decoder(name, config, role="teacher_model")
        self.name = name
        self.config = config
        self.tokenizer = tokenizer
        self.generation_config = generation_config
        self._load = load
        self._content = content

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model; frozen and in evaluation mode unless it is the caller's own."""
        model = self._load()
        if self._content is not None:
            model.requires_grad_(False)
            model.eval()
        return model

    @property
    def prompt_limit(self) -> int | None:
        """Tokens that its encoder reads at most; None where its positions are relative, as T5's are."""
        return self._positions("encoder")

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end what it writes."""
        return ChatTemplate(self.tokenizer).stop_ids(self.generation_config)

    @property
    def suppressed(self) -> list[int]:
        """The ids it must not write: padding, which opens a decoder and is no text, and rows of no token."""
        rows = int(self.config.get_text_config(decoder=True).vocab_size)
        pad = {self.tokenizer.pad_token_id} - {None, *self.stop_ids}
        return [*pad, *range(len(self.tokenizer), rows)]

    def identity(self) -> dict[str, Any]:
        """What its completions depend on besides prompt and settings; see `LocalTeacher.identity`."""
        config = {k: v for k, v in self.config.to_diff_dict().items() if k != "transformers_version"}
        return {
            "weights": fingerprint.of_model(self.model) if self._content is None else self._content(),
            "config": json.dumps(config, sort_keys=True, default=str),
            "opening": self._opening(),
            "stops": sorted(self.stop_ids),
            "rows": len(self.tokenizer),
        }

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Write one completion per prompt (token ids), as one batch padded on the right.

        The same prompts and settings give the same completions, and the program's random state is left alone, as
        with `LocalTeacher.generate`. Of the model's own generation configuration nothing counts but the tokens that
        its decoder opens with.
        """
        config = self._writing(settings)
        width = max(len(p) for p in prompts)
        pad = config.pad_token_id
        device = self.model.device
        ids = torch.tensor([[*p, *[pad] * (width - len(p))] for p in prompts], device=device)
        mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in prompts], device=device)
        with evaluating(self.model), configured(self.model, config), drawing(settings.seed, prompts, device):
            model: Any = self.model
            ends = stopping(self.tokenizer, settings.stop, start=1)
            written = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **ends)
        stops, end = self.stop_ids, self.tokenizer.eos_token_id
        end = stops[0] if end is None else end
        rows = written[:, 1:].tolist()  # the first is the decoder's opening
        return [cut_at_string(cut_at_stop(row, stops), settings.stop, self.tokenizer, end=end) for row in rows]

    def _writing(self, settings: GenerationSettings) -> GenerationConfig:
        """Return the generation configuration."""
        from transformers import GenerationConfig

        room = self._positions("decoder")
        most = settings.max_new_tokens if room is None else min(settings.max_new_tokens, room - 1)
        stops, pad = self.stop_ids, self.tokenizer.pad_token_id
        draw = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=max(1, most),
            do_sample=settings.do_sample,
            eos_token_id=stops,
            pad_token_id=stops[0] if pad is None else pad,
            suppress_tokens=self.suppressed or None,
            **self._opening(),
            **(draw if settings.do_sample else {}),
        )

    def _opening(self) -> dict[str, int]:
        """Return the tokens that its decoder opens with: the first, and the second where the model fixes it."""
        places = (self.generation_config, self.config.get_text_config(decoder=True), self.config)
        found = (getattr(place, "decoder_start_token_id", None) for place in places)
        pad = self.tokenizer.pad_token_id  # T5's, for a configuration that does not say
        opening = {"decoder_start_token_id": next((i for i in found if i is not None), pad)}
        forced = getattr(self.generation_config, "forced_bos_token_id", None)
        return opening if forced is None else {**opening, "forced_bos_token_id": forced}

    def _positions(self, side: str) -> int | None:
        """Return how many positions one side has, where the configuration says so."""
        config = self.config.get_text_config(**{side: True})
        found = (getattr(config, name, None) for name in (f"max_{side}_position_embeddings", "max_position_embeddings"))
        return next((int(number) for number in found if number), None)
