"""The site is built as `make docs` builds it; its pages' links, headings and what a browser would load are checked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from lxml import html
from markdown_it import MarkdownIt

import trl_distill

pytest.importorskip("mkdocs", reason="the extra docs is not installed")
pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")

ROOT = Path(__file__).parents[1]
LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src", "video": "src"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; a warning of mkdocs, a bad link or anchor among them, fails its build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """Each page of the site, parsed, by its name."""
    return {path.relative_to(site).as_posix(): html.parse(str(path)).getroot() for path in site.rglob("*.html")}


def content(page):
    """Return the part of a page that its Markdown became."""
    (found,) = page.xpath("//article[contains(@class, 'md-content__inner')]")
    return found


def test_every_link_of_the_site_leads_somewhere(site, pages):
    anchors = {name: {*page.xpath("//@id"), *page.xpath("//a/@name"), ""} for name, page in pages.items()}
    broken = []
    for name, page in pages.items():
        for link in page.xpath("//a/@href"):
            target = urlsplit(link)
            if target.scheme or name == "404.html":
                continue
            path = (site / name).parent / unquote(target.path) if target.path else site / name
            file = Path(os.path.normpath(path / "index.html" if path.is_dir() else path))
            known = anchors.get(file.relative_to(site).as_posix(), {""})
            if not file.is_file() or target.fragment not in known:
                broken.append((name, link))
    assert broken == []


def test_the_site_loads_nothing_from_a_network(site, pages):
    for name, page in pages.items():
        for tag, attribute in LOADED.items():
            for element in page.iter(tag):
                if element.get("rel") != "canonical":
                    assert not urlsplit(element.get(attribute) or "").netloc, (name, element.get(attribute))
    for path in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//", path.read_text("utf-8")), path.name


def test_headings_are_in_order_and_pictures_have_a_text(pages):
    for name, page in pages.items():
        if name == "404.html":
            continue
        levels = [int(heading.tag[1]) for heading in content(page).xpath(".//h1|.//h2|.//h3|.//h4|.//h5|.//h6")]
        assert levels[0] == 1, name
        assert levels.count(1) == 1, name
        assert all(deeper - level <= 1 for level, deeper in pairwise(levels)), name
        assert all(len(picture.get("alt") or "") > 20 for picture in content(page).iter("img")), name


def test_a_page_reads_on_the_site_as_it_does_elsewhere(pages):
    """Where mkdocs and GitHub read Markdown by different rules, both find the same lists, tables and blocks of code."""
    commonmark = MarkdownIt("commonmark").enable("table")
    tags = ("h1", "h2", "h3", "h4", "li", "tr", "th", "td", "pre", "img", "em", "strong")
    sources = {path.relative_to(ROOT / "docs"): path for path in (ROOT / "docs").rglob("*.md")}
    sources |= {Path(name): ROOT / name.upper().replace("MD", "md") for name in ("changelog.md", "contributing.md")}
    sources[Path("overview.md")] = ROOT / "README.md"
    for name, path in sources.items():
        text = path.read_text("utf-8")
        if "\n::: " in text:
            continue  # written from docstrings
        page = pages[name.as_posix().replace("README.md", "index.md").replace(".md", ".html")]
        assert "<!--" not in "".join(content(page).itertext()), name
        assert not re.search(r"\btests?/\w+/test_\w+\.py::", "".join(content(page).itertext())), name
        elsewhere = html.fromstring(f"<div>{commonmark.render(text)}</div>")
        counted = [Counter(el.tag for el in tree.iter() if el.tag in tags) for tree in (content(page), elsewhere)]
        assert counted[0] == counted[1], name


def test_the_api_reference_has_every_public_name_once(pages):
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    assert Counter(re.findall(r"^::: trl_distill\.(\w+)$", text, re.MULTILINE)) == Counter(trl_distill.__all__)
    described = {heading.get("id") for heading in content(pages["api.html"]).iter("h3")}
    assert {f"trl_distill.{name}" for name in trl_distill.__all__} <= described
