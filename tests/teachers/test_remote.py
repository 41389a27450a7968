"""A teacher behind a server, against a real one: what is asked, kept, tried again, refused, and what it may cost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from conftest import KEY
from transformers import AutoTokenizer

from trl_distill import DistillError, TeacherError, load_teacher
from trl_distill.embedded import embedded_path
from trl_distill.errors import ProjectError
from trl_distill.models.generation import GenerationSettings
from trl_distill.prompts.tokenization import tokenize_prompt
from trl_distill.teachers.base import Teacher, TextTeacher
from trl_distill.teachers.completions.store import CompletionStore
from trl_distill.teachers.remote import request_pool
from trl_distill.teachers.remote.request_pool import RemoteSettings, Usage

HOW = GenerationSettings(max_new_tokens=12)
ONE = RemoteSettings(concurrency=1, timeout=20)
WORDS = ["red cat", "blue dog moon", "tall tree", "sun", "old green house", "river stone"]
PROMPTS = [f"Write the words in reverse order.\n{words}\n" for words in WORDS]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded_path())


@pytest.fixture
def ask(server, tokenizer, tmp_path, monkeypatch):
    """Return a function that has a fresh teacher write, with one store for the test."""
    monkeypatch.setattr(request_pool, "BACKOFF", 0.02)

    def write(prompts=PROMPTS, remote=ONE, settings=HOW, spec=server.teacher):
        teacher = load_teacher(spec, tokenizer=tokenizer, remote=remote)
        return teacher.write(prompts, settings, store=CompletionStore(tmp_path / "store.jsonl"), progress=False)

    return write


def test_a_server_is_a_text_teacher(server, tokenizer):
    teacher = load_teacher(server.teacher, tokenizer=tokenizer)
    assert isinstance(teacher, Teacher)
    assert isinstance(teacher, TextTeacher)
    assert not isinstance(load_teacher("embedded"), TextTeacher)
    assert teacher.identity() == {"url": server.url, "model": "embedded", "endpoint": "chat"}
    assert tokenizer.eos_token_id in teacher.stop_ids
    for refused in (lambda: teacher.score({}), lambda: teacher.generate([[5]], HOW)):
        with pytest.raises(TeacherError, match="text"):
            refused()
    assert server.requests() == []


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_server_writes_what_its_model_writes(endpoint, ask, server, tokenizer):
    local = load_teacher("embedded", dtype="float32")
    chat = endpoint == "chat"
    ids = [tokenize_prompt(tokenizer, [{"role": "user", "content": p}] if chat else p) for p in PROMPTS]
    expected = [local.generate([prompt], HOW)[0] for prompt in ids]
    written = ask([*PROMPTS, PROMPTS[0]], replace(ONE, concurrency=4, endpoint=endpoint))
    assert [c.text for c in written[:-1]] == [tokenizer.decode(c.ids, skip_special_tokens=True) for c in expected]
    assert [c.finished for c in written[:-1]] == [c.finished for c in expected]
    assert written[-1] == written[0]
    assert sorted(server.answered()) == sorted(PROMPTS)  # equal prompts are asked once
    path = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}[endpoint]
    assert {r["path"] for r in server.requests()} == {path}
    assert all(r["request"]["temperature"] == 0 and r["request"]["max_tokens"] == 12 for r in server.requests())


def test_chat_messages_are_sent_unchanged(ask, server):
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "red cat"}]
    ask([messages])
    assert server.requests()[0]["request"]["messages"] == messages
    with pytest.raises(TeacherError, match="--teacher-endpoint chat"):
        ask([messages], replace(ONE, endpoint="completions"))


def test_stored_completions_are_not_requested_again(ask, server):
    first = ask(PROMPTS[:2])
    assert ask(PROMPTS[:3])[:2] == first
    assert server.answered() == PROMPTS[:3]
    ask(PROMPTS[:1], settings=GenerationSettings(max_new_tokens=3))
    ask(PROMPTS[:1], spec=server.teacher + "-2")
    assert len(server.requests()) == 5  # other settings and another model are other completions


def test_only_the_row_of_a_damaged_line_is_paid_again(ask, server, tmp_path, capsys):
    done = ask()
    path = tmp_path / "store.jsonl"
    text = path.read_text()
    path.write_text(text.replace(done[1].text, done[1].text.swapcase(), 1))
    assert ask() == done
    assert len(server.requests()) == len({*PROMPTS}) + 1
    assert "is damaged and ignored; what is missing is made again." in capsys.readouterr().out


def test_a_cut_completion_is_unfinished(ask):
    assert not ask(PROMPTS[:1], settings=GenerationSettings(max_new_tokens=1))[0].finished


def test_sampled_copies_of_a_prompt_have_their_own_seeds(ask, server):
    drawn = GenerationSettings(max_new_tokens=3, do_sample=True, temperature=0.7, top_p=0.9)
    ask([PROMPTS[0]] * 3, settings=drawn)
    sent = [r["request"] for r in server.requests()]
    assert len({r["seed"] for r in sent}) == 3
    assert {(r["temperature"], r["top_p"]) for r in sent} == {(0.7, 0.9)}
    ask([PROMPTS[0]] * 3, settings=drawn)
    assert len(server.requests()) == 3


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "429", "headers": {"Retry-After": "0.2"}},
        {"kind": "429"},
        {"kind": "500"},
        {"kind": "502"},
        {"kind": "503", "headers": {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}},
        {"kind": "503", "headers": {"Retry-After": "nan"}},
        {"kind": "503", "headers": {"Retry-After": "inf"}},
        {"kind": "503", "headers": {"Retry-After": "soon"}},
        {"kind": "cut"},
        {"kind": "malformed"},
        {"kind": "body", "body": {"choices": []}},
        {"kind": "body", "body": {"object": "error"}},
        {"kind": "body", "body": ["no", "object"]},
        {"kind": "hang", "seconds": 1.2},
    ],
    ids=lambda fault: fault["kind"] + str(fault.get("body", fault.get("headers", ""))),
)
def test_temporary_errors_are_retried(fault, ask, server):
    remote = replace(ONE, timeout=0.6) if fault["kind"] == "hang" else ONE
    server.fail(None, fault, fault)
    assert all(c.text for c in ask(PROMPTS[:3], remote))
    assert sorted(server.answered()) == sorted(PROMPTS[:3])
    assert len(server.requests()) == 5


def test_a_folder_in_the_place_of_the_completions_is_named_before_anything_is_asked(ask, server, tmp_path):
    (tmp_path / "store.jsonl").mkdir()
    with pytest.raises(ProjectError, match=r"store\.jsonl' is a folder, and answers are to be kept in a file"):
        ask()
    assert server.requests() == []


@pytest.mark.parametrize(
    ("usage", "text"),
    [
        (Usage(1, 0, 1, 0), "1 request, 1 token, cost 1e-06"),
        (Usage(1200, 1, 700, 300), "1,200 requests, 1 repeated, 1,000 tokens, cost 0.0010"),
    ],
)
def test_what_was_used_is_counted_in_words_and_a_small_cost_is_not_0(usage, text):
    assert usage.text(RemoteSettings(price_input=1.0, price_output=1.0)) == text


def test_retry_after_delays_all_requests(ask, server):
    server.fail({"kind": "429", "headers": {"Retry-After": "1"}})
    ask(PROMPTS[:3])
    times = [r["time"] for r in server.requests()]
    assert times[1] - times[0] >= 0.99


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"kind": "400", "said": "the prompt is too long"}, "the prompt is too long"),
        ({"kind": "401", "said": "wrong key KEY"}, "OPENAI_API_KEY"),
        ({"kind": "403"}, "OPENAI_API_KEY"),
        ({"kind": "404"}, "/v1"),
        ({"kind": "429", "code": "insufficient_quota"}, "429"),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_a_refusal_is_a_sentence_and_not_tried_again(fault, said, ask, server):
    server.fail(None, fault)
    with pytest.raises(TeacherError, match=said) as error:
        ask()
    assert len(server.requests()) == 2
    assert "1 of 6 completions are kept in" in str(error.value)
    assert KEY not in str(error.value)
    assert (error.value.__cause__, error.value.__suppress_context__) == (None, True)


def test_a_run_that_gave_up_resumes_with_the_missing_completions(ask, server):
    server.fail(None, *[{"kind": "500"}] * request_pool.TRIES)
    with pytest.raises(DistillError, match=r"status 500: told to fail \(6 tries\); 1 of 6 completions") as error:
        ask()
    assert error.value.exit_code == 1
    assert all(c.text for c in ask())
    assert sorted(server.answered()) == sorted(PROMPTS)


def test_a_long_retry_after_ends_the_run(ask, server):
    server.fail({"kind": "429", "headers": {"Retry-After": "86400"}})
    with pytest.raises(DistillError, match="86,400 s"):
        ask()
    assert len(server.requests()) == 1


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_server_that_dies_half_way_loses_nothing(concurrency, ask, server, tmp_path):
    remote = replace(ONE, concurrency=concurrency)
    server.fail(None, None, {"kind": "die"})
    with pytest.raises(DistillError, match="completions are kept in"):
        ask(remote=remote)
    kept = len(CompletionStore(tmp_path / "store.jsonl"))
    assert kept == len(server.answered()) < len(PROMPTS)
    server.revive()
    assert all(c.text for c in ask(remote=remote))
    assert sorted(server.answered()) == sorted(PROMPTS)  # nothing is asked twice


def test_concurrent_requests_stay_within_the_limit(ask, server):
    server.fail(*[{"kind": "slow", "seconds": 0.2}] * len(PROMPTS))
    ask(remote=replace(ONE, concurrency=3))
    assert max(r["under_way"] for r in server.requests()) == 3


def test_a_budget_of_requests_is_kept_to_and_counts_repeated_ones(ask, server):
    server.fail({"kind": "500"})
    remote = RemoteSettings(concurrency=2, max_requests=4)
    with pytest.raises(
        DistillError, match=r"4 requests and .* --teacher-max-requests 4.*: 3 of 6 completions"
    ) as error:
        ask(remote=remote)
    assert error.value.exit_code == 1
    assert "the same command asks for the others" in str(error.value)
    assert len(server.requests()) == 4
    assert all(c.text for c in ask(remote=remote))
    assert sorted(server.answered()) == sorted(PROMPTS)
    ask(remote=replace(remote, max_requests=1))  # all is there: nothing is asked


def test_a_token_budget_ends_the_requests(ask, server):
    with pytest.raises(DistillError, match=r"--teacher-max-tokens 10.*: 1 of 6"):
        ask(remote=replace(ONE, max_tokens=10))
    assert len(server.requests()) == 1


def test_ctrl_c_keeps_received_completions(ask, server):
    server.fail(None, None, *[{"kind": "hang", "seconds": 1.5}] * 4)

    def interrupt():
        while len(server.requests()) < 3:
            pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    # the second may still be on its way
    with pytest.raises(KeyboardInterrupt, match=r"[12] of 6 completions are kept") as caught:
        ask()
    kept = int(re.findall(r"(\d) of 6", str(caught.value))[0])
    server.fail()
    ask()
    assert sorted(server.answered()) == sorted(PROMPTS[kept:])


NEVER_ANSWERED = """
import os, signal, threading
from trl_distill.teachers.remote.request_pool import RemoteSettings, RequestPool, Usage

def send(key, job):
    if key == "0":  # the other threads may not have started yet
        os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait()

RequestPool(send, RemoteSettings(), Usage()).run({str(i): i for i in range(8)}, print)
"""


def test_after_ctrl_c_a_program_ends_without_the_answers_in_flight():
    ended = subprocess.run([sys.executable, "-c", NEVER_ANSWERED], capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    assert ended.stderr.splitlines()[-1] == "KeyboardInterrupt"


def test_a_missing_key_is_reported_before_any_request(ask, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "two words")
    with pytest.raises(TeacherError, match="no key has") as error:
        ask()
    assert "two words" not in str(error.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(TeacherError, match="set the environment variable OPENAI_API_KEY"):
        ask(spec="openai:gpt-4o-mini")
    assert server.requests() == []


def test_a_server_of_ones_own_needs_no_key(ask, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert ask(PROMPTS[:1])[0].text


def test_openai_is_where_its_environment_variable_says(ask, server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
    ask(PROMPTS[:1], spec="openai:gpt-4o-mini")
    ask(PROMPTS[:1], spec="openai:o3")
    mini, o3 = (r["request"] for r in server.requests())
    assert (mini["model"], mini["max_completion_tokens"], mini["temperature"]) == ("gpt-4o-mini", 12, 0)
    assert "temperature" not in o3
    monkeypatch.setenv("OPENAI_BASE_URL", "http://user:s3cret@host")
    with pytest.raises(TeacherError, match="OPENAI_BASE_URL is a URL with credentials") as error:
        ask(spec="openai:gpt-4o")
    assert "s3cret" not in str(error.value)


def test_a_message_without_text_is_an_empty_completion(ask, server):
    message = {"role": "assistant", "content": None, "refusal": "no"}
    server.fail({"kind": "body", "body": {"choices": [{"message": message, "finish_reason": "stop"}]}})
    assert [(c.text, c.unusable) for c in ask(PROMPTS[:1])] == [("", "the teacher refused to answer")]
