"""`packing`: which rows share a sequence.

The student's rows are packed by the student's lengths. The teacher's are not grouped by them: it reads the same rows in
passes of its own, see `forward_batches`, so that a long prompt of the teacher's does not keep the student's rows apart.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset as TorchDataset

from .arrow_values import lengths_of
from .split import Split

if TYPE_CHECKING:
    from datasets import Dataset

    from ..config.sft_config import DistillationSFTConfig
    from .row_faults import Cells


class PackedRows(TorchDataset["list[Cells]"]):
    """A prepared dataset whose items are the rows that share a sequence.

    Args:
        rows: What `Recipe.prepare` returned.
        room: Tokens of the student's that rows in one sequence have at most together.

    Attributes:
        groups: The places of each item's rows; every row is in one group.
    """

    def __init__(self, rows: Dataset, room: int) -> None:
        self.rows = rows
        lengths = lengths_of(rows, "student_prompt") + lengths_of(rows, "completion")
        self.groups = best_fit(lengths.tolist(), room)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, place: int) -> list[Cells]:
        columns = self.rows[self.groups[place]]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Return groups of places whose lengths add up to `room` at most: best fit, the longest first, as TRL's "bfd"."""
    groups: list[list[int]] = []
    open_groups: dict[int, list[int]] = defaultdict(list)  # by the room that is left
    rooms: list[int] = []  # the keys of it, sorted
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        found = bisect_left(rooms, lengths[place])
        if found == len(rooms):
            group, left = len(groups), room
            groups.append([])
        else:
            left = rooms[found]
            group = open_groups[left].pop()
            if not open_groups[left]:
                rooms.pop(found)
        groups[group].append(place)
        left -= lengths[place]
        if left:
            if not open_groups[left]:
                insort(rooms, left)
            open_groups[left].append(group)
    return groups


def packed(dataset: Any, args: DistillationSFTConfig, split: Split) -> Any:
    """Return prepared rows, or a dict of them, in groups if a configuration packs the split; packed rows stay so."""
    packs = args.packing if split is Split.TRAIN or args.eval_packing is None else args.eval_packing
    if dataset is None or isinstance(dataset, (str, PackedRows)) or not packs:
        return dataset
    if isinstance(dataset, dict):
        return {key: packed(part, args, split) for key, part in dataset.items()}
    assert args.max_length is not None  # see `check_packing`
    return PackedRows(dataset, args.max_length)
