"""What a teacher is asked for inputs of its own prompt: which kinds there are, and inputs of each kind.

All words that are sent stand here. Each request follows a worked example, the same request for another assistant with
its answer: without one, small models answer the prompt, or write about it, instead of writing inputs for it. The prompt
comes first in a request, so that a local teacher reads it once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .listed_items import list_items, without_mark
from .messages import Message
from .template import IDENTITY, Template

PER_REQUEST = 10  # inputs that one answer has
LONGEST_KIND = 160  # characters
DEFAULT_LENGTHS = ("a few words", "one sentence", "several sentences")
ANY_KIND = "any input that the prompt is made for"
APPLIES = "inputs to which this line of the prompt applies: "  # a kind for each item of a list in the prompt
BETWEEN = "\n\n\n"  # an example and what is asked, in a text to continue
CONTINUED = "\n\n1."  # a model without a chat template continues the list that is begun for it
SHOWN_PROMPT = (
    "You answer questions from visitors to a town library, in at most two sentences. You know the opening hours, loans "
    "and fines, library cards, the reading rooms and the courses. If you do not know the answer, refer the visitor to "
    "the desk on the first floor.\n\nVisitor: {input}"
)
SHOWN_KIND, SHOWN_LENGTH = "library cards", "one short sentence"
SHOWN = {  # what is written for it; only edge cases and lengths may be copied, since they suit any assistant
    "kinds": (
        "due dates and renewals of library books", "lost or damaged library cards",
        "complaints about the fine for a late book", "booking a reading room", "courses at the library",
        "requests for books that are not on the shelf",
    ),
    "edge cases": (
        "a message that is a single word", "a question on another topic", "two requests in one message",
        "a message in another language",
    ),
    "lengths": ("three words", "one short sentence", "two sentences", "a long paragraph"),
    "inputs": (
        "I lost my library card on the bus.", "What does a new library card cost?",
        "my card does not open the reading room any more", "The name on my card is wrong.",
        "Can my daughter use my library card?", "Someone stole my bag, and my card was in it!",
        "How long is a library card valid?", "I found a library card in the reading room.",
        "Do I need a photo for a new card?", "Please block my library card, its number is 4471.",
    ),
}  # fmt: skip

_HEAD = "This is the prompt of an assistant:\n\n<prompt>\n{prompt}\n</prompt>\n\n"
_FORM = " Write a numbered list, one {what} a line, and nothing else."
_LISTS = {
    "kinds": "List {count} different kinds of inputs that users send to this assistant. Name each kind in a few words.",
    "edge cases": (
        "List {count} kinds of unusual inputs that this assistant has to handle too, such as incomplete, ambiguous or "
        "off-topic ones. Name each kind in a few words."
    ),
    "lengths": (
        "List {count} different lengths of inputs that users send to this assistant, from the shortest to the longest, "
        "such as 'three words' or 'two paragraphs'."
    ),
}
_WRITE = (
    "Write {count} different inputs that users may send to this assistant, as a numbered list, one a line, and nothing "
    "else. Do not copy examples from the prompt, and do not answer the inputs.\n\n"
    "Kind of input: {kind}\nLength of each input: {length}"
)
LISTS = tuple(_LISTS)
_QUOTED = re.compile(r"[\"“«`„「『]([^\"“”«»`„「」『』\n]{3,})[\"”»`“」』]")
_LABELLED = re.compile(r"\b(?:inputs?|query|question|message|example|user|customer|q)\b[^:\n]{0,20}:\s*(\S.*)", re.I)
_AFTER_COLON = re.compile(r"[^:：]{1,40}[:：]\s*(\S.*)")  # a label in any language
_SENTENCE_END = re.compile(r"(?<=[.!?؟।])\s+|(?<=[。！？])")
_PARAGRAPH_END = re.compile(r"\n\s*\n")


def prompt_text(template: Template) -> str:
    """Return a teacher's prompt as one text, with `{input}` where the input belongs; empty if it is the input alone."""
    parts = [] if template.system.text is None else [template.system.text]
    for role, text in template.messages:
        content = text.render({name: f"{{{name}}}" for name in text.fields})
        if content.strip() == IDENTITY and role in ("", "user"):
            continue
        parts.append(content if role in ("", "system", "developer") else f"{role.capitalize()}: {content}")
    return "\n\n".join(part.strip() for part in parts if part.strip())


@dataclass(frozen=True)
class Request:
    """A request behind a worked example (few-shot prompting, Brown et al. 2020, arXiv 2005.14165).

    Attributes:
        text: The request.
        shown: The request for another assistant; empty without an example.
        answer: Its answer.
    """

    text: str
    shown: str = ""
    answer: str = ""

    @property
    def alone(self) -> Request:
        """The request without the example."""
        return Request(self.text)

    @property
    def messages(self) -> list[Message]:
        """As chat messages."""
        turns = ("user", self.shown), ("assistant", self.answer), ("user", self.text)
        return [{"role": role, "content": content} for role, content in turns if content]

    @property
    def to_continue(self) -> str:
        """As a text that ends where a list begins."""
        example = f"{self.shown}\n\n{self.answer}{BETWEEN}" if self.shown else ""
        return f"{example}{self.text}{CONTINUED}"


def request_for_list(prompt: str, which: str, count: int) -> Request:
    """Return the request for a list.

    Args:
        prompt: The teacher's, see `prompt_text`.
        which: One of `LISTS`.
        count: Items that it asks for.
    """
    shown = SHOWN[which]
    return Request(_list_of(prompt, which, count), _list_of(SHOWN_PROMPT, which, len(shown)), _numbered(shown))


def request_for_inputs(prompt: str, kind: str, length: str) -> Request:
    """Return the request for `PER_REQUEST` inputs of a kind and a length."""
    shown = _inputs_of(SHOWN_PROMPT, SHOWN_KIND, SHOWN_LENGTH)
    return Request(_inputs_of(prompt, kind, length), shown, _numbered(SHOWN["inputs"]))


def continued_list(text: str) -> tuple[str, bool]:
    """Return the list that a model continued, and whether the model went on behind it with another request.

    The number with which the list began is put before it.
    """
    ends = [place for place in (text.find(BETWEEN), text.find(_HEAD.partition("\n")[0])) if place >= 0]
    listed = text[: min(ends, default=len(text))].strip()
    return listed if listed.startswith("1. ") else f"1. {listed}", bool(ends)


def pieces_of(request: Request) -> Iterator[str]:
    """Yield the pieces of a request and of its example, which some models repeat; see `examples_in`."""
    for text in (request.text, request.shown, request.answer):
        yield from examples_in(text)
    yield from SHOWN["kinds"]


def _list_of(prompt: str, which: str, count: int) -> str:
    what = "length" if which == "lengths" else "kind"
    return _HEAD.format(prompt=prompt) + _LISTS[which].format(count=count) + _FORM.format(what=what)


def _inputs_of(prompt: str, kind: str, length: str) -> str:
    return _HEAD.format(prompt=prompt) + _WRITE.format(count=PER_REQUEST, kind=kind, length=length)


def _numbered(items: Sequence[str]) -> str:
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))


def examples_in(prompt: str) -> Iterator[str]:
    """Yield the pieces of a prompt that may be examples: lines, list items, sentences, what follows a label, quotes."""
    yield from list_items(prompt)
    for paragraph in _PARAGRAPH_END.split(prompt):  # whose sentences may be wrapped
        yield from _SENTENCE_END.split(" ".join(paragraph.split()))
    for line in filter(None, map(str.strip, prompt.splitlines())):
        item = without_mark(line) or line
        labelled = [found[1] for found in (*_LABELLED.finditer(line), _AFTER_COLON.match(item)) if found]
        for piece in (line, item, *labelled):
            yield piece
            yield from _SENTENCE_END.split(piece)
    yield from _QUOTED.findall(prompt)
