"""A prompt and the completion after it, to token ids.

A completion is tokenized once and appended to the tokens of each prompt, so that both sequences end in the same
ids, whatever the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .chat_template import ChatTemplate, Options
from .messages import Prompt
from .text_ids import cached_ids, special_texts, text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TAIL = 64  # characters at the end of a prompt that hold its last tokens


def tokenize_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, options: Options | None = None) -> list[int]:
    """Return the ids of a prompt, ready for a completion to be appended.

    Args:
        tokenizer: Of the model that reads the prompt.
        prompt: Text, tokenized with the special tokens the tokenizer adds in front (a closing end-of-sequence
            is removed); or chat messages, rendered by the chat template with the generation prompt.
        options: Keywords of the chat template.

    Raises:
        TemplateError: Chat messages, but the tokenizer has no chat template, or one that does not take them.
    """
    return prompt_ids(tokenizer, *ChatTemplate(tokenizer).render_prompt(prompt, options))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> list[int]:
    """Return the ids of a prompt's text; see `tokenize_prompt`.

    `special` says whether the tokenizer adds its special tokens; a beginning of sequence that the text has is not
    written twice.
    """
    ids = text_ids(tokenizer, text, special=special)
    if not special:
        return ids
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos] and text.startswith(str(tokenizer.bos_token)):
        ids = ids[1:]
    return without_closing(tokenizer, ids, text)


def without_closing(tokenizer: PreTrainedTokenizerBase, ids: list[int], prompt: str) -> list[int]:
    """Return a text prompt's ids without the end-of-sequence tokens that the tokenizer closes any text with."""
    while ids and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(str(tokenizer.eos_token)):
        if ids[-1] == tokenizer.bos_token_id and len(ids) == 1:
            break  # GPT-2's bos is its eos; as the only token it opens the sequence
        ids.pop()
    return ids


def tokenize_completion(
    tokenizer: PreTrainedTokenizerBase,
    completion: str,
    *,
    chat: bool = False,
    finished: bool = True,
    prompt: str | None = None,
) -> list[int]:
    """Return the ids of a completion, the token that ends it included; one that the text ends in is not written twice.

    Args:
        tokenizer: The student's tokenizer (the teacher's agrees, see `shared_vocabulary`).
        completion: The text.
        chat: Whether it is an assistant's turn: it then ends in the token that the chat template puts after
            a turn, which need not be the end-of-sequence token.
        finished: Whether it ends there; one that was cut gets no token that ends it.
        prompt: The prompt's text; None is no prompt.
    """
    ids = tokenize_after(tokenizer, completion, prompt=prompt)
    end = ChatTemplate(tokenizer).end.token if chat else tokenizer.eos_token_id
    if finished and end is not None and ids[-1:] != [end] and not _has_end(tokenizer, completion):
        ids.append(end)
    return ids


def _has_end(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether a text ends in a token that ends a sequence or a turn, white space after it left out."""
    text = text.rstrip()
    if not text.endswith(special_texts(tokenizer)):
        return False
    return text.endswith(tuple(str(tokenizer.decode([end])) for end in ChatTemplate(tokenizer).end_tokens))


def tokenize_after(tokenizer: PreTrainedTokenizerBase, text: str, *, prompt: str | None) -> list[int]:
    """Return the ids of a text after a prompt, without special tokens.

    SentencePiece writes a space before any text, but there is none after the prompt. A token that holds the
    end of the prompt and the beginning of the text is split at the text, since the prompt is served as it is.
    """
    for before in (_tail(tokenizer, prompt), "\n") if prompt and text else ():
        start, both = cached_ids(tokenizer, before), text_ids(tokenizer, before + text)
        if both[: len(start)] == start:
            return both[len(start) :]
    return text_ids(tokenizer, text)


def _tail(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """Return the end of a prompt from its last special token on, else its last newlines, else its last line.

    No token of what follows reaches back further.
    """
    tail = prompt[-TAIL:]
    special = max((tail.rfind(token) for token in special_texts(tokenizer)), default=-1)
    newlines = len(tail.rstrip("\n")) if tail.endswith("\n") else tail.rfind("\n")
    return tail[special if special >= 0 else max(newlines, 0) :]


def common_length(one: Sequence[object], other: Sequence[object]) -> int:
    """Return the length of the common prefix of two sequences (characters, token ids)."""
    least = min(len(one), len(other))
    return least if one[:least] == other[:least] else next(i for i in range(least) if one[i] != other[i])
