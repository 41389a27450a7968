"""Out of memory, in one sentence with the settings that need less: for runs, stores, evaluations and exports."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import OutOfMemory

if TYPE_CHECKING:
    import torch

    from ..config.training_params import LLMTrainingParams
    from ..trainer.memory_advice import Footprint, Weights


@contextmanager
def memory_explained(sentence: Callable[[Exception], str]) -> Iterator[None]:
    """Turn an error of memory that is raised inside into OutOfMemory.

    What was in memory is freed first, so that there is room for the sentence; the caller's own frame is not.

    Args:
        sentence: Returns the message.
    """
    try:
        yield
        return
    except Exception as error:
        if isinstance(error, OutOfMemory) or "torch" not in sys.modules:
            raise
        from ..models.out_of_memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        failed = error
    link: BaseException | None = failed
    while link is not None:  # their frames hold models and batches
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    free_memory()
    raise OutOfMemory(sentence(failed)) from failed


def free_memory() -> None:
    """Free what nothing uses any more, on the accelerator too."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def sentence_of_run(error: Exception, params: LLMTrainingParams) -> str:
    """Return the message for an error of memory in a run, or in an evaluation of its student."""
    from ..trainer.memory_advice import ADVICE

    return str(getattr(error, ADVICE, None) or _sentence(error, params))  # the trainer knows its models


def _sentence(error: Exception, params: LLMTrainingParams) -> str:
    from ..config.sft_config import from_params
    from ..trainer.memory_advice import Footprint, memory_sentence

    try:
        footprint = footprint_of(params)
    except Exception:  # the sentence is worth more than its figures
        footprint = Footprint()
    return memory_sentence(error, from_params(params), footprint)


def footprint_of(params: LLMTrainingParams) -> Footprint:
    """Return the sizes of a run's models, from their configurations.

    Args:
        params: The run's parameters.

    Raises:
        UsageError: A model that cannot be found.
    """
    from ..config.endpoints import endpoint_of
    from ..config.fields import is_model
    from ..config.training_params import OWN_TEACHERS
    from ..models.loading import resolve
    from ..teachers.target_store.folder import TargetFolder
    from ..trainer.memory_advice import Footprint, is_storable

    student, trained = _student(params)
    named, teacher = params.teacher_model, None
    stored = params.teacher_store is not None
    if params.distills and not (stored and TargetFolder(str(params.teacher_store)).complete):
        is_local = isinstance(named, str) and named not in OWN_TEACHERS and endpoint_of(named) is None
        if is_local or is_model(named):
            teacher = _weights(named, "teacher_model", params.teacher_dtype, params.teacher_quantization, params)
    is_same = False
    if teacher is not None and isinstance(named, str) and isinstance(params.model, str):
        is_same = resolve(named, role="teacher_model") == resolve(params.model, role="model")
    return Footprint(
        student,
        trained,
        teacher,
        adapter=params.peft,
        student_teaches=is_same,
        storable=teacher is not None and is_storable(params),
    )


def _student(params: LLMTrainingParams) -> tuple[Weights, int]:
    """Return the student's weights, and the bytes of those that are trained."""
    import torch

    weights = _weights(params.model, "model", params.dtype, params.quantization, params)
    if not params.peft:
        return weights, weights.size
    layers = [m for m in _outline(params.model, "model", params).modules() if isinstance(m, torch.nn.Linear)]
    return weights, 4 * sum(params.lora_r * (layer.in_features + layer.out_features) for layer in layers)


def _weights(model: object, role: str, dtype: str, quantization: str | None, params: LLMTrainingParams) -> Weights:
    import torch

    from ..trainer.memory_advice import INT4, Weights

    outline = _outline(model, role, params)
    if isinstance(model, torch.nn.Module):
        return Weights.of(outline)
    saved = getattr(outline.config, "dtype", None) or torch.float32
    kind = saved if dtype == "auto" else getattr(torch, dtype)
    each = {None: None, "int8": 1.0, "int4": INT4}[quantization]
    return Weights.of(outline, each=kind.itemsize, linear_each=each)


def _outline(model: object, role: str, params: LLMTrainingParams) -> torch.nn.Module:
    """Return a model without its weights; a loaded one as it is."""
    import torch

    from ..models.loading import ModelSource, resolve

    if isinstance(model, torch.nn.Module):
        return model
    return ModelSource(resolve(str(model), role=role), role, trust_remote_code=params.trust_remote_code).outline()
