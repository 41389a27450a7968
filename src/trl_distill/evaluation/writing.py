"""Generation for the sides of an evaluation: greedy, in the same batches, each completion once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from ..teachers.base import Teacher, reads_text
from ..teachers.completions.engines.selection import VLLM_ALONE
from ..teachers.completions.generate import complete, identity_of, keys_of
from ..teachers.local.teacher import LocalTeacher
from ..teachers.text.local_text import LocalTextTeacher

if TYPE_CHECKING:
    from ..models.generation import Completion, GenerationSettings
    from ..prompts.messages import Prompt
    from ..teachers.completions.store import CompletionStore


@dataclass(frozen=True)
class Writing:
    """How sides generate.

    Attributes:
        settings: Of all sides; greedy.
        order: The rows in the order in which they are written: a batch has the same rows on every side.
        progress: Whether to show a progress bar.
    """

    settings: GenerationSettings
    order: Sequence[int]
    progress: bool = True

    def of_model(
        self, model: LocalTeacher, prompts: Sequence[Sequence[int]], *, store: CompletionStore, label: str
    ) -> list[Completion]:
        """Generate completions with a model that reads token ids; stored ones are not generated again."""
        writer = _Writer(model)
        model.expect_prompts(prompts)
        if self.settings.engine == VLLM_ALONE:
            return complete(writer, prompts, self.settings, store=store, progress=self.progress)
        written: dict[int, Completion] = {}
        stored = all(key in store for key in keys_of(identity_of(writer, self.settings), prompts, distinct=False))
        hidden = stored or not self.progress
        with tqdm(total=len(prompts), desc=f"{label} writes", unit="row", disable=hidden) as bar:
            for batch in self._batches():
                settings = replace(self.settings, batch_size=len(batch))
                done = complete(writer, [prompts[i] for i in batch], settings, store=store, progress=False)
                written |= dict(zip(batch, done, strict=True))
                bar.update(len(batch))
        return [written[i] for i in range(len(prompts))]

    def of_text_teacher(
        self, teacher: Teacher, prompts: Sequence[Prompt], *, store: CompletionStore
    ) -> list[Completion]:
        """Generate completions with a teacher that reads text; all prompts are sent to a server at once."""
        assert reads_text(teacher)
        return teacher.write(prompts, self.settings, store=store, progress=self.progress)

    def _batches(self) -> Iterator[list[int]]:
        size = self.settings.batch_size
        for start in range(0, len(self.order), size):
            yield list(self.order[start : start + size])


class _Writer:
    """A model as `complete` calls it: its weights are hashed once, not once a batch."""

    def __init__(self, model: LocalTeacher) -> None:
        self.name, self.writer = model.name, model  # vLLM loads a teacher's `writer`

    @cached_property
    def _identity(self) -> dict[str, object]:
        return self.writer.identity()

    def identity(self) -> dict[str, object]:
        return self._identity

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        return self.writer.generate(prompts, settings)


def texts_of(model: LocalTeacher, prompts: Sequence[Sequence[int]], completions: Sequence[Completion]) -> list[str]:
    """Return completions as text, without the token that ends them.

    Args:
        model: Who wrote them; one that reads token ids.
        prompts: Their prompts, in the model's ids.
        completions: What was written.
    """
    reader = LocalTextTeacher(model)
    return [
        reader.decode(list(prompt), completion.without_end)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
