"""Token ids of one text, and the texts of special tokens, without what a tokenizer does around its backend."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CACHED = 256  # texts whose ids are cached
_ids: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[int, str], list[int]]] = WeakKeyDictionary()
_specials: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, tuple[str, ...]]] = WeakKeyDictionary()


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    """Return a text's ids, as `tokenizer(text, add_special_tokens=special)` has them, in three quarters of its time.

    A tokenizer with a call of its own, or that truncates or pads, is called.
    """
    kind: type = type(tokenizer)
    if _is_plain(kind):
        backend = tokenizer.backend_tokenizer
        as_it_is = backend.truncation is None and backend.padding is None
        if as_it_is and backend.encode_special_tokens == tokenizer.split_special_tokens:
            return list(backend.encode(text, add_special_tokens=special).ids)
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def cached_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text that many rows have, such as the end of their prompts; see `text_ids`."""
    known = _ids.setdefault(tokenizer, {})
    key = len(tokenizer), text
    if key not in known:
        if len(known) >= CACHED:
            known.clear()
        known[key] = text_ids(tokenizer, text)
    return known[key]


def special_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the texts of special and added tokens; making the list takes longer than tokenizing a text."""
    size = len(tokenizer)
    known = _specials.get(tokenizer)
    if known is None or known[0] != size:
        texts = (*tokenizer.all_special_tokens, *tokenizer.get_added_vocab())
        known = _specials[tokenizer] = size, tuple(dict.fromkeys(text for text in texts if text))
    return known[1]


@cache
def _is_plain(kind: type) -> bool:
    """Whether a class of tokenizers hands a text to its backend as it is."""
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    own = getattr(kind, "_encode_plus", None)
    return kind.__call__ is PreTrainedTokenizerBase.__call__ and own is PreTrainedTokenizerFast._encode_plus
