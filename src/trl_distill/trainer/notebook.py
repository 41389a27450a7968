"""Progress output in notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Trainer


def show_in_notebook(trainer: Trainer) -> None:
    """Replace the table of transformers, which shows the loss alone; elsewhere do nothing."""
    table = next(
        (c for c in trainer.callback_handler.callbacks if type(c).__name__ == "NotebookProgressCallback"), None
    )
    if table is not None:
        from .notebook_table import DistillationTable  # which needs IPython

        trainer.remove_callback(table)
        trainer.add_callback(DistillationTable())
