"""The page in headless Chromium, if there is one: nothing on the console, and a picture that shows something."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from evaluation.test_page import HISTORY, HOSTILE, evaluation, report, training

from trl_distill.evaluation.page.content import TrainedRow
from trl_distill.evaluation.page.render import render

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


def opened(page: Path, *, width: int = 1100, dark: bool = False) -> tuple[list[str], Path]:
    """Open a page and return what was logged to its console, and a picture of it."""
    picture = page.with_suffix(f".{width}.{'dark' if dark else 'light'}.png")
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--enable-logging=stderr", "--v=0", f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width},3000",
        f"--screenshot={picture}", *(["--force-dark-mode"] if dark else []), page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert picture.is_file(), done.stderr
    return re.findall(r"CONSOLE:\d+\] (.*)", done.stderr), picture


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    rows = (TrainedRow(1, HOSTILE, "a", "b", True, 1, ("a",), (0.1,), (0.2,)),)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(report(training=training(rows=rows, history=HISTORY), evaluation=evaluation())), "utf-8")
    return path


def test_what_the_policy_forbids_is_on_the_console(page):
    other = page.with_name("other.html")
    text = page.read_text("utf-8")
    other.write_text(text.replace("</main>", "<script>alert(1)</script><img src='https://example.com/x.png'></main>"))
    logged, _ = opened(other)
    assert any("inline script" in line for line in logged)
    assert any("example.com" in line for line in logged)


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_opens_without_a_word_on_the_console_and_shows_colours(page, dark):
    images = pytest.importorskip("PIL.Image")
    logged, picture = opened(page, dark=dark)
    assert logged == []
    image = images.open(picture).convert("RGB")
    ground = image.getpixel((5, 5))
    assert (sum(ground) < 200) == dark
    colours = image.crop((0, 0, image.width, 1500)).getcolors(maxcolors=1 << 24)
    vivid = sum(count for count, pixel in colours if max(pixel) - min(pixel) > 80)
    assert len(colours) > 50
    assert vivid > 500  # lines, bars and marks, not text alone


def test_nothing_is_wider_than_a_narrow_window(page):
    images = pytest.importorskip("PIL.Image")
    _, picture = opened(page, width=500)
    image = images.open(picture).convert("RGB")
    ground = image.getpixel((2, 2))
    assert {image.getpixel((x, y)) for x in (497, 498) for y in range(0, image.height, 3)} == {ground}


def test_a_chart_alone_is_as_wide_as_one_of_two(tmp_path):
    images = pytest.importorskip("PIL.Image")
    path = tmp_path / "report.html"
    path.write_text(render(report(evaluation=evaluation(gap_closed=None, cost=None, judgement=None))), "utf-8")
    _, picture = opened(path)
    image = images.open(picture).convert("RGB").crop((0, 0, 1100, 900))
    vivid = [x for x in range(image.width) for y in range(image.height) if _is_vivid(image.getpixel((x, y)))]
    assert 300 < max(vivid) < 550  # the end of the longest bar


def _is_vivid(pixel):
    return max(pixel) - min(pixel) > 80
