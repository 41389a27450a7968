"""The result of an evaluation, as frozen values with JSON conversion.

The sides hold what was written and measured, row by row, in the order of the rows; `metrics`, `interval`, `verdict`,
`cost` and `judge` make the figures from them. A figure that does not exist (a score of a row without a reference, a
comparison without a teacher) is NaN in a row and None elsewhere, and null in JSON.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal

BEFORE = "before"  # the student before training, under the student's prompt
AFTER = "after"  # the student after training, under the student's prompt
TEACHER = "teacher"  # the teacher, under the teacher's prompt
PROMPTED = "prompted"  # the student after training, under the teacher's prompt

VerdictKind = Literal["works", "does not work", "no verdict"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        estimate: The figure on these rows.
        low: Lower end; -inf if the rows do not bound it.
        high: Upper end; inf if the rows do not bound it.
        level: Its confidence, 0.95 for a 95 % interval.
    """

    estimate: float
    low: float
    high: float
    level: float = 0.95

    @property
    def is_bounded(self) -> bool:
        """Whether both ends are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True)
class Fidelity:
    """Divergence and agreement of a student's and the teacher's next-token distributions, on the teacher's completions.

    Attributes:
        divergence: Mean KL(teacher || student) per token in nats, for each row.
        agreement: Share of tokens with the teacher's most likely token, in 0..1, for each row.
        tokens: Number of compared tokens, for each row.
    """

    divergence: tuple[float, ...]
    agreement: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def mean_divergence(self) -> float:
        """The divergence of a token over all rows, in nats; NaN without a token."""
        return _weighted(self.divergence, self.tokens)

    @property
    def mean_agreement(self) -> float:
        """The share of all tokens whose likeliest token is the teacher's; NaN without a token."""
        return _weighted(self.agreement, self.tokens)


@dataclass(frozen=True)
class Side:
    """One model's completions under one prompt.

    Attributes:
        name: `BEFORE`, `AFTER`, `TEACHER` or `PROMPTED`.
        label: Display name, such as "student before".
        model: Name or folder of the model.
        prompts: Text of the prompt, for each row.
        prompt_tokens: Length of the prompt in this model's tokens, for each row.
        completions: Text of the completion, for each row.
        tokens: Length of the completion in this model's tokens, stop token included, for each row.
        finished: Whether the model ended the completion; if not, it was cut. For each row.
        repeats: Whether the completion repeats itself, for each row; see `metrics.repeats`.
        scores: By metric and row, 0 to 100; NaN for a row that the metric does not apply to.
        fidelity: Closeness to the teacher token by token; None for the teacher, or if it gives no distribution.
    """

    name: str
    label: str
    model: str
    prompts: tuple[str, ...]
    prompt_tokens: tuple[int, ...]
    completions: tuple[str, ...]
    tokens: tuple[int, ...]
    finished: tuple[bool, ...]
    repeats: tuple[bool, ...]
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    fidelity: Fidelity | None = None

    def mean_score(self, metric: str) -> float:
        """Return the mean score over the rows that the metric applies to, 0 to 100; NaN if there is none."""
        return _mean([score for score in self.scores[metric] if not math.isnan(score)])

    @property
    def mean_length(self) -> float:
        """The mean length of a completion in tokens."""
        return _mean(self.tokens)

    @property
    def finished_share(self) -> float:
        """The share of completions that the model ended, in 0..1."""
        return _mean(self.finished)

    @property
    def repeated_share(self) -> float:
        """The share of completions that repeat themselves, in 0..1."""
        return _mean(self.repeats)


@dataclass(frozen=True)
class TokenRow:
    """The divergence of each token of one of the teacher's completions.

    Attributes:
        row: Index of the row.
        pieces: The text of each token.
        before: KL(teacher || student before) in nats at each token; empty without that side.
        after: KL(teacher || student after) in nats at each token.
    """

    row: int
    pieces: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True)
class Verdict:
    """Whether the student works without the teacher's prompt.

    Attributes:
        kind: "works", "does not work" or "no verdict".
        sentence: The verdict in one line.
        rows_needed: How many rows would allow a verdict, if too few were the reason that there is none; else None.
    """

    kind: VerdictKind
    sentence: str
    rows_needed: int | None = None


@dataclass(frozen=True)
class Timing:
    """The latency of a query.

    Attributes:
        first_token: Median seconds to the first token; None if it was not measured.
        query: Median seconds to the end of the completion.
        queries: How many were measured, without the warm-up.
    """

    first_token: float | None
    query: float
    queries: int


@dataclass(frozen=True)
class Money:
    """The cost of a million queries, in the unit of the prices.

    Attributes:
        teacher: With the teacher.
        student: With the student.
        teacher_cached: With the teacher, if the text that all its prompts begin with is billed as cached; None without
            a price for that.
        run: What training cost; None if that is not known.
        break_even: After how many queries training has paid for itself; None if never, or `run` is not known.
        break_even_cached: The same against `teacher_cached`.
    """

    teacher: float
    student: float
    teacher_cached: float | None = None
    run: float | None = None
    break_even: int | None = None
    break_even_cached: int | None = None


@dataclass(frozen=True)
class Cost:
    """The cost of a query with the teacher and with the student; lengths are means over the rows.

    Attributes:
        teacher_tokens: Length of the teacher's prompt in tokens.
        student_tokens: Length of the student's prompt in tokens.
        teacher_characters: Length of the teacher's prompt in characters.
        student_characters: Length of the student's prompt in characters.
        compression: `teacher_characters / student_characters`.
        teacher_timing: How long a query of the teacher takes; None if it was not measured.
        student_timing: How long a query of the student takes; None if it was not measured.
        speedup: The teacher's seconds per query divided by the student's; None if they were not measured.
        money: What a million queries cost; None without prices.
    """

    teacher_tokens: float
    student_tokens: float
    teacher_characters: float
    student_characters: float
    compression: float
    teacher_timing: Timing | None = None
    student_timing: Timing | None = None
    speedup: float | None = None
    money: Money | None = None


@dataclass(frozen=True)
class Comparison:
    """Which of two sides a judge prefers; it is asked about each row twice, in both orders.

    Attributes:
        first: Name of a side.
        second: Name of the other side.
        preferences: Of each row, the share of answers that prefer `first`, a tie being half: 0 to 1; NaN if the judge
            gave no answer that could be read.
        win_rate: The mean preference for `first` in per cent, 50 for a tie; None if no answer could be read.
        consistent: The share of rows whose two answers agree, in 0..1, without those that were not asked about as
            both completions are equal; NaN if there is none.
    """

    first: str
    second: str
    preferences: tuple[float, ...]
    win_rate: Interval | None
    consistent: float


@dataclass(frozen=True)
class Judgement:
    """A judge's preferences.

    Attributes:
        judge: The model that judges.
        comparisons: Its comparisons of two sides each.
    """

    judge: str
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Evaluation:
    """Sides on the same rows, and the figures made from them.

    Attributes:
        inputs: Text of the user's input, for each row.
        references: Reference completion of each row; None if there are none, and the teacher's are used.
        sides: In the order in which they are shown.
        metric: Name of the metric that decides.
        gain: Mean score after minus before, in points; None without one of them.
        teacher_gain: Mean score of the teacher minus before, in points; None without one of them.
        gap_closed: `gain / teacher_gain`; None without one of the sides, or if the teacher's gain is 0.
        verdict: Whether it works.
        cost: What a query costs; None without a teacher's prompt.
        judgement: What a judge says; None if none was asked.
        token_rows: A few rows token by token.
        settings: How it was evaluated, by name: JSON values.
        versions: Versions of the packages, by name.
    """

    inputs: tuple[str, ...]
    references: tuple[str, ...] | None
    sides: tuple[Side, ...]
    metric: str
    gain: Interval | None
    teacher_gain: Interval | None
    gap_closed: Interval | None
    verdict: Verdict
    cost: Cost | None = None
    judgement: Judgement | None = None
    token_rows: tuple[TokenRow, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def with_references(self) -> bool:
        """Whether the rows have references of their own."""
        return self.references is not None

    def side(self, name: str) -> Side | None:
        """Return the side of this name; None if it was not evaluated."""
        return next((side for side in self.sides if side.name == name), None)

    def to_dict(self) -> dict[str, object]:
        """Return values that JSON knows, with a summary of each side beside its rows."""
        written: dict[str, Any] = _to_json(asdict(self))
        for side, entry in zip(self.sides, written["sides"], strict=True):
            entry["summary"] = _to_json(summary(side))
        return written

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Evaluation:
        """Return what `to_dict` wrote; names that it does not know are ignored.

        Raises:
            TypeError: Something is missing that has no default.
        """
        return _from_json(cls, values)


def summary(side: Side) -> dict[str, object]:
    """Return the means of a side over its rows by name; "scores" has one for each metric."""
    fidelity = side.fidelity
    return {
        "scores": {metric: side.mean_score(metric) for metric in side.scores},
        "length": side.mean_length,
        "finished": side.finished_share,
        "repeated": side.repeated_share,
        "divergence": None if fidelity is None else fidelity.mean_divergence,
        "agreement": None if fidelity is None else fidelity.mean_agreement,
    }


def _mean(values: typing.Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _weighted(values: typing.Sequence[float], weights: typing.Sequence[int]) -> float:
    total = sum(weights)
    pairs = zip(values, weights, strict=True)
    return sum(value * weight for value, weight in pairs if weight) / total if total else math.nan


def _to_json(value: Any) -> Any:
    """Return a value as JSON has it: lists, and null for NaN; an infinite number is written as text."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _from_json(kind: Any, value: Any) -> Any:
    """Return a value of JSON as an annotated type has it."""
    if isinstance(kind, types.UnionType):  # X | None: there is no other
        return None if value is None else _from_json(typing.get_args(kind)[0], value)
    if kind is float:
        return math.nan if value is None else float(value)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        given = [part.name for part in fields(kind) if part.name in value]
        return kind(**{name: _from_json(hints[name], value[name]) for name in given})
    if typing.get_origin(kind) is tuple:
        return tuple(_from_json(typing.get_args(kind)[0], item) for item in value)
    if typing.get_origin(kind) is Mapping:
        return {key: _from_json(typing.get_args(kind)[1], item) for key, item in value.items()}
    return value
