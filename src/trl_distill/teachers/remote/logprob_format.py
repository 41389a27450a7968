"""Log-probabilities as servers give them: what is asked for, and what is read out of an answer.

There are two kinds. "prompt" (vLLM's `prompt_logprobs` on `/completions`) tells of each token of a text that was sent
as token ids, "top" (OpenAI's `top_logprobs`, on `/completions` `logprobs`) of each token that the model writes. Both
are natural logarithms at temperature 1 over the server's whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .request_pool import Again

PROMPT, TOP = "prompt", "top"
MOST = {"chat": 20, "completions": 5}  # top log-probabilities that OpenAI gives at most
ROUNDING = 1e-3  # of a sum of probabilities


def for_prompt(ids: Sequence[int], k: int) -> dict[str, Any]:
    """Return what asks for log-probabilities of given tokens; the one token that is written is not wanted."""
    return {"prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": k}


def for_top(endpoint: str, k: int) -> dict[str, Any]:
    """Return what asks for log-probabilities of what is written, besides the request itself."""
    return {"logprobs": True, "top_logprobs": k} if endpoint == "chat" else {"logprobs": k}


def read_prompt(choice: dict[str, Any], ids: Sequence[int], start: int, k: int) -> dict[str, Any] | None:
    """Return the k likeliest tokens at each position from `start` on; None where the server gives none at all.

    Args:
        choice: Of the answer.
        ids: What was sent.
        start: The first position that is wanted.
        k: Tokens of each at most.

    Returns:
        `ids` and `log_probs`, a list for each position, the likeliest first (empty where nothing comes before it),
        and `texts`, what the server takes each of these ids for, where it says so.

    Raises:
        Again: Log-probabilities of another text, or none that can be.
    """
    given = choice.get("prompt_logprobs")
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != len(ids):
        many = len(given) if isinstance(given, list) else 0
        raise Again(f"log-probabilities of {many} tokens where {len(ids)} were sent")
    entry: dict[str, Any] = {"ids": [], "log_probs": [], "texts": {}}
    for place in range(start, len(ids)):
        if given[place] is None and place == 0:  # nothing comes before it
            entry["ids"].append([])
            entry["log_probs"].append([])
            continue
        try:
            found = {int(i): float(said["logprob"]) for i, said in given[place].items()}
            entry["texts"] |= {int(i): said["decoded_token"] for i, said in given[place].items() if _named(said)}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Again(f"log-probabilities that are none ({type(error).__name__})") from None
        if ids[place] not in found:
            raise Again(f"no log-probability of token {ids[place]}, which was sent")
        ranked = sorted(found.items(), key=lambda pair: -pair[1])[:k]
        _check([log_prob for _, log_prob in ranked])
        entry["ids"].append([i for i, _ in ranked])
        entry["log_probs"].append([log_prob for _, log_prob in ranked])
    return entry


def _named(said: Any) -> bool:
    """Whether a token's text is told, and is whole characters."""
    text = said.get("decoded_token")
    return isinstance(text, str) and bool(text) and "�" not in text


def read_top(choice: dict[str, Any], *, chat: bool) -> dict[str, Any] | None:
    """Return the tokens that a server wrote and the likeliest at each of them; None where it gives none at all.

    Returns:
        `tokens` and `alternatives`: the bytes of each token as Latin-1 text (None where they are not told), and for
        each a list of such bytes with their log-probabilities.

    Raises:
        Again: Lists that do not fit together, or log-probabilities that none can have.
    """
    given = choice.get("logprobs")
    if given is None:
        return None
    try:
        read = _chat(given) if chat else _completions(given)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Again(f"log-probabilities that are none ({type(error).__name__})") from None
    for alternatives in (alternatives for _, alternatives in read or ()):
        _check([log_prob for _, log_prob in alternatives])
    if read is None:
        return None
    return {"tokens": [token for token, _ in read], "alternatives": [list(others) for _, others in read]}


Read = list[tuple[str | None, list[tuple[str, float]]]]


def _chat(given: dict[str, Any]) -> Read | None:
    """Read the form of `/chat/completions`."""
    if given.get("content") is None:
        return None
    read: Read = []
    for item in given["content"]:
        others = [(_latin(other), float(other["logprob"])) for other in item["top_logprobs"]]
        read.append((_latin(item), [(piece, log_prob) for piece, log_prob in others if piece is not None]))
    return read


def _completions(given: dict[str, Any]) -> Read | None:
    """Read the form of `/completions`, which has no bytes."""
    if given.get("tokens") is None or given.get("top_logprobs") is None:
        return None
    read: Read = []
    for token, others in zip(given["tokens"], given["top_logprobs"], strict=True):
        pieces = [(_latin({"token": text}), float(log_prob)) for text, log_prob in (others or {}).items()]
        read.append((_latin({"token": token}), [(piece, p) for piece, p in pieces if piece is not None]))
    return read


def _latin(item: dict[str, Any]) -> str | None:
    """Return a token's bytes, each as one character of Latin-1; None where they are not known."""
    if item.get("bytes") is not None:
        return bytes(item["bytes"]).decode("latin-1")
    token = item["token"]
    if token.startswith("bytes:"):  # OpenAI's way to write a token that is no text
        return token.removeprefix("bytes:").encode().decode("unicode_escape")
    return None if "�" in token else token.encode().decode("latin-1")


def _check(log_probs: Sequence[float]) -> None:
    """Refuse what cannot be log-probabilities of distinct tokens.

    Raises:
        Again: One that is no number, or probabilities of more than 1.
    """
    total = sum(math.exp(min(p, 1.0)) for p in log_probs)
    if not total <= 1 + ROUNDING:  # a log-probability that is no number makes it none
        raise Again("log-probabilities that add up to more than 1")
