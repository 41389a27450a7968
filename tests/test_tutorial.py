"""docs/tutorial.md is followed up to its first block that needs vLLM, and prints what the page shows."""

from __future__ import annotations

from pathlib import Path

from page_blocks import blocks, follow, lines

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"


def test_the_tutorial_runs_as_written(tmp_path):
    """Each line that the page shows is printed, but for figures; the verdict and what is equal are as shown."""
    printed = everything = ""
    for not_run, language, code in blocks(PAGE):
        if not_run:
            break  # from here on with vLLM
        if language == "text":
            assert [line for line in lines(code) if line != "..." and line not in lines(printed)] == []
            continue
        printed = follow(language, code, tmp_path)
        everything += printed
    assert "12 of 60 rows are held out" in everything
    assert "It works: the student closes" in everything
    assert "\n[Repair] battery\n" in everything
    assert "12 of 12 greedy completions (100.0%) equal the trained student's, by transformers" in everything
    assert (tmp_path / "support" / "report.html").is_file()
