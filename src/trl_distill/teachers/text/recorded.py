"""Teachers that generated the data's completions, named in its column `teacher`; they are not loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...data.rows import WRITER
from ...errors import DataError
from ...models.generation import Completion, GenerationSettings
from ..base import Capabilities, TextTeacher

if TYPE_CHECKING:
    from datasets import Dataset
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
            f"{len(prompts):,} rows have no completion, and no teacher is given to generate them; add the "
            "completions, or give --teacher-model."
        )


def writers_of(dataset: Dataset | None) -> tuple[str, ...]:
    """Return the names of the teachers that wrote a dataset's completions, in the order of its rows.

    They are what its column `teacher` says; nothing if there is no such column, or a row of it is empty.
    """
    if WRITER not in (getattr(dataset, "column_names", None) or ()) or not hasattr(dataset, "unique"):
        return ()  # a stream is not read to its end for that
    assert dataset is not None
    names = dataset.unique(WRITER)
    return tuple(names) if all(isinstance(name, str) and name.strip() for name in names) else ()
