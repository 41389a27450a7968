"""What a teacher is asked for inputs of its own prompt: which kinds there are, and inputs of each kind.

All words that are sent stand here. The prompt comes first in each request, so that a local teacher reads it once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .template import IDENTITY, Template

PER_REQUEST = 10  # inputs that one answer has
LONGEST_KIND = 160  # characters
DEFAULT_LENGTHS = ("a few words", "one sentence", "several sentences")
ANY_KIND = "any input that the prompt is made for"
CONTINUED = "\n\n1."  # a model without a chat template continues the list that is begun for it

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


def request_for_list(prompt: str, which: str, count: int) -> str:
    """Return the request for a list.

    Args:
        prompt: The teacher's, see `prompt_text`.
        which: One of `LISTS`.
        count: Items that it asks for.
    """
    what = "length" if which == "lengths" else "kind"
    return _HEAD.format(prompt=prompt) + _LISTS[which].format(count=count) + _FORM.format(what=what)


def request_for_inputs(prompt: str, kind: str, length: str) -> str:
    """Return the request for `PER_REQUEST` inputs of a kind and a length."""
    asked = _WRITE.format(count=PER_REQUEST, kind=kind.rstrip("."), length=length.rstrip("."))
    return _HEAD.format(prompt=prompt) + asked + _FORM.format(what="input")


def examples_in(prompt: str) -> Iterator[str]:
    """Yield the pieces of a prompt that may be examples: lines, sentences, what follows a label, quotations."""
    for line in filter(None, map(str.strip, prompt.splitlines())):
        labelled = [found[1] for found in _LABELLED.finditer(line)]
        for piece in (line, *labelled):
            yield piece
            yield from _SENTENCE_END.split(piece)
    yield from _QUOTED.findall(prompt)
