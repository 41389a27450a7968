"""What a store's manifest has to look like to be read."""

from __future__ import annotations

from collections.abc import Mapping

from ...config.choices import STORE_KINDS
from ...data.json_shape import (
    first_misfit,
    is_count,
    is_flag,
    is_object,
    is_positive,
    is_text,
    list_of,
    object_of,
    or_null,
    with_fields,
)

NEEDED = {
    "format": is_count,
    "name": is_text,
    "teacher": is_object,
    "vocabulary": is_count,
    "vocabulary_rows": is_count,
    "length_limit": or_null(is_count),
    "kind": lambda value: value in STORE_KINDS,
    "k": is_count,
    "temperatures": list_of(is_positive),
    "shards": list_of(with_fields({"name": is_text, "rows": is_count, "tokens": is_count, "sha256": is_text})),
    "files": object_of(is_text),
    "complete": is_flag,
}
# those that an earlier version did not write
OPTIONAL = {
    "revision": or_null(is_text),
    "stop_ids": or_null(list_of(is_count)),
    "tokenizer": or_null(is_text),
    "sequences": with_fields({"count": is_count, "sha256": is_text}),
}


def misshapen(manifest: Mapping[str, object]) -> str | None:
    """Return the name of the first field that is missing or that no store has in such a form; None if all are right."""
    given = {name: shape for name, shape in OPTIONAL.items() if name in manifest}
    return first_misfit(manifest, NEEDED | given)
