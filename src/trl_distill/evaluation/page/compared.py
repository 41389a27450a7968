"""Completions side by side and token by token: row selection, order and highlighting."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..metrics import metric_label
from ..result import AFTER, BEFORE, PROMPTED, TEACHER, Evaluation, Side
from .content import TrainedRow, Training
from .text import cut, plainly_visible, similarity, visible, with_differences

LEVELS = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)  # nats at which the colour of a token changes
COLOURS = {BEFORE: "before", AFTER: "after", TEACHER: "teacher", PROMPTED: "prompted"}


@dataclass(frozen=True)
class Limits:
    """Size limits of a page.

    Attributes:
        rows: Rows side by side.
        characters: Characters of a completion or a prompt.
        token_rows: Rows token by token.
        tokens: Tokens of such a row.
        setting: Characters of a setting.
        template: Characters of a template.
    """

    rows: int
    characters: int
    token_rows: int
    tokens: int
    setting: int
    template: int


@dataclass(frozen=True)
class Cell:
    """One side's completion of a row.

    Attributes:
        label: The side.
        colour: The class of its label.
        shown: The text, differences marked.
        cut: Characters that are left out at its end.
        notes: Notes on it.
    """

    label: str
    colour: str
    shown: Markup
    cut: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ComparedRow:
    """A row with what every side wrote.

    Attributes:
        number: Counted from 1.
        prompt: The prompt.
        prompt_cut: Characters of it that are left out.
        trend: "worse", "better", "same", or empty if nothing can be compared.
        summary: The scores, in words.
        cells: The sides.
    """

    number: int
    prompt: Markup
    prompt_cut: int
    trend: str
    summary: str
    cells: tuple[Cell, ...]


def evaluated_rows(evaluation: Evaluation, limits: Limits) -> list[ComparedRow]:
    """Return rows of an evaluation, those that got worse by its metric first."""
    order = sorted(range(len(evaluation.inputs)), key=lambda row: _fallen(evaluation, row))
    return [_evaluated_row(evaluation, row, limits) for row in order[: limits.rows]]


def got_worse(evaluation: Evaluation) -> int:
    """Return how many rows have a lower score after training than before."""
    return sum(_fallen(evaluation, row)[0] < 0 for row in range(len(evaluation.inputs)))


def _fallen(evaluation: Evaluation, row: int) -> tuple[float, float]:
    """Return the points that a row's score fell, and its score; 0 and 100 without a score."""
    before, after = (_score(evaluation.side(name), evaluation.metric, row) for name in (BEFORE, AFTER))
    change = after - before
    return (0.0 if math.isnan(change) else min(change, 0.0), 100.0 if math.isnan(after) else after)


def _score(side: Side | None, metric: str, row: int) -> float:
    return math.nan if side is None or metric not in side.scores else side.scores[metric][row]


def _evaluated_row(evaluation: Evaluation, row: int, limits: Limits) -> ComparedRow:
    sides = {side.name: side for side in evaluation.sides}
    reference = None if evaluation.references is None else evaluation.references[row]
    teacher = sides.get(TEACHER)
    target = reference if reference is not None else None if teacher is None else teacher.completions[row]
    after = sides[AFTER].completions[row] if AFTER in sides else ""
    cells = []
    if reference is not None:
        cells.append(_cell("reference", "", reference, after, "del", limits))
    order = {TEACHER: 0, BEFORE: 1, AFTER: 2}
    for side in sorted(evaluation.sides, key=lambda side: order.get(side.name, 3)):
        text = side.completions[row]
        is_target = reference is None and side.name == TEACHER
        other, tag = (after, "del") if is_target else (text if target is None else target, "ins")
        notes = [f"{side.scores[evaluation.metric][row]:.0f}"] if _has_score(side, evaluation.metric, row) else []
        notes += [] if side.finished[row] else [f"not ended after {side.tokens[row]:,} tokens"]
        notes += ["repeats itself"] if side.repeats[row] else []
        cells.append(_cell(side.label, COLOURS.get(side.name, ""), text, other, tag, limits, notes))
    was, now = (_score(evaluation.side(name), evaluation.metric, row) for name in (BEFORE, AFTER))
    known = not math.isnan(now - was)
    trend = "" if not known else "worse" if now < was else "better" if now > was else "same"
    summary = f"{metric_label(evaluation.metric)} {was:.0f} → {now:.0f}" if known else ""
    prompt, left_out = cut(evaluation.inputs[row], limits.characters)
    return ComparedRow(row + 1, visible(prompt), left_out, trend, summary, tuple(cells))


def _has_score(side: Side | None, metric: str, row: int) -> bool:
    return not math.isnan(_score(side, metric, row))


def trained_rows(training: Training, limits: Limits) -> list[ComparedRow]:
    """Return rows of a run that the student wrote for, the least similar to the learned completion first."""
    asked = [(row, row.written) for row in training.rows if row.written is not None]
    alike = {row.number: similarity(text[: limits.characters], row.learned[: limits.characters]) for row, text in asked}
    shown = []
    for row, text in sorted(asked, key=lambda pair: alike[pair[0].number])[: limits.rows]:
        notes = [] if row.finished is not False else [f"not ended after {row.tokens:,} tokens"]
        notes += ["repeats itself"] if row.repeats else []
        prompt, left_out = cut(row.prompt, limits.characters)
        cells = (
            _cell("learned completion", "teacher", row.learned, text, "del", limits),
            _cell("student writes", "after", text, row.learned, "ins", limits, notes),
        )
        share = alike[row.number]
        summary = "the same" if share == 1 else f"{share:.0%} of the words alike"
        shown.append(ComparedRow(row.number, visible(prompt), left_out, "", summary, cells))
    return shown


def _cell(label: str, colour: str, text: str, other: str, tag: str, limits: Limits, notes: Sequence[str] = ()) -> Cell:
    """Return a cell; a text that is cut is compared with what the other has up to there."""
    shown, left_out = cut(text, limits.characters)
    return Cell(label, colour, with_differences(shown, other[: limits.characters], tag), left_out, tuple(notes))


@dataclass(frozen=True)
class Strip:
    """The tokens of a completion, coloured by a figure.

    Attributes:
        label: When or whose it is.
        mean: Mean of the figure, in nats per token.
        tokens: Text, class of its colour, and title of each.
    """

    label: str
    mean: float
    tokens: tuple[tuple[Markup, str, str], ...]


@dataclass(frozen=True)
class TokenMap:
    """A row token by token.

    Attributes:
        number: Number of the row, from 1.
        strips: One or several.
        left_out: Tokens that are left out at the end.
    """

    number: int
    strips: tuple[Strip, ...]
    left_out: int


def token_maps(training: Training | None, evaluation: Evaluation | None, limits: Limits) -> tuple[str, list[TokenMap]]:
    """Return the figure's name, and a few rows token by token: the evaluation's if it has any, else the run's."""
    if evaluation is not None and evaluation.token_rows:
        maps = [
            _map(row.row + 1, row.pieces, {"before training": row.before, "after training": row.after}, limits)
            for row in evaluation.token_rows[: limits.token_rows]
        ]
        return "KL(teacher ‖ student) of each token of the teacher's completion", maps
    if training is None:
        return "", []
    maps, measured = [], [row for row in training.rows if row.pieces]
    by_divergence = any(row.divergence for row in measured)
    for row in sorted(measured, key=lambda row: -_worst(row))[: limits.token_rows]:
        values = row.divergence if by_divergence else row.cross_entropy
        maps.append(_map(row.number, row.pieces, {"after training": values}, limits))
    return (training.divergence if by_divergence else "cross-entropy of each token of the learned completion"), maps


def _worst(row: TrainedRow) -> float:
    values = row.divergence or row.cross_entropy
    return sum(values) / max(len(values), 1)


def _map(number: int, pieces: Sequence[str], figures: dict[str, tuple[float, ...]], limits: Limits) -> TokenMap:
    strips = [
        Strip(label, sum(values) / len(values), tuple(_tokens(pieces[: limits.tokens], values)))
        for label, values in figures.items()
        if values
    ]
    return TokenMap(number, tuple(strips), max(0, len(pieces) - limits.tokens))


def _tokens(pieces: Sequence[str], values: Sequence[float]) -> Iterator[tuple[Markup, str, str]]:
    for piece, value in zip(pieces, values, strict=False):
        level = bisect.bisect_right(LEVELS, value)
        yield visible(piece), f"h{level}", f"{plainly_visible(piece)}: {value:.3g} nats"
