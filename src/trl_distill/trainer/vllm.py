"""On-policy generation with TRL's vLLM engine, which gets the student's weights after each optimizer step."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..models.generation import Completion, cut_at_stop, seeded_sampling

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .on_policy import BatchRandom, Bounds


@dataclass(frozen=True)
class VLLMSettings:
    """Settings of an engine of vLLM, as `trl.generation.VLLMGeneration` names and explains them."""

    mode: str
    server_base_url: str | None
    server_timeout: float
    group_port: int
    tensor_parallel_size: int
    gpu_memory_utilization: float
    max_model_length: int | None
    max_num_seqs: int
    enable_sleep_mode: bool
    model_impl: str
    trust_remote_code: bool
    temperature: float


class VLLMWriter:
    """A vLLM engine that follows a student's weights.

    Args:
        model: The student, PEFT's wrapper included, as its trainer has it; it says where its folder is.
        accelerator: Its trainer's.
        tokenizer: The student's.
        settings: The engine's.
        length: Tokens that a sequence may have; None for what vLLM finds in the student's configuration.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        settings: VLLMSettings,
        *,
        length: int | None,
    ) -> None:
        from trl.generation import VLLMGeneration

        self._device = accelerator.device
        self._group = accelerator.process_index // settings.tensor_parallel_size
        with _random_state_kept(self._device):
            self._engine = VLLMGeneration(
                model=model,
                accelerator=accelerator,
                processing_class=tokenizer,
                logprobs=None,
                **vars(replace(settings, max_model_length=settings.max_model_length or length)),
            )
        self._step: int | None = None

    def written(self, prompts: Sequence[Sequence[int]], bounds: Bounds, randomness: BatchRandom) -> list[Completion]:
        """Write one completion per prompt with the student's weights of this step; all ranks call it together.

        A colocated engine samples with the batch's seed and leaves the program's random state alone.
        """
        if randomness.step != self._step:
            self._engine.sync_weights()
            self._step = randomness.step
        limits: dict[str, int | list[int]] = {"max_tokens": bounds.max_new_tokens, "stop_token_ids": bounds.stops}
        if bounds.known < bounds.rows:
            limits["allowed_token_ids"] = list(range(bounds.known))
        self._engine.generation_kwargs = limits
        # processes that share an engine have to draw alike
        with seeded_sampling(randomness.generation_seed(self._group), [], self._device):
            _, written, _, _ = self._engine.generate([list(p) for p in prompts], images=None, num_generations=1)
        return [cut_at_stop(list(ids), bounds.stops) for ids in written]


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    """Restore the program's random state, which vLLM seeds when it starts."""
    states = random.getstate(), np.random.get_state()
    with seeded_sampling(0, [], device):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])
