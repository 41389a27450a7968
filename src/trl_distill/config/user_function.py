"""A function of the user's that a setting names as `module:name`. Standard library only."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import ParamsError


def function_named(name: str, *, setting: str, takes: int, of: str) -> Callable[..., object]:
    """Return the function `module:name`, whose module is also looked for in the working directory.

    Args:
        name: The module and the function, with a colon between them.
        setting: The setting in messages.
        takes: How many arguments the function is called with.
        of: What they are, in messages.

    Raises:
        ParamsError: The module cannot be imported, or the name is not that of such a function.
    """
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever a user's module raises; a script may end
        raise ParamsError(
            f"{setting} {name!r} cannot be imported ({type(error).__name__}: {error}); give module:name of a function "
            f"of {of}."
        ) from None
    finally:
        sys.path.remove(here)
    if not callable(function) or not _takes(function, takes):
        raise ParamsError(f"{setting} {name!r} is not a function of {of}; give one.")
    return function


def _takes(function: Callable[..., object], count: int) -> bool:
    try:
        inspect.signature(function).bind(*[""] * count)
    except ValueError:  # a function of C that has no signature
        return True
    except TypeError:
        return False
    return True
