"""A teacher that writes text, from a name, a loaded model or a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..config.devices import accelerator
from ..config.endpoints import endpoint_of
from ..models.loading import EMBEDDED, ModelSource, kept_tokenizer, resolve
from ..teachers.base import Teacher, TextTeacher, reads_text
from ..teachers.compatibility import WRITING, require
from ..teachers.loading import load_teacher, loaded_encoder_decoder
from ..teachers.text.local_text import LocalTextTeacher

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def writing_teacher(
    model: str | PreTrainedModel | Teacher,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    device: str | torch.device | None,
    **loading: Any,
) -> TextTeacher:
    """Return a teacher that generates text.

    Args:
        model: What `load_teacher` takes.
        tokenizer: The tokenizer of a loaded model.
        device: Where the model goes without a device map (default: this machine's accelerator).
        **loading: Other arguments of `load_teacher`.

    Raises:
        TeacherError: See `load_teacher`; a store of targets, which cannot generate.
    """
    if isinstance(model, str):
        if tokenizer is None and endpoint_of(model) is not None:
            # a server counts its own tokens, and no student's tokens are needed
            tokenizer = ModelSource(resolve(EMBEDDED, role="teacher_model")).load_tokenizer()
        device = accelerator() if device is None else device
        teacher = load_teacher(model, tokenizer=tokenizer, device=device, **loading)
    elif isinstance(model, Teacher):
        teacher = model
    else:
        tokenizer = kept_tokenizer(model) if tokenizer is None else tokenizer
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            return loaded_encoder_decoder(model, tokenizer=tokenizer, device=device)
        teacher = load_teacher(model, tokenizer=tokenizer, device=device)
    require(WRITING, teacher)
    return as_text_teacher(teacher)


def as_text_teacher(teacher: Teacher | TextTeacher) -> TextTeacher:
    """Return a teacher as one that reads prompts as text or messages, and gives text."""
    return teacher if reads_text(teacher) else LocalTextTeacher(teacher)
