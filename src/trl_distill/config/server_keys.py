"""Keys of servers: settings name the environment variables that hold them. Standard library only."""

from __future__ import annotations

import os
import re

from ..errors import ParamsError, TeacherError

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_key_variable(given: object, *, setting: str) -> None:
    """Raise ParamsError for what cannot name an environment variable; it is not repeated, as it may be a key."""
    if not isinstance(given, str) or VARIABLE.fullmatch(given) is None:
        raise ParamsError(
            f"{setting} is not the name of an environment variable; put the key in one (export MY_KEY=...), and give "
            "its name, MY_KEY."
        )


def key_in(variable: str, *, setting: str | None = None) -> str:
    """Return the key in an environment variable, or an empty text.

    Args:
        variable: Its name.
        setting: The setting that names it, if one does: then it must be set.

    Raises:
        ParamsError: It cannot be a variable's name.
        TeacherError: It holds what no key has, or it is not set though a setting names it.
    """
    if setting is not None:
        check_key_variable(variable, setting=setting)
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise TeacherError(f"the environment variable {variable} holds characters that no key has; set it again.")
    if setting is not None and not key:
        name = f", {variable}" if variable.isupper() else ""  # else it looks like a key, given in the place of its name
        raise TeacherError(f"{setting} names an environment variable that is not set{name}; set it to the key.")
    return key
