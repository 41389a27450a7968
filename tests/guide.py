"""The guide's commands and snippets, read from `guide_snippets.txt`, which carries their text."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = Path(__file__).with_name("guide_snippets.txt").read_text(encoding="utf-8")


def blocks_of(text: str) -> list[tuple[str, str]]:
    """Return a page's fenced blocks in order, each with the heading that it stands under."""
    found, heading = [], ""
    for match in re.finditer(r"^#{2,4} ([^\n]+)$|^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if match[1] is not None:
            heading = match[1]
        else:
            found.append((heading, match[2]))
    return found


def snippet(heading: str) -> str:
    """Return the only block under a heading."""
    (found,) = [block for place, block in blocks_of(TEXT) if place == heading]
    return found


COMMANDS = [part.strip() for part in re.split(r"^# .*$", snippet("CLI Usage"), flags=re.MULTILINE) if part.strip()]
