"""Several teachers as one: each scores its own rows, or the distributions of a row's teachers are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...config.devices import on_device
from ...errors import TeacherError
from ...losses.signals import DenseSignal, MixtureSignal, PerRowSignal, RetainedSignal, TeacherSignal
from ...models.adapters import is_peft_model
from ...models.batch_layout import LAYOUT, BatchLayout, layout_of
from ...models.generation import Completion, GenerationSettings
from ..base import Capabilities, Teacher, single_teachers
from ..compatibility import LIST, MIXTURE, require
from ..local import fingerprint
from ..local.prefix_cache import PrefixCache
from ..local.teacher import LocalTeacher
from ..local.weights import FrozenCopy
from .entries import TeacherList

MIB = 2**20


def attach_student(teacher: Teacher, student: PreTrainedModel | PeftModel, *, fresh: bool = True) -> str:
    """Attach the student, as its trainer has wrapped it before the first step, to the teachers that share its weights.

    A teacher whose weights are the student's serves as its starting point too. `fresh` says whether the student's
    adapter was made for this run. The returned sentence says how much memory a copy of the starting weights takes; it
    is empty without a copy.

    Raises:
        TeacherError: See the `attach_student` of the weight sources.
    """
    if isinstance(teacher, MultiTeacher) and not is_peft_model(student):
        same = next((t for t in teacher.teachers if _has_weights_of(t, student)), None)
        if same is not None:
            teacher.teachers = tuple(same if _starting_point(t) else t for t in teacher.teachers)
    note = ""
    for one in single_teachers(teacher):
        if not isinstance(one, LocalTeacher):
            continue
        one.attach_student(student, fresh=fresh)
        start = _starting_point(one)
        if start is not None and start.is_copy:
            size = sum(p.numel() * p.element_size() for p in one.model.parameters()) / MIB
            note = f"Retention: a frozen copy of the weights that the student starts from takes {size:,.0f} MiB more."
    return note


def _starting_point(teacher: Teacher) -> FrozenCopy | None:
    """Return the weights that the student starts from if they are a teacher's."""
    return teacher.weights if isinstance(teacher, LocalTeacher) and isinstance(teacher.weights, FrozenCopy) else None


def _has_weights_of(teacher: Teacher, student: PreTrainedModel | PeftModel) -> bool:
    """Whether a teacher's weights are the student's, precision included."""
    if not isinstance(teacher, LocalTeacher) or teacher.weights.of_student:
        return False
    named_alike = teacher.config._name_or_path == student.config._name_or_path
    return named_alike and fingerprint.of_model(teacher.model) == fingerprint.of_model(student)


class MultiTeacher:
    """Teachers, each with a template of its own.

    A teacher that is listed twice, with two templates, is one model in memory.

    Args:
        teachers: In the order of the list, each with its shared vocabulary set.
        listed: The list. In a mixture all teachers of a row score it; else the one that the row names.

    Raises:
        TeacherError: A store, or a teacher of text in a mixture.
    """

    def __init__(self, teachers: Sequence[Teacher], listed: TeacherList) -> None:
        self.teachers = tuple(teachers)
        self.listed = listed
        self.prefixes: dict[int, PrefixCache] = {}  # one model under two templates has two
        names = []
        for i, (teacher, entry) in enumerate(zip(self.teachers, listed.teachers, strict=True)):
            require(LIST, teacher, setting=entry.place)
            if listed.mixed:
                require(MIXTURE, teacher, setting=entry.place)
            if isinstance(teacher, LocalTeacher):
                self.prefixes[i] = PrefixCache(teacher.config)
            if entry.retained is None:
                names.append(teacher.name)
        self.name = ", ".join(dict.fromkeys(names))
        self.vocabulary = min((t.vocabulary for t in self.teachers if t.vocabulary is not None), default=None)
        if listed.mixed:
            self.restrict_vocabulary(
                min(t.vocabulary_rows if t.vocabulary is None else t.vocabulary for t in self.teachers)
            )

    @property
    def capabilities(self) -> Capabilities:
        """They score rows that are known before training, each with its teacher."""
        return Capabilities(dense=False, single=False, shardable=False)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.teachers[0].tokenizer

    @property
    def vocabulary_rows(self) -> int:
        return min(teacher.vocabulary_rows for teacher in self.teachers)

    @property
    def length_limit(self) -> int | None:
        return min((t.length_limit for t in self.teachers if t.length_limit is not None), default=None)

    @property
    def stop_ids(self) -> list[int]:
        return list(dict.fromkeys(stop for teacher in self.teachers for stop in teacher.stop_ids))

    def restrict_vocabulary(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        for teacher in self.teachers:
            teacher.restrict_vocabulary(vocabulary)

    def identity(self) -> dict[str, object]:
        weights = [entry.weight for entry in self.listed.teachers]
        teachers = [teacher.identity() for teacher in self.teachers]
        return {"teachers": teachers, "combine": self.listed.combine, "weights": weights}

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Raise TeacherError: prompts do not say which teacher they are for."""
        raise TeacherError("several teachers write under templates of their own; ask one of `teachers`.")

    def score(self, batch: Mapping[str, Any]) -> TeacherSignal:
        """Return the signal for the N completion positions of a `MultiTeacherCollator` batch.

        Raises:
            TeacherError: A teacher in a mixture that gives no hidden states.
        """
        layout, device = layout_of(batch), batch["input_ids"].device
        index = layout.tokens_of_teachers
        scored = {i: self._score(i, batch, layout) for i in index}
        kept = [(on_device(index[i], device), RetainedSignal(scored.pop(i))) for i in index if i in self._retaining]  # type: ignore[arg-type]
        if not self.listed.mixed:
            return PerRowSignal([*((on_device(index[i], device), signal) for i, signal in scored.items()), *kept])
        if not kept:
            return self._mixture(len(layout.student.places), index, scored)
        if not scored:
            return PerRowSignal(kept)
        own = np.unique(np.concatenate([index[i] for i in scored]))
        among = {i: np.searchsorted(own, index[i]) for i in scored}
        return PerRowSignal([(on_device(own, device), self._mixture(len(own), among, scored)), *kept])

    def score_retained(self, batch: Mapping[str, Any]) -> PerRowSignal | None:
        """Return the signal for the rows to retain, with none for other rows; None without such rows."""
        layout, device = layout_of(batch), batch["input_ids"].device
        index = {i: tokens for i, tokens in layout.tokens_of_teachers.items() if i in self._retaining}
        if not index:
            return None
        others = np.setdiff1d(np.arange(len(layout.student.places)), np.concatenate([*index.values()]))
        scored = [(on_device(tokens, device), self._score(i, batch, layout)) for i, tokens in index.items()]
        kept = [(tokens, RetainedSignal(signal)) for tokens, signal in scored if signal]
        return PerRowSignal([*([(on_device(others, device), None)] if len(others) else []), *kept])

    @property
    def _retaining(self) -> list[int]:
        """List indices of the teachers of retained rows."""
        return [i for i, entry in enumerate(self.listed.teachers) if entry.retained is not None]

    def _score(self, i: int, whole: Mapping[str, Any], layout: BatchLayout) -> TeacherSignal | None:
        """Return a teacher's signal at its rows; None if it gives text only."""
        batch = {f"teacher_{name}": whole[f"teacher{i}_{name}"] for name in ("input_ids", "attention_mask", "labels")}
        batch[LAYOUT] = replace(layout, teacher=layout.teachers[i][0])
        teacher = self.teachers[i]
        if not teacher.capabilities.scores:
            return None
        if isinstance(teacher, LocalTeacher):
            teacher.prefix = self.prefixes[i]
        return teacher.score(batch)

    def expect_rows(self, rows: Dataset) -> None:
        """Let each local teacher expect the common prefix of its prompts in prepared rows."""
        prompts: dict[int, list[list[int]]] = {}
        for teachers, own in zip(rows["teachers"], rows["teacher_prompts"], strict=True):
            for i, prompt in zip(teachers, own, strict=True):
                prompts.setdefault(i, []).append(prompt)
        for i in self.prefixes.keys() & prompts.keys():
            self.prefixes[i].expect_prompts(prompts[i])

    def _mixture(
        self, tokens: int, index: Mapping[int, np.ndarray], scored: Mapping[int, TeacherSignal | None]
    ) -> MixtureSignal:
        """Return the mixture at N tokens, each teacher's states put in the places of its rows."""
        parts, weights = [], np.zeros((tokens, len(scored)), np.float32)
        for column, (i, signal) in enumerate(scored.items()):
            if not isinstance(signal, DenseSignal):
                raise TeacherError(f"{self.teachers[i].name} gives no full distribution, and cannot be mixed.")
            hidden = signal.hidden
            places = on_device(index[i], hidden.device)
            everywhere = hidden.new_zeros(tokens, hidden.shape[1]).index_copy_(0, places, hidden)
            parts.append(DenseSignal(everywhere, signal.head, signal.vocabulary))
            weights[index[i], column] = self.listed.teachers[i].weight
        return MixtureSignal(parts, on_device(weights, parts[0].hidden.device), self.vocabulary)
