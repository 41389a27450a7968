"""docs/troubleshooting.md quotes messages as the package prints them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
VALUE = "\0"  # stands for a value that a message is given


def texts(path: Path) -> list[str]:
    """Return the texts of a file, each value in them as `VALUE`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_every_message_that_the_page_quotes_is_one_of_the_packages():
    page = re.sub(r"`[^`]*`|<!--.*?-->", "", (ROOT / "docs" / "troubleshooting.md").read_text("utf-8"), flags=re.DOTALL)
    quoted = [" ".join(text.split()) for text in re.findall(r'"([^"]+)"', page)]
    assert len(quoted) > 20
    known = [text for path in (ROOT / "src" / "trl_distill").rglob("*.py") for text in texts(path)]
    for quote in quoted:
        words = [re.escape(part) for part in re.split(r" ?[.]{3} ?", quote) if part]
        between = rf"[^{VALUE}]{{0,3}}{VALUE}+[^{VALUE}]{{0,3}}"
        assert any(re.search(between.join(words), text) for text in known), quote
