"""Which architectures have a next-token distribution, and the names of their parts and sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import model_error

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

# encoders that transformers can also build as decoders, which their released weights are not
ENCODERS = frozenset(
    (
        *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
        *("modernbert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta"),
        *("xlm-roberta-xl", "xmod"),
    )
)

NOT_CAUSAL = (
    "{} {!r} ({}) is not a causal language model{} and has no next-token distribution; choose a decoder-only model."
)


def check_causal(name: str, config: PretrainedConfig, *, role: str) -> None:
    """Refuse a model that has no next-token distribution, naming it by the setting of `role` and the user's name.

    Raises:
        ModelError, TeacherError: Encoder-decoder or encoder-only.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    check_decoder(name, config, role=role)
    if not (config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or getattr(config, "auto_map", None)):
        raise model_error(role)(NOT_CAUSAL.format(role, name, config.model_type, ""))


def check_decoder(name: str, config: PretrainedConfig, *, role: str) -> None:
    """Refuse an encoder-decoder and an encoder; a model of an unknown kind passes. See `check_causal`."""
    error = model_error(role)
    if config.is_encoder_decoder:
        raise error(f"{role} {name!r} is an encoder-decoder ({config.model_type}); choose a decoder-only model.")
    if config.model_type in ENCODERS and not getattr(config, "is_decoder", False):
        raise error(NOT_CAUSAL.format(role, name, config.model_type, " but an encoder,"))


def check_encoder_decoder(name: str, config: PretrainedConfig, *, role: str) -> None:
    """Refuse a model that is not a text-to-text encoder-decoder; see `check_causal`.

    Raises:
        ModelError, TeacherError: Another kind of model, or one that reads sounds or images.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as KNOWN

    error = model_error(role)
    known = config.model_type in KNOWN or bool(getattr(config, "auto_map", None))
    if not (config.is_encoder_decoder and known):
        raise error(
            f"{role} {name!r} ({config.model_type}) is not an encoder-decoder that reads and writes text; choose one "
            f"that "
            "does, or a decoder-only model."
        )


def backbone_of(model: PreTrainedModel) -> torch.nn.Module:
    """Return the part of a causal language model that gives hidden states."""
    found = model.base_model
    return getattr(model, "model", model) if found is model else found  # Llama 4's prefix is its multimodal model's


def vocabulary_rows(config: PretrainedConfig) -> int:
    """Return the size of a model's logits; Inkling's LM head has more rows."""
    text = config.get_text_config()
    return int(getattr(text, "unpadded_vocab_size", None) or text.vocab_size)
