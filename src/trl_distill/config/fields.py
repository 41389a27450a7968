"""One setting: its help text, its heading, and the values it accepts. Standard library only."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import Field, field
from typing import Any, Self

from ..errors import ParamsError, nearest, quoted
from .user_files import user_path

MOST = 2**31 - 1  # of whole numbers without a limit of their own, which libraries keep in 32 bits
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|infinity|nan)", re.ASCII | re.IGNORECASE)
_IN_MEMORY = re.compile(r"<(\w+)>")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Help(str):
    """A help text that also carries its heading and what is accepted.

    HfArgumentParser passes every metadata key of a field to argparse, so only help and choices are allowed there.
    """

    group: str
    low: float | None
    high: float | None
    above: float | None
    off: float | None
    listed: bool
    objects: bool
    escapes: bool
    path: bool


def option(
    default: Any,
    help: str,
    *,
    group: str = "Distillation",
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    off: float | None = None,
    listed: bool = False,
    objects: bool = False,
    escapes: bool = False,
    path: bool = False,
) -> Any:
    """Make a dataclass field that knows its help text, its group in `--help` and the values it accepts.

    Args:
        default: The default; also tells the type that is accepted when the annotation is optional.
        help: One sentence for `--help`.
        group: Heading of the flag in `aitraining llm --help`.
        choices: Accepted values, if they are few.
        low: Smallest accepted number (inclusive).
        high: Largest accepted number (inclusive); of whole numbers `MOST` by default.
        above: Accepted numbers are greater than this.
        off: A number outside the range that is accepted too.
        listed: Whether a list of texts is accepted, to be joined by commas.
        objects: Whether Python may give an object other than text; its user checks it.
        escapes: Whether a backslash with n or t is a newline or a tab when it is typed as a flag.
        path: Whether it is the path of a file or folder, if text: one that no file can have is refused.
    """
    text = Help(help)
    text.group, text.low, text.high, text.above = group, low, high, above
    text.off, text.listed, text.objects, text.escapes = off, listed, objects, escapes
    text.path = path
    metadata: dict[str, object] = {"help": text}
    if choices is not None:
        metadata["choices"] = list(choices)
    return field(default=default, metadata=metadata)


def check_value(name: str, value: object, spec: Field) -> Any:
    """Return `value` as the type of the dataclass field `spec`, or say what is accepted.

    Numbers given as text are converted (a YAML file writes `5e-5` as text), see `number_in`; an int becomes a float, a
    path becomes text (for a template or a system message one that names a file), and so does a list if commas separate
    it. YAML reads the word `no` as false: if "no" is a choice, false means it. AutoTrain's word `none` means "no" too,
    or that an optional choice is not made.

    Raises:
        ParamsError: Wrong type, not among the choices, not finite, or outside the range.
    """
    text, kind = spec.metadata["help"], _types(spec)
    choices = spec.metadata.get("choices")
    if value is None:
        if "None" in kind or spec.default is None:
            return value
        raise ParamsError(f"{name} is empty; give {_accepted(spec)}.")
    if choices and (value is False or (isinstance(value, str) and value == "none")):
        if "no" in choices:
            value = "no"
        elif value and ("None" in kind or spec.default is None):
            return None
    if isinstance(value, os.PathLike):
        value = ("@" if name.endswith(("_prompt_template", "_system")) else "") + os.fspath(value)
    if text.listed and isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value):
        value = ",".join(value)
    if text.path and isinstance(value, str):
        user_path(value, name=name)
    if "list" in kind:
        return _texts(name, value)
    if isinstance(value, str) and _SURROGATE.search(value):  # as bytes of the command line that are not UTF-8
        raise ParamsError(f"{name} is {quoted(value)}, which is not UTF-8; write it in UTF-8, or rename the file.")
    value = _converted(name, value, kind, spec)
    if choices is not None and value not in choices:
        raise ParamsError(f"{name} is {quoted(value)}; expected one of {', '.join(map(repr, choices))}.")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not _inside(value, spec):
        accepted = _accepted(spec, _highest(spec) if value > MOST else None)
        if isinstance(value, float) and math.isinf(value):
            accepted = accepted.replace("a number", "a finite number")
        raise ParamsError(f"{name} is {quoted(value)}; expected {accepted}.")
    return value


def plain(value: object) -> Any:
    """Return plain data as it is, and `<its class>` for any other object in it."""
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value if isinstance(value, (str, int, float, bool, type(None))) else f"<{type(value).__name__}>"


def is_model(given: object) -> bool:
    """Whether an object may be a loaded model or a teacher; its user checks the rest."""
    return not isinstance(given, type) and (hasattr(given, "config") or hasattr(given, "score"))


def model_in_memory(name: object) -> str | None:
    """Return the class that a saved configuration names for a model or dataset in memory, see `plain`; else None."""
    found = _IN_MEMORY.fullmatch(name) if isinstance(name, str) else None
    return found[1] if found else None


class CheckedSettings:
    """A dataclass of `option` fields whose values are checked when they are set, in the constructor and afterwards.

    Raises:
        ParamsError: An unknown name, with the nearest known ones, or a value outside what is accepted.
    """

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Refuse an unknown keyword before the dataclass would."""
        for name in kwargs:
            cls._check_known(name)
        return super().__new__(cls)

    def __setattr__(self, name: str, value: object) -> None:
        """Set a field to a checked value."""
        self.set(name, value)

    def set(self, name: str, value: object, *, called: str | None = None) -> None:
        """Set a field to a checked value; a default needs no check.

        Args:
            name: Name of the field.
            value: The new value.
            called: Its name in messages (default: `name`).
        """
        self._check_known(name)
        spec = _fields_of(type(self))[name]
        checked = value if value is spec.default else check_value(called or name, value, spec)
        object.__setattr__(self, name, checked)

    @classmethod
    def _check_known(cls, name: str) -> None:
        if name not in _fields_of(cls):
            raise ParamsError(cls._unknown(name))

    @classmethod
    def _unknown(cls, name: str) -> str:
        return f"unknown parameter {name!r} of {cls.__name__}.{nearest(name, _fields_of(cls))}"


def _fields_of(kind: type) -> Mapping[str, Field]:
    return kind.__dataclass_fields__  # type: ignore[attr-defined]


def _texts(name: str, value: object) -> list[str] | None:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) and text for text in texts):
        raise ParamsError(f"{name} is {quoted(value)}; expected text, or a list of texts, none of them empty.")
    return list(texts) or None


def _inside(value: float, spec: Field) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    text, high = spec.metadata["help"], _highest(spec)
    inside = (text.low is None or value >= text.low) and (high is None or value <= high)
    return (inside and (text.above is None or value > text.above)) or value == text.off


def _highest(spec: Field) -> float | None:
    """Return the largest accepted number of a field; None if there is no limit."""
    high: float | None = spec.metadata["help"].high
    return MOST if high is None and "int" in _types(spec) else high


def number_in(text: str) -> float:
    """Return the number that a text writes in plain decimal form.

    Raises:
        ValueError: Anything else that `float` takes: spaces around it, underscores, digits of other scripts.
    """
    if _NUMBER.fullmatch(text) is None:
        raise ValueError(f"{quoted(text)} is not a number")
    return float(text)


def _types(spec: Field) -> set[str]:
    """Return the names of a field's types; HfArgumentParser turns the annotation's text into types."""
    return set(re.findall(r"\w+", str(spec.type)))


def _converted(name: str, value: Any, kind: set[str], spec: Field) -> Any:
    """Return `value` as a bool, int or float if the annotation asks for one, and text as it is."""
    wanted = next((k for k in ("bool", "int", "float") if k in kind), None)
    if wanted is None:
        if "str" not in kind or isinstance(value, str) or spec.metadata["help"].objects:
            return value
        raise ParamsError(f"{name} is {quoted(value)}; expected {_accepted(spec)}.")
    if wanted != "bool" and "str" in kind and isinstance(value, str):
        return value
    try:
        if wanted == "bool":
            words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
            return value if isinstance(value, bool) else words[str(value).lower()]
        if isinstance(value, bool):
            raise ValueError
        number = number_in(value) if isinstance(value, str) else value
        if wanted == "int" and not isinstance(number, int):  # an int may be too long for a float
            if float(number) != int(float(number)):
                raise ValueError
            return int(float(number))
        return int(number) if wanted == "int" else float(number)
    except (ValueError, TypeError, KeyError, OverflowError):
        raise ParamsError(f"{name} is {quoted(value)}; expected {_accepted(spec)}.") from None


def _accepted(spec: Field, limit: float | None = None) -> str:
    """Return what a field accepts, in words; with `limit` also the one that all whole numbers have."""
    text, kind = spec.metadata["help"], _types(spec)
    if spec.metadata.get("choices"):
        return "one of " + ", ".join(map(repr, spec.metadata["choices"]))
    noun = {"bool": "true or false", "int": "a whole number", "float": "a number"}
    word = next((word for key, word in noun.items() if key in kind), "text")
    low, high, above = (None if x is None else _figure(x) for x in (text.low, limit or text.high, text.above))
    other = "" if text.off is None else f", or {_figure(text.off)}"
    if low is not None and high is not None:
        return f"{word} from {low} to {high}{other}"
    if above is not None:
        return f"{word} above {above}" + (f" and at most {high}" if high is not None else "") + other
    return f"{word} of at least {low}{other}" if low is not None else word


def _figure(number: float) -> str:
    """Return a bound as a sentence shows it, a whole one with all its digits unless they are very many."""
    return str(int(number)) if number == int(number) and number <= 10**15 else f"{number:g}"
