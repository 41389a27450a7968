"""The end of a search: a table, the best settings as YAML, whether they differ from the second, and the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from ...config.recipes import recipe_named
from ...config.search_space import shown, typed
from ...config.setting_names import flag_of, name_settings
from ...config.training_params import FIELDS
from ...config.user_files import shell_path
from ...data.atomic_file import write_text
from ...errors import printable
from ...evaluation.metrics import metric_label
from ...evaluation.result import Interval
from ..project_folder import params_to_keep
from .difference import difference_of
from .folder import AGAIN, BEST, TuningFolder
from .page import write_page
from .plan import Plan
from .result import TEACHERS, Difference, Trial, TuningResult
from .teacher import SharedTeacher

GAP = 2  # spaces between columns
OWN_TEACHERS = (
    "The trials have different teachers and the rows no references, so each trial is compared with its own teacher: "
    "the figures say how well it follows that one. To compare teachers, give --reference-column."
)
NOTHING_LEARNED = (
    "No trial is shown to close the gap: the interval of the best one includes 0. Train longer (--epochs), with a "
    "higher --lr or on more rows, or hold out more rows."
)


def outcome_line(trial: Trial, result: TuningResult) -> str:
    """Return what a trial has come to, in one line."""
    took = f"{trial.seconds:,.0f} s"
    if trial.state != "finished":
        return f"{trial.state}: {trial.reason.rstrip('.')}; {took}"
    parts = [f"gap closed {_interval(trial.gap_closed)}"] if result.objective == "gap closed" else []
    parts.append(f"{metric_label(trial.metric)} {_figure(trial.score, '.1f')}")
    if trial.divergence is not None:
        parts.append(f"divergence {trial.divergence:.3f}")
    best = "; the best so far" if result.finished and result.best.number == trial.number else ""
    return f"{', '.join([*parts, took])}{best}"


def conclude(folder: TuningFolder, result: TuningResult, best: Plan, teacher: SharedTeacher) -> TuningResult:
    """Write the best settings and the page, print the table, and return the result with its paths."""
    settings = _write_settings(folder, result, best)
    teacher.give(folder.path / AGAIN)
    first_two = result.finished[:2]
    difference = difference_of(*first_two, objective=result.objective) if len(first_two) == 2 else None
    result = replace(result, difference=difference, paths={**result.paths, "settings": settings})
    found = [best_sentence(result)]
    if difference is not None:
        found.append(difference_sentence(difference, second=first_two[1], metric=first_two[0].metric))
    found += doubts(result)
    result = replace(result, paths={**result.paths, **write_page(folder.path, result, found)})
    print(printable(f"\n{name_settings(table(result))}\n"))
    for line in (*found, *places(result)):
        print(printable(name_settings(line)))
    return result


def table(result: TuningResult) -> str:
    """Return the trials as a table, the best first."""
    names = list(dict.fromkeys(name for trial in result.trials for name in trial.settings))
    metric = next((trial.metric for trial in result.finished), "")
    columns = [
        ("trial", [str(trial.number) for trial in result.trials]),
        *((flag_of(name), [shown(trial.settings.get(name)) for trial in result.trials]) for name in names),
        ("gap closed", [_interval(trial.gap_closed) for trial in result.trials]),
        (metric_label(metric), [_figure(trial.score, ".1f") for trial in result.trials]),
        ("divergence", [_figure(trial.divergence, ".4f") for trial in result.trials]),
        ("time", [f"{trial.seconds:,.0f} s" for trial in result.trials]),
        ("", ["" if trial.state == "finished" else trial.state for trial in result.trials]),
    ]
    return _aligned([(name, cells) for name, cells in columns if any(cell.strip("-") for cell in cells)])


def best_sentence(result: TuningResult) -> str:
    """Return which trial is best, and by what."""
    best = result.best
    return f"Best by {_objective(result)}: trial {best.number} ({typed(best.settings)})."


def doubts(result: TuningResult) -> list[str]:
    """Return what the figures do not show."""
    best, found = result.best, []
    closed = [trial.gap_closed for trial in result.finished if trial.gap_closed is not None]
    if result.objective != "divergence" and best.gap_closed is not None and all(gap.low <= 0 for gap in closed):
        found.append(NOTHING_LEARNED)
    if not best.with_references and TEACHERS & best.settings.keys():
        found.append(OWN_TEACHERS)
    return found


def places(result: TuningResult) -> list[str]:
    """Return where everything is."""
    folder, settings = result.best.folder, result.paths["settings"]
    has_model = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    return [
        *([f"Its model is in {folder}."] if has_model else []),
        *([f"The report page is {result.paths['page']}."] if "page" in result.paths else []),
        f"Its settings are in {settings}; train with them again, or with more data:",
        f"  aitraining llm --config {shell_path(settings)}",
    ]


def difference_sentence(difference: Difference, *, second: Trial, metric: str) -> str:
    """Return whether the best trial differs from the second by more than noise."""
    found, rows = difference.interval, f"{difference.rows:,} held-out rows"
    form = ".1f" if difference.unit == "points" else ".4f"
    what = f"{metric_label(metric)}, points" if difference.unit == "points" else "divergence, nats per token"
    interval = f"{found.level:.0%} interval {found.low:{form}} to {found.high:{form}}"
    measured = f"{what}: {found.estimate:{form}} better, {interval}, on the same {rows}"
    if difference.is_beyond_noise:
        return f"It differs from the second, trial {second.number}, by more than noise ({measured})."
    needed = difference.rows_needed
    more = f"; about {needed:,} rows would show a difference of this size" if needed else ""
    return f"It does not differ from the second, trial {second.number}, by more than noise ({measured}){more}."


def _objective(result: TuningResult) -> str:
    if result.objective == "divergence":
        return "the divergence from the teacher"
    return "the gap closed" if result.objective == "gap closed" else metric_label(result.best.metric)


def _write_settings(folder: TuningFolder, result: TuningResult, best: Plan) -> Path:
    """Write the settings of the best trial: those that were tuned, and those that are not the default."""
    kept = {**params_to_keep(best.params), "project_name": str(folder.path / AGAIN)}
    recipe = best.params.recipe  # which would set what is not given
    named = {"project_name", *result.best.settings, *(() if recipe is None else recipe_named(recipe).values)}
    values = {name: value for name, value in kept.items() if name in named or value != FIELDS[name].default}
    count = f"{len(result.trials)} trials"
    head = f"# The best of {count}, trial {result.best.number}: aitraining llm --config {BEST}\n"
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return write_text(folder.path / BEST, head + text)


def _interval(given: Interval | None) -> str:
    if given is None:
        return "-"
    if math.isinf(given.low) or math.isinf(given.high):
        return f"{given.estimate:.2f}"
    return f"{given.estimate:.2f} ({given.low:.2f} to {given.high:.2f})"


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:{form}}"


def _aligned(columns: Sequence[tuple[str, Sequence[str]]]) -> str:
    widths = [max(len(name), *map(len, cells)) for name, cells in columns]
    rows = [[name for name, _ in columns], *zip(*(cells for _, cells in columns), strict=True)]
    return "\n".join(
        "  " + (" " * GAP).join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
