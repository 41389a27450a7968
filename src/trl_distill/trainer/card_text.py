"""Text of others in a model card: escaped for Markdown, and without the paths and servers of the machine."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import urlsplit

from ..errors import printable

MARKUP = re.compile(r"[\\`*\[\]|]")
ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def escaped(value: object) -> str:
    """Return a value as plain text on one line, for a heading, a sentence or a cell of a table."""
    line = " ".join(printable(str(value)).split())
    return MARKUP.sub(r"\\\g<0>", line).translate(ENTITIES)


def code(text: str) -> str:
    """Return a text on one line as inline code, whose backticks the text does not contain."""
    line, ticks = " ".join(printable(text).split()), "`"
    while ticks in line:
        ticks += "`"
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def fenced(text: str, language: str = "text") -> str:
    """Return a code block whose fence the text does not contain."""
    text, fence = printable(text), "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def public_name(name: str) -> str:
    """Return the name of a model, data or a store without where it is: of a path that could tell, the last part.

    A model behind a server keeps its own name; the server's address is left out. Names on the Hub and paths below the
    working directory stay as they are.
    """
    if re.match(r"https?://", name, re.IGNORECASE):
        model = urlsplit(name).fragment
        return f"{model} (on a server)" if model else "a server"
    kind = PureWindowsPath if PureWindowsPath(name).drive else PurePosixPath
    path = kind(name)
    tells = path.is_absolute() or bool(PureWindowsPath(name).drive) or name.startswith("~") or ".." in path.parts
    return path.name if tells and path.name else "a folder" if tells else name


def place_from_here(folder: Path) -> Path:
    """Return a folder relative to the working directory, or its name alone if it is elsewhere."""
    try:
        relative = Path(os.path.relpath(folder))
    except ValueError:  # on another drive of Windows
        return Path(folder.name)
    return Path(folder.resolve().name) if relative.parts[:1] in ((), ("..",)) else relative
