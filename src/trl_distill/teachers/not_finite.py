"""What to do about a model whose log-probabilities are NaN or infinite."""

from __future__ import annotations

from .base import Teacher, single_teachers
from .local.model import LocalModel


def numerical_remedy(model: Teacher) -> str:
    """Return what a user can do about a teacher, or a student that scores as one, for an error."""
    models = single_teachers(model)
    if any(not one.capabilities.writes for one in models):
        return "write another store with `aitraining teach`"
    local = sorted(one.numerical_remedy for one in models if isinstance(one, LocalModel))
    return local[0] if local else "give another teacher"
