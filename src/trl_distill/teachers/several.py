"""Several teachers of one run: each scores the rows it takes, or all of them are mixed at the rows they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import TeacherError
from ..several_collator import parts_of, rows_of_tokens
from ..targets import GroupedTargets, HiddenTargets, MixtureTargets, RetainedTargets, Targets
from ..teacher_list import TeacherList
from .base import Completion, GenerationSettings, Teacher, TextTeacher
from .local import LocalTeacher
from .prefix import Prefix
from .remote import RemoteTeacher
from .stored import StoredTeacher

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


class SeveralTeachers:
    """Teachers, each with a template of its own.

    One that stands in the list twice, under two templates, is one model in memory.

    Args:
        teachers: In the order of the list, each with its shared vocabulary set.
        listed: The list. Of a mixture, all that take a row score it; else the one teacher that a row names.

    Raises:
        TeacherError: A teacher of text or a store where their distributions are needed.
    """

    def __init__(self, teachers: Sequence[Teacher], listed: TeacherList) -> None:
        self.teachers = tuple(teachers)
        self.listed = listed
        self._prefixes: dict[int, Prefix] = {}
        for teacher, entry in zip(self.teachers, listed.teachers, strict=True):
            place = entry.place
            if isinstance(teacher, StoredTeacher):
                raise TeacherError(f"{place}: a store of targets is no teacher of a list; give the model it is of.")
            if listed.mixed and isinstance(teacher, TextTeacher):
                raise TeacherError(
                    f"{place}: {teacher.name!r} gives text only, which cannot be mixed; write combine: completions, or "
                    "leave it out."
                )
        both = zip(self.teachers, listed.teachers, strict=True)
        self.name = ", ".join(dict.fromkeys(teacher.name for teacher, entry in both if entry.retained is None))
        self.vocabulary = min((t.vocabulary for t in self.teachers if t.vocabulary is not None), default=None)
        if listed.mixed:
            self.share(min(t.vocabulary_rows if t.vocabulary is None else t.vocabulary for t in self.teachers))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The first one's; they agree."""
        return self.teachers[0].tokenizer

    @property
    def vocabulary_rows(self) -> int:
        """Rows of the smallest LM head."""
        return min(teacher.vocabulary_rows for teacher in self.teachers)

    @property
    def length_limit(self) -> int | None:
        """The smallest limit."""
        return min((t.length_limit for t in self.teachers if t.length_limit is not None), default=None)

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end what any of them writes."""
        return list(dict.fromkeys(stop for teacher in self.teachers for stop in teacher.stop_ids))

    def share(self, vocabulary: int) -> None:
        """Restrict all of them to the rows [0, vocabulary)."""
        self.vocabulary = vocabulary
        for teacher in self.teachers:
            teacher.share(vocabulary)

    def identity(self) -> dict[str, Any]:
        """Return each one's, and how they are combined."""
        weights = [entry.weight for entry in self.listed.teachers]
        teachers = [teacher.identity() for teacher in self.teachers]
        return {"teachers": teachers, "combine": self.listed.combine, "weights": weights}

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Refuse: prompts do not say whose they are.

        Raises:
            TeacherError: Always.
        """
        raise TeacherError("several teachers write under templates of their own; ask one of `teachers`.")

    def score(self, batch: Mapping[str, torch.Tensor]) -> Targets:
        """Return what the loss takes at the N completion positions of a `SeveralCollator` batch.

        Raises:
            TeacherError: A teacher in a mixture that gives no hidden states.
        """
        rows, parts = rows_of_tokens(batch), parts_of(batch)
        index = {i: torch.isin(rows, places).nonzero()[:, 0] for i, (places, _) in parts.items()}
        scored = {i: self._score(i, part) for i, (_, part) in parts.items()}
        kept = [(index[i], RetainedTargets(scored.pop(i))) for i in parts if i in self._retaining]  # type: ignore[arg-type]
        if not self.listed.mixed:
            return GroupedTargets([*((index[i], targets) for i, targets in scored.items()), *kept])
        if not kept:
            return self._mixture(len(rows), index, scored)
        if not scored:
            return GroupedTargets(kept)
        own = torch.cat([index[i] for i in scored]).unique()  # sorted
        among = {i: torch.searchsorted(own, index[i]) for i in scored}
        return GroupedTargets([(own, self._mixture(len(own), among, scored)), *kept])

    def score_retained(self, batch: Mapping[str, torch.Tensor]) -> GroupedTargets | None:
        """Return what is said of the rows to retain alone, nothing of the others; None where there are none."""
        rows, parts = rows_of_tokens(batch), parts_of(batch)
        kept = [(places, self._score(i, part)) for i, (places, part) in parts.items() if i in self._retaining]
        if not kept:
            return None
        among = torch.isin(rows, torch.cat([places for places, _ in kept]))
        others = (~among).nonzero()[:, 0]
        scored = [(torch.isin(rows, places).nonzero()[:, 0], RetainedTargets(said)) for places, said in kept if said]
        return GroupedTargets([*([(others, None)] if len(others) else []), *scored])

    @property
    def _retaining(self) -> list[int]:
        """Places in the list of those whose rows are to be retained."""
        return [i for i, entry in enumerate(self.listed.teachers) if entry.retained is not None]

    def _score(self, i: int, batch: Mapping[str, torch.Tensor]) -> Targets | None:
        """Return what one teacher says of its rows; None where it gives text only."""
        teacher = self.teachers[i]
        if isinstance(teacher, TextTeacher) and not (isinstance(teacher, RemoteTeacher) and teacher.scores):
            return None
        if not isinstance(teacher, LocalTeacher) or self.teachers.index(teacher) == i:
            return teacher.score(batch)
        first, mine = teacher.prefix, self._prefix_of(i)
        mine.off = first.off
        teacher.prefix = mine
        try:
            return teacher.score(batch)
        finally:
            teacher.prefix = first

    def expect_of(self, rows: Dataset) -> None:
        """Take what the prompts of each local teacher begin with as the prefix that is read once.

        Args:
            rows: Prepared rows, with `teachers` and `teacher_prompts`.
        """
        prompts: dict[int, list[list[int]]] = {}
        for teachers, own in zip(rows["teachers"], rows["teacher_prompts"], strict=True):
            for i, prompt in zip(teachers, own, strict=True):
                prompts.setdefault(i, []).append(prompt)
        for i, some in prompts.items():
            if isinstance(self.teachers[i], LocalTeacher):
                self._prefix_of(i).expect(some)

    def _prefix_of(self, i: int) -> Prefix:
        """Return a local teacher's prefix; the same model under another template has another beginning."""
        teacher: Any = self.teachers[i]
        if self.teachers.index(teacher) == i:
            return teacher.prefix
        return self._prefixes.setdefault(i, Prefix(teacher.config))

    def _mixture(self, tokens: int, index: Mapping[int, torch.Tensor], scored: Mapping[int, Any]) -> MixtureTargets:
        """Return the mixture at N tokens, each teacher's states put in the places of its rows."""
        parts, columns = [], []
        for i, targets in scored.items():
            if not isinstance(targets, HiddenTargets):
                raise TeacherError(f"{self.teachers[i].name} gives no full distribution, and cannot be mixed.")
            hidden, places = targets.hidden, index[i].to(targets.hidden.device)
            everywhere = hidden.new_zeros(tokens, hidden.shape[1]).index_copy_(0, places, hidden)
            parts.append(HiddenTargets(everywhere, targets.head, targets.vocabulary))
            columns.append(torch.zeros(tokens).index_fill_(0, index[i].cpu(), self.listed.teachers[i].weight))
        return MixtureTargets(parts, torch.stack(columns, 1), self.vocabulary)


def each(teacher: Teacher) -> tuple[Teacher, ...]:
    """Return the teachers that a run has: those of a list, each model once, or the one."""
    return tuple(dict.fromkeys(teacher.teachers)) if isinstance(teacher, SeveralTeachers) else (teacher,)
