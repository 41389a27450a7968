"""Trainers by name: built-in, registered, and from entry points of installed packages.

An entry is "module:Class" and is imported when it is asked for, so that naming a trainer loads nothing.
Standard library only.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

from ..errors import ParamsError, nearest

__all__ = ["ENTRY_POINTS", "get_trainer", "names_of_trainers", "register_trainer"]

ENTRY_POINTS = "trl_distill.trainers"

_OURS = "trl_distill.trainer.trainer:DistillationSFTTrainer"

# by (name, use_distillation); a name whose two entries are alike does not look at the flag
_trainers: dict[tuple[str, bool], str | type] = {
    ("distillation", False): _OURS,
    ("distillation", True): _OURS,
    ("sft", False): "trl:SFTTrainer",
    ("sft", True): _OURS,
}


def register_trainer(name: str, target: str | type, *, use_distillation: bool | None = None) -> None:
    """Register a trainer under a name, replacing an earlier one.

    Args:
        name: The value for `--trainer`.
        target: The class, or "module:Class" to import it when it is asked for.
        use_distillation: Register it for runs with (True) or without (False) that flag only; None is both.

    Raises:
        ParamsError: A text of another form.

    Example:
        >>> register_trainer("mine", "my_package.trainer:MyTrainer")
    """
    if isinstance(target, str):
        _split(name, target)
    for flag in (False, True) if use_distillation is None else (use_distillation,):
        _trainers[name, flag] = target


def get_trainer(name: str, *, use_distillation: bool = False) -> type:
    """Return a registered trainer class, imported if need be.

    Args:
        name: Its name; registered ones go before those of entry points.
        use_distillation: Whether the run distils, for a name that has a trainer for each.

    Raises:
        ParamsError: An unknown name (with the nearest ones), or a target that cannot be imported.
    """
    found = check_registered(name, use_distillation=use_distillation)
    return found if isinstance(found, type) else _imported(name, found)


def check_registered(name: str, *, use_distillation: bool = False) -> str | type:
    """Return what is registered under a name, see `get_trainer`, without importing it.

    Raises:
        ParamsError: An unknown name, with the nearest ones.
    """
    found = _trainers.get((name, use_distillation))
    if found is None:
        found = _from_packages().get(name)
    if found is None:
        if (name, not use_distillation) in _trainers:
            without = "without" if use_distillation else "with"
            raise ParamsError(f"trainer {name!r} is registered only for runs {without} use_distillation.")
        names = names_of_trainers()
        known = f" Registered are {', '.join(map(repr, names))}."
        raise ParamsError(f"trainer is {name!r}, which is not registered.{nearest(name, names)}{known}")
    return found


def names_of_trainers() -> tuple[str, ...]:
    """Return the known names in alphabetical order."""
    return tuple(sorted({name for name, _ in _trainers} | set(_from_packages())))


def _from_packages() -> dict[str, str]:
    """Return the trainers of installed packages, read each time: one may be installed in a running notebook."""
    return {entry.name: entry.value for entry in entry_points(group=ENTRY_POINTS)}


def _split(name: str, target: str) -> tuple[str, str]:
    module, colon, attribute = target.partition(":")
    if not (module and colon and attribute):
        raise ParamsError(f"trainer {name!r} is registered as {target!r}; give a class or 'module:Class'.")
    return module, attribute


def _imported(name: str, target: str) -> type:
    module, attribute = _split(name, target)
    entry = f"trainer {name!r} is registered as {target!r}"
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ParamsError(f"{entry}, which cannot be imported: {error}.") from error
    if not isinstance(found, type):
        raise ParamsError(f"{entry}, which is not a class.")
    return found
