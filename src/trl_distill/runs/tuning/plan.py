"""The trials of a search before they are run: parameters, and what makes two trials the same."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ...config.search_space import MOST_TRIALS, Range, Settings, Space, grid, grid_size
from ...config.training_params import FIELDS, OF_ADAPTER, OWN_TEACHERS, LLMTrainingParams
from ..project_folder import FREE_ON_RESUME, NOT_KEPT, params_to_keep

# what may differ when a run is resumed, but decides what it learns
DECIDES = frozenset(
    (
        *("epochs", "max_steps", "merge_adapter", "early_stopping_patience", "early_stopping_threshold"),
        *("load_best_model_at_end", "metric_for_best_model", "eval_strategy", "eval_steps"),
    )
)
# what no result depends on, or what a search sets itself
IGNORED = (FREE_ON_RESUME - DECIDES) | {"project_name", "teacher_temperatures"}
# settings of the loss, which change nothing of what the teacher says
OF_LOSS = frozenset(
    (
        *("distill_temperature", "distill_alpha", "distill_divergence", "distill_jsd_beta", "distill_loss_impl"),
        *("distill_alpha_end", "distill_temperature_end", "distill_schedule"),
    )
)


@dataclass(frozen=True)
class Plan:
    """A trial to run.

    Attributes:
        settings: The settings that are tuned, by name.
        params: All of its parameters, with the search's project.
        identity: Its parameters as plain data, without those that no result depends on; equal ones are the same trial.
    """

    settings: Settings
    params: LLMTrainingParams
    identity: Mapping[str, object]


def plan_of(params: LLMTrainingParams, settings: Settings) -> Plan:
    """Return the trial that a search makes of its parameters.

    Raises:
        ParamsError: A prompt's file that cannot be read.
    """
    own = copy.copy(params)
    for name, value in settings.items():
        own.set(name, value)
    return Plan(settings, own, identity_of(own))


def identity_of(params: LLMTrainingParams) -> dict[str, object]:
    """Return the parameters that decide a trial's result, as JSON has them; prompts are the content of their files."""
    kept = {name: value for name, value in params_to_keep(params).items() if name not in IGNORED}
    return dict(json.loads(json.dumps(kept)))


def completed(identity: Mapping[str, object]) -> dict[str, object]:
    """Return an identity that an earlier version may have written: settings that it did not have are the defaults."""
    defaults = {name: spec.default for name, spec in FIELDS.items() if name not in IGNORED | NOT_KEPT}
    return {name: identity.get(name, default) for name, default in defaults.items()}


def teacher_key(params: LLMTrainingParams, *, kind: str, temperatures: str | None) -> str:
    """Return a name that trials share if their teacher gives the same completions and targets.

    Args:
        params: A trial's parameters.
        kind: The kind of the targets.
        temperatures: Those for which the targets are made; None for all.
    """
    groups = {name: spec.metadata["help"].group for name, spec in FIELDS.items()}
    unread = {*OF_ADAPTER, "merge_adapter"} | OF_LOSS
    if params.teacher_model not in OWN_TEACHERS:
        unread.add("peft")
    given = {
        name: value
        for name, value in identity_of(params).items()
        if name not in unread and (groups[name] not in ("Training", "Logging and saving") or name == "seed")
    }
    text = json.dumps({**given, "kind": kind, "temperatures": temperatures}, sort_keys=True)
    return digest(text)[:12]


def digest(*texts: str) -> str:
    """Return a short fingerprint of texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def variations(space: Space) -> Iterator[tuple[str | None, Settings]]:
    """Yield the first value of each setting, and then each other value alone with the name of its setting.

    A range stands for its ends.
    """
    listed = {
        name: (_number(values, values.low), _number(values, values.high)) if isinstance(values, Range) else values
        for name, values in space.items()
    }
    first = {name: values[0] for name, values in listed.items()}
    yield None, first
    for name, values in listed.items():
        yield from ((name, {**first, name: value}) for value in values[1:])


def combinations(space: Space) -> Iterable[Settings]:
    """Return what is checked of a space before anything runs: all combinations, or each value if they are too many."""
    if grid_size(space) <= MOST_TRIALS and not any(isinstance(values, Range) for values in space.values()):
        return grid(space)
    return (settings for _, settings in variations(space))


def _number(given: Range, value: float) -> float:
    return int(value) if given.whole else value
