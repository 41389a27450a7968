"""One trial: a plain run, and the evaluation of its student on the held-out rows."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ...config.training_params import LLMTrainingParams
from ...errors import DistillError, RunInterrupted, UsageError
from ...evaluation.result import AFTER, Evaluation
from ..api import run_with_callbacks
from ..evaluate import evaluate_distillation
from ..memory import free_memory
from ..progress import clock
from .folder import OUTPUT
from .output import TrialOutput
from .result import Rows, Trial

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from .plan import Plan

# what an evaluation during training reports that means the same at every temperature, and its sign if less is better
REPORTED = (("eval_top1_agreement", 1.0), ("eval_ce", -1.0))
FallsBehind = Callable[[float, float], bool]


class Pruned(Exception):  # no error: it ends a trial
    """A trial was stopped since it fell behind; its text says where."""


class EvaluationWatch(TrainerCallback):
    """Shows each evaluation of a trial and stops the trial if it falls behind.

    Args:
        falls_behind: Returns whether to stop, from the share of the steps that are done and a figure, more is better.
        say: Prints a line.
    """

    def __init__(self, falls_behind: FallsBehind, say: Callable[[str], None]) -> None:
        self.falls_behind, self.say = falls_behind, say

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Show and report an evaluation before the last step.

        Raises:
            Pruned: The trial falls behind.
        """
        name, sign = next(((name, sign) for name, sign in REPORTED if name in (metrics or {})), ("", 0.0))
        if not metrics or not name or state.global_step >= state.max_steps:
            return
        share, figure = state.global_step / state.max_steps, float(metrics[name])
        what = f"agree {figure:.0%}" if name == REPORTED[0][0] else f"ce {figure:.4g}"
        self.say(f"  {clock()}  {share:4.0%}  {what}")
        if math.isfinite(figure) and self.falls_behind(share, sign * figure):
            raise Pruned(f"{what} at step {state.global_step} of {state.max_steps}, less than the median trial")


def run_trial(
    plan: Plan,
    params: LLMTrainingParams,
    folder: Path,
    *,
    evaluation: Mapping[str, Any],
    falls_behind: FallsBehind,
    output: TrialOutput,
) -> tuple[Trial, Evaluation | None]:
    """Train and evaluate, or go on where a killed process was; return the outcome and the evaluation.

    Args:
        plan: The trial.
        params: The parameters of its run.
        folder: The run's project.
        evaluation: Arguments of `evaluate_distillation`.
        falls_behind: See `EvaluationWatch`.
        output: Where its output goes.

    Raises:
        UsageError: Something that is wrong with all trials; what is wrong with one alone makes it a failed one.
        RunInterrupted: Ctrl-C or SIGTERM; a checkpoint is written.
    """
    started = time.monotonic()

    def ended(**more: Any) -> Trial:
        return Trial(int(folder.name), plan.settings, folder, **more, seconds=round(time.monotonic() - started, 2))

    try:
        with output.written_to(folder / OUTPUT):
            run_with_callbacks(params, [EvaluationWatch(falls_behind, output.say)], verbose=output.verbose)
            _free_memory()  # of the trainer, before the evaluation loads its models
            figures = evaluate_distillation(str(folder), verbose=output.verbose, **evaluation)
    except Pruned as stop:
        return ended(state="pruned", reason=str(stop)), None
    except (UsageError, RunInterrupted):
        raise
    except DistillError as error:  # it diverged, or its memory ran out
        return ended(state="failed", reason=str(error)), None
    finally:
        _free_memory()
    found = figures.evaluation
    after = found.side(AFTER)
    assert after is not None
    fidelity, scores = after.fidelity, after.scores[found.metric]
    outcome = ended(
        state="finished",
        metric=found.metric,
        score=after.mean_score(found.metric),
        gap_closed=found.gap_closed,
        divergence=None if fidelity is None else fidelity.mean_divergence,
        with_references=found.with_references,
        rows=Rows(scores) if fidelity is None else Rows(scores, fidelity.divergence, fidelity.tokens),
    )
    return outcome, found


def _free_memory() -> None:
    """Free models that nothing uses, and leave what is in use now out of the search's later collections."""
    free_memory()
    gc.freeze()  # undone at the end of the search; without it each trial takes a second more
