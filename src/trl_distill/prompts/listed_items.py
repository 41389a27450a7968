"""The items of lists: what a language model wrote (numbered, with bullets, as JSON, or a line each), and a prompt's.

Standard library only.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_FENCE = re.compile(r"^[^\S\n]*(```|~~~)[^\n]*\n(.*?)(?:\n[^\S\n]*\1|\Z)", re.DOTALL | re.MULTILINE)
# "1. ", "(1) ", "**1.** ", "**1. all in bold**", "### 1. ", "1- ", "1、", "1.text", "①"
_NUMBERED = re.compile(
    r"\s{0,3}(?:#{1,6}\s+)?(?P<bold>\*\*)?"
    r"(?:[(\[（]?(?P<number>\d{1,4})(?:[.):\]-](?P<bold_ends>\*\*)?\s+|[．、）]\s*|[.)](?=[^\s\d]))|(?P<circled>[①-⑳])\s*)"
    r"(?P<text>\S.*)"
)
_OUTLINE = re.compile(r"(?:\(?[a-zA-Z]\)|\d{1,3}(?:\.\d{1,3})+[.):]?)\s+(\S.*)")  # of a prompt: "a) ", "2.1 "
_NUMBER = re.compile(r"(\d{1,2})[.)]\s+(?=\S)")
_BULLET = re.compile(r"\s{0,3}(?:[-*+•–—‣◦▪●]\s+|[•‣◦▪●])(\S.*)")
_RULE = re.compile(r"\s*([-*_])\1\1+\s*")
# each of these reads a text once, however it was made: a server may send megabytes on which another would try for hours
_IN_ONE_LINE = re.compile(r"(?<!\s)\s+\d{1,3}[.)]\s+")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)  # the last may be cut
_JSON = re.compile(r"^[^\S\n]*(?:\w{1,40}[^\S\n]?=[^\S\n]?)?[\[{]", re.MULTILINE)  # or a list in Python
# what models write before an item: "Input 3:", "**User**:"
_LABEL = re.compile(
    r"^\**(?:sample |example |user |customer )?(?:input|query|question|message|example|user|q)"
    r"\s*+#?\d{0,3}\**+\s*+:\**\s*",
    re.IGNORECASE,
)
_TAGGED = re.compile(r"<(input|query|question|message|example|user|item)>(.*)</\1>", re.DOTALL | re.IGNORECASE)
# what models write instead of an item: "[insert input]", "{input7}", "1. - <message>", "</inputs>"
_PLACEHOLDER = re.compile(
    r"\W*[\[{<]/?(?:insert |your |the |user )*(?:inputs?|query|queries|questions?|messages?|text)\W*\d*[\]}>]\W*", re.I
)
LONGEST_PLACEHOLDER = 100  # characters, so that no text takes long to compare
_WORD = re.compile(r"[^\W\d_]|\d+\D+\d|\d{2}")
QUOTES = {'"': '"', "'": "'", "`": "`", "*": "*", "“": "”", "‘": "’", "«": "»", "„": "“", "「": "」", "『": "』"}
LEAST_LINES = 3  # of a list without marks: one or two are a refusal, or an answer to the prompt
LONGEST_HEAD = 60  # characters of an item with which those below it are read


def items_in(text: str, *, finished: bool = True, least_lines: int = LEAST_LINES) -> list[str]:
    """Return the items of the list in a text, in their order; text around the list is not part of it.

    An item may have several lines: those that follow it without a blank line, and paragraphs before the next number. If
    there are neither numbers nor bullets nor JSON, each line is an item, except those that end with a colon.

    Args:
        text: What the model wrote.
        finished: Whether it ended by itself; if not, the last item may be cut, and is left out.
        least_lines: Fewer lines without marks are no list.
    """
    fenced = _FENCE.search(text)
    text = textwrap.dedent(fenced[2] if fenced and not _has_marks(text[: fenced.start()]) else text)
    found = _in_json(text)
    if found is None:
        found = _in_lines(text, least_lines)
        found = found if finished else found[:-1]
    cleaned = (cleaned_item(item) for item in _without_second_numbers(found))
    return [item for item in cleaned if _WORD.search(item) and not _is_placeholder(item)]


@dataclass
class _Item:
    """An item of a prompt's list: `under` is the item that it is indented below."""

    text: str
    indent: int
    under: _Item | None
    is_head: bool = False

    @property
    def whole(self) -> str:
        """The item with those that it is below, if these end with a colon."""
        parts, under = [self.text], self.under
        while under is not None and under.is_head:
            parts.append(under.text)
            under = under.under
        return " ".join(reversed(parts))


def list_items(prompt: str) -> list[str]:
    """Return the items of the lists in a prompt, each as one line, without marks and emphasis.

    An item goes on in the lines below it, up to a blank one, that are indented more than its mark or begin with a
    lower-case letter. If it is short and ends with a colon, each item indented below it begins with it instead:
    "Refunds: after 30 days". Nothing in a code fence or a table is an item.
    """
    found: list[_Item] = []
    last, goes_on, fence = None, False, ""
    for line in prompt.expandtabs(4).splitlines():
        words, indent = line.strip(), len(line) - len(line.lstrip())
        text = None if fence else without_mark(words)
        if words.startswith(fence or ("```", "~~~")):
            fence, goes_on = "" if fence else words[:3], False
        elif text is not None:
            while last is not None and last.indent >= indent:
                last = last.under
            if last is not None:
                last.is_head = last.text.endswith((":", "：")) and len(last.text) <= LONGEST_HEAD
            last, goes_on = _Item(text, indent, last), True
            found.append(last)
        elif not fence and words and last is not None:
            goes_on = goes_on and (indent > last.indent or words[0].islower()) and words[0] not in "|#"
            if goes_on:
                last.text += f" {words.replace('**', '')}"
            elif indent <= last.indent:
                last = None
        else:
            goes_on = False
    return [item.whole for item in found if not item.is_head]


def without_mark(line: str) -> str | None:
    """Return the text of a line that begins with a number, a letter or a bullet, without emphasis; None of another."""
    found = _numbered(line)
    bullet = _BULLET.match(line) or _OUTLINE.match(line)
    text = found[1] if found else bullet[1] if bullet else ""
    return text.replace("**", "").strip() if _WORD.search(text) else None


def _is_placeholder(item: str) -> bool:
    """Whether a model wrote where an input would be instead of one, such as "[insert input]"."""
    return len(item) <= LONGEST_PLACEHOLDER and _PLACEHOLDER.fullmatch(item) is not None


def cleaned_item(item: str) -> str:
    """Return an item without the tag, the label, the emphasis and the quotes that a model puts around it."""
    tagged = _TAGGED.fullmatch(item.strip())
    item = _LABEL.sub("", (tagged[2] if tagged else item).strip(), count=1).strip()
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
    if start is None or _has_marks(text[: start.start()]):
        return None
    rest = text[start.end() - 1 :]
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
    """Yield the texts of a JSON value: a list's items, of each object the first text, of numbered keys all."""
    if isinstance(value, Mapping):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        numbered = len(value) > 1 and all(str(key)[-1:].isdigit() for key in value)
        value = lists[0] if lists else list(value.values()) if numbered else [value]
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


def _has_marks(text: str) -> bool:
    return any(_numbered(line) or _BULLET.match(line) for line in text.splitlines())


def _in_lines(text: str, least: int) -> list[str]:
    lines = text.splitlines()
    items = list(_under_numbers(lines))
    if len(items) == 1 and re.search(r"\s2[.)]\s", items[0]):
        return _IN_ONE_LINE.split(items[0])
    items = items or list(_under_bullets(lines))
    if items:
        return items
    plain = [_object_of(line.strip()) for line in lines]
    plain = [line for line in plain if line and not line.endswith((":", "："))]
    return plain if len(plain) >= least else []


def _numbered(line: str) -> tuple[int, str] | None:
    """Return the number with which a line begins, and its text without a bullet behind the number."""
    found = _NUMBERED.match(line)
    if found is None:
        return None
    text = found["text"].rstrip()
    if found["bold"] and not found["bold_ends"]:  # the emphasis that begins before the number ends in the text
        text = text.replace("**", "", 1)
    bullet = _BULLET.match(text)
    number = int(found["number"]) if found["number"] else ord(found["circled"]) - ord("①") + 1
    return number, bullet[1] if bullet else text


def _under_numbers(lines: Sequence[str]) -> Iterator[str]:
    """Yield the numbered items: the lines that follow each directly, and paragraphs up to the next number.

    Of items of several paragraphs the last is left out, since nothing says where it ends.
    """
    item, behind, number = list[str](), list[str](), 0  # behind: from the first blank line on
    have_paragraphs = False
    for line in lines:
        begins = _numbered(line)
        if begins:
            if any(behind) and begins[0] == number + 1 and not _is_heading(behind):
                item, have_paragraphs = item + behind, True
            if item:
                yield "\n".join(item).rstrip()
            (number, text), behind = begins, []
            item = [text]
        elif item and (behind or not line.strip()):
            if not _RULE.fullmatch(line):
                behind.append(line.rstrip())
        elif item:
            item.append(line.rstrip())
    if item and not (have_paragraphs and any(behind)):
        yield "\n".join(item)


def _is_heading(lines: Sequence[str]) -> bool:
    """Whether the last of these lines is a heading of the list that follows."""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last.startswith(("#", "**")) or last.endswith((":", "："))


def _under_bullets(lines: Sequence[str]) -> Iterator[str]:
    """Yield the items that begin with a bullet, each with the lines that follow it directly."""
    item: list[str] = []
    for line in lines:
        begins = _BULLET.match(line)
        if begins or not line.strip():
            if item:
                yield "\n".join(item)
            item = [begins[1]] if begins else []
        elif item:
            item.append(line.rstrip())
    if item:
        yield "\n".join(item)


def _without_second_numbers(items: list[str]) -> list[str]:
    """Return items without numbers of their own if these count up: "5. May" is a date."""
    found = [_NUMBER.match(item.lstrip()) for item in items]
    if [int(number[1]) for number in found if number] != list(range(1, len(items) + 1)):
        return items
    return [_NUMBER.sub("", item.lstrip(), count=1) for item in items]


def _object_of(line: str) -> str:
    """Return the text of a line that is a JSON object; any other line as it is."""
    if not line.startswith("{"):
        return line
    try:
        return next(_texts(json.loads(line)), "")
    except (ValueError, RecursionError):
        return line
