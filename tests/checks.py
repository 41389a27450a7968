"""How gradients are compared: by relative norm, one tensor at a time.

Elementwise tolerances let a gradient that is T^2 too small pass where all of it is small; a relative norm does not.
`tests/losses/test_gradient_check.py` feeds the checker known mistakes, which it must refuse.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return |actual - expected| / |expected| in float64; the plain norm of the difference where nothing is expected.

    A value that is not finite is an infinite error.
    """
    actual, expected = actual.detach().double(), expected.detach().double()
    gap, size = (actual - expected).norm(), expected.norm()
    error = gap / size if size > 0 else gap
    return float(error) if bool(torch.isfinite(error)) else float("inf")


def check_close(
    actual: Mapping[str, torch.Tensor | None], expected: Mapping[str, torch.Tensor | None], at_most: float
) -> None:
    """Fail, naming the tensor, if one is missing or further from its expectation than `at_most` in relative norm."""
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        found = actual[name]
        assert (found is None) == (wanted is None), f"{name}: {found} where {wanted} was expected"
        if found is not None and wanted is not None:
            assert found.shape == wanted.shape, name
            error = relative_error(found, wanted)
            assert error <= at_most, f"{name}: relative error {error:.3g} is above {at_most:g}"
