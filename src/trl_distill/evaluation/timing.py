"""Query latency: one prompt at a time, alternating between the sides, so that other load affects all alike."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from .result import Timing

if TYPE_CHECKING:
    from ..models.generation import GenerationSettings
    from ..teachers.local.teacher import LocalTeacher

WARM_UP = 1  # rounds that are not counted


def time_sides(
    sides: Mapping[str, tuple[LocalTeacher, Sequence[Sequence[int]], GenerationSettings]],
) -> dict[str, Timing]:
    """Return the median time to the first token and to the end of a query of each side.

    Nothing of a prompt is read beforehand: the cache of what all prompts begin with is not used. The first round warms
    up and is not counted; every other one begins with the next side.

    Args:
        sides: By name, a model, its prompts (token ids), one for each round, and how it writes; the last prompt is the
            warm-up's too.
    """
    names = list(sides)
    rounds = len(next(iter(sides.values()))[1])
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with ExitStack() as stack:
        for model, _, _ in sides.values():
            stack.enter_context(_without_prefix(model))
        for turn in range(-WARM_UP, rounds):
            for name in names if turn % 2 == 0 else reversed(names):
                model, prompts, settings = sides[name]
                seconds[name].append(_seconds(model, prompts[turn], settings))
    return {name: _medians(found[WARM_UP:]) for name, found in seconds.items()}


def _medians(seconds: Sequence[tuple[float, float]]) -> Timing:
    first, query = zip(*seconds, strict=True)
    return Timing(median(first), median(query), len(seconds))


def _seconds(model: LocalTeacher, prompt: Sequence[int], settings: GenerationSettings) -> tuple[float, float]:
    """Return the seconds to the first token and to the last; `generate` waits for the device."""
    start = time.perf_counter()
    model.generate([prompt], replace(settings, max_new_tokens=1, stop=()))
    first = time.perf_counter()
    model.generate([prompt], settings)
    return first - start, time.perf_counter() - first


@contextmanager
def _without_prefix(model: LocalTeacher) -> Iterator[None]:
    before, model.prefix.off = model.prefix.off, "it is timed"
    try:
        yield
    finally:
        model.prefix.off = before
