"""Special files and hostile shapes: each is read as it is, or refused in one short sentence before a model loads."""

from __future__ import annotations

import json
import os
import socket
import tracemalloc
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import make_tokenizer

from trl_distill import LLMTrainingParams
from trl_distill.cli import main
from trl_distill.data import load_data
from trl_distill.data.rows import read_rows, rows_of
from trl_distill.embedded import embedded_path
from trl_distill.errors import DataError, ParamsError, TemplateError
from trl_distill.models import forked_trial
from trl_distill.prompts.chat_template import ChatTemplate

MESSAGES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
NESTED = "[" * 100_000


def said(*arguments: str) -> str:
    """Run `aitraining llm` and return the one sentence that it ends with."""
    ended = CliRunner().invoke(main, ["llm", "--model", "embedded", "--teacher-model", "embedded", *arguments])
    assert ended.exit_code == 2, ended.output
    assert ended.stderr.startswith("aitraining: error: ")
    assert ended.stderr.count("\n") == 1
    assert len(ended.stderr) <= 500
    return ended.stderr


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "red cat"}\n')
    return path


@pytest.fixture
def special(tmp_path):
    """Return a function that makes a file of a kind."""

    def make(kind: str) -> Path:
        path = tmp_path / f"{kind}.jsonl"
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            os.chdir(tmp_path)  # the address of a socket has at most 108 bytes
            with socket.socket(socket.AF_UNIX) as there:
                there.bind(path.name)
        return path

    before = Path.cwd()
    yield make
    os.chdir(before)


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_a_file_without_an_end_is_refused_at_once(kind, special, rows):
    path = special(kind)
    assert f"is a {kind}, not a file" in said("--data-path", str(path))
    prompt = said("--data-path", str(rows), "--teacher-prompt-template", f"@{path}")
    assert "a pipe or a device, not a file; give the path" in prompt
    assert "a pipe or a device" in said("--config", str(path))
    with pytest.raises(DataError, match=f"{path.name}' in the folder of data_path is a {kind}"):
        load_data(path.parent)


def test_a_folder_that_links_to_itself_is_read_once(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jsonl").write_text('{"text": "a"}\n')
    for name in ("data", "train_again", "train_too"):
        (tmp_path / "train" / name).symlink_to(tmp_path / "train")
    train, valid = load_data(tmp_path)
    assert (train["text"], valid) == (["a"], None)


def test_rows_with_keys_of_their_own_take_memory_for_their_values_alone(tmp_path):
    def peak(count: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        path.write_text("".join(json.dumps({"text": "a", f"k{i}": i, "all": 1}) + "\n" for i in range(count)))
        tracemalloc.start()
        read, _ = read_rows(load_data(path)[0], fields=("k7", "all"))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        values = [row.values for row in rows_of(read)]
        assert values[8] == {"all": 1, "k7": "", "k8": 8}
        assert values[-1] == {"all": 1, "k7": "", f"k{count - 1}": count - 1}
        return found

    peak(1500)  # with what the libraries keep
    assert peak(6000) < 6 * peak(1500)


def test_a_few_rows_with_keys_of_their_own_are_a_table(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "a", f"k{i}": i}) + "\n" for i in range(50)))
    assert len(load_data(tmp_path)[0].column_names) == 52


def test_a_csv_of_2000_columns_is_read(tmp_path):
    path = tmp_path / "wide.csv"
    path.write_text("\n".join([",".join(["text", *(f"c{i}" for i in range(2000))]), ",".join("a" * 2001)]))
    read, _ = read_rows(load_data(path)[0])
    assert len(next(rows_of(read)).values) == 2000


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": ' + NESTED, "line 2, has a value that is nested too deeply; flatten it"),
        ("a.json", NESTED, "has a value that is nested too deeply; flatten it"),
        ("a.json", '{"train": [' + NESTED, "has a value that is nested too deeply; flatten it"),
        ("a.jsonl", '{"x": ' + "[" * 200 + "]" * 200 + "}", "line 1, has a value that is nested more than 100 deep"),
        (
            "a.jsonl",
            '{"text": "a", "x": ' + "9" * 5000 + "}",
            "line 1, has a whole number of too many digits; write it",
        ),
        ("a.json", '[{"text": "a",\n"x": ' + "9" * 5000 + "}]", "line 2, has a whole number of too many digits"),
        ("a.jsonl", '{"text": "a", "__place__": 5}', "line 1, has a column '__place__', a name that is in use here"),
        ("a.json", '[{"text": "a", "__faults__": "x"}]', "row 1, has a column '__faults__', a name that is in use"),
        (
            "a.jsonl",
            '{"text": "a", "x\\u0000y": 5}',
            r"line 1, has a column 'x\\x00y', a name with a zero byte; rename",
        ),
        ("a.csv", "text,x\0\na,b\n", "it has zero bytes"),
        ("a.parquet", "PAR1", "cannot be read as parquet"),
        ("a.arrow", "ARROW1", "cannot be read as arrow"),
    ],
)
def test_a_file_of_a_shape_that_is_no_table_is_named_with_its_line(name, text, reason, tmp_path):
    (tmp_path / name).write_text(text)
    assert reason.replace("\\\\", "\\") in said("--data-path", str(tmp_path / name))


def test_text_of_a_parquet_file_that_is_not_utf_8_makes_its_row_bad(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.array([b"red cat", b"\x80"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"1 bad row, more than --max-bad-rows 0: row 2 \('text' is missing\)"):
        read_rows(load_data(tmp_path / "a.parquet")[0])


def test_rows_in_memory_are_held_to_the_same(tmp_path):
    endless: list[object] = []
    endless.append(endless)
    for row, reason in (({"x": endless}, "nested more than 100 deep"), ({"a\0": 1}, "a name with a zero byte")):
        with pytest.raises(DataError, match=f"data_path, row 2, has a .*{reason}"):
            load_data([{"text": "a"}, {"text": "a", **row}])


def test_a_text_that_no_model_can_read_is_a_bad_row(tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"text": "a " * 6_000_000}))
    with pytest.raises(DataError, match=r"line 1 \('text' has 12,000,000 characters, more than 10,000,000\)"):
        read_rows(load_data(path)[0])


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for name, before in zip("bcdefgh", "abcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "is not YAML: more than 100,000 values, aliases included in line 6"),
        ("teacher_stop: &a [*a]", "is not YAML: a value that contains itself in line 1"),
        (f"model: {NESTED}", "is nested too deeply"),
        ("seed: 1\nlr: 1\nseed: 2", "is not YAML: the key 'seed' is given twice in line 3"),
        ("chat_template_date: 2024-13-45", "--chat-template-date is '2024-13-45'; expected a date"),
        ("seed: !!timestamp no", "has a value that is not of its tag's type"),
        ("batch_size: 1_000", "batch_size is '1_000'; expected a whole number of at least 1"),
        ("batch_size: 1:30", "batch_size is '1:30'; expected a whole number"),
        ("batch_size: ' 5 '", "batch_size is ' 5 '; expected a whole number"),
        (f"seed: {'9' * 5000}", "expected a whole number from 0 to 4294967295"),
        ('text_column: "a\\0b"', r"has no column 'a\x00b'"),
    ],
)
def test_a_hostile_file_of_settings_is_one_sentence(text, reason, tmp_path, rows):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert reason in said("--config", str(path), "--data-path", str(rows))


@pytest.mark.parametrize("given", ["1_000", " 5 ", "٣", "0x10", "1e308", "9" * 5000, "1e999", "5 0", "½"])
def test_a_number_is_a_plain_one_that_can_be_meant(given):
    for flag in ("--batch-size", "--seed", "--lora-r", "--teacher-top-k", "--max-steps", "--dataset-num-proc"):
        assert "expected a whole number" in said(flag, given)
    for name in ("eval_steps", "teacher_max_tokens", "vllm_max_model_length"):
        with pytest.raises(ParamsError, match="expected a whole number"):
            LLMTrainingParams(**{name: given})


def test_a_number_too_long_to_be_written_is_described():
    with pytest.raises(ParamsError, match="seed is a number of 16,610 bits; expected a whole number from 0 to"):
        LLMTrainingParams(seed=10**5000)


def test_numbers_in_their_plain_forms_are_accepted():
    params = LLMTrainingParams(batch_size="8", lr="5e-5", epochs=".5", max_steps="1E3", weight_decay="0.", seed="+7")
    assert (params.batch_size, params.lr, params.epochs, params.max_steps) == (8, 5e-5, 0.5, 1000)
    assert (params.weight_decay, params.seed) == (0.0, 7)


PATHS = ("project-name", "data-path", "model", "teacher-model", "chat-template", "teacher-store", "teacher-config")


@pytest.mark.parametrize("setting", [*PATHS, "config", "teacher-prompt-template", "retain-data"])
def test_a_path_that_no_file_can_have_is_refused(setting, rows):
    at = "@" if setting.endswith("template") and setting != "chat-template" else ""
    for given, reason in (
        ("~nosuchuser/x", "begins with the home folder of a user that this machine does not have"),
        ("x" * 300, "is too long for a path"),
        ("a/" * 3000, "is too long for a path"),
        ("a\0b", "has a zero byte"),
    ):
        assert reason in said("--data-path", str(rows), f"--{setting}", at + given)


@pytest.mark.parametrize("setting", ["project-name", "data-path", "teacher-system"])
def test_text_that_is_not_utf_8_is_refused(setting, rows):
    assert "which is not UTF-8" in said("--data-path", str(rows), f"--{setting}", os.fsdecode(b"a\xe9"))


def test_values_are_quoted_in_part(rows):
    ended = CliRunner().invoke(main, ["llm", "--" + "x" * 100_000])
    assert (ended.exit_code, len(ended.stderr) < 700) == (2, True)
    assert "expected one of 'auto'" in said("--dtype", "9" * 100_000)
    assert "Name it with --text-column" in said("--data-path", str(rows), "--text-column", "x" * 100_000, "--dry-run")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "does not end within 1 sec"),
        ("{{ 9 ** (9 ** 9) }}", "does not end within 1 seconds"),
        ("{{ 'x' * 10 ** 10 }}", "takes more memory than a text can need"),
        ("{{ 'x' * 10 ** 7 }}", "makes more than 1,000,000 characters of a few words"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "calls itself, or is nested, without end"),
        ("{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}", "calls itself, or is nested, without end"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_a_chat_template_has_limits_of_time_and_length(template, reason, monkeypatch):
    monkeypatch.setattr(forked_trial, "SECONDS", 1)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = MESSAGES + template
    with pytest.raises(TemplateError, match=f"{reason}.*--chat-template"):
        ChatTemplate(tokenizer).render([{"role": "user", "content": "a"}])


def test_a_chat_template_that_is_slow_for_one_row_is_stopped(monkeypatch):
    monkeypatch.setattr("trl_distill.prompts.chat_template.SECONDS", 0.1)
    tokenizer = make_tokenizer()
    loops = "{% for x in c %}" * 4 + "{% endfor %}" * 4
    tokenizer.chat_template = "{% set c = messages[0].content if messages[0].content | length > 500 else '' %}" + loops
    rendered = ChatTemplate(tokenizer)
    assert rendered.render([{"role": "user", "content": "a"}]) == ""
    with pytest.raises(TemplateError, match="does not end within"):
        rendered.render([{"role": "user", "content": "a" * 5000}])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is more than 10,000"),
        ({"text_config": {"vocab_size": 10**12}}, "vocab_size is more than"),
        ({"vocab_size": 4_000_000}, "says that there are"),
        ({"eos_token_id": ["a"]}, "eos_token_id is ['a'], not the number of a token"),
        ({"num_hidden_layers": "many"}, "no configuration could be loaded"),
        ({"num_attention_heads": 0}, "no configuration could be loaded"),
        ({"head_dim": -4}, "no model could be loaded (its config.json names a negative size)"),
        ({"hidden_act": "none of these"}, "no model could be loaded ('none of these')"),
        (None, "no configuration could be loaded (maximum recursion depth exceeded"),
    ],
)
def test_a_configuration_that_no_model_can_have_is_refused(change, reason, tmp_path, rows):
    config = json.loads(Path(embedded_path(), "config.json").read_text())
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes(Path(embedded_path(), name).read_bytes())
    (tmp_path / "config.json").write_text(NESTED if change is None else json.dumps({**config, **change}))
    assert reason in said("--model", str(tmp_path), "--data-path", str(rows), "--dry-run")
