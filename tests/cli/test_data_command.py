"""`aitraining data`: what it writes, what it prints, and what it refuses."""

from __future__ import annotations

import errno
import json
import re
import shlex
import textwrap
import threading
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from datasets import Dataset

from trl_distill.cli import main
from trl_distill.data.folder_lock import file_lock
from trl_distill.data.loading import load_data

WORDS = ("red", "blue", "green", "cat", "dog", "horse", "lamp", "river")
PAIRS = [(one, other) for one in WORDS for other in WORDS if one != other]
SIZES = {"colour": 30, "animal": 8}
ROWS = [{"text": f"{topic} {one} {two}", "topic": topic} for topic, n in SIZES.items() for one, two in PAIRS[:n]]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory, with queries.jsonl."""
    monkeypatch.chdir(tmp_path)
    write("queries.jsonl", ROWS)
    return tmp_path


def write(name, rows):
    with open(name, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read(name):
    with open(name) as file:
        return [json.loads(line) for line in file]


def command(*words):
    done = CliRunner().invoke(main, ["data", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*words, code=2):
    done = CliRunner().invoke(main, ["data", *map(str, words)])
    assert (done.exit_code, done.stderr.count("\n")) == (code, 1), done.output
    return done.stderr


def test_the_example_of_the_documentation_prints_what_it_shows(place):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    section = page.partition("\n## Diverse rows\n")[2].partition("\n## ")[0]
    rows, printed = (textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n)+", section, re.MULTILINE)[:2])
    (typed,) = re.findall(r"^aitraining data (.+)$", section, re.MULTILINE)[:1]
    (place / "queries.jsonl").write_text(rows)
    assert command(*typed.split()) == printed


def test_rows_of_each_category_are_written_with_a_report(place):
    rows = [*ROWS, {"text": "Colour RED blue.", "topic": "colour"}, {"text": "", "topic": "animal"}]
    write("queries.jsonl", rows)
    said = command("queries.jsonl", "--category-column", "topic", "--per-category", 10, "--output", "new/diverse.jsonl")
    written = read("new/diverse.jsonl")
    assert Counter(row["topic"] for row in written) == {"colour": 10, "animal": 8}
    assert all(row in ROWS for row in written)
    report = json.loads((place / "new" / "diverse.report.json").read_text())
    assert (report["rows"], report["kept"], report["categories_by"]) == (40, 18, "the column 'topic'")
    assert report["counts"] == {"unusable": 1, "near_duplicate": 1, "beyond_per_category": 20}
    assert {"row": "line 39", "reason": "near_duplicate", "of": "line 1"} in report["removed"]
    assert {"row": "line 40", "reason": "unusable", "problem": "'text' is empty"} in report["removed"]
    beyond = [one["row"] for one in report["removed"] if one["reason"] == "beyond_per_category"]
    kept = [f"line {ROWS.index(row) + 1}" for row in written]
    assert sorted([*kept, *beyond, "line 39", "line 40"]) == sorted(f"line {i}" for i in range(1, 41))
    assert said.splitlines() == [
        "Categories by the column 'topic':",
        "  category       rows       kept",
        "  colour           30         10",
        "  animal            8          8",
        "18 of 40 rows kept.",
        "  1 unusable: line 40: 'text' is empty",
        "  1 like an earlier row: line 39 is like line 1",
        f"  20 beyond 10 of a category: {'; '.join(beyond[:3])}; ...",
        "The rows are in new/diverse.jsonl; diverse.report.json lists every row that is not, with the reason.",
    ]
    assert sorted(path.name for path in (place / "new").iterdir()) == ["diverse.jsonl", "diverse.report.json"]


def test_the_same_command_writes_the_same_rows_and_another_seed_others(place):
    flags = ("queries.jsonl", "--category-column", "topic", "--per-category", 5, "--output")
    command(*flags, "one.jsonl")
    command(*flags, "two.jsonl")
    command(*flags, "other.jsonl", "--seed", 1)
    assert read("one.jsonl") == read("two.jsonl")
    assert read("one.jsonl") != read("other.jsonl")


def test_a_share_is_held_out_and_nothing_like_it_is_in_the_output(place):
    write("queries.jsonl", [*ROWS, *({"text": row["text"].upper(), "topic": "copy"} for row in ROWS)])
    said = command("queries.jsonl", "--holdout", 0.25, "--output", "diverse.jsonl")
    held_out, written = read("diverse.heldout.jsonl"), read("diverse.jsonl")
    assert len(held_out) == 19
    asked = [{row["text"].lower() for row in rows} for rows in (held_out, written)]
    assert not asked[0] & asked[1]
    assert asked[0] | asked[1] == {row["text"] for row in ROWS}
    assert "  19 held out: line " in said
    assert "like a held-out row: line " in said
    assert "The held-out rows are in diverse.heldout.jsonl." in said
    assert load_data("diverse.heldout.jsonl")[0]["text"] == [row["text"] for row in held_out]


@pytest.mark.usefixtures("device")
def test_the_embedded_model_trains_on_the_output_and_is_evaluated_on_what_was_held_out(place):
    typed = (
        "data queries.jsonl --category-column topic --per-category 10 --holdout 0.2 --output out.jsonl",
        "llm --train --model embedded --teacher-model embedded --teacher-prompt-template 'Write backwards: {input}' "
        "--data-path out.jsonl --project-name student --distill-max-teacher-length 4 --max-steps 2 --save-strategy no",
        "evaluate student --data-path out.heldout.jsonl --max-new-tokens 4",
    )
    printed = []
    for words in map(shlex.split, typed):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
        printed.append(done.stdout)
    kept, held_out = len(read("out.jsonl")), len(read("out.heldout.jsonl"))
    assert f"{kept} of {kept} used" in printed[1]
    assert f"Evaluating on out.heldout.jsonl: {held_out} of {held_out} used." in printed[2]


def test_rows_like_those_of_a_held_out_file_are_removed(place):
    write("heldout.jsonl", [{"text": "Animal: RED blue"}, {"text": "something else"}])
    command("queries.jsonl", "--holdout", "heldout.jsonl", "--output", "diverse.jsonl")
    report = json.loads((place / "diverse.report.json").read_text())
    assert report["removed"] == [{"row": "line 31", "reason": "leak", "of": "held-out line 1"}]
    assert {"text": "animal red blue", "topic": "animal"} not in read("diverse.jsonl")
    assert len(read("diverse.jsonl")) == len(ROWS) - 1


def test_held_out_rows_of_an_earlier_output_are_not_forgotten(place):
    flags = ("queries.jsonl", "--output", "diverse.jsonl", "--overwrite")
    command(*flags, "--holdout", 0.25)
    assert "'diverse.heldout.jsonl' has rows that were held out of an earlier diverse.jsonl" in refused(*flags)
    command(*flags, "--holdout", "diverse.heldout.jsonl")
    texts = {row["text"] for row in read("diverse.jsonl")}
    assert texts.isdisjoint(row["text"] for row in read("diverse.heldout.jsonl"))
    assert len(texts) == len(ROWS) - 10


def test_a_function_of_a_row_makes_the_categories(place):
    (place / "kinds_of_rows.py").write_text(
        "def topic(row):\n    return row['topic'][0]\n\ndef fails(row):\n    return row['nothing']\n"
    )
    said = command(
        "queries.jsonl", "--category-function", "kinds_of_rows:topic", "--per-category", 4, "--output", "out.jsonl"
    )
    assert Counter(row["topic"] for row in read("out.jsonl")) == {"colour": 4, "animal": 4}
    assert said.startswith("Categories by the function kinds_of_rows:topic:\n")
    assert refused("queries.jsonl", "--category-function", "kinds_of_rows:fails", "--output", "new.jsonl") == (
        "aitraining: error: --category-function 'kinds_of_rows:fails' fails for line 1 with KeyError: 'nothing'; "
        "correct the function.\n"
    )
    (place / "script.py").write_text("raise SystemExit(2)")
    said = refused("queries.jsonl", "--category-function", "script:topic", "--output", "new.jsonl")
    assert "--category-function 'script:topic' cannot be imported (SystemExit: 2)" in said
    assert not (place / "new.jsonl").exists()


def test_clusters_make_the_categories(place):
    pytest.importorskip("sklearn")
    said = command("queries.jsonl", "--clusters", 2, "--per-category", 6, "--output", "out.jsonl")
    assert len(read("out.jsonl")) == 12
    assert said.startswith("Categories by 2 clusters:\n")


def test_files_of_every_form_give_the_same_rows(place):
    data = Dataset.from_list(ROWS)
    data.to_parquet("queries.parquet")
    data.to_csv("queries.csv", index=False)
    (place / "queries.json").write_text(json.dumps(ROWS))
    data.save_to_disk("saved")
    flags = ("--category-column", "topic", "--per-category", 5)
    command("queries.jsonl", *flags, "--output", "out.jsonl")
    for name in ("queries.parquet", "queries.csv", "queries.json", "saved"):
        command(name, *flags, "--output", f"of_{name}.jsonl")
        assert read(f"of_{name}.jsonl") == read("out.jsonl"), name
    (place / "lines.txt").write_text("red cat\n\nblue dog\n")
    said = command("lines.txt", "--output", "lines.jsonl")
    assert said.startswith("All rows are one category, without --category-column, --category-function or --clusters:")
    assert sorted(row["text"] for row in read("lines.jsonl")) == ["blue dog", "red cat"]


def test_rows_of_other_forms_keep_all_their_values(place):
    rows = [
        {"messages": [{"role": "user", "content": "red cat"}, {"role": "assistant", "content": "ü"}], "n": 1.5},
        {"messages": [{"role": "user", "content": "blue dog"}], "n": None},
    ]
    write("chats.jsonl", rows)
    command("chats.jsonl", "--output", "out.jsonl")
    assert sorted(read("out.jsonl"), key=str) == sorted(rows, key=str)
    assert "ü" in (place / "out.jsonl").read_text(encoding="utf-8")
    prompts = [{"question": "red cat", "answer": "tac der"}, {"question": "RED cat", "answer": "other"}]
    write("pairs.jsonl", prompts)
    command("pairs.jsonl", "--text-column", "question", "--completion-column", "answer", "--output", "pairs_out.jsonl")
    assert read("pairs_out.jsonl") == prompts[:1]


def test_several_sources_are_one_and_a_row_is_named_by_its_source(place):
    write("more.jsonl", [{"text": "green lamp", "topic": 3}, {"text": "COLOUR red blue", "topic": 3}])
    command("queries.jsonl", "more.jsonl", "--output", "out.jsonl")
    report = json.loads((place / "out.report.json").read_text())
    assert report["removed"] == [{"row": "more.jsonl line 2", "reason": "near_duplicate", "of": "queries.jsonl line 1"}]
    assert {"text": "green lamp", "topic": 3} in read("out.jsonl")
    assert len(read("out.jsonl")) == len(ROWS) + 1


def test_columns_that_templates_name_are_compared_if_asked_for(place):
    write("articles.jsonl", [{"text": "Summarize.", "article": f"{one} {two}"} for one, two in PAIRS[:5]])
    command("articles.jsonl", "--output", "one.jsonl")
    command("articles.jsonl", "--compared-columns", "article", "--output", "all.jsonl")
    command("articles.jsonl", "--keep-duplicates", "--output", "kept.jsonl")
    assert [len(read(f"{name}.jsonl")) for name in ("one", "all", "kept")] == [1, 5, 5]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("queries.jsonl", "--output is missing; give --output a file to write"),
        ("queries.jsonl --output out.csv", "--output 'out.csv' does not end in .jsonl or .ndjson"),
        ("nowhere.jsonl --output out.jsonl", "source 'nowhere.jsonl': no such file or folder."),
        ("queries.jsonl --output out.jsonl --holdout nowhere.jsonl", "--holdout 'nowhere.jsonl': no such file"),
        (
            "queries.jsonl --output out.jsonl --holdout 1.5",
            "--holdout is 1.5; expected a share above 0 and at most 0.9",
        ),
        (
            "queries.jsonl --output out.jsonl --category-column topics",
            "no column 'topics'; there are 'text', 'topic'. Did",
        ),
        ("queries.jsonl --output out.jsonl --text-column question", "no column 'question'; there are 'text', 'topic'."),
        ("queries.jsonl --output out.jsonl --compared-columns article", "no column 'article'"),
        ("queries.jsonl --output out.jsonl --per-category 0", "--per-category is 0; expected a whole number of at"),
        (
            "queries.jsonl --output out.jsonl --clusters 3 --category-column topic",
            "--category-column and --clusters contradict each other",
        ),
        (
            "queries.jsonl --output out.jsonl --category-function nothing:here",
            "cannot be imported (ModuleNotFoundError",
        ),
        ("queries.jsonl --output out.jsonl --category-function os:sep", "is not a function of a row"),
        ("queries.jsonl --output queries.jsonl --overwrite", "'queries.jsonl' is read, and would be replaced"),
        (". --output out.jsonl", "'out.jsonl' is in a folder that is read"),
        (". --output train/data/out.jsonl", "'train/data/out.jsonl' is in a folder that is read"),
        ("queries.jsonl --output queries.jsonl/out.jsonl", "is not a writable folder"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_is_written(words, said, place):
    before = sorted(path.name for path in place.iterdir())
    assert said in refused(*words.split())
    assert sorted(path.name for path in place.iterdir()) == before


def test_files_that_are_there_are_replaced_only_if_asked_for(place):
    for name in ("out.jsonl", "out.report.json"):
        (place / name).write_text("mine")
        assert f"{name!r} is there already; give --overwrite" in refused("queries.jsonl", "--output", "out.jsonl")
        assert (place / name).read_text() == "mine"
        (place / name).unlink()
    (place / "out.jsonl").write_text("mine")
    command("queries.jsonl", "--output", "out.jsonl", "--overwrite")
    assert len(read("out.jsonl")) == len(ROWS)


def test_what_a_killed_command_was_writing_is_deleted_and_nothing_else(place):
    for name in (".out.jsonl.01234567.writing", ".out.report.json.89abcdef.writing", ".other.jsonl.01234567.writing"):
        (place / name).write_text("half of a r")
    command("queries.jsonl", "--output", "out.jsonl")
    assert [path.name for path in place.iterdir() if path.name.startswith(".")] == [".other.jsonl.01234567.writing"]


def test_an_output_that_another_command_writes_is_refused(place):
    held, done = threading.Event(), threading.Event()

    def hold():
        with file_lock(place / "out.jsonl", what="it", instead="another"):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(60)
        said = refused("queries.jsonl", "--output", "out.jsonl")
    finally:
        done.set()
        thread.join()
    assert "--output 'out.jsonl' is in use by another thread of this process; wait until it ends" in said


def test_a_disk_that_fills_leaves_the_earlier_files(place, monkeypatch):
    command("queries.jsonl", "--output", "out.jsonl")
    before = {path.name: path.read_bytes() for path in place.iterdir()}

    def full(path, rows):
        path.write_text("half of a r")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("trl_distill.data.plain_rows.write_rows", full)
    said = refused("queries.jsonl", "--output", "out.jsonl", "--overwrite", "--per-category", 3, code=1)
    assert "the disk is full: 'out.jsonl' could not be written" in said
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
