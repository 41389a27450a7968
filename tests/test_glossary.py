"""docs/glossary.md explains each figure that is printed, drawn or written."""

from __future__ import annotations

import re
from pathlib import Path

from evaluation.test_page import HISTORY, evaluation, report, training
from lxml import html

from trl_distill.evaluation.figures import figures_of
from trl_distill.evaluation.page.render import render
from trl_distill.evaluation.table import savings_of, table_of
from trl_distill.runs.progress import FIGURES, SHARES, line
from trl_distill.runs.summary import MEANS

PAGE = (Path(__file__).parents[1] / "docs" / "glossary.md").read_text("utf-8").casefold()
NAMED = {name for part in re.findall(r"(?<!\*)\*{1,2}([^*\n]+)\*{1,2}", PAGE) for name in (part, *part.split(", "))}
IN_FILES = set(re.findall(r"`(\w+)`", PAGE)) | NAMED


def missing(names):
    """Return the names that the glossary does not explain."""
    return {name for name in names if name.casefold() not in NAMED}


def test_every_figure_of_the_terminal_is_in_the_glossary():
    labels = {label for _, label, _ in (*FIGURES, *SHARES)}
    shown = line(
        {"loss": 1.0, "epoch": 1.0, "learning_rate": 1.0, "tokens_per_second": 1.0, "kl": 1.0}, step=1, steps=2
    )
    assert missing(labels | set(re.findall(r"[a-z/]{2,}", shown))) == set()
    table = [row.split("  ")[1] for row in table_of(evaluation()).splitlines()[1:]]
    assert missing(name.removesuffix(" (decides)") for name in table) == set()
    savings = savings_of(evaluation())
    for words in ("saved per query", "times the characters", "times as long", "paid for itself"):
        assert words in savings.casefold()
        assert words in NAMED


def test_every_figure_of_the_page_is_in_the_glossary():
    for found in (evaluation(), None):
        page = html.fromstring(render(report(training=training(history=HISTORY), evaluation=found)))
        tiles = page.xpath("//*[contains(@class, 'tile')]/*[@class='label']/text()")
        assert tiles
        assert missing(set(tiles)) == set()
        columns = next(iter(page.xpath("//section[h2='Results of each side']//thead/tr")), ())
        assert len(columns) == (8 if found else 0)
        assert missing({str(cell.text).removesuffix(", nats") for cell in columns} - {"side"}) == set()


def test_every_figure_of_the_files_is_in_the_glossary():
    logged = {*MEANS, "num_tokens", "tokens_per_second", "distill_alpha", "distill_temperature", "grad_norm"}
    assert logged - IN_FILES == set()
    named = {"output_similarity", "speedup", "prompt_compression"}
    assert named <= figures_of(evaluation()).keys() & IN_FILES
