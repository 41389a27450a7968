"""A run's student: its configuration and tokenizer immediately, its weights lazily."""

from __future__ import annotations

from copy import copy, deepcopy
from functools import cache
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

from ..config.training_params import LLMTrainingParams
from ..errors import ParamsError, first_line
from ..models.adapters import trainable
from ..models.architectures import check_causal
from ..models.loading import ModelSource, resolve, tokenizer_of
from ..models.own_chat_template import own_tokenizer
from ..prompts.chat_template_choice import set_chat_template
from ..teachers.same_weights import Student
from ..trainer.plan import StudentModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_student(
    params: LLMTrainingParams, *, device: torch.device | str, trainer_class: type, role: str = "model"
) -> StudentModel:
    """Return the student of a run's parameters, with the requested chat template.

    Args:
        params: The run's parameters.
        device: Where its weights go.
        trainer_class: What trains it.
        role: The setting that named it, for messages.

    Raises:
        ModelError: A model that cannot be found or read, or one without a next-token distribution.
        TemplateError: See `set_chat_template`.
    """
    model, trust = params.model, params.trust_remote_code
    if isinstance(model, str):
        source = ModelSource(
            resolve(model, role=role),
            role,
            dtype=params.dtype,
            quantization=params.quantization,
            device=device,
            attn_implementation=params.attn_implementation,
            trust_remote_code=trust,
            trains_adapter=params.peft and not params.merge_adapter,
        )
        source.check_can_merge()
        source.check_adapter(params)
        check_causal(model, source.config, role=role)
        weights = Student(cache(source.load_model), source, trainer_class)
        generation_config = source.load_generation_config()
        student = StudentModel(source.config, source.load_tokenizer(), generation_config, weights, device, source)
    else:
        check_causal(model.config._name_or_path or type(model).__name__, model.config, role=role)
        tokenizer = copy(own_tokenizer(tokenizer_of(model, trust_remote_code=trust)))  # that one stays as it is
        weights = Student(lambda: trainable(model), None, trainer_class)
        student = StudentModel(model.config, tokenizer, model.generation_config, weights, device)
    set_chat_template(student.tokenizer, params.chat_template, trust_remote_code=trust)
    return student


def model_without_weights(student: StudentModel, params: LLMTrainingParams) -> PreTrainedModel:
    """Return the student on the meta device, for checks that need its modules; a loaded model is returned as it is.

    Args:
        student: The student.
        params: The run's parameters.

    Raises:
        ParamsError: An attention implementation that cannot be used.
    """
    if student.source is None:
        return params.model
    dtype = {} if params.dtype == "auto" else {"dtype": getattr(torch, params.dtype)}
    attention = params.attn_implementation
    with student.source.clear_errors("model"):
        try:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(
                    deepcopy(student.config),  # which it changes
                    attn_implementation=attention,
                    trust_remote_code=params.trust_remote_code,
                    **dtype,
                )
        except (ImportError, ValueError) as error:
            if attention is None:
                raise
            reason = first_line(error).partition(". ")[0]
            raise ParamsError(
                f"attn_implementation is {attention!r}, which cannot be used here ({reason}); give "
                "--attn-implementation sdpa or eager."
            ) from error
