"""Run an evaluation: every side generates for the same rows, and metrics and a verdict are computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .cost import Prices, cost_of
from .fidelity import RowFidelity, summed
from .metrics import Metric, repeats, scores_of
from .pieces import token_pieces
from .result import AFTER, BEFORE, PROMPTED, TEACHER, Evaluation, Judgement, Side, TokenRow
from .sides import LABELS, Sides, Written
from .verdict import decide

Judge = Callable[[Sequence[tuple[Side, Side]], Sequence[str], Sequence[str] | None], Judgement | None]
TOKEN_ROWS = 6  # that are shown token by token


@dataclass(frozen=True)
class Measures:
    """Settings of what is measured.

    Attributes:
        metrics: The one that decides first.
        with_teacher_prompt: Whether the trained student also writes under the teacher's prompt.
        timed_queries: Queries to time; 0 times none.
        teacher_prices: Prices of the teacher's tokens; None gives no money.
        student_prices: Prices of the student's tokens; None are the teacher's.
        run_cost: What training cost, in the same unit; None is not known.
        judge: Judges pairs of sides: returns what it says of them, None if it failed. None asks no judge.
        seed: Resampling seed of the intervals.
    """

    metrics: Sequence[Metric]
    with_teacher_prompt: bool = False
    timed_queries: int = 8
    teacher_prices: Prices | None = None
    student_prices: Prices | None = None
    run_cost: float | None = None
    judge: Judge | None = None
    seed: int = 0


def evaluate_sides(
    sides: Sides,
    measures: Measures,
    *,
    settings: Mapping[str, object] | None = None,
    versions: Mapping[str, str] | None = None,
) -> Evaluation:
    """Generate with every side, one model after the other, and return the evaluation.

    Two models are in memory at most: the teacher's, which every student is compared with, and a student's.

    Args:
        sides: The compared models and the rows.
        measures: What is measured.
        settings: How it was evaluated, for the reader of the result: JSON values by name.
        versions: Versions of the packages, by name.
    """
    teacher, written, fidelity = sides.teacher(), {}, {}
    before, after = sides.models.before, sides.models.after
    if before is not None:
        written[BEFORE], fidelity[BEFORE] = sides.student(BEFORE, before), sides.fidelity(before)
        before.unload()
    written[AFTER], fidelity[AFTER] = sides.student(AFTER, after), sides.fidelity(after)
    if measures.with_teacher_prompt:
        written[PROMPTED] = sides.student(PROMPTED, after, sides.prompted())
    timings = sides.timings(measures.timed_queries) if measures.timed_queries else {}
    given = [question.reference for question in sides.questions]
    references = tuple(reference or "" for reference in given) if any(given) else None
    shown = {**written, TEACHER: teacher}
    parts = {
        name: _side(
            name, shown[name], measures.metrics, teacher.texts if references is None else given, fidelity.get(name)
        )
        for name in (BEFORE, AFTER, PROMPTED, TEACHER)
        if name in shown
    }
    metric = measures.metrics[0]
    scores = {name: side.scores[metric.name] for name, side in parts.items()}
    decision = decide(
        before=scores.get(BEFORE), after=scores[AFTER], teacher=scores[TEACHER], metric=metric.label, seed=measures.seed
    )
    return Evaluation(
        inputs=tuple(question.row.input for question in sides.questions),
        references=references,
        sides=tuple(parts.values()),
        metric=metric.name,
        **decision._asdict(),
        cost=cost_of(
            parts[TEACHER],
            parts[AFTER],
            teacher_timing=timings.get(TEACHER),
            student_timing=timings.get(AFTER),
            teacher_prices=measures.teacher_prices,
            student_prices=measures.student_prices,
            cached_tokens=sides.common_tokens,
            run=measures.run_cost,
        ),
        judgement=None if measures.judge is None else measures.judge(*_to_judge(parts, references)),
        token_rows=_token_rows(sides, fidelity.get(BEFORE), fidelity[AFTER]),
        settings=settings or {},
        versions=versions or {},
    )


def _side(
    name: str,
    written: Written,
    metrics: Sequence[Metric],
    references: Sequence[str | None],
    fidelity: Sequence[RowFidelity] | None,
) -> Side:
    ends = zip(written.texts, written.finished, strict=True)
    return Side(
        name=name,
        label=LABELS[name],
        model=written.model,
        prompts=tuple(prompt.text for prompt in written.prompts),
        prompt_tokens=tuple(len(prompt.ids) for prompt in written.prompts),
        completions=written.texts,
        tokens=written.tokens,
        finished=written.finished,
        repeats=tuple(repeats(text, finished=finished) for text, finished in ends),
        scores=scores_of(metrics, written.texts, references),
        fidelity=None if fidelity is None else summed(fidelity),
    )


def _to_judge(
    parts: Mapping[str, Side], references: Sequence[str] | None
) -> tuple[list[tuple[Side, Side]], Sequence[str], Sequence[str] | None]:
    """Return the pairs for a judge: the trained student with the teacher and with the student before training.

    The request is the teacher's prompt, so that its instructions count.
    """
    others = [parts[name] for name in (TEACHER, BEFORE) if name in parts]
    return [(parts[AFTER], other) for other in others], parts[TEACHER].prompts, references


def _token_rows(
    sides: Sides, before: Sequence[RowFidelity] | None, after: Sequence[RowFidelity] | None
) -> tuple[TokenRow, ...]:
    """Return the rows on which the trained student is furthest from the teacher, token by token."""
    if after is None:
        return ()
    places = [i for i, row in enumerate(after) if row.divergences]
    places.sort(key=lambda i: -sum(after[i].divergences) / len(after[i].divergences))
    tokenizer = sides.models.after.tokenizer

    def row(place: int) -> TokenRow:
        ids = sides.questions[place].aligned.completion[-len(after[place].divergences) :]
        return TokenRow(
            row=place,
            pieces=token_pieces(tokenizer, ids),
            before=() if before is None else before[place].divergences,
            after=after[place].divergences,
        )

    return tuple(row(place) for place in places[:TOKEN_ROWS])
