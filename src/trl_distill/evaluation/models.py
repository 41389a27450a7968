"""The models of an evaluation: the student before and after training, and its teacher."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from ..errors import ModelError, first_line
from ..models.adapters import base_of, is_peft_model, with_adapter
from ..models.broken_weights import check_finite
from ..models.generation import has_learned_prompt
from ..models.loading import ModelSource
from ..teachers.local.folder_fingerprint import of_folder
from ..teachers.local.teacher import LocalTeacher
from ..teachers.local.weights import AdapterOff, CallersModel, FrozenModel, WeightSource

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ..data.preparation import Recipe
    from ..teachers.base import Teacher


@dataclass(frozen=True)
class EvaluatedModels:
    """The compared models, and how rows become their prompts.

    Attributes:
        after: The trained student.
        before: The student before training; None if its weights are not there any more.
        teacher: The teacher.
        recipe: How rows become token ids.
    """

    after: LocalTeacher
    before: LocalTeacher | None
    teacher: Teacher
    recipe: Recipe


class LoadedAdapter:
    """A base and its adapter, read once for the student before and after training.

    Args:
        source: The adapter's folder.
        quantization: Quantization of the base during training.
    """

    def __init__(self, source: ModelSource, *, quantization: str | None = None) -> None:
        self.source, self.base = source, replace(source.base, quantization=quantization)

    @cached_property
    def model(self) -> PeftModel:
        """Base and adapter in evaluation mode, not merged.

        Raises:
            ModelError: The adapter does not fit its base, or has weights that are not finite numbers.
        """
        base = FrozenModel(self.base).model()
        try:
            model = with_adapter(base, self.source.path).eval()
        except Exception as error:  # whatever PEFT raises for its configuration
            raise ModelError(
                f"student {self.source.path!r} is an adapter that does not fit its base {self.base.path!r} "
                f"({first_line(error)}); give the model that it was trained on."
            ) from error
        check_finite(model, "student", self.source.path)
        return model

    def content(self) -> list[object]:
        """An identity of the weights that is known without reading them."""
        return [of_folder(self.source.path), self.base.dtype, self.base.quantization]


class AdapterOn(WeightSource):
    """A student with its adapter, which shares the base's memory with the student before training."""

    of_student = shares_student = False

    def __init__(self, loaded: LoadedAdapter, generation_config: GenerationConfig) -> None:
        self.loaded, self.generation_config = loaded, generation_config
        self.source = loaded.source

    @property
    def prompt_wrapper(self) -> PeftModel | None:
        """PEFT's wrapper if it holds a learned prompt."""
        return self.loaded.model if has_learned_prompt(self.loaded.model) else None

    def model(self) -> PreTrainedModel:
        """Return the model, which stops where the adapter was saved to stop."""
        base = base_of(self.loaded.model)
        if self.prompt_wrapper is not None:  # which calls this one
            return base
        model = copy.copy(base)  # the layers are shared
        model.generation_config = self.generation_config
        return model

    def content(self) -> list[object]:
        return self.loaded.content()


class LoadedStudent(CallersModel):
    """A student in memory, which may write through a prompt that PEFT's wrapper holds."""

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__(base_of(model), role="student")
        self._given = model

    @property
    def prompt_wrapper(self) -> PeftModel | None:
        """PEFT's wrapper if it holds a learned prompt."""
        return self._given if has_learned_prompt(self._given) else None


def students_in_folder(
    source: ModelSource, tokenizer: PreTrainedTokenizerBase, *, quantization: str | None = None
) -> tuple[LocalTeacher, LocalTeacher | None]:
    """Return a saved student, and without its adapter, if it has one, the student before training.

    Args:
        source: Its folder or Hub name.
        tokenizer: As it was saved, with the model's own chat template.
        quantization: Quantization of an adapter's base during training.
    """
    generation_config = source.load_generation_config()
    if source.adapter is None:
        return _student(source.path, FrozenModel(source), source.config, tokenizer, generation_config), None
    loaded = LoadedAdapter(source, quantization=quantization)
    on, off = AdapterOn(loaded, generation_config), AdapterOff(lambda: loaded.model, loaded.base)
    return (
        _student(source.path, on, source.config, tokenizer, generation_config),
        _student(loaded.base.path, off, source.config, tokenizer, loaded.base.load_generation_config()),
    )


def students_in_memory(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, *, device: torch.device | str
) -> tuple[LocalTeacher, LocalTeacher | None]:
    """Return a loaded student, and without its adapter, if it has one, the student before training.

    Args:
        model: The student. It goes to the device, as its teacher does, unless it is quantized or has a device map.
        tokenizer: Its tokenizer.
        device: Where the models of the evaluation are.
    """
    plain = base_of(model)
    if not hasattr(plain, "hf_device_map") and not getattr(plain, "is_quantized", False):
        model.to(device)  # type: ignore[arg-type]
    name, read = plain.config._name_or_path or type(plain).__name__, (plain.config, tokenizer, plain.generation_config)
    after = _student(name, LoadedStudent(model), *read)
    return after, _student(name, AdapterOff(lambda: model), *read) if is_peft_model(model) else None


def student_named(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> LocalTeacher:
    """Return a model that is read from its files when it first writes, under another's tokenizer."""
    return _student(source.path, FrozenModel(source), source.config, tokenizer, source.load_generation_config())


def _student(
    name: str,
    weights: WeightSource,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    generation_config: GenerationConfig | None,
) -> LocalTeacher:
    return LocalTeacher(name, weights=weights, config=config, tokenizer=tokenizer, generation_config=generation_config)
