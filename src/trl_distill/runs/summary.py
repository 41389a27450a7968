"""A run's metrics from its log lines, including those from before a resumed run was stopped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MEANS = (
    "loss",
    "kl",
    "ce",
    "entropy",
    "top1_agreement",
    "mean_token_accuracy",
    "teacher_coverage",
    "on_policy",
    "on_policy_kl",
    "retain_kl",
    "aux_loss",
)


def training_means(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the means over a run's steps, as `train_loss`, `train_kl`, ...; the lines must cover all steps.

    Args:
        history: `trainer.state.log_history`; a line covers the steps since the one before.
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}  # a figure is missing from lines whose steps did not measure it
    before = 0
    for line in history:
        if "loss" not in line:
            continue
        steps, before = int(line["step"]) - before, int(line["step"])
        for name in MEANS:
            if name in line:
                sums[name] = sums.get(name, 0.0) + steps * line[name]
                counts[name] = counts.get(name, 0) + steps
    return {f"train_{name}": value / counts[name] for name, value in sums.items() if counts[name]}


def last_evaluation(history: Sequence[Mapping[str, float]], step: int) -> dict[str, float]:
    """Return the evaluation figures of a step; empty if it was not evaluated."""
    found = [line for line in history if line.get("step") == step and any(k.startswith("eval_") for k in line)]
    merged: dict[str, float] = {}
    for line in found:  # a dict of evaluation sets has a line for each
        merged |= {k: v for k, v in line.items() if k.startswith("eval_")}
    return merged


def not_finite(line: Mapping[str, float]) -> str | None:
    """Return the name of a loss in a log line that is not a finite number."""
    names = ("loss", "kl", "ce", "eval_loss")
    return next((name for name in names if name in line and not math.isfinite(line[name])), None)


def closing_lines(
    paths: Mapping[str, Path], metrics: Mapping[str, Any], steps: Mapping[str, str], *, seconds: float
) -> str:
    """Return the last lines that a run prints.

    Args:
        paths: The written files by name, see `RunResult`.
        metrics: Figures by name.
        steps: Commands to go on with, by what they do.
        seconds: How long everything took, loading and writing included.
    """
    shown = {k: metrics[k] for k in ("train_loss", "eval_loss", "eval_kl", "eval_ce") if k in metrics}
    figures = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    lines = [
        f"Done in {seconds:.0f} s (training {metrics['train_runtime']:.0f} s): {figures}.",
        f"Model, card and metrics are in {paths['project']}.",
        *([f"The report page is {paths['page']}."] if "page" in paths else []),
        "Next:",
        *(f"  {what + ':':<12} {command}" for what, command in steps.items()),
    ]
    return "\n".join(lines)
