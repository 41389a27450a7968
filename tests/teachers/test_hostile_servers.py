"""A server that is slow, endless, wrong or curious costs a run one sentence, and gets nothing it was not given."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc

import pytest
from conftest import KEY
from teachers import hostile
from teachers.hostile import completion, hostile_server, sends
from transformers import AutoTokenizer

from trl_distill import DistillError, LLMTrainingParams, ParamsError, TeacherError, load_teacher, train
from trl_distill.embedded import embedded_path
from trl_distill.models.generation import GenerationSettings
from trl_distill.teachers.completions.store import CompletionStore, JsonlStore
from trl_distill.teachers.multi.entries import read_teachers
from trl_distill.teachers.remote import bounded_client, keys, request_pool
from trl_distill.teachers.remote.request_pool import RemoteSettings

HOW = GenerationSettings(max_new_tokens=8)
IDENTITY = {"OPENAI_ORG_ID": "org-1", "OPENAI_PROJECT_ID": "project-1", "OPENAI_CUSTOM_HEADERS": "X-Mine: 1"}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded_path())


@pytest.fixture
def server(monkeypatch):
    """A server that answers as it should, and the environment of a user of OpenAI."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for name, value in IDENTITY.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(request_pool, "BACKOFF", 0.01)
    monkeypatch.setattr(keys, "_warned", set())
    with hostile_server() as running:
        running.send = sends(hostile.GOOD)
        yield running


@pytest.fixture
def ask(server, tokenizer, tmp_path):
    """Return a function that asks for one completion."""

    def write(prompt="hi", *, spec=None, **remote):
        remote = RemoteSettings(**{"concurrency": 1, "timeout": 20, **remote})
        teacher = load_teacher(spec or f"{server.url}#m", tokenizer=tokenizer, remote=remote)
        store = CompletionStore(tmp_path / "store.jsonl")
        return teacher.write([prompt], HOW, store=store, progress=False)[0]

    return write


SLOW = ["slow_head", "slow_body", "slow_chunks", "endless_interim", "nothing"]


@pytest.mark.parametrize("kind", SLOW)
def test_the_timeout_is_for_the_whole_answer(kind, ask, server, monkeypatch):
    monkeypatch.setattr(request_pool, "TRIES", 2)
    server.send = getattr(hostile, kind)
    begun = time.monotonic()
    with pytest.raises(DistillError, match=r"no usable answer: no answer within 0.4 s \(2 tries\)") as error:
        ask(timeout=0.4)
    assert 0.8 <= time.monotonic() - begun < 3
    assert error.value.exit_code == 1
    assert len(server.requests) == 2


@pytest.mark.parametrize("kind", ["endless_body", "gzip_bomb"])
def test_an_answer_beyond_the_largest_size_is_given_up_without_filling_the_memory(kind, ask, server, monkeypatch):
    monkeypatch.setattr(request_pool, "TRIES", 1)
    server.send = getattr(hostile, kind)
    tracemalloc.start()
    try:
        with pytest.raises(DistillError, match="an answer of more than 64 MiB"):
            ask()
        # the body, grown by an eighth at a time, and what the server's thread has of it
        assert tracemalloc.get_traced_memory()[1] < 3 * bounded_client.MOST
    finally:
        tracemalloc.stop()


def test_a_compressed_answer_is_read(ask, server):
    server.send = sends(gzip.compress(json.dumps(completion("é b")).encode()), headers="Content-Encoding: gzip\r\n")
    assert ask().text == "é b"
    assert "accept-encoding: gzip\r\n" in server.heads[0]


@pytest.mark.parametrize(
    ("name", "body"), [("br", hostile.GOOD), ("gzip, gzip", hostile.GOOD), ("gzip", hostile.GOOD), ("gzip", "")]
)
def test_an_answer_in_another_compression_is_faulty(name, body, ask, server, monkeypatch):
    monkeypatch.setattr(request_pool, "TRIES", 1)
    server.send = sends(body, headers=f"Content-Encoding: {name}\r\n")
    with pytest.raises(DistillError, match=r"compress|JSON"):
        ask()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 300])
def test_a_redirect_is_not_followed_and_names_the_address_to_use(status, ask, server):
    with hostile_server() as other:
        other.send = sends(hostile.GOOD)
        location = f"{other.url.replace('//', '//me:s3cret@')}/chat/completions?token=s3cret"
        server.send = sends("", status=f"{status} Moved", headers=f"Location: {location}\r\n")
        with pytest.raises(
            TeacherError, match=rf"redirects requests \(status {status}\) to {other.url}, which"
        ) as error:
            ask()
        assert other.requests == []
    assert "s3cret" not in str(error.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_that_is_not_there_is_named_with_the_reason(host, ask, monkeypatch):
    monkeypatch.setattr(request_pool, "TRIES", 1)
    with pytest.raises(DistillError, match=r"no usable answer: \[Errno \d+\] Connect.*9.* \(1 tries\)"):
        ask(spec=f"http://{host}:9/v1#m")


@pytest.mark.parametrize(("name", "value"), [("HTTPS_PROXY", "ftp://proxy"), ("NO_PROXY", "localhost,fe80::/10")])
def test_a_proxy_that_cannot_be_used_is_a_sentence(name, value, ask, server, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(TeacherError, match=r"through the proxy that the environment names .*or NO_PROXY, or unset"):
        ask()


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read_are_a_sentence(content, ask, server, monkeypatch, tmp_path):
    path = tmp_path / "own.pem"
    if content is not None:
        path.write_text(content)
    bounded_client._certificates.cache_clear()
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pytest.raises(TeacherError, match=r"the certificates that the environment names .*; correct SSL_CERT_FILE or"):
        ask()


def test_a_redirect_without_a_location_is_a_sentence_too(ask, server):
    for location in ("", "Location: http://[\r\n"):
        server.send = sends("", status="302 Found", headers=location)
        with pytest.raises(TeacherError, match="redirects requests"):
            ask()


FAULTY = {
    "half a surrogate pair": json.dumps(completion("a \ud800 b")),
    "in its reasoning": json.dumps(
        completion(choices=[{"message": {"content": "a", "reasoning_content": "\udfff"}, "finish_reason": "stop"}])
    ),
    "nested": hostile.NESTED,
    "many values": "[" + "[]," * 3_000_000 + "0]",
    "a negative count": json.dumps(completion(usage={"prompt_tokens": -1, "completion_tokens": 2})),
    "an infinite count": '{"choices": [{"message": {"content": "a"}}], "usage": {"completion_tokens": 1e999}}',
    "no number": '{"choices": [{"message": {"content": "a"}}], "usage": {"completion_tokens": NaN}}',
    "a count of 400 digits": json.dumps(completion(usage={"completion_tokens": 10**400})),
    "a count as text": json.dumps(completion(usage={"completion_tokens": "7"})),
    "a fraction": json.dumps(completion(usage={"completion_tokens": 0.5})),
    "true": json.dumps(completion(usage={"completion_tokens": True})),
    "integers of 5,000 digits": '{"choices": ' + "1" * 5000 + "}",
    "a text of 5 million characters": json.dumps(completion("a" * 5_000_000)),
    "not UTF-8": b'{"choices": [{"message": {"content": "\xff"}}]}',
    "the key": json.dumps(completion(f"my {KEY}")),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_answer_is_asked_for_again_and_named_if_it_stays(name, ask, server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)  # it knows the key
    answers = iter([sends(FAULTY[name]), sends(hostile.GOOD)])
    server.send = lambda: next(answers)()
    assert ask().text == "a b"
    assert len(server.requests) == 2
    server.send = sends(FAULTY[name])
    monkeypatch.setattr(request_pool, "TRIES", 2)
    with pytest.raises(DistillError, match=r"gives no usable answer: an? .* \(2 tries\); 0 of 1 completions") as error:
        ask("other")
    assert error.value.exit_code == 1
    assert len(str(error.value)) < 500
    assert KEY not in str(error.value)
    stored = CompletionStore(tmp_path / "store.jsonl")
    assert len(stored) == 1


def test_a_line_that_an_earlier_version_kept_without_checking_is_asked_for_again(ask, server, tmp_path):
    ask()
    path = tmp_path / "store.jsonl"
    kept = json.loads(path.read_text())
    line = {name: kept[name] for name in ("key", "ids", "finished")}  # it wrote no checksums
    path.write_text(json.dumps({**line, "text": "\ud800"}) + "\n")
    assert ask().text == "a b"
    assert len(server.requests) == 2
    path.write_text(json.dumps({**line, "text": "\U0001f600"}) + "\n")
    assert ask().text == "\U0001f600"


def test_many_spaces_are_read_at_once(ask, server):
    server.send = sends(json.dumps(completion(" " * 1_000_000)))
    begun = time.monotonic()
    assert ask().unusable
    assert time.monotonic() - begun < 5


def test_logged_tokens_without_end_are_matched_at_once():
    from trl_distill.teachers.remote.byte_matching import at_end

    pieces = [b"a"] * 200_000
    begun = time.monotonic()
    assert at_end(pieces, b"a" * 199_999 + b"b").end == 199_999
    assert at_end([None, *pieces, b"c"], b"a" * 1000 + b"c").first == 200_001 - 1000
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"error": {"message": "unknown", "param": ["seed"]}}, "refuses the request with status 400 (unknown)"),
        ({"error": {"message": {"a": "\x1b[31m"}, "code": 10**50}}, "status 400"),
        ([{"error": "\ud800 no"}], r"(\ud800 no)"),
        ([], "it does not say why"),
        ({"error": {"message": "x" * 50_000}}, f"({'x' * 200})"),
    ],
    ids=lambda value: "",
)
def test_whatever_a_refusal_says_is_one_printable_line(said, sentence, ask, server):
    server.send = sends(json.dumps(said), status="400 Bad Request")
    with pytest.raises(TeacherError) as error:
        ask()
    text = str(error.value)
    assert sentence in text
    assert len(text) < 500
    assert text.isprintable()


def test_a_retry_after_that_no_clock_has_is_ignored(ask, server):
    answers = [
        sends("", status="503 Busy", headers=f"Retry-After: {value}\r\n")
        for value in ("-5", "nan", "Wed, 21 Oct 99999 07:28:00 GMT", "Mon, 01 Jan 0001 00:00:00 +2359", "\u00b2")
    ]
    left = iter([*answers, sends(hostile.GOOD)])
    server.send = lambda: next(left)()
    assert ask().text == "a b"


# who is asked with which key


def identity_in(head: str) -> set[str]:
    """Return what a request says about its user."""
    return {
        line for line in head.split("\r\n") if any(word in line for word in ("auth", "org", "project", "mine", KEY))
    }


def test_another_server_gets_no_key_of_openai_and_the_user_is_told_once(ask, server, caplog):
    ask()
    ask("again")
    assert [identity_in(head) for head in server.heads] == [set(), set()]
    assert [record.getMessage() for record in caplog.records] == [
        f"OPENAI_API_KEY is not sent to {server.url}, which is not OpenAI; if that server needs a key, name its "
        "environment variable with --teacher-key-env."
    ]


def test_a_server_gets_the_key_that_a_setting_names(ask, server, monkeypatch, caplog):
    monkeypatch.setenv("SERVERS_KEY", "key-of-the-server")
    ask(key_env="SERVERS_KEY")
    assert identity_in(server.heads[0]) == {"authorization: bearer key-of-the-server"}
    assert not caplog.records
    server.send = sends(json.dumps({"error": "key-of-the-server is not known"}), status="401 No")
    with pytest.raises(TeacherError, match=r"\(\*\*\* is not known\); set the environment variable SERVERS_KEY"):
        ask("again", key_env="SERVERS_KEY")


def test_the_server_of_openais_variable_gets_openais_key_and_account(ask, server, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    ask()
    ask("again", spec="openai:m")
    account = {"openai-organization: org-1", "openai-project: project-1"}
    assert [identity_in(head) for head in server.heads] == [{f"authorization: bearer {KEY}", *account}] * 2
    assert not caplog.records


def test_a_server_that_asks_for_a_key_names_the_setting(ask, server):
    server.send = sends('{"error": "no key"}', status="401 Unauthorized")
    with pytest.raises(TeacherError, match=r"environment variable, and name that with --teacher-key-env"):
        ask()


@pytest.mark.parametrize("given", ["sk-abcdef0123", "sk_abcdef0123", "a b"])
def test_a_key_given_in_the_place_of_its_variable_is_not_repeated(given, ask, server):
    with pytest.raises((TeacherError, ParamsError), match="variable") as error:
        ask(key_env=given)
    assert given not in str(error.value)
    assert server.requests == []


def test_a_key_is_refused_as_a_setting_and_in_a_list_of_teachers():
    with pytest.raises(ParamsError, match="not the name of an environment variable") as error:
        LLMTrainingParams(model="m", teacher_model="http://h/v1#m", teacher_key_env="sk-abc").validate()
    assert "sk-abc" not in str(error.value)
    with pytest.raises(ParamsError, match=r"teacher 1: key_env is not the name") as error:
        read_teachers([{"model": "http://h/v1#m", "key_env": "sk-abc"}])
    assert "sk-abc" not in str(error.value)
    entries = read_teachers([{"model": "http://h/v1#m", "key_env": "ONE"}])
    assert entries.to_dict()["teachers"][0]["key_env"] == "ONE"
    with pytest.raises(ParamsError, match="each teacher has a 'key_env' of its own there"):
        LLMTrainingParams(model="m", teacher_config=[{"model": "m"}], teacher_key_env="ONE").validate()


def test_a_variable_that_is_not_set_is_found_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "data.jsonl").write_text('{"text": "a"}')
    settings = {"model": "embedded", "data_path": str(tmp_path / "data.jsonl"), "project_name": str(tmp_path / "run")}
    monkeypatch.setattr("trl_distill.models.loading.ModelSource.load_model", None)
    for teacher in (
        {"teacher_model": "http://127.0.0.1:9/v1#m", "teacher_key_env": "MY_KEY"},
        {"teacher_config": [{"model": "http://127.0.0.1:9/v1#m", "key_env": "MY_KEY"}]},
    ):
        with pytest.raises(TeacherError, match="key_env names an environment variable that is not set, MY_KEY; set it"):
            train(LLMTrainingParams(**settings, **teacher))
    assert not (tmp_path / "run").exists()


def test_a_key_over_http_to_another_machine_warns_once(ask, server, monkeypatch, caplog):
    monkeypatch.setenv("SERVERS_KEY", "key-of-the-server")
    monkeypatch.setattr(request_pool, "TRIES", 1)
    for _ in range(2):
        with pytest.raises(DistillError):
            ask(spec="http://192.0.2.1:9/v1#m", key_env="SERVERS_KEY", timeout=0.2)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("the key in SERVERS_KEY is sent to http://192.0.2.1:9/v1 over http")
    assert "key-of" not in line


def test_the_other_vllm_server_takes_no_password_in_its_address():
    with pytest.raises(ParamsError, match="vllm_server_base_url has credentials") as error:
        LLMTrainingParams(model="m", vllm_server_base_url="http://me:s3cret@host:8000").validate()
    assert "s3cret" not in str(error.value)


def test_the_store_of_log_probabilities_skips_text_that_is_none(tmp_path):
    (tmp_path / "s.jsonl").write_text('{"key": "a", "text": "\\ud83d"}\n{"key": "b", "text": "\\ud83d\\ude00"}\n')
    assert "a" not in JsonlStore(tmp_path / "s.jsonl")
    assert "b" in JsonlStore(tmp_path / "s.jsonl")
