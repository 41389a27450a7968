"""The page of a search: `evaluation.page.search` from the trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ...config.search_space import shown
from ...config.setting_names import flag_of, name_settings
from ...config.user_files import shell_path
from ...errors import printable
from ...evaluation.metrics import metric_label
from ...evaluation.page.content import Step
from ...evaluation.page.search import SearchOnPage, TrialOnPage
from ...evaluation.page.write import write_search
from .result import Objective, Trial, TuningResult

AGAIN = "Train with the best settings again, or with more data"


def write_page(folder: Path, result: TuningResult, sentences: Sequence[str]) -> dict[str, Path]:
    """Write `report.html` and `report.json` of a search and return their paths by name; a failure is printed."""
    best, settings = result.best, result.paths["settings"]
    search = SearchOnPage(
        _heading(result.objective, best),
        metric_label(best.metric),
        tuple(_on_page(trial, result.objective) for trial in result.trials),
        tuple(map(name_settings, sentences)),
    )
    step = Step(AGAIN, f"aitraining llm --config {shell_path(settings)}")
    try:
        return write_search(folder, search, name=folder.resolve().name, best=best.folder, next_steps=[step])
    except Exception as error:  # what was found is worth more than its page
        print(printable(f"The page could not be made ({type(error).__name__}: {error})."))
        return {}


def _heading(objective: Objective, best: Trial) -> str:
    if objective == "divergence":
        return "Divergence from the teacher, nats per token"
    return "Gap closed" if objective == "gap closed" else metric_label(best.metric)


def _on_page(trial: Trial, objective: Objective) -> TrialOnPage:
    value, gap = trial.value(objective), trial.gap_closed
    if objective == "divergence":
        value = -value
    ends = [None, None] if objective != "gap closed" or gap is None else [gap.low, gap.high]
    return TrialOnPage(
        number=trial.number,
        settings={name_settings(flag_of(name)).lstrip("-"): shown(given) for name, given in trial.settings.items()},
        state=trial.state,
        value=None if math.isnan(value) else value,
        low=ends[0],
        high=ends[1],
        score=None if math.isnan(trial.score) else trial.score,
        divergence=trial.divergence,
        seconds=trial.seconds,
    )
