"""Prompt templates: text or chat, with `{input}` and other column names as plain fields.

A field is replaced by the row's value and by nothing else: no attribute access, no indexing, no format code.
`{{` and `}}` are literal braces. Standard library only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import TemplateError, nearest

IDENTITY = "{input}"
PLAIN = "a field is a column's plain name, without attribute, index, format code or spaces around it"
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_ESCAPE = re.compile(r"\\(\\|n|t)")
_ROLES = ("system", "user", "assistant", "developer", "tool")


@dataclass(frozen=True)
class TextTemplate:
    """A parsed text: literal pieces and field names in turn.

    Attributes:
        pieces: Literals at even places, field names at odd ones; always an odd number of them.
        name: What the template is called in messages, for example `teacher_prompt_template`.
    """

    pieces: tuple[str, ...]
    name: str

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields, in order."""
        return self.pieces[1::2]

    @property
    def prefix(self) -> str:
        """The literal text before the first field: the same in every row."""
        return self.pieces[0]

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the text with each field replaced by `str(values[field])`."""
        return "".join(p if i % 2 == 0 else str(values[p]) for i, p in enumerate(self.pieces))


@dataclass(frozen=True)
class Template:
    """One side's prompt: a single text, or chat messages rendered by the tokenizer's chat template.

    Attributes:
        messages: (role, text) pairs; a text template has the single role "".
        name: What the template is called in messages.
    """

    messages: tuple[tuple[str, TextTemplate], ...]
    name: str

    @property
    def is_chat(self) -> bool:
        """Whether the template is a list of chat messages."""
        return self.messages[0][0] != ""

    @property
    def is_identity(self) -> bool:
        """Whether the prompt is the input itself."""
        return not self.is_chat and self.messages[0][1].pieces == ("", "input", "")

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of all fields, in order."""
        return tuple(f for _, text in self.messages for f in text.fields)

    def check_columns(self, columns: Iterable[str], *, read: Iterable[str] = ()) -> None:
        """Refuse a field that is no column.

        Args:
            columns: Columns that a template may name.
            read: All columns of the data; those that are not in `columns` were read as the input or the completion.

        Raises:
            TemplateError: Naming the field, the columns there are and the nearest of them.
        """
        known, taken = ["input", *columns], set(read)
        for name in self.fields:
            if name not in known and name in taken:
                raise TemplateError(
                    f"{self.name} has the field {{{name}}}, but that column is read as the input or the completion; "
                    "the text column is {input} in a template."
                )
            if name not in known and _attribute(name, known):
                raise TemplateError(f"{self.name} has the field {{{name}}}; {PLAIN}, such as {{{_head(name)}}}.")
            if name not in known:
                raise TemplateError(
                    f"{self.name} has the field {{{name}}}, but the data has no such column; there are "
                    f"{', '.join(map(repr, known))}.{nearest(name, known)} Write {{{{ and }}}} for literal braces."
                )

    def render(self, values: Mapping[str, Any]) -> str | list[dict[str, str]]:
        """Return the text, or the list of `{"role", "content"}` messages of a chat template."""
        if not self.is_chat:
            return self.messages[0][1].render(values)
        return [{"role": role, "content": text.render(values)} for role, text in self.messages]


def parse_template(source: Any, *, name: str) -> Template:
    r"""Parse a template given as text, as a file, or as chat messages.

    Args:
        source: Text; `@path`, a `pathlib.Path` or text that is the path of an existing file without any field;
            a list of `{"role", "content"}`, or that list as JSON text. In text (not in a file) a backslash
            followed by n or t is a newline or a tab, as one types it in a shell, and two backslashes are one.
        name: What to call the template in messages.

    Raises:
        TemplateError: A lone brace, no `{input}`, a file that cannot be read, or messages of another shape.
    """
    if isinstance(source, (list, tuple)):
        messages = _chat(source, name)
    else:
        # JSON has escapes of its own, so it is read before a shell's are
        listed = _json_list(source) if isinstance(source, str) else None
        text = "" if listed is not None else _read(source, name)
        listed = _json_list(text) if listed is None else listed
        messages = _chat(listed, name) if listed is not None else (("", _parse_text(text, name)),)
    template = Template(messages, name)
    if "input" not in template.fields:
        raise TemplateError(f"{name} has no {{input}}{_instead(template.fields)}")
    return template


def _instead(fields: tuple[str, ...]) -> str:
    """Return the end of the sentence that {input} is missing: what was found in its place, and what to do."""
    put = "put it where the row's input belongs."
    attribute = next((f for f in fields if _attribute(f, ["input"])), None)
    if attribute is not None:
        return f" but {{{attribute}}}; {PLAIN}: {put}"
    if fields:
        return f", only {{{'}, {'.join(dict.fromkeys(fields))}}}; the text column is {{input}} in a template: {put}"
    return f"; {put}"


def _head(field: str) -> str:
    """Return a field's name without what Python's own format would take after it."""
    return re.split(r"[.!:\[]", field, maxsplit=1)[0].strip()


def _attribute(field: str, known: Iterable[str]) -> bool:
    """Whether a field is a known name with an attribute, an index or a format code, or with spaces around it."""
    return field not in known and _head(field) in known


def _read(source: Any, name: str) -> str:
    """Return the template's text, from a file where one is meant."""
    path: Path | None = None
    if isinstance(source, Path):
        path = source
    elif not isinstance(source, str):
        raise TemplateError(f"{name} is a {type(source).__name__}; give text, a path or a list of messages.")
    elif source.startswith("@"):
        path = Path(source[1:])
    elif source and "{" not in source and "\n" not in source and len(source) < 1024 and Path(source).is_file():
        path = Path(source)
    if path is None:
        return _ESCAPE.sub(lambda m: {"n": "\n", "t": "\t", "\\": "\\"}[m[1]], source)
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"{name} names the file {str(path)!r}, which cannot be read: {error}.") from None
    return text[:-1] if text.endswith("\n") else text  # the newline that every editor appends


def _json_list(text: str) -> list[Any] | None:
    """Return the chat messages that the text writes as JSON, if it does."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if value and all(isinstance(m, dict) and "role" in m for m in value) else None


def _chat(messages: Iterable[Any], name: str) -> tuple[tuple[str, TextTemplate], ...]:
    """Parse a list of messages."""
    parsed = []
    for i, message in enumerate(messages):
        if not (isinstance(message, Mapping) and isinstance(message.get("content"), str)):
            raise TemplateError(f"{name}: message {i + 1} is not of the form {{'role': ..., 'content': text}}.")
        if message.get("role") not in _ROLES:
            raise TemplateError(
                f"{name}: message {i + 1} has the role {message.get('role')!r}; accepted are {', '.join(_ROLES)}."
            )
        parsed.append((message["role"], _parse_text(message["content"], name)))
    if not parsed:
        raise TemplateError(f"{name} is an empty list; give at least one message with {{input}}.")
    return tuple(parsed)


def _parse_text(text: str, name: str) -> TextTemplate:
    """Split a text into literals and fields."""
    pieces, literal, end = [], "", 0
    for match in _TOKEN.finditer(text):
        literal += text[end : match.start()]
        end = match.end()
        token = match[0]
        if token in ("{{", "}}"):
            literal += token[0]
        elif match[1]:
            pieces += [literal, match[1]]
            literal = ""
        else:
            raise TemplateError(
                f"{name} has a lone {token!r} at character {match.start() + 1}; write {{{{ and }}}} for literal "
                "braces and {input} for the input."
            )
    return TextTemplate((*pieces, literal + text[end:]), name)
