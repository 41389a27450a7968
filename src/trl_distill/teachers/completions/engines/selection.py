"""Selects the engine for generating many completions: vLLM, transformers' continuous batching, or batch by batch.

vLLM and continuous batching start the next prompt as soon as a completion is finished, while a batch waits for its
longest. All stop at the same tokens, and their completions are stored under the same key.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, TypeAlias

import torch

from ....errors import TeacherError, printable
from ....models.generation import Completion, GenerationSettings
from ....models.loading import ModelSource
from ..store import seed_of
from .base import EngineError, Writer
from .continuous_batching import ContinuousBatching
from .vllm import VLLM

AUTO, VLLM_ALONE = "auto", "vllm"
WORTH = 8  # batches; vLLM takes about a minute to start
logger = logging.getLogger(__name__)


class Batches:
    """A teacher's own `generate`, a batch at a time."""

    name = "transformers"

    def __init__(self, teacher: Writer) -> None:
        self.teacher = teacher

    def write(
        self, prompts: Mapping[str, Sequence[int]], settings: GenerationSettings
    ) -> Iterator[dict[str, Completion]]:
        """Yield the completions of each batch; see `generate_all`."""
        keys = list(prompts)
        for start in range(0, len(keys), settings.batch_size):
            batch = keys[start : start + settings.batch_size]
            some = self.teacher.generate([prompts[key] for key in batch], replace(settings, seed=seed_of(batch)))
            yield dict(zip(batch, some, strict=True))


Engine: TypeAlias = Batches | ContinuousBatching | VLLM  # each raises EngineError if it cannot write on


def generate_all(
    teacher: Writer, prompts: Mapping[str, Sequence[int]], settings: GenerationSettings
) -> Iterator[dict[str, Completion]]:
    """Yield a teacher's completions by key as they come; under "auto" the next engine continues if one fails.

    Args:
        teacher: Who writes.
        prompts: Token ids by key, the longest first; sampled completions have their seeds from the keys.
        settings: Generation settings.

    Raises:
        TeacherError: vLLM is named and cannot write for this teacher.
    """
    left = dict(prompts)
    for engine in engines_for(teacher, settings, len(left)) if left else ():
        try:
            for some in engine.write(dict(left), settings):
                yield some
                for key in some:
                    del left[key]
            return
        except EngineError as error:
            if settings.engine == VLLM_ALONE:
                raise refusal(teacher, error) from error
            if str(error):
                logger.warning(
                    "%s does not generate for teacher %r: %s.", engine.name, teacher.name, printable(str(error))
                )


def engines_for(teacher: Writer, settings: GenerationSettings, prompts: int) -> list[Engine]:
    """Return the engines that may generate for a teacher, the best first.

    "auto" is vLLM if it is installed, the teacher is on a CUDA device, and there are enough prompts to make up for its
    start-up time; then as "transformers": continuous batching on a CUDA device, else batch by batch.
    """
    model = _local_model_of(teacher)
    if settings.engine == VLLM_ALONE:
        return [VLLM(model)]
    engines: list[Engine] = [Batches(teacher)]
    if not _on_cuda(model):
        return engines
    engines.insert(0, ContinuousBatching(model))
    if settings.engine == AUTO and prompts > WORTH * settings.batch_size and find_spec("vllm") is not None:
        engines.insert(0, VLLM(model))
    return engines


def _on_cuda(teacher: Any) -> bool:
    """Whether a local model generates on a CUDA device, without loading it."""
    source: ModelSource | None = getattr(teacher, "source", None)
    if source is None:
        return torch.cuda.is_available() and hasattr(teacher, "model") and teacher.model.device.type == "cuda"
    unplaced = "cuda" if source.is_placed else "cpu"
    return torch.cuda.is_available() and torch.device(source.device or unplaced).type == "cuda"


def _local_model_of(teacher: object) -> Any:
    """Return the model in a teacher that gives text."""
    return getattr(teacher, "writer", teacher)


def check_engine(teacher: Writer, engine: str) -> None:
    """Raise TeacherError, with the reason, if vLLM is named for a teacher that it cannot load."""
    why = VLLM(_local_model_of(teacher)).why_not if engine == VLLM_ALONE else None
    if why is not None:
        raise refusal(teacher, why)


def refusal(teacher: Writer, why: object, does: str = "write") -> TeacherError:
    """Return the error for a teacher that vLLM was selected for but cannot serve."""
    return TeacherError(
        f"teacher_engine is 'vllm', and it cannot {does} for teacher_model {teacher.name!r}: {why}; drop "
        "--teacher-engine."
    )
