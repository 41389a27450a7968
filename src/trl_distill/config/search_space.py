"""The values that a search tries: texts such as `1,2,3` or `1e-5..1e-3` to checked values. Standard library only."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass
from typing import TypeAlias

from ..errors import ParamsError, nearest, quoted
from .fields import check_value, number_in
from .other_names import INSTEAD
from .setting_names import flag_of
from .training_params import ALIASES, FIELDS, LIBRARY

MOST_TRIALS = 1000  # of a grid, beyond which nobody waits for all combinations
DECADE = 10.0  # a range whose ends differ by this factor is searched on a logarithmic scale
_RANGE = re.compile(r"\s*(\S+?)\s*\.\.\s*(\S+)\s*")
_SAME_ROWS = "all trials are judged on the same held-out rows"
_ONE_PLACE = "a search has one project"
# settings that all trials share, and why
SHARED: Mapping[str, str] = {
    "seed": "all trials have the same, so that they differ by what is tuned alone",
    **dict.fromkeys(("data_path", "data_config", "train_split", "valid_split", "holdout"), _SAME_ROWS),
    **dict.fromkeys(("text_column", "completion_column", "prompt_text_column", "max_bad_rows"), _SAME_ROWS),
    **dict.fromkeys(("project_name", "overwrite", "resume", "dry_run", "train"), _ONE_PLACE),
    **dict.fromkeys(("log", "run_name", "log_project", "push_to_hub", "card_example", "username"), _ONE_PLACE),
    "teacher_store": "a search makes the stores that it needs",
    "teacher_stop": "its texts stop the teacher together",
    **dict.fromkeys(("teacher_config", "teacher_prompt_mixture"), "trials are compared with one teacher"),
}


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included.

    Attributes:
        low: The lowest.
        high: The highest.
        whole: Whether only whole numbers are tried.
    """

    low: float
    high: float
    whole: bool = False

    @property
    def is_log(self) -> bool:
        """Whether it is searched on a logarithmic scale: numbers above 0 that differ by a factor of 10 or more."""
        return self.low > 0 and self.high / self.low >= DECADE

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"


Values: TypeAlias = tuple[object, ...] | Range
Space: TypeAlias = dict[str, Values]
Settings: TypeAlias = dict[str, object]


def values_of(name: str, texts: Sequence[str], *, called: str | None = None) -> Values:
    """Return the values that texts of a command line list for a setting.

    Values are separated by commas; those of a text that may itself hold commas (prompts, lists of names, JSON) are
    given one a flag. Prompts that are all files may be separated by commas too.

    Args:
        name: The setting.
        texts: What follows its flag, each time that it was given.
        called: Its name in messages (default: `name`).

    Raises:
        ParamsError: A value that the setting does not accept, or several of a setting that all trials share.
    """
    spec = FIELDS[name]
    if "list" in str(spec.type):
        return (check_value(called or name, list(texts), spec),)
    parts = [part for text in texts for part in _split(spec, text)]
    return _checked(name, parts, spec, called or name)


def read_space(given: Mapping[str, object]) -> Space:
    """Return a space that was given in Python.

    Args:
        given: By setting, a list of values, one value, or a text as on the command line, such as "1,2,3" or "1..3".

    Raises:
        ParamsError: An unknown setting (with the nearest known ones), one that all trials share, or a value that it
            does not accept.
    """
    if not isinstance(given, Mapping):
        raise ParamsError(
            f"space is {quoted(given)}; give the values of each setting, such as {{'distill_temperature': [1, 2, 3]}}."
        )
    space: Space = {}
    for name, values in given.items():
        if name not in FIELDS:
            hint = f" It is called {ALIASES[name]!r} here." if name in ALIASES else nearest(str(name), FIELDS)
            instead = f"; {LIBRARY(INSTEAD[name])}." if name in INSTEAD else f".{hint}"
            raise ParamsError(f"space names {name!r}, which is no setting of a run{instead}")
        if name in SHARED:
            raise ParamsError(f"{name} cannot be tuned: {SHARED[name]}; set it in params.")
        if isinstance(values, str):
            space[name] = values_of(name, [values])
        elif isinstance(values, Range):
            space[name] = _checked_range(name, values.low, values.high, FIELDS[name], name)
        else:
            listed = list(values) if isinstance(values, (list, tuple, range)) else [values]
            space[name] = _checked(name, listed, FIELDS[name], name)
    return space


def takes_list(name: str) -> bool:
    """Whether a list is one value of a setting."""
    return FIELDS[name].metadata["help"].listed or "list" in str(FIELDS[name].type)


def grid(space: Space) -> Iterator[Settings]:
    """Yield every combination of a space without ranges, the last setting changing fastest."""
    names = list(space)
    for combination in itertools.product(*(space[name] for name in names)):  # type: ignore[arg-type]
        yield dict(zip(names, combination, strict=True))


def grid_size(space: Space) -> float:
    """Return the number of combinations; inf with a range of numbers that are not whole."""
    sizes = [
        (math.inf if not values.whole else values.high - values.low + 1) if isinstance(values, Range) else len(values)
        for values in space.values()
    ]
    return math.prod(sizes)


def check_space(space: Space, *, trials: int | None) -> None:
    """Refuse a space with nothing to choose, and one that a grid cannot cover.

    Raises:
        ParamsError: Naming the setting.
    """
    if not any(isinstance(values, Range) or len(values) > 1 for values in space.values()):
        raise ParamsError(
            "there is nothing to tune; give a setting several values, such as --distill-temperature 1,2,3."
        )
    if trials is not None:
        return
    ranges = [name for name, values in space.items() if isinstance(values, Range)]
    if ranges:
        raise ParamsError(
            f"{ranges[0]} is the range {space[ranges[0]]}, which a grid cannot cover; add --trials 20, or list values."
        )
    if grid_size(space) > MOST_TRIALS:
        raise ParamsError(
            f"the space has {grid_size(space):,} combinations and a grid at most {MOST_TRIALS:,}; add --trials 20, or "
            "give fewer values."
        )


def typed(settings: Mapping[str, object]) -> str:
    """Return settings as they are typed, long texts shortened."""
    return " ".join(f"{flag_of(name)} {_quoted(shown(value))}" for name, value in settings.items())


def shown(value: object) -> str:
    """Return a value as a table shows it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    text = " ".join(str(value).split()) or repr(value)
    return text if len(text) <= 24 else f"{text[:21]}..."


def _quoted(text: str) -> str:
    return f"'{text}'" if " " in text or not text else text


def _split(spec: Field, text: str) -> list[str]:
    """Return the values in a text."""
    parts = [part.strip() for part in text.split(",")]
    about = spec.metadata["help"]
    is_number = any(kind in str(spec.type) for kind in ("int", "float"))
    if (spec.name in SHARED and not is_number) or about.listed or spec.name == "chat_template_kwargs":
        return [text]
    if about.escapes and not all(part.startswith("@") for part in parts):
        return [text]
    return parts


def _checked(name: str, listed: Sequence[object], spec: Field, called: str) -> Values:
    """Return values as the setting has them, each once."""
    found = [_RANGE.fullmatch(value) if isinstance(value, str) else None for value in listed]
    is_number = any(kind in str(spec.type) for kind in ("int", "float"))
    if is_number and any(found):
        match = found[0]
        if len(listed) > 1 or match is None:
            raise ParamsError(f"{called} is {quoted(','.join(map(str, listed)))}; give values, or one range.")
        try:
            low, high = number_in(match[1]), number_in(match[2])
        except ValueError:
            raise ParamsError(f"{called} is {quoted(listed[0])}; give a range as two numbers, such as 1..3.") from None
        return _checked_range(name, low, high, spec, called)
    values: list[object] = []
    for value in listed:
        checked = check_value(called, value, spec)
        if not any(checked is other or (type(checked) is type(other) and checked == other) for other in values):
            values.append(checked)
    _check_shared(name, len(values), called)
    if not values:
        raise ParamsError(f"{called} has no value; give at least one.")
    return tuple(values)


def _checked_range(name: str, low: float, high: float, spec: Field, called: str) -> Range:
    _check_shared(name, 2, called)
    ends = [check_value(called, end, spec) for end in (low, high)]
    if not ends[0] < ends[1]:
        raise ParamsError(f"{called} is the range {low:g}..{high:g}; give the lower end first.")
    return Range(ends[0], ends[1], whole="int" in str(spec.type))


def _check_shared(name: str, count: int, called: str) -> None:
    if count > 1 and name in SHARED:
        raise ParamsError(f"{called} has several values, but {SHARED[name]}; give one.")
