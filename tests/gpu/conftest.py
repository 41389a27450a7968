"""What needs a GPU. Without one each test here is skipped and says so."""

from __future__ import annotations

import pytest
import torch
from conftest import make_model


@pytest.fixture(autouse=True)
def gpu(device):
    """The GPU on which a test of this folder runs."""
    if device.type == "cpu":
        pytest.skip("needs a GPU, and torch finds none")
    return torch.device(device.type, 0)


@pytest.fixture(scope="session")
def wide_teacher_dir(tmp_path_factory):
    """A wider teacher of the same tokenizer."""
    return make_model(tmp_path_factory.mktemp("models") / "wide-teacher", hidden=128, extra_rows=64)
