"""`load_teacher`: from a name or a loaded model to a teacher."""

from __future__ import annotations

from typing import TypeAlias

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.endpoints import endpoint_of
from ..errors import TeacherError
from ..models.adapters import without_peft
from ..models.loading import ModelSource, resolve
from ..models.own_chat_template import own_tokenizer
from .base import Teacher
from .local.teacher import LocalTeacher
from .local.weights import CallersModel, FrozenModel
from .remote.request_pool import RemoteSettings
from .remote.teacher import RemoteTeacher
from .text.encoder_decoder import EncoderDecoder, EncoderDecoderTeacher

Device: TypeAlias = str | torch.device | None


def load_teacher(
    spec: str | PreTrainedModel | Teacher,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    quantization: str | None = None,
    device_map: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    device: Device = None,
    remote: RemoteSettings | None = None,
) -> Teacher:
    """Return the teacher that `spec` names; its weights are loaded lazily.

    Args:
        spec: A folder, a Hub name, "embedded", `openai:MODEL`, a server's URL with `#MODEL`, a bare name of OpenAI's, a
            loaded model, or a teacher. Encoder-decoders write completions and score nothing.
        tokenizer: The student's, used for a loaded causal model, which brings none of its own, and for teachers that
            give text.
        revision: Revision of a Hub model.
        dtype: "auto" (as saved), "float32", "bfloat16" or "float16".
        quantization: "int4" or "int8" by bitsandbytes, else None.
        device_map: As in transformers; None puts the model on `device`.
        attn_implementation: As in transformers.
        trust_remote_code: Allow a model that brings its own code.
        device: Where the model goes without a device map.
        remote: How requests to a server are made.

    Raises:
        TeacherError: Not found, an encoder, or a model with an adapter that is not in its layers.
    """
    if isinstance(spec, Teacher):
        return spec
    if not isinstance(spec, str):
        loaded = without_peft(spec)
        if loaded.config.is_encoder_decoder:
            return loaded_encoder_decoder(loaded, student_tokenizer=tokenizer, device=device)
        if tokenizer is None:
            raise TeacherError("teacher_model is a loaded model without a tokenizer; pass tokenizer=.")
        return LocalTeacher(
            loaded.config._name_or_path or type(loaded).__name__,
            weights=CallersModel(loaded, device),
            config=loaded.config,
            tokenizer=own_tokenizer(tokenizer),
            generation_config=loaded.generation_config,
        )
    endpoint = endpoint_of(spec)
    if endpoint is not None:
        if tokenizer is None:
            raise TeacherError(f"teacher_model {spec!r} has no tokenizer of its own; pass the student's as tokenizer=.")
        return RemoteTeacher(endpoint, tokenizer=tokenizer, settings=remote)
    source = ModelSource(
        resolve(spec, role="teacher_model"),
        role="teacher_model",
        revision=revision,
        dtype=dtype,
        quantization=quantization,
        device_map=device_map,
        device=device,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
    )
    source.check_can_merge()
    kind = EncoderDecoder if source.config.is_encoder_decoder else LocalTeacher
    kind.check_architecture(spec, source.config)  # before its tokenizer is looked for: an encoder's would load
    local = kind(
        source.path,
        weights=FrozenModel(source),
        config=source.config,
        tokenizer=source.load_tokenizer(),
        generation_config=source.load_generation_config(),
    )
    return EncoderDecoderTeacher(local, tokenizer=tokenizer) if isinstance(local, EncoderDecoder) else local


def loaded_encoder_decoder(
    loaded: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    student_tokenizer: PreTrainedTokenizerBase | None = None,
    device: Device = None,
) -> EncoderDecoderTeacher:
    """Return a loaded encoder-decoder as a teacher.

    Args:
        loaded: The model.
        tokenizer: Its own, which no causal student has; None takes that of the folder the model came from.
        student_tokenizer: The student's; None takes the model's own.
        device: Where the model goes; None leaves it where it is.

    Raises:
        TeacherError: It does not say where its tokenizer is.
    """
    name = loaded.config._name_or_path or type(loaded).__name__
    if tokenizer is None and not loaded.config._name_or_path:
        raise TeacherError(
            "teacher_model is a loaded encoder-decoder that does not say where its tokenizer is; save both to a folder "
            "and give that."
        )
    writer = EncoderDecoder(
        name,
        weights=CallersModel(loaded, device),
        config=loaded.config,
        tokenizer=ModelSource(name, "teacher_model").load_tokenizer() if tokenizer is None else tokenizer,
        generation_config=loaded.generation_config,
    )
    return EncoderDecoderTeacher(writer, tokenizer=student_tokenizer)
