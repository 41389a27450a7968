"""The size of tiles, and whether their logits are kept or projected a second time."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20
SCRATCH_BUFFERS = 6
FROZEN_ROWS = 128  # products of fewer are slow
FROZEN_BYTES = 256 * MIB
BLOCK = 1024  # logits that a program of a kernel looks at together: with 4 warps no register spills on an H100
CHUNKS = 64  # programs for one row at most
GROUP_ROWS = 1024  # rows whose product with a weight keeps a GPU busy


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
        accelerator: Whether memory is plentiful and launches are expensive.
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


@dataclass(frozen=True)
class KernelPlan:
    """The tiles of one call on a GPU.

    Attributes:
        rows: Tokens whose logits are in memory together.
        group: Tokens whose gradient in the logits is kept for one product each of hidden states' and weight's gradient.
        block: Logits that a program looks at together.
        processors: Programs that run side by side need about two rows for each of them.
    """

    rows: int
    group: int
    block: int
    processors: int

    def chunks(self, rows: int, vocabulary: int) -> tuple[int, int]:
        """Return into how many chunks a tile's rows are cut, and their columns; one if there are many rows."""
        wanted = min(CHUNKS, -(-2 * self.processors // rows)) if rows < 2 * self.processors else 1
        columns = -(-vocabulary // (wanted * self.block)) * self.block
        return -(-vocabulary // columns), columns


def blocks(start: int, stop: int, size: int) -> list[slice]:
    """Return [start, stop) in parts of a size, the last of which may be smaller."""
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def padded(columns: int) -> int:
    """Return a row's length in memory, so that every row can be read and written 16 numbers at a time."""
    return -(-columns // 16) * 16


def plan_kernels(
    tokens: int,
    vocabulary: int,
    *,
    logits: int,
    width: int,
    itemsize: int,
    trains_weight: bool,
    accumulates: bool,
    processors: int,
    tile_bytes: int | None = None,
) -> KernelPlan:
    """Choose the tiles of a call on a GPU.

    Logits are large and used once: a tile of them is small, as the products allow. Their gradient is a quarter of
    that, and the weight's gradient is formed the faster the more rows one product has.

    Args:
        tokens: Number of tokens.
        vocabulary: The student's.
        logits: Numbers that are in memory for a row of a tile.
        width: The student's hidden size, or 0 if it has no weight.
        itemsize: Bytes of a number of the gradient.
        trains_weight: Whether the weight's gradient is wanted.
        accumulates: Whether several products need a float32 weight gradient of their own to be added up in.
        processors: Processors of the GPU.
        tile_bytes: Bound on logits and their gradient, 2 GiB. More is used if all tokens' gradient takes no more than
            that float32 weight gradient would.
    """
    if tile_bytes is None:
        tile_bytes = 2048 * MIB
    whole = max(1, tokens)
    most = max(1, tile_bytes * 3 // 10 // max(1, 4 * logits))
    rows = min(whole, most // 128 * 128 if most >= 128 else most, 4096)
    if trains_weight and accumulates and tokens * itemsize <= 4 * width:
        group = whole
    else:
        left = tile_bytes - 4 * logits * rows
        tiles = max(1, left // (itemsize * padded(vocabulary) * rows))
        if trains_weight:
            group = -(-whole // -(-whole // (tiles * rows)) // rows) * rows  # groups of like size
        else:
            group = min(tiles, max(1, GROUP_ROWS // rows)) * rows
    block = min(BLOCK, 1 << max(4, (vocabulary - 1).bit_length()))
    return KernelPlan(rows, min(group, -(-whole // rows) * rows), block, processors)
