"""Upload a finished project; the token is read from the environment and stored nowhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..config.training_params import LLMTrainingParams
from ..errors import DistillError, ParamsError
from ..evaluation.page import DATA, PAGE

# files of the run that are not part of its result
KEPT_BACK = [
    *("checkpoints/*", "teacher_completions.jsonl", "teacher_logprobs.jsonl", "student_completions.jsonl"),
    *("held_out.jsonl", "judge_answers.jsonl", "eval_samples.jsonl", ".*"),
]
CARD = "README.md"
WITH_ROWS = [PAGE, DATA]  # they show rows of the data


def check_token(params: LLMTrainingParams) -> None:
    """Refuse to start a run that could not upload its result.

    Raises:
        ParamsError: `push_to_hub` without HF_TOKEN in the environment.
    """
    if params.push_to_hub and not os.environ.get("HF_TOKEN"):
        raise ParamsError("push_to_hub needs a token; set the environment variable HF_TOKEN, or drop --push-to-hub.")


def push(folder: Path, params: LLMTrainingParams, *, card: Callable[[str], str]) -> str:
    """Upload a project folder as a private model and return its address.

    Args:
        folder: The project's folder.
        params: The run's parameters.
        card: Returns the model card for an address; the folder's own loads the model from this machine.

    Raises:
        DistillError: The Hub refused or cannot be reached; the folder is complete on disk.
    """
    from huggingface_hub import HfApi

    kept_back = [*KEPT_BACK, CARD, *([] if params.card_example else WITH_ROWS)]
    api = HfApi(token=os.environ["HF_TOKEN"])
    try:
        account = params.username or api.whoami()["name"]
        repository = api.create_repo(f"{account}/{folder.resolve().name}", private=True, exist_ok=True).repo_id
        api.upload_folder(folder_path=folder, repo_id=repository, ignore_patterns=kept_back)
        written = card(repository).encode("utf-8")
        api.upload_file(path_or_fileobj=written, path_in_repo=CARD, repo_id=repository)
    except Exception as error:
        raise DistillError(
            f"the result is complete in {folder} but could not be uploaded ({type(error).__name__}); upload it with "
            "`hf upload` when the Hub can be reached."
        ) from error
    print(f"Uploaded to {repository}.")
    return repository
