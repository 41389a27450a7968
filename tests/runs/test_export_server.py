"""The server that an export is verified with: its answers end, and one that is no completion is a sentence."""

from __future__ import annotations

import json

import pytest
from teachers import hostile
from teachers.hostile import completion, hostile_server, sends

from trl_distill import DistillError
from trl_distill.runs.export import server as module
from trl_distill.runs.export.rows import Request
from trl_distill.runs.export.server import Server, asking


@pytest.fixture
def ask(monkeypatch):
    """Return a function that asks a server that sends what is given."""
    monkeypatch.setattr(module, "ANSWERS", 0.4)
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-openai")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    def go(send, **of):
        with hostile_server() as running, asking(running.url) as client:
            running.send = send
            answer = Server("llama-server", client, "m").ask(Request(**{"ids": [1, 2], "message": None, **of}), 8)
            assert "key-of-openai" not in running.heads[0]
            assert json.loads(running.requests[0][1])["model"] == "m"
            return answer

    return go


def test_both_endpoints_are_asked(ask):
    assert ask(sends(hostile.GOOD), message="hi") == ("a b", None)
    body = {"choices": [{"text": "a", "token_ids": [3, 4]}]}
    assert ask(sends(json.dumps(body))) == ("a", [3, 4])


@pytest.mark.parametrize(
    ("send", "sentence"),
    [
        (hostile.slow_body, "llama-server sends no answer within 0.4 s."),
        (hostile.endless_body, "llama-server sends an answer of more than 64 MiB."),
        (sends(hostile.NESTED), "llama-server sends an answer that is nested too deeply."),
        (sends('{"choices": []}'), r"llama-server sends no completion \(IndexError\)."),
        (sends("[1]"), r"llama-server sends no completion \(TypeError\)."),
        (sends(json.dumps(completion(choices=["a"]))), r"llama-server sends no completion \(TypeError\)."),
        (sends('{"error": "no"}', status="500 Broken"), "llama-server answered 500:"),
        (sends("", status="307 Moved", headers="Location: http://127.0.0.1:9/\r\n"), "llama-server answered 307"),
    ],
    ids=lambda value: "",
)
def test_a_server_that_sends_no_completion_ends_the_verification_with_a_sentence(send, sentence, ask, monkeypatch):
    if send is hostile.endless_body:
        monkeypatch.setattr(module, "ANSWERS", 20)
    with pytest.raises(DistillError, match=sentence):
        ask(send)
