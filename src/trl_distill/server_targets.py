"""When a run uses the log-probabilities of a server: what they need of its settings, and how many tokens they cover."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from accelerate import PartialState

from .config import DistillationSFTConfig
from .errors import ParamsError, TeacherError
from .losses import check_sparse_divergence
from .teachers import LineStore, RemoteTeacher, Teacher, TextTeacher, WrittenTeacher

if TYPE_CHECKING:
    from datasets import Dataset

LOGPROBS = "teacher_logprobs.jsonl"


def find_targets(args: DistillationSFTConfig, teacher: Teacher) -> None:
    """Find out whether a server gives the log-probabilities that a run weighs, before anything costly is asked.

    Args:
        args: The configuration.
        teacher: Any; one that was asked already is not asked again.

    Raises:
        ParamsError: Settings that such log-probabilities cannot serve; raised before anything is asked.
        TeacherError: The server gives none; see `RemoteTeacher.find` too.
    """
    if not isinstance(teacher, TextTeacher) or args.distill_alpha == 0:
        return
    reasons: list[str] = []
    if isinstance(teacher, RemoteTeacher) and args.teacher_logprobs != "none":
        unfit = _unfit(args)
        if unfit is not None and not args.allow_text_only_teacher:
            raise ParamsError(unfit)
        if unfit is None and not teacher.scores:
            with PartialState().main_process_first():  # the others find what was found in the file
                reasons = teacher.find(args.teacher_logprobs, LineStore(Path(str(args.output_dir)) / LOGPROBS))
    alpha_of(args, teacher, reasons)


def _unfit(args: DistillationSFTConfig) -> str | None:
    """Return why a server's log-probabilities cannot be used with these settings."""
    if args.distill_temperature != 1:
        return (
            f"distill_temperature is {args.distill_temperature:g}, and a server's log-probabilities are at temperature "
            "1: the mass of the tokens that they leave out cannot be had at another; give --distill-temperature 1, or "
            "--distill-alpha 0 to learn from its completions alone."
        )
    try:
        check_sparse_divergence(args.distill_divergence, "topk")
    except ValueError:
        return (
            f"distill_divergence {args.distill_divergence!r} needs the teacher's probability of every token, and a "
            "server gives its likeliest alone; give --distill-divergence forward_kl."
        )
    return None


def alpha_of(args: DistillationSFTConfig, teacher: Teacher, reasons: list[str] | None = None) -> float:
    """Return the weight of the divergence: none where the teacher gives text only and that is allowed.

    Args:
        args: The configuration.
        teacher: Who gives the targets.
        reasons: Why it gives text only.

    Raises:
        TeacherError: A divergence is asked for, and the teacher gives nothing for it.
    """
    if args.distill_alpha == 0 or not isinstance(teacher, TextTeacher) or has_targets(teacher, args):
        return args.distill_alpha
    if args.allow_text_only_teacher or isinstance(teacher, WrittenTeacher):
        return 0.0
    why = f" ({'; '.join(reasons)})" if reasons else ""
    raise TeacherError(
        f"teacher_model {teacher.name!r} gives text only{why}, which has nothing for the divergence that "
        f"--distill-alpha {args.distill_alpha:g} weighs; give --distill-alpha 0, or --allow-text-only-teacher to learn "
        "from its completions alone."
    )


def has_targets(teacher: Any, args: DistillationSFTConfig) -> TypeGuard[RemoteTeacher]:
    """Whether a teacher is a server whose log-probabilities a run uses."""
    wanted = args.distill_alpha > 0 and args.teacher_logprobs != "none" and _unfit(args) is None
    return wanted and isinstance(teacher, RemoteTeacher) and teacher.scores


def reading(args: DistillationSFTConfig, teacher: Teacher) -> Callable[[Any], Any] | None:
    """Return how a server reads a prompt whose ids it is sent; None for any other teacher."""
    return teacher.as_read if has_targets(teacher, args) and teacher.reads_ids else None


def taking(args: DistillationSFTConfig, teacher: Teacher) -> Callable[[Dataset, bool], float] | None:
    """Return what fetches a server's targets of prepared rows and returns the share of tokens that have any.

    None for any other teacher. The function takes rows and whether at least one token must have targets, and raises
    TeacherError if none has.
    """
    if not has_targets(teacher, args):
        return None

    def take(rows: Dataset, required: bool) -> float:
        coverage = teacher.take(rows, progress=not args.disable_tqdm)
        if coverage.known == 0 and required and not args.allow_text_only_teacher:
            raise TeacherError(
                f"teacher_model {teacher.name!r} gave log-probabilities for none of the {coverage.tokens:,} completion "
                "tokens of train, so there is nothing for the divergence: a server that tells of what it writes tells "
                "nothing of the data's own completions; give --completions teacher, or --distill-alpha 0."
            )
        return coverage.share

    return take
