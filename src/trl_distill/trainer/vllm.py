"""On-policy generation with TRL's vLLM engine, which gets the student's weights after each optimizer step."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from ..models.generation import Completion, cut_at_stop, seeded_sampling

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..config.sft_config import DistillationSFTConfig
    from .on_policy import BatchRandom, Bounds


class VLLMWriter:
    """An engine of vLLM that follows a student.

    Args:
        model: The student, PEFT's wrapper included, as its trainer has it; it says where its folder is.
        accelerator: Its trainer's.
        tokenizer: The student's.
        args: The trainer's configuration.
        length: Tokens that a sequence may have; None for what vLLM finds in the student's configuration.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        args: DistillationSFTConfig,
        *,
        length: int | None,
    ) -> None:
        from trl.generation import VLLMGeneration

        self._device = accelerator.device
        self._group = accelerator.process_index // args.vllm_tensor_parallel_size
        with _random_state_kept(self._device):
            self._engine = VLLMGeneration(
                model=model,
                accelerator=accelerator,
                processing_class=tokenizer,
                mode=args.vllm_mode,
                server_base_url=args.vllm_server_base_url,
                server_timeout=args.vllm_server_timeout,
                group_port=args.vllm_group_port,
                tensor_parallel_size=args.vllm_tensor_parallel_size,
                gpu_memory_utilization=args.vllm_gpu_memory_utilization,
                max_model_length=args.vllm_max_model_length or length,
                max_num_seqs=args.per_device_train_batch_size * args.vllm_tensor_parallel_size,
                enable_sleep_mode=args.vllm_enable_sleep_mode,
                model_impl=args.vllm_model_impl,
                trust_remote_code=args.trust_remote_code,
                temperature=args.distill_on_policy_temperature,
                logprobs=None,
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
