"""The weights that a run trains an adapter on: if they change, the adapter is of no use, and nothing else shows it."""

from __future__ import annotations

import os
from pathlib import Path

from ..config.training_params import LLMTrainingParams
from ..data.json_object import read_object
from ..errors import ProjectError
from ..teachers.local.folder_fingerprint import of_folder

BASE = "base"  # their fingerprint in a project's manifest and marker


def base_of_run(params: LLMTrainingParams) -> object:
    """Return the fingerprint of what a run trains an adapter on; None if it trains none, or it is no folder."""
    is_folder = params.peft and isinstance(params.model, (str, os.PathLike))
    return of_folder(str(Path(params.model).expanduser())) if is_folder else None


def base_of_adapter(folder: Path) -> tuple[str, object] | None:
    """Return the base of the adapter in a folder and its fingerprint; None if there is none, or it is no folder."""
    adapter = folder / "adapter_config.json"
    base = (read_object(adapter) or {}).get("base_model_name_or_path") if adapter.is_file() else None
    found = of_folder(base) if isinstance(base, str) and base else None
    return None if found is None else (str(base), found)


def check_base(name: str, before: object, params: LLMTrainingParams) -> None:
    """Refuse to resume an adapter on other weights than those it was trained on.

    Args:
        name: The project in messages.
        before: The fingerprint in its marker; None if it has none.
        params: The run's parameters.

    Raises:
        ProjectError: They have changed.
    """
    now = None if before is None else base_of_run(params)
    if now is not None and before != now:
        raise ProjectError(
            f"{name} holds an unfinished run, and the weights in model {str(params.model)!r}, which it trains an "
            "adapter on, have changed since; restore them and add --resume, or add --overwrite to start over."
        )
