"""What servers say in many words: how a completion ended, errors in answers, reasoning, parameters they do not take."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from trl_distill import DistillError, TeacherError, generate_with_teacher, load_teacher
from trl_distill.embedded import embedded_path
from trl_distill.models.generation import GenerationSettings
from trl_distill.teachers.completions.store import CompletionStore, JsonlStore
from trl_distill.teachers.remote import request_pool
from trl_distill.teachers.remote.request_pool import RemoteSettings

HOW = GenerationSettings(max_new_tokens=12)
ONE = RemoteSettings(concurrency=1, timeout=20)
PROMPTS = [f"Write the words in reverse order.\n{words}\n" for words in ("red cat", "blue dog", "tall tree")]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded_path())


@pytest.fixture
def ask(server, tokenizer, tmp_path, monkeypatch):
    """Return a function that has a fresh teacher write, with one store for the test."""
    monkeypatch.setattr(request_pool, "BACKOFF", 0.02)

    def write(prompts=PROMPTS[:1], remote=ONE, settings=HOW, spec=server.teacher):
        teacher = load_teacher(spec, tokenizer=tokenizer, remote=remote)
        return teacher.write(prompts, settings, store=CompletionStore(tmp_path / "store.jsonl"), progress=False)

    return write


def answered(server, message, end="stop", **more):
    """Have the server answer the next request with this message."""
    message = message if isinstance(message, dict) else {"content": message}
    server.fail({"kind": "body", "body": {"choices": [{"message": message, "finish_reason": end}], **more}})


@pytest.mark.parametrize("end", ["length", "max_tokens", "MAX_TOKENS", "model_length", "time_limit"])
def test_finish_reasons_for_a_limit_mark_a_cut_completion(end, ask, server):
    answered(server, "a b", end)
    assert [(c.text, c.finished) for c in ask()] == [("a b", False)]


@pytest.mark.parametrize(
    "end", ["stop", "eos", "eos_token", "stop_sequence", "end_turn", "STOP", "COMPLETE", None, "x"]
)
def test_other_finish_reasons_mark_a_finished_completion(end, ask, server):
    answered(server, "a b", end)
    assert [(c.text, c.finished) for c in ask()] == [("a b", True)]


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}], "a b", ""),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "b"}],
            "b",
            "hm",
        ),
        (["a ", {"text": "b"}, {"type": "image_url", "image_url": {"url": "x"}}], "a b", ""),
        ("<think>\nhm\n</think>\n\na b", "a b", "hm"),
        ("hm\n</think>\n\na b", "a b", "hm"),  # the chat template has opened the block
        ({"content": "\n\na b", "reasoning_content": "hm"}, "a b", "hm"),
        ({"content": "a b", "reasoning": "hm", "reasoning_details": [{"text": "hm"}]}, "a b", "hm"),
        ({"content": "\na b", "reasoning": None}, "\na b", ""),
        ("say <think> or <b>", "say <think> or <b>", ""),
    ],
)
def test_content_parts_are_joined_and_reasoning_is_separated(content, text, reasoning, ask, server):
    answered(server, content)
    kept = ask(remote=replace(ONE, reasoning="keep"))
    assert [(c.text, c.reasoning, c.unusable) for c in kept] == [(text, reasoning, "")]
    assert [(c.text, c.reasoning) for c in ask()] == [(text, "")]  # from the store: it is not paid again
    assert len(server.requests()) == 1


def test_one_line_says_that_reasoning_is_not_learned(ask, server, tokenizer, caplog):
    server.give(reasoning="hm")
    teacher = load_teacher(server.teacher, tokenizer=tokenizer, remote=ONE)
    with caplog.at_level(logging.WARNING, "trl_distill"):
        teacher.write(PROMPTS[:2], HOW, progress=False)
        teacher.write(PROMPTS[2:], HOW, progress=False)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "2 of 2 completions" in said
    assert "--teacher-reasoning keep" in said


@pytest.mark.parametrize(
    ("message", "end", "why"),
    [
        ("half an an", "content_filter", r"filtered the teacher's answer \(content_filter\)"),
        ("", "SAFETY", r"filtered the teacher's answer \(safety\)"),
        ({"content": None, "refusal": "no"}, "stop", "refused to answer"),
        ({"content": None, "tool_calls": [{}]}, "tool_calls", "called a tool"),
        ({"content": "", "reasoning_content": "hm"}, "length", "raise --distill-max-teacher-length"),
        ({"content": None, "reasoning": "hm"}, "stop", "reasoning only"),
        ("<think>\nhm", "length", "raise --distill-max-teacher-length"),
        ({"content": ""}, "stop", "the teacher's answer is empty"),
        ({}, "stop", "the teacher's answer is empty"),
        (" \n", "stop", "the teacher's answer is empty"),
    ],
)
def test_an_answer_of_which_nothing_can_be_learned_says_why_and_is_not_paid_twice(message, end, why, ask, server):
    answered(server, message, end)
    for _ in range(2):
        (completion,) = ask()
        assert re.search(why, completion.unusable)
    assert len(server.requests()) == 1


def test_hidden_reasoning_that_took_all_tokens_is_reported(ask, server):
    used = {"prompt_tokens": 5, "completion_tokens": 12, "completion_tokens_details": {"reasoning_tokens": 12}}
    answered(server, "", "length", usage=used)
    assert "raise --distill-max-teacher-length" in ask()[0].unusable


AZURE = {"message": "The response was filtered", "code": "content_filter", "innererror": {"code": "Resp"}}
FLAGGED = {"message": "flagged", "code": 403, "metadata": {"flagged_input": "red cat", "reasons": ["violence"]}}


@pytest.mark.parametrize(("status", "error"), [("400", AZURE), ("403", FLAGGED), ("body", FLAGGED)])
def test_a_prompt_that_a_server_filters_sets_its_row_aside_alone(status, error, ask, server):
    body = {"error": error}
    server.fail({"kind": status, "answer": body, "body": body})
    written = ask(PROMPTS[:2])
    assert "filtered" in written[0].unusable
    assert written[1].text
    assert written[1].unusable == ""
    assert ask(PROMPTS[:2]) == written
    assert len(server.requests()) == 2


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "upstream is down", "code": 502}},
        {"error": {"message": "rate limit", "code": "429"}},
        {"error": "upstream is down"},
        {"choices": [{"message": {"content": "half"}, "finish_reason": "error"}]},
        {"choices": [{"message": {"content": "half"}, "error": {"code": 503, "message": "down"}}]},
        {"choices": [{"message": {"content": "half"}, "finish_reason": "abort"}]},
        {"object": "error", "message": "engine is dead", "code": 500},
    ],
)
def test_an_error_in_an_answer_that_may_pass_is_asked_again(body, ask, server):
    server.fail({"kind": "body", "body": body}, {"kind": "body", "body": body})
    assert ask()[0].text
    assert len(server.requests()) == 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "no credit left", "code": 402}}, r"status 402 \(no credit left\); add credit"),
        ({"error": {"message": "no such model", "type": "not_found_error"}}, "no such model"),
        ([{"error": {"message": "bad argument", "status": "INVALID_ARGUMENT", "code": 400}}], "bad argument"),
        ({"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}, "too long"),
    ],
)
def test_an_error_in_an_answer_that_will_not_pass_is_a_sentence(body, said, ask, server):
    server.fail({"kind": "body", "body": body})
    with pytest.raises(TeacherError, match=said):
        ask()
    assert len(server.requests()) == 1


def test_a_lasting_error_is_reported_in_the_servers_words(ask, server):
    body = {"choices": [{"message": {}, "finish_reason": "error", "error": {"message": "the GPU is on fire"}}]}
    server.fail(*[{"kind": "body", "body": body}] * request_pool.TRIES)
    with pytest.raises(DistillError, match=r"the GPU is on fire \(6 tries\)"):
        ask()


OPENAI = {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
          "'max_completion_tokens' instead.", "param": "max_tokens", "code": "unsupported_parameter"}  # fmt: skip
PYDANTIC = {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}
GEMINI = [{"error": {"code": 400, "message": 'Invalid JSON payload received. Unknown name "seed": Cannot find field.'}}]
VALUE = {"message": "Unsupported value: 'temperature' does not support 0.7 with this model.", "param": "temperature"}


@pytest.mark.parametrize(
    ("name", "said", "instead"),
    [
        ("max_tokens", {"error": OPENAI}, "max_completion_tokens"),
        ("max_tokens", {"error": {"message": OPENAI["message"]}}, "max_completion_tokens"),
        ("seed", PYDANTIC, None),
        ("seed", GEMINI, None),
        ("seed", {"error": {"message": "Unrecognized request argument supplied: seed"}}, None),
        ("temperature", {"error": VALUE}, None),
    ],
)
def test_a_parameter_that_a_server_does_not_take_is_left_out_for_the_run(name, said, instead, ask, server, caplog):
    server.give(lacks={name: said})
    drawn = GenerationSettings(max_new_tokens=3, do_sample=True, temperature=0.7, top_p=0.9)
    with caplog.at_level(logging.WARNING, "trl_distill"):
        written = ask(PROMPTS, settings=drawn)
    assert all(c.text and not c.unusable for c in written)
    sent = [r["request"] for r in server.requests()]
    assert [name in request for request in sent] == [True, False, False, False]
    assert instead is None or [request.get(instead) for request in sent] == [None, 3, 3, 3]
    assert all("top_p" in request for request in sent)
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"does not accept {name}" in line


def test_a_server_that_takes_neither_name_of_the_limit_is_a_sentence(ask, server):
    other = {"error": {**OPENAI, "param": "max_completion_tokens"}}
    server.give(lacks={"max_tokens": {"error": OPENAI}, "max_completion_tokens": other})
    with pytest.raises(TeacherError, match="Unsupported parameter"):
        ask()
    assert len(server.requests()) == 2


def test_a_400_about_a_parameters_value_is_not_retried(ask, server):
    said = "max_tokens is too large: 12. This model supports at most 8 completion tokens."
    server.fail({"kind": "400", "answer": {"error": {"message": said, "param": "max_tokens"}}})
    with pytest.raises(TeacherError, match="too large"):
        ask()
    assert len(server.requests()) == 1


def test_an_error_of_a_model_without_chat_suggests_the_completions_endpoint(ask, server):
    said = "This is not a chat model. Did you mean to use v1/completions?"
    server.fail({"kind": "404", "said": said})
    with pytest.raises(TeacherError, match="give --teacher-endpoint completions"):
        ask()


def test_settling_a_store_keeps_the_reasoning_of_completions(ask, server, tmp_path):
    server.give(reasoning="hm")
    store = CompletionStore(tmp_path / "store.jsonl")
    first = ask(remote=replace(ONE, reasoning="keep"))
    store = CompletionStore(tmp_path / "store.jsonl")
    store.settle()
    assert ask(remote=replace(ONE, reasoning="keep")) == first
    assert first[0].reasoning == "hm"
    assert len(server.requests()) == 1


def test_rows_for_later_hold_the_reasoning_that_is_kept_and_nothing_that_cannot_be_learned(server):
    server.fail({"kind": "body", "body": {"choices": [{"message": {"content": "x"}, "finish_reason": "safety"}]}})
    server.give(reasoning="hm")
    remote = replace(ONE, reasoning="keep")
    rows = generate_with_teacher(server.teacher, "{input}", PROMPTS[:2], max_new_tokens=12, remote=remote)
    assert rows[0]["completion"] == ""
    assert rows[1]["completion"].startswith("<think>\nhm\n</think>\n\n")


def matched(server, tokenizer, tmp_path, reasoning):
    """Return what is known of a completion that was written with log-probabilities, and its ids."""
    from trl_distill.prompts.messages import with_reasoning
    from trl_distill.prompts.tokenization import tokenize_completion

    remote = replace(ONE, top_k=5, reasoning=reasoning)
    teacher = load_teacher(server.teacher, tokenizer=tokenizer, remote=remote)
    teacher.restrict_vocabulary(len(tokenizer))
    teacher.probe("top", JsonlStore(tmp_path / "logprobs.jsonl"))
    (written,) = teacher.write(PROMPTS[:1], HOW, progress=False)
    text = with_reasoning(written.text, written.reasoning) if written.reasoning else written.text
    ids = tokenize_completion(tokenizer, text, chat=True, finished=written.finished)
    row = {"student_prompt": [5], "teacher_prompt": [5], "completion": ids, "source": "teacher", "whole": ids}
    row["text"] = written.text
    coverage = teacher.fetch_targets([{**row, "prompt_json": json.dumps(PROMPTS[0])}], progress=False)
    return coverage, ids


def test_logged_tokens_that_begin_with_reasoning_are_matched_at_their_end(server, tokenizer, tmp_path):
    server.give("top")
    plain, ids = matched(server, tokenizer, tmp_path, "drop")
    assert plain.known == len(ids) - 1  # its server tells nothing of the end
    server.give("top", reasoning="hm red cat")
    after = matched(server, tokenizer, tmp_path / "more", "drop")
    assert after == (plain, ids)
    kept, longer = matched(server, tokenizer, tmp_path / "more", "keep")
    assert longer[-len(ids) :] == ids
    assert kept.known == plain.known + 2  # " red" and " cat" are tokens of both, "hm" is not
