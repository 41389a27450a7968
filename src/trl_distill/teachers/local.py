"""A teacher that is a local model: any precision, int4 or int8, any device map; loaded when first needed.

It is never in the optimizer, in a checkpoint or in the student's parameters, runs in evaluation mode and
without gradients.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from ..errors import TeacherError
from ..forward import TeacherTargets, add_completion_forward
from ..lm_head import LMHead
from .base import Completion, GenerationSettings
from .store import fingerprint_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class LocalTeacher:
    """A causal language model read from a folder or the Hub, or one that is already loaded.

    Args:
        name: What it is called in messages and in the model card.
        config: The model's configuration, enough to refuse a model that cannot teach.
        tokenizer: Its tokenizer.
        load: Returns the model; called once, when a completion or a score is first asked for.
        revision: Revision of a Hub model.

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
        revision: str | None = None,
    ) -> None:
        check_can_teach(name, config)
        self.name = name
        self.config = config
        self.tokenizer = tokenizer
        self.revision = revision
        self.vocabulary: int | None = None
        self._load = load
        self._scoring: torch.nn.Module | None = None

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, frozen and in evaluation mode."""
        model = self._load()
        model.requires_grad_(False)
        model.eval()
        add_completion_forward(model)
        written = min(len(self.tokenizer), self.vocabulary_rows if self.vocabulary is None else self.vocabulary)
        # rows that only pad the embedding, or that the student does not have, must not be written
        model.generation_config.suppress_tokens = list(range(written, self.vocabulary_rows)) or None
        return model

    def share(self, vocabulary: int) -> None:
        """Restrict what is written and scored to the rows [0, vocabulary) that the student has too."""
        self.vocabulary = vocabulary
        self.__dict__.pop("model", None)

    @property
    def vocabulary_rows(self) -> int:
        """Rows of the LM head."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def length_limit(self) -> int | None:
        """`max_position_embeddings`, where the configuration has one."""
        return length_limit(self.config)

    def identity(self) -> dict[str, Any]:
        """Name, revision and configuration; weights of a folder are told apart by their files' sizes and times."""
        config = {k: v for k, v in self.config.to_diff_dict().items() if k != "transformers_version"}
        return {
            "teacher": self.name,
            "revision": self.revision,
            "files": fingerprint_of(self.name),
            "config": json.dumps(config, sort_keys=True, default=str),
        }

    def prepare(self, wrap: Callable[[Any], Any]) -> None:
        """Let accelerate or DeepSpeed wrap the model for scoring; generation keeps the bare one."""
        self._scoring = wrap(self.model)

    @torch.no_grad()
    def score(self, batch: Mapping[str, torch.Tensor]) -> TeacherTargets:
        """Return the hidden states [N, H_t] that predict the batch's completion tokens, and the head."""
        model = self._scoring if self._scoring is not None else self.model
        device = self.model.device
        output = model(
            input_ids=batch["teacher_input_ids"].to(device),
            attention_mask=batch["teacher_attention_mask"].to(device),
            completion_labels=batch["teacher_labels"].to(device),
        )
        return TeacherTargets(output.hidden, LMHead.of(self.model), self.vocabulary)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Write one completion per prompt, as one batch padded on the left.

        The same prompts and settings give the same completions: drawing has a generator of its own, seeded by
        the settings and the prompts, and leaves the program's random state alone.
        """
        stops = stop_ids(self.model, self.tokenizer)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else stops[0]
        width = max(len(p) for p in prompts)
        ids = torch.full((len(prompts), width), pad)
        mask = torch.zeros_like(ids)
        for b, prompt in enumerate(prompts):
            ids[b, width - len(prompt) :] = torch.tensor(list(prompt))
            mask[b, width - len(prompt) :] = 1
        device = self.model.device
        drawing = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(hash((settings.seed, *map(tuple, prompts))) % 2**63)
            model: Any = self.model
            written = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=self._new_tokens(width, settings),
                do_sample=settings.do_sample,
                eos_token_id=stops,
                pad_token_id=pad,
                **(drawing if settings.do_sample else {}),
            )
        return [cut_at_stop(row, stops) for row in written[:, width:].tolist()]

    def _new_tokens(self, width: int, settings: GenerationSettings) -> int:
        """Return how many tokens fit after prompts of `width` tokens."""
        room = settings.max_new_tokens if self.length_limit is None else self.length_limit - width
        return max(1, min(settings.max_new_tokens, room))


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return every id that ends a completion: the generation configuration's and the tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = list(configured) if isinstance(configured, (list, tuple)) else [configured]
    return list(dict.fromkeys(i for i in (*ids, tokenizer.eos_token_id) if i is not None))


def cut_at_stop(ids: Sequence[int], stops: Sequence[int]) -> Completion:
    """Return the completion up to its first stop token, that token included."""
    for k, token in enumerate(ids):
        if token in stops:
            return Completion(tuple(ids[: k + 1]), True)
    return Completion(tuple(ids), False)


def length_limit(config: PretrainedConfig) -> int | None:
    """Return how many tokens a sequence of this model may have, where its configuration says so."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return int(limit) if limit else None


def check_can_teach(name: str, config: PretrainedConfig) -> None:
    """Refuse a model that gives no next-token distribution over the student's kind of sequence.

    Raises:
        TeacherError: Encoder-decoder or encoder-only.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if config.is_encoder_decoder:
        raise TeacherError(
            f"teacher_model {name!r} is an encoder-decoder ({config.model_type}); choose a decoder-only model."
        )
    bidirectional = config.model_type in ENCODERS and not getattr(config, "is_decoder", False)
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or bool(getattr(config, "auto_map", None))
    if bidirectional or not known:
        raise TeacherError(
            f"teacher_model {name!r} ({config.model_type}) is no causal language model and has no next-token "
            "distribution; choose a decoder-only model."
        )


# encoders that transformers can also build as decoders, which their released weights are not
ENCODERS = frozenset(
    [
        "bert",
        "bert-generation",
        "big_bird",
        "camembert",
        "data2vec-text",
        "electra",
        "ernie",
        "megatron-bert",
        "rembert",
        "roberta",
        "roberta-prelayernorm",
        "roc_bert",
        "roformer",
        "xlm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
        "modernbert",
    ]
)
