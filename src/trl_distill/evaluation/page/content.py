"""The content of a report page, as frozen values for JSON: a run and its evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

from ..result import Evaluation
from .charts import Chart, Line
from .search import SearchOnPage

FORMAT = 1  # of report.json; a number that changes if a name in it changes its meaning
Logs = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Advice:
    """A warning, and the setting to change.

    Attributes:
        code: Stable name, for dashboards.
        text: One sentence or two.
        of: "training" or "evaluation": what it was seen in.
    """

    code: str
    text: str
    of: str = "training"


@dataclass(frozen=True)
class Step:
    """The next step.

    Attributes:
        title: Its purpose.
        command: A command, or code to run.
    """

    title: str
    command: str


EVALUATE = "aitraining evaluate"  # the step that an evaluation has done


@dataclass(frozen=True)
class TrainedRow:
    """A row of the run's data, and what the trained student makes of it.

    Attributes:
        number: The row's number in the data.
        prompt: The student's prompt.
        learned: The completion in the data, or the teacher's.
        written: The student's greedy completion; None if it was not generated.
        finished: Whether it ended by itself; None if it had to stop before the learned completion would have ended.
        tokens: Tokens that it wrote.
        pieces: The text of each token of the learned completion; empty if they were not measured.
        divergence: Divergence from the teacher at each of them, in nats; empty without a teacher's distribution.
        cross_entropy: The student's cross-entropy at each of them, in nats.
        repeats: Whether what it wrote repeats itself, see `metrics.repeats`.
    """

    number: int
    prompt: str
    learned: str
    written: str | None = None
    finished: bool | None = None
    tokens: int = 0
    pieces: tuple[str, ...] = ()
    divergence: tuple[float, ...] = ()
    cross_entropy: tuple[float, ...] = ()
    repeats: bool = False


@dataclass(frozen=True)
class Training:
    """The training of a student.

    Attributes:
        student: Name or folder of the student's model.
        teacher: Name of the teacher; None of plain fine-tuning.
        prompts: Templates by side, "student" and "teacher", as text.
        steps: Optimizer steps that were made.
        seconds: Training time.
        seed: Random seed.
        computed: Device, precision and optimizer, as the pre-flight shows them.
        history: The trainer's log lines.
        metrics: The run's figures by name, those of the data left out.
        settings: All settings by name.
        changed: Names of the settings that differ from their defaults.
        data: Figures of the pre-flight by dataset.
        rows_from: Which dataset `rows` are of: "train" or "validation".
        rows: A few rows.
        divergence: Name of the divergence in `rows`, with its temperature.
        versions: Versions of Python and the packages, by name.
    """

    student: str
    teacher: str | None
    prompts: Mapping[str, str]
    steps: int
    seconds: float
    seed: int
    computed: str
    history: tuple[Mapping[str, float], ...]
    metrics: Mapping[str, float]
    settings: Mapping[str, object]
    changed: tuple[str, ...]
    data: Mapping[str, Mapping[str, object]]
    rows_from: str = "train"
    rows: tuple[TrainedRow, ...] = ()
    divergence: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Training:
        """Return what `asdict` made; names that it does not know are ignored.

        Raises:
            TypeError: Something is missing that has no default.
        """
        known = {part.name: values[part.name] for part in fields(cls) if part.name in values}
        rows = known.get("rows", [])
        if not isinstance(rows, list):
            raise TypeError("rows is not a list")
        return cls(**{**known, "rows": tuple(_row(row) for row in rows)})  # type: ignore[arg-type]


def _row(values: Mapping[str, object]) -> TrainedRow:
    known = {part.name: values[part.name] for part in fields(TrainedRow) if part.name in values}
    return TrainedRow(**{name: tuple(v) if isinstance(v, list) else v for name, v in known.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class StageOfRun:
    """One stage of a run in stages.

    Attributes:
        number: Counted from 1.
        folder: Its project, relative to that of the whole run; empty for the last stage, which is there.
        settings: Its settings that the page compares, by name.
        steps: Optimizer steps that were made; None if its report could not be read, as for what follows.
        seconds: Training time.
        loss: (step, loss) of its log lines.
        divergence: (step, divergence from the teacher in nats per token); empty if it was not measured.
        evaluation: Its loss on held-out rows; None without any.
    """

    number: int
    folder: str
    settings: Mapping[str, object]
    steps: int | None = None
    seconds: float | None = None
    loss: tuple[tuple[float, float], ...] = ()
    divergence: tuple[tuple[float, float], ...] = ()
    evaluation: float | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> StageOfRun:
        """Return what `asdict` made; names that it does not know are ignored.

        Raises:
            TypeError, ValueError: Something is missing that has no default, or a curve is none.
        """
        known = {part.name: values[part.name] for part in fields(cls) if part.name in values}
        curves = {
            name: tuple((float(step), float(value)) for step, value in known.get(name, ()))  # type: ignore[attr-defined]
            for name in ("loss", "divergence")
        }
        return cls(**{**known, **curves})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Report:
    """A page.

    Attributes:
        name: Name of the project.
        created: When it was written, ISO 8601 in UTC.
        training: The run that made the student; None if only an evaluation is known.
        evaluation: Its evaluation; None if there is none yet.
        advice: The warnings.
        next_steps: The next step.
        stages: All stages of a run in stages, the last of which is `training`; else none.
        search: The search whose best trial `training` and `evaluation` are of; None without one.
    """

    name: str
    created: str
    training: Training | None = None
    evaluation: Evaluation | None = None
    advice: tuple[Advice, ...] = ()
    next_steps: tuple[Step, ...] = ()
    stages: tuple[StageOfRun, ...] = ()
    search: SearchOnPage | None = None

    def to_dict(self) -> dict[str, object]:
        """Return values that JSON knows."""
        return {
            "format": FORMAT,
            "name": self.name,
            "created": self.created,
            "advice": [asdict(entry) for entry in self.advice],
            "next_steps": [asdict(step) for step in self.next_steps],
            "evaluation": None if self.evaluation is None else self.evaluation.to_dict(),
            "training": None if self.training is None else _finite(asdict(self.training)),
            "stages": [_finite(asdict(stage)) for stage in self.stages],
            "search": None if self.search is None else _finite(asdict(self.search)),
        }


def _finite(value: object) -> object:
    """Return a value with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def charts_of(history: Logs) -> list[Chart]:
    """Return the charts of a run's log lines; one without any figure is left out."""

    def lines(key: str, label: str = "", colours: tuple[str, str] = ("first", "second")) -> tuple[Line, ...]:
        found = [
            Line(f"{label}{where}", colour, curve(history, key, evaluation=evaluation))
            for where, colour, evaluation in zip(("training", "evaluation"), colours, (False, True), strict=True)
        ]
        return tuple(line for line in found if line.points)

    retained = lines("retain_kl", "rows to retain, ", ("third", "fourth"))
    charts = (
        Chart("Loss", "", lines("loss")),
        Chart("Divergence from the teacher", "nats per token", (*lines("kl"), *retained), from_zero=True),
        Chart("Likeliest token is the teacher's", "share of tokens", lines("top1_agreement"), percent=True),
        Chart("Likeliest token is the completion's", "share of tokens", lines("mean_token_accuracy"), percent=True),
        Chart("Cross-entropy of the completions", "nats per token", lines("ce"), from_zero=True),
        Chart("Learning rate", "", lines("learning_rate")[:1], from_zero=True),
    )
    return [chart for chart in charts if chart.lines]


def curve(history: Logs, key: str, *, evaluation: bool = False) -> tuple[tuple[float, float], ...]:
    """Return (step, value) of a figure in the log lines, of training or of evaluation, where it is finite."""
    points: dict[float, float] = {}
    for entry in history:
        if evaluation:
            prefix = next((k[:-4] for k in entry if k.startswith("eval_") and k.endswith("_loss")), "")
            value = entry.get(prefix + key) if prefix else None
        else:
            value = entry.get(key) if "loss" in entry else None
        if value is not None and math.isfinite(value):
            points[float(entry["step"])] = float(value)  # the last step may be evaluated twice
    return tuple(sorted(points.items()))
