"""Classify a server's error: temporary, an unsupported parameter, or a content filter."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..completions.store import JsonObject

TEMPORARY = (408, 409, 425, 429)  # and whatever begins with 5, but what is not implemented
NEVER = 501
# what errors without a status call themselves if they will not pass
FINAL = {
    *("insufficient_quota", "invalid_api_key", "model_not_found", "context_length_exceeded", "unsupported_parameter"),
    *("invalid_request_error", "authentication_error", "permission_error", "not_found_error", "billing_error"),
    *("badrequesterror", "notfounderror", "invalid_argument", "unauthenticated", "permission_denied", "not_found"),
}
FILTERS = {"content_filter", "content_policy_violation", "responsibleaipolicyviolation", "data_inspection_failed"}
# what a request can do without, and what takes its place
DISPENSABLE = {
    **dict.fromkeys(("seed", "top_p", "temperature", "stop")),
    **{"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"},
}
UNSUPPORTED = re.compile(
    r"unsupported|not supported|n't support|not support|unrecognized|unknown|unexpected|not permitted|forbidden"
    r"|deprecated|cannot both|not allowed",
    re.IGNORECASE,
)


def unwrapped(body: object) -> object:
    """Return the error itself: Gemini's stands in a list."""
    if isinstance(body, list) and body and isinstance(body[0], Mapping):
        body = body[0]
    return body.get("error", body) if isinstance(body, Mapping) else body


def names_of(error: object) -> set[str]:
    """Return an error's names (code, type), in lower case."""
    if not isinstance(error, Mapping):
        return set()
    inner = error.get("innererror")
    given = [error.get("code"), error.get("type"), error.get("status")]
    given += [inner.get("code")] if isinstance(inner, Mapping) else []
    return {str(name).lower() for name in given if name is not None}


def status_of(error: object) -> int | None:
    """Return the status that an error in the body of a successful response stands for; None if it has none."""
    codes = (int(name) for name in names_of(error) if re.fullmatch("[0-9]{3}", name))
    return next((code for code in codes if 400 <= code < 600), None)


def is_temporary(error: object, status: int | None) -> bool:
    """Whether the same request may succeed another time."""
    if names_of(error) & {"insufficient_quota"}:
        return False
    if status is None:
        return not names_of(error) & FINAL
    return status in TEMPORARY or (status >= 500 and status != NEVER)


def filter_of(error: object) -> str:
    """Return the server's name for the filter that refused a prompt; empty if it was not a filter."""
    found = sorted(names_of(error) & FILTERS)
    data = error.get("metadata") if isinstance(error, Mapping) else None
    if not found and isinstance(data, Mapping) and data.get("flagged_input"):  # OpenRouter's moderation
        return "moderation"
    return found[0] if found else ""


def unsupported_in(error: object, status: int | None, sent: JsonObject) -> str | None:
    """Return the dispensable parameter of a request that a server does not support; None if it is something else."""
    if status not in (400, 422):
        return None
    text = str(error)
    if UNSUPPORTED.search(text) is None:
        return None
    # without a limit, which has no other name on /completions, a completion would be cut anywhere
    known = {name for name in sent if name in DISPENSABLE and ("messages" in sent or DISPENSABLE[name] is None)}
    named = error.get("param") if isinstance(error, Mapping) else None
    if isinstance(named, str) and named in known:
        return named
    # as a word of its own: "max_tokens" also stands in the advice to use it instead, behind the one that is meant
    found = {re.search(rf"(?<!\w){name}(?!\w)", text): name for name in sorted(known)}
    places = [(place.start(), name) for place, name in found.items() if place is not None]
    return min(places)[1] if places else None
