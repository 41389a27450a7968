"""Warnings about a run or an evaluation, each naming the setting to change.

Settings are named by their flags; `config.setting_names.name_settings` turns them into what the user writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..config.setting_names import name_settings
from ..data.preflight import SAME
from ..errors import counted
from .interval import mean_interval
from .page.content import Advice, Logs, TrainedRow, curve
from .result import AFTER, BEFORE, TEACHER, Evaluation

if TYPE_CHECKING:
    from ..config.training_params import LLMTrainingParams
    from ..data.preflight import Preflight

FEW_STEPS = 20  # fewer hardly move a model at the learning rates in use
SOME_STEPS = 60  # what a suggestion aims at
POINTS = 4  # log lines from which a trend is read
FALLEN = 0.95  # of the first quarter's mean: above this nothing was learned
RISEN = 1.1
SMALL = 0.01  # nats per token: there is nothing left to fall
WORSE = 5.0  # points by which a student is ahead of its teacher
MOST = 0.5  # a share that is most of something


def optimizer_steps(rows: int, params: LLMTrainingParams, *, processes: int = 1) -> tuple[int, int]:
    """Return how many optimizer steps a run makes, and how many of them warm up, as transformers counts them.

    Args:
        rows: Rows, or packed sequences of them.
        params: The run's parameters.
        processes: Number of training processes.
    """
    batches = math.ceil(rows / (params.batch_size * processes))
    steps = math.ceil(params.epochs * max(1, math.ceil(batches / params.gradient_accumulation)))
    steps = params.max_steps if params.max_steps > 0 else steps
    return steps, math.ceil(steps * params.warmup_ratio)


def few_steps(rows: int, steps: int, warmup: int, params: LLMTrainingParams) -> Iterator[Advice]:
    """Yield a sentence if a run makes too few optimizer steps.

    Args:
        rows: Rows that it trains on.
        steps: Optimizer steps.
        warmup: Number of warm-up steps; the first has learning rate 0.
        params: The run's parameters.
    """
    if steps >= FEW_STEPS:
        return
    made = "1 row makes" if rows == 1 else f"{rows:,} rows make"
    made = f"--max-steps {params.max_steps} makes" if params.max_steps > 0 else made
    made = f"{made} {counted(steps, 'optimizer step')}"
    idle = ", the first at learning rate 0" if warmup else ""
    per_epoch = math.ceil(rows / params.batch_size)
    epochs = math.ceil(SOME_STEPS / per_epoch)
    if params.max_steps > 0:
        remedy = f"give --max-steps {SOME_STEPS} or more"
    elif params.gradient_accumulation > 1:
        remedy = f"give --gradient-accumulation 1 and --epochs {max(epochs, math.ceil(params.epochs))}"
    else:
        remedy = f"give --epochs {max(epochs, math.ceil(params.epochs) + 1)}"
    yield _advice("too_few_steps", f"{made}{idle}: too few to learn from; {remedy}, or more rows.")


def of_data(preflight: Preflight | None) -> Iterator[Advice]:
    """Yield warnings about the rows, before training."""
    if preflight is None:
        return
    rows, cut = sum(preflight.sources.values()), preflight.completions_cut
    if rows and cut > MOST * rows:
        by_teacher = preflight.unfinished > MOST * cut
        remedy = (
            "raise --distill-max-teacher-length, or give --teacher-stop the text with which a base model continues"
            if by_teacher
            else "raise --block-size, or shorten the rows"
        )
        text = f"{cut:,} of {rows:,} completions are cut, so the student does not learn to end them; {remedy}."
        yield _advice("most_completions_cut", text)
    if preflight.warning:
        yield _advice("teaches_nothing" if preflight.warning == SAME else "nothing_saved", preflight.warning)


def of_training(
    history: Logs, rows: Sequence[TrainedRow], params: LLMTrainingParams, preflight: Preflight | None = None
) -> Iterator[Advice]:
    """Yield warnings about a finished run.

    Args:
        history: The trainer's log lines.
        rows: The trained student's completions of some rows.
        params: The run's parameters.
        preflight: What the training data are, if it is known.
    """
    yield from _not_falling(history, params)
    asked = [row for row in rows if row.written is not None]
    if asked:
        cut = preflight is not None and preflight.completions_cut > MOST * sum(preflight.sources.values())
        endless = 0 if cut else sum(row.finished is False for row in asked)  # it has learned that from what is cut
        yield from _does_not_end(endless, sum(row.repeats for row in asked), len(asked))


def of_evaluation(evaluation: Evaluation) -> Iterator[Advice]:
    """Yield warnings about the completions of an evaluation."""
    after, teacher = evaluation.side(AFTER), evaluation.side(TEACHER)
    rows = len(evaluation.inputs)
    if after is not None and rows:
        ends = teacher is None or teacher.finished_share > MOST
        endless = rows - sum(after.finished) if ends else 0  # else the limit is what ends them, which is said below
        yield from _does_not_end(endless, sum(after.repeats), rows, of="evaluation")
    if teacher is not None and teacher.finished_share <= MOST and rows:
        ended = f"the teacher ended {sum(teacher.finished):,} of {rows:,} completions"
        text = (
            f"{ended}; raise --distill-max-teacher-length (in an evaluation --max-new-tokens), or train with the "
            "--teacher-stop with which its answers end."
        )
        yield _advice("most_completions_cut", text, of="evaluation")
    yield from _without_reference(evaluation)
    yield from _teacher_is_worse(evaluation)
    cost = evaluation.cost
    if cost is not None and cost.student_tokens >= cost.teacher_tokens > 0:
        text = (
            f"nothing is saved per query: the student's prompt has {cost.student_tokens:,.1f} tokens, the teacher's "
            f"{cost.teacher_tokens:,.1f}; shorten --student-prompt-template."
        )
        yield _advice("nothing_saved", text, of="evaluation")


def _without_reference(evaluation: Evaluation) -> Iterator[Advice]:
    """Yield a warning if some rows have a completion of their own and the others therefore have no score."""
    after, rows = evaluation.side(AFTER), len(evaluation.inputs)
    scores = () if after is None else after.scores.get(evaluation.metric, ())
    unscored = sum(map(math.isnan, scores))
    if evaluation.with_references and 0 < unscored < rows:
        text = (
            f"{unscored:,} of {rows:,} rows have no completion of their own, and so no score; give each row one, or "
            "evaluate on rows without, whose scores are against the teacher's completions."
        )
        yield _advice("rows_without_score", text, of="evaluation")


def _teacher_is_worse(evaluation: Evaluation) -> Iterator[Advice]:
    """Yield a warning if the data's own completions are better than the teacher's."""
    teacher = evaluation.side(TEACHER)
    if teacher is None or not evaluation.with_references or evaluation.metric not in teacher.scores:
        return
    theirs = teacher.scores[evaluation.metric]
    for name, when in ((BEFORE, "before"), (AFTER, "after")):
        side = evaluation.side(name)
        if side is None or evaluation.metric not in side.scores:
            continue
        pairs = zip(side.scores[evaluation.metric], theirs, strict=True)
        ahead = [mine - their for mine, their in pairs if not math.isnan(mine - their)]
        if not ahead or _mean(ahead) < WORSE or mean_interval(ahead, limits=(-100.0, 100.0)).low <= 0:
            continue
        text = (
            f"the teacher is worse than the data's own completions: against them it scores "
            f"{teacher.mean_score(evaluation.metric):.1f} ({evaluation.metric}), the student {when} training "
            f"{side.mean_score(evaluation.metric):.1f}; give another --teacher-model or --teacher-prompt-template, or "
            "learn from the data's completions with a smaller --distill-alpha."
        )
        yield _advice("teacher_worse_than_data", text, of="evaluation")
        return


def _not_falling(history: Logs, params: LLMTrainingParams) -> Iterator[Advice]:
    """Yield a warning if the divergence does not fall; nothing if its temperature changes."""
    measured = curve(history, "kl", evaluation=True)
    points, where = (measured, "in evaluation") if len(measured) >= POINTS else (curve(history, "kl"), "in training")
    if len(points) < POINTS or params.distill_temperature_end is not None:
        return
    size = max(1, len(points) // 4)
    first, last = (_mean(values) for values in ([y for _, y in points[:size]], [y for _, y in points[-size:]]))
    if first < SMALL or last < FALLEN * first:
        return
    if last > RISEN * first:
        remedy = f"lower --lr (it is {params.lr:g})"
    else:
        remedy = f"raise --lr (it is {params.lr:g}) or --epochs, or check that the teacher's prompt asks for more"
    text = f"the divergence from the teacher does not fall {where} ({first:.3g} at first, {last:.3g} at the end)"
    yield _advice("divergence_not_falling", f"{text}; {remedy}.")


def _does_not_end(endless: int, repeated: int, rows: int, *, of: str = "training") -> Iterator[Advice]:
    """Yield warnings if the student repeats itself or does not stop."""
    more = "train longer (--epochs) or with a higher --lr"
    if endless > MOST * rows:
        text = f"the student does not end {endless:,} of {rows:,} completions by itself; {more}."
        yield _advice("student_does_not_end", text, of=of)
    if repeated > MOST * rows:
        text = f"the student repeats itself in {repeated:,} of {rows:,} completions; {more}, or give more rows."
        yield _advice("student_repeats", text, of=of)


def _advice(code: str, text: str, *, of: str = "training") -> Advice:
    return Advice(code, name_settings(_sentence(text)), of)


def _sentence(text: str) -> str:
    """Return a text that begins with a capital, unless that is a flag, and ends in a full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
