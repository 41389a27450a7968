"""An export that runs out of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .student import TrainedStudent


def sentence_of_export(error: Exception, student: TrainedStudent) -> str:
    """Return the message for an error of memory in an export.

    Args:
        error: The error.
        student: What is exported.
    """
    import torch

    from ...config.devices import accelerator
    from ...trainer.memory_advice import memory_there, size_text

    half = "" if student.dtype in ("bfloat16", "float16") else "give --dtype bfloat16, which needs half of it, or "
    return (
        f"out of memory while exporting{memory_there(accelerator() or torch.device('cpu'))}; the student in "
        f"{student.dtype} takes about {size_text(_exported_size(student))}; {half}export where there is more memory."
    )


def _exported_size(student: TrainedStudent) -> int:
    import torch

    return int(getattr(torch, student.dtype).itemsize * sum(p.numel() for p in student.source.outline().parameters()))
