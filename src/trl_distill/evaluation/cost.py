"""The cost of a query with the teacher and with the student: prompt, time, money."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

from .result import Cost, Money, Side, Timing

MILLION = 1_000_000


@dataclass(frozen=True)
class Prices:
    """Prices of a model, in any currency, for a million tokens.

    Attributes:
        input: Price of prompt tokens.
        output: Price of completion tokens.
        cached_input: Price of prompt tokens that the provider has cached; None without a discount.
    """

    input: float
    output: float
    cached_input: float | None = None


def cost_of(
    teacher: Side,
    student: Side,
    *,
    teacher_timing: Timing | None = None,
    student_timing: Timing | None = None,
    teacher_prices: Prices | None = None,
    student_prices: Prices | None = None,
    cached_tokens: int = 0,
    run: float | None = None,
) -> Cost:
    """Return the cost of a query with the teacher under its prompt, and with the student under its own.

    Lengths are the means of what the sides hold, so both sides' money is that of the completions that they wrote.

    Args:
        teacher: The teacher's side.
        student: The student's side after training.
        teacher_timing: Latency of a query of the teacher.
        student_timing: Latency of a query of the student.
        teacher_prices: The teacher's prices; None gives no cost in money.
        student_prices: The student's prices; None uses the teacher's, as for one model with and without a prompt.
        cached_tokens: Length of the teacher prompts' common prefix, which is billed at `cached_input`.
        run: What training cost, in the same unit.

    Returns:
        The cost; `money` is None without prices, and `speedup` without timings.
    """
    teacher_characters, student_characters = (fmean(map(len, side.prompts)) for side in (teacher, student))
    speedup = None
    if teacher_timing is not None and student_timing is not None and student_timing.query > 0:
        speedup = teacher_timing.query / student_timing.query
    money = None
    if teacher_prices is not None:
        money = money_of(
            teacher,
            student,
            teacher_prices=teacher_prices,
            student_prices=student_prices or teacher_prices,
            cached_tokens=cached_tokens,
            run=run,
        )
    return Cost(
        teacher_tokens=fmean(teacher.prompt_tokens),
        student_tokens=fmean(student.prompt_tokens),
        teacher_characters=teacher_characters,
        student_characters=student_characters,
        compression=teacher_characters / student_characters if student_characters else math.inf,
        teacher_timing=teacher_timing,
        student_timing=student_timing,
        speedup=speedup,
        money=money,
    )


def money_of(
    teacher: Side,
    student: Side,
    *,
    teacher_prices: Prices,
    student_prices: Prices,
    cached_tokens: int = 0,
    run: float | None = None,
) -> Money:
    """Return the cost of a million queries, and the break-even point of training; see `cost_of`.

    The student's prompt is billed in full: providers do not cache short prompts.
    """
    with_teacher, with_student = _per_query(teacher, teacher_prices), _per_query(student, student_prices)
    cached = None
    if teacher_prices.cached_input is not None:
        kept = min(cached_tokens, fmean(teacher.prompt_tokens))
        cached = with_teacher - kept * (teacher_prices.input - teacher_prices.cached_input)
    return Money(  # a million queries at a price for a million tokens
        teacher=with_teacher,
        student=with_student,
        teacher_cached=cached,
        run=run,
        break_even=_break_even(run, with_teacher - with_student),
        break_even_cached=None if cached is None else _break_even(run, cached - with_student),
    )


def _per_query(side: Side, prices: Prices) -> float:
    """Return the money for a query of a side, in millionths of the unit."""
    return fmean(side.prompt_tokens) * prices.input + fmean(side.tokens) * prices.output


def _break_even(run: float | None, saved: float) -> int | None:
    """Return how many queries save the cost `run`, at `saved` per million; None if never, or unknown."""
    return None if run is None or saved <= 0 else math.ceil(run / saved * MILLION)
