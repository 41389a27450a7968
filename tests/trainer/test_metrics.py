"""Figures between two log lines are means over tokens, not over batches."""

from __future__ import annotations

import pytest
import torch

from trl_distill.models.completion_forward import CompletionOutput
from trl_distill.trainer.metrics import DistillationMetrics


def output(kl, tokens):
    sums = {name: torch.tensor(float(tokens)) for name in ("loss", "ce", "entropy", "top1_agreement", "top1_correct")}
    return CompletionOutput(kl=torch.tensor(kl * tokens), **sums)


def take(metrics):
    return metrics.pop_means(lambda sums: sums, torch.device("cpu"))


def test_means_are_weighted_by_tokens():
    metrics = DistillationMetrics()
    metrics.add(output(1.0, 1), torch.tensor(1), torch.tensor(5))
    metrics.add(output(4.0, 9), torch.tensor(9), torch.tensor(15))
    means = take(metrics)
    assert means["kl"] == pytest.approx((1 * 1 + 4 * 9) / 10)
    assert means["ce"] == pytest.approx(1)
    assert means["num_tokens"] == 20


def test_means_restart_at_each_log_and_tokens_add_up():
    metrics = DistillationMetrics()
    metrics.add(output(1.0, 2), torch.tensor(2), torch.tensor(4))
    take(metrics)
    metrics.add(output(3.0, 2), torch.tensor(2), torch.tensor(4))
    means = take(metrics)
    assert means["kl"] == pytest.approx(3)
    assert means["num_tokens"] == 8
    assert means["tokens_per_second"] > 0


def test_no_batches_give_no_metrics():
    assert take(DistillationMetrics()) == {}


def test_metrics_are_summed_over_ranks():
    metrics = DistillationMetrics()
    metrics.add(output(2.0, 4), torch.tensor(4), torch.tensor(4))
    means = metrics.pop_means(lambda sums: torch.cat([sums, sums]), torch.device("cpu"))
    assert means["kl"] == pytest.approx(2)
    assert means["num_tokens"] == 8


def test_means_over_a_long_interval_stay_precise():
    """Float32 sums of these would stop at 2**24 tokens and lose the small losses behind a large one."""
    metrics = DistillationMetrics()
    many = torch.tensor(2**24)
    metrics.add(output(1.0, 2**24), many, many)
    for _ in range(5000):
        metrics.add(output(1e-3, 1), torch.tensor(1), torch.tensor(1))
    means = take(metrics)
    assert means["num_tokens"] == 2**24 + 5000
    assert means["kl"] == pytest.approx((2**24 + 5000 * float(torch.tensor(1e-3))) / (2**24 + 5000), rel=1e-10)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_nan_is_logged_as_nan(value):
    metrics = DistillationMetrics()
    for kl in (1.0, value, 1.0):
        metrics.add(output(kl, 2), torch.tensor(2), torch.tensor(2))
    assert take(metrics)["kl"] == pytest.approx(value, nan_ok=True)
