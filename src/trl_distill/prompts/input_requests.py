"""What a teacher is asked for inputs of its own prompt: which kinds there are, and inputs of each kind.

All words that are sent stand here. Before each request stands one for another assistant, with its answer: small models
that are shown none answer the prompt, or write about it, instead of writing inputs for it. The prompt comes first in a
request, so that a local teacher reads it once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .messages import Message
from .template import IDENTITY, Template

PER_REQUEST = 10  # inputs that one answer has
LONGEST_KIND = 160  # characters
DEFAULT_LENGTHS = ("a few words", "one sentence", "several sentences")
ANY_KIND = "any input that the prompt is made for"
CONTINUED = "\n\n1."  # a model without a chat template continues the list that is begun for it
SHOWN_PROMPT = (
    "You answer the visitors of a town library, in at most two sentences. You know the opening hours, loans and fines, "
    "library cards, the reading rooms and the courses. If you do not know the answer, name the desk on the first floor."
    "\n\nVisitor: {input}"
)
SHOWN = {  # what is written for it; nothing that other assistants' users are likely to send
    "kinds": (
        "books that are due and loans to be extended", "lost or damaged library cards",
        "complaints about the fine for a late book", "reading rooms to be booked", "courses at the library",
        "wishes for books that are not on the shelf",
    ),
    "edge cases": (
        "a message that is a single word", "a question that has nothing to do with the library",
        "two requests in one message", "a message in another language",
    ),
    "lengths": ("three words", "one short sentence", "two sentences", "a long paragraph"),
    "inputs": (
        "Is the reading room open on Sunday?", "I lost my library card on the bus.",
        "My son wants to borrow a film, is that possible?", "How long may I keep the book about whales?",
        "Why did I get a fine, the book was only a day late!", "Please book a quiet room for two readers.",
        "Is there a course for beginners in Spanish?", "do you have the new crime novel", "I moved, here is my new "
        "address: 12 Mill Lane.", "Can I print two pages of a magazine at the library?",
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
    "Write {count} different inputs that users may send to this assistant, all of this kind: {kind}. Length of each "
    "input: {length}. Do not copy examples from the prompt, and do not answer the inputs."
)
LISTS = tuple(_LISTS)
_QUOTED = re.compile(r"[\"“«`]([^\"“”«»`\n]{3,})[\"”»`]")
_LABELLED = re.compile(r"\b(?:inputs?|query|question|message|example|user|customer|q)\b[^:\n]{0,20}:\s*(\S.*)", re.I)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


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
    """A request, and one like it with its answer (few-shot prompting, Brown et al. 2020, arXiv 2005.14165).

    Attributes:
        shown: The request for another assistant.
        answer: Its answer.
        text: The request itself.
    """

    shown: str
    answer: str
    text: str

    @property
    def messages(self) -> list[Message]:
        """As chat messages."""
        turns = ("user", self.shown), ("assistant", self.answer), ("user", self.text)
        return [{"role": role, "content": content} for role, content in turns]

    @property
    def to_continue(self) -> str:
        """As a text that ends where a list begins."""
        return f"{self.shown}\n\n{self.answer}\n\n\n{self.text}{CONTINUED}"


def request_for_list(prompt: str, which: str, count: int) -> Request:
    """Return the request for a list.

    Args:
        prompt: The teacher's, see `prompt_text`.
        which: One of `LISTS`.
        count: Items that it asks for.
    """
    shown = SHOWN[which]
    return Request(_list_of(SHOWN_PROMPT, which, len(shown)), _numbered(shown), _list_of(prompt, which, count))


def request_for_inputs(prompt: str, kind: str, length: str) -> Request:
    """Return the request for `PER_REQUEST` inputs of a kind and a length."""
    shown = _inputs_of(SHOWN_PROMPT, ANY_KIND, "one short sentence")
    return Request(shown, _numbered(SHOWN["inputs"]), _inputs_of(prompt, kind, length))


def _list_of(prompt: str, which: str, count: int) -> str:
    what = "length" if which == "lengths" else "kind"
    return _HEAD.format(prompt=prompt) + _LISTS[which].format(count=count) + _FORM.format(what=what)


def _inputs_of(prompt: str, kind: str, length: str) -> str:
    asked = _WRITE.format(count=PER_REQUEST, kind=kind.rstrip("."), length=length.rstrip("."))
    return _HEAD.format(prompt=prompt) + asked + _FORM.format(what="input")


def _numbered(items: Sequence[str]) -> str:
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))


def examples_in(prompt: str) -> Iterator[str]:
    """Yield the pieces of a prompt that may be examples: lines, sentences, what follows a label, quotations."""
    for line in filter(None, map(str.strip, prompt.splitlines())):
        labelled = [found[1] for found in _LABELLED.finditer(line)]
        for piece in (line, *labelled):
            yield piece
            yield from _SENTENCE_END.split(piece)
    yield from _QUOTED.findall(prompt)
