"""The common prefix of a teacher's prompts is computed once: its key/value cache is used for scoring and generation.

The prefix is found in the token ids: the common prefix of most prompts of a run, if they are known in advance, so that
nothing depends on the order of the batches; else that of a batch's rows, shortened when a later batch shares less. It
is exact however the tokenizer joins a template's text with the input.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ...errors import printable

Layer: TypeAlias = Any  # one of transformers' cache layers, whose states are lists of keys and values
LEAST = 16  # tokens; a shorter prefix saves less than its bookkeeping costs
SAMPLE = 1024  # prompts looked at for what they have in common
logger = logging.getLogger(__name__)


class WholeSlidingLayer(DynamicSlidingWindowLayer):
    """A sliding-window layer that keeps all states of the prefix: shorter prompts of a batch end before its last."""

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = whole = super().update(*args, **kwargs)
        return whole


class ReadOnly:
    """A layer's cache that is read by batches of any size and kept as it is."""

    keys: torch.Tensor
    values: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return _joined(self.keys, key_states), _joined(self.values, value_states)


class ReadOnlyLayer(ReadOnly, DynamicLayer):  # type: ignore[misc]
    """A layer that keeps all states."""


class ReadOnlySlidingLayer(ReadOnly, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """A layer that keeps a window's width of states."""


READ_ONLY: dict[type, type] = {DynamicLayer: ReadOnlyLayer, WholeSlidingLayer: ReadOnlySlidingLayer}
WRITABLE: dict[type, type] = {DynamicLayer: DynamicLayer, WholeSlidingLayer: DynamicSlidingWindowLayer}


Fill: TypeAlias = Callable[[np.ndarray, DynamicCache], None]


class PrefixCache:
    """The longest common prefix of the batches so far, and its cache.

    Attributes:
        ids: [P] token ids; empty before the first batch.
        off: Why the cache is off; None if it is on.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config
        self.off: str | None = None
        self._expected: np.ndarray | None = None
        self.forget()

    def forget(self) -> None:
        """Drop the cache, for example after the weights have changed; the expected prefix stays."""
        self.ids = np.empty(0, np.int64)
        self._cache: DynamicCache | None = None
        self._misses = 0

    def expect_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        """Expect the common prefix of most of a run's prompts (token ids); batches no longer change it.

        A batch is then read in the same way whatever was read before it, so that a resumed run is the same to the bit.
        """
        self.forget()
        self._expected = np.array(most_common_beginning(prompts), np.int64)

    def cached_length(self, ids: np.ndarray, most: int, fill: Fill) -> int:
        """Return how many leading tokens of a batch are in the cache after this call; 0 if it cannot be used.

        Args:
            ids: [B, S] on the host, rows that begin at the same place.
            most: Tokens that may come from the cache at most.
            fill: Runs the model over ids [1, P] into an empty cache.
        """
        if self.off is not None:
            return 0
        most = max(most, 0)
        if self._expected is not None:
            return self._expected_length(ids, most, fill)
        common = _leading((ids[:, :most] == ids[:1, :most]).all(0))
        known = len(self.ids)
        agree = min(_leading(ids[0, : min(known, most)] == self.ids[:most]), common)
        if known and agree == known:
            self._misses = 0
            return known
        length = agree if known and agree >= LEAST else common
        self._misses += 1
        if length < LEAST or (known and agree < LEAST and self._misses < 3):
            return 0  # a batch of another kind; the prefix of the others stays
        return self._fill_cache(ids[0, :length], fill)

    def _expected_length(self, ids: np.ndarray, most: int, fill: Fill) -> int:
        """Return the length of the expected prefix if all rows of a batch begin with it, else 0."""
        expected = self._expected
        assert expected is not None
        length = len(expected)
        if not length or length > most or not (ids[:, :length] == expected).all():
            return 0
        return length if len(self.ids) == length else self._fill_cache(expected, fill)

    def _fill_cache(self, ids: np.ndarray, fill: Fill) -> int:
        """Compute the cache of a prefix and return its length; 0, with a warning, if the model has none to reuse."""
        try:
            cache = DynamicCache(config=self.config)
            cache.layers = [
                _with_class(WholeSlidingLayer, layer) if type(layer) is DynamicSlidingWindowLayer else layer
                for layer in cache.layers
            ]
            fill(ids[None], cache)
            if any(type(layer) not in READ_ONLY for layer in cache.layers):
                raise TypeError("a layer keeps a state that is not a list of keys and values")
            if cache.get_seq_length() != len(ids):
                raise TypeError("it does not fill the cache it is given")
        except (TypeError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
            self.off = str(error).splitlines()[0] if str(error) else type(error).__name__
            logger.warning(
                "The teacher's prefix cache is off, so it reads its whole prompt for every row: %s.",
                printable(self.off.rstrip(".")),
            )
            return 0
        self.ids, self._cache, self._misses = ids.copy(), cache, 0
        return len(ids)

    def for_scoring(self) -> DynamicCache:
        """Return the cache for one forward over what follows the prefix, for a batch of any size; nothing is copied."""
        return self._with(lambda layer: _in_window(_with_class(READ_ONLY[type(layer)], layer)))

    def for_writing(self, pads: Sequence[int]) -> DynamicCache:
        """Return a cache for prompts with `pads` tokens of padding on the left, which generation may write to.

        All rows have as many states, those of a row behind its padding: the shorter its prompt, the fewer of the
        prefix, whose others are read again. Distances are then those of the prompt, in a window's layer too.
        """
        places = torch.arange(len(self.ids)) - torch.tensor(pads)[:, None]
        places = places.clamp(min=0)  # what stands under padding is masked

        def rows(layer: Layer) -> Layer:
            made = _with_class(WRITABLE[type(layer)], layer)
            index = places.to(layer.keys.device)
            made.keys, made.values = (kept[0][:, index].transpose(0, 1) for kept in (layer.keys, layer.values))
            return _in_window(made)

        return self._with(rows)

    def _with(self, made: Callable[[Layer], Layer]) -> DynamicCache:
        assert self._cache is not None
        cache = copy.copy(self._cache)
        cache.layers = [made(layer) for layer in self._cache.layers]
        return cache


def most_common_beginning(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return the common prefix of more than half of the prompts, without the last token of any; empty if it is short.

    For very many prompts an evenly spread sample is used.
    """
    some = [prompts[i][:-1] for i in range(0, len(prompts), max(1, len(prompts) // SAMPLE))]
    starts = Counter(tuple(prompt[:LEAST]) for prompt in some if len(prompt) >= LEAST)
    start, count = starts.most_common(1)[0] if starts else ((), 0)
    if 2 * count <= len(some):
        return []
    alike = [list(prompt) for prompt in some if tuple(prompt[:LEAST]) == start]
    first, last = min(alike), max(alike)  # what these two have in common, all between them have too
    same = [a == b for a, b in zip(first, last, strict=False)]
    return first[: same.index(False) if False in same else len(same)]


def _with_class(kind: type, layer: Layer) -> Layer:
    made: Layer = object.__new__(kind)
    made.__dict__.update(layer.__dict__)
    return made


def _in_window(layer: Layer) -> Layer:
    """Return a layer with the states that its window reaches, if it has one."""
    window = getattr(layer, "sliding_window", None)
    if window is not None:
        layer.keys, layer.values = (kept[:, :, -window + 1 :] for kept in (layer.keys, layer.values))
    return layer


def _joined(kept: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return torch.cat([kept.expand(len(new), *kept.shape[1:]), new], dim=-2)


def _leading(true: np.ndarray) -> int:
    """Return how many entries before the first false one."""
    return len(true) if true.all() else int(true.argmin())
