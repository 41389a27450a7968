"""What tests of the page read out of its HTML."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

VOID = {"meta", "line", "path", "rect", "circle", "br", "link", "img", "input", "hr"}
# the elements that the page's template has; any other came out of somebody's text
EXPECTED = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "section", "div", "p", "span", "b", "i", "h1",
    "h2", "h3", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "svg", "line", "text", "path",
    "circle", "rect", "article", "ins", "del", "details", "summary", "ul", "li", "pre", "code", "footer",
}  # fmt: skip


class Parsed(HTMLParser):
    """A page taken apart; fails on an element that is closed out of order.

    Attributes:
        tags: Names of all elements.
        attributes: (name, value) of all attributes.
        titles: Texts of the titles of dots in charts.
        text: All text but the style.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.titles: list[str] = []
        self.text = ""
        self.style = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID or (tag in ("circle",) and not self.get_starttag_text().endswith("/>")):
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            self.style += data
            return
        if self._open[-2:] == ["circle", "title"]:
            self.titles.append(data)
        self.text += data


def check_inert(page: str) -> Parsed:
    """Fail if a page could load or run something; return it parsed."""
    parsed = Parsed(page)
    assert parsed.tags <= EXPECTED
    names = {name for name, _ in parsed.attributes}
    assert not {name for name in names if name.startswith("on")}
    assert not names & {"src", "href", "style", "srcset", "action", "xlink:href"}
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    digest = base64.b64encode(hashlib.sha256(parsed.style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert "url(" not in parsed.style
    assert "@import" not in parsed.style
    return parsed
