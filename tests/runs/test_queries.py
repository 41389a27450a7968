"""A teacher writes inputs for its own prompt: the command, the library and a run; what is kept, removed and refused."""

from __future__ import annotations

import errno
import json
import re
from collections import Counter
from unittest.mock import ANY

import pytest
from click.testing import CliRunner
from teachers.list_writer import KINDS, NOUNS, VERBS, serving
from teachers.writers import make_t5

from trl_distill import DistillError, LLMTrainingParams, ParamsError, TeacherError, queries_from_prompt, run
from trl_distill.cli import main
from trl_distill.data.near_duplicates import NearDuplicates, normalised
from trl_distill.teachers.remote import request_pool
from trl_distill.teachers.text.local_text import LocalTextTeacher

PROMPT = (
    "You route the mail of a shop. Example: my parcel never came to the house.\n"
    'A message such as "please send me the invoice again" goes to Billing.'
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory, with prompt.txt."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(request_pool, "BACKOFF", 0.02)
    (tmp_path / "prompt.txt").write_text(PROMPT)
    return tmp_path


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def command(teacher, *words, count=24, output="queries.jsonl"):
    flags = ["--teacher-system", "@prompt.txt", "--kinds", 4, "--count", count, "--output", output]
    return invoke("queries", "--teacher", teacher, *flags, *words)


def sentence(done):
    """Return the one sentence of an error."""
    (found,) = [line for line in done.stderr.splitlines() if line.startswith("aitraining: error:")]
    return found


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_teacher_that_answers_well_writes_inputs_of_each_kind(place, caplog):
    prices = ("--teacher-price-input", 1, "--teacher-price-output", 2)
    with serving() as (teacher, server):
        done = command(teacher, "--holdout", 0.25, *prices)
    assert done.exit_code == 0, done.output
    rows, held_out = read(place / "queries.jsonl"), read(place / "queries.heldout.jsonl")
    assert (len(rows), len(held_out)) == (18, 6)
    assert Counter(row["kind"] for row in (*rows, *held_out)) == dict.fromkeys(KINDS, 6)
    texts = [row["text"] for row in (*rows, *held_out)]
    assert all(text.split()[0] in VERBS for text in texts)  # no numbers, bullets, quotes or chatter
    assert not any(like(PROMPT.splitlines()[0].partition(": ")[2], text) for text in texts)
    assert not any(like(one, other) for i, one in enumerate(texts) for other in texts[:i])
    report = json.loads((place / "queries.report.json").read_text())
    assert (report["inputs"], report["held_out"], report["lengths"]) == (24, 6, ["three words", "one sentence"])
    assert report["counts"]["in_prompt"] == 8  # two in each of four answers
    used = report["usage"]
    assert used["requests"] == len(server.asked) == report["new_answers"] == 7
    assert used["cost"] == pytest.approx(7 * (100 * 1 + 50 * 2) / 1e6)
    assert "7 requests, 1,050 tokens, cost 0.0014" in done.stdout
    assert all(PROMPT in one for one in server.asked)
    assert "reasons before it answers" not in caplog.text


def test_a_request_for_another_assistant_stands_before_each_with_its_answer(place):
    with serving() as (teacher, server):
        assert command(teacher).exit_code == 0
    assert len(server.shown) == len(server.asked) == 7
    for (request, answer), asked in zip(server.shown, server.asked, strict=True):
        assert PROMPT not in request
        assert request.splitlines()[0] == asked.splitlines()[0]
        number = re.search(r"(?:List|Write) (\d+) ", request)[1]
        assert re.match(rf"(?s)1\. .*\n{number}\. [^\n]*$", answer)


def test_what_a_teacher_copies_from_the_example_is_not_taken(place):
    with serving("copies") as (teacher, _):
        listed = command(teacher)
        given = command(teacher, "--kind", "praise")
    for done in (listed, given):
        assert done.exit_code == 1, done.output
        assert "wrote 0 distinct inputs of 24" in sentence(done)
        assert "like a piece of the prompt or of the request" in sentence(done)


def test_refusals_among_lists_are_no_inputs(place):
    with serving("refuses") as (teacher, _):
        done = command(teacher, "--holdout", 0)
    assert done.exit_code == 0, done.output
    assert all(row["text"].split()[0] in VERBS for row in read(place / "queries.jsonl"))
    assert json.loads((place / "queries.report.json").read_text())["unreadable_answers"] > 1


def test_answers_that_are_cut_are_counted_and_the_limit_is_named(place):
    with serving("reasons") as (teacher, _):
        done = command(teacher, "--max-new-tokens", 2000, "--kind", "praise")
    assert done.exit_code == 1, done.output
    assert "(12 answers without a list, 12 of them cut at 2,000 tokens)" in sentence(done)
    assert "give a --max-new-tokens above 2,000, a teacher that follows" in sentence(done)


def test_items_of_lists_in_the_prompt_are_kinds(place):
    """As many as there are other kinds, from the whole prompt; a long one up to a space."""
    rules = "".join(f"- {noun}: Team {noun[0]}\n" for noun in NOUNS[:8])
    rules = rules.replace("Team r\n", "Team r\n" + "  in every case\n" * 15, 1)
    (place / "prompt.txt").write_text(f"You route the mail of a shop.\n{rules}1) Answer with the team alone.")
    with serving() as (teacher, server):
        assert command(teacher, "--holdout", 0, "--chats").exit_code == 0
    applied = [re.search(r"\nKind of input: .* applies: (.+)", asked) for asked in server.asked]
    first, *others = (f"{noun}: Team {noun[0]}" for noun in NOUNS[:8:2])
    assert {found[1] for found in applied if found} == {f"{first}{' in every case' * 10} ...", *others}
    of_prompt = [row["kind"] for row in read(place / "queries.jsonl") if "applies:" in row["kind"]]
    assert len(of_prompt) == 12
    assert len(set(of_prompt)) == 4


def test_a_model_without_chats_continues_a_list(place):
    with serving("continues") as (teacher, server):
        done = command(teacher, "--teacher-endpoint", "completions", "--kind", "praise", "--length", "a word", count=9)
    assert done.exit_code == 0, done.output
    asked = server.asked[0]
    shown, request = asked.split("\n\n\n")
    assert PROMPT not in shown
    assert re.search(r"\n10\. [^\n]*$", shown)
    assert PROMPT in request
    assert request.endswith("\n\n1.")
    rows = [*read(place / "queries.jsonl"), *read(place / "queries.heldout.jsonl")]
    assert rows == 9 * [{"text": ANY, "kind": "praise"}]
    texts = {row["text"] for row in rows}
    assert "returned the refund lost near praise 940" in texts  # the first item, whose number was given
    assert not any("soup" in text for text in texts)  # of another assistant, for which the model went on to write


@pytest.mark.parametrize("model", ["t5", "short", "embedded"])
def test_a_model_that_reads_too_few_tokens_is_shown_no_example(model, place, chat_model_dir, monkeypatch):
    read, write = [], LocalTextTeacher.write

    def written(self, prompts, *args, **kwargs):
        read.extend(prompts)
        return write(self, prompts, *args, **kwargs)

    monkeypatch.setattr(LocalTextTeacher, "write", written)
    folder = {"t5": place / "t5", "short": chat_model_dir, "embedded": "embedded"}[model]
    if model == "t5":
        make_t5(folder)
    command(folder, "--kind", "praise", "--length", "a word", "--max-new-tokens", 8, count=2)
    assert all(PROMPT in str(prompt) or PROMPT in prompt[-1]["content"] for prompt in read)
    assert {"town library" in str(prompt) for prompt in read} == {model == "embedded"}


def test_no_more_kinds_are_asked_for_than_inputs(place):
    with serving() as (teacher, server):
        done = command(teacher, "--kinds", 12, "--holdout", 0, count=3)
    assert done.exit_code == 0, done.output
    assert len(server.asked) == 3 + 3
    assert re.findall(r"^ +(\d+)  (.+)$", done.stdout, re.M) == [("1", kind) for kind in (*KINDS[:3],)]


def like(one, other):
    index = NearDuplicates()
    index.add(index.sketch(normalised(one)))
    return index.find(index.sketch(normalised(other))) is not None


def test_nothing_is_asked_twice_after_a_budget_and_for_other_counts(place):
    with serving() as (teacher, server):
        done = command(teacher, "--teacher-max-requests", 5, "--teacher-concurrency", 1)
        assert (done.exit_code, len(server.asked)) == (1, 5), done.output
        assert "the teacher's budget is spent" in done.stderr
        assert not (place / "queries.jsonl").exists()
        assert command(teacher).exit_code == 0
        assert len(server.asked) == len(set(server.asked)) == 7
        again = command(teacher, output="queries.jsonl")
        assert again.exit_code == 2
        assert "is there already" in again.stderr
        rows = (place / "queries.jsonl").read_text()
        assert command(teacher, "--overwrite").exit_code == 0
        assert command(teacher, "--overwrite", count=12).exit_code == 0
        assert len(server.asked) == 7
        assert len(read(place / "queries.jsonl")) == 11
        assert command(teacher, "--overwrite").exit_code == 0
    assert (place / "queries.jsonl").read_text() == rows


def test_of_an_answer_with_too_many_items_the_first_are_read(place):
    with serving("many") as (teacher, _):
        done = command(teacher)
    assert done.exit_code == 0, done.output
    report = json.loads((place / "queries.report.json").read_text())
    assert report["inputs"] == 24
    assert report["inputs"] + report["beyond"] + sum(report["counts"].values()) <= 200 * report["answers"]


def test_inputs_like_held_out_rows_are_removed(place):
    (place / "heldout.jsonl").write_text(json.dumps({"text": "where is my purple umbrella, today?"}) + "\n")
    with serving("leak") as (teacher, _):
        done = command(teacher, "--holdout", "heldout.jsonl", "--chats")
    assert done.exit_code == 0, done.output
    assert "4 others like a held-out row" in done.stdout
    chats = [row["messages"] for row in read(place / "queries.jsonl")]
    assert len(chats) == 24
    assert all(message["role"] == "user" and "umbrella" not in message["content"] for (message,) in chats)
    assert not (place / "queries.heldout.jsonl").exists()


def test_a_disk_that_fills_while_answers_arrive_ends_with_one_sentence(place, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("trl_distill.teachers.completions.store.append", full)
    with serving() as (teacher, _):
        done = command(teacher)
    assert done.exit_code == 1, done.output
    assert "the disk is full: 'queries.answers.jsonl' could not be written" in sentence(done)
    assert "run the same command again to continue" in sentence(done)


def test_whole_kinds_can_be_held_out(place):
    with serving() as (teacher, _):
        assert command(teacher, "--holdout-by", "kinds").exit_code == 0
        kinds = [{row["kind"] for row in read(place / name)} for name in ("queries.jsonl", "queries.heldout.jsonl")]
        assert [len(found) for found in kinds] == [3, 1]
        assert not kinds[0] & kinds[1]
    with serving("single") as (teacher, _):
        one = command(teacher, "--holdout-by", "kinds", "--output", "one.jsonl", count=8)
    assert one.exit_code == 1, one.output
    assert "are of the same kind" in sentence(one)


@pytest.mark.parametrize(("mode", "found"), [("same", 1), ("silent", 0)])
def test_a_teacher_that_writes_too_few_distinct_inputs_ends_with_one_sentence(place, mode, found):
    with serving(mode) as (teacher, server):
        done = command(teacher, "--holdout", 0)
        asked = len(server.asked)
        assert done.exit_code == 1, done.output
        assert f"wrote {found} distinct inputs of 24" in sentence(done)
        assert asked <= 3 * 3 + 20
        if found:
            assert "give --count 1 to use these" in done.stderr
            assert command(teacher, "--holdout", 0, count=1).exit_code == 0
            assert len(server.asked) == asked
            assert [row["text"] for row in read(place / "queries.jsonl")] == ["The same message."]


def test_the_embedded_model_writes_inputs_through_the_command_and_resumes(place):
    flags = ("--kinds", 2, "--length", "a few words", "--max-new-tokens", 24, "--seed", 3)
    done = command("embedded", *flags, count=6)
    assert done.exit_code == 0, done.output
    assert "Asking embedded for inputs of its prompt" in done.stdout
    rows, held_out = read(place / "queries.jsonl"), read(place / "queries.heldout.jsonl")
    assert len({row["text"] for row in (*rows, *held_out)}) == len(rows) + len(held_out) == 6
    answers = (place / "queries.answers.jsonl").read_bytes()
    assert command("embedded", *flags, "--overwrite", count=6).exit_code == 0
    assert (place / "queries.answers.jsonl").read_bytes() == answers
    assert read(place / "queries.jsonl") == rows
    lines = answers.splitlines(keepends=True)
    (place / "queries.answers.jsonl").write_bytes(b"".join(lines[:-2]) + lines[-2][:40])  # killed as it wrote
    assert command("embedded", *flags, "--overwrite", count=6).exit_code == 0
    assert (place / "queries.answers.jsonl").read_bytes().startswith(b"".join(lines[:-2]))


def test_the_library_returns_inputs_and_those_held_out(place):
    with serving() as (teacher, server):
        found = queries_from_prompt(teacher, "Answer as a poet.\n{input}", 10, kinds="odes", lengths=["a line"])
        assert (len(found), len(found.held_out)) == (9, 1)
        assert set(found.kinds.values()) == {"odes"}
        assert all("Answer as a poet.\n{input}" in one for one in server.asked)
        assert found.report["inputs"] == 10
        store = place / "answers.jsonl"
        texts = queries_from_prompt(teacher, "@prompt.txt", 12, store=store, held_out=["nothing like it"])
        asked = len(server.asked)
        assert queries_from_prompt(teacher, "@prompt.txt", 12, store=store) == texts
        assert len(server.asked) == asked
    with serving("same") as (teacher, _), pytest.raises(DistillError, match="give count=1 to use these, another temp"):
        queries_from_prompt(teacher, "A prompt.", 9)
    with pytest.raises(ParamsError, match=r"^count is 0; expected a whole number"):
        queries_from_prompt(teacher, "A prompt.", 0)
    with pytest.raises(TeacherError, match=r"^teacher './nowhere'"):
        queries_from_prompt("./nowhere", "A prompt.")


def test_a_run_writes_its_inputs_and_holds_some_out(place, tiny_model_dir):
    settings = {
        "model": str(tiny_model_dir), "teacher_system": "@prompt.txt", "queries_from_prompt": 24, "distill_alpha": 0,
        "project_name": "run", "epochs": 1, "holdout": 0.25, "distill_max_teacher_length": 8, "text_column": "asks",
    }  # fmt: skip
    with serving() as (teacher, server):
        with pytest.raises(DistillError, match="budget is spent"):
            run(LLMTrainingParams(**settings, teacher_model=teacher, teacher_max_requests=20, teacher_concurrency=1))
        result = run(LLMTrainingParams(**settings, teacher_model=teacher))
        assert len(server.asked) == len(set(server.asked)) == 3 + 12 + 24  # lists, inputs, what is learned
    rows = read(place / "run" / "queries.jsonl")
    assert len({row["asks"] for row in rows}) == 24
    assert len(read(place / "run" / "held_out.jsonl")) == 6
    assert result.metrics["preflight_train"]["rows"] == 18
    assert "24 inputs written by the teacher" in (place / "run" / "README.md").read_text()


def test_a_dry_run_writes_a_few_inputs_as_chats_and_no_project(place, chat_model_dir):
    flags = (
        "--teacher-system",
        "@prompt.txt",
        "--queries-from-prompt",
        200,
        "--distill-alpha",
        0,
        "--project-name",
        "dry",
    )
    with serving() as (teacher, server):
        done = invoke("llm", "--model", chat_model_dir, "--teacher-model", teacher, *flags, "--dry-run")
        assert done.exit_code == 0, done.output
        assert len(server.asked) == 3 + 12 + 16
    assert "16 distinct inputs, written by the teacher." in done.stdout
    assert "completions   16 from the teacher, under its prompt" in done.stdout
    assert "| <|im_start|>user" in done.stdout.partition("first row, student:")[2]
    assert not (place / "dry" / "queries.jsonl").exists()


NO_OUTPUT = "--output is missing; give --output a file to write, such as queries.jsonl."
REFUSED = {
    "queries --teacher embedded --teacher-system @prompt.txt": NO_OUTPUT,
    "queries --teacher-system @prompt.txt --output a.jsonl": "--teacher is missing; give --teacher a folder",
    "queries --teacher embedded --output a.jsonl": "there is no prompt to write inputs for",
    "queries --teacher ./nowhere --teacher-system hi --output a.jsonl": "'./nowhere' is not a folder",
    "queries --teacher self --teacher-system hi --output a.jsonl": "--teacher is 'self', the student of a run",
    "queries --teacher embedded --teacher-system @nowhere.txt --output a.jsonl": "names the file 'nowhere.txt'",
    "queries --teacher embedded --teacher-system hi --output a.txt": "does not end in .jsonl",
    "queries --teacher embedded --teacher-system hi --output a.jsonl --count 0": "--count is 0; expected a whole",
    "queries --teacher embedded --teacher-system hi --output a.jsonl --holdout 2": "expected a share above 0",
    "queries --teacher embedded --teacher-system hi --output a.jsonl --count 1": (
        "--holdout is 0.1, which leaves none of 1 input to train on"
    ),
    "queries --teacher embedded --teacher-system hi --output a.jsonl --count 4 --holdout 0.9": (
        "--holdout is 0.9, which leaves none of 4 inputs to train on"
    ),
    "queries --teacher embedded --teacher-system hi --output a.jsonl --holdout-by kinds --kind odes": (
        "--holdout-by is 'kinds', and 'odes' is the only kind"
    ),
    "queries --teacher embedded --teacher-system hi --output a.jsonl --holdout no.jsonl": "no such file or folder",
    "queries --teacher embedded --teacher-prompt-template {input}:{x} --output a.jsonl": "has the field {x}",
    "queries --teacher embedded --teacher-system hi --output a.jsonl --text-column kind": "--text-column is 'kind'",
    "queries --teacher http://h/v1#m --teacher-system hi --output a.jsonl --teacher-max-cost 1": "price",
    "llm --model embedded --teacher-model embedded --queries-from-prompt 5": "there is no prompt to write inputs for",
    "llm --model embedded --teacher-system hi --queries-from-prompt 5": "--teacher-model is missing",
    "llm --model embedded --teacher-model embedded --queries-from-prompt 5 --data-path a.jsonl": "give one of them",
    "llm --model embedded --trainer sft --queries-from-prompt 5": "add --use-distillation",
    "llm --model embedded --teacher-model embedded --teacher-system hi --queries-from-prompt 5 --completions data": (
        "--completions is 'data'"
    ),
    "llm --model embedded --teacher-model embedded --teacher-system hi --queries-from-prompt 5 --teacher-store s": (
        "cannot be used with --teacher-store"
    ),
    "teach --model embedded --teacher-model embedded --teacher-system hi --queries-from-prompt 5 --output s": (
        "cannot be used with --teacher-store"
    ),
}


@pytest.mark.parametrize("typed", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_sentence_before_a_model_loads(place, typed, monkeypatch):
    monkeypatch.setattr("trl_distill.models.loading.ModelSource.load_model", None)
    done = invoke(*typed.split())
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
    assert REFUSED[typed] in done.stderr
    assert not list(place.glob("*.jsonl"))
