"""A student's and a teacher's different tokenizers: one completion in both, and which tokens match."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from ...errors import TeacherError
from ...losses.reference import Matched
from ...prompts.chat_template import ChatTemplate
from ...prompts.fitting import Limits, fit
from ...prompts.shared_vocabulary import PROBE
from ...prompts.tokenization import tokenize_completion
from .byte_spans import ALIKE, STUDENT_SPACE, TEACHER_SPACE, ByteSpan, align
from .token_bytes import token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..aligned_row import AlignedRow

COLUMNS = ("teacher_completion", "student_starts", "teacher_starts", "span_kinds")
KINDS = (ALIKE, STUDENT_SPACE, TEACHER_SPACE)


class TokenizerPair:
    """A student's and a teacher's tokenizer, and which of their tokens are the same.

    The tokens that end a completion (of a turn, of a text) are matched with each other, special tokens by their name,
    all others by their bytes, those with equal ones from the highest id on. Ids beyond the rows of a model's LM head
    are left out.

    Attributes:
        ends: The teacher's token that ends a completion, by the student's.
        matched: Which tokens are the same, by kind of span.

    Raises:
        TeacherError: Both write a text of plain English in bytes that have nothing in common.
    """

    def __init__(
        self,
        student: PreTrainedTokenizerBase,
        teacher: PreTrainedTokenizerBase,
        *,
        student_rows: int,
        teacher_rows: int,
        teacher_name: str = "the teacher",
    ) -> None:
        self.student, self.teacher = student, teacher
        self.ends = _ends(student, teacher)
        self._student_bytes = _without_ids(token_bytes(student)[:student_rows], self.ends)
        self._teacher_bytes = _without_ids(token_bytes(teacher)[:teacher_rows], self.ends.values())
        if not self.spans(*(list(t(PROBE, add_special_tokens=False)["input_ids"]) for t in (student, teacher))):
            raise TeacherError(
                f"teacher_model {teacher_name!r} has a tokenizer whose tokens cannot be compared with the student's "
                f"by their bytes; choose a teacher with byte-level BPE or sentencepiece, or learn from its completions "
                "alone."
            )
        named = self._pairs_without_bytes()
        self.matched = {kind: self._matched(kind, named) for kind in KINDS}

    @property
    def shared(self) -> int:
        """The number of matched tokens."""
        return len(self.matched[ALIKE].student)

    def teacher_completion(self, text: str, completion: Sequence[int]) -> list[int]:
        """Return the teacher's ids of a text; they end as the student's `completion` does."""
        return self._ended(tokenize_completion(self.teacher, text, finished=False), completion)

    def written(self, ids: Sequence[int], *, finished: bool, chat: bool) -> tuple[list[int], list[int]]:
        """Return the student's and the teacher's ids of a completion that the teacher wrote.

        The teacher's `ids` have its stop token if they are `finished`; `chat` is an assistant's turn.
        """
        own = list(ids[:-1] if finished else ids)
        text = str(self.teacher.decode(own, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        if not finished:
            text = text.rstrip("\ufffd")  # a character that was cut
        completion = tokenize_completion(self.student, text, chat=chat, finished=finished) if text or finished else []
        return completion, self._ended(own, completion)

    def spans(self, student: Sequence[int], teacher: Sequence[int]) -> list[ByteSpan]:
        """Return the spans of a completion's ids on both sides; its end is one if both end the same text."""
        ended = bool(student) and bool(teacher) and self.ends.get(student[-1]) == teacher[-1]
        mine, theirs = (student[:-1], teacher[:-1]) if ended else (student, teacher)
        spans, whole = align(
            [_bytes_of(self._student_bytes, i) for i in mine], [_bytes_of(self._teacher_bytes, i) for i in theirs]
        )
        if ended and whole:
            spans.append(ByteSpan((len(mine), len(student)), (len(theirs), len(teacher))))
        return spans

    def fit(self, row: AlignedRow, limits: Limits) -> dict[str, object]:
        """Return a row's columns as each side fits its own model (see `fitting.fit`), and its spans."""
        completion, theirs = row.completion, row.teacher_completion
        spans = self.spans(completion, theirs)
        mine = fit(row.student_prompt, [], completion, limits._replace(teacher=None))
        other = fit([], row.teacher_prompt, theirs, limits._replace(student=None))
        ends = len(mine.completion), len(other.completion)
        spans = [span for span in spans if span.student[1] <= ends[0] and span.teacher[1] <= ends[1]]
        return {
            "student_prompt": mine.student_prompt,
            "teacher_prompt": other.teacher_prompt,
            "completion": mine.completion,
            "teacher_completion": theirs[: spans[-1].teacher[1] if spans else 1],  # what follows is not compared
            "student_starts": [span.student[0] for span in spans],
            "teacher_starts": [span.teacher[0] for span in spans],
            "span_kinds": [span.kind for span in spans],
            "prompt_cut": mine.prompt_cut + other.prompt_cut,
            "completion_cut": mine.completion_cut,
        }

    def _ended(self, own: list[int], completion: Sequence[int]) -> list[int]:
        """Return the teacher's ids with its match of the token that ends the student's."""
        end = self.ends.get(completion[-1]) if completion else None
        return own if end is None else [*own, end]

    def _pairs_without_bytes(self) -> list[tuple[int, int]]:
        """Return the pairs of tokens without bytes: the ends, and special tokens of one name."""
        pairs = dict(self.ends)
        theirs = self.teacher.get_vocab()
        for token, index in self.student.get_vocab().items():
            other = theirs.get(token)
            if other is None or index in pairs or other in pairs.values():
                continue
            if _bytes_of(self._student_bytes, index) is _bytes_of(self._teacher_bytes, other) is None:
                pairs[index] = other
        rows = len(self._student_bytes), len(self._teacher_bytes)
        return [(mine, other) for mine, other in pairs.items() if mine < rows[0] and other < rows[1]]

    def _matched(self, kind: int, named: list[tuple[int, int]]) -> Matched:
        """Return which tokens are the same at a span of a kind, in the order of the student's ids."""
        mine = _by_bytes(self._student_bytes, spaced=kind == STUDENT_SPACE)
        theirs = _by_bytes(self._teacher_bytes, spaced=kind == TEACHER_SPACE)
        pairs = list(named)
        for text in mine.keys() & theirs.keys():  # from the last on: a byte piece has a lower id than a token of it
            pairs += zip(reversed(mine[text]), reversed(theirs[text]), strict=False)
        pairs.sort()
        same = [one for one, _ in pairs], [other for _, other in pairs]
        sides = (self.student, self._student_bytes, same[0]), (self.teacher, self._teacher_bytes, same[1])
        left = (sorted({i for i in t.get_vocab().values() if i < len(table)} - set(ids)) for t, table, ids in sides)
        return Matched(*(torch.tensor(ids, dtype=torch.long) for ids in (*same, *left)))


def _ends(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> dict[int, int]:
    """Return the teacher's token that ends a turn, and that ends a text, by the student's; each is matched once."""
    pairs: dict[int, int] = {}
    for mine, theirs in (
        (ChatTemplate(student).end_token, ChatTemplate(teacher).end_token),
        (student.eos_token_id, teacher.eos_token_id),
    ):
        if mine is not None and theirs is not None and mine not in pairs and theirs not in pairs.values():
            pairs[mine] = theirs
    return pairs


def _bytes_of(table: Sequence[bytes | None], index: int) -> bytes | None:
    return table[index] if index < len(table) else None


def _without_ids(table: list[bytes | None], ids: Iterable[int]) -> list[bytes | None]:
    """Take the bytes from some ids, which need not be special tokens."""
    for index in ids:
        if index < len(table):
            table[index] = None
    return table


def _by_bytes(table: Sequence[bytes | None], *, spaced: bool) -> dict[bytes, list[int]]:
    """Return ids by their bytes; with `spaced`, of the tokens that begin with a space, by what follows it."""
    found: dict[bytes, list[int]] = {}
    for index, text in enumerate(table):
        if text is not None and (not spaced or (text.startswith(b" ") and len(text) > 1)):
            found.setdefault(text[1:] if spaced else text, []).append(index)
    return found
