"""`teacher_config`: several teachers for one run, read from a YAML file or given as a Python list, and checked.

    combine: completions        # or mixture
    teachers:
      - model: ./large          # whatever teacher_model takes
        revision: main          # of a Hub model
        key_env: MY_KEY         # environment variable with the key of a server
        template: "Be brief. {input}"
        weight: 1.0             # in a mixture
        rows: all               # or a share such as 0.3, or column=value

A list alone is the list of teachers.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config.endpoints import parse_endpoint
from ...config.fields import is_model, model_in_memory, plain
from ...config.server_keys import check_key_variable
from ...config.yaml_file import read_yaml
from ...errors import DataError, ParamsError, nearest
from ...prompts.template import Template, TextTemplate, parse_template

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ...data.retention import Retained
    from ..base import Teacher

    TeacherSpec = str | PreTrainedModel | Teacher | None

SETTING = "teacher_config"
COMBINE = ("completions", "mixture")
KEYS = ("model", "revision", "key_env", "template", "weight", "rows")


@dataclass(frozen=True)
class TeacherEntry:
    """One teacher of the list.

    Attributes:
        model: Anything that `load_teacher` accepts.
        template: Template of its prompts.
        place: Its name in messages, for example "teachers.yaml, teacher 2".
        revision: Revision of a Hub model.
        weight: Weight in a mixture.
        share: Share of the rows that it teaches, above 0 and at most 1.
        column: It teaches the rows whose column has `value`; None is all, or a share of them.
        value: As text.
        note: A note after its name in the pre-flight.
        retained: The rows to retain, if it teaches those and none of the data's.
        key_env: The environment variable with the key of its server; None is the default of `teacher_key_env`.
    """

    model: TeacherSpec
    template: Template
    place: str
    revision: str | None = None
    weight: float = 1.0
    share: float = 1.0
    column: str | None = None
    value: str = ""
    note: str = ""
    retained: Retained | None = None
    key_env: str | None = None

    @property
    def name(self) -> str:
        """The model's name in messages, files and the pre-flight."""
        return model_name(self.model)

    @property
    def rows(self) -> str:
        """Which rows it teaches, and its weight unless it is 1, in words."""
        rows = "all rows" if self.share == 1 else f"{self.share:g} of the rows"
        rows = rows if self.column is None else f"rows whose {self.column} is {self.value}"
        return rows if self.weight == 1 else f"{rows}, weight {self.weight:g}"


@dataclass(frozen=True)
class TeacherList:
    """The teachers of a run.

    Attributes:
        combine: "completions" (each row once for each of its teachers) or "mixture" (once, with all of them mixed).
        teachers: In the order given.
    """

    combine: str
    teachers: tuple[TeacherEntry, ...]

    @property
    def mixed(self) -> bool:
        return self.combine == "mixture"

    @property
    def of_data(self) -> tuple[TeacherEntry, ...]:
        """Those that teach rows of the data."""
        return tuple(entry for entry in self.teachers if entry.retained is None)

    def to_dict(self) -> dict[str, Any]:
        """Return the list as plain data that `read_teachers` reads; a loaded model is named by its class."""
        teachers = []
        for entry in self.of_data:
            rows = entry.share if entry.column is None else f"{entry.column}={entry.value}"
            teachers.append(
                {
                    "model": plain(entry.model),
                    **({} if entry.revision is None else {"revision": entry.revision}),
                    **({} if entry.key_env is None else {"key_env": entry.key_env}),
                    "template": template_source(entry.template),
                    "weight": entry.weight,
                    "rows": "all" if rows == 1.0 else rows,
                }
            )
        return {"combine": self.combine, "teachers": teachers}


def read_teachers(given: object) -> TeacherList:
    """Return the checked list of teachers; needs no model and no data.

    Args:
        given: Path of a YAML file, or its content: a mapping, or only the list of teachers. A list that was
            read is returned as it is.

    Raises:
        ParamsError: A file that cannot be read, an unknown key or a wrong value, with its place.
        TemplateError: A template that does not parse, with its place.
        TeacherError: A server's URL that cannot be used.
    """
    if isinstance(given, TeacherList):
        return given
    given, name = read_settings(given, SETTING)
    if isinstance(given, Mapping):
        check_keys(given, ("combine", "teachers"), name)
        combine, teachers = given.get("combine", COMBINE[0]), given.get("teachers")
    else:
        combine, teachers = COMBINE[0], given
    if combine not in COMBINE:
        hint = nearest(str(combine), COMBINE)
        raise ParamsError(f"{name}: combine is {combine!r}; expected one of {', '.join(map(repr, COMBINE))}.{hint}")
    if not isinstance(teachers, (list, tuple)) or not teachers:
        raise ParamsError(f"{name}: 'teachers' is {_in_words(teachers)}; give a list of teachers, each with a model.")
    entries = [_entry(teacher, f"{name}, teacher {n}", combine) for n, teacher in enumerate(teachers, 1)]
    return TeacherList(combine, tuple(entries))


def check_rows(teachers: TeacherList, columns: Sequence[str]) -> None:
    """Raise ParamsError for a column of `rows` that is not in the data; those of input and completion do not count."""
    for entry in teachers.teachers:
        if entry.column is not None and entry.column not in columns:
            there = ", ".join(map(repr, columns)) or "none other than the input and the completion"
            raise ParamsError(
                f"{entry.place}: rows name the column {entry.column!r}, but the data has no such column; there are "
                f"{there}.{nearest(entry.column, columns)}"
            )


def assign_rows(
    teachers: TeacherList, values: Sequence[Mapping[str, Any]], *, seed: int, name: str, required: bool
) -> list[list[int]]:
    """Return for each row its teachers, by their places in the list.

    Shares are consecutive parts of one random order of the rows: shares of 0.3 and 0.7 have no row in common and cover
    all; those beyond the end continue from the start.

    Raises:
        DataError: A teacher without a row, if that is `required`.
    """
    order = list(range(len(values)))
    random.Random(seed).shuffle(order)  # nosec B311  # no secret is drawn
    teachers_of: list[list[int]] = [[] for _ in values]
    end = 0.0
    for i, entry in enumerate(teachers.teachers):
        if entry.retained is not None:
            continue
        if entry.column is not None:
            rows = [n for n, row in enumerate(values) if _is_equal(row[entry.column], entry.value)]
        elif entry.share < 1:
            start, end = end, end + entry.share
            part = range(round(start * len(order)), round(end * len(order)))
            rows = sorted(order[n % len(order)] for n in part)
        else:
            rows = list(range(len(values)))
        if not rows and required:
            what = f"{entry.share:g}" if entry.column is None else f"{entry.column}={entry.value}"
            raise DataError(
                f"{entry.place} ({entry.name}) takes none of the {len(values):,} rows of {name}: its rows are {what}; "
                "change 'rows', or leave the teacher out."
            )
        for n in rows:
            teachers_of[n].append(i)
    return teachers_of


def read_settings(given: object, setting: str) -> tuple[object, str]:
    """Return a setting's content, read from its YAML file if it names one, and its name in messages."""
    if isinstance(given, (str, os.PathLike)):
        return read_yaml(given, name=f"{setting} {str(given)!r}"), Path(given).name
    return given, setting


def check_keys(given: Mapping[object, object], known: Sequence[str], place: str) -> None:
    """Raise ParamsError for the first unknown key, naming the nearest known one."""
    for key in given:
        if key not in known:
            hint = nearest(str(key), known)
            raise ParamsError(f"{place}: unknown key {key!r}; there are {', '.join(map(repr, known))}.{hint}")


def checked_weight(given: object, place: str) -> float:
    """Return a weight; raise ParamsError unless it is a number above 0."""
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given < math.inf:
        raise ParamsError(f"{place}: weight is {given!r}; expected a number above 0.")
    return float(given)


def _entry(given: object, place: str, combine: str) -> TeacherEntry:
    if not isinstance(given, Mapping):
        raise ParamsError(f"{place} is {_in_words(given)}; write a mapping with its 'model' and any other keys.")
    check_keys(given, KEYS, place)
    model, weight, revision = given.get("model"), given.get("weight", 1.0), given.get("revision")
    key_env = given.get("key_env")
    _check_model(model, place)
    if revision is not None and not isinstance(revision, str):
        raise ParamsError(f"{place}: revision is {revision!r}; expected text.")
    if key_env is not None:
        check_key_variable(key_env, setting=f"{place}: key_env")
    weight = checked_weight(weight, place)
    if weight != 1 and combine != "mixture":
        raise ParamsError(
            f"{place}: weight is {weight:g}, but completions of several teachers have no weights; say with 'rows' how "
            "many rows a teacher takes, or write combine: mixture."
        )
    template = parse_template(given.get("template", "{input}"), name=f"{place}: template")
    rows = _rows(given.get("rows", "all"), place)
    return TeacherEntry(model, template, place, revision, weight, key_env=key_env, **rows)


def _check_model(model: object, place: str) -> None:
    """Refuse what is neither a name nor a model."""
    if model is None or model == "":
        raise ParamsError(f"{place}: model is missing; give a folder, a Hub name, 'embedded' or a server's model.")
    if not isinstance(model, str):
        if not is_model(model):
            raise ParamsError(f"{place}: model is {_in_words(model)}; give a name, a folder or a loaded model.")
        return
    in_memory = model_in_memory(model)
    if in_memory:
        raise ParamsError(f"{place}: model was a {in_memory} in memory, not a file; give its folder or its name.")
    parse_endpoint(model)  # a URL with a password goes no further


def _rows(given: object, place: str) -> dict[str, Any]:
    """Return which rows a teacher teaches: fields of `TeacherEntry`."""
    if given == "all":
        return {}
    if isinstance(given, str) and "=" in given.strip("= "):
        column, _, value = (part.strip() for part in given.partition("="))
        return {"column": column, "value": value}
    try:
        share = math.nan if isinstance(given, bool) else float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        share = math.nan
    if not 0 < share <= 1:
        raise ParamsError(
            f"{place}: rows are {given!r}; expected one of all, a share above 0 and at most 1 (0.3), or column=value."
        )
    return {"share": share}


def _is_equal(value: object, wanted: str) -> bool:
    """Whether a column's value is the one that was written: as text, or as the same number."""
    if str(value) == wanted:
        return True
    try:
        return not isinstance(value, str) and float(value) == float(wanted)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def model_name(model: object) -> str:
    """Return the name of a model: what was given, or for a loaded one where it comes from."""
    if isinstance(model, str):
        return model
    found = getattr(model, "name", "") or getattr(getattr(model, "config", None), "_name_or_path", "")
    return found if isinstance(found, str) and found else type(model).__name__


def _in_words(value: object) -> str:
    """Return a value that was given, in words."""
    if value is None:
        return "missing"
    return repr(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"


def template_source(template: Template) -> str | list[dict[str, str]]:
    """Return a parsed template as a user writes it: text, or a list of chat messages."""
    messages = [{"role": role, "content": _source(text)} for role, text in template.messages]
    return messages if template.is_chat else messages[0]["content"]


def _source(text: TextTemplate) -> str:
    pieces = (p.replace("{", "{{").replace("}", "}}") if i % 2 == 0 else f"{{{p}}}" for i, p in enumerate(text.pieces))
    return "".join(pieces)
