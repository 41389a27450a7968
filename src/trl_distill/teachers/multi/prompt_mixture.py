"""`teacher_prompt_mixture`: several templates of one teacher, read from a YAML file or given as a Python list.

    - template: "Be brief. {input}"     # or @file, or chat messages
      weight: 3                         # share of the rows, in proportion to the others' weights (1)
    - "Give reasons. {input}"           # a template alone

They become a list of teachers that are one model, with a share of the rows each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import ParamsError
from ...prompts.template import parse_template
from .entries import TeacherEntry, TeacherList, check_keys, checked_weight, read_settings, template_source

if TYPE_CHECKING:
    from .entries import TeacherSpec

SETTING = "teacher_prompt_mixture"
KEYS = ("template", "weight")


def read_mixture(given: object, *, model: TeacherSpec = None, revision: str | None = None) -> TeacherList:
    """Return a mixture of prompts as a list of teachers; needs no model and no data.

    Args:
        given: Path of a YAML file, or its list.
        model: The teacher.
        revision: Revision of a Hub model.

    Raises:
        ParamsError: A file that cannot be read, an unknown key or a wrong value, with its place.
        TemplateError: A template that does not parse, with its place.
    """
    given, name = read_settings(given, SETTING)
    if not isinstance(given, (list, tuple)) or not given:
        shown = "empty" if not given else f"a {type(given).__name__}"
        raise ParamsError(f"{name}: the templates are {shown}; give a list, each with a template and a weight.")
    if all(isinstance(item, Mapping) and "role" in item for item in given):
        raise ParamsError(
            f"{name} is a list of chat messages; give a list of templates, for example - template: [the messages]."
        )
    parts = [_part(item, f"{name}, template {n}") for n, item in enumerate(given, 1)]
    total = sum(weight for _, weight, _ in parts)
    entries = [
        TeacherEntry(
            model,
            parse_template(prompt, name=f"{place}: template" if isinstance(given[n - 1], Mapping) else place),
            place,
            revision,
            share=weight / total,
            note=f", template {n}",
        )
        for n, (prompt, weight, place) in enumerate(parts, 1)
    ]
    return TeacherList("completions", tuple(entries))


def plain_mixture(given: object) -> list[dict[str, Any]]:
    """Return a mixture of prompts as plain data that `read_mixture` reads, with files read and weights as shares."""
    entries = read_mixture(given).teachers
    return [{"template": template_source(entry.template), "weight": entry.share} for entry in entries]


def _part(given: object, place: str) -> tuple[object, float, str]:
    """Return a template, its weight and its place, checked."""
    if not isinstance(given, Mapping):
        return given, 1.0, place
    check_keys(given, KEYS, place)
    if "template" not in given:
        raise ParamsError(f"{place}: template is missing; give text with {{input}}, @file or chat messages.")
    return given["template"], checked_weight(given.get("weight", 1.0), place), place
