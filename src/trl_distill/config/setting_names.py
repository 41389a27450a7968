"""Names of settings in messages, as the user of the command, the library or the trainer writes them.

Shared code writes a setting as its flag (`--text-column`) or as its field (`text_column`). The command, the library and
the trainer each have a spelling, which turns both into their own users' words. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import Field

from ..errors import DistillError, ParamsError, quoted

Spelling = Callable[[str], str]

_spelling: ContextVar[Spelling | None] = ContextVar("spelling", default=None)

_QUOTED = r"(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|`[^`]*`"  # what a user wrote stays as it is
# "give --completions teacher", "add --peft", "--distill-alpha 0.7"
_FLAG = re.compile(
    _QUOTED + r"|(\b(?:add|give) )?--([a-z][a-z0-9-]*[a-z0-9])( '[^']*'| \d+(?:\.\d+)?(?:e-?\d+)?\b| \w+)?"
)
# a field in a sentence: of several words, not a part of a path or a longer name
_FIELD = re.compile(
    _QUOTED + r"|(?<![\w./@{-])([a-z]+(?:_[a-z0-9]+)+)(?:=(True|\d+(?:\.\d+)?|'\w+'))?(?![\w/{=-]|\.\w)"
)
_SUBJECT = re.compile(r"[a-z_]+(?= (?:is|has|needs|cannot|'|\d))")  # the field that a message begins with


@contextmanager
def settings_named_as(spelling: Spelling) -> Iterator[None]:
    """Spell settings one way in errors raised inside and in `name_settings`; the outermost call decides."""
    if _spelling.get() is not None:
        yield
        return
    token = _spelling.set(spelling)
    try:
        yield
    except DistillError as error:
        error.args = (spelling(str(error)),)
        raise
    finally:
        _spelling.reset(token)


def name_settings(text: str) -> str:
    """Return a line for the terminal with settings named in the spelling of `settings_named_as`."""
    spelling = _spelling.get()
    return text if spelling is None else spelling(text)


def flag_of(name: str) -> str:
    """Return the flag of a field: `teacher_model` is `--teacher-model`."""
    return "--" + name.replace("_", "-")


def by_field(values: Mapping[str, object], aliases: Mapping[str, str]) -> dict[str, object]:
    """Return settings by the names of their fields.

    Args:
        values: Settings by any accepted name, with dashes or underscores.
        aliases: The fields' names by others.

    Raises:
        ParamsError: A setting is given twice.
    """
    found: dict[str, object] = {}
    given: dict[str, object] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        name = aliases.get(name, name)
        if name in found:
            raise ParamsError(f"{name} is given twice, as {quoted(given[name])} and as {quoted(key)}; give it once.")
        found[name], given[name] = value, key
    return found


def in_python(specs: Mapping[str, Field], names: Mapping[str, str]) -> Spelling:
    """Return the spelling of a caller in Python: flags become fields or arguments.

    Args:
        specs: Dataclass fields by name; a flag of no other is left alone.
        names: The caller's names of fields, if different.
    """

    def field_of(found: re.Match[str]) -> str:
        if found[2] is None:
            return found[0]
        verb, flag, value = found[1] or "", found[2].replace("-", "_"), found[3] or ""
        spec, name = specs.get(flag), names.get(flag, flag)
        if spec is None and flag not in names:
            return found[0]
        word = value[1:]
        if word in _words(spec):
            return f"{verb}{name}={word!r}"
        if word and word[0] in "'0123456789":
            return f"{verb}{name}={word}"
        on = "=True" if verb and name == flag and spec is not None and "bool" in str(spec.type) else ""
        return f"{verb}{name}{on}{value}"

    def renamed(found: re.Match[str]) -> str:
        name = found[1]
        return found[0].replace(name, names[name], 1) if name in names else found[0]

    def as_written(text: str) -> str:
        subject = _SUBJECT.match(text)
        if subject and subject[0] in names:
            text = names[subject[0]] + text[subject.end() :]
        return _FIELD.sub(renamed, _FLAG.sub(field_of, text))

    return as_written


def as_flags(specs: Mapping[str, Field]) -> Spelling:
    """Return the spelling of the command line: fields become flags."""

    def dashed(found: re.Match[str]) -> str:
        if found[1] not in specs:
            return found[0]
        value = "" if found[2] in (None, "True") else " " + found[2].strip("'")
        return flag_of(found[1]) + value

    def as_typed(text: str) -> str:
        subject = _SUBJECT.match(text)
        if subject and subject[0] in specs and subject[0] != "train":  # that is a dataset
            text = flag_of(subject[0]) + text[subject.end() :]
        return _FIELD.sub(dashed, text)

    return as_typed


def _words(spec: Field | None) -> tuple[str, ...]:
    """Return the words that are values of a field when they follow its flag."""
    return (*(spec.metadata.get("choices") or ()), "none") if spec is not None else ()
