"""Every form in which data may be given, and a sentence for all that cannot be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import Audio, Dataset, DatasetDict, Features, Image, IterableDatasetDict, List, Value, load_dataset

from trl_distill.data import file_readers as readers
from trl_distill.data.loading import load_data, read_rows
from trl_distill.data.rows import Columns
from trl_distill.errors import DataError

ROWS = [{"text": "a b", "n": 1}, {"text": "c", "n": 2}]


@pytest.fixture(autouse=True)
def folder(tmp_path, tmp_path_factory, monkeypatch):
    """Stand in an empty folder, as a user who types bare names, with a cache of its own elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    return tmp_path


def put(name, content):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, encoding="utf-8")
    return str(path)


def texts(dataset):
    return list(dataset["text"])


def saved(kind, name):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    data = Dataset.from_list(ROWS)
    if kind == "json":
        put(name, json.dumps(ROWS))
    elif kind == "jsonl":
        put(name, "".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind in ("csv", "tsv"):
        sign = {"csv": ",", "tsv": "\t"}[kind]
        put(name, f"text{sign}n\n" + "".join(f"{r['text']}{sign}{r['n']}\n" for r in ROWS))
    elif kind == "parquet":
        data.to_parquet(name)
    elif kind == "arrow":
        import pyarrow as pa

        with pa.OSFile(name, "wb") as sink, pa.ipc.new_stream(sink, data.data.table.schema) as stream:
            stream.write_table(data.data.table)
    else:
        put(name, "".join(row["text"] + "\n" for row in ROWS))


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "txt", "parquet", "arrow"])
def test_a_file_of_each_kind_gives_its_rows(kind):
    saved(kind, f"queries.{kind}")
    train, valid = load_data(f"./queries.{kind}")
    assert texts(train) == ["a b", "c"]
    assert valid is None
    rows, _ = read_rows(train)
    assert rows["input"] == ["a b", "c"]


@pytest.mark.parametrize("name", ["q.JSON", "q.ndjson", "deep/er/q.v2.jsonl"])
def test_file_names_may_have_any_characters(name):
    put(name, '{"text": "a"}\n{"text": "b"}\n')
    assert texts(load_data(name)[0]) == ["a", "b"]
    assert texts(load_data(Path(name))[0]) == ["a", "b"]


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a"}, {"text": "b"}]',
        '[\n  {"text": "a"},\n  {"text": "b"}\n]\n',
        '{"text": "a"}\n{"text": "b"}',
        '\ufeff{"text": "a"}\r\n\r\n{"text": "b"}\r\n',
        '["a", "b"]',
        '"a"\n"b"\n',
        '{"data": [{"text": "a"}, {"text": "b"}]}',
        '{"text": ["a", "b"]}',
    ],
)
def test_json_as_a_list_as_lines_and_as_columns(content):
    assert texts(load_data(put("queries.json", content))[0]) == ["a", "b"]


@pytest.mark.parametrize("more", ["", '"version": "1.0", ', '"tags": [], "license": {"name": "x"}, '])
def test_a_json_object_wraps_its_rows(more):
    content = f'{{{more}"data": [{{"text": "a"}}, {{"text": "b"}}]}}'
    assert texts(load_data(put("queries.json", content))[0]) == ["a", "b"]
    with pytest.raises(DataError, match="has no rows"):
        load_data(put("queries.json", f'{{{more}"data": []}}'))


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("names", [("train", "test"), ("Training", "validation")])
def test_a_json_object_may_hold_splits(names, indent):
    rows = {names[0]: [{"text": "a"}, {"text": 3}], names[1]: [{"text": "v"}], "version": 1}
    path = put("d/queries.json", json.dumps(rows, indent=indent))
    for data in (path, "d"):
        train, valid = load_data(data)
        assert texts(train) == ["a", 3]
        assert (valid is None) == (names[1] == "test")
        assert texts(load_data(data, valid_split=names[1])[1]) == ["v"]
    with pytest.raises(DataError, match=r"row 2 \('text' is a number"):
        read_rows(train)
    with pytest.raises(DataError, match="valid_split is 'dev'"):
        load_data(put("queries.json", '{"train": [{"text": "a"}], "test": []}'), valid_split="dev")


@pytest.mark.parametrize("column", ["train", "test"])
def test_columns_named_like_splits_are_columns(column):
    train, _ = load_data(put("queries.json", json.dumps({column: ["a", "b"], "n": [1, 2]})))
    assert list(train[column]) == ["a", "b"]
    train, _ = load_data(put("queries.json", f'{{"text": "a", "{column}": [{{"k": 1}}], "tags": ["u"]}}'))
    assert texts(train) == ["a"]


def test_one_json_object_is_one_row():
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    for content in (json.dumps(row), json.dumps(row, indent=2)):
        train, _ = load_data(put("one.json", content))
        assert len(train) == 1
        assert read_rows(train)[0][0]["completion"] == "a"


def test_values_of_text_files_stay_what_they_are():
    train, _ = load_data(put("dates.jsonl", '{"text": "2020-01-01"}\n{"text": "12"}\n'))
    assert texts(train) == ["2020-01-01", "12"]
    train, _ = load_data(put("cells.csv", 'text\n12\nNA\nnull\n"a ""b"",\nc"\n'))
    assert texts(train) == ["12", "NA", "null", 'a "b",\nc']


def test_a_column_of_several_types_is_read_as_it_is():
    values = ["a", 3, None, True, ["x"], {"k": 1}, "12"]
    train, _ = load_data(put("q.jsonl", "".join(json.dumps({"text": v}) + "\n" for v in values)))
    assert texts(train) == values


def test_types_that_change_far_into_a_file_are_read_as_they_are():
    values = [*["a"] * readers.BATCH, 3, 2.5]
    train, _ = load_data(put("q.json", json.dumps([{"text": v, "n": i} for i, v in enumerate(values)])))
    assert texts(train) == values
    assert train["n"][-1] == len(values) - 1


@pytest.mark.parametrize("order", [1, -1])
def test_numbers_that_no_arrow_type_holds_are_read_as_they_are(order):
    values = [*[0.5] * readers.BATCH, *[2**53 + 1] * readers.BATCH][::order]
    train, _ = load_data(put("q.json", json.dumps([{"text": "a", "n": n} for n in values])))
    assert list(train["n"]) == values


def test_objects_of_unlike_keys_are_read():
    train, _ = load_data(
        put("q.jsonl", '{"text": "a", "k": {"x": 1}}\n{"text": "b", "k": {"y": "z"}}\n{"text": "c"}\n')
    )
    rows, _ = read_rows(train)
    assert [json.loads(v)["k"] for v in rows["values"]] == ['{"x": 1}', '{"y": "z"}', ""]


def test_lines_are_known_where_the_file_has_lines():
    train, _ = load_data(put("q.jsonl", '\n{"text": "a"}\n\n{"text": "b"}\n'))
    assert read_rows(train)[0]["row"] == [2, 4]
    train, _ = load_data(put("q.txt", "a\n\nb\n"))
    assert read_rows(train)[0]["row"] == [1, 3]
    train, _ = load_data(put("q.csv", 'text\n"a\nb"\n\nc\n'))
    assert read_rows(train)[0]["row"] == [2, 5]
    train, _ = load_data(put("q.json", '[{"text": "a"},\n\n{"text": "b"}]'))
    assert read_rows(train)[0]["row"] == [1, 2]
    assert train.column_names == ["text"]


def test_lines_stay_with_their_rows():
    train, _ = load_data(put("q.jsonl", "".join(json.dumps({"text": f"t{i}"}) + "\n" for i in range(20))))
    rows, _ = read_rows(train.shuffle(seed=1))
    assert all(row["input"] == f"t{row['row'] - 1}" for row in rows)


@pytest.mark.parametrize("text", [r'"a \ud83d"', r'"\uDe00 a"', r'{"\ud83d": 1}', r'["\ud83d"]'])
def test_half_of_a_surrogate_pair_makes_a_bad_row(text):
    train, _ = load_data(put("q.jsonl", f'{{"text": "\\ud83d\\ude00"}}\n{{"text": {text}}}\n{{"text": "c"}}\n'))
    with pytest.raises(
        DataError, match=r"1 bad row, .* line 2 \('text': half of a surrogate pair, .*, without the other\)"
    ):
        read_rows(train)
    rows, report = read_rows(train, Columns(max_bad_rows=1))
    assert rows["input"] == ["\U0001f600", "c"]
    assert report.set_aside[0][0] == "line 2"


def test_a_repeated_json_key_makes_a_bad_row():
    train, _ = load_data(
        put(
            "q.jsonl",
            '{"text": "a", "text": "b"}\n{"text": "c"}\n'
            '{"text": [{"role": "user", "content": "x", "content": "y"}]}\n{"text": "d", "n": 1, "n": 2}\n',
        )
    )
    with pytest.raises(DataError) as caught:
        read_rows(train)
    assert "2 bad rows" in str(caught.value)
    assert "line 1 ('text': the key 'text' appears twice)" in str(caught.value)
    assert "line 3 ('text': the key 'content' appears twice)" in str(caught.value)
    assert read_rows(train, Columns(max_bad_rows=2))[0]["input"] == ["c", "d"]
    train, _ = load_data(put("q.json", '[{"text": "c"},\n{"text": "a", "text": "b"}]'))
    with pytest.raises(DataError, match=r"row 2 \('text': the key 'text' appears twice"):
        read_rows(train)


def test_a_column_that_is_not_used_does_not_refuse_a_file():
    put("q.jsonl", '{"text": "a", "k": "\\ud83d", "n": 1, "n": 2}\n')
    train, _ = load_data("q.jsonl")
    assert read_rows(train)[0]["input"] == ["a"]
    with pytest.raises(DataError, match=r"line 1 \('k': half of a surrogate pair"):
        read_rows(train, fields=["k"])
    put("q.csv", "text,n,n\na,1,2\n")
    train, _ = load_data("q.csv")
    assert read_rows(train)[0]["input"] == ["a"]
    with pytest.raises(DataError, match=r"line 2 \('n': two columns have this name\)"):
        read_rows(train, Columns(text_column="n"))


def test_files_whose_columns_have_unlike_types_are_read_as_they_are():
    put("d/a.jsonl", '{"text": "a", "n": 1}\n{"text": "b", "n": 2, "k": {"x": null}}\n')
    Dataset.from_dict({"text": ["c", None], "n": ["3", "4"]}).to_parquet("d/b.parquet")
    train, _ = load_data("d")
    assert texts(train) == ["a", "b", "c", None]
    assert list(train["n"]) == [1, 2, "3", "4"]
    with pytest.raises(DataError, match=r"row 4 \('text' is missing\)"):
        read_rows(train)
    rows, _ = read_rows(train, Columns(max_bad_rows=1))
    assert rows["row"] == [1, 2, 3]


def test_several_files_say_which_one_a_line_is_of():
    put("d/a.jsonl", '{"text": "a"}\n')
    put("d/b.jsonl", '{"text": "b"}\n{"text": 3}\n')
    train, _ = load_data("d")
    with pytest.raises(DataError, match=r"b\.jsonl line 2 \('text' is a number"):
        read_rows(train)


def test_a_large_file_goes_through_the_cache_and_is_read_once(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(readers, "IN_MEMORY", 0)
    put("q.jsonl", '{"text": "a"}\n{"text": 3}\n')
    train, _ = load_data("q.jsonl")
    (file,) = train.cache_files
    assert Path(file["filename"]).is_relative_to(tmp_path / "cache")
    assert texts(train) == ["a", 3]
    monkeypatch.setattr(readers, "json_rows", None)
    assert texts(load_data("q.jsonl")[0]) == ["a", 3]
    assert [p.suffix for p in Path(file["filename"]).parent.iterdir()] == [".arrow"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "saved"])
def test_nothing_is_written_next_to_the_data(kind):
    if kind == "saved":
        Dataset.from_list(ROWS).save_to_disk("d")
    else:
        saved(kind, f"d/q.{kind}")
    before = sorted(Path().rglob("*"))
    rows, _ = read_rows(load_data("d")[0])
    rows = rows.map(lambda row: {"length": len(row["input"])}, load_from_cache_file=False)
    assert rows["length"] == [3, 1]
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("word", ["validation", "valid", "val", "dev"])
@pytest.mark.parametrize(
    "form", ["{}.jsonl", "{}-00000-of-00001.jsonl", "my_{}_v2.jsonl", "{}/q.jsonl", "data/{}.jsonl"]
)
def test_a_folder_tells_its_splits_by_name(word, form):
    put("d/" + form.format("train"), '{"text": "t"}\n')
    put("d/" + form.format(word), '{"text": "v"}\n')
    train, valid = load_data("d")
    assert (texts(train), texts(valid)) == (["t"], ["v"])
    assert texts(load_data("d", valid_split="val")[1]) == ["v"]


def test_a_test_split_is_used_only_when_asked_for():
    put("d/train.jsonl", '{"text": "t"}\n')
    put("d/test.jsonl", '{"text": "x"}\n')
    assert load_data("d")[1] is None
    assert texts(load_data("d", valid_split="test")[1]) == ["x"]


def test_a_folder_without_split_names_is_all_training_data():
    put("d/a.jsonl", '{"text": "a"}\n')
    put("d/b.csv", "text\nb\n")
    put("d/README.md", "no data")
    put("d/.hidden.jsonl", "no data")
    put("d/checkpoints/config.json", "{}")
    Dataset.from_dict({"text": ["c"]}).to_parquet("d/c.parquet")
    train, valid = load_data("d")
    assert sorted(texts(train)) == ["a", "b", "c"]
    assert valid is None


def test_a_saved_dataset_is_read():
    Dataset.from_list(ROWS).save_to_disk("one")
    DatasetDict(train=Dataset.from_list(ROWS[:1]), validation=Dataset.from_list(ROWS[1:])).save_to_disk("two")
    assert texts(load_data("one")[0]) == ["a b", "c"]
    train, valid = load_data("./two")
    assert (texts(train), texts(valid)) == (["a b"], ["c"])


def test_a_dataset_in_memory_is_used_unchanged():
    data = Dataset.from_list(ROWS)
    assert load_data(data) == (data, None)
    train, valid = load_data(DatasetDict(train=data, valid=data.select([1])))
    assert train is data
    assert texts(valid) == ["c"]


def test_rows_in_memory_are_used_unchanged():
    rows = [{"text": "a", "k": {"x": None}}, {"text": "b", "k": {"y": 1}, "n": 3.5}]
    for data in (rows, tuple(rows), pd.DataFrame(rows), pd.DataFrame(rows, index=[7, 7])):
        train, valid = load_data(data)
        assert (texts(train), valid) == (["a", "b"], None)
        assert list(train["k"]) == [{"x": None}, {"y": 1}]
        assert list(train["n"]) == [None, 3.5]
        assert train.column_names == ["text", "k", "n"]
    train, valid = load_data({"train": rows, "valid": pd.DataFrame({"text": ["c"]})})
    assert (texts(train), texts(valid)) == (["a", "b"], ["c"])
    with pytest.raises(DataError, match=r"row 2 \('text': half of a surrogate"):
        read_rows(load_data([{"text": "a"}, {"text": "\ud83d"}])[0])


def test_a_missing_cell_of_a_frame_is_missing():
    frame = pd.DataFrame({"text": ["a", None, float("nan")], "day": [pd.Timestamp("2020-01-02")] * 3, "n": [1, 2, 3]})
    frame["kind"] = pd.Categorical(["x", "y", "x"])
    train, _ = load_data(frame)
    assert texts(train) == ["a", None, None]
    values = json.loads(read_rows(train, Columns(max_bad_rows=2))[0][0]["values"])
    assert values == {"day": "2020-01-02 00:00:00", "n": 1, "kind": "x"}


class Listed(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, i):
        return ROWS[i]


class Streamed(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(ROWS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Listed(), r"a torch dataset \(Listed\); convert it with datasets.Dataset.from_list\(\[data_path\[i\] "),
        (Streamed(), r"a torch dataset \(Streamed\); convert it with datasets.Dataset.from_list\(list\(data_path\)\)"),
        ((row for row in ROWS), r"a generator, .* convert it with datasets.Dataset.from_list\(list\(data_path\)\)"),
        (Dataset.from_list(ROWS).data.table, r"a pyarrow Table; convert it with datasets.Dataset\(data_path\)"),
        ({"text": ["a"]}, r"data_path\['text'\] is a list whose item 1 is a str"),
        ({"train": "a.json"}, r"data_path\['train'\] is a path, 'a.json'; load it with trl_distill.data.load_data"),
        ({"train": []}, r"data_path\['train'\] has no rows"),
        (pd.DataFrame({"text": []}), "data_path has no rows"),
        (Dataset.from_dict({"text": []}), "data_path has no rows"),
    ],
)
def test_objects_that_are_no_rows_are_refused_with_the_call_that_converts_them(data, message):
    with pytest.raises(DataError, match=message):
        load_data(data)


def test_files_in_other_columns_are_not_decoded():
    import pyarrow as pa

    broken = {"bytes": b"no picture", "path": None}
    kinds = Features({"text": Value("string"), "picture": Image(), "sounds": List(Audio()), "raw": Value("binary")})
    cells = {"text": ["a"], "picture": [broken], "sounds": [[broken]], "raw": [b"\xff"]}
    data = Dataset(pa.table(cells, schema=kinds.arrow_schema))
    assert json.loads(read_rows(data)[0][0]["values"]) == {}
    with pytest.raises(DataError, match="the column 'picture' holds bytes, which a template cannot write"):
        read_rows(data, fields=["picture"])
    with pytest.raises(DataError, match=r"row 1 \('picture' is an object, not text\)"):
        read_rows(data, Columns(text_column="picture"))
    data.save_to_disk("saved")
    assert read_rows(load_data("saved")[0])[0]["input"] == ["a"]


def test_columns_of_types_that_datasets_lacks_are_left_out():
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "text": ["a"],
            "tags": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
            "late": pa.array([10**12], pa.timestamp("s")),
            "day": pa.array([1], pa.date32()),
        }
    )
    pq.write_table(table, "q.parquet")
    values = json.loads(read_rows(load_data("q.parquet")[0])[0][0]["values"])
    assert values["day"] == "1970-01-02"
    assert sorted(values) == ["day", "late"]


def test_slices_and_sums_of_splits():
    put("q.txt", "".join(f"{i}\n" for i in range(10)))
    train, valid = load_data("q.txt", train_split="train[:90%]", valid_split="train[90%:]")
    assert (len(train), texts(valid)) == (9, ["9"])
    put("d/train.txt", "t\n")
    put("d/val.txt", "v\n")
    train, valid = load_data("d", train_split="train+validation")
    assert (texts(train), valid) == (["t", "v"], None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"valid_split": "validation"}, r"'q\.txt' has 'train' only; give slices such as .*train\[90%:\]"),
        ({"train_split": "tran"}, "train_split is 'tran', but 'q.txt' has 'train' only"),
        ({"train_split": "train[:x]"}, r"train_split is 'train\[:x\]', which is not a split or slice"),
        ({"train_split": "train[5:]"}, r"'train\[5:\]', which leaves no row"),
        ({"config_name": "main"}, "data_config is 'main', but only a Hub dataset has configurations"),
    ],
)
def test_a_missing_split_is_an_error(settings, message):
    put("q.txt", "a\nb\n")
    with pytest.raises(DataError, match=message):
        load_data("q.txt", **settings)


def test_a_folder_without_the_split_names_those_there_are():
    put("d/test_questions.jsonl", '{"text": "x"}\n')
    with pytest.raises(DataError, match=r"train_split is 'train', but 'd' has 'test'.*--train-split"):
        load_data("d")


@pytest.mark.parametrize(
    "path", ["./queries.json", "queries.json", "~/no-such-queries.csv", "/no/such", "../no_such_data", "a/b/c", "text"]
)
def test_what_looks_like_a_path_is_never_a_hub_name(path, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: pytest.fail("asked the Hub"))
    with pytest.raises(DataError, match=r"no such file or folder|there is no folder"):
        load_data(path)


def test_a_missing_file_suggests_its_neighbours():
    put("queries.jsonl", '{"text": "a"}\n')
    with pytest.raises(
        DataError, match=r"data_path './queries.json': no such file or folder. Did you mean 'queries.jsonl'"
    ):
        load_data("./queries.json")


def test_a_hub_dataset_gets_its_split_and_configuration(monkeypatch):
    asked = []

    def answer(name, config, *, split):
        asked.append((name, config, split))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr("datasets.load_dataset", answer)
    train, valid = load_data("org/name", train_split="train[:90%]", valid_split="test", config_name="main")
    assert asked == [("org/name", "main", "train[:90%]"), ("org/name", "main", "test")]
    assert texts(train) == texts(valid) == ["a b", "c"]
    assert load_data("imdb")[1] is None


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"'no-such/dataset': no such file or folder here, and no Hub") as caught:
        load_data("no-such/dataset")
    assert "\n" not in str(caught.value)


def test_the_cache_of_another_local_folder_is_no_hub_dataset(monkeypatch, tmp_path):
    put("elsewhere/things/train.jsonl", '{"text": "old"}\n')
    stale = load_dataset("./elsewhere/things", split="train", cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: stale)
    with pytest.raises(DataError, match="only a copy of another local folder"):
        load_data("things")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", '{"text": "a"}\n\n{"text": }\n', r"q\.jsonl, line 3, is not valid JSON \(Expecting value"),
        ("q.json", '[{"text": "a"},\n{"text": }]', r"q\.json, line 2, is not valid JSON"),
        ("q.json", '{"text": "a"}\n{"text": "b"\n', r"q\.json, line 2, is not valid JSON"),
        ("q.json", '{"text": "a"\n{"text": "b"}\n', r"q\.json, line 2, is not valid JSON"),
        ("q.json", "3", "holds a single int"),
        ("q.csv", "text,n\na,1\nb,1,2\n", r"q\.csv, line 3, has 3 cells but the header has 2"),
        ("q.csv", 'text\na\n"b\nc\n', r"q\.csv, line 3, is not valid csv"),
        ("q.csv", "text;answer\na;b\n", r"q\.csv has semicolons \(';'\) between its columns, .* save it with commas"),
        ("q.csv", "text\tanswer\na\tb\n", "has tabs"),
        ("q.tsv", "text,answer\na,b\n", "has commas .* save it with tabs"),
        ("q.txt", b"\xff\xfea\x00", "is not UTF-8 text: it has zero bytes, as UTF-16 does"),
        ("q.csv", "text\nä\n".encode("utf-16"), "as UTF-16 does; save it as UTF-8"),
        ("q.jsonl", '{"text": "a"}\n'.encode("utf-16-le"), "as UTF-16 does; save it as UTF-8"),
        ("q.json", '[{"text": "a"}]'.encode("utf-16-be"), "as UTF-16 does; save it as UTF-8"),
        ("q.txt", "漢字".encode("utf-16"), r"is not UTF-8 text \(it is UTF-16\)"),
        ("q.txt", "é".encode("latin-1"), r"is not UTF-8 text \(unexpected end"),
        ("q.parquet", "no parquet", r"q\.parquet cannot be read as parquet"),
        ("q.arrow", "no arrow", r"q\.arrow cannot be read as arrow"),
        ("q.json", "", r"q\.json has no rows"),
        ("q.json", "[]", r"q\.json has no rows"),
        ("q.jsonl", "\n\n", r"q\.jsonl has no rows"),
        ("q.csv", "", r"q\.csv has no rows"),
        ("q.csv", "text\n", r"q\.csv has no rows"),
        ("q.txt", " \n", r"q\.txt has no rows"),
        ("q.xlsx", "a", r"'q\.xlsx' ends in '\.xlsx'; files end in \.jsonl"),
        ("queries", "a", "'queries' ends in 'nothing'"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(name, content, message):
    with pytest.raises(DataError, match=message) as caught:
        load_data(put(name, content))
    assert "\n" not in str(caught.value)


def test_an_empty_parquet_file_has_no_rows():
    Dataset.from_dict({"text": []}).to_parquet("q.parquet")
    with pytest.raises(DataError, match="has no rows"):
        load_data("q.parquet")


def test_unreadable_folders_are_an_error(tmp_path):
    put("empty/README.md", "no data")
    with pytest.raises(DataError, match="is a folder without a data file; files end in"):
        load_data("empty")
    Dataset.from_list(ROWS).save_to_disk("torn")
    put("torn/state.json", "{")
    with pytest.raises(DataError, match="'torn' is a saved dataset that cannot be read"):
        load_data("torn")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (3, "data_path is an int; give a file, a folder, a Hub dataset, a datasets.Dataset, a list of dicts or"),
        ([], "data_path has no rows"),
        ({}, "data_path is a dict"),
        (["a"], "data_path is a list whose item 1 is a str, not a dict"),
        ("", "is empty"),
    ],
)
def test_data_paths_without_data_are_an_error(path, message):
    with pytest.raises(DataError, match=message):
        load_data(path)


@pytest.mark.parametrize("kind", [Dataset, DatasetDict])
def test_a_stream_is_sent_to_the_trainer(kind):
    stream = Dataset.from_list(ROWS).to_iterable_dataset()
    with pytest.raises(DataError, match=r"data_path is a stream, .* or the stream to DistillationSFTTrainer"):
        load_data(stream if kind is Dataset else IterableDatasetDict({"train": stream}))


def test_the_module_imports_no_datasets_and_no_torch():
    heavy = {"torch", "datasets", "pyarrow", "transformers"}
    code = f"import sys, trl_distill.data.loading; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "rows.parquet")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", "/dev/null/cache")
    with pytest.raises(DataError, match=r"the cache of datasets, '/dev/null/cache', cannot be written .* set HF_HOME"):
        load_data(tmp_path / "rows.parquet")
