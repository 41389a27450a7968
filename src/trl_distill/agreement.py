"""What settings of fresh completions, schedules and averages must agree on. Standard library only."""

from __future__ import annotations

from typing import Any

from .endpoints import parse_endpoint
from .errors import ParamsError

EMA = "ema"


def check_policy(arguments: Any) -> None:
    """Check that fresh completions, a moving average and a schedule have what they need.

    Args:
        arguments: Anything with the fields of `DistillationArguments`.

    Raises:
        ParamsError: Naming the setting and what to do.
    """
    fresh = freshness(arguments)
    if fresh is not None:
        _check_fresh(arguments, fresh)
    if arguments.teacher_model == EMA:
        check_average(arguments)
    if arguments.teacher_prompt_dropout > 0 and getattr(arguments, "assistant_only_loss", False):
        raise ParamsError(
            "teacher_prompt_dropout cannot be used with assistant_only_loss, whose turns stand behind prompts of their "
            "own; drop one of the two."
        )
    if arguments.distill_schedule != "linear" and not anneals(arguments):
        raise ParamsError(
            f"distill_schedule is {arguments.distill_schedule!r}, but nothing moves; give --distill-temperature-end or "
            "--distill-alpha-end, or drop --distill-schedule."
        )


def freshness(arguments: Any) -> str | None:
    """Return the setting, with its value, that has completions written while training; None where none has."""
    if arguments.distill_on_policy_fraction > 0:
        return f"distill_on_policy_fraction {arguments.distill_on_policy_fraction:g}"
    return "distill_online" if arguments.distill_online else None


def anneals(arguments: Any) -> bool:
    """Whether alpha or temperature has an end to move to."""
    return arguments.distill_temperature_end is not None or arguments.distill_alpha_end is not None


def _check_fresh(arguments: Any, fresh: str) -> None:
    """Refuse what cannot score completions that are written while training."""
    teacher = arguments.teacher_model
    if arguments.teacher_store is not None:
        raise ParamsError(
            f"{fresh} cannot be used with teacher_store, which has targets of completions that are known before "
            "training; drop --teacher-store."
        )
    if arguments.cross_tokenizer:
        raise ParamsError(
            f"{fresh} cannot be used with cross_tokenizer: fresh completions are not matched to another tokenizer's; "
            "give a teacher of the student's tokenizer."
        )
    if arguments.teacher_config is not None:
        raise ParamsError(f"{fresh} cannot be used with teacher_config; give one --teacher-model.")
    if getattr(arguments, "assistant_only_loss", False):
        raise ParamsError(
            f"{fresh} cannot be used with assistant_only_loss, which learns turns of the data; drop one of the two."
        )
    for name in ("packing", "padding_free"):
        if getattr(arguments, name, False):
            raise ParamsError(
                f"{fresh} cannot be used with {name}: completions that are not written yet have no length; drop "
                f"--{name.replace('_', '-')}."
            )
    if isinstance(teacher, str) and parse_endpoint(teacher) is not None:
        raise ParamsError(
            f"{fresh} cannot be used with teacher_model {teacher!r}, a server, which is asked before training; give a "
            "local model."
        )


def check_average(arguments: Any) -> None:
    """Refuse what a teacher whose weights move does not go together with.

    Raises:
        ParamsError: Naming the setting and what to do.
    """
    if arguments.teacher_config is not None:
        raise ParamsError("teacher_config cannot list 'ema', an average of the student; give it as --teacher-model.")
    if arguments.teacher_store is not None:
        raise ParamsError(
            "teacher_store keeps the targets of a teacher that stays as it is, and teacher_model is 'ema', an average "
            "that moves with the student; drop --teacher-store."
        )
    if arguments.cross_tokenizer:
        raise ParamsError("cross_tokenizer cannot be used with teacher_model 'ema', whose tokenizer is the student's.")
