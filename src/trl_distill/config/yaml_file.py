"""Read YAML files, with a one-sentence error if they cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ParamsError


def read_yaml(path: str | os.PathLike[str], *, name: str) -> object:
    """Return the content of a YAML file.

    Args:
        path: Path of the file.
        name: Its name in messages.

    Raises:
        ParamsError: It cannot be read, or is not YAML.
    """
    import yaml

    try:
        return yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ParamsError(f"{name} cannot be read: {reason}; give a YAML file.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "error"
        raise ParamsError(f"{name} is not YAML: {problem}{line}.") from None
