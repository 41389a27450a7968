"""A teacher writes inputs for its own prompt: it lists kinds and lengths, then writes inputs of each.

Every answer is stored. The requests are a fixed sequence, whatever was answered before, so that the same call, or one
for another number of inputs, asks for nothing that is in the store.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from ..data.input_collection import IN_WORDS, InputCollection, WrittenInput, evenly
from ..data.near_duplicates import NearDuplicates, normalised
from ..errors import DistillError
from ..models.generation import Completion, GenerationSettings
from ..prompts.input_requests import (
    ANY_KIND,
    APPLIES,
    DEFAULT_LENGTHS,
    LONGEST_KIND,
    PER_REQUEST,
    SHOWN,
    Request,
    continued_list,
    examples_in,
    pieces_of,
    request_for_inputs,
    request_for_list,
)
from ..prompts.listed_items import items_in, list_items
from ..prompts.messages import CLOSED, OPENED
from ..prompts.template import IDENTITY
from ..teachers.base import TextTeacher
from ..teachers.completions.store import CompletionStore
from ..teachers.remote.teacher import RemoteTeacher
from ..teachers.text.encoder_decoder import EncoderDecoderTeacher
from ..teachers.text.local_text import LocalTextTeacher

if TYPE_CHECKING:
    from ..config.queries_settings import QueriesSettings
    from ..data.diversity import HeldOut
    from ..prompts.messages import Prompt

LENGTHS = 4  # that are asked for
MOST = 20 * PER_REQUEST  # items that are read of an answer: a server may send a million
TRIES = 3  # answers from which a list is read, if the first has too few items
LEAST = 20  # new answers that a teacher may need for a few inputs
TIMES = 4  # as many new answers as would do if each had ten usable inputs


@dataclass(frozen=True)
class Wanted:
    """What a teacher is to write.

    Attributes:
        prompt: The teacher's, as one text.
        count: Inputs.
        most_kinds: Kinds of inputs that the teacher lists, edge cases included; up to as many list items of the
            prompt, such as rules, are used as kinds, too.
        kinds: Kinds that are given instead.
        lengths: Lengths of inputs that are given instead of those that the teacher lists.
        held_out: Rows that no input may be a near-duplicate of.
    """

    prompt: str
    count: int
    most_kinds: int
    kinds: tuple[str, ...] = ()
    lengths: tuple[str, ...] = ()
    held_out: HeldOut | None = None

    @classmethod
    def of(cls, settings: QueriesSettings, prompt: str, held_out: HeldOut | None) -> Wanted:
        """Return what the settings of `aitraining queries` want."""
        given = tuple(settings.kind or ()), tuple(settings.length or ())
        return cls(prompt, settings.count, settings.kinds, *given, held_out)


@dataclass(frozen=True)
class WrittenInputs:
    """What a teacher wrote.

    Attributes:
        inputs: As many distinct inputs as were wanted, evenly from the kinds.
        beyond: Distinct inputs that were written beyond those.
        collection: All inputs, those that were refused included.
        kinds: Kinds that were asked for.
        lengths: Lengths that were asked for.
        answers: Answers that were read.
        new_answers: Those of them that were not in the store.
        unreadable: Answers without a single item.
        notes: Lines for the user.
    """

    inputs: list[WrittenInput]
    beyond: int
    collection: InputCollection
    kinds: tuple[str, ...]
    lengths: tuple[str, ...]
    answers: int
    new_answers: int
    unreadable: int
    notes: tuple[str, ...] = ()


@dataclass
class QueryWriter:
    """Asks one teacher.

    Args:
        teacher: Who writes.
        wanted: What it is to write.
        generation: How it writes; it always samples, so that no two answers to a request are the same.
        store: Where answers are kept.
        setting: The setting that says how many inputs are wanted, in messages.
        name: What the teacher is called in messages (default: its own name).
        progress: Whether to show a progress bar.
    """

    teacher: TextTeacher
    wanted: Wanted
    generation: GenerationSettings
    store: CompletionStore
    setting: str = "--count"
    name: str = ""
    progress: bool = True
    new_answers: int = 0
    _notes: list[str] = field(default_factory=list)

    def write(self) -> WrittenInputs:
        """Return the inputs.

        Raises:
            DistillError: The teacher writes too few distinct ones, or see the teacher's `write`.
        """
        kinds, lengths, listings = self._kinds_and_lengths()
        wanted = self.wanted
        own = pieces_of(request_for_inputs("", kinds[0], lengths[0]))
        pieces = dict.fromkeys([wanted.prompt, *examples_in(wanted.prompt), *own, *kinds, *lengths])
        first = max(min(len(kinds), wanted.count), math.ceil(wanted.count / PER_REQUEST))
        asked, allowed, before = first, max(TIMES * first, LEAST), self.new_answers
        while True:
            requests = [_request(wanted.prompt, kinds, lengths, k) for k in range(asked)]
            answers = self._answers([request for _, request in requests])
            collection = InputCollection(examples=pieces, held_out=wanted.held_out)
            read = _read(answers)
            for (kind, _), items in zip(requests, read, strict=True):
                for item in items:
                    collection.offer(item, kind)
            missing, asked_anew = wanted.count - len(collection.inputs), self.new_answers - before
            unreadable = sum(not items for items in read)
            if missing <= 0:
                break
            if asked_anew >= allowed or (asked_anew >= max(2 * first, LEAST // 2) and not collection.inputs):
                cut = sum(not items and not one.finished for one, items in zip(answers, read, strict=True))
                raise self._too_few(collection, asked, unreadable, cut)
            per_answer = max(len(collection.inputs) / asked, 0.1)
            asked += min(math.ceil(missing / per_answer), asked, max(allowed - asked_anew, 1))
        chosen = evenly(collection.inputs, wanted.count)
        return WrittenInputs(
            inputs=chosen,
            beyond=len(collection.inputs) - len(chosen),
            collection=collection,
            kinds=kinds[:asked],
            lengths=lengths,
            answers=asked + listings,
            new_answers=self.new_answers,
            unreadable=unreadable,
            notes=tuple(self._notes),
        )

    def _kinds_and_lengths(self) -> tuple[tuple[str, ...], tuple[str, ...], int]:
        """Return the kinds and lengths to ask for, and from how many answers they were read."""
        wanted, listings = self.wanted, 0
        kinds, lengths = wanted.kinds, wanted.lengths
        if not kinds:
            edge_cases = wanted.most_kinds // 3
            ordinary, tries = self._listed("kinds", wanted.most_kinds - edge_cases)
            unusual, others = self._listed("edge cases", edge_cases) if edge_cases else ([], 0)
            listings += tries + others
            listed = _distinct([*ordinary, *unusual])
            pairs = zip_longest(listed, self._of_prompt(listed))
            kinds = tuple(kind for pair in pairs for kind in pair if kind is not None)
            if not kinds:
                self._notes.append("The teacher listed no kinds of inputs that can be read; give some by --kind.")
                kinds = (ANY_KIND,)
        if not lengths:
            found, tries = self._listed("lengths", LENGTHS)
            listings += tries
            lengths = tuple(found) or DEFAULT_LENGTHS
        return kinds, lengths, listings

    def _of_prompt(self, listed: Sequence[str]) -> list[str]:
        """Return a kind for each list item of the prompt, such as a rule; of too many some, from the whole prompt."""
        items = (_shortened(item) for item in list_items(self.wanted.prompt) if IDENTITY not in item)
        found = _distinct(items, unlike=listed)
        count = min(self.wanted.most_kinds, len(found))
        return [APPLIES + found[i * len(found) // count] for i in range(count)]

    def _listed(self, which: str, count: int) -> tuple[list[str], int]:
        """Return at most `count` items of a list that the teacher writes, and from how many answers."""
        request, found = request_for_list(self.wanted.prompt, which, count), list[str]()
        greedy = replace(self.generation, do_sample=False)
        for tries in range(1, TRIES + 1):  # the likeliest list first
            answers = self._answers([request], greedy) + self._answers([request] * (tries - 1))
            texts = [item for items in _read(answers) for item in items]
            cleaned = [_shortened(" ".join(text.replace("**", "").split())) for text in texts]
            found = _distinct(cleaned, unlike=SHOWN["kinds"])
            if len(found) >= (count + 1) // 2:
                break
        return found[:count], tries

    def _answers(self, requests: Sequence[Request], generation: GenerationSettings | None = None) -> list[Completion]:
        if not requests:
            return []
        before = len(self.store)
        answers = self.teacher.write(
            [self._prompt(request) for request in requests],
            generation or self.generation,
            store=self.store,
            progress=self.progress and len(requests) > 1,
        )
        self.new_answers += len(self.store) - before
        return answers if not self._continues else [_continued(answer) for answer in answers]

    @property
    def _continues(self) -> bool:
        """Whether the teacher continues a text instead of answering a message."""
        teacher = self.teacher
        if isinstance(teacher, RemoteTeacher):
            return teacher.settings.endpoint == "completions"
        if isinstance(teacher, EncoderDecoderTeacher) or not isinstance(teacher, LocalTextTeacher):
            return False
        return teacher.writer.tokenizer.chat_template is None

    def _prompt(self, request: Request) -> Prompt:
        teacher = self.teacher
        if isinstance(teacher, EncoderDecoderTeacher):  # most of these read 512 tokens
            return request.text
        prompt = self._rendered(request)
        if isinstance(teacher, LocalTextTeacher) and teacher.prompt_limit is not None:
            return prompt if len(teacher.tokenize(prompt)) <= teacher.prompt_limit else self._rendered(request.alone)
        return prompt

    def _rendered(self, request: Request) -> Prompt:
        return request.to_continue if self._continues else request.messages

    def _too_few(self, collection: InputCollection, asked: int, unreadable: int, cut: int) -> DistillError:
        found, most = len(collection.inputs), self.generation.max_new_tokens
        why = [f"{count:,} {IN_WORDS[reason]}" for reason, count in collection.counts().items()]
        why += [f"{unreadable:,} answers without a list"] if unreadable else []
        why += [f"{cut:,} of them cut at {most:,} tokens"] if cut else []
        kept = "" if self.store.path is None else f" The answers are kept in {self.store.path}."
        use = f"{self.setting} {found} to use these, " if found else ""
        are_cut = cut > unreadable // 2  # as of a model that reasons first
        sampling = f"a --max-new-tokens above {most:,}, " if are_cut else "another --temperature, "
        sampling = sampling if self.setting != "--queries-from-prompt" else ""
        return DistillError(
            f"teacher_model {(self.name or self.teacher.name)!r} wrote {found:,} distinct inputs of "
            f"{self.wanted.count:,} in {asked:,} answers ({', '.join(why) or 'nothing else'}); give {use}{sampling}a "
            f"teacher that follows instructions better, or inputs of your own.{kept}"
        )


def _request(prompt: str, kinds: Sequence[str], lengths: Sequence[str], k: int) -> tuple[str, Request]:
    """Return the kind and the request number `k`: each kind in turn, the lengths in turn under each."""
    kind = kinds[k % len(kinds)]
    return kind, request_for_inputs(prompt, kind, lengths[(k + k // len(kinds)) % len(lengths)])


def _text(answer: Completion) -> str:
    """Return what a teacher answered, without the reasoning that some models write before it."""
    text = "" if answer.unusable else answer.text or ""
    if CLOSED in text:
        return text.rpartition(CLOSED)[2]
    return "" if text.lstrip().startswith(OPENED) else text


def _read(answers: Sequence[Completion]) -> list[list[str]]:
    """Return the items of each answer, at most `MOST` of them.

    If a teacher writes lists, its answers of a line or two are refusals or answer the prompt, and have no items.
    """
    found = [items_in(_text(one), finished=one.finished)[:MOST] for one in answers]
    if any(found):
        return found
    return [items_in(_text(one), finished=one.finished, least_lines=1) for one in answers]


def _continued(answer: Completion) -> Completion:
    """Return the answer of a model that continued a list, up to the end of that list."""
    text, ended = continued_list(answer.text or "")
    return Completion((), answer.finished or ended, text, unusable=answer.unusable)


def _shortened(kind: str) -> str:
    """Return a kind with at most `LONGEST_KIND` characters, if possible up to a space."""
    if len(kind) <= LONGEST_KIND:
        return kind
    start, end = kind[: LONGEST_KIND - 30], kind[LONGEST_KIND - 30 : LONGEST_KIND - 4]
    return f"{start}{end.rpartition(' ')[0] or end} ..."


def _distinct(texts: Iterable[str], *, unlike: Iterable[str] = ()) -> list[str]:
    """Return the texts that are near-duplicates of none before them and of none of `unlike`."""
    index = NearDuplicates(map(normalised, unlike))
    return [text for text in texts if index.find_or_add(normalised(text)) is None]


def usage_text(teacher: TextTeacher) -> str:
    """Return what a server was asked and what that cost; empty for a local teacher."""
    return teacher.server.usage.text(teacher.settings) if isinstance(teacher, RemoteTeacher) else ""


def lines_of(written: WrittenInputs, teacher: TextTeacher) -> list[str]:
    """Return the lines for a terminal: inputs of each kind, what was refused and why, and what was asked."""
    sizes = {kind: sum(one.kind == kind for one in written.inputs) for kind in written.kinds}
    lines = [*written.notes, f"Lengths asked for: {'; '.join(written.lengths)}.", f"{'inputs':>9}  kind"]
    lines += [f"{count:9,}  {kind}" for kind, count in sizes.items()]
    lines.append(f"{len(written.inputs):,} distinct inputs, written by the teacher.")
    lines += [f"  {count:,} others {IN_WORDS[reason]}" for reason, count in written.collection.counts().items()]
    lines += [f"  {written.beyond:,} others beyond what was asked for"] if written.beyond else []
    lines += [f"  {written.unreadable:,} answers without a list"] if written.unreadable else []
    used = usage_text(teacher)
    old = written.answers - written.new_answers
    lines.append(f"{written.answers:,} answers read, {old:,} of them kept from before{f'; {used}' if used else ''}.")
    return lines


def report_of(written: WrittenInputs, teacher: TextTeacher) -> dict[str, object]:
    """Return what was written, refused and asked, for JSON."""
    used = teacher.server.usage if isinstance(teacher, RemoteTeacher) else None
    cost = None if used is None else used.cost(teacher.settings)  # type: ignore[attr-defined]
    return {
        "inputs": len(written.inputs),
        "kinds": {kind: sum(one.kind == kind for one in written.inputs) for kind in written.kinds},
        "lengths": list(written.lengths),
        "answers": written.answers,
        "new_answers": written.new_answers,
        "unreadable_answers": written.unreadable,
        "beyond": written.beyond,
        "near_duplicates": NearDuplicates.how(),
        "counts": {str(reason): count for reason, count in written.collection.counts().items()},
        "usage": None if used is None else {**vars(used), "cost": cost},
        "refused": [one.to_dict() for one in written.collection.refused],
    }
