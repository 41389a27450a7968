"""Adapters: PEFT's wrapper, folders with only an adapter, and merging an adapter into its base."""

from __future__ import annotations

import copy
import json
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import ParamsError, TeacherError, first_line
from . import forked_trial

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel
    from typing_extensions import TypeIs

    from ..config.training_params import LLMTrainingParams
    from .completion_forward import CompletionOutput

CONFIG = "adapter_config.json"
LORA = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "target_modules": "target_modules"}
# how PEFT matches targets, ranks, what is trained as a whole, and layers; all at the beginning of a name
PATTERN_FORMS = (r"(?:{})\Z", r"(.*\.)?({})$", r"(^|.*\.){}($|\..*)", r"(?:^|.*?\.){}\.(?P<idx>\d+)\.")
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")


def is_peft_model(model: object) -> TypeIs[PeftModel]:
    """Whether a model has PEFT's wrapper.

    accelerate's function of this name reads the metadata of packages from disk at every call, which takes 5 ms.
    """
    peft = sys.modules.get("peft")  # without it there is no such model
    return peft is not None and isinstance(getattr(model, "_orig_mod", model), peft.PeftModel)


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return a model without PEFT's wrapper; adapters stay in its layers."""
    return cast("PreTrainedModel", model.get_base_model()) if is_peft_model(model) else model


def trainable(model: PreTrainedModel) -> PreTrainedModel:
    """Return a loaded model with weights that can be trained; one that was a teacher, or was merged, is frozen."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        model.requires_grad_(True)
    return model


def without_peft(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return a model without PEFT's wrapper; its adapters stay in its layers.

    Raises:
        TeacherError: An adapter that exists only in the wrapper (prompt tuning, for example).
    """
    if is_peft_model(model) and model.active_peft_config.is_prompt_learning:
        raise TeacherError(
            f"teacher_model has an adapter of the kind {model.active_peft_config.peft_type.value}, which is not in its "
            "layers; give a model with a LoRA adapter or without one."
        )
    return base_of(model)


@dataclass(frozen=True)
class Adapter:
    """An adapter's configuration.

    Attributes:
        folder: Where it is.
        base: Folder or Hub name of the model that it belongs to; empty if the configuration does not say.
        revision: Revision of a base on the Hub.
    """

    folder: str
    base: str
    revision: str | None

    @classmethod
    def of(cls, path: str) -> Adapter | None:
        """Return the adapter in a folder; None if it holds a whole model, or there is not a folder.

        Raises:
            ValueError: Its configuration is no JSON object.
        """
        folder = Path(path)
        if (folder / "config.json").is_file() or not (folder / CONFIG).is_file():
            return None
        written = _written(folder)
        return cls(path, str(written.get("base_model_name_or_path") or ""), written.get("revision"))

    def difference(self, params: LLMTrainingParams) -> tuple[str, object, object] | None:
        """Return a setting of LoRA that the adapter has another value of: its name, that value and the run's."""
        written = _written(Path(self.folder))
        for name, key in LORA.items():
            there, given = written.get(key), getattr(params, name)
            if name == "target_modules":
                there = ",".join(sorted(there)) if isinstance(there, list) else there
                given = ",".join(sorted(part.strip() for part in given.split(",")))
            if there is not None and there != given and given != "all-linear":  # PEFT writes the modules' names
                return name, there, given
        return None

    def on(self, base: PreTrainedModel) -> PreTrainedModel:
        """Return the base, frozen, in PEFT's wrapper with the adapter, which can be trained further.

        Raises:
            ValueError: An adapter of another model.
        """
        try:
            return cast("PreTrainedModel", with_adapter(base, self.folder, is_trainable=True))
        except (AttributeError, RuntimeError) as error:
            raise ValueError(f"it is not of {self.base}: {error}") from error

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer was saved beside the adapter."""
        return any((Path(self.folder) / name).is_file() for name in TOKENIZER_FILES)

    def merged_into(self, base: PreTrainedModel) -> PreTrainedModel:
        """Return the base with the adapter's weights added to its own: a plain model, all of which can be trained.

        Raises:
            ValueError: A kind of adapter that cannot be merged, such as prompt tuning, or one of another model.
        """
        try:
            whole = merged(with_adapter(base, self.folder))
        except (AttributeError, RuntimeError) as error:
            raise ValueError(f"it cannot be merged into {self.base}: {error}") from error
        whole.requires_grad_(True)  # PEFT has frozen the base
        return whole


def with_adapter(base: PreTrainedModel, folder: str, *, is_trainable: bool = False) -> PeftModel:
    """Return a model in PEFT's wrapper with the adapter of a folder; see `PeftModel.from_pretrained`.

    Raises:
        ValueError: Its configuration names code or has an endless pattern, or its files lack weights, which PEFT would
            leave as they are before training.
    """
    from peft import PeftModel

    _check_config(_written(Path(folder)), [name for name, _ in base.named_modules()])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys", category=UserWarning)
        try:
            return PeftModel.from_pretrained(base, folder, is_trainable=is_trainable)
        except UserWarning:
            raise ValueError("its files lack some of its weights") from None


def _check_config(written: Mapping[str, object], modules: Sequence[str]) -> None:
    """Refuse a configuration that makes PEFT import a module or match names without end.

    Patterns are first matched in a fork with a limit on time, in each of PEFT's forms.
    """
    if written.get("megatron_config") is not None:
        raise ValueError("it is made for Megatron, whose module PEFT would import by the name that it gives")
    patterns = [pattern for value in written.values() for pattern in _patterns_in(value)]
    if not patterns:
        return

    def match() -> int:
        for pattern in patterns:
            for form in PATTERN_FORMS:
                with suppress(Exception):  # which PEFT raises too
                    compiled = re.compile(form.format(pattern))
                    for module in modules:
                        compiled.match(module)
        return 0

    if forked_trial.is_endless(forked_trial.tried(match)):
        raise ValueError(f"a pattern in it takes more than {forked_trial.SECONDS} seconds for the names of the modules")


def _patterns_in(value: object) -> list[str]:
    """Return the texts in a setting of PEFT that may be regular expressions: those that are not plain names."""
    parts = value if isinstance(value, (list, dict)) else [value]
    return [part for part in parts if isinstance(part, str) and not re.fullmatch(r"[\w./:-]*", part)]


def _written(folder: Path) -> dict[str, Any]:
    written = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if not isinstance(written, dict):
        raise ValueError(f"{CONFIG} does not hold an object")
    return written


def merged(model: PeftModel) -> PreTrainedModel:
    """Return a model with PEFT's wrapper as a plain one, the adapter's weights added to its own.

    A head that is tied to an embedding with an adapter gets a weight of its own: the adapter was learned for the
    embedding alone, and merged into a shared weight it would change the head too.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    base = base_of(model)
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    adapted = isinstance(embedding, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    if head is not None and adapted and any(p is head.weight for p in embedding.parameters()):
        head.weight = type(head.weight)(head.weight.detach().clone(), requires_grad=False)
    whole: PreTrainedModel = model.merge_and_unload()
    if adapted and head is not None and whole.get_output_embeddings().weight is not whole.get_input_embeddings().weight:
        for config in {id(c): c for c in (whole.config, whole.config.get_text_config())}.values():
            config.tie_word_embeddings = False
    return whole


def lora_config(params: LLMTrainingParams) -> LoraConfig:
    """Return the configuration of the adapter that a run asks for."""
    from peft import LoraConfig

    modules = [name.strip() for name in params.target_modules.split(",")]
    return LoraConfig(
        r=params.lora_r,
        lora_alpha=params.lora_alpha,
        lora_dropout=params.lora_dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=modules[0] if modules == ["all-linear"] else modules,
    )


def lora_parameters(model: PreTrainedModel, params: LLMTrainingParams) -> int:
    """Return the number of parameters of the adapter that a run puts on a model, whose weights are not touched.

    Raises:
        ParamsError: PEFT puts no such adapter on it.
    """
    import torch
    from peft import get_peft_model

    with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # the trainer warns
        outline = type(model)(copy.deepcopy(model.config))
        try:
            adapted = get_peft_model(outline, lora_config(params), low_cpu_mem_usage=True)
        except ValueError as error:
            reason = first_line(error)
            if "lora_dropout" in reason:  # of weights that are no layers, as those of a mixture's experts
                raise ParamsError(
                    f"lora_dropout is {params.lora_dropout:g}, but PEFT adapts the experts of a "
                    f"{model.config.model_type} without dropout; give --lora-dropout 0, or the layers to adapt, such "
                    "as --target-modules q_proj,v_proj."
                ) from error
            raise ParamsError(
                f"target_modules is {params.target_modules!r}, which PEFT cannot adapt here ({reason.rstrip('.')}); "
                "choose other modules."
            ) from error
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def split_adapter_penalty(model: torch.nn.Module, output: CompletionOutput) -> torch.Tensor | None:
    """Return the penalty that PEFT has added to a student's summed loss (AdaLoRA's), and subtract it from there."""
    if not is_peft_model(model) or model.active_peft_config.peft_type != "ADALORA":
        return None
    assert output.loss is not None
    assert output.distilled is not None
    penalty, output.loss = output.loss - output.distilled, output.distilled
    return penalty
