"""Prompt templates: text or chat, with `{input}` and other column names as plain fields.

A field is replaced by the row's value and by nothing else: no attribute access, no indexing, no format code.
In a template in which every single brace belongs to a field `{identifier}`, `{{` and `}}` are literal braces. Any other
template is read literally: `{identifier}` is a field, `{{identifier}}` writes `{identifier}`, and all other braces are
text, so that JSON, LaTeX and code need no change. Standard library only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..config.user_files import read_small_text, user_path
from ..errors import TemplateError, nearest, quoted, there_are

IDENTITY = "{input}"
SYSTEM_ROLES = ("system", "developer")
_NAME = r"[^\W\d]\w*"
_TOKEN = re.compile(rf"\{{\{{|\}}\}}|\{{({_NAME})\}}|[{{}}]")
_LITERALLY = re.compile(rf"\{{(\{{{_NAME}\}})\}}|\{{({_NAME})\}}")
_BRACED = re.compile(r"\{([^{}]*)\}")
_ROLES = ("system", "user", "assistant", "developer", "tool")
_LIKE_A_FILE = re.compile(r".*[^\s/\\]\.[A-Za-z]\w{0,5}|\S*[/\\]\S*")  # such as prompt.txt


@dataclass(frozen=True)
class TextTemplate:
    """A parsed text: literal pieces and field names in turn.

    Attributes:
        pieces: Literals at even places, field names at odd ones; always an odd number of them.
        literal: Whether it was read literally, since some single brace of it belongs to no field.
    """

    pieces: tuple[str, ...]
    literal: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields, in order."""
        return self.pieces[1::2]

    def render(self, values: Mapping[str, object]) -> str:
        """Return the text with each field replaced by `str(values[field])`."""
        return "".join(p if i % 2 == 0 else str(values[p]) for i, p in enumerate(self.pieces))

    def braced(self) -> list[str]:
        """Return the words in braces that cannot be fields, if the text was read literally."""
        words = [word for text in self.pieces[::2] for word in _BRACED.findall(text)]
        return [word for word in words if not word.isidentifier()] if self.literal else []


@dataclass(frozen=True)
class System:
    """How one side handles a row's system message.

    Attributes:
        keep: Whether a row's own system message stays.
        text: The system message to read instead; None is none.
        as_message: Whether it stays a system message; if not, as for a chat template that takes none, it goes before
            the first user message, with a blank line between.
        opens_chat: Whether a text prompt becomes a user message after it, as for a chat server; if not, the text
            goes before the prompt, with a blank line between.
    """

    keep: bool = True
    text: str | None = None
    as_message: bool = True
    opens_chat: bool = False


@dataclass(frozen=True)
class Template:
    """One side's prompt: a single text, or chat messages rendered by the tokenizer's chat template.

    Attributes:
        messages: (role, text) pairs; a text template has the single role "".
        name: What the template is called in messages, for example `teacher_prompt_template`.
        system: What is done with a row's system message.
        input_added: Whether the given text has no `{input}`, so that it was added at the end.
    """

    messages: tuple[tuple[str, TextTemplate], ...]
    name: str
    system: System = field(default_factory=System)
    input_added: bool = False

    @property
    def is_chat(self) -> bool:
        """Whether the template is a list of chat messages."""
        return self.messages[0][0] != ""

    @property
    def content(self) -> str:
        """Its roles and texts as one text, whether they came from a file or a list of messages."""
        return json.dumps([[role, list(text.pieces)] for role, text in self.messages])

    @property
    def has_system(self) -> bool:
        """Whether one of its chat messages is a system message."""
        return any(role in SYSTEM_ROLES for role, _ in self.messages)

    @property
    def is_identity(self) -> bool:
        """Whether the prompt is the input itself."""
        return not self.is_chat and self.messages[0][1].pieces == ("", "input", "") and self.system.text is None

    @cached_property  # asked for in every row
    def fields(self) -> tuple[str, ...]:
        """Names of all fields, in order."""
        return tuple(f for _, text in self.messages for f in text.fields)

    def check_columns(self, columns: Iterable[str], *, read: Iterable[str] = ()) -> None:
        """Refuse a field that is no column, and a column in braces whose name cannot be a field.

        Args:
            columns: Columns that a template may name.
            read: All columns of the data; those that are not in `columns` were read as the input or the completion.

        Raises:
            TemplateError: Naming the field, the names that would work and the nearest of them.
        """
        known, consumed = ["input", *columns], set(read)
        usable = [name for name in known if name.isidentifier()]
        for name in self.fields:
            if name not in known and name in consumed:
                raise TemplateError(
                    f"{self.name} has the field {{{name}}}, but that column is read as the input or the completion; "
                    "the text column is {input} in a template."
                )
            if name not in known:
                raise TemplateError(
                    f"{self.name} has the field {{{name}}}, but the data has no such column; "
                    f"{there_are(usable)}.{nearest(name, usable)} Write {{{{{name}}}}} for the text "
                    f"{{{name}}}."
                )
        for word in (word for _, text in self.messages for word in text.braced()):
            if word in known and any(c.isalpha() for c in word):  # {1} is more likely LaTeX than a column
                raise TemplateError(
                    f"{self.name} has {{{word}}}, but a field is a name of letters, digits and underscores; rename the "
                    f"column {word!r}."
                )

    def notes(self) -> list[str]:
        """Return a sentence on each part that the user may not have intended."""
        found = []
        if self.input_added:
            found.append(f"{self.name} has no {{input}}, so a blank line and {{input}} are added at its end")
        for _, text in self.messages:
            like = next((word for word in text.braced() if _is_like_a_field(word, text.fields)), None)
            if like is not None:
                found.append(f"{self.name}: {{{like}}} is text; a field is a plain name, such as {{{_head(like)}}}")
            indent = _indent_of(text)
            if indent > 0:
                found.append(
                    f"{self.name}: all lines but the first are indented by {indent}, and the model reads that too; "
                    "textwrap.dedent removes it"
                )
        return list(dict.fromkeys(found))

    def render(self, values: Mapping[str, object]) -> str | list[dict[str, str]]:
        """Return the text, or the list of `{"role", "content"}` messages of a chat template."""
        if not self.is_chat:
            return self.messages[0][1].render(values)
        return [{"role": role, "content": text.render(values)} for role, text in self.messages]


def parse_template(source: object, *, name: str, adds_input: bool = False) -> Template:
    """Parse a template given as text, as a file, or as chat messages.

    Args:
        source: Text; `@path`, a `pathlib.Path` or text that is the path of an existing file without any field;
            a list of `{"role", "content"}`, or that list as JSON text. Backslashes are text: the command line makes
            newlines of those that were typed in a flag.
        name: What to call the template in messages.
        adds_input: Whether a text without any field gets a blank line and `{input}` at its end.

    Raises:
        TemplateError: No `{input}`, a file that cannot be read, or messages of another shape.
    """
    if isinstance(source, (list, tuple)):
        messages = _chat(source, name)
    else:
        text = _source_text(source, name)
        listed = messages_in(text)
        messages = _chat(listed, name) if listed is not None else (("", _parse_text(text)),)
    template = Template(messages, name)
    if "input" in template.fields:
        return template
    if adds_input and _is_instruction(template):
        instruction = messages[0][1]
        with_input = TextTemplate((instruction.pieces[0].rstrip("\n") + "\n\n", "input", ""), instruction.literal)
        return Template((("", with_input),), name, input_added=True)
    raise TemplateError(f"{name} has no {{input}}{_instead(template)}")


def _is_instruction(template: Template) -> bool:
    """Whether a template is a text that an input can follow: no field, nothing like one, not the name of a file."""
    if template.is_chat or template.fields:
        return False
    text = template.messages[0][1]
    like = "{input" in text.pieces[0] or any(_head(word) == "input" for word in _BRACED.findall(text.pieces[0]))
    return bool(text.pieces[0].strip()) and not like and _LIKE_A_FILE.fullmatch(text.pieces[0]) is None


def _instead(template: Template) -> str:
    """Return the end of the sentence that {input} is missing: what was found instead, and what to do."""
    put = "put it where the row's input belongs."
    braced = [word for _, text in template.messages for word in text.braced()]
    like = next((word for word in braced if _is_like_a_field(word, ["input"])), None)
    if like is not None:
        return f" but {{{like}}}; a field is a column's plain name, without attribute, index or format code: {put}"
    if template.fields:
        found = "}, {".join(dict.fromkeys(template.fields))
        return f", only {{{found}}}; the text column is {{input}} in a template: {put}"
    return f"; {put}"


def _head(word: str) -> str:
    """Return a field's name without what Python's own format would take after it."""
    return re.split(r"[.!:\[]", word, maxsplit=1)[0].strip()


def _is_like_a_field(word: str, fields: Iterable[str]) -> bool:
    """Whether a word in braces is a field's name with an attribute, an index or a format code, or spaces around it."""
    return word not in fields and _head(word) in fields


def _indent_of(text: TextTemplate) -> int:
    """Return the common indentation of all lines but the first, as in triple-quoted text inside code; 0 without one."""
    first, *rest = text.render(dict.fromkeys(text.fields, "x")).split("\n")
    widths = [len(line) - len(line.lstrip(" \t")) for line in rest if line.strip()]
    return min(widths) if len(widths) > 1 and first.strip() and not first[0].isspace() else 0


def _source_text(source: object, name: str) -> str:
    if isinstance(source, Path):
        return read_file(source, name)
    if not isinstance(source, str):
        raise TemplateError(f"{name} is a {type(source).__name__}; give text, a path or a list of messages.")
    if source.startswith("@"):
        return read_file(source[1:], name)
    return read_file(source, name) if is_file_name(source) else source


def text_of_file(given: object, name: str) -> object:
    """Return the text of the file that a prompt's setting names, so that it can be saved; else the given value.

    The value also stays if the text would itself be read as the name of a file.
    """
    if not isinstance(given, str):
        return given
    if not given.startswith("@") and (name.endswith("_system") or not is_file_name(given)):
        return given
    text = read_file(given.removeprefix("@"), name)
    return given if text.startswith("@") or is_file_name(text) else text


def is_file_name(text: str) -> bool:
    """Whether a text is the path of an existing file rather than a template."""
    if not text or "{" in text or "\n" in text:
        return False
    try:
        return Path(text).is_file()
    except OSError:  # longer than a file name may be
        return False


def read_file(path: str | os.PathLike[str], name: str) -> str:
    """Return a file's text, without a byte-order mark and the newline that every editor appends.

    `~` is the home folder. Messages call the setting by `name`.

    Raises:
        TemplateError: It cannot be read, or is not UTF-8.
    """
    place = user_path(path, name=name, error=TemplateError)
    try:
        text = read_small_text(place, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error  # an OSError's text names the file again
        raise TemplateError(
            f"{name} names the file {quoted(str(path))}, which cannot be read: {reason}; give the path of a UTF-8 text "
            "file."
        ) from None
    return text[:-1] if text.endswith("\n") else text


def messages_in(text: str) -> list[dict[str, object]] | None:
    """Return the chat messages that a text writes as JSON; None if it is something else."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # nested without end
        return None
    return value if value and all(isinstance(m, dict) and "role" in m for m in value) else None


def _chat(messages: Iterable[object], name: str) -> tuple[tuple[str, TextTemplate], ...]:
    parsed = []
    for i, message in enumerate(messages):
        if not (isinstance(message, Mapping) and isinstance(message.get("content"), str)):
            raise TemplateError(f"{name}: message {i + 1} is not of the form {{'role': ..., 'content': text}}.")
        role = message.get("role")
        if role not in _ROLES:
            raise TemplateError(
                f"{name}: message {i + 1} has the role {quoted(role)}; expected one of {', '.join(_ROLES)}."
            )
        parsed.append((message["role"], _parse_text(message["content"])))
    if not parsed:
        raise TemplateError(f"{name} is an empty list; give at least one message with {{input}}.")
    return tuple(parsed)


def _parse_text(text: str) -> TextTemplate:
    """Split a text into literals and fields, see the head of this file."""
    literal = any(match[0] in "{}" for match in _TOKEN.finditer(text))
    pieces, before, end = [], "", 0
    for match in (_LITERALLY if literal else _TOKEN).finditer(text):
        before += text[end : match.start()]
        end = match.end()
        field_name = match[2] if literal else match[1]
        if field_name:
            pieces += [before, field_name]
            before = ""
        else:
            before += match[1] if literal else match[0][0]
    return TextTemplate((*pieces, before + text[end:]), literal)
