"""The checker of gradients refuses the mistakes that pass the tolerances in use in this field."""

from __future__ import annotations

import pytest
import torch
from checks import check_close, relative_error
from losses.problems import make_case

CASE = make_case(bias=True, temperature=2.0)


def test_the_checker_accepts_right_gradients():
    _, gradients = CASE.run(impl="plain")
    check_close(gradients, {k: None if g is None else g * (1 + 1e-13) for k, g in gradients.items()}, 1e-12)


def test_the_checker_refuses_a_forgotten_temperature_squared():
    _, right = CASE.run(impl="plain")
    # the same loss whose divergence lost its T^2: alpha / T^2 against alpha, the cross-entropy's weight unchanged
    _, wrong = CASE.with_settings(alpha=0.0).run(impl="plain")
    _, kl = CASE.with_settings(alpha=1.0).run(impl="plain")
    forgotten = {k: 0.3 * wrong[k] + 0.7 * kl[k] / 4 for k in right}
    with pytest.raises(AssertionError, match="student_hidden: relative error"):
        check_close(forgotten, right, 1e-2)


@pytest.mark.parametrize("name", ["student_hidden", "student_weight", "student_bias"])
def test_the_checker_refuses_a_zero_gradient(name):
    _, right = CASE.run(impl="plain")
    with pytest.raises(AssertionError, match=f"{name}: relative error 1 "):
        check_close({**right, name: torch.zeros_like(right[name])}, right, 0.9)


def test_the_checker_refuses_a_missing_gradient():
    _, right = CASE.run(impl="plain")
    with pytest.raises(AssertionError, match="student_bias: None where"):
        check_close({**right, "student_bias": None}, right, 1.0)


def test_the_checker_refuses_a_forgotten_bias():
    _, right = CASE.run(impl="plain")
    without = make_case(bias=True, temperature=2.0)
    without.tensors["student_bias"] = torch.zeros_like(without.tensors["student_bias"])
    _, wrong = without.run(impl="plain")
    with pytest.raises(AssertionError, match="student_hidden: relative error"):
        check_close(wrong, right, 1e-2)


def test_the_checker_refuses_nan_and_infinity():
    one = torch.ones(2)
    assert relative_error(one * float("nan"), one) == float("inf")
    assert relative_error(one * float("inf"), one) == float("inf")
