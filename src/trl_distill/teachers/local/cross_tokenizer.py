"""A local teacher with a different tokenizer than the student's, compared where both have read the same text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ...data.cross_tokenizer.byte_spans import ALIKE
from ...data.cross_tokenizer.tokenizer_pair import TokenizerPair
from ...errors import TeacherError
from ...losses import Matched
from ...losses.signals import CrossTokenizerSignal, DenseSignal
from ...models.batch_layout import LAYOUT, layout_of
from ..base import Capabilities, Teacher
from ..compatibility import CROSS_TOKENIZER, require
from .teacher import LocalTeacher


class CrossTokenizerTeacher(LocalTeacher):
    """A local teacher, with its tokens matched to the student's.

    Args:
        local: The teacher; its tokenizer gets a padding token if it has none.
        tokenizer: The student's.
        student_rows: Rows of the student's LM head.

    Attributes:
        vocabulary: None; no row means the same to both.

    Raises:
        TeacherError: See `TokenizerPair`.
    """

    def __init__(self, local: LocalTeacher, *, tokenizer: PreTrainedTokenizerBase, student_rows: int) -> None:
        vars(self).update(vars(local))  # its model too, if it is loaded
        self.vocabulary = None
        self.tokenizer_pair = TokenizerPair(
            tokenizer,
            local.tokenizer,
            student_rows=student_rows,
            teacher_rows=local.vocabulary_rows,
            teacher_name=local.name,
        )
        self._matched: dict[torch.device, dict[int, Matched]] = {}
        if self.tokenizer.pad_token_id is None:  # the student's may be no row of the teacher's
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.convert_ids_to_tokens(0)

    @property
    def capabilities(self) -> Capabilities:
        """It scores the spans of text that both tokenizers agree on."""
        return Capabilities(dense=False, scores_unseen=False, scores_gaps=False, same_tokenizer=False)

    @property
    def student_stop_ids(self) -> list[int]:
        """The student's ids of the teacher's stop tokens that both have."""
        same = self.tokenizer_pair.matched[ALIKE]
        by_theirs = dict(zip(same.teacher.tolist(), same.student.tolist(), strict=True))
        return [by_theirs[stop] for stop in self.stop_ids if stop in by_theirs]

    def restrict_vocabulary(self, vocabulary: int) -> None:
        """Do nothing: completions reach the student as text."""

    def score(self, batch: Mapping[str, Any]) -> CrossTokenizerSignal:
        """Return the teacher's hidden states at the beginning of each span, and which tokens are the same there."""
        layout = layout_of(batch)
        assert layout.kinds is not None
        found = super().score({**batch, LAYOUT: layout})
        assert isinstance(found, DenseSignal)
        return CrossTokenizerSignal(found.hidden, found.head, layout.kinds, self._matched_on(batch["input_ids"].device))

    def _matched_on(self, device: torch.device) -> dict[int, Matched]:
        if device not in self._matched:
            self._matched[device] = {kind: one.to(device) for kind, one in self.tokenizer_pair.matched.items()}
        return self._matched[device]


def check_brings_tokenizer(spec: object) -> None:
    """Raise TeacherError for a loaded model, which does not say which tokenizer is its own."""
    if not isinstance(spec, (str, Teacher)):
        raise TeacherError(
            "teacher_model is a loaded model, and cross_tokenizer needs its tokenizer too; give "
            "load_teacher(model, tokenizer=its_tokenizer)."
        )


def with_cross_tokenizer(
    teacher: Teacher, *, tokenizer: PreTrainedTokenizerBase, student_rows: int
) -> CrossTokenizerTeacher:
    """Return a local teacher as one with another tokenizer than the student's; raise TeacherError for others."""
    if isinstance(teacher, CrossTokenizerTeacher):
        return teacher
    require(CROSS_TOKENIZER, teacher)
    assert isinstance(teacher, LocalTeacher)
    return CrossTokenizerTeacher(teacher, tokenizer=tokenizer, student_rows=student_rows)
