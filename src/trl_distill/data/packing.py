"""`packing` and `padding_free`: which rows share a sequence, and what of TRL's settings goes with it.

The student's rows are packed by the student's lengths. The teacher's are not grouped by them: it reads the same rows in
passes of its own, see `forward_batches`, so that a long prompt of the teacher's does not keep the student's rows apart.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow.compute
from torch.utils.data import Dataset as TorchDataset

from ..errors import ModelError, ParamsError
from ..models.generation import evaluating
from ..models.padding_free import keeps_apart
from .split import Split

if TYPE_CHECKING:
    from datasets import Dataset

SETTINGS = ("packing", "padding_free", "eval_packing")


class PackedRows(TorchDataset[list[dict[str, Any]]]):
    """A prepared dataset whose items are the rows that share a sequence.

    Args:
        rows: What `preparation.prepare` returned.
        room: Tokens of the student's that rows in one sequence have at most together.

    Attributes:
        groups: The places of each item's rows; every row is in one group.
    """

    def __init__(self, rows: Dataset, room: int) -> None:
        self.rows = rows
        self.groups = best_fit(_lengths(rows), room)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, place: int) -> list[dict[str, Any]]:
        columns = self.rows[self.groups[place]]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Return groups of places whose lengths add up to `room` at most: best fit, the longest first, as TRL's "bfd".

    Args:
        lengths: None above `room`.
        room: Of a group.
    """
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


def _lengths(rows: Dataset) -> list[int]:
    table = rows.select_columns(["student_prompt", "completion"]).with_format("arrow")[:]
    counts = (pyarrow.compute.list_value_length(table[name]).to_pylist() for name in table.column_names)
    return [prompt + completion for prompt, completion in zip(*counts, strict=True)]


def packs(args: Any, split: Split) -> bool:
    """Return whether rows of a split are packed under a configuration."""
    return bool(args.packing if split is Split.TRAIN or args.eval_packing is None else args.eval_packing)


def packed(dataset: Any, args: Any, split: Split) -> Any:
    """Return prepared rows, or a dict of them, in groups where a configuration asks for it; what is packed stays."""
    if dataset is None or isinstance(dataset, (str, PackedRows)) or not packs(args, split):
        return dataset
    if isinstance(dataset, dict):
        return {key: packed(part, args, split) for key, part in dataset.items()}
    return PackedRows(dataset, args.max_length)


def check_packing(args: Any) -> None:
    """Check how rows become batches.

    Raises:
        ParamsError: A strategy that cuts rows, no length to pack up to, or batches that one rank makes for all.
    """
    if args.accelerator_config.dispatch_batches:
        raise ParamsError(
            "dispatch_batches hands out batches that one process makes, whose sequences have unlike lengths; set "
            "dispatch_batches=False in accelerator_config."
        )
    if not (args.packing or args.eval_packing):
        return
    if args.packing_strategy != "bfd":
        raise ParamsError(
            f"packing_strategy {args.packing_strategy!r} cuts rows apart, and a completion without its prompt has "
            "nothing that the teacher could be compared on; leave it at 'bfd'."
        )
    if args.max_length is None:
        raise ParamsError("packing fills sequences up to max_length, which is None; set it, or set padding_free=True.")


@contextmanager
def unseen(args: Any) -> Iterator[None]:
    """Keep the settings from SFTTrainer's constructor, which refuses them beside a collator that is not its own."""
    given = {name: getattr(args, name) for name in SETTINGS}
    for name in SETTINGS:
        setattr(args, name, False)
    try:
        yield
    finally:
        for name, value in given.items():
            setattr(args, name, value)


def check_apart_in(args: Any, model: Any, forward: Any, *, context_parallel: bool = False) -> None:
    """Check that the student keeps rows apart that share a sequence, where a configuration has them share one.

    Args:
        args: The configuration.
        model: The student without wrappers, taught by `add_completion_forward`.
        forward: The student as it is called in training.
        context_parallel: Whether sequences are split over ranks.

    Raises:
        ModelError: It does not; found by trying.
        ParamsError: Context parallelism, which drops the mask that keeps them apart.
    """
    asked = [name for name in SETTINGS if getattr(args, name)]
    if not asked:
        return
    if context_parallel:
        raise ParamsError(
            f"{asked[0]} cannot be used with context parallelism, which would let rows look at each other; set it to "
            "False."
        )
    with evaluating(forward):
        apart = keeps_apart(model, forward)
    if not apart:
        config = model.config
        raise ModelError(
            f"{asked[0]} puts several rows into one sequence, but model {config.model_type!r} with the attention "
            f"{config._attn_implementation!r} does not keep them apart, so that a row would read the one before it; "
            f"set {asked[0]}=False, or choose another model or attn_implementation."
        )
