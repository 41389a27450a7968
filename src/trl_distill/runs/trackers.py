"""The trackers of `--log`: which are installed, and how they name a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ParamsError, nearest

if TYPE_CHECKING:
    from ..config.training_params import LLMTrainingParams

# transformers' callbacks read the project from these; Trackio's is a field of the configuration
PROJECT_VARIABLES = (
    "WANDB_PROJECT",
    "MLFLOW_EXPERIMENT_NAME",
    "COMET_PROJECT_NAME",
    "SWANLAB_PROJECT",
    "CLEARML_PROJECT",
)
# trackers whose package has the tracker's name
PACKAGES = ("clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "mlflow", "swanlab", "trackio", "wandb")
TENSORBOARD_VARIABLE, TENSORBOARD = "TENSORBOARD_LOGGING_DIR", "tensorboard"


def check_tracker_packages(params: LLMTrainingParams) -> None:
    """Refuse trackers that are not installed, as far as that is known without transformers.

    Raises:
        ParamsError: Naming the package to install.
    """
    for name in params.trackers:
        if name in PACKAGES and find_spec(name) is None:
            raise _not_installed(name)


def check_trackers(params: LLMTrainingParams) -> None:
    """Refuse trackers that transformers does not know or that are not installed.

    Raises:
        ParamsError: Naming those that are known, or the package to install.
    """
    from transformers.integrations import get_available_reporting_integrations as available
    from transformers.integrations import get_reporting_integration_callbacks as callbacks

    for name in params.trackers:
        if name == "all":
            return
        try:
            callbacks([name])
        except ValueError as error:
            known = str(error).partition("only ")[2].partition(" are supported")[0]
            raise ParamsError(
                f"log is {name!r}; expected one of none, {known}.{nearest(name, known.split(', '))}"
            ) from None
        if name not in available():
            raise _not_installed(name)


def _not_installed(name: str) -> ParamsError:
    return ParamsError(f"log is {name!r}, which is not installed; `pip install {name}`, or drop it from --log.")


@contextmanager
def tracked(params: LLMTrainingParams, folder: Path) -> Iterator[None]:
    """Name tracker runs after the project, and end those started inside.

    A variable of the environment stays as it is, unless `log_project` is given.

    Args:
        params: The run's parameters.
        folder: The project's folder.
    """
    project = params.log_project
    with ExitStack() as undo:
        for variable in PROJECT_VARIABLES:
            if project is not None or variable not in os.environ:
                undo.enter_context(_set(variable, project or folder.resolve().name))
        if TENSORBOARD_VARIABLE not in os.environ:
            undo.enter_context(_set(TENSORBOARD_VARIABLE, str(folder.absolute() / TENSORBOARD)))
        if "wandb" in params.trackers:
            undo.enter_context(_ending_wandb())
        if "mlflow" in params.trackers:
            undo.enter_context(_ending_mlflow())
        yield


@contextmanager
def _set(variable: str, value: str) -> Iterator[None]:
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before


@contextmanager
def _ending_wandb() -> Iterator[None]:
    """End a run of wandb that was begun inside: the next one of this process would be added to it."""
    import wandb

    before = wandb.run
    try:
        yield
    finally:
        if before is None and wandb.run is not None:
            wandb.finish()


@contextmanager
def _ending_mlflow() -> Iterator[None]:
    """End a run of MLflow that was begun inside, for the same reason."""
    import mlflow

    before = mlflow.active_run()
    try:
        yield
    finally:
        if before is None and mlflow.active_run() is not None:
            mlflow.end_run()
