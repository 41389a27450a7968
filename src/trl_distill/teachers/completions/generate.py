"""Completions for many prompts: each distinct one once, in batches of similar length, stored as they are generated."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from tqdm.auto import tqdm

from ...models.generation import Completion, GenerationSettings
from ...models.out_of_memory import doing
from .engines.base import Writer
from .engines.selection import generate_all
from .store import CompletionStore, Entry, JsonlStore, JsonObject, key_of


def complete(
    teacher: Writer,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    *,
    store: CompletionStore | None = None,
    progress: bool = True,
) -> list[Completion]:
    """Return one completion for each prompt, in the order given.

    Equal prompts are generated once (unless sampled), prompts in the store not again. `settings.engine` selects the
    engine. Batches have prompts of similar length, the longest first, so that a batch too large for the memory fails at
    once.

    Sampled completions depend on which prompts share a batch, and so on `settings.batch_size`: a batch has one seed,
    made from the settings' and its prompts, whatever was written before it. vLLM has a seed for each prompt.

    Args:
        teacher: Who writes.
        prompts: Token ids.
        settings: Generation settings.
        store: Where completions are kept from one run to the next; None keeps them in memory.
        progress: Whether to show a progress bar.

    Raises:
        ProjectError: Another process adds to the store.
        TeacherError: The engine that is named cannot write for this teacher.
        KeyboardInterrupt: Ctrl-C; its text says where the completions written so far are kept.
    """
    store = CompletionStore(None) if store is None else store
    identity = identity_of(teacher, settings)
    keys = keys_of(identity, prompts, distinct=settings.do_sample)
    by_key = dict(zip(keys, prompts, strict=True))
    with store.asking(keys) as missing:
        order = sorted(missing, key=lambda key: (-len(by_key[key]), key))
        shown = progress and bool(order)
        if order and hasattr(teacher, "expect_prompts"):
            teacher.expect_prompts(prompts)  # also those in the store: a resumed run reads the same prefix
        with (
            doing("generating completions"),
            report_kept_on_interrupt(store, keys),
            tqdm(total=len(order), desc="Teacher generates completions", unit="row", disable=not shown) as bar,
        ):
            for some in generate_all(teacher, {key: by_key[key] for key in order}, settings):
                store.add(some)
                bar.update(len(some))
    return [store[key] for key in keys]


@contextmanager
def report_kept_on_interrupt(
    store: JsonlStore[Entry], keys: Sequence[str], *, what: str = "completions"
) -> Iterator[None]:
    """Add to a Ctrl-C how many of `keys` are in the store, if it is on disk."""
    try:
        yield
    except KeyboardInterrupt as interrupt:  # or a signal that ends a run like it
        if store.path is not None:
            kept = sum(key in store for key in keys)
            interrupt.args = (
                f"interrupted: {kept:,} of {len(keys):,} {what} are kept in {store.path}; run the same command again "
                "to resume.",
            )
        raise


def identity_of(teacher: Writer, settings: GenerationSettings) -> JsonObject:
    """Return all that a completion depends on except its prompt."""
    return {**teacher.identity(), "settings": settings_identity(settings)}


def settings_identity(settings: GenerationSettings) -> JsonObject:
    """Return the settings that a completion depends on."""
    how = asdict(settings)
    how.pop("batch_size")
    how.pop("engine")
    if not settings.do_sample:
        how = {"max_new_tokens": settings.max_new_tokens}  # nothing else changes a greedy completion
    how.pop("stop", None)
    return {**how, "stop": sorted(set(settings.stop))} if settings.stop else how


def keys_of(identity: JsonObject, prompts: Sequence[Sequence[object]], *, distinct: bool) -> list[str]:
    """Return a key for each prompt; with `distinct`, equal prompts get one each, so that each is sampled anew."""
    seen: Counter[str] = Counter()
    keys = []
    for prompt in prompts:
        text = json.dumps(list(prompt), sort_keys=True)
        keys.append(key_of({**identity, "copy": seen[text] if distinct else 0}, prompt))
        seen[text] += 1
    return keys
