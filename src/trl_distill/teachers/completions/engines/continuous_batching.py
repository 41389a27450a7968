"""transformers' continuous batching: a paged cache in which common prefixes are computed once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import Any

import torch

from ....config.devices import forked_rng
from ....models.generation import Completion, GenerationSettings
from ..store import seed_of
from .base import EngineError

PAGE = 256  # tokens; transformers' default
PROBED, PROBE_TOKENS = 4, 8


class ContinuousBatching:
    """What `generate_batch` runs, for a `LocalTeacher`, with each completion as it is finished."""

    name = "transformers' continuous batching"

    def __init__(self, teacher: Any) -> None:
        self.teacher = teacher

    def write(
        self, prompts: Mapping[str, Sequence[int]], settings: GenerationSettings
    ) -> Iterator[dict[str, Completion]]:
        """Yield completions as they are finished; see `generate_all`.

        Raises:
            EngineError: It fails, or its output differs from `generate`; with an empty text if it does not support this
                model, these settings, or so few prompts.
        """
        if len(prompts) <= settings.batch_size or not self._supports(settings):
            raise EngineError("")
        if not self._agrees_on([*prompts.values()][:PROBED]):
            raise EngineError("its first tokens differ from those of `generate`")
        yield from self.completions(prompts, settings)

    def _supports(self, settings: GenerationSettings) -> bool:
        """Whether it supports a model and settings: whole, on one device, with transformers' attention."""
        from transformers import ContinuousBatchingConfig

        teacher, model = self.teacher, self.teacher.model
        attention: Any = getattr(model.config, "_attn_implementation", None) or ""
        return (
            hasattr(ContinuousBatchingConfig, "page_size")  # since transformers 5.18
            and not settings.stop
            and not teacher.sharded
            and not teacher.writes_through_peft
            and attention.startswith(("eager", "sdpa", "flash"))
            and getattr(model, "_supports_attention_backend", False)
            and len({p.device for p in model.parameters()}) == 1
        )

    def _agrees_on(self, prompts: Sequence[Sequence[int]]) -> bool:
        """Whether half of some completions start as with `generate`: half precision may resolve ties differently."""
        settings = GenerationSettings(max_new_tokens=PROBE_TOKENS)
        own = self.teacher.generate(prompts, settings)
        found: dict[str, Completion] = {}
        for some in self.completions({str(i): prompt for i, prompt in enumerate(prompts)}, settings):
            found |= some
        return 2 * sum(found[str(i)].ids[:1] == one.ids[:1] for i, one in enumerate(own)) >= len(own)

    @torch.no_grad()
    def completions(
        self, prompts: Mapping[str, Sequence[int]], settings: GenerationSettings
    ) -> Iterator[dict[str, Completion]]:
        """Yield completions of any number of prompts, on any device, as they are finished; see `generate_all`."""
        from transformers import ContinuousBatchingConfig

        teacher = self.teacher
        config = teacher.generation_config(min(map(len, prompts.values())), settings)
        how: dict[str, Any] = {"seed": seed_of([*prompts]) % 2**62} if settings.do_sample else {}
        if teacher.model.device.type == "cpu":  # a share of the memory, as on a GPU, would be the machine's
            how |= self._size(prompts, settings)
        with forked_rng(teacher.model.device), teacher.writing(config) as model:
            try:
                with model.continuous_batching_context_manager(
                    generation_config=config, continuous_batching_config=ContinuousBatchingConfig(**how)
                ) as manager:
                    for key in sorted(prompts, key=lambda key: list(prompts[key]), reverse=True):  # alike ones together
                        new_tokens = teacher.new_tokens(len(prompts[key]), settings)
                        manager.add_request(list(prompts[key]), request_id=key, max_new_tokens=new_tokens)
                    for key, ids in _finished(manager, len(prompts)):
                        yield {key: teacher.completion(ids)}
            except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
                raise EngineError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error

    def _size(self, prompts: Mapping[str, Sequence[int]], settings: GenerationSettings) -> dict[str, int]:
        """Return the size of a cache in which `batch_size` of the prompts are written at a time."""
        pages = ceil((max(map(len, prompts.values())) + settings.max_new_tokens) / PAGE) + 1
        together = min(settings.batch_size, len(prompts))
        return {
            "num_blocks": together * pages,
            "max_batch_tokens": PAGE * pages,
            "max_requests_per_batch": together,
        }


def _finished(manager: Any, count: int) -> Iterator[tuple[str, list[int]]]:
    """Yield the key and the ids of each completion; raise EngineError if one fails, or the manager's thread ends."""
    for _ in range(count):
        result = None
        while result is None:
            result = manager.get_result(timeout=1)
            if result is None and not manager.is_running():
                raise EngineError("it ended before all completions were generated")
        if result.error is not None:
            raise EngineError(str(result.error).splitlines()[0])
        yield result.request_id, list(result.generated_tokens)
