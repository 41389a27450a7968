"""What to do about a model whose log-probabilities are NaN or infinite."""

from __future__ import annotations

import torch

from .base import Teacher, single_teachers
from .local.model import LocalModel

FLOAT16 = "float16 holds no number above 65,504: "


def numerical_remedy(model: Teacher, *, setting: str = "--teacher-dtype") -> str:
    """Return what a user can do, for an error.

    Args:
        model: A teacher, or a student that scores as one.
        setting: The setting of its precision.
    """
    models = single_teachers(model)
    if any(not one.capabilities.writes for one in models):
        return "write another store with `aitraining teach`"
    local = [one for one in models if isinstance(one, LocalModel)]
    if any(one.loaded and one.model.dtype == torch.float16 for one in local):
        return f"{FLOAT16}load it with {setting} bfloat16 or float32"
    return f"give another model{f', or load it with {setting} float32' if local else ''}"
