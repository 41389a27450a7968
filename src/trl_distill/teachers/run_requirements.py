"""What the settings of a run require of its teacher, known before the teacher's weights are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.choices import STORE_KINDS
from ..config.validation import check_average
from ..errors import ParamsError
from .base import Teacher, reads_text, single_teachers
from .compatibility import GAPS, STORED_GAPS, UNSEEN, require, unmet
from .server_requirements import has_targets

if TYPE_CHECKING:
    from ..config.sft_config import DistillationSFTConfig
    from .remote.teacher import RemoteTeacher


def check_teacher_supports(args: DistillationSFTConfig, teacher: Teacher) -> None:
    """Refuse a teacher that cannot do what a run's schedule and fresh completions need.

    Raises:
        ParamsError: A schedule that the teacher's targets do not allow.
        TeacherError: Fresh completions with a teacher that cannot write or score them.
    """
    if args.fresh_completions is not None:
        require(UNSEEN, teacher, setting=args.fresh_completions)
    for one in single_teachers(teacher):
        if one.capabilities.moves:
            check_average(args)
        _check_schedule(args, one)


def why_in_one_piece(args: DistillationSFTConfig, teacher: Teacher, server: RemoteTeacher | None) -> str | None:
    """Return why completions with gaps cannot be scored; None if they can be, or none is scored.

    `server` is the same teacher if its log-probabilities are used.
    """
    if args.teacher_store is not None:
        return STORED_GAPS
    found = unmet(GAPS, teacher)
    is_scored = not reads_text(teacher) or server is not None
    return found.sentence if found is not None and is_scored else None


def _check_schedule(args: DistillationSFTConfig, teacher: Teacher) -> None:
    """Refuse a temperature or an alpha that moves away from those that the teacher's targets can be used at."""
    end, can = args.distill_temperature_end, teacher.capabilities
    kind = args.teacher_store_kind or STORE_KINDS[0] if args.teacher_store is not None else None
    if can.temperatures is not None and not reads_text(teacher):
        kind = str(getattr(teacher, "kind", kind))
    if end not in (None, args.distill_temperature) and kind in ("topk", "sample"):
        raise ParamsError(
            f"distill_temperature_end is {end:g}, but a store of the kind {kind!r} has targets at single temperatures; "
            "write one with --teacher-store-kind hidden, or drop --distill-temperature-end."
        )
    text_only = reads_text(teacher) and not has_targets(teacher, args)
    if args.strict and text_only and args.distill_alpha_end:
        raise ParamsError(
            f"distill_alpha_end is {args.distill_alpha_end:g}, but teacher_model {teacher.name!r} gives text only, "
            "which has nothing for a divergence; drop --distill-alpha-end or --strict."
        )
