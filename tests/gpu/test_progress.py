"""The memory that a run shows after three steps is what torch has allocated on the device."""

from __future__ import annotations

import re

import torch

from trl_distill.runs.progress import GIB, peak_memory


def test_the_peak_is_what_torch_has_allocated(device):
    torch.cuda.reset_peak_memory_stats(device)
    torch.empty(2**28, device=device)  # 1 GiB of float32, which is freed at once
    found = re.fullmatch(r"(\d+\.\d\d) of (\d+\.\d) GiB", peak_memory(device))
    assert found is not None
    assert float(found[1]) == round(torch.cuda.max_memory_allocated(device) / GIB, 2) >= 1
    assert float(found[2]) == round(torch.cuda.get_device_properties(device).total_memory / GIB, 1)
