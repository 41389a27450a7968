"""The losses' tests run over the tiles of a CPU, and with TRITON_INTERPRET=1 over the kernels of a GPU.

Triton's interpreter is slow. With KERNEL_CASES=pairwise every pair of values of a test's parameters is met once; of a
test with two parameters, every value.
"""

from __future__ import annotations

import os
from inspect import getmembers
from itertools import combinations, groupby

import numpy as np
import pytest
import torch

BUILTINS: dict[object, list[str]] = {}  # of a package of Triton's language
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(autouse=True)
def several_blocks_in_a_row(monkeypatch):
    """The vocabularies here are smaller than a block of a kernel on a GPU."""
    if INTERPRETED:
        monkeypatch.setattr("trl_distill.losses.fused.tile_plan.BLOCK", 16)


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


@pytest.fixture(autouse=True)
def builtins_are_looked_for_once(monkeypatch):
    """Triton's interpreter looks through its whole language at each call of a function, half of the time here."""
    if INTERPRETED:
        from triton.language.core import is_builtin
        from triton.runtime import interpreter

        def patch(package, builder, scope):
            if package not in BUILTINS:
                BUILTINS[package] = [name for name, member in getmembers(package) if is_builtin(member)]
            for name in BUILTINS[package]:
                if is_builtin(member := getattr(package, name)):
                    interpreter._patch_attr(package, name, member, builder, scope)

        monkeypatch.setattr(interpreter, "_patch_builtin", patch)


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
    varied = {name for item in items for name, value in _params(item).items() if value != _params(items[0]).get(name)}
    wanted = {item: _met(item, varied) for item in items}
    left, kept = set().union(*wanted.values()), []
    while left:
        best = max(items, key=lambda item: len(wanted[item] & left))
        kept.append(best)
        left -= wanted[best]
    return kept


def _params(item):
    return {name: repr(value) for name, value in getattr(getattr(item, "callspec", None), "params", {}).items()}


def _is_plain(item):
    """Whether it is about the plain version."""
    return not {repr("plain"), repr({"impl": "plain"})}.isdisjoint(_params(item).values())


def _met(item, varied):
    values = sorted(pair for pair in _params(item).items() if pair[0] in varied)
    return set(combinations(values, 2 if len(values) > 2 else min(len(values), 1)))
