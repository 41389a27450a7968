"""Upload a finished project; the token is read from the environment and stored nowhere.

What is uploaded is listed, not what is left out: the model, its tokenizer, the figures and a card, none of which has a
row of the data or a path of the machine. `card_example` adds the page, which shows rows, and the settings, which name
files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from ..config.training_params import LLMTrainingParams
from ..errors import DistillError, ParamsError, printable, quoted
from ..evaluation.page import DATA, PAGE
from ..trainer.card_text import public_name

CARD, ADAPTER, SETTINGS = "README.md", "adapter_config.json", "config.yaml"
REWRITTEN = (CARD, ADAPTER)  # the folder's own name places of this machine
BASE = "base_model_name_or_path"


def check_token(params: LLMTrainingParams) -> None:
    """Refuse to start a run that could not upload its result.

    Raises:
        ParamsError: `push_to_hub` without HF_TOKEN in the environment, with the Hub switched off, or with a project
            folder or an account whose name no repository can have.
    """
    if not params.push_to_hub:
        return
    if not os.environ.get("HF_TOKEN"):
        raise ParamsError("push_to_hub needs a token; set the environment variable HF_TOKEN, or drop --push-to-hub.")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if is_switched_off():
        raise ParamsError(
            "push_to_hub needs the Hub, which the environment variable HF_HUB_OFFLINE switches off; unset it, or drop "
            "--push-to-hub."
        )
    name = Path(params.project_name).expanduser().resolve().name
    repository = f"{params.username or 'account'}/{name}"
    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise ParamsError(
            f"push_to_hub uploads to {quoted(repository)}, a name that no repository can have; give --project-name "
            "and --username letters, digits, '-', '_' and '.' alone."
        ) from None


def is_switched_off() -> bool:
    """Whether the environment keeps huggingface_hub from reaching the Hub."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def push(folder: Path, params: LLMTrainingParams, *, files: Iterable[str], card: Callable[[str], str]) -> str:
    """Upload a project folder as a private model and return its address.

    Args:
        folder: The project's folder.
        params: The run's parameters.
        files: Names of the files and folders in it that are the run's result.
        card: Returns the model card for an address; the folder's own loads the model from this machine.

    Raises:
        DistillError: The Hub refused or cannot be reached; the folder is complete on disk.
    """
    from huggingface_hub import HfApi

    shown = {PAGE, DATA, SETTINGS}
    names = sorted({*files} - shown | (shown if params.card_example else set()))
    uploaded = [pattern for name in names for pattern in (name, f"{name}/*")]
    api = HfApi(token=os.environ["HF_TOKEN"])
    try:
        account = params.username or api.whoami()["name"]
        repository = api.create_repo(f"{account}/{folder.resolve().name}", private=True, exist_ok=True).repo_id
        api.upload_folder(folder_path=folder, repo_id=repository, allow_patterns=uploaded, ignore_patterns=[*REWRITTEN])
        rewritten = {CARD: card(repository), **_adapter(folder)}
        for name, text in rewritten.items():
            api.upload_file(path_or_fileobj=text.encode("utf-8"), path_in_repo=name, repo_id=repository)
    except Exception as error:
        raise DistillError(
            f"the result is complete in {folder} but could not be uploaded ({type(error).__name__}); upload it with "
            "`hf upload` when the Hub can be reached."
        ) from error
    print(printable(f"Uploaded to {repository}."))
    return repository


def _adapter(folder: Path) -> dict[str, str]:
    """Return an adapter's configuration, if there is one, with its base model named as the card does."""
    path = folder / ADAPTER
    if not path.is_file():
        return {}
    from ..trainer.card import base_model  # which loads huggingface_hub

    values = json.loads(path.read_text(encoding="utf-8"))
    values[BASE] = base_model(values[BASE]) or public_name(str(values[BASE]))
    return {ADAPTER: json.dumps(values, indent=2) + "\n"}
