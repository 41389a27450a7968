"""Stop strings: texts that end a completion if no token does, such as the next "Message:" of a base model.

They are searched for in the completion only, not across the end of the prompt. Generation ends soon after the first of
them, and the completion is cut in front of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from ...models.generation import Completion
from ...prompts.tokenization import tokenize_after

FRONT = "a"  # stands for the prompt
SLACK = 8  # tokens looked at beyond a stop string's bytes: some have no text


def cut_text(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return a text up to the first stop string in it, and whether there is one."""
    places = [place for place in map(text.find, stop) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


def cut_at_string(
    completion: Completion, stop: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, end: int
) -> Completion:
    """Return a completion up to the first stop string in its text, finished by the token `end`; else as it is.

    If a token holds the beginning of the stop string and what comes before it, the text that is left is tokenized
    again.
    """
    ids = completion.without_end
    text, found = cut_text(_text(tokenizer, ids), stop)
    if not found:
        return completion
    for kept in range(len(ids), -1, -1):
        before = _text(tokenizer, ids[:kept])
        if before == text:
            return Completion((*ids[:kept], end), True)
        if len(before) < len(text):
            break
    return Completion((*tokenize_after(tokenizer, text, prompt=FRONT), end), True)


def stopping(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], *, start: int) -> dict[str, Any]:
    """Return the arguments with which `generate` ends at a stop string behind its first `start` tokens, if any."""
    return {"stopping_criteria": StoppingCriteriaList([_AtString(tokenizer, stop, start)])} if stop else {}


class _AtString(StoppingCriteria):
    """Ends the rows whose completion has a stop string; transformers' own criterion reads the prompt too."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], start: int) -> None:
        self.tokenizer, self.stop, self.start = tokenizer, stop, start
        self.window = max(len(text.encode()) for text in stop) + SLACK

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Return which rows [B] end; the last tokens are looked at first, since whole completions are long."""
        written = input_ids[:, self.start :].tolist()
        ended = [
            cut_text(_text(self.tokenizer, row[-self.window :]), self.stop)[1]
            and cut_text(_text(self.tokenizer, row), self.stop)[1]
            for row in written
        ]
        return torch.tensor(ended, device=input_ids.device)  # type: ignore[return-value]


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of token ids as it stands behind a prompt, special tokens and a space in front of it included."""
    how: Any = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    front = list(tokenizer(FRONT, add_special_tokens=False)["input_ids"])
    before, whole = str(tokenizer.decode(front, **how)), str(tokenizer.decode([*front, *ids], **how))
    return whole[len(before) :] if whole.startswith(before) else str(tokenizer.decode(list(ids), **how))
