"""Log-probabilities in server responses: request fields and parsing.

There are two kinds. "prompt" (vLLM's `prompt_logprobs` on `/completions`) has the likeliest tokens at each token of a
text that was sent as token ids, "top" (OpenAI's `top_logprobs`, on `/completions` `logprobs`) at each token that the
model writes. Both are natural logarithms at temperature 1 over the server's whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..completions.store import JsonObject
from .answer_values import BYTES, bytes_in_words, check_total, checked_bytes, checked_id, checked_log_prob
from .request_pool import RetryableError

PROMPT, TOP = "prompt", "top"
MOST = {"chat": 20, "completions": 5}  # top log-probabilities that OpenAI gives at most
MALFORMED = (ValueError, KeyError, TypeError, AttributeError)


def prompt_request(ids: Sequence[int], k: int) -> JsonObject:
    """Return what asks for log-probabilities of given tokens; the one token that is written is not wanted."""
    return {"prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": k}


def top_fields(endpoint: str, k: int) -> JsonObject:
    """Return the fields with which a request also asks for log-probabilities of what is written."""
    return {"logprobs": True, "top_logprobs": k} if endpoint == "chat" else {"logprobs": k}


def read_prompt(choice: JsonObject, ids: Sequence[int], start: int, k: int) -> JsonObject | None:
    """Return the k likeliest tokens at each position of the ids sent, from `start` on; None if there are none at all.

    Returns:
        `ids` and `log_probs`, a list for each position, the likeliest first (empty if nothing comes before it), and
        `texts`, the text that the server has for each of these ids, if it says so.

    Raises:
        RetryableError: Log-probabilities of another text, or none that can be.
    """
    given = choice.get("prompt_logprobs")
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != len(ids):
        many = len(given) if isinstance(given, list) else 0
        raise RetryableError(f"log-probabilities of {many} tokens where {len(ids)} were sent")
    entry: JsonObject = {"ids": [], "log_probs": [], "texts": {}}
    for place in range(start, len(ids)):
        found: dict[int, float] = {}
        if given[place] is not None or place > 0:  # nothing comes before the first
            try:
                found = {checked_id(i): checked_log_prob(token["logprob"]) for i, token in given[place].items()}
                texts = {int(i): token.get("decoded_token") for i, token in given[place].items()}
            except MALFORMED as error:
                raise RetryableError(f"log-probabilities that are none ({type(error).__name__})") from None
            if ids[place] not in found:
                raise RetryableError(f"no log-probability of token {ids[place]}, which was sent")
            entry["texts"] |= {i: t for i, t in texts.items() if isinstance(t, str) and t and "�" not in t}
        ranked = sorted(found.items(), key=lambda pair: -pair[1])[:k]
        check_total([log_prob for _, log_prob in ranked])
        entry["ids"].append([i for i, _ in ranked])
        entry["log_probs"].append([log_prob for _, log_prob in ranked])
    return entry


def read_top(choice: JsonObject, k: int, *, chat: bool) -> JsonObject | None:
    """Return the tokens that a server wrote and the k likeliest at each of them; None if it gives none at all.

    Returns:
        `tokens` and `alternatives`: the bytes of each token as Latin-1 text (None if they are not known), and for each
        a list of such bytes with their log-probabilities.

    Raises:
        RetryableError: Lists that do not fit together, or log-probabilities that none can have.
    """
    given = choice.get("logprobs")
    if given is None:
        return None
    entry: JsonObject = {"tokens": [], "alternatives": []}
    try:
        items = given.get("content") if chat else _as_chat(given)
        for item in items or ():
            others = [(_latin(other), checked_log_prob(other["logprob"])) for other in item["top_logprobs"]]
            check_total([log_prob for _, log_prob in others])
            entry["tokens"].append(_latin(item))
            ranked = sorted(others, key=lambda pair: -pair[1])[
                : k + 1
            ]  # some give the token that they wrote in addition
            entry["alternatives"].append([(piece, log_prob) for piece, log_prob in ranked if piece is not None])
    except MALFORMED as error:
        raise RetryableError(f"log-probabilities that are none ({type(error).__name__})") from None
    return None if items is None else entry


def _as_chat(given: JsonObject) -> list[JsonObject] | None:
    """Return what `/completions` gives, which has no bytes, in the form of `/chat/completions`."""
    if given.get("tokens") is None or given.get("top_logprobs") is None:
        return None
    return [
        {"token": token, "top_logprobs": [{"token": t, "logprob": p} for t, p in (others or {}).items()]}
        for token, others in zip(given["tokens"], given["top_logprobs"], strict=True)
    ]


def _latin(item: JsonObject) -> str | None:
    """Return a token's bytes, each as one character of Latin-1; None if they are not known."""
    if item.get("bytes") is not None:
        return checked_bytes(item["bytes"]).decode("latin-1")
    token: str = item["token"]
    if token.startswith(BYTES):
        written = bytes_in_words(token)
        return None if written is None else written.decode("latin-1")
    return None if "�" in token else token.encode().decode("latin-1")
