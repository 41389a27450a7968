"""The losses' tests run over the tiles of a CPU, and with TRITON_INTERPRET=1 over the kernels of a GPU.

Triton's interpreter is slow. With KERNEL_CASES=pairwise every pair of values of a test's parameters is met once; of a
test with two parameters, every value.
"""

from __future__ import annotations

import os
from itertools import combinations, groupby

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(autouse=True)
def several_blocks_in_a_row(monkeypatch):
    """The vocabularies here are smaller than a block of a kernel on a GPU."""
    if INTERPRETED:
        monkeypatch.setattr("trl_distill.losses.plan.BLOCK", 16)


@pytest.fixture(autouse=True)
def bfloat16_is_rounded(monkeypatch):
    """Triton's interpreter cuts off what a GPU rounds."""
    if INTERPRETED:
        import triton.language as tl
        from triton.runtime import interpreter

        convert = interpreter._convert_float

        def rounded(numbers, source, target, mode):
            if (source, target) != (tl.float32, tl.bfloat16):
                return convert(numbers, source, target, mode)
            halves = torch.from_numpy(np.ascontiguousarray(numbers)).bfloat16()
            return halves.view(torch.int16).numpy().view(np.uint16)

        monkeypatch.setattr(interpreter, "_convert_float", rounded)


def pytest_collection_modifyitems(config, items):
    """Leave out what meets nothing new."""
    if os.environ.get("KERNEL_CASES") != "pairwise":
        return
    kept = []
    for _, group in groupby(items, key=lambda item: (item.path, getattr(item, "originalname", item.name))):
        kept += _covering([item for item in group if not _is_plain(item)])
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _covering(items):
    """Return tests that meet every pair of values, the ones that meet most first."""
    wanted = {item: _met(item) for item in items}
    left, kept = set().union(*wanted.values()), []
    while left:
        best = max(items, key=lambda item: len(wanted[item] & left))
        kept.append(best)
        left -= wanted[best]
    return kept


def _params(item):
    return getattr(getattr(item, "callspec", None), "params", {})


def _is_plain(item):
    """Whether it is about the plain version."""
    return any(
        value in ("plain", {"impl": "plain"}) for value in _params(item).values() if isinstance(value, str | dict)
    )


def _met(item):
    values = sorted((name, repr(value)) for name, value in _params(item).items())
    return set(combinations(values, 2 if len(values) > 2 else min(len(values), 1)))
