"""Good answers of a server, each changed in one or two places, asked for by a teacher and read again.

Whatever the change, the answer is kept and can be used, or the run ends with one sentence and nothing is kept.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from conftest import KEY
from hypothesis import HealthCheck, Phase, given, settings, strategies
from teachers.hostile import Hostile, completion, hostile_server, sends
from transformers import AutoTokenizer

from trl_distill import DistillError, load_teacher
from trl_distill.embedded import embedded_path
from trl_distill.models.generation import GenerationSettings
from trl_distill.teachers.completions.store import CompletionStore, JsonlStore
from trl_distill.teachers.remote.capabilities import LogprobSupport
from trl_distill.teachers.remote.request_pool import RemoteSettings

KINDS = ("chat", "completions", "top", "top of completions", "prompt", "refusal")
K = 2
NUMBERS = [0, -1, 1, 7, 0.5, -0.5, 3_000_000_000, 10**400, -(10**400), 1e400, -1e400, math.nan, -20_000.0]
TEXTS = [
    *(
        "",
        "x",
        "\ud800",
        "\udfff\ud800",
        "\x1b[2J",
        "bytes:\\u4e00",
        "bytes:\\xe9",
        "�",
        "length",
        "error",
        "content_filter",
    ),
    *("7", " 7", "-7", "1_0", "٣", "007"),
]
PARTS: list[object] = [
    *([], {}, [[]], [None], [256], [-1], [0.5], {"a": 1}, {"text": 5}, {"logprob": 0.0}, [3_000_000_000]),
    *([{"type": "text", "text": ["a"]}], [{"thinking": [{"text": "\ud800"}]}]),
]
VALUES = [None, True, False, *NUMBERS, *TEXTS, *PARTS]
SET, DELETED, DOUBLED, SWAPPED, DEEPER = "set", "deleted", "doubled", "swapped", "deeper"


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(embedded_path())


def good_answer(kind: str, ids: list[int]) -> dict[str, Any]:
    """Return an answer of a kind as a server gives it; `ids` are those that were sent, for the kind "prompt"."""
    item = {"token": "a", "logprob": -0.5, "bytes": [97]}
    other = {"token": "b", "logprob": -1.5, "bytes": [98]}
    if kind == "refusal":
        return {"error": {"message": "no", "type": "invalid_request_error", "code": "x", "param": "seed"}}
    answer = completion("aa")
    choice = answer["choices"][0]
    if kind == "top":
        choice["logprobs"] = {"content": [{**item, "top_logprobs": [item, other]}] * 2}
    if kind in ("completions", "top of completions"):
        choice.pop("message")
        choice["text"] = "aa"
    if kind == "top of completions":
        top = {"a": -0.5, "b": -1.5}
        choice["logprobs"] = {"tokens": ["a", "a"], "token_logprobs": [-0.5, -0.5], "top_logprobs": [top, dict(top)]}
    if kind == "prompt":
        choice["text"] = "a"
        choice["prompt_logprobs"] = [
            None if place == 0 else {str(i): {"logprob": -0.5, "rank": 1, "decoded_token": text_of(i)}}
            for place, i in enumerate(ids)
        ]
    return copied(answer)  # without parts in common


def copied(value: Any) -> Any:
    return json.loads(json.dumps(value))


def text_of(token: int) -> str:
    return str(tokenizer().decode([token]))


def paths_in(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """Return the path to each value of an answer."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if len(path) > 20:
        return
    for name, part in parts:
        yield from paths_in(part, (*path, name))


def changed(answer: object, path: tuple[object, ...], how: str, value: object) -> object:
    """Return an answer with one change."""
    root, value = copied(answer), copied(value)
    parent: Any = root
    for name in path[:-1]:
        parent = parent[name]
    name = path[-1]
    if how == SET:
        parent[name] = value
    elif how == DELETED:
        del parent[name]
    elif how == DEEPER:
        for _ in range(600):
            parent[name] = [parent[name]]
    elif isinstance(parent, list):
        parent[:] = [*parent, parent[name]] if how == DOUBLED else parent[::-1]
    else:
        parent[str(value)] = parent[name] if how == DOUBLED else parent.pop(name)
    return root


@strategies.composite
def changed_answers(draw: Any, kind: str, ids: list[int]) -> object:
    """Return a good answer with one or two changes, most of them of a value to another of its type."""
    answer: object = good_answer(kind, ids)
    for _ in range(draw(strategies.integers(1, 2))):
        paths = [path for path in paths_in(answer) if path]
        if not paths:  # all of it is deleted
            break
        path = draw(strategies.sampled_from(paths))
        how = draw(strategies.sampled_from([*[SET] * 8, DELETED, DOUBLED, SWAPPED, DEEPER]))
        values = TEXTS if how != SET else VALUES
        if how == SET and draw(strategies.integers(0, 3)):
            old: Any = answer
            for name in path:
                old = old[name]
            values = NUMBERS if isinstance(old, (int, float)) else TEXTS if isinstance(old, str) else PARTS
        answer = changed(answer, path, how, draw(strategies.sampled_from(values)))
    return answer


def asked(kind: str, server: Hostile, folder: Path, ids: list[int], split: int) -> str:
    """Have a teacher ask for an answer, check what is kept, and return what became of it."""
    endpoint = "completions" if "completions" in kind else "chat"
    remote = RemoteSettings(concurrency=1, timeout=20, endpoint=endpoint, top_k=K, reasoning="keep")
    store, logprobs = folder / "completions.jsonl", folder / "logprobs.jsonl"

    def teacher() -> Any:
        made = load_teacher(f"{server.url}#m", tokenizer=tokenizer(), remote=remote)
        made.logprobs.store = JsonlStore(logprobs)
        if kind.startswith("top") or kind == "prompt":
            made.logprobs.support = LogprobSupport(kind.split()[0], K)
        return made

    def use(one: Any) -> None:
        row = {"student_prompt": ids[:split], "teacher_prompt": ids[:split], "completion": ids[split:]}
        if kind != "prompt":
            how = GenerationSettings(max_new_tokens=8, stop=("zz",))
            (written,) = one.write(["hi"], how, store=CompletionStore(store), progress=False)
            own = [*tokenizer()(written.text or "")["input_ids"]]
            (written.text or "").encode(), written.reasoning.encode(), written.unusable.encode()
            row |= {"completion": own, "source": "teacher", "text": written.text, "whole": own, "prompt_json": '"hi"'}
        usage = one.server.usage
        assert isinstance(usage.tokens, int)
        assert min(usage.prompt_tokens, usage.completion_tokens) >= 0
        if one.logprobs.kind:
            one.fetch_targets([row], progress=False)
            for scored in one.logprobs._rows.values():
                check_row(scored)

    try:
        use(teacher())
    except DistillError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert len(said) < 700
        assert said.isprintable(), said
        assert KEY not in said
        assert not len(CompletionStore(store))
        assert not len(JsonlStore(logprobs))
        return "named"
    sent = len(server.requests)
    use(teacher())
    assert len(server.requests) == sent, "what was kept was asked for again"
    for path in folder.iterdir():
        for line in path.read_text().splitlines():
            json.loads(line, parse_constant=refuse)
    return "kept"


def check_row(scored: Any) -> None:
    """Check log-probabilities that a run would learn from."""
    assert np.isfinite(scored.log_probs).all()
    assert (scored.log_probs <= 1e-3).all()
    assert (np.exp(scored.log_probs, dtype=np.float64).sum(1) <= 1.01).all()
    assert scored.token_ids.min(initial=0) >= -1
    for row in scored.token_ids:
        known = row[row >= 0]
        assert len(set(known.tolist())) == len(known)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} was stored, which is not JSON")


def fuzz(kind: str, examples: int) -> Counter[str]:
    """Try changed answers of a kind, and count what became of them."""
    found: Counter[str] = Counter()
    ids = [*tokenizer()("red cat blue dog")["input_ids"]]
    with hostile_server() as server:

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=examples < 1000,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given(changed_answers(kind, ids))
        def check(answer: object) -> None:
            server.send = sends(json.dumps(answer), status="400 Bad Request" if kind == "refusal" else "200 OK")
            with tempfile.TemporaryDirectory() as folder:
                found[asked(kind, server, Path(folder), ids, 1)] += 1

        check()
    return found
