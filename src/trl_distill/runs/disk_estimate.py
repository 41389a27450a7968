"""What a run will write, estimated before a model loads or a teacher is paid, against what its disks have free."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..config.training_params import LLMTrainingParams
from ..data.atomic_file import existing
from ..data.full_disk import free_bytes, size_text
from ..errors import ProjectError
from ..evaluation.advice import optimizer_steps
from ..models.adapters import is_peft_model
from ..teachers.local.ema import EMA
from ..teachers.target_store.folder import TargetFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# optimizer states by the beginning of transformers' name: copies of the trained weights; others are not counted
COPIES = {"adamw_8bit": 0.5, "adamw_bnb_8bit": 0.5, "paged_adamw_8bit": 0.5, "adamw": 2, "paged_adamw": 2, "lion": 1}
NEAR = 0.9  # share of the free space from which there is a warning
LORA_BYTES = 4  # PEFT keeps adapters in float32
CHARACTERS_OF_TOKEN = 4
COMPRESSED = 0.5  # of the bytes of targets that Parquet leaves at least
BYTES_OF_ID = 8  # of a token id in a line of completions: up to six digits, a comma and a space


@dataclass(frozen=True)
class Planned:
    """Something that will be written.

    Attributes:
        folder: Where to.
        count: Bytes.
        what: In words.
        is_certain: Whether it is at least as large; else it is at most as large.
        left: Bytes of it that stay when the run is finished.
    """

    folder: Path
    count: float
    what: str
    is_certain: bool = True
    left: float = 0.0


def check_space(planned: Sequence[Planned], say: Callable[[str], object]) -> None:
    """Compare what will be written with what is free on each disk, and warn if that is nearly all.

    Args:
        planned: What will be written.
        say: Prints a warning.

    Raises:
        ProjectError: A disk has less than what is certain to be written.
    """
    disks: dict[int, list[Planned]] = {}
    for one in planned:
        disks.setdefault(os.stat(existing(one.folder)).st_dev, []).append(one)
    for on_disk in disks.values():
        folder, free = on_disk[0].folder, free_bytes(on_disk[0].folder)
        certain = sum(one.count for one in on_disk if one.is_certain)
        possible = sum(one.count for one in on_disk)
        has = f"the disk of {str(folder)!r} has {size_text(free)} free"
        if certain > free:
            listed = _listed(one for one in on_disk if one.is_certain)
            raise ProjectError(
                f"{has}, and this run writes about {size_text(certain)} ({listed}); make room, give a folder on "
                "another disk, or keep fewer checkpoints (--save-total-limit 1, --save-strategy no)."
            )
        if possible > NEAR * free:
            say(f"  warning       {has}, and this run may write up to {size_text(possible)}: {_listed(on_disk)}")


def planned_of_run(
    folder: Path,
    params: LLMTrainingParams,
    model: PreTrainedModel,
    *,
    adapter: int | None,
    rows: int,
    processes: int,
) -> list[Planned]:
    """Return what training writes into a project: checkpoints, and the result beside the last of them.

    Args:
        folder: The project.
        params: The run's parameters.
        model: The student, on the meta device if its weights are not loaded.
        adapter: Parameters of the LoRA adapter that the run puts on it; None if it makes none.
        rows: Rows that it trains on.
        processes: Number of training processes.
    """
    weights = _bytes_of(model.parameters())
    adapts = adapter is not None or is_peft_model(model)
    if adapter is not None:
        trained = adapter * LORA_BYTES
    else:
        trained = _bytes_of(p for p in model.parameters() if p.requires_grad) if adapts else weights
    result = weights if params.merge_adapter or not adapts else trained
    copies = next((n for name, n in COPIES.items() if params.optimizer.startswith(name)), 0)
    checkpoint = trained * (1 + copies) + (weights if params.teacher_model == EMA else 0)
    kept = _checkpoints_at_once(params, optimizer_steps(rows, params, processes=processes)[0])
    there = sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())
    found = [Planned(folder, result, "the trained model", left=result)]
    if kept:
        new, left = max(0, kept * checkpoint - there), min(kept, params.save_total_limit) * checkpoint
        found.append(Planned(folder, new, "one checkpoint" if kept == 1 else f"{kept} checkpoints", left=left))
    return found


def planned_of_teacher(
    folder: Path, params: LLMTrainingParams, completions: Sequence[str | None], *, vocabulary: int, hidden: int
) -> list[Planned]:
    """Return what a teacher's completions and stored targets take.

    Args:
        folder: Where completions are kept.
        params: The run's parameters.
        completions: Those of the data, None for a row whose completion the teacher writes.
        vocabulary: Rows of the teacher's LM head.
        hidden: Its width.
    """
    given = [text for text in completions if text is not None]
    missing = len(completions) - len(given)
    most = missing * params.distill_max_teacher_length
    found = [Planned(folder, most * BYTES_OF_ID, f"{missing:,} completions", is_certain=False)] if missing else []
    if params.teacher_store is None or TargetFolder(params.teacher_store).complete:
        return found
    store = Path(params.teacher_store).expanduser()
    there = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    tokens = sum(map(len, given)) // CHARACTERS_OF_TOKEN
    width = _target_bytes(params, vocabulary, hidden)
    least = max(0, tokens * width * COMPRESSED - there)
    found.append(Planned(store, least, f"targets of about {tokens:,} tokens"))
    return [*found, Planned(store, most * width, f"targets of at most {most:,} tokens", is_certain=False)]


def _target_bytes(params: LLMTrainingParams, vocabulary: int, hidden: int) -> int:
    """Return the bytes of one token's targets before compression."""
    if params.teacher_store_kind == "hidden":
        return 2 * hidden
    of_id = 2 if vocabulary <= 2**16 else 4
    of_token = of_id + (1 if params.teacher_store_kind == "sample" else 2)
    return of_token * min(params.teacher_top_k, vocabulary)


def _listed(planned: Iterable[Planned]) -> str:
    return ", ".join(f"{one.what} {size_text(one.count)}" for one in planned)


def _bytes_of(parameters: Iterable[torch.nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _checkpoints_at_once(params: LLMTrainingParams, steps: int) -> int:
    """Return how many checkpoints are on the disk together: a new one is complete before the oldest is deleted."""
    if params.save_strategy == "no":
        return 0
    epochs = params.epochs if params.max_steps <= 0 else 1
    made = math.ceil(epochs) if params.save_strategy == "epoch" else max(1, steps // params.save_steps)
    return min(made, params.save_total_limit + 1 + params.load_best_model_at_end)
