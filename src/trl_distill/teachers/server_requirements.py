"""A run's use of a server's log-probabilities: which settings allow them, and how many tokens they cover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

from accelerate import PartialState

from ..errors import ParamsError, TeacherError
from ..losses import check_sparse_divergence
from .base import Teacher, reads_text
from .completions.store import JsonlStore
from .remote.teacher import RemoteTeacher

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data.preflight import Preflight
    from ..losses.schedule import LossSchedule
    from .settings import TeacherSettings

LOGPROBS = "teacher_logprobs.jsonl"


def find_targets(settings: TeacherSettings, teacher: Teacher) -> None:
    """Find out whether a server gives the log-probabilities that a run weighs, before any costly request.

    A teacher that was probed already is not probed again.

    Raises:
        ParamsError: Settings that do not allow such log-probabilities; raised before any request.
        TeacherError: The server gives none and they were named or `strict` is set; see `RemoteTeacher.probe` too.
    """
    if not reads_text(teacher) or not settings.loss.learns_distribution:
        return
    server = teacher if isinstance(teacher, RemoteTeacher) else None
    if server is not None and settings.logprobs != "none":
        unfit = _other_divergence(settings.loss) or (_other_temperature(settings.loss) if settings.strict else None)
        if unfit is not None and not settings.allow_text_only:
            raise ParamsError(unfit)
        if unfit is None and not server.scores:
            with PartialState().main_process_first():  # the others read the answer from the file
                server.probe(settings.logprobs, JsonlStore(settings.folder / LOGPROBS))
    if has_targets(teacher, settings) or settings.allow_text_only or not teacher.capabilities.writes:
        return
    named = server is not None and settings.logprobs in ("prompt", "top")
    if settings.strict or named:
        reasons = () if server is None else server.why_text_only
        why = f" ({'; '.join(reasons)})" if reasons else ""
        drop = f"--teacher-logprobs {settings.logprobs}" if named else "--strict"
        raise TeacherError(
            f"teacher_model {teacher.name!r} gives text only{why}, which has nothing for the divergence that "
            f"--distill-alpha {settings.loss.start.alpha:g} weighs; give --distill-alpha 0, or drop {drop} to learn "
            "from its completions alone."
        )


def _other_temperature(loss: LossSchedule) -> str | None:
    """Return why a server's log-probabilities cannot be used at the temperatures asked for."""
    if loss.start.temperature == 1 and not loss.moves("temperature"):
        return None
    return (
        f"distill_temperature is {loss.describe('temperature')}, and a server's "
        "log-probabilities are at temperature 1: the mass of the tokens that they leave out is not known at any other; "
        "give --distill-temperature 1, --distill-alpha 0 to learn from its completions alone, or drop --strict."
    )


def _other_divergence(loss: LossSchedule) -> str | None:
    """Return why a server's log-probabilities cannot be used in the divergence asked for."""
    try:
        check_sparse_divergence(loss.start.divergence, "topk")
    except ValueError:
        return (
            f"distill_divergence {loss.start.divergence!r} needs the teacher's probability of every token, and a "
            "server gives only its likeliest; give --distill-divergence forward_kl."
        )
    return None


def supported_loss(settings: TeacherSettings, teacher: Teacher, servers: Sequence[RemoteTeacher]) -> LossSchedule:
    """Return the loss that a run requests, or the nearest that its teacher supports.

    Args:
        settings: The run's teacher settings.
        teacher: The teacher of the run; one, or several as one.
        servers: Those of them whose log-probabilities the run uses, see `has_targets`.
    """
    asked = settings.loss
    if not asked.learns_distribution:
        return asked
    if reads_text(teacher) and not servers:
        return asked.with_constant("alpha", 0.0, why="the teacher gives text only")
    if servers and _other_temperature(asked) is not None:
        return asked.with_constant("temperature", 1.0, why="a server's log-probabilities are at temperature 1")
    return asked


def has_targets(teacher: Teacher, settings: TeacherSettings) -> TypeGuard[RemoteTeacher]:
    """Whether a teacher is a server whose log-probabilities a run uses."""
    loss = settings.loss
    wanted = loss.learns_distribution and settings.logprobs != "none" and _other_divergence(loss) is None
    return wanted and reads_text(teacher) and teacher.capabilities.scores


def check_teaches(settings: TeacherSettings, teacher: Teacher, preflight: Preflight) -> None:
    """Raise TeacherError for a teacher of text that is to give targets, if all rows have completions already."""
    idle = preflight.text_only and "teacher" not in preflight.sources and teacher.capabilities.writes
    if idle and settings.loss.learns_distribution and not settings.allow_text_only:
        local = "--cross-tokenizer to compare both, " if teacher.capabilities.renders else ""
        raise TeacherError(
            f"teacher_model {teacher.name!r} teaches nothing: it gives text only, and every row has a completion of "
            f"its own; give {local}--completions teacher to have it generate them, or --distill-alpha 0."
        )


def fetch_targets(settings: TeacherSettings, server: RemoteTeacher, rows: Dataset, required: bool) -> float:
    """Fetch a server's targets of prepared rows, and return the fraction of completion tokens that have any.

    Raises:
        TeacherError: None has, though at least one must (`required`); not if the run may learn from its text alone.
    """
    coverage = server.fetch_targets(rows, progress=settings.progress)
    if coverage.known or not required or settings.allow_text_only:
        return coverage.fraction
    wrote = "teacher" in rows["source"]
    if wrote and not settings.strict:
        return coverage.fraction
    reason = (
        "none of its tokens are the student's; drop --strict to learn from its completions alone"
        if wrote
        else "a server that gives log-probabilities of what it writes gives none of the data's own completions; give "
        "--completions teacher, or --distill-alpha 0"
    )
    raise TeacherError(
        f"teacher_model {server.name!r} gave log-probabilities for none of the {coverage.tokens:,} completion tokens "
        f"of train, so there is nothing for the divergence: {reason}."
    )
