"""Streaming rows: read, completed and aligned block by block during training.

The pre-flight and the checks of columns and templates are of the first block; every later one is checked when it is
reached.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from datasets import (
    Dataset,
    IterableDataset,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from ..config.setting_names import name_settings
from ..errors import ParamsError
from .arrow_values import holds_bytes
from .file_readers import PLACE, Batch
from .memory import as_dataset
from .preflight import Preflight
from .row_report import NoUsableRows
from .split import Split

if TYPE_CHECKING:
    from ..config.sft_config import DistillationSFTConfig

logger = logging.getLogger(__name__)
BLOCK = 64  # rows that are prepared at a time, and that the pre-flight is of


class BlockRecipe(Protocol):
    """How the rows of a block become token ids, for one teacher or several; see `preparation.Recipe.prepare`."""

    def prepare(
        self, dataset: Dataset, *, split: Split, name: str, whole: bool, streamed: bool
    ) -> tuple[Dataset, Preflight]:
        """Turn the rows into aligned token ids."""


def is_stream(dataset: object) -> bool:
    """Whether a dataset is a stream, whose rows can only be read in order."""
    return isinstance(dataset, IterableDataset)


def columns_of(dataset: Dataset | IterableDataset) -> list[str]:
    """Return the names of a dataset's columns; those of a stream that does not know them are its first row's."""
    return list(dataset.column_names or next(iter(dataset), {}))


def completions_of(dataset: Dataset | IterableDataset) -> list[list[int]]:
    """Return the completions of prepared rows, of a stream those of its first block."""
    if isinstance(dataset, IterableDataset):
        return [row["completion"] for row in islice(dataset, BLOCK)]  # take() would read the next block too
    return list(dataset["completion"])


def check_streams(args: DistillationSFTConfig, train: object, evaluation: object) -> None:
    """Refuse settings that need all rows at once (ParamsError), and have each rank read a stream by itself."""
    if is_stream(train) and args.max_steps <= 0:
        raise ParamsError("train_dataset is a stream, whose length is not known; set max_steps.")
    parts = evaluation.values() if isinstance(evaluation, dict) else [evaluation]
    if not any(is_stream(part) for part in (train, *parts)):
        return
    if args.teacher_store is not None:
        raise ParamsError(
            "teacher_store keeps the targets of rows that are known beforehand, and a dataset is a stream; give a "
            "datasets.Dataset, or drop teacher_store."
        )
    settings = {name: bool(getattr(args, name)) for name in ("packing", "eval_packing", "retain_data")}
    settings |= {"group_by_length": args.train_sampling_strategy == "group_by_length"}
    settings |= {str(fresh): True for fresh in [args.fresh_completions] if fresh is not None}
    for name, given in settings.items():
        if given:
            raise ParamsError(f"{name} needs all rows at once, and a dataset is a stream; give a datasets.Dataset.")
    config: Any = copy.copy(args.accelerator_config)  # the caller's stays as it is if all this fails
    config.dispatch_batches = False  # as TRL: batches of different widths cannot be dispatched
    args.accelerator_config = config


def prepare_stream(
    dataset: IterableDataset,
    recipe: BlockRecipe,
    *,
    split: Split,
    name: str,
    apart: bool,
) -> tuple[IterableDataset, Preflight]:
    """Return a stream of aligned token ids, and the pre-flight of its first block.

    With `apart` several processes read it, each a part.

    Raises:
        DataError: There is no row, or see `Recipe.prepare`; of a later block it is raised when that is reached.
        ParamsError: Several processes read rows for which the teacher has to be asked.
        TemplateError: A template field that is no column.
    """
    if dataset.features is not None:  # else the first row decides, and nothing is known of it before it is decoded
        dataset = dataset.remove_columns([column for column, kind in dataset.features.items() if holds_bytes(kind)])
    first = as_dataset(list(islice(dataset, BLOCK)), name=name)
    prepared, preflight = recipe.prepare(first, split=split, name=name, whole=True, streamed=True)
    features = prepared.features
    asked = "teacher" in preflight.sources or preflight.coverage is not None
    if apart and asked:
        raise ParamsError(
            f"{name} is a stream, and the teacher is asked about its completions as it is read, which only one "
            f"process can do; set dataloader_num_workers=0 and train on one device, or give a datasets.Dataset."
        )

    def block(batch: Batch, indices: list[int]) -> Batch:
        cells = zip(*batch.values(), strict=True)
        read = ({k: v for k, v in zip(batch, values, strict=True) if k != PLACE} for values in cells)
        rows = as_dataset(list(read), name=name)
        rows = rows.add_column(PLACE, [f"row {i + 1}" for i in indices])
        try:
            with without_dataset_bars():
                made, flight = recipe.prepare(rows, split=split, name=f"{name} (streamed)", whole=False, streamed=True)
        except NoUsableRows as error:
            logger.warning("%s", name_settings(str(error)))
            return {column: [] for column in features}
        if flight.rows.set_aside:
            logger.warning("%s (streamed): %s", name, name_settings(flight.rows.summary()))
        return dict(made.select_columns(list(features))[:])

    stream = dataset.map(
        block,
        batched=True,
        batch_size=BLOCK,
        with_indices=True,
        features=features,
        remove_columns=columns_of(dataset),
    )
    return stream, preflight


@contextmanager
def without_dataset_bars() -> Iterator[None]:
    """Hide the progress bars of `datasets`, which would show several per block."""
    off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not off:
            enable_progress_bars()
