"""Writes the tables of flags in README.md and docs from the fields they describe: `python docs/flags.py`.

A table stands between `<!-- flags: Heading, Heading -->` and `<!-- end of flags -->`; one of another
command begins with its name: `<!-- flags of evaluate: Heading -->`, one of a recipe's values with
`<!-- flags of recipe: NAME -->`. tests/test_docs.py fails where a page differs from what this writes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from trl_distill.config.data_settings import DATA_FIELDS
from trl_distill.config.evaluation_settings import EVALUATION_FIELDS
from trl_distill.config.export_settings import EXPORT_FIELDS
from trl_distill.config.queries_settings import QUERIES_FIELDS
from trl_distill.config.recipes import RECIPES, shown
from trl_distill.config.training_params import FIELDS
from trl_distill.config.tuning_settings import TUNING_FIELDS

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/cli.md", "docs/evaluation.md", "docs/serving.md", "docs/recipes.md", "docs/tuning.md")
OF_COMMANDS: dict[str | None, dict[str, Any]] = {
    None: FIELDS,
    "data": DATA_FIELDS,
    "evaluate": EVALUATION_FIELDS,
    "export": EXPORT_FIELDS,
    "queries": QUERIES_FIELDS,
    "tune": TUNING_FIELDS,
}
TABLE = re.compile(r"(<!-- flags(?: of (\w+))?: (.+?) -->\n).*?(<!-- end of flags -->)", re.DOTALL)


def table(headings: list[str], fields: dict[str, Any]) -> str:
    """Return one table of the flags under these headings, in their order."""
    lines = ["| flag | default | meaning |", "|---|---|---|"]
    under = {heading: [f for f in fields.values() if f.metadata["help"].group == heading] for heading in headings}
    for spec in (spec for heading in headings for spec in under[heading]):
        choices = spec.metadata.get("choices")
        meaning = str(spec.metadata["help"]) + (f" One of `{'`, `'.join(choices)}`." if choices else "")
        lines.append(f"| `--{spec.name.replace('_', '-')}` | {_default(spec.default)} | {meaning} |")
    return "\n".join(lines) + "\n"


def recipe_table(name: str) -> str:
    """Return the table of a recipe's values."""
    lines = ["| flag | value | from |", "|---|---|---|"]
    for field, (value, source) in RECIPES[name].values.items():
        lines.append(f"| `--{field.replace('_', '-')}` | `{shown(value)}` | {source} |")
    return "\n".join(lines) + "\n"


def _default(value: Any) -> str:
    """Return a default as a table shows it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def filled(page: str) -> str:
    """Return a page with its tables as the fields have them.

    Raises:
        ValueError: A table of a heading that no field has.
    """

    def fill(found: re.Match[str]) -> str:
        if found[2] == "recipe":
            return found[1] + recipe_table(found[3]) + found[4]
        headings, fields = found[3].split(", "), OF_COMMANDS[found[2]]
        unknown = set(headings) - {spec.metadata["help"].group for spec in fields.values()}
        if unknown:
            raise ValueError(f"no field has the heading {', '.join(sorted(unknown))}")
        return found[1] + table(headings, fields) + found[4]

    return TABLE.sub(fill, page)


if __name__ == "__main__":
    for name in PAGES:
        path = ROOT / name
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
