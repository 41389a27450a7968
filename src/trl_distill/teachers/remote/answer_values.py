"""Checked values of an answer: what is kept has the type, and is in the range, that its readers rely on.

An answer with any other value is faulty: it is asked for again, and named if it stays so.
"""

from __future__ import annotations

import math
import re
from typing import NoReturn

from .request_pool import RetryableError

MOST_COUNTED = 2**31  # tokens of one answer, and ids of a vocabulary: more fits no model
LONGEST_TEXT = 2**22  # characters of a completion; a tokenizer takes a hundred bytes of memory for each
LOWEST = -9999.0  # what servers write for a probability of 0
ROUNDING = 1e-3  # of a log-probability, and of a sum of probabilities
ID = re.compile(r"0|[1-9][0-9]{0,9}")
BYTES = "bytes:"
ESCAPED = re.compile(r"(?:[^\\]|\\x[0-9a-fA-F]{2})+")


def checked_text(value: str, what: str) -> str:
    """Return a text that can be stored, tokenized and printed.

    Raises:
        RetryableError: It is longer than any completion, or holds half of a surrogate pair, which is no Unicode.
    """
    if len(value) > LONGEST_TEXT:
        _refuse(f"{what} is longer than {LONGEST_TEXT:,} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        _refuse(f"{what} is not valid Unicode")
    return value


def checked_count(value: object, what: str) -> int:
    """Return a number of tokens; a missing one is 0. Raises RetryableError for anything but a whole number from 0."""
    if value is None:
        return 0
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < MOST_COUNTED
    if not number or value != int(value):  # type: ignore[call-overload]
        _refuse(f"{what} is no number of tokens")
    return int(value)  # type: ignore[call-overload]


def checked_id(value: str) -> int:
    """Return a token id that an answer writes as the key of an object; raise RetryableError for none."""
    if ID.fullmatch(value) is None or int(value) >= MOST_COUNTED:
        _refuse("a token's id is no whole number from 0")
    return int(value)


def checked_log_prob(value: object) -> float:
    """Return a log-probability, at least `LOWEST`; raise RetryableError for what is no number, or above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value <= ROUNDING:  # NaN is not
        _refuse("a log-probability is none")
    return float(value) if value > LOWEST else LOWEST


def checked_bytes(value: object) -> bytes:
    """Return the bytes of a token, given as a list of numbers; raise RetryableError for anything else."""
    if not isinstance(value, list) or any(type(one) is not int or not 0 <= one < 256 for one in value):
        _refuse("the bytes of a token are no list of bytes")
    return bytes(value)


def bytes_in_words(token: str) -> bytes | None:
    r"""Return the bytes of a token that is written with OpenAI's prefix, as in `bytes:\xe2\x80`; None if it is not."""
    escaped = token.removeprefix(BYTES)
    if ESCAPED.fullmatch(escaped) is None:
        return None
    return re.sub(rb"\\x(..)", lambda found: bytes.fromhex(found[1].decode()), escaped.encode())


def check_total(log_probs: list[float]) -> None:
    """Raise RetryableError for what cannot be log-probabilities of distinct tokens: they add up to more than 1."""
    if not sum(map(math.exp, log_probs)) <= 1 + ROUNDING:
        raise RetryableError("log-probabilities that add up to more than 1")


def _refuse(why: str) -> NoReturn:
    raise RetryableError(f"a faulty answer: {why}") from None
