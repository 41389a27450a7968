"""A top-k store's targets from vLLM: computed in any order there, returned in the store's order here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ...models.loading import ModelSource
from ..base import Teacher
from ..completions.engines.base import EngineError
from ..completions.engines.selection import refusal
from ..completions.engines.vllm import VLLM, Scores
from .folder import sequence_key
from .formats import TargetFormat, TopKFormat
from .formats.base import Arrays

Row: TypeAlias = Mapping[str, Any]


class VLLMScores:
    """vLLM's log-probabilities of sequences; its process starts with the first batch, and ends with `close`.

    `rows` are in the order of the batches to come, which may leave some out.
    """

    name = VLLM.name

    def __init__(self, teacher: Teacher, format_: TargetFormat, rows: Sequence[Row]) -> None:
        assert isinstance(format_, TopKFormat)
        self.teacher, self.format, self._rows = teacher, format_, rows
        self._coming: Iterator[tuple[str, Scores]] | None = None
        self._found: dict[str, Scores] = {}

    def encode(self, batch: Sequence[Row]) -> Arrays:
        """Return what is stored of a batch's N tokens; raise TeacherError if vLLM fails."""
        if self._coming is None:
            first = next(i for i, row in enumerate(self._rows) if _sequence_key(row) == _sequence_key(batch[0]))
            asked = {
                _sequence_key(row): ([*row["teacher_prompt"], *row["completion"]], _targets(row))
                for row in self._rows[first:]
                if _targets(row)
            }
            self._coming = VLLM(self.teacher).score(asked, self.format.k) if asked else iter(())
        nothing = (np.empty((0, self.format.k), np.int32), np.empty((0, self.format.k), np.float32))
        found = [self._take(_sequence_key(row)) if _targets(row) else nothing for row in batch]
        ids, log_probs = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return self.format.at_one(ids, log_probs)

    def _take(self, key: str) -> Scores:
        assert self._coming is not None
        try:
            while key not in self._found:
                name, scores = next(self._coming)
                self._found[name] = scores
        except EngineError as error:
            raise refusal(self.teacher, error, "score") from error
        return self._found.pop(key)

    def close(self) -> None:
        if self._coming is not None:
            getattr(self._coming, "close", bool)()


def why_unlike(teacher: Teacher, format_: TargetFormat) -> str | None:
    """Return why vLLM's log-probabilities cannot be stored in this format; None if they can.

    They are those of the k likeliest tokens, at T = 1, over all of the teacher's rows.
    """
    if not isinstance(format_, TopKFormat):
        return f"targets of the kind {format_.name} are more than the likeliest tokens"
    if format_.temperatures != (1.0,):
        there = ", ".join(f"{temperature:g}" for temperature in format_.temperatures)
        return f"it has probabilities at T = 1, and the store is for T = {there}"
    if format_.vocabulary != teacher.vocabulary_rows:
        rows = f"{teacher.vocabulary_rows:,} tokens, of which the student has {format_.vocabulary:,}"
        return f"its probabilities are over the teacher's {rows}"
    source: ModelSource | None = getattr(teacher, "source", None)
    if source is not None and source.adapter is not None:
        # vLLM 0.32 fails, or reads another
        return "for a teacher with an adapter it gives no log-probabilities of a given completion"
    return None


def _sequence_key(row: Row) -> str:
    return sequence_key(row["teacher_prompt"], row["completion"]).hex()


def _targets(row: Row) -> int:
    """Return how many tokens of a completion have a target: under an empty prompt the first has none."""
    return len(row["completion"]) - (not row["teacher_prompt"])
