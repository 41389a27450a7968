"""Probe which log-probabilities a server returns, with small requests, before costly ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ...prompts.shared_vocabulary import PROBE
from ..completions.store import JsonObject
from .client import RefusedError, Server
from .logprob_format import MOST, PROMPT, prompt_request, read_prompt, read_top, top_fields

# statuses that say that a server does not do what it was asked, not that it cannot be asked
UNSUPPORTED = (400, 405, 422, 501)
MOST_OF_PROMPTS = 20  # vLLM's own limit, unless its operator has set another
FEWEST = 5  # a limit of other servers
NEW_TOKENS = 8
SPACES = " ▁Ġ"  # as texts and vocabularies write them


@dataclass(frozen=True)
class LogprobSupport:
    """The log-probabilities that a server returns.

    Attributes:
        kind: "prompt" or "top".
        k: Log-probabilities of a token.
    """

    kind: str
    k: int

    def describe(self) -> str:
        """Describe it, as part of a line."""
        where = "of a given completion" if self.kind == PROMPT else "that it writes"
        return f"it gives the {self.k} likeliest tokens at each token {where} ({self.kind}_logprobs)"


def probe(
    server: Server, kind: str, tokenizer: PreTrainedTokenizerBase, question: Mapping[str, object]
) -> LogprobSupport | str:
    """Return a server's support for a kind of log-probabilities, or why there is none.

    For the kind "prompt" the student's tokenizer must be the server's too; for "top", `question` asks for a few tokens.
    """
    endpoint, wanted = server.settings.endpoint, server.settings.top_k
    ids = list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    most = wanted if kind == PROMPT else min(wanted, MOST[endpoint])
    why = ""
    for k in dict.fromkeys((most, min(most, MOST_OF_PROMPTS if kind == PROMPT else FEWEST))):
        request = prompt_request(ids, k) if kind == PROMPT else {**question, **top_fields(endpoint, k)}

        def read(choice: JsonObject, k: int = k) -> JsonObject | None:
            return read_prompt(choice, ids, 0, k) if kind == PROMPT else read_top(choice, k, chat=endpoint == "chat")

        try:
            logprobs = server.send_one(request, read).logprobs
        except RefusedError as error:
            # a server may have chats alone; OpenAI refuses some models' log-probabilities like a key
            only_chats = kind == PROMPT and error.status == 404
            if not (only_chats or error.status in UNSUPPORTED or (error.status == 403 and "logprobs" in error.message)):
                raise
            why = f"asked for {kind}_logprobs it said {error.message!r}"
            continue
        if logprobs is None:
            return f"asked for {kind}_logprobs it gave none"
        other = other_token(logprobs["texts"], tokenizer) if kind == PROMPT else None
        if kind == PROMPT and not logprobs["texts"]:
            other = "its prompt_logprobs do not tell which tokens they are of"
        return LogprobSupport(kind, k) if other is None else other
    return why


def other_token(texts: Mapping[int, str], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Describe a token that the server's tokenizer reads differently; None if all agree.

    Servers show a token as its text or as the vocabulary writes it, with its space or without.
    """
    for index, text in texts.items():
        if index >= len(tokenizer):
            continue  # of rows that pad a vocabulary
        own = {str(tokenizer.decode([index])), str(tokenizer.convert_ids_to_tokens(index))}
        if not any("�" in one for one in own) and text.strip(SPACES) not in {one.strip(SPACES) for one in own}:
            return f"its tokenizer is not the student's: token {index} is {text!r:.60} there and {min(own)!r} here"
    return None
