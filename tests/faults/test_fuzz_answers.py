"""Answers of servers with something wrong in them; `fuzz_answers.py --long` tries more."""

from __future__ import annotations

import json
import math

import pytest
from conftest import KEY
from faults._changed_answers import DOUBLED, KINDS, SET, asked, changed, fuzz, good_answer, tokenizer
from teachers.hostile import hostile_server, sends

from trl_distill.teachers.remote import request_pool


@pytest.mark.parametrize("kind", KINDS)
def test_no_changed_answer_is_kept_that_a_later_read_refuses(kind, monkeypatch):
    monkeypatch.setattr(request_pool, "TRIES", 1)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found = fuzz(kind, 40)
    assert found.total() >= 30
    assert found["named"] > 0
    assert found["kept"] > 0 or kind == "refusal"


CHOICE = ("choices", 0)
ITEM = (*CHOICE, "logprobs", "content", 0)
TOP = (*CHOICE, "logprobs", "top_logprobs", 0, "a")
NAMED = [
    *(
        ("top", (*ITEM, "top_logprobs", 0, "logprob"), SET, p)
        for p in (math.nan, math.inf, 0.5, 10**400, "-1", True, None)
    ),
    ("top", (*ITEM, "top_logprobs", 1, "logprob"), SET, -0.1),  # with the other they add up to more than 1
    *(("top", (*ITEM, "bytes"), SET, given) for given in (3_000_000_000, [256], [-1], [0.5], ["a"], "a", {}, True)),
    *(("top", ITEM, SET, given) for given in (None, "a", 5, [], {})),
    *(("top", (*CHOICE, "logprobs"), SET, given) for given in ("a", 5, [], {"content": 5}, {"content": {"a": 1}})),
    *(("top of completions", TOP, SET, p) for p in (math.nan, 1e400, 10**400, [], "0")),
    ("top of completions", (*CHOICE, "logprobs", "tokens", 0), SET, "\ud800"),
    ("top of completions", (*CHOICE, "logprobs", "tokens", 0), SET, ["a"]),
    ("top of completions", (*CHOICE, "logprobs", "tokens", 0), DOUBLED, None),
    *(
        ("prompt", (*CHOICE, "prompt_logprobs", 3, 0), DOUBLED, i)
        for i in ("-7", " 7", "1_0", "٣", "007", "9" * 30, "x")
    ),
    ("prompt", (*CHOICE, "prompt_logprobs", 3), SET, None),
    ("prompt", (*CHOICE, "prompt_logprobs", 3), SET, []),
    ("prompt", (*CHOICE, "prompt_logprobs"), SET, "a"),
    ("prompt", (*CHOICE, "prompt_logprobs", 3, 0, "decoded_token"), SET, "a" * 100_000),
]
KEPT = [
    ("top", (*ITEM, "top_logprobs", 0, "logprob"), SET, -math.inf),
    ("top", (*ITEM, "top_logprobs", 0, "logprob"), SET, -(10**400)),
    ("top", (*ITEM, "token"), SET, "bytes:\\u4e00"),  # bytes tell what it is
    ("top of completions", (*CHOICE, "logprobs", "tokens", 0), SET, "bytes:\\u4e00"),
    ("top of completions", (*CHOICE, "logprobs", "tokens", 0), SET, "bytes: \\xe9"),
    ("prompt", (*CHOICE, "prompt_logprobs", 3, 0, "logprob"), SET, -math.inf),
    ("chat", ("usage",), SET, None),
    ("chat", ("usage", "prompt_tokens"), SET, 7.0),
]


@pytest.mark.parametrize(
    ("kind", "path", "how", "value", "expected"),
    [*((*one, "named") for one in NAMED), *((*one, "kept") for one in KEPT)],
)
def test_what_a_server_says_of_tokens_is_checked_before_it_is_kept(
    kind, path, how, value, expected, monkeypatch, tmp_path
):
    monkeypatch.setattr(request_pool, "TRIES", 1)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    ids = [*tokenizer()("red cat blue dog")["input_ids"]]
    if kind == "prompt" and len(path) > 4:
        path = (*path[:4], str(ids[3]), *path[5:])
    with hostile_server() as server:
        server.send = sends(json.dumps(changed(good_answer(kind, ids), path, how, value)))
        assert asked(kind, server, tmp_path, ids, 1) == expected


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("top", (*ITEM, "top_logprobs", 0, "token")),
        ("top", (*ITEM, "token")),
        ("top of completions", (*CHOICE, "logprobs", "tokens", 0)),
        ("prompt", (*CHOICE, "prompt_logprobs", 3, 0, "decoded_token")),
    ],
)
def test_a_key_among_the_tokens_of_an_answer_is_neither_kept_nor_shown(kind, path, monkeypatch, tmp_path):
    monkeypatch.setattr(request_pool, "TRIES", 1)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ids = [*tokenizer()("red cat blue dog")["input_ids"]]
    if kind == "prompt":
        path = (*path[:4], str(ids[3]), *path[5:])
    answer = changed(good_answer(kind, ids), path, SET, KEY)
    if path[-1] == "token":
        answer = changed(answer, (*path[:-1], "bytes"), SET, list(KEY.encode()))
    with hostile_server() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)  # so that it knows the key
        server.send = sends(json.dumps(answer))
        assert asked(kind, server, tmp_path, ids, 1) == "named"  # which looks for the key
