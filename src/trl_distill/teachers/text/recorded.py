"""Teachers that generated the data's completions, named in its column `teacher`; they are not loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import DataError, counted
from ...models.generation import Completion, GenerationSettings
from ..base import Capabilities, TextTeacher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...prompts.rendering import Prompt


class RecordedTeacher(TextTeacher):
    """The teachers that a dataset names for its completions."""

    def __init__(self, names: Sequence[str], *, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(", ".join(names), tokenizer=tokenizer)

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, writes=False, renders=False)

    def identity(self) -> dict[str, object]:
        """Their names: nothing is kept under it."""
        return {"written by": self.name}

    def describe(self) -> str:
        return f"none loaded; {self.name} wrote the data's completions, which are learned by cross-entropy alone"

    def write(self, prompts: Sequence[Prompt], settings: GenerationSettings, **kept: object) -> list[Completion]:
        raise DataError(
            f"{counted(len(prompts), 'row')} without a completion, and no teacher is given to generate one; add "
            "completions, or give --teacher-model."
        )
