"""A server's log-probabilities as targets: what they are, how they match, and what is asked, kept and refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_tokenizer
from every_template import USER, tokenizer_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trl_distill import DistillError, TeacherError, load_teacher
from trl_distill.data.collator import DistillationCollator
from trl_distill.data.cross_tokenizer.token_bytes import token_bytes
from trl_distill.embedded import embedded_path
from trl_distill.losses import LMHead
from trl_distill.models.generation import GenerationSettings
from trl_distill.prompts.assistant_turn import ChatTurns
from trl_distill.prompts.shared_vocabulary import PROBE
from trl_distill.prompts.tokenization import tokenize_after, tokenize_completion, tokenize_prompt
from trl_distill.teachers.completions.store import CompletionStore, JsonlStore
from trl_distill.teachers.remote import request_pool
from trl_distill.teachers.remote.byte_matching import ByteMatcher
from trl_distill.teachers.remote.request_pool import RemoteSettings

K = 6
ONE = RemoteSettings(endpoint="completions", concurrency=1, timeout=20, top_k=K)
WORDS = ["red cat", "blue dog moon", "tall tree", "sun", "old green house", "river stone"]
PROMPTS = [f"Write the words in reverse order.\n{words}\n" for words in WORDS]
HOW = GenerationSettings(max_new_tokens=12)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded_path())


@pytest.fixture
def teacher_of(server, tmp_path, monkeypatch):
    """Return a function that makes a fresh teacher which has found out what the server gives."""
    monkeypatch.setattr(request_pool, "BACKOFF", 0.02)

    def make(tokenizer, wanted="auto", remote=ONE):
        teacher = load_teacher(server.teacher, tokenizer=tokenizer, remote=remote)
        teacher.restrict_vocabulary(len(tokenizer))
        teacher.reasons = teacher.probe(wanted, JsonlStore(tmp_path / "logprobs.jsonl"))
        return teacher

    return make


def rows_of(tokenizer, completions=WORDS):
    """Return prepared rows whose completions are the data's."""
    prompts = [tokenize_prompt(tokenizer, prompt) for prompt in PROMPTS]
    return [
        {"student_prompt": p, "teacher_prompt": p, "completion": tokenize_completion(tokenizer, c), "source": "data"}
        for p, c in zip(prompts, completions, strict=True)
    ]


def score(teacher, rows):
    return teacher.score(DistillationCollator(pad_token_id=0)(rows))


def scored(server):
    """Return the sequences of ids that the server has answered for, but for what finds out what it can do."""
    return [tuple(prompt) for prompt in server.answered() if isinstance(prompt, list)]


def test_prompt_log_probabilities_equal_the_models_own(teacher_of, server, tokenizer):
    server.give("prompt")
    teacher = teacher_of(tokenizer)
    rows = rows_of(tokenizer)
    coverage = teacher.fetch_targets([*rows, rows[0]], progress=False)
    assert coverage.fraction == 1
    mine = score(teacher, rows)
    local = load_teacher("embedded", dtype="float32")
    local.restrict_vocabulary(len(tokenizer))
    said = score(local, rows)
    expected, ids = LMHead(said.head.weight).logits(said.hidden).log_softmax(-1).topk(K)
    assert mine.known.all()
    for row, values, theirs, others in zip(mine.token_ids, mine.log_probs, ids, expected, strict=True):
        got = dict(zip(row.tolist(), values.tolist(), strict=True))  # two of nearly one value may change places
        assert got == pytest.approx(dict(zip(theirs.tolist(), others.tolist(), strict=True)), abs=1e-4)
    assert len(scored(server)) == 1 + len(rows)  # equal rows are asked once
    paths = {r["path"] for r in server.requests()}
    assert paths == {"/v1/completions"}


def test_log_probabilities_are_requested_up_to_the_servers_limit(teacher_of, server, tokenizer):
    server.give("prompt", most=20)
    teacher = teacher_of(tokenizer, remote=replace(ONE, top_k=64))
    assert "the 20 likeliest tokens at each token of a given completion" in teacher.describe()
    assert [r["request"]["prompt_logprobs"] for r in server.requests()] == [64, 20]
    server.give("top", most=5)
    teacher = teacher_of(tokenizer, "top", remote=replace(ONE, top_k=64, endpoint="chat"))
    assert "the 5 likeliest tokens at each token that it writes" in teacher.describe()


def test_a_servers_capabilities_are_probed_once(teacher_of, server, tokenizer):
    server.give("prompt", "top")
    assert teacher_of(tokenizer).reads_ids
    assert len(server.requests()) == 1
    assert teacher_of(tokenizer).reads_ids
    assert not teacher_of(tokenizer, "top").reads_ids
    assert len(server.requests()) == 2


def test_a_server_of_another_tokenizer_scores_no_ids(teacher_of, server):
    server.give("prompt", "top")
    other = make_tokenizer()
    (reason,) = teacher_of(other, "prompt").reasons
    assert "its tokenizer is not the student's: token" in reason
    assert "at each token that it writes" in teacher_of(other).describe()


def test_token_ids_without_their_text_are_not_trusted(teacher_of, server, tokenizer):
    ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    untold = [None, *({str(i): {"logprob": -1.0}} for i in ids[1:])]
    server.fail({"kind": "change", "name": "prompt_logprobs", "how": untold})
    (reason,) = teacher_of(tokenizer, "prompt").reasons
    assert reason == "its prompt_logprobs do not tell which tokens they are of"


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "429", "headers": {"Retry-After": "0.2"}},
        {"kind": "500"},
        {"kind": "cut"},
        {"kind": "malformed"},
        {"kind": "change", "name": "prompt_logprobs", "how": "shorten"},
        {"kind": "change", "name": "prompt_logprobs", "how": "text"},
        {"kind": "change", "name": "prompt_logprobs", "how": None},
        {"kind": "hang", "seconds": 1.2},
    ],
    ids=lambda fault: fault["kind"] + str(fault.get("how", "")),
)
def test_temporary_errors_are_retried_for_log_probabilities(fault, teacher_of, server, tokenizer):
    server.give("prompt")
    teacher = teacher_of(tokenizer, remote=replace(ONE, timeout=0.6) if fault["kind"] == "hang" else ONE)
    server.fail(None, fault, fault)
    server.give("prompt")
    rows = rows_of(tokenizer)
    assert teacher.fetch_targets(rows, progress=False).fraction == 1
    assert len(server.requests()) == len(rows) + 2
    assert set(scored(server)) == {(*row["teacher_prompt"], *row["completion"]) for row in rows}


def test_a_server_that_gives_up_half_way_loses_nothing(teacher_of, server, tokenizer, tmp_path):
    server.give("prompt")
    teacher = teacher_of(tokenizer)
    rows = rows_of(tokenizer)
    server.fail(None, None, {"kind": "die"})
    server.give("prompt")
    with pytest.raises(DistillError, match=r"no usable answer.*2 of 6 scored completions are kept in") as error:
        teacher.fetch_targets(rows, progress=False)
    assert error.value.exit_code == 1
    server.revive()
    torn = (tmp_path / "logprobs.jsonl").read_bytes()
    (tmp_path / "logprobs.jsonl").write_bytes(torn + b'{"key": "half of a li')  # as a kill leaves it
    again = teacher_of(tokenizer)
    assert again.fetch_targets(rows, progress=False).fraction == 1
    sent = [(*row["teacher_prompt"], *row["completion"]) for row in rows]
    assert sorted(scored(server)) == sorted(sent)  # nothing is asked twice
    assert len(JsonlStore(tmp_path / "logprobs.jsonl")) == 1 + len(rows)
    assert torch.equal(score(again, rows).log_probs, score(again, rows).log_probs)


def test_a_server_that_fails_when_it_is_tested_can_be_asked_for_text_alone(teacher_of, server, tokenizer):
    server.fail(*[{"kind": "500"}] * request_pool.TRIES)
    with pytest.raises(DistillError, match=r"\(6 tries\)\. Run .* to resume, or give --teacher-logprobs none to learn"):
        teacher_of(tokenizer)


def test_a_budget_that_a_test_of_the_server_spends_is_said_to_be_too_small(teacher_of, tokenizer):
    with pytest.raises(
        DistillError, match=r"--teacher-max-requests 1\) before .*; give a larger one, or give --teacher-l"
    ):
        teacher_of(tokenizer, remote=replace(ONE, max_requests=1))


def test_invalid_log_probabilities_end_the_run(teacher_of, server, tokenizer):
    server.give("prompt")
    teacher = teacher_of(tokenizer)
    wrong = {"kind": "change", "name": "prompt_logprobs", "how": [None, {"5": {"logprob": 0.5}}]}
    server.fail(None, *[wrong] * request_pool.TRIES)
    server.give("prompt")
    with pytest.raises(DistillError, match=r"log-probabilities of 2 tokens where \d+ were sent \(6 tries\); 1 of 6"):
        teacher.fetch_targets(rows_of(tokenizer), progress=False)


def test_budgets_are_over_all_that_a_run_asks(teacher_of, server, tokenizer):
    server.give("prompt")
    rows = rows_of(tokenizer)
    with pytest.raises(DistillError, match=r"--teacher-max-requests 3\): 2 of 6 scored completions are kept"):
        teacher_of(tokenizer, remote=replace(ONE, max_requests=3)).fetch_targets(rows, progress=False)
    again = teacher_of(tokenizer, remote=replace(ONE, max_requests=4))  # what it gives is known by now
    assert again.fetch_targets(rows, progress=False).fraction == 1
    assert len(server.requests()) == 1 + len(rows)


def test_a_budget_of_money_ends_requests_and_the_next_run_resumes(teacher_of, server, tokenizer):
    server.give("prompt")
    rows = rows_of(tokenizer)
    priced = replace(ONE, price_input=1_000_000.0, price_output=3_000_000.0)  # a token of a prompt costs 1
    first = len(rows[0]["teacher_prompt"]) + len(rows[0]["completion"]) + 3
    teacher_of(tokenizer)
    server.fail()
    server.give("prompt")
    with pytest.raises(DistillError, match=r"at a cost of [\d.]+ reach --teacher-max-cost .*: 1 of 6 scored") as error:
        teacher_of(tokenizer, remote=replace(priced, max_cost=float(first))).fetch_targets(rows, progress=False)
    assert f"{first:,.4f}" in str(error.value)
    assert error.value.exit_code == 1
    teacher_of(tokenizer, remote=replace(priced, max_cost=1e9)).fetch_targets(rows, progress=False)
    assert len(server.requests()) == len(rows)


def test_a_server_that_counts_no_tokens_cannot_keep_a_budget_of_money(teacher_of, server, tokenizer):
    server.fail({"kind": "body", "body": {"choices": [{"text": "", "finish_reason": "stop"}]}})
    with pytest.raises(TeacherError, match="does not report the tokens"):
        teacher_of(tokenizer, remote=replace(ONE, price_input=1.0, price_output=1.0, max_cost=1.0))


# what is said while the server writes


def small_bpe():
    """Return a byte-level tokenizer that was trained on a few of the words, so that it splits others in pieces."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<end>"], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    backend.train_from_iterator(["cat red cat", "moon dog blue", "house green", "tree tall"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")


def written_rows(teacher, tokenizer):
    """Return prepared rows whose completions the teacher writes."""
    written = teacher.write(PROMPTS, HOW, progress=False)
    ids = [tokenize_completion(tokenizer, c.text, finished=c.finished) for c in written]
    rows = rows_of(tokenizer, [c.text for c in written])
    return [
        {**row, "completion": i, "whole": i, "text": c.text, "source": "teacher", "prompt_json": json.dumps(p)}
        for row, p, i, c in zip(rows, PROMPTS, ids, written, strict=True)
    ]


def expected(tokenizer, text, endpoint):
    """Return what is known of a completion, by a way of its own: {student's position: {bytes: probability}}.

    The teacher's tokens are cut at their character offsets, and so are the student's.
    """
    teacher = load_teacher("embedded", dtype="float32")
    theirs = teacher.tokenizer
    prompt = PROMPTS[0] if endpoint == "completions" else [{"role": "user", "content": PROMPTS[0]}]
    before = tokenize_prompt(theirs, prompt)
    ids = teacher.generate([before], HOW)[0].ids
    with torch.no_grad():
        logits = teacher.model(torch.tensor([[*before, *ids]])).logits[0, len(before) - 1 : -1]
    probabilities = logits.float().softmax(-1)
    words = [theirs.convert_ids_to_tokens(i).replace("Ġ", " ") for i in ids]
    starts, place = {}, -1 if "".join(words).startswith(" " + text) else 0  # a space in front is not in the text
    for n, (word, token) in enumerate(zip(words, ids, strict=True)):
        if token in teacher.stop_ids:
            break
        starts[(place, place + len(word))] = n
        place += len(word)
    offsets = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    k = K if endpoint == "chat" else 5
    found = {}
    for position, span in enumerate(offsets):
        if tuple(span) in starts:
            top = probabilities[starts[tuple(span)]].topk(k)
            found[position] = {
                theirs.convert_ids_to_tokens(i).replace("Ġ", " ").replace("Ċ", "\n"): p
                for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            }
    return found


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_what_it_writes_is_matched_to_other_tokens_by_their_bytes(endpoint, teacher_of, server):
    student = small_bpe()
    server.give("top")
    teacher = teacher_of(student, remote=replace(ONE, endpoint=endpoint))
    rows = written_rows(teacher, student)
    coverage = teacher.fetch_targets(rows, progress=False)
    assert 0 < coverage.known < coverage.tokens
    assert len(server.requests()) == 2 + len(rows)
    targets = score(teacher, rows[:1])
    text = student.decode(rows[0]["completion"], skip_special_tokens=True)
    known = expected(student, text, endpoint)
    assert known
    assert [n for n, yes in enumerate(targets.known.tolist()) if yes] == sorted(known)
    table = token_bytes(student)
    for position, alternatives in known.items():
        ids = targets.token_ids[position]
        got = {
            table[i].decode(): p
            for i, p in zip(ids.tolist(), targets.log_probs[position].exp().tolist(), strict=True)
            if i >= 0
        }
        assert targets.token_ids[position, 0] >= 0
        pieces = {piece.decode(errors="replace") for piece in table if piece}
        shared = {piece: p for piece, p in alternatives.items() if piece in pieces}
        assert got == pytest.approx(shared, rel=1e-3)  # what the student has no token for is left to the tail
    assert any(len(known[position]) > int((targets.token_ids[position] >= 0).sum()) for position in known)


def test_with_the_servers_own_tokens_all_that_it_writes_is_known(teacher_of, server, tokenizer):
    server.give("top")
    teacher = teacher_of(tokenizer, remote=replace(ONE, endpoint="chat"))
    rows = written_rows(teacher, tokenizer)
    coverage = teacher.fetch_targets(rows, progress=False)
    ends = sum(row["completion"][-1] == tokenizer.eos_token_id for row in rows)
    assert ends > 0
    assert coverage.tokens - coverage.known == ends  # the server reports nothing for the end


def test_of_the_datas_own_completions_nothing_is_known(teacher_of, server, tokenizer):
    server.give("top")
    teacher = teacher_of(tokenizer)
    asked = len(server.requests())
    rows = rows_of(tokenizer)
    assert teacher.fetch_targets(rows, progress=False).known == 0
    assert not score(teacher, rows).known.any()
    assert len(server.requests()) == asked


def test_what_was_written_without_is_asked_for_and_what_was_written_with_is_not(
    teacher_of, server, tokenizer, tmp_path
):
    server.give("top")
    path = tmp_path / "completions.jsonl"
    plain = load_teacher(server.teacher, tokenizer=tokenizer, remote=ONE)
    plain.write(PROMPTS[:2], HOW, store=CompletionStore(path), progress=False)
    teacher = teacher_of(tokenizer)
    server.fail()
    server.give("top")
    first = teacher.write(PROMPTS, HOW, store=CompletionStore(path), progress=False)
    assert sorted(server.answered()) == sorted(PROMPTS)
    path.unlink()  # as if a kill had come before the completion was written down
    again = teacher_of(tokenizer).write(PROMPTS, HOW, store=CompletionStore(path), progress=False)
    assert again == first
    assert len(CompletionStore(path)) == len(PROMPTS)
    assert len(server.requests()) == len(PROMPTS)


def test_log_probabilities_that_do_not_fit_are_asked_again(teacher_of, server, tokenizer):
    server.give("top")
    teacher = teacher_of(tokenizer)
    broken = {"tokens": [" a", " b"], "top_logprobs": [{" a": -0.1}]}
    server.fail(*({"kind": "change", "name": "logprobs", "how": how} for how in (broken, "text", {"tokens": [3]})))
    server.give("top")
    rows = written_rows(teacher, tokenizer)
    assert teacher.fetch_targets(rows, progress=False).known > 0
    assert len(server.requests()) == 3 - 1 + len(rows)  # what has no top_logprobs is an answer that tells nothing


def entry(text, *tokens, finished=True):
    """Return what a server said: each token sure of itself, with "x" as its alternative."""
    latin = [token.decode("latin-1") for token in tokens]
    return {
        "text": text, "finished": finished, "tokens": latin,
        "alternatives": [[[token, -0.1], ["x", -3.0]] for token in latin],
    }  # fmt: skip


def test_split_characters_and_the_end_are_matched_by_bytes(tokenizer):
    tokenizer = make_tokenizer()
    matcher = ByteMatcher(token_bytes(tokenizer), len(tokenizer))
    text = "é b"
    completion = tokenize_completion(tokenizer, text)
    pieces = [token_bytes(tokenizer)[i] for i in completion[:-1]]
    whole = matcher.match(entry(text, *pieces, b"<eot>"), completion)
    assert whole.known.all()
    assert whole.token_ids[:, 0].tolist() == completion  # its end is the student's, whatever it is called
    assert matcher.match(entry(text, "é".encode(), b" b"), completion).known.tolist() == [False, False, True, False]
    assert matcher.match(entry("another", b"another"), completion).known.sum() == 0
    assert matcher.match(entry(text, *pieces, b"<eot>", finished=False), completion).known.tolist()[-1] is False


@pytest.mark.parametrize("name", ["llama3", "qwen3_5_think"])
@pytest.mark.parametrize("text", ["red", "\n\n red", "red \n", " red\n"])
def test_white_space_that_the_students_chat_template_trims_costs_no_other_token(name, text):
    tokenizer = tokenizer_of(name)
    turn = ChatTurns(tokenizer).last([USER, {"role": "assistant", "content": text}], {}, where="row 1")
    completion = tokenize_after(tokenizer, turn.learned, prompt=turn.prompt)
    said = entry(text, *(character.encode() for character in text), b"<eot>")
    found = ByteMatcher(token_bytes(tokenizer), len(tokenizer)).match(said, completion)
    first = completion.index(tokenizer.convert_tokens_to_ids("r"))
    ended = text == text.rstrip()  # the teacher ends behind the white space, which the student does not read
    assert found.known[first:].tolist()[:4] == [True, True, True, ended]
    assert found.token_ids[first : first + 3, 0].tolist() == completion[first : first + 3]
    assert not found.known[: max(first - 2, 0)].any()


def test_probabilities_of_alternatives_with_equal_bytes_add_up():
    tokenizer = make_tokenizer()
    matcher = ByteMatcher(token_bytes(tokenizer), len(tokenizer))
    said = entry("a", b"a")
    said["alternatives"] = [[["a", float(np.log(0.5))], ["b", float(np.log(0.2))], ["a", float(np.log(0.1))]]]
    row = matcher.match(said, tokenizer("a")["input_ids"])
    assert np.exp(row.log_probs[0]).tolist() == pytest.approx([0.6, 0.2])
