"""Tiles stay within the memory they are given, and are of like size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_distill.losses.fused.tile_plan import MIB, SCRATCH_BUFFERS, Plan, plan_tiles


def working_bytes(plan: Plan, vocabulary: int, models: int, itemsize: int) -> int:
    """Return what the logits of a tile and the scratch blocks take."""
    logits = (vocabulary if plan.keep else plan.block) * models
    return itemsize * plan.rows * (logits + (SCRATCH_BUFFERS - 2) * plan.block)


@given(
    tokens=st.integers(0, 5000), vocabulary=st.integers(1, 300_000), models=st.sampled_from([1, 2]),
    passes=st.integers(1, 3), itemsize=st.sampled_from([4, 8]), accelerator=st.booleans(),
    frozen=st.booleans(), mebibytes=st.sampled_from([None, 8, 64, 512]),
)  # fmt: skip
def test_a_tile_stays_within_its_memory(tokens, vocabulary, models, passes, itemsize, accelerator, frozen, mebibytes):
    given_bytes = None if mebibytes is None else mebibytes * MIB
    plan = plan_tiles(
        tokens, vocabulary, models=models, passes=passes, itemsize=itemsize, accelerator=accelerator,
        frozen=frozen, tile_bytes=given_bytes,
    )  # fmt: skip
    assert 1 <= plan.rows <= max(tokens, 1)
    assert 1 <= plan.block <= vocabulary
    limit = given_bytes or (2048 if accelerator else 256 if frozen else 56) * MIB
    assert working_bytes(plan, vocabulary, models, itemsize) <= limit


@pytest.mark.parametrize("vocabulary", [32_000, 50_257, 151_936, 262_144])
def test_the_memory_does_not_grow_with_the_number_of_tokens(vocabulary):
    sizes = [
        working_bytes(plan_tiles(n, vocabulary, models=2, passes=2, itemsize=4, accelerator=False), vocabulary, 2, 4)
        for n in (4096, 16_384, 65_536)
    ]
    assert max(sizes) <= 1.1 * min(sizes)  # tiles are evened out, so their rows differ a little


def test_the_last_tile_is_not_left_with_few_tokens():
    plan = plan_tiles(512, 50_257, models=2, passes=2, itemsize=4, accelerator=False)
    assert plan.keep
    assert 512 % plan.rows == 0


@pytest.mark.parametrize(("vocabulary", "most"), [(50_257, 56), (151_936, 155), (262_144, 256)])
def test_a_frozen_head_keeps_the_logits_of_a_large_vocabulary(vocabulary, most):
    plan = plan_tiles(512, vocabulary, models=2, passes=2, itemsize=4, accelerator=False, frozen=True)
    assert plan.keep
    assert plan.rows >= 96
    assert working_bytes(plan, vocabulary, 2, 4) <= most * MIB
