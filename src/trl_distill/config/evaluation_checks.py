"""Checks of a run's settings that use evaluations during training. Standard library only."""

from __future__ import annotations

from typing import Protocol

from ..errors import ParamsError

BETTER_IF_LOWER, BETTER_IF_HIGHER = ("loss", "kl", "ce"), ("top1_agreement", "mean_token_accuracy")
NEED = ("load_best_model_at_end", "early_stopping_patience", "eval_on_start", "eval_samples")


class Evaluations(Protocol):
    """The settings that are checked, see `LLMTrainingParams`."""

    eval_strategy: str
    eval_steps: int | None
    logging_steps: int
    save_strategy: str
    save_steps: int
    early_stopping_patience: int | None
    early_stopping_threshold: float
    load_best_model_at_end: bool
    metric_for_best_model: str | None


def check_evaluations(settings: Evaluations) -> None:
    """Refuse settings that use evaluations and contradict each other.

    Raises:
        ParamsError: Naming the setting and what to do.
    """
    metric = settings.metric_for_best_model
    if metric is not None and metric.removeprefix("eval_") not in (*BETTER_IF_LOWER, *BETTER_IF_HIGHER):
        accepted = ", ".join((*BETTER_IF_LOWER, *BETTER_IF_HIGHER))
        raise ParamsError(f"metric_for_best_model is {metric!r}; expected one of {accepted}.")
    stops = settings.early_stopping_patience is not None
    if metric is not None and not stops and not settings.load_best_model_at_end:
        raise ParamsError(
            "metric_for_best_model has no use; add --load-best-model-at-end or --early-stopping-patience, or drop it."
        )
    if settings.early_stopping_threshold and not stops:
        raise ParamsError("early_stopping_threshold has no use; add --early-stopping-patience, or drop it.")
    named = needs_evaluations(settings)
    if named is not None and settings.eval_strategy == "no":
        raise ParamsError(f"{named} needs evaluations, and eval_strategy is 'no'; give --eval-strategy epoch.")
    if settings.load_best_model_at_end:
        _check_saves_what_it_evaluates(settings)


def needs_evaluations(settings: Evaluations) -> str | None:
    """Return the setting that needs an evaluation during training; None if there is none."""
    return next((name for name in NEED if getattr(settings, name)), None)


def _check_saves_what_it_evaluates(settings: Evaluations) -> None:
    """Check that every evaluation has a checkpoint of its weights."""
    if settings.save_strategy != settings.eval_strategy:
        raise ParamsError(
            f"load_best_model_at_end needs a checkpoint of each evaluation, but eval_strategy is "
            f"{settings.eval_strategy!r} and save_strategy {settings.save_strategy!r}; give both the same."
        )
    every = settings.eval_steps or settings.logging_steps
    if settings.save_strategy == "steps" and settings.save_steps % every:
        raise ParamsError(
            f"load_best_model_at_end needs a checkpoint of each evaluation, but save_steps is {settings.save_steps} "
            f"and there is an evaluation every {every} steps; give --save-steps {every}."
        )
