"""Requirements of a run's settings on its teacher, checked before the teacher's weights are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.choices import STORE_KINDS
from ..errors import ParamsError
from .base import Teacher, reads_text, single_teachers
from .compatibility import GAPS, STORED_GAPS, UNSEEN, require, unmet
from .server_requirements import has_targets

if TYPE_CHECKING:
    from .remote.teacher import RemoteTeacher
    from .settings import TeacherSettings


def check_teacher_supports(settings: TeacherSettings, teacher: Teacher) -> None:
    """Refuse a teacher that cannot do what a run's schedule and fresh completions need.

    Raises:
        ParamsError: A schedule that the teacher's targets do not allow.
        TeacherError: Fresh completions with a teacher that cannot write or score them.
    """
    if settings.fresh_completions is not None:
        require(UNSEEN, teacher, setting=settings.fresh_completions)
    for one in single_teachers(teacher):
        _check_schedule(settings, one)


def why_in_one_piece(settings: TeacherSettings, teacher: Teacher, server: RemoteTeacher | None) -> str | None:
    """Return why completions with gaps cannot be scored; None if they can be, or none is scored.

    `server` is the same teacher if its log-probabilities are used.
    """
    if settings.store is not None:
        return STORED_GAPS
    found = unmet(GAPS, teacher)
    is_scored = not reads_text(teacher) or server is not None
    return found.sentence if found is not None and is_scored else None


def _check_schedule(settings: TeacherSettings, teacher: Teacher) -> None:
    """Refuse a schedule of temperature or alpha that the teacher's targets do not support."""
    store, ends = settings.store, settings.loss.ends
    kind = None if store is None else store.kind or STORE_KINDS[0]
    if teacher.capabilities.temperatures is not None and not reads_text(teacher):
        kind = str(getattr(teacher, "kind", kind))
    if settings.loss.moves("temperature") and kind in ("topk", "sample"):
        raise ParamsError(
            f"distill_temperature_end is {ends['temperature']:g}, but a store of the kind {kind!r} has targets at "
            "single temperatures; write one with --teacher-store-kind hidden, or drop --distill-temperature-end."
        )
    text_only = reads_text(teacher) and not has_targets(teacher, settings)
    if settings.strict and text_only and ends.get("alpha"):
        raise ParamsError(
            f"distill_alpha_end is {ends['alpha']:g}, but teacher_model {teacher.name!r} gives text only, "
            "which has nothing for a divergence; drop --distill-alpha-end or --strict."
        )
