"""An encoder-decoder that generates completions, such as T5 or BART. It cannot score: the student has no encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PretrainedConfig

from ...models.architectures import check_encoder_decoder
from ...models.finite_logits import FiniteLogits
from ...models.generation import Completion, GenerationSettings, configured, evaluating, seeded_sampling
from ...prompts.chat_template import ChatTemplate
from ...prompts.rendering import Prompt
from ..completions.stop_strings import stopping
from ..local.model import LocalModel
from .local_text import LocalTextTeacher


class EncoderDecoder(LocalModel):
    """An encoder-decoder read from a folder or the Hub, or one that is already loaded; arguments as of `LocalModel`."""

    @staticmethod
    def check_architecture(name: str, config: PretrainedConfig) -> None:
        check_encoder_decoder(name, config, role="teacher_model")

    @property
    def prompt_limit(self) -> int | None:
        """Tokens that its encoder reads at most; None if its positions are relative, as T5's are."""
        return self._positions("encoder")

    @property
    def suppressed(self) -> list[int]:
        """The ids it must not write: padding, which opens a decoder and is no text, and rows of no token."""
        rows = int(self.config.get_text_config(decoder=True).vocab_size)
        pad = {self.tokenizer.pad_token_id} - {None, *self.stop_ids}
        return [*pad, *range(len(self.tokenizer), rows)]

    def identity(self) -> dict[str, object]:
        return {**super().identity(), "opening": self._opening(), "rows": len(self.tokenizer)}

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Write one completion per prompt (token ids), as one batch padded on the right.

        The same prompts and settings give the same completions, and the program's random state is left alone, as
        with `LocalTeacher.generate`. Of the model's own generation configuration nothing counts but the tokens that
        its decoder opens with.
        """
        positions, new_tokens = self._positions("decoder"), settings.max_new_tokens
        new_tokens = new_tokens if positions is None else max(1, min(new_tokens, positions - 1))
        config = self.make_generation_config(settings, new_tokens, **self._opening())
        width = max(len(p) for p in prompts)
        pad = config.pad_token_id
        device = self.model.device
        ids = torch.tensor([[*p, *[pad] * (width - len(p))] for p in prompts], device=device)
        mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in prompts], device=device)
        with evaluating(self.model), configured(self.model, config), seeded_sampling(settings.seed, prompts, device):
            logits = FiniteLogits()
            how = {**stopping(self.tokenizer, settings.stop, start=1), **logits.argument}
            model: Any = self.model
            written = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **how)
        rows = written[:, 1:].tolist()  # the first is the decoder's opening
        completions = [self.completion(row, settings.stop) for row in rows]
        self.check_written(logits, prompts, completions)
        return completions

    def _opening(self) -> dict[str, int]:
        """Return the tokens that its decoder opens with: the first, and the second if the model fixes it."""
        places = (self._generation_config, self.config.get_text_config(decoder=True), self.config)
        found = (getattr(place, "decoder_start_token_id", None) for place in places)
        pad = self.tokenizer.pad_token_id  # T5's, for a configuration that does not say
        opening = {"decoder_start_token_id": next((i for i in found if i is not None), pad)}
        forced = getattr(self._generation_config, "forced_bos_token_id", None)
        return opening if forced is None else {**opening, "forced_bos_token_id": forced}

    def _positions(self, side: str) -> int | None:
        config = self.config.get_text_config(**{side: True})
        found = (getattr(config, name, None) for name in (f"max_{side}_position_embeddings", "max_position_embeddings"))
        return next((int(number) for number in found if number), None)


class EncoderDecoderTeacher(LocalTextTeacher):
    """An encoder-decoder as a teacher that gives text; arguments as of `LocalTextTeacher`."""

    writer: EncoderDecoder

    def describe(self) -> str:
        return f"{self.name}, an encoder-decoder ({self.writer.config.model_type})"

    @property
    def prompt_limit(self) -> int | None:
        return self.writer.prompt_limit

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt; of a text with the token that ends it."""
        own = self.writer.tokenizer
        if isinstance(prompt, str):
            return list(own(prompt)["input_ids"])
        text = ChatTemplate(own).render(prompt, self.options, opening=True)
        return list(own(text, add_special_tokens=False)["input_ids"])

    def decode(self, prompt: list[int], ids: list[int]) -> str:
        return self.text_of(ids)
