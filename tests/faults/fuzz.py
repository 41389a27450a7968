"""Throws hostile input at the public doors: data files, settings, command lines, prompts, chat templates, models.

    python tests/faults/fuzz.py --folder /tmp/faults
    python tests/faults/fuzz.py --long --seed 7 --doors settings commands --folder /tmp/faults

Hypothesis makes the input: hostile pieces, valid files with bytes changed, all kinds of values where others belong. It
must come back right (rows that are valid are read as they are written), or be refused in one sentence of at most 500
characters, with exit code 2. A traceback, more than 20 seconds of the CPU, or more than 3 GB of memory end the script
with exit code 1 and the smallest input that does so.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="1")
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import hypothesis
import yaml
from click.testing import CliRunner
from conftest import make_tokenizer
from hypothesis import strategies as st

from trl_distill import LLMTrainingParams, parse_template
from trl_distill.cli import main
from trl_distill.config.training_params import FIELDS
from trl_distill.data import load_data
from trl_distill.data.rows import read_rows, rows_of
from trl_distill.embedded import embedded_path
from trl_distill.errors import UsageError
from trl_distill.models import forked_trial
from trl_distill.prompts.chat_template import ChatTemplate

LONG, SHORT = 10_000, 150
SECONDS, MEMORY, LONGEST = 20, 3 * 1024**3, 500
COUNTS: Counter[str] = Counter()

WORDS = (
    *("", " ", "\0", "\ufeff", "\u2028", "\x1b[2J", "\u202e", "\r", "\ud800", "é", "٣", "½", "\\n", '"', "'"),
    *("9" * 5000, "1e308", "-1e999", "nan", "null", "1_000", " 5 ", "0x10", "010", "1:30", "2024-13-45", "2026-01-31"),
    *("{input}", "{", "}", "{{input}}", "{input.x}", "{input!r:>99999999}", "[" * 100_000, "{" * 5000),
    *("~nosuchuser/x", "x" * 300, "a/" * 3000, "@", "@nowhere", "../..", "/dev/null/x", "CON", "http://", "openai:"),
    *("__place__", "__faults__", "__packed__", "text", "prompt", "completion", "messages", "role", "content", "input"),
    *("true", "no", "self", "ema", "none", "auto", "*a", "&a", "!!python/object:os.system", "<<", "---", "? [a]"),
)
texts = st.sampled_from(WORDS) | st.text(st.characters(), max_size=20)
numbers = st.integers() | st.floats() | st.sampled_from([10**4000, -(10**400), 2**31, 2**63, 2**64, 1e308, -0.0])
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4))
words = st.text("abcdefgh XYZ.,?äß中", min_size=1, max_size=30).filter(str.strip)


class Broken(AssertionError):
    """A promise that did not hold."""


def check_sentence(text: str) -> None:
    """Check the message of an error: one line, short, and no library's own."""
    if len(text) > LONGEST or "\n" in text or "Traceback" in text or "set_int_max_str_digits" in text:
        raise Broken(f"this is not one short sentence: {text[:2000]!r}")


def outcome(door: str, act: Callable[[], object]) -> object:
    """Return what an action returns; None if it refused its input in one sentence."""
    try:
        found = act()
    except UsageError as error:
        check_sentence(str(error))
        COUNTS["refused"] += 1
        return None
    COUNTS["accepted"] += 1
    return found


def run_command(arguments: list[str]) -> None:
    """Run the command, which must succeed, or end with exit code 2 and one sentence."""
    done = CliRunner().invoke(main, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    if done.exit_code not in (0, 2):
        raise Broken(f"exit code {done.exit_code}: {done.output[-1000:]}")
    COUNTS["refused" if done.exit_code else "accepted"] += 1
    if done.exit_code:
        last = done.stderr.rstrip("\n").split("\n")[-1]
        check_sentence(last)
        if "error: " not in last.lower():
            raise Broken(f"exit code 2 and no sentence: {done.stderr[-1000:]!r}")


def written(folder: Path, name: str, content: bytes) -> Path:
    """Write a file into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    return folder / name


# --- data files ---


def as_text(rows: list[dict[str, object]], suffix: str, *, ascii_only: bool) -> bytes:
    """Return rows in a form of text; what a form cannot write is replaced."""

    def dumped(value: object) -> str:
        try:
            return json.dumps(value, ensure_ascii=ascii_only)
        except ValueError:  # what JSON cannot write
            return '{"text": ' + "9" * 5000 + "}"

    if suffix == ".jsonl":
        text = "\n".join(map(dumped, rows))
    elif suffix == ".json":
        text = dumped(rows)
    else:
        import csv

        out = io.StringIO()
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.writer(out, delimiter="," if suffix == ".csv" else "\t", lineterminator="\n")
        with contextlib.suppress(csv.Error):
            writer.writerow(names)
            writer.writerows([["" if name not in row else str(row[name])[:4000] for name in names] for row in rows])
        text = out.getvalue()
    return text.encode("utf-8", "surrogatepass")


@cache
def binaries() -> dict[str, bytes]:
    """Return valid parquet and arrow files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": ["red cat", "blue dog"] * 5, "n": list(range(10)), "x": [{"a": [1]}, None] * 5})
    parquet, arrow = io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet)
    with pa.ipc.new_file(arrow, table.schema) as out:
        out.write_table(table)
    return {".parquet": parquet.getvalue(), ".arrow": arrow.getvalue()}


@st.composite
def changed(draw: st.DrawFn, content: bytes) -> bytes:
    """Return bytes with some of them changed, cut, repeated, or written in another way."""
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    kind = draw(st.sampled_from(["cut", "flip", "insert", "repeat", "utf-16", "gzip", "bom", "same"]))
    if kind == "cut":
        return content[:place]
    if kind == "flip":
        return content[:place] + bytes([draw(st.integers(0, 255))]) + content[place + 1 :]
    if kind == "insert":
        return content[:place] + draw(st.binary(max_size=20)) + content[place:]
    if kind == "repeat":
        return content[:place] + content[place : place + 20] * draw(st.integers(0, 2000)) + content[place:]
    if kind == "utf-16":
        return content.decode("utf-8", "replace").encode("utf-16", "surrogatepass")
    return {"gzip": gzip.compress(content), "bom": b"\xef\xbb\xbf" + content}.get(kind, content)


SUFFIXES = st.sampled_from([".jsonl", ".json", ".csv", ".tsv"])


def read_file(path: Path) -> list[str]:
    read, _ = read_rows(load_data(path)[0])
    return [row.input for row in rows_of(read)]


@st.composite
def data_files(draw: st.DrawFn) -> tuple[str, bytes, list[str] | None]:
    """Return the end of a file's name, its content, and the texts that must be read if it is valid."""
    kind = draw(st.sampled_from(["valid", "hostile", "changed", "binary", "any"]))
    ascii_only, suffix = draw(st.booleans()), draw(SUFFIXES)
    if kind == "valid":
        names = st.sampled_from(["topic", "n", "länge", "a b", "x_1", "input"])
        plain = words | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.none() | st.booleans()
        nested = plain | st.lists(plain, max_size=3) | st.dictionaries(words, plain, max_size=3)
        row = st.builds(lambda text, more: {"text": text, **more}, words, st.dictionaries(names, nested, max_size=4))
        rows = draw(st.lists(row, min_size=1, max_size=5))
        return suffix, as_text(rows, suffix, ascii_only=ascii_only), [str(row["text"]) for row in rows]
    if kind == "binary":
        suffix = draw(st.sampled_from([".parquet", ".arrow"]))
        return suffix, draw(changed(binaries()[suffix])), None
    if kind == "any":
        return draw(SUFFIXES | st.sampled_from([".txt", ".parquet", ".arrow", ".ndjson"])), draw(st.binary()), None
    row = st.builds(
        lambda text, more: {"text": text, **more}, texts | words, st.dictionaries(texts, values, max_size=5)
    )
    content = as_text(draw(st.lists(row, max_size=5)), suffix, ascii_only=ascii_only)
    return suffix, draw(changed(content)) if kind == "changed" else content, None


def fuzz_data(folder: Path, data: st.DataObject) -> None:
    suffix, content, expected = data.draw(data_files())
    path = written(folder, f"rows{suffix}", content)
    found = outcome("data", lambda: read_file(path))
    if expected is not None and found != expected:
        raise Broken(f"rows that were written as {expected} are read as {found}")


# --- settings, command lines ---

NAMES = sorted(FIELDS)


@st.composite
def settings_files(draw: st.DrawFn) -> str:
    """Return a YAML file of settings, or nearly one."""
    names = st.sampled_from(NAMES) | texts
    if draw(st.booleans()):
        given = draw(st.dictionaries(names, values, max_size=4))
        with contextlib.suppress(ValueError, yaml.YAMLError):
            return str(yaml.safe_dump(given, allow_unicode=draw(st.booleans())))
    pieces = (
        texts | st.sampled_from(["\n", ": ", "- ", "  ", "[", "]", "*a", "&a ", "{", "!!int ", "|\n", "# "]) | names
    )
    return "".join(draw(st.lists(pieces, max_size=12)))


def fuzz_settings(folder: Path, data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        name, value = data.draw(st.sampled_from(NAMES)), data.draw(values)
        params = outcome("settings", lambda: LLMTrainingParams(**{name: value}))
        if isinstance(params, LLMTrainingParams) and type(value) in (int, float) and getattr(params, name) != value:
            raise Broken(f"{name} was {value!r} and is {getattr(params, name)!r}")
        return
    text = data.draw(settings_files()).encode("utf-8", "surrogatepass")
    path = written(folder, "run.yaml", data.draw(changed(text)) if data.draw(st.booleans()) else text)
    run_command(["llm", "--config", str(path), "--data-path", str(folder / "nowhere.jsonl")])


@cache
def flags() -> dict[str, list[str]]:
    """Return the flags of each command."""
    return {name: [flag for p in command.params for flag in p.opts] for name, command in main.commands.items()}


def fuzz_commands(folder: Path, data: st.DataObject) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = data.draw(st.sampled_from(sorted(flags())))
    # no operating system passes a zero byte, or a text that is not encoded
    argument = texts.map(lambda text: text.replace("\0", "").encode("utf-8", "replace").decode())
    arguments = data.draw(st.lists(st.sampled_from(flags()[name]) | argument, max_size=6))
    with contextlib.chdir(folder):
        run_command([name, *arguments, "--data-path", "nowhere.jsonl"])


# --- prompts, chat templates ---


def fuzz_prompts(folder: Path, data: st.DataObject) -> None:
    pieces = data.draw(st.lists(texts | words | st.just("{input}"), max_size=6))
    text = "".join(pieces)
    template = outcome("prompts", lambda: parse_template(text, name="teacher_prompt_template"))
    plain = [piece for piece in pieces if piece != "{input}"]
    if template is not None and not any(brace in piece for piece in plain for brace in "{}@[") and text != "":
        rendered = template.render(dict.fromkeys(template.fields, "ROW"))
        if rendered != text.replace("{input}", "ROW"):
            raise Broken(f"{text!r} is rendered as {rendered!r}")


PIECES = st.sampled_from([
    *("{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] }}", "{% if x %}", "{{ lipsum }}"),
    *("{% endif %}", "{{ messages[0].content }}", "{% for a in range(99999) %}", "{{ 9 ** 9 ** 9 }}", "{{ 1/0 }}"),
    *("{% set x = 'ab' * 9999 %}", "{{ x ~ x }}", "{% macro f(x) %}", "{% endmacro %}", "{{ f(f) }}", "{#", "#}"),
    *("{% endgeneration %}", "{{ raise_exception('no') }}", "{{ messages | tojson }}", "{{ ''.__class__ }}"),
    *("{% set ns = namespace(t='a') %}", "{% set ns.t = ns.t ~ ns.t %}", "{{ ns.t }}", "{{ '%9999999999s' % 'a' }}"),
    *("{{ 'a'.center(10**10) }}", "{{ " + "(" * 500, "{{ strftime_now('%Y' * 999) }}", "{% include 'x' %}"),
    *("{{ cycler }}", "{{ lipsum(9999) }}", "{{ dict(messages) }}", "{{ messages | map('x') | list }}", "{{ x.y.z }}"),
    *("{{ 'x' * 10**9 }}", "{% generation %}"),
])  # fmt: skip


def fuzz_chat_templates(folder: Path, data: st.DataObject) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "".join(data.draw(st.lists(PIECES | words | texts, max_size=8)))
    conversation = [{"role": "user", "content": data.draw(words)}]
    rendered = outcome("chat_templates", lambda: ChatTemplate(tokenizer).render(conversation))
    if rendered is not None and not isinstance(rendered, str):
        raise Broken(f"a conversation is rendered as {rendered!r}")


# --- models ---


@cache
def model_files() -> dict[str, bytes]:
    """Return the files of the embedded model."""
    return {path.name: path.read_bytes() for path in Path(embedded_path()).iterdir() if path.is_file()}


def fuzz_models(folder: Path, data: st.DataObject) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "model").mkdir(parents=True)
    files = dict(model_files())
    name = data.draw(st.sampled_from(sorted(name for name in files if name.endswith(".json"))))
    content = json.loads(files[name])
    if data.draw(st.booleans()) and isinstance(content, dict):
        for key in data.draw(st.lists(st.sampled_from(sorted(content)) | texts, max_size=3)):
            content[key] = data.draw(values)
        with contextlib.suppress(ValueError):
            files[name] = json.dumps(content).encode("utf-8", "surrogatepass")
    else:
        files[name] = data.draw(changed(files[name]))
    for file, text in files.items():
        (folder / "model" / file).write_bytes(text)
    (folder / "rows.jsonl").write_text('{"text": "red cat"}\n')
    role = data.draw(st.sampled_from(["--model", "--teacher-model"]))
    arguments = {"--model": "embedded", "--teacher-model": "embedded", role: str(folder / "model")}
    flat = [part for pair in arguments.items() for part in pair]
    more = [
        "--teacher-prompt-template",
        "Say {input}",
        "--distill-max-teacher-length",
        "2",
        "--dry-run",
        "--project-name",
        str(folder / "run"),
    ]
    run_command(["llm", *flat, "--data-path", str(folder / "rows.jsonl"), *more])


DOORS: dict[str, tuple[Callable[[Path, st.DataObject], None], float]] = {
    "data": (fuzz_data, 0.3),
    "settings": (fuzz_settings, 0.25),
    "commands": (fuzz_commands, 0.2),
    "prompts": (fuzz_prompts, 0.15),
    "chat_templates": (fuzz_chat_templates, 0.06),
    "models": (fuzz_models, 0.04),
}


def limited(door: str, act: Callable[[Path, st.DataObject], None], folder: Path, data: st.DataObject) -> None:
    """Throw one input at a door, with limits on time and memory."""

    def stop(*_: object) -> None:
        raise Broken(f"{door}: this takes more than {SECONDS} seconds")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        act(folder / door, data)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    COUNTS[door] += 1
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if used > MEMORY:
        raise Broken(f"{door}: {used / 1024**3:.1f} GB are in use")


def fuzz(door: str, count: int, seed: int, folder: Path) -> None:
    """Throw inputs at a door.

    Raises:
        Exception: What the smallest input that hypothesis found ended in, with that input in the output.
    """
    act = DOORS[door][0]

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )
    @hypothesis.given(st.data())
    def throw(data: st.DataObject) -> None:
        limited(door, act, folder, data)

    throw()


def fuzz_doors() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help=f"{LONG:,} inputs instead of {SHORT}")
    parser.add_argument("--inputs", type=int, help="number of inputs")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of hypothesis (default: random)")
    parser.add_argument("--doors", nargs="+", choices=DOORS, default=list(DOORS))
    parser.add_argument("--folder", type=Path, required=True, help="where it writes")
    given = parser.parse_args()
    import datasets

    datasets.config.HF_DATASETS_CACHE = str(given.folder / "cache")
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    forked_trial.SECONDS = 1  # of the templates that never end
    total = given.inputs or (LONG if given.long else SHORT)
    for door in given.doors:
        print(f"{door}, seed {given.seed}", flush=True)
        share = DOORS[door][1] / sum(DOORS[name][1] for name in given.doors)
        fuzz(door, max(round(total * share), 1), given.seed, given.folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    inputs = sum(COUNTS[door] for door in given.doors)
    print(json.dumps({"inputs": inputs, **COUNTS, "seed": given.seed, "peak_mb": peak}))
    return 0


if __name__ == "__main__":
    sys.exit(fuzz_doors())
