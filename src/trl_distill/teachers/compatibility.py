"""Whether a teacher can do what schedules and fresh completions ask of it; known before its weights are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.choices import STORE_KINDS
from ..config.validation import check_average
from ..errors import ParamsError, TeacherError
from .base import Teacher, TextTeacher
from .local.cross_tokenizer import CrossTeacher
from .local.ema import EmaTeacher
from .multi.teacher import SeveralTeachers, each
from .server_requirements import has_targets
from .target_store.reader import StoredTeacher

if TYPE_CHECKING:
    from ..config.sft_config import DistillationSFTConfig


def check_fitness(args: DistillationSFTConfig, teacher: Teacher) -> None:
    """Refuse a teacher that does not go together with how a run learns.

    Args:
        args: The configuration.
        teacher: One, or several as one.

    Raises:
        ParamsError: A schedule that the teacher's targets do not allow.
        TeacherError: Fresh completions asked of a teacher that cannot write or score them.
    """
    fresh = args.fresh_completions
    if fresh is not None:
        _check_fresh(fresh, teacher)
    for one in each(teacher):
        if isinstance(one, EmaTeacher):
            check_average(args)
        _check_schedule(args, one)


def _check_fresh(fresh: str, teacher: Teacher) -> None:
    """Refuse a teacher that scores no completion that is written while training."""
    reasons = (
        (StoredTeacher, "a store, which has targets of completions that are known before training"),
        (CrossTeacher, "of another tokenizer, to which fresh completions are not matched"),
        (SeveralTeachers, "a list of teachers"),
        (TextTeacher, "one that is asked for text before training"),
    )
    why = next((reason for kind, reason in reasons if isinstance(teacher, kind)), None)
    if why is not None:
        raise TeacherError(
            f"{fresh} cannot be used with teacher_model {teacher.name!r}, {why}; give a local model of the student's "
            "tokenizer."
        )


def _check_schedule(args: DistillationSFTConfig, teacher: Teacher) -> None:
    """Refuse a temperature or an alpha that moves away from what the teacher's targets are good for."""
    end = args.distill_temperature_end
    moves = end is not None and end != args.distill_temperature
    kind = args.teacher_store_kind or STORE_KINDS[0] if args.teacher_store is not None else None
    if isinstance(teacher, StoredTeacher):
        kind = str(teacher.manifest["kind"])
    if moves and kind in ("topk", "sample"):
        raise ParamsError(
            f"distill_temperature_end is {end:g}, but a store of the kind {kind!r} has targets at single temperatures; "
            "write one with --teacher-store-kind hidden, or drop --distill-temperature-end."
        )
    text_only = isinstance(teacher, TextTeacher) and not has_targets(teacher, args)
    if args.strict and text_only and args.distill_alpha_end:
        raise ParamsError(
            f"distill_alpha_end is {args.distill_alpha_end:g}, but teacher_model {teacher.name!r} gives text only, "
            "which has nothing for a divergence; drop --distill-alpha-end or --strict."
        )
