"""The shape of JSON that is read back: what type each field of an object has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

LARGEST = 2**63  # of a whole number

Shape = Callable[[object], bool]


def is_text(value: object) -> bool:
    return isinstance(value, str)


def is_flag(value: object) -> bool:
    return isinstance(value, bool)


def is_count(value: object) -> bool:
    """Whether a value is a whole number from 0 to what 64 bits hold."""
    return type(value) is int and 0 <= value < LARGEST


def is_positive(value: object) -> bool:
    """Whether a value is a finite number above 0."""
    return type(value) in (int, float) and 0 < value < LARGEST and math.isfinite(value)  # type: ignore[operator,arg-type]


def is_object(value: object) -> bool:
    return isinstance(value, dict)


def or_null(shape: Shape) -> Shape:
    return lambda value: value is None or shape(value)


def list_of(shape: Shape) -> Shape:
    return lambda value: isinstance(value, list) and all(map(shape, value))


def object_of(shape: Shape) -> Shape:
    """Return the shape of an object with any names, whose values have one shape."""
    return lambda value: isinstance(value, dict) and all(map(shape, value.values()))


def with_fields(shapes: Mapping[str, Shape]) -> Shape:
    """Return the shape of an object that has at least these fields."""
    return lambda value: isinstance(value, dict) and first_misfit(value, shapes) is None


def first_misfit(content: Mapping[str, object], shapes: Mapping[str, Shape]) -> str | None:
    """Return the name of the first field that is missing or of another shape; None if there is none."""
    return next((name for name, shape in shapes.items() if name not in content or not shape(content[name])), None)
