"""A search over settings on its page: the trials in a table, ranked with their intervals, and by each setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from ...config.search_space import DECADE
from .charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, axis_line, scale, ticks
from .text import cut, plainly_visible

MOST_RANKED, MOST_LISTED, MOST_SETTINGS = 16, 100, 6  # trials and settings that are shown
ROW, LABEL = 36, 60  # height of a ranked trial, and characters of its label
NARROW, TEXT, CHARACTER = 44, 14, 7.6  # least room of a value's label, its most characters, and their width


@dataclass(frozen=True)
class TrialOnPage:
    """A trial of a search.

    Attributes:
        number: Its number.
        settings: The settings that were tuned, as text by name.
        state: "finished", "pruned" or "failed".
        value: What it is ranked by; None if it is not finished.
        low: Lower end of the value's interval; None without one.
        high: Upper end of it.
        score: Mean score, 0 to 100; None if it is not finished.
        divergence: Divergence from the teacher in nats per token; None if it was not measured.
        seconds: Duration.
    """

    number: int
    settings: Mapping[str, str]
    state: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    score: float | None = None
    divergence: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class SearchOnPage:
    """A search over settings.

    Attributes:
        ranked_by: What the trials are ranked by, as a heading.
        metric: Name of the score.
        trials: All trials, the best first.
        sentences: What was found.
    """

    ranked_by: str
    metric: str
    trials: tuple[TrialOnPage, ...]
    sentences: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchOnPage:
        """Return what `asdict` made; names that it does not know are ignored.

        Raises:
            KeyError, TypeError: Something is missing that has no default.
        """
        known = {part.name for part in fields(TrialOnPage)}
        trials = [TrialOnPage(**{k: v for k, v in trial.items() if k in known}) for trial in values["trials"]]
        return cls(values["ranked_by"], values["metric"], tuple(trials), tuple(values["sentences"]))

    @property
    def names(self) -> list[str]:
        """The settings that were tuned."""
        return list(dict.fromkeys(name for trial in self.trials for name in trial.settings))

    @property
    def listed(self) -> tuple[TrialOnPage, ...]:
        """The trials in the table."""
        return self.trials[:MOST_LISTED]


def charts_of_search(search: SearchOnPage | None) -> list[tuple[str, Markup]]:
    """Return the charts with their captions: the trials ranked, and what each setting did."""
    if search is None:
        return []
    shown = [trial for trial in search.trials if trial.value is not None and math.isfinite(trial.value)]
    if not shown:
        return []
    found = [(f"{search.ranked_by} of the {'best ' if len(shown) > MOST_RANKED else ''}trials", _ranked(shown))]
    for name in search.names[:MOST_SETTINGS]:
        if len({trial.settings.get(name) for trial in shown}) > 1:
            found.append((f"{search.ranked_by} by {name}", _by_setting(shown, name)))
    return found


def _ranked(trials: Sequence[TrialOnPage]) -> Markup:
    """Return the best trials, each with its interval on the same axis."""
    shown = trials[:MOST_RANKED]
    estimates = [float(trial.value or 0) for trial in shown]
    ends = [end for trial in shown for end in (trial.low, trial.high) if end is not None and math.isfinite(end)]
    span = max(estimates) - min(estimates) or abs(max(estimates)) or 1.0
    near = [min(max(end, min(estimates) - 2 * span), max(estimates) + 2 * span) for end in ends]  # not the widest ones
    values = ticks(min([*estimates, *near]), max([*estimates, *near]), 4)
    across, bottom = scale(values[0], values[-1], 28, WIDTH - 64), ROW * len(shown) + 10
    parts = [axis_line(across(value), 4, bottom, f"{value:.6g}") for value in values]
    for place, (trial, estimate) in enumerate(zip(shown, estimates, strict=True)):
        y = ROW * place + 26
        low, high = (
            estimate if end is None else min(max(end, values[0]), values[-1]) for end in (trial.low, trial.high)
        )
        label = ", ".join(f"{name} {value}" for name, value in trial.settings.items())
        parts.append(
            Markup(
                '<text x="10" y="{label_y}">{number}: {label}</text>'
                '<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>'
                '<circle class="estimate" cx="{at:.1f}" cy="{y}" r="5"><title>trial {number}: {value:.4g}</title>'
                '</circle><text class="value" x="{after}" y="{value_y}">{value:.3g}</text>'
            ).format(
                label_y=y - 11,
                number=trial.number,
                label=plainly_visible(cut(label, LABEL)[0]),
                low=across(low),
                high=across(high),
                at=across(estimate),
                y=y,
                value=estimate,
                after=WIDTH - 52,
                value_y=y + 4,
            )
        )
    return _svg(bottom + 22, "trials, the best first", parts)


def _by_setting(trials: Sequence[TrialOnPage], name: str) -> Markup:
    """Return a dot for each trial over the value of a setting; the best one has another colour."""
    texts = list(dict.fromkeys(trial.settings.get(name, "") for trial in trials))
    places = _places(texts)
    estimates = [float(trial.value or 0) for trial in trials]
    values = ticks(min(estimates), max(estimates), 4)
    up = scale(values[0], values[-1], HEIGHT - BOTTOM, TOP)
    parts = [
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
            '<text x="{}" y="{:.1f}" text-anchor="end">{:.6g}</text>'
        ).format(LEFT, WIDTH - RIGHT, up(value), up(value), LEFT - 8, up(value) + 4, value)
        for value in values
    ]
    labelled: list[tuple[str, float]] = []
    for text, x in sorted(places.items(), key=lambda place: place[1]):
        if not labelled or x - labelled[-1][1] >= NARROW:
            labelled.append((text, x))
    room = min((after[1] - before[1] for before, after in pairwise(labelled)), default=math.inf)
    for text, x in labelled:
        parts.append(
            Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                x, HEIGHT - BOTTOM + 17, plainly_visible(_shortened(text, min(TEXT, int(room / CHARACTER))))
            )
        )
    dot = Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>trial {}: {:.4g}</title></circle>')
    for place in reversed(range(len(trials))):  # the best above the others
        trial, colour = trials[place], "first" if place else "second"
        at = places[trial.settings.get(name, "")]
        parts.append(dot.format(colour, at, up(estimates[place]), trial.number, estimates[place]))
    parts.append(
        Markup('<text class="unit" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, plainly_visible(name)
        )
    )
    return _svg(HEIGHT, f"trials over {name}", parts)


def _places(texts: Sequence[str]) -> dict[str, float]:
    """Return where each value is drawn: numbers to scale, others side by side in their order."""
    longest = min(TEXT, max(map(len, texts))) * CHARACTER
    start, end = LEFT + 24, WIDTH - max(RIGHT + 24, longest / 2)  # inside which all labels are
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        across = scale(0, max(len(texts) - 1, 1), start, end)
        return {text: across(place) for place, text in enumerate(texts)}
    if min(numbers) > 0 and max(numbers) / min(numbers) >= DECADE:
        numbers = [math.log(number) for number in numbers]
    across = scale(min(numbers), max(numbers), start, end)
    return {text: across(number) for text, number in zip(texts, numbers, strict=True)}


def _shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else cut(text, characters - 1)[0] + "…"


def _svg(height: float, title: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, plainly_visible(title), Markup("").join(parts)
    )
