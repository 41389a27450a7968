"""`prepare_distillation_data`: queries of each category, without near-duplicates and without leaks."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from trl_distill import DataError, ParamsError, UsageError, prepare_distillation_data

WORDS = ("red", "blue", "green", "cat", "dog", "horse", "lamp", "river")
PAIRS = [(one, other) for one in WORDS for other in WORDS if one != other]
SIZES = {"colour": 40, "animal": 10, "place": 3}
QUERIES = [f"{kind} {one} {other}" for kind, size in SIZES.items() for one, other in PAIRS[:size]]
LONG = "The customer writes that the parcel with the red lamp was left in the rain at the back door on Monday"


def kind_of(query):
    return query.split()[0]


def kinds(queries):
    return [kind_of(query) for query in queries]


def test_each_category_gives_at_most_so_many_queries():
    data = prepare_distillation_data(QUERIES, kinds, per_category=10)
    assert Counter(map(kind_of, data)) == {"colour": 10, "animal": 10, "place": 3}
    assert set(data) <= set(QUERIES)
    assert [(one.name, one.rows, one.kept) for one in data.report.categories] == [
        ("colour", 40, 10), ("animal", 10, 10), ("place", 3, 3)
    ]  # fmt: skip
    assert data.report.counts == {"beyond_per_category": 30}


def test_the_order_of_the_queries_does_not_matter_and_the_seed_does():
    data = prepare_distillation_data(QUERIES, kinds, per_category=10)
    assert prepare_distillation_data(QUERIES[::-1], kinds, 10, 42) == data
    other = prepare_distillation_data(QUERIES, kinds, per_category=10, seed=1)
    assert other != data
    assert set(other) != set(data)
    assert kinds(data) != sorted(kinds(data), key=kinds(data).index)  # not one category after the other


def test_without_settings_there_are_a_thousand_of_each_list_that_the_guides_function_returns():
    draw = random.Random(0)
    queries = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=20)) for _ in range(1030)]
    data = prepare_distillation_data(queries, lambda queries: [queries[:1010], queries[1010:]])
    assert [(one.name, one.rows, one.kept) for one in data.report.categories] == [("1", 1010, 1000), ("2", 20, 20)]
    assert len(data) == len(set(data)) == 1020
    assert set(queries[1010:]) <= set(data)
    assert len(prepare_distillation_data(queries)) == 1000  # all of them are one category


def test_categories_are_named_by_a_dict_a_column_or_one_name_a_query():
    by_kind = {kind: [query for query in QUERIES if kind_of(query) == kind] for kind in SIZES}
    rows = [{"text": query, "kind": kind_of(query)} for query in QUERIES]
    data = prepare_distillation_data(QUERIES, kinds, per_category=5)
    assert prepare_distillation_data(QUERIES, lambda queries: by_kind, per_category=5) == data
    of_column = prepare_distillation_data(rows, "kind", per_category=5)
    assert [row["text"] for row in of_column] == data
    assert all(row in rows for row in of_column)
    dataset = Dataset.from_list([{"text": row["text"], "category": row["kind"]} for row in rows])
    assert [row["text"] for row in prepare_distillation_data(dataset, per_category=5)] == data


def test_a_query_without_a_category_is_in_one_of_its_own():
    rows = [{"text": query, "category": None if "cat" in query else 7} for query in QUERIES[:8]]
    report = prepare_distillation_data(rows).report
    assert {one.name: one.rows for one in report.categories} == Counter(
        "(none)" if row["category"] is None else "7" for row in rows
    )


def test_long_names_of_categories_differ_on_a_terminal():
    names = [f"{LONG}: {number % 2}" for number in range(4)]
    lines = prepare_distillation_data(QUERIES[:4], lambda queries: names).report.lines()
    assert len({line.split("  ")[1] for line in lines[1:3]}) == 2
    assert all(len(line) < 90 for line in lines[:3])


def test_categories_may_be_numbers_and_dates_of_numpy_and_pandas():
    days = pd.to_datetime(["2020-01-02", None, "2020-01-02 03:04"], format="mixed")
    named = {
        "numbers": (np.arange(3) % 2, {"0": 2, "1": 1}),
        "numbers, one missing": (pd.array([1, None, 1], dtype="Int64"), {"1": 2, "(none)": 1}),
        "short floats": (np.array([1.5, np.nan, 1.5], np.float32), {"1.5": 2, "(none)": 1}),
        "dates": (days, {"2020-01-02 00:00:00": 1, "(none)": 1, "2020-01-02 03:04:00": 1}),
    }
    for made, names in named.values():
        found = prepare_distillation_data(QUERIES[:3], lambda queries, made=made: made).report.categories
        assert {one.name: one.rows for one in found} == names


def test_words_that_differ_in_marks_alone_are_no_duplicates():
    apart = ["वह जाता है", "वह जाती है", "ที่นี่ดี", "ที่นี่ดู"]
    assert sorted(prepare_distillation_data([*apart, "वह जाता है?", "hi \u2764\ufe0f", "Hi!"])) == sorted(
        [*apart, "hi \u2764\ufe0f"]
    )


@pytest.mark.parametrize(
    ("categorize", "error", "said"),
    [
        (
            lambda queries: "all",
            ParamsError,
            "categorize returned a str for a list of 53 queries; it must return lists",
        ),
        (lambda queries: ["one"], ParamsError, "returned 1 categories for a list of 53 queries"),
        (lambda queries: 3, ParamsError, "returned a int for"),
        (lambda queries: {"all": "one"}, ParamsError, "returned a dict of a str, not of lists, for a list of 53"),
        (lambda queries: [[], []], ParamsError, "returned no query for a list of 53 queries"),
        (
            lambda queries: [(kind_of(one), "b") for one in queries],
            ParamsError,
            "returned a tuple for each query",
        ),
        (lambda queries: [[len(one)] for one in queries], ParamsError, "returned a list for each query"),
        ("topic", DataError, r"queries has no column 'topic'; there is 'text'"),
        (1, ParamsError, "categorize is 1; expected a whole number from 2 to 10000"),
        (0.5, ParamsError, r"categorize is 0\.5; expected the name of a column, a number of clusters"),
    ],
)
def test_categories_that_cannot_be_are_refused(categorize, error, said):
    with pytest.raises(error, match=said):
        prepare_distillation_data(QUERIES, categorize)


def test_arguments_outside_their_range_are_refused():
    with pytest.raises(ParamsError, match="per_category is 0; expected a whole number of at least 1"):
        prepare_distillation_data(QUERIES, per_category=0)
    with pytest.raises(DataError, match="queries is a str; give a list of texts"):
        prepare_distillation_data("queries.json")


def test_of_near_duplicates_the_first_stays_and_the_report_names_it():
    pytest.importorskip("datasketch")
    queries = [f"{LONG}, again.", "red cat", f"{LONG}, sadly.", "Red  CAT!"]
    data = prepare_distillation_data(queries)
    assert sorted(data) == sorted(queries[:2])
    assert [one.to_dict() for one in data.report.removed] == [
        {"row": "row 3", "reason": "near_duplicate", "of": "row 1"},
        {"row": "row 4", "reason": "near_duplicate", "of": "row 2"},
    ]
    assert sorted(prepare_distillation_data(queries, keep_duplicates=True)) == sorted(queries)


def test_of_rows_with_the_same_long_instruction_the_near_duplicate_is_found():
    pytest.importorskip("datasketch")
    draw = random.Random(0)
    queries = [f"{LONG}: {' '.join(draw.choices(WORDS, k=8))}" for _ in range(300)]
    data = prepare_distillation_data([*queries, f"{queries[200]}!", f"{queries[7]} s"])
    assert "near-duplicates]" not in data.report.lines()[-1]
    assert {"row 301", "row 302"} <= {one.row for one in data.report.removed}


def likeness(one, other):
    """Return the Jaccard similarity of the runs of five characters of two texts."""
    one, other = ({text[i : i + 5] for i in range(len(text) - 4)} for text in (one, other))
    return len(one & other) / len(one | other)


def test_almost_all_near_duplicates_are_found_even_if_they_are_barely_near():
    pytest.importorskip("datasketch")
    draw = random.Random(0)
    queries = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=60)) for _ in range(300)]
    others = [
        f"{query[:k]}{query[k + 3 :]}" for query, k in zip(queries, draw.choices(range(8, 50), k=300), strict=True)
    ]
    assert all(0.8 <= likeness(*pair) < 0.9 for pair in zip(queries, others, strict=True))
    found = prepare_distillation_data([*queries, *others]).report.counts["near_duplicate"]
    assert found >= 0.95 * len(others)


def test_without_datasketch_queries_that_differ_in_case_and_punctuation_are_duplicates(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    queries = [f"{LONG}, again.", "red cat", f"{LONG}, sadly.", "Red  CAT!"]
    data = prepare_distillation_data(queries)
    assert sorted(data) == sorted(queries[:3])
    assert data.report.compared_by == "inputs that differ only in case, punctuation and white space"
    assert 'pip install "trl-distill[near-duplicates]"' in data.report.lines()[-1]


def test_nothing_that_is_like_a_held_out_query_stays(tmp_path):
    pytest.importorskip("datasketch")
    held_out = ["RED cat?", f"{LONG}, sadly."]
    path = tmp_path / "heldout.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in held_out))
    texts = (held_out, pd.Series(held_out, index=[7, 8]), iter(held_out), ({"text": text} for text in held_out))
    for given, where in (*((one, "row") for one in texts), (path, "line"), (str(path), "line")):
        data = prepare_distillation_data(["red cat", "blue dog", f"{LONG}, again."], held_out=given)
        assert data == ["blue dog"]
        assert [one.to_dict() for one in data.report.removed] == [
            {"row": "row 1", "reason": "leak", "of": f"held-out {where} 1"},
            {"row": "row 3", "reason": "leak", "of": f"held-out {where} 2"},
        ]
    with pytest.raises(DataError, match=r"no row is left of 1 \(1 like a held-out row\)"):
        prepare_distillation_data(["red cat"], held_out=held_out)
    with pytest.raises(DataError, match=r"held_out .*nowhere.jsonl': no such file"):
        prepare_distillation_data(["red cat"], held_out=str(tmp_path / "nowhere.jsonl"))


def test_rows_of_every_form_come_back_as_they_were():
    forms = [
        {"prompt": "red cat", "completion": "a"},
        {"messages": [{"role": "user", "content": "red cat"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "red cat"}, {"from": "gpt", "value": "a"}], "id": 3},
        {"input_ids": [464, 3797, 318]},
    ]
    for row in forms:
        data = prepare_distillation_data([row, dict(row)])
        assert data == [row]
        assert len(data.report.removed) == 1
    broken = [{"text": 3}, {"text": None}, {"text": "red cat"}]
    with pytest.raises(DataError, match="2 bad rows"):
        prepare_distillation_data(broken)
    assert prepare_distillation_data(broken, max_bad_rows=2) == broken[2:]


def test_a_row_that_cannot_be_used_is_reported():
    data = prepare_distillation_data(["red cat", "  "])
    assert data == ["red cat"]
    assert [one.to_dict() for one in data.report.removed] == [
        {"row": "row 2", "reason": "unusable", "problem": "'text' is empty"}
    ]
    assert data.report.lines()[-2:] == ["1 of 2 rows kept.", "  1 unusable: row 2: 'text' is empty"]


def test_clusters_group_queries_of_similar_words():
    pytest.importorskip("sklearn")
    things = ("lamp", "phone", "table", "radio", "shirt", "clock")
    late = [f"the parcel with my {thing} has not arrived and the delivery is late" for thing in things]
    money = [f"please refund the money that I paid for {thing} by credit card" for thing in things]
    data = prepare_distillation_data([*late, *money[:4]], 2, per_category=3, keep_duplicates=True)
    assert Counter("parcel" in query for query in data) == {True: 3, False: 3}
    assert [one.rows for one in data.report.categories] == [6, 4]
    assert "2: " in "".join(one.name for one in data.report.categories)
    hindi = prepare_distillation_data([f"बिल्ली {i} घर" for i in range(4)] + [f"कुत्ता {i} नदी" for i in range(4)], 2)
    assert all({"बिल्ली", "कुत्ता"} & set(one.name.replace(",", "").split()) for one in hindi.report.categories)
    again = prepare_distillation_data([*late, *money[:4]], 2, per_category=3, keep_duplicates=True)
    assert again == data


def test_clusters_without_scikit_learn_are_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UsageError, match=r"categorize needs scikit-learn.*pip install \"trl-distill\[clusters\]\""):
        prepare_distillation_data(QUERIES, 2)
