"""Counts the greedy completions of an exported form that equal the trained student's."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from ...config.devices import accelerator
from ...evaluation.models import students_in_folder
from ...evaluation.writing import texts_of
from ...models.generation import GenerationSettings
from ...models.own_chat_template import own_tokenizer

if TYPE_CHECKING:
    from .rows import Request
    from .student import TrainedStudent


class Answer(NamedTuple):
    """A greedy completion of an exported form: its text, and its token ids if the runtime tells."""

    text: str
    ids: list[int] | None = None


class Runtime(Protocol):
    """What runs an exported form.

    Attributes:
        name: For people.
        concurrency: Requests at a time.
    """

    name: str
    concurrency: int

    def ask(self, request: Request, most: int) -> Answer | None:
        """Return the greedy completion of at most `most` tokens; None if this cannot be asked."""
        ...


@dataclass(frozen=True)
class Difference:
    """The first completion that is another."""

    asked: str
    student: str
    exported: str


@dataclass(frozen=True)
class Verification:
    """How many greedy completions are the student's.

    Attributes:
        rows: How many were compared.
        equal: Those whose completions equal the student's: in token ids if the runtime tells them, else in text but
            for white space around it.
        by_message: Those that were asked by a plain user message; the others by their prompt's token ids.
        not_asked: Those that the runtime could not be asked.
        runtime: What ran the form.
        dtype: Its precision.
        source: Where the rows are from.
        first_difference: The first completion that differs.
    """

    rows: int
    equal: int
    by_message: int
    not_asked: int
    runtime: str
    dtype: str
    source: str
    first_difference: Difference | None = None

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        if self.rows == 0:
            return (
                f"Not verified: {self.runtime} reads plain user messages alone, which this student was not trained on."
            )
        share = f"{self.equal} of {self.rows} greedy completions ({self.equal / self.rows:.1%})"
        asked = "plain user messages" if self.by_message == self.rows else f"{self.by_message} plain user messages"
        more = f"; {self.not_asked} rows cannot be asked there" if self.not_asked else ""
        by = f"by {self.runtime} in {self.dtype}"
        return f"{share} equal the trained student's, {by}, on {self.source}, asked by {asked}{more}."

    def to_dict(self) -> dict[str, object]:
        """Return the figures for a file."""
        return asdict(self)


@dataclass(frozen=True)
class Expected:
    """What the trained student writes.

    Attributes:
        ids: Of each completion, without the stop token.
        texts: The completions.
        most: Tokens that a completion may have.
        length: Tokens of the longest prompt and such a completion.
    """

    ids: list[list[int]]
    texts: list[str]
    most: int
    length: int


def expected_of(student: TrainedStudent, requests: Sequence[Request]) -> Expected:
    """Have the trained student, as its run saved it, write greedily."""
    params = student.run.params
    device = accelerator() or torch.device("cpu")
    source = replace(student.source, dtype=params.dtype, device=device)
    tokenizer = own_tokenizer(student.tokenizer)
    model = students_in_folder(source, tokenizer, quantization=params.quantization)[0]
    settings = GenerationSettings(params.distill_max_teacher_length, batch_size=params.teacher_batch_size)
    prompts = [request.ids for request in requests]
    # one limit for all, whatever the batches
    longest = max(map(len, prompts))
    settings = replace(settings, max_new_tokens=model.new_tokens(longest, settings))
    written = []
    for start in range(0, len(prompts), settings.batch_size):
        written += model.generate(prompts[start : start + settings.batch_size], settings)
    texts = texts_of(model, prompts, written)
    ids = [completion.without_end for completion in written]
    model.unload()
    del model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # for the server
    return Expected(ids, texts, settings.max_new_tokens, longest + settings.max_new_tokens)


def verify(
    student: TrainedStudent,
    requests: Sequence[Request],
    running: AbstractContextManager[Runtime],
    *,
    expected: Expected,
    source: str,
    dtype: str,
) -> Verification:
    """Ask an exported form, and count the completions that equal the student's.

    Args:
        student: The student.
        requests: What is asked.
        running: Starts the form, and ends it.
        expected: What `expected_of` returned.
        source: Where the rows are from.
        dtype: Precision of the form.
    """
    with running as runtime, ThreadPoolExecutor(runtime.concurrency) as threads:
        answers = list(threads.map(lambda request: runtime.ask(request, expected.most), requests))
        name = runtime.name
    compared = [(i, answer) for i, answer in enumerate(answers) if answer is not None]
    unlike = [(i, answer) for i, answer in compared if not _equal(answer, expected, i, student.stops)]
    first = None
    if unlike:
        i, answer = unlike[0]
        asked = requests[i].message or str(student.tokenizer.decode(requests[i].ids))
        first = Difference(asked, expected.texts[i], answer.text)
    return Verification(
        rows=len(compared),
        equal=len(compared) - len(unlike),
        by_message=sum(requests[i].message is not None for i, _ in compared),
        not_asked=len(answers) - len(compared),
        runtime=name,
        dtype=dtype,
        source=source,
        first_difference=first,
    )


def _equal(answer: Answer, expected: Expected, i: int, stops: Sequence[int]) -> bool:
    if answer.ids is None:
        return answer.text.strip() == expected.texts[i].strip()
    ids = list(answer.ids)
    return (ids[:-1] if ids and ids[-1] in stops else ids) == expected.ids[i]
