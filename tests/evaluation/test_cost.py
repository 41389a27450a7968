"""What a query costs: lengths, time, money, and when training has paid for itself."""

import math

import pytest

from trl_distill.evaluation.cost import Prices, cost_of
from trl_distill.evaluation.result import AFTER, TEACHER, Side, Timing


def side(name, prompts, prompt_tokens, tokens):
    """Return a side of two rows."""
    texts = ("a", "b")
    return Side(name, name, "model", prompts, prompt_tokens, texts, tokens, (True, True), (False, False))


TEACHERS = side(TEACHER, ("You are an expert. Q: a", "You are an expert. Q: bcd"), (600, 602), (20, 40))
STUDENTS = side(AFTER, ("Q: a", "Q: bcd"), (4, 6), (10, 30))


def test_compression_is_by_characters_of_the_prompts():
    cost = cost_of(TEACHERS, STUDENTS)
    assert (cost.teacher_tokens, cost.student_tokens) == (601, 5)
    assert (cost.teacher_characters, cost.student_characters) == (24, 5)
    assert cost.compression == pytest.approx(24 / 5)
    assert cost.speedup is cost.money is None
    assert cost_of(TEACHERS, side(AFTER, ("", ""), (1, 1), (1, 1))).compression == math.inf


def test_the_speedup_is_that_of_a_query_and_needs_both_sides():
    slow, fast = Timing(0.5, 3.0, 3), Timing(None, 1.5, 2)
    assert cost_of(TEACHERS, STUDENTS, teacher_timing=slow, student_timing=fast).speedup == 2.0
    assert cost_of(TEACHERS, STUDENTS, teacher_timing=slow).speedup is None


def test_money_is_for_a_million_queries_and_training_pays_for_itself():
    money = cost_of(TEACHERS, STUDENTS, teacher_prices=Prices(2.0, 10.0), run=3.0).money
    assert money.teacher == pytest.approx(601 * 2 + 30 * 10)
    assert money.student == pytest.approx(5 * 2 + 20 * 10)
    saved = (money.teacher - money.student) / 1e6
    assert (money.break_even - 1) * saved < 3.0 <= money.break_even * saved
    assert money.teacher_cached is money.break_even_cached is None


def test_a_prompt_that_is_cached_saves_less():
    prices = Prices(2.0, 10.0, cached_input=0.5)
    money = cost_of(TEACHERS, STUDENTS, teacher_prices=prices, cached_tokens=590, run=3.0).money
    assert money.teacher_cached == pytest.approx(590 * 0.5 + 11 * 2 + 30 * 10)
    assert money.break_even_cached > money.break_even
    whole = cost_of(TEACHERS, STUDENTS, teacher_prices=prices, cached_tokens=10_000).money
    assert whole.teacher_cached == pytest.approx(601 * 0.5 + 30 * 10)
    assert whole.break_even is None


def test_a_student_that_costs_more_never_pays():
    dear = Prices(1000.0, 1000.0)
    money = cost_of(TEACHERS, STUDENTS, teacher_prices=Prices(2.0, 10.0), student_prices=dear, run=3.0).money
    assert money.student == pytest.approx(25 * 1000)
    assert money.break_even is None
    assert cost_of(TEACHERS, STUDENTS, teacher_prices=Prices(2.0, 10.0), run=0.0).money.break_even == 0
