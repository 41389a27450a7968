"""Completions for many prompts: each distinct one once, in batches of like length, kept as they are made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol

from tqdm.auto import tqdm

from ...models.generation import Completion, GenerationSettings
from .engines.selection import written
from .jsonl_store import LineStore
from .store import CompletionStore, key_of


class Writer(Protocol):
    """What writes completions as token ids of its own: every teacher but those that give text."""

    def identity(self) -> dict[str, Any]:
        """All that its completions depend on but prompt and settings; part of the key of everything stored."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Write one completion for each prompt (token ids), as one batch, in the order given."""
        ...


def complete(
    teacher: Writer,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    *,
    store: CompletionStore | None = None,
    progress: bool = True,
) -> list[Completion]:
    """Return one completion for each prompt, in the order given.

    Prompts that are equal are written once (unless drawn), prompts already in the store not again. What runs the
    teacher is `settings.engine`, see `engines`. Batches are made of prompts of like length, the longest first, so that
    a batch too large for the memory fails at once.

    Drawn completions depend on which prompts are drawn in one batch, and so on `settings.batch_size`: a batch has
    one seed, made from the settings' and its prompts, whatever was written before it. vLLM has a seed for each prompt.

    Args:
        teacher: Who writes.
        prompts: Token ids.
        settings: How it writes.
        store: Where completions are kept from one run to the next; None keeps them in memory.
        progress: Whether to show a progress bar.

    Raises:
        TeacherError: The engine that is named cannot write for this teacher.
        KeyboardInterrupt: Ctrl-C; its text says where the completions written so far are kept.
    """
    store = CompletionStore(None) if store is None else store
    identity = identity_of(teacher, settings)
    keys = keys_of(identity, prompts, distinct=settings.do_sample)
    missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in store}
    order = sorted(missing, key=lambda key: (-len(missing[key]), key))
    shown = progress and bool(order)
    if order and hasattr(teacher, "expect"):
        teacher.expect(prompts)  # also those that are written: a run that goes on is to read alike
    with (
        saying_what_is_kept(store, keys),
        tqdm(total=len(order), desc="Teacher writes completions", unit="row", disable=not shown) as bar,
    ):
        for some in written(teacher, {key: missing[key] for key in order}, settings):
            store.add(some)
            bar.update(len(some))
    return [store[key] for key in keys]


@contextmanager
def saying_what_is_kept(
    store: CompletionStore | LineStore, keys: Sequence[str], *, what: str = "the teacher wrote completions"
) -> Iterator[None]:
    """Give a Ctrl-C that comes in between a text, where what came is on disk."""
    try:
        yield
    except KeyboardInterrupt:
        if store.path is None:
            raise
        there = sum(key in store for key in keys)
        raise KeyboardInterrupt(
            f"interrupted while {what}: {there:,} of {len(keys):,} are kept in {store.path}, "
            "and the same command goes on from them."
        ) from None


def identity_of(teacher: Writer, settings: GenerationSettings) -> dict[str, Any]:
    """Return all that a completion depends on besides its prompt."""
    return {**teacher.identity(), "settings": what_matters(settings)}


def what_matters(settings: GenerationSettings) -> dict[str, Any]:
    """Return the settings that a completion depends on."""
    how = asdict(settings)
    how.pop("batch_size")
    how.pop("engine")
    if not settings.do_sample:
        how = {"max_new_tokens": settings.max_new_tokens}  # nothing else changes a greedy completion
    how.pop("stop", None)
    return {**how, "stop": sorted(set(settings.stop))} if settings.stop else how


def keys_of(identity: dict[str, Any], prompts: Sequence[Sequence[Any]], *, distinct: bool) -> list[str]:
    """Return a key for each prompt; with `distinct`, equal prompts get one each, so that each is drawn anew."""
    seen: dict[str, int] = {}
    keys = []
    for prompt in prompts:
        text = json.dumps(list(prompt), sort_keys=True)
        copy = seen.get(text, 0)
        seen[text] = copy + 1
        keys.append(key_of({**identity, "copy": copy if distinct else 0}, prompt))
    return keys
