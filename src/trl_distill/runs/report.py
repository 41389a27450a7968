"""A run's report page: collects the content for `evaluation.page` from the prepared run and the trainer."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..config.training_params import FIELDS
from ..data.split import Split
from ..evaluation.advice import few_steps, of_data, of_training, optimizer_steps
from ..evaluation.page.content import Advice, Step, Training
from ..evaluation.page.write import write_report
from ..teachers.multi.entries import model_name, read_teachers
from ..teachers.multi.prompt_mixture import read_mixture
from ..trainer.card import template_text
from .next_steps import steps_after
from .prepare import NAMES

if TYPE_CHECKING:
    from ..config.training_params import LLMTrainingParams
    from ..trainer.setup import DistillationSetup
    from .checks import CheckedRun
    from .fit import Trained
    from .trained_rows import TrainedRows

TITLES = {
    "ask it": "Ask it",
    "evaluate it": "Compare it with the teacher and with the model before training, on rows it was not trained on",
    "serve it": "Serve it",
}
PACKAGES = ("trl-distill", "trl", "transformers", "torch", "peft", "accelerate", "datasets")


def write_run_report(
    trained: Trained, rows: TrainedRows | None, metrics: Mapping[str, object]
) -> tuple[dict[str, Path], list[Advice]]:
    """Write the page and its data into the project folder; return their paths and the warnings to print.

    Args:
        trained: The run.
        rows: The student's completions of a few rows; None if they could not be generated.
        metrics: The run's figures by name.
    """
    prepared, trainer = trained.prepared, trained.trainer
    params, folder = prepared.checked.params, prepared.checked.project.folder
    training = _training(trained, rows, metrics)
    steps = trainer.state.global_step
    _, warmup = optimizer_steps(len(prepared.datasets[Split.TRAIN]), params, processes=prepared.state.num_processes)
    preflight = prepared.preflights.get(Split.TRAIN)
    early = [*few_steps(len(prepared.datasets[Split.TRAIN]), steps, warmup, params), *of_data(preflight)]
    late = list(of_training(training.history, training.rows, params, preflight))
    name = folder.resolve().name
    paths = write_report(folder, name=name, training=training, advice=[*early, *late], next_steps=_next_steps(trained))
    return paths, [*(early[:1] if params.packing else []), *late]


def _training(trained: Trained, rows: TrainedRows | None, metrics: Mapping[str, object]) -> Training:
    prepared, trainer = trained.prepared, trained.trainer
    params, setup = prepared.checked.params, prepared.setup
    values = params.to_dict()
    return Training(
        student=model_name(params.model),
        teacher=None if setup is None else _teacher(params, setup),
        prompts={} if setup is None else _prompts(prepared.checked),
        steps=trainer.state.global_step,
        seconds=float(trained.metrics.get("train_runtime", 0.0)),
        seed=params.seed,
        computed=prepared.computes,
        history=tuple(entry for entry in trainer.state.log_history if "train_runtime" not in entry),
        metrics={name: value for name, value in metrics.items() if isinstance(value, (int, float))},
        settings=values,
        changed=tuple(name for name, value in values.items() if value != FIELDS[name].default),
        data={
            NAMES[split]: prepared.preflights[split].to_dict() if split in prepared.preflights else {"rows": len(data)}
            for split, data in prepared.datasets.items()
        },
        rows_from=NAMES[Split.TRAIN if rows is None else rows.split],
        rows=() if rows is None else rows.rows,
        divergence="" if rows is None else rows.divergence,
        versions=versions(),
    )


def _teacher(params: LLMTrainingParams, setup: DistillationSetup) -> str:
    """Return the teacher's name as it was given, which a folder's need not be."""
    return params.teacher_model if isinstance(params.teacher_model, str) else setup.teacher.name


def _prompts(checked: CheckedRun) -> dict[str, str]:
    """Return the templates of all sides, as text."""
    params, (student, teacher) = checked.params, checked.templates
    if params.teacher_config is not None:
        entries = read_teachers(params.teacher_config).teachers
        theirs = {f"teacher {n} ({entry.name})": entry.template for n, entry in enumerate(entries, 1)}
    elif params.teacher_prompt_mixture is not None:
        parts = read_mixture(params.teacher_prompt_mixture).teachers
        theirs = {f"teacher, template {n} ({part.share:.0%})": part.template for n, part in enumerate(parts, 1)}
    else:
        theirs = {"teacher": teacher}
    return {side: template_text(template) for side, template in {"student": student, **theirs}.items()}


def versions() -> dict[str, str]:
    """Return the versions of Python and the packages that a run depends on, and the device's name."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    return found


def _next_steps(trained: Trained) -> list[Step]:
    """Return the next steps for a student that has not been evaluated."""
    steps = steps_after(trained.prepared, trained.tokenizer)
    return [Step(TITLES[what], command) for what, command in steps.items()]
