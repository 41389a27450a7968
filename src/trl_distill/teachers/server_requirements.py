"""When a run uses a server's log-probabilities: which settings allow them, and how many tokens they cover."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from accelerate import PartialState

from ..errors import ParamsError, TeacherError
from ..losses import check_sparse_divergence
from ..losses.settings import LossWeights
from .base import Teacher, reads_text
from .completions.store import JsonlStore
from .remote.teacher import RemoteTeacher

if TYPE_CHECKING:
    from datasets import Dataset

    from ..config.sft_config import DistillationSFTConfig
    from ..data.preflight import Preflight
    from ..prompts.rendering import Prompt

LOGPROBS = "teacher_logprobs.jsonl"


def find_targets(args: DistillationSFTConfig, teacher: Teacher) -> None:
    """Find out whether a server gives the log-probabilities that a run weighs, before any costly request.

    A teacher that was probed already is not probed again.

    Raises:
        ParamsError: Settings that do not allow such log-probabilities; raised before any request.
        TeacherError: The server gives none and they were named or `strict` is set; see `RemoteTeacher.probe` too.
    """
    if not reads_text(teacher) or not _weighs(args):
        return
    server = teacher if isinstance(teacher, RemoteTeacher) else None
    if server is not None and args.teacher_logprobs != "none":
        unfit = _other_divergence(args) or (_other_temperature(args) if args.strict else None)
        if unfit is not None and not args.allow_text_only_teacher:
            raise ParamsError(unfit)
        if unfit is None and not server.scores:
            with PartialState().main_process_first():  # the others read the answer from the file
                server.probe(args.teacher_logprobs, JsonlStore(Path(str(args.output_dir)) / LOGPROBS))
    if has_targets(teacher, args) or args.allow_text_only_teacher or not teacher.capabilities.writes:
        return
    named = server is not None and args.teacher_logprobs in ("prompt", "top")
    if args.strict or named:
        reasons = () if server is None else server.why_text_only
        why = f" ({'; '.join(reasons)})" if reasons else ""
        drop = f"--teacher-logprobs {args.teacher_logprobs}" if named else "--strict"
        raise TeacherError(
            f"teacher_model {teacher.name!r} gives text only{why}, which has nothing for the divergence that "
            f"--distill-alpha {args.distill_alpha:g} weighs; give --distill-alpha 0, or drop {drop} to learn from its "
            "completions alone."
        )


def _weighs(args: DistillationSFTConfig) -> bool:
    """Whether a run weighs a divergence, at its beginning or at its end."""
    return args.distill_alpha > 0 or bool(args.distill_alpha_end)


def _moving(start: float, end: float | None) -> str:
    return f"{start:g}" if end is None else f"{start:g} to {end:g}"


def _other_temperature(args: DistillationSFTConfig) -> str | None:
    """Return why a server's log-probabilities cannot be used at the temperatures asked for."""
    if args.distill_temperature == 1 and args.distill_temperature_end in (None, 1):
        return None
    return (
        f"distill_temperature is {_moving(args.distill_temperature, args.distill_temperature_end)}, and a server's "
        "log-probabilities are at temperature 1: the mass of the tokens that they leave out cannot be had at another; "
        "give --distill-temperature 1, --distill-alpha 0 to learn from its completions alone, or drop --strict."
    )


def _other_divergence(args: DistillationSFTConfig) -> str | None:
    """Return why a server's log-probabilities cannot be used in the divergence asked for."""
    try:
        check_sparse_divergence(args.distill_divergence, "topk")
    except ValueError:
        return (
            f"distill_divergence {args.distill_divergence!r} needs the teacher's probability of every token, and a "
            "server gives its likeliest alone; give --distill-divergence forward_kl."
        )
    return None


def supported_loss_weights(
    asked: LossWeights, args: DistillationSFTConfig, teacher: Teacher, servers: Sequence[RemoteTeacher]
) -> LossWeights:
    """Return a run's alpha and temperature: the requested ones, or the nearest that the teacher supports.

    Args:
        asked: The requested ones.
        args: The configuration.
        teacher: Who gives the targets; one, or several as one.
        servers: Those of them whose log-probabilities the run uses, see `has_targets`.
    """
    if not _weighs(args):
        return asked
    if reads_text(teacher) and not servers:
        was = _moving(args.distill_alpha, args.distill_alpha_end)
        return replace(
            asked, alpha=0.0, alpha_end=None, changed={"distill_alpha": (was, "the teacher gives text only")}
        )
    if servers and _other_temperature(args) is not None:
        was = _moving(args.distill_temperature, args.distill_temperature_end)
        why = "a server's log-probabilities are at temperature 1"
        return replace(asked, temperature=1.0, temperature_end=None, changed={"distill_temperature": (was, why)})
    return asked


def has_targets(teacher: Teacher, args: DistillationSFTConfig) -> TypeGuard[RemoteTeacher]:
    """Whether a teacher is a server whose log-probabilities a run uses."""
    wanted = _weighs(args) and args.teacher_logprobs != "none" and _other_divergence(args) is None
    return wanted and reads_text(teacher) and teacher.capabilities.scores


def check_teaches(args: DistillationSFTConfig, teacher: Teacher, preflight: Preflight) -> None:
    """Raise TeacherError for a teacher of text that is to give targets, if all rows have completions already."""
    idle = preflight.text_only and "teacher" not in preflight.sources and teacher.capabilities.writes
    if idle and _weighs(args) and not args.allow_text_only_teacher:
        local = "--cross-tokenizer to compare both, " if teacher.capabilities.renders else ""
        raise TeacherError(
            f"teacher_model {teacher.name!r} teaches nothing: it gives text only, and every row has a completion of "
            f"its own; give {local}--completions teacher to have it write them, or --distill-alpha 0."
        )


def prompt_formatter(server: RemoteTeacher | None) -> Callable[[Prompt], Prompt] | None:
    """Return how a server reads a prompt whose ids are sent; None for any other teacher."""
    return server.format_prompt if server is not None and server.reads_ids else None


def target_fetcher(
    args: DistillationSFTConfig, server: RemoteTeacher | None
) -> Callable[[Dataset, bool], float] | None:
    """Return a function that fetches a server's targets of prepared rows; None for any other teacher.

    The function's arguments are the rows and whether at least one token must have targets; it returns the fraction of
    tokens that have any, and raises TeacherError if none has.
    """
    if server is None:
        return None

    def fetch(rows: Dataset, required: bool) -> float:
        coverage = server.fetch_targets(rows, progress=not args.disable_tqdm)
        if coverage.known == 0 and required and not args.allow_text_only_teacher:
            _refuse_silence(args, server, rows, coverage.tokens)
        return coverage.fraction

    return fetch


def _refuse_silence(args: DistillationSFTConfig, teacher: RemoteTeacher, rows: Dataset, tokens: int) -> None:
    """Refuse a server without a log-probability of any token, unless there is its text to learn."""
    written = "teacher" in rows["source"]
    if written and not args.strict:
        return
    reason = (
        "none of its tokens are the student's; drop --strict to learn from its completions alone"
        if written
        else "a server that gives log-probabilities of what it writes gives none of the data's own completions; give "
        "--completions teacher, or --distill-alpha 0"
    )
    raise TeacherError(
        f"teacher_model {teacher.name!r} gave log-probabilities for none of the {tokens:,} completion tokens of train, "
        f"so there is nothing for the divergence: {reason}."
    )
