"""The result of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class RunResult:
    """The result of a run.

    Attributes:
        model: The trained model; None after a dry run.
        tokenizer: Its tokenizer, as it was saved.
        metrics: Figures of training and evaluation by name.
        paths: The written files by name: `project`, `config`, `card`, `metrics`.
        trainer: The trainer, to inspect its state; None after a dry run.
    """

    model: Any  # transformers types no `generate`
    tokenizer: PreTrainedTokenizerBase
    metrics: dict[str, Any]
    paths: dict[str, Path]
    trainer: Any = None
