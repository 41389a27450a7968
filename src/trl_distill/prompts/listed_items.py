"""The items of a list that a language model wrote: numbered, with bullets, as JSON, or a line each.

Standard library only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping

_FENCE = re.compile(r"^\s*```\w*\n(.*?)(?:\n```|$)", re.DOTALL)
_NUMBERED = re.compile(r"^\s{0,3}(?:\*\*)?[(\[]?\d{1,4}[.):\]](?:\*\*)?\s+(\S.*)$")
_NUMBER = re.compile(r"^\d{1,2}[.)]\s+")
_BULLET = re.compile(r"^\s{0,3}[-*+•–]\s+(\S.*)$")
# each of these reads a text once, however it was made: a server may send megabytes on which another would try for hours
_IN_ONE_LINE = re.compile(r"(?<!\s)\s+\d{1,3}[.)]\s+")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)  # the last may be cut
_JSON = re.compile(r"^[^\S\n]*[\[{]", re.MULTILINE)
# what models write before an item: "Input 3:", "**User**:"
_LABEL = re.compile(
    r"^\**(?:sample |example |user |customer )?(?:input|query|question|message|example|user|q)"
    r"\s*+\d{0,3}\**+\s*+:\**\s*",
    re.IGNORECASE,
)
# what models write instead of an item: "[insert input]", "{input7}", "1. - <message>"
_PLACEHOLDER = re.compile(
    r"\W*[\[{<](?:insert |your |the |user )*(?:input|query|question|message|text)\W*\d*[\]}>]\W*", re.I
)
LONGEST_PLACEHOLDER = 100  # characters, so that no text takes long to compare
_WORD = re.compile(r"[^\W\d_]|\d+\D+\d|\d{2}")
QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`", "*": "*"}


def items_in(text: str, *, finished: bool = True) -> list[str]:
    """Return the items of the list in a text, in their order; text around the list is not part of it.

    An item may have several lines: those that follow it without a blank line. If there are neither numbers nor bullets
    nor JSON, each line is an item, except those that end with a colon.

    Args:
        text: What the model wrote.
        finished: Whether it ended by itself; if not, the last item may be cut, and is left out.
    """
    fenced = _FENCE.match(text)
    text = fenced[1] if fenced else text
    found = _in_json(text)
    if found is None:
        found = _in_lines(text)
        found = found if finished else found[:-1]
    cleaned = (cleaned_item(item) for item in found)
    return [item for item in cleaned if _WORD.search(item) and not _is_placeholder(item)]


def marked_lines(text: str) -> list[str]:
    """Return the lines of a text that begin with a number or a bullet, without it and without emphasis."""
    found = (_NUMBERED.match(line) or _BULLET.match(line) for line in text.splitlines())
    items = [line[1].replace("**", "").strip() for line in found if line]
    return [item for item in items if _WORD.search(item)]


def _is_placeholder(item: str) -> bool:
    """Whether a model wrote where an input would be instead of one, such as "[insert input]"."""
    return len(item) <= LONGEST_PLACEHOLDER and _PLACEHOLDER.fullmatch(item) is not None


def cleaned_item(item: str) -> str:
    """Return an item without a second number, the label, the emphasis and the quotes that a model puts around it."""
    item = _LABEL.sub("", _NUMBER.sub("", item.strip(), count=1), count=1).strip()
    while len(item) > 1 and QUOTES.get(item[0]) == item[-1] and not _closes_early(item):
        emphasis = min(len(item) - len(item.lstrip("*")), len(item) - len(item.rstrip("*")))
        item = item[max(emphasis, 1) : len(item) - max(emphasis, 1)].strip()
    return item


def _closes_early(item: str) -> bool:
    """Whether an item's opening quote ends before the item does, as in `"a" or "b"`."""
    return len(item.strip("*")) > 0 and item[-1] in item[1:-1].strip("*")


def _in_json(text: str) -> list[str] | None:
    """Return the texts of a JSON list that begins a line before any other list; None if there is none.

    Of a list that was cut, those that are complete.
    """
    start = _JSON.search(text)
    if start is None or any(map(_marked, text[: start.start()].splitlines())):
        return None
    rest = text[text.index(start[0].strip(), start.start()) :]
    try:
        value, _ = json.JSONDecoder().raw_decode(rest)
    except (ValueError, RecursionError):
        inner = rest.partition("[")[2]
        if not re.match(r'\s*["{]', inner):
            return None
        strings = [json.loads(found) for found in _STRING.findall(inner) if _is_json(found)]
        return strings if '":' not in inner.replace(" ", "") else strings[1::2]
    if isinstance(value, Mapping) and "\n{" in rest:  # an object a line
        return None
    found = list(_texts(value))
    return found or None


def _texts(value: object) -> Iterator[str]:
    """Yield the texts of a JSON value: a list's items, of each object the first text."""
    if isinstance(value, Mapping):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if lists else [value]
    if not isinstance(value, list):
        return
    for item in value:
        if isinstance(item, Mapping):
            item = next((inner for inner in item.values() if isinstance(inner, str)), None)
        if isinstance(item, str):
            yield item


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _marked(line: str) -> bool:
    return bool(_NUMBERED.match(line) or _BULLET.match(line))


def _in_lines(text: str) -> list[str]:
    lines = text.splitlines()
    for mark in (_NUMBERED, _BULLET):
        if any(map(mark.match, lines)):
            items = list(_under(mark, lines))
            return _IN_ONE_LINE.split(items[0]) if len(items) == 1 and re.search(r"\s2[.)]\s", items[0]) else items
    plain = (_object_of(line.strip()) for line in lines)
    return [line for line in plain if line and not line.endswith(":")]


def _under(mark: re.Pattern[str], lines: Iterable[str]) -> Iterator[str]:
    """Yield the items that begin with a mark, each with the lines that follow it directly."""
    item: list[str] = []
    for line in lines:
        begins = mark.match(line)
        if begins:
            if item:
                yield "\n".join(item)
            item = [begins[1]]
        elif item and not line.strip():
            yield "\n".join(item)
            item = []
        elif item:
            item.append(line.rstrip())
    if item:
        yield "\n".join(item)


def _object_of(line: str) -> str:
    """Return the text of a line that is a JSON object; any other line as it is."""
    if not line.startswith("{"):
        return line
    try:
        return next(_texts(json.loads(line)), "")
    except (ValueError, RecursionError):
        return line
