"""A run's student: its configuration and tokenizer at once, its weights when they are first needed."""

from __future__ import annotations

from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

from ..config.training_params import LLMTrainingParams
from ..errors import ParamsError
from ..models.architectures import check_causal
from ..models.loading import ModelSource, resolve, tokenizer_of
from ..models.own_chat_template import own_tokenizer
from ..prompts.chat_template_choice import set_chat_template
from ..teachers import same_weights

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Student:
    """The student that a run's parameters name or hold.

    Attributes:
        params: The run's parameters.
        source: Where it is loaded from; None for a model that was passed in Python.
        config: Its configuration.
        tokenizer: Its tokenizer, with the chat template that was asked for.
        device: Where its weights go.
    """

    params: LLMTrainingParams
    source: ModelSource | None
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    device: torch.device | str

    @classmethod
    def of(cls, params: LLMTrainingParams, *, device: torch.device | str) -> Student:
        """Load the configuration and the tokenizer.

        Raises:
            ModelError: A model that cannot be found or read, or one without a next-token distribution.
            TemplateError: See `set_chat_template`.
        """
        model, trust = params.model, params.trust_remote_code
        if isinstance(model, str):
            source = ModelSource(
                resolve(model, role="model"),
                dtype=params.dtype,
                quantization=params.quantization,
                device=device,
                attn_implementation=params.attn_implementation,
                trust_remote_code=trust,
            )
            source.check_can_merge(new_adapter=params.peft and not params.merge_adapter)
            check_causal(model, source.config, role="model")
            student = cls(params, source, source.config, source.load_tokenizer(), device)
        else:
            check_causal(model.config._name_or_path or type(model).__name__, model.config, role="model")
            tokenizer = copy(own_tokenizer(tokenizer_of(model, trust_remote_code=trust)))  # that one stays as it is
            student = cls(params, None, model.config, tokenizer, device)
        set_chat_template(student.tokenizer, params.chat_template, trust_remote_code=trust)
        return student

    @cached_property
    def outline(self) -> PreTrainedModel:
        """The model without weights, for what its configuration alone does not say; a loaded model is itself.

        Raises:
            ParamsError: An attention implementation that cannot be used.
        """
        params, attention = self.params, self.params.attn_implementation
        if self.source is None:
            return params.model
        dtype = {} if params.dtype == "auto" else {"dtype": getattr(torch, params.dtype)}
        try:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(
                    deepcopy(self.config),  # which it changes
                    attn_implementation=attention,
                    trust_remote_code=params.trust_remote_code,
                    **dtype,
                )
        except (ImportError, ValueError) as error:
            if attention is None:
                raise
            reason = str(error).strip().splitlines()[0].partition(". ")[0].rstrip(".")
            raise ParamsError(
                f"attn_implementation is {attention!r}, which cannot be used here ({reason}); give "
                "--attn-implementation sdpa or eager."
            ) from error

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, loaded or as it was passed in, with weights that can be trained."""
        if self.source is not None:
            return self.source.load_model()
        model: PreTrainedModel = self.params.model
        if not any(p.requires_grad for p in model.parameters()):
            model.requires_grad_(True)  # one that was a teacher, or whose adapter was merged, is frozen
        return model

    @property
    def generation_config(self) -> GenerationConfig:
        """How it generates, read without its weights."""
        return self.params.model.generation_config if self.source is None else self.source.load_generation_config()

    def weights(self, trainer_class: type) -> same_weights.Student:
        """Return what a teacher's weights are compared with."""
        return same_weights.Student(lambda: self.model, self.source, trainer_class)
