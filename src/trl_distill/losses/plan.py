"""How large a tile is, and whether its logits are kept or projected a second time."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20
SCRATCH_BUFFERS = 6
FROZEN_ROWS = 128  # products of fewer are slow
FROZEN_BYTES = 256 * MIB


@dataclass(frozen=True)
class Plan:
    """The tiles of one call.

    Attributes:
        rows: Tokens in a tile.
        block: Vocabulary rows in a block of a tile.
        keep: Whether a tile's logits stay in memory between its two passes; if not, each head is projected twice.
    """

    rows: int
    block: int
    keep: bool


def plan_tiles(
    tokens: int,
    vocabulary: int,
    *,
    models: int,
    passes: int,
    itemsize: int,
    accelerator: bool,
    frozen: bool = False,
    tile_bytes: int | None = None,
) -> Plan:
    """Choose the fastest tiles whose working memory stays within `tile_bytes`.

    Keeping the logits saves the second projection, but holds `rows` x `vocabulary` x `models` numbers; products of
    fewer than about 100 rows are so slow that a second projection of 512 rows is faster.

    Args:
        tokens: Number of tokens.
        vocabulary: Rows of the larger LM head.
        models: 2 with a teacher, 1 without.
        passes: How often the logits are looked at.
        itemsize: Bytes of a logit.
        accelerator: Whether memory is plenty and launches are dear.
        frozen: Whether the weight gets no gradient, so that its room [V, H] is there for logits.
        tile_bytes: Bound in bytes; 56 MiB on a CPU (256 MiB for a frozen head of a large vocabulary, which takes what
            128 rows need), 2 GiB on an accelerator.
    """
    if tile_bytes is None:
        tile_bytes = 2048 * MIB if accelerator else 56 * MIB
        if frozen and passes > 1 and not accelerator:
            needed = itemsize * (FROZEN_ROWS * vocabulary * models + SCRATCH_BUFFERS * 2**18)
            tile_bytes = max(tile_bytes, min(needed, FROZEN_BYTES))
    elements = max(1, tile_bytes // itemsize)
    scratch = max(1, min(elements // (2 * SCRATCH_BUFFERS), 2**25 if accelerator else 2**18))
    most = max(1, min(tokens, 4096 if accelerator else 512, scratch))
    kept = (elements - SCRATCH_BUFFERS * scratch) // (vocabulary * models)
    keep = passes > 1 and kept >= min(most, 96)
    rows = max(1, min(most, kept)) if keep else most
    if not keep and not accelerator:  # nothing else needs the memory, and larger products are faster
        scratch = max(scratch, min(elements // (2 * SCRATCH_BUFFERS), 2**20))
    rows = _even(tokens, rows)
    return Plan(rows, max(1, min(vocabulary, scratch // rows, 2**16 if accelerator else 4096)), keep)


def _even(tokens: int, rows: int) -> int:
    """Return the rows of tiles that are as many and of like size: the last one is not left with few."""
    even = -(-tokens // max(1, -(-tokens // rows)))
    rounded = -(-even // 16) * 16  # what processors multiply at a time
    return max(1, rounded if rounded <= rows else even)
