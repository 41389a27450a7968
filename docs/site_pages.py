"""What mkdocs does to the pages of docs/ beyond rendering them (mkdocs.yml names this file as a hook).

Pages are written for GitHub as well: comments, which name tests, are left out of the site, a link to a file outside
docs/ leads to a copy of it on the site, and a link that is named as its page's file is named by the page's title.
"""

from __future__ import annotations

import re
from os.path import normpath, relpath
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
COPIES = {"README.md": "overview.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
COPIES |= {"LICENSE": "license.txt"}
EXAMPLES = [path for path in sorted((ROOT / "examples").rglob("*")) if path.suffix in (".py", ".yaml")]
COPIES |= {name: name for name in (path.relative_to(ROOT).as_posix() for path in EXAMPLES)}
SOURCES = {name: source for source, name in COPIES.items()}
FENCED_OR_COMMENT = re.compile(r"^```.*?^```$|[ \t]*<!--.*?-->\n?", re.DOTALL | re.MULTILINE)
NAMED_AS_FILE = re.compile(r"\[[\w/.]+\.md\]\(([^)#:\s]+\.md)")
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and examples outside docs/ that its pages link to."""
    for source, name in COPIES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Drop comments, point links to files outside docs/ to their copies, and name links by titles."""
    written = SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def moved(link: re.Match[str]) -> str:
        target = normpath(Path(written).parent / link[1])
        return relpath(COPIES.get(target, target.removeprefix("docs/")), Path(page.file.src_uri).parent)

    def titled(link: re.Match[str]) -> str:
        source = ROOT / normpath(Path(written).parent / link[1])
        title = next(line for line in source.read_text("utf-8").splitlines() if line.startswith("# "))
        return f"[{title[2:]}]({link[1]}"

    text = FENCED_OR_COMMENT.sub(lambda found: found[0] if found[0].startswith("```") else "", markdown)
    return LINK.sub(moved, NAMED_AS_FILE.sub(titled, text))
