"""Finds out what log-probabilities a server gives, by small requests, before anything costly is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import TeacherError
from ...prompts.shared_vocabulary import PROBE
from .http import Refused
from .logprob_format import MOST, PROMPT, TOP, for_prompt, for_top, read_prompt, read_top
from .request_pool import Answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# statuses that say that a server does not do what it was asked, not that it cannot be asked
UNKNOWN = (400, 405, 422, 501)
MOST_OF_PROMPTS = 20  # vLLM's own limit, where its operator has set no other
FEWEST = 5  # a limit of other servers
NEW_TOKENS = 8

Read = Callable[[dict[str, Any]], Any]
Once = Callable[[dict[str, Any], Read], Answer]


@dataclass(frozen=True)
class Found:
    """What a server gives.

    Attributes:
        kind: "prompt" or "top".
        k: Log-probabilities of a token.
    """

    kind: str
    k: int

    def text(self) -> str:
        """Say it as part of a line."""
        if self.kind == PROMPT:
            return f"it gives the {self.k} likeliest tokens at each token of a given completion (prompt_logprobs)"
        return f"it gives the {self.k} likeliest tokens at each token that it writes (top_logprobs)"


def find_prompt(once: Once, tokenizer: PreTrainedTokenizerBase, k: int) -> Found | str:
    """Return what a server tells of the tokens of a prompt, or why it tells nothing.

    Args:
        once: Sends a request and returns the answer.
        tokenizer: The student's, which must be the server's too.
        k: Tokens that are wanted.
    """
    ids = list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    said = ""
    for many in dict.fromkeys((k, min(k, MOST_OF_PROMPTS))):
        try:
            request = for_prompt(ids, many)
            entry = once(request, lambda choice, many=many: read_prompt(choice, ids, 0, many)).said  # type: ignore[misc]
        except Refused as error:
            if error.status != 404 and not _lacks_it(error):  # a server may have chats alone
                raise
            said = f"asked for prompt_logprobs it said {error.said!r}"
            continue
        if entry is None:
            return "asked for prompt_logprobs it gave none"
        other = differs(entry["texts"], tokenizer)
        if other is None and not entry["texts"]:
            other = "its prompt_logprobs do not tell which tokens they are of"
        return Found(PROMPT, many) if other is None else other
    return said


def find_top(once: Once, request: Mapping[str, Any], endpoint: str, k: int) -> Found | str:
    """Return what a server tells of the tokens that it writes, or why it tells nothing.

    Args:
        once: Sends a request and returns the answer.
        request: A question of few tokens.
        endpoint: "chat" or "completions".
        k: Tokens that are wanted.
    """
    said = ""
    most = min(k, MOST[endpoint])
    for many in dict.fromkeys((most, min(most, FEWEST))):
        try:
            asked = {**request, **for_top(endpoint, many)}
            entry = once(asked, lambda choice: read_top(choice, chat=endpoint == "chat")).said
        except Refused as error:
            if not _lacks_it(error):
                raise
            said = f"asked for top_logprobs it said {error.said!r}"
            continue
        return "asked for top_logprobs it gave none" if entry is None else Found(TOP, many)
    return said


def _lacks_it(error: Refused) -> bool:
    """Whether a server does not do what it was asked; OpenAI refuses some models' log-probabilities like a key."""
    return error.status in UNKNOWN or (error.status == 403 and "logprobs" in error.said)


def differs(texts: Mapping[int, str], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the first token that a server takes for another than the student does; None where it takes them alike.

    Servers show a token as its text or as the vocabulary writes it, with its space or without.

    Args:
        texts: What the server says, by id.
        tokenizer: The student's.
    """
    for index, text in texts.items():
        if index >= len(tokenizer):
            continue  # of rows that pad a vocabulary
        own = {str(tokenizer.decode([index])), str(tokenizer.convert_ids_to_tokens(index))}
        if not any("�" in one for one in own) and _bare(text) not in {_bare(one) for one in own}:
            return f"its tokenizer is not the student's: token {index} is {text!r} there and {min(own)!r} here"
    return None


def _bare(text: str) -> str:
    """Return a token's text without the signs of a space."""
    return text.strip(" ▁Ġ")


def check_same_tokens(texts: Mapping[int, str], tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
    """Refuse a server whose ids mean other tokens than the student's.

    Raises:
        TeacherError: Naming the first.
    """
    other = differs(texts, tokenizer)
    if other is not None:
        raise TeacherError(f"teacher_model {name!r} cannot score the student's tokens ({other}); choose another.")
