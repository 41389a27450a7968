"""The table that a notebook shows while it trains: transformers', with the figures of distillation; needs IPython."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from transformers.utils.notebook import NotebookProgressCallback, NotebookTrainingTracker

from ..errors import printable

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

COLUMNS = {
    "kl": "Divergence",
    "retain_kl": "Retained Divergence",
    "ce": "Cross-Entropy",
    "top1_agreement": "Agreement",
}
SHARES = ("top1_agreement",)


class DistillationTable(NotebookProgressCallback):
    """Shows a row for each log, with an evaluation of the same step in the same row."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Begin a table whose columns come with the figures."""
        super().on_train_begin(args, state, control, **kwargs)
        self.training_tracker = NotebookTrainingTracker(state.max_steps, ["Step"])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Write a row for the steps since the last one."""
        if logs and "loss" in logs and self.training_tracker is not None:
            named = {"Training Loss": figure("loss", logs["loss"]), **named_figures(logs)}
            self.training_tracker.write_line({"Step": state.global_step, **named})

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add an evaluation to the table, or show it alone if nothing is being trained."""
        prefix = next((name[:-4] for name in metrics or {} if name.endswith("_loss")), "eval_")
        values = {name.removeprefix(prefix): value for name, value in (metrics or {}).items()}
        if self.training_tracker is None:
            kept = {name: value for name, value in values.items() if name in ("loss", *COLUMNS)}
            labels = {name: COLUMNS[name].replace(" ", "_") for name in kept if name in COLUMNS}
            shown = {f"eval_{labels.get(name, name)}": value for name, value in kept.items()}
            super().on_evaluate(args, state, control, metrics=shown, **kwargs)
            return
        name = "Validation" if prefix == "eval_" else prefix.removeprefix("eval_").rstrip("_").replace("_", " ").title()
        name = escape(printable(name))  # an evaluation dataset's; transformers writes it into HTML as it is
        row = {"Loss": figure("loss", values["loss"])} if "loss" in values else {}
        row |= named_figures(values)
        self.training_tracker.write_line(
            {"Step": state.global_step, **{f"{name} {label}": value for label, value in row.items()}}
        )
        self.training_tracker.remove_child()
        self.prediction_bar = None
        self._force_next_update = True  # an evaluation takes long


def named_figures(logs: Mapping[str, float]) -> dict[str, str]:
    """Return the figures of distillation by their columns, as text."""
    return {label: figure(name, logs[name]) for name, label in COLUMNS.items() if name in logs}


def figure(name: str, value: float) -> str:
    """Return a figure as a cell of the table."""
    return f"{value:.0%}" if name in SHARES else f"{value:.4f}"
