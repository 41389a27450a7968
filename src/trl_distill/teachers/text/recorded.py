"""Teachers that have written already: the data's column `teacher` names them, and nothing is asked of them any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...data.rows import WRITER
from ...errors import DataError
from ...models.generation import Completion, GenerationSettings
from ..completions.store import CompletionStore
from .base import TextOnly

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


class WrittenTeacher(TextOnly):
    """The teachers that a dataset names as those who wrote its completions.

    Args:
        names: Their names.
        tokenizer: The student's.
    """

    def __init__(self, names: Sequence[str], *, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(", ".join(names), tokenizer=tokenizer)

    def identity(self) -> dict[str, Any]:
        """Their names: nothing is kept under it."""
        return {"written by": self.name}

    def describe(self) -> str:
        """Say who wrote, and how it is learnt from."""
        return f"none is asked; {self.name} wrote the data's completions, which are learnt by cross-entropy alone"

    def write(
        self,
        prompts: Sequence[str | list[dict[str, Any]]],
        settings: GenerationSettings,
        *,
        store: CompletionStore | None = None,
        progress: bool = True,
    ) -> list[Completion]:
        """Refuse: they wrote all they will.

        Raises:
            DataError: Always.
        """
        raise DataError(
            f"{len(prompts):,} rows have no completion, and no teacher is named that could write them; add the "
            "completions, or give --teacher-model."
        )


def writers_of(dataset: Dataset | None) -> tuple[str, ...]:
    """Return the names of the teachers that wrote a dataset's completions, in the order of its rows.

    Args:
        dataset: Rows as the user has them.

    Returns:
        What its column `teacher` says; nothing where there is no such column, or a row of it says nothing.
    """
    if WRITER not in (getattr(dataset, "column_names", None) or ()) or not hasattr(dataset, "unique"):
        return ()  # a stream is not read to its end for that
    assert dataset is not None
    names = dataset.unique(WRITER)
    return tuple(names) if all(isinstance(name, str) and name.strip() for name in names) else ()
