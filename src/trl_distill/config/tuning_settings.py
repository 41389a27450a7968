"""Settings of `aitraining tune` that a training run does not have. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .fields import CheckedSettings, option


@dataclass
class TuningSettings(CheckedSettings):
    """How a search over the settings of a run is made, and what its trials are judged by.

    Raises:
        ParamsError: An unknown name, or a value outside what is accepted.
    """

    trials: int | None = option(
        None,
        "Search the space with this many trials by optuna, which stops those that fall behind (default: a grid, "
        "every combination).",
        low=1,
        high=100_000,
        group="Tuning",
    )
    keep_all: bool = option(False, "Keep the models of all trials, not only the best one's.", group="Tuning")
    reference_column: str | None = option(
        None,
        "Column of the held-out rows with the reference (default: the data's completions, if it has some).",
        group="Tuning",
    )
    metric: list[str] | None = option(
        None,
        "Metric of the completions, in the forms of aitraining evaluate; repeat the flag for several, of which the "
        "first decides.",
        group="Tuning",
    )


TUNING_FIELDS = {spec.name: spec for spec in fields(TuningSettings)}
