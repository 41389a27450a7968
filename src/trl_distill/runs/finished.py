"""The result of a run that had finished before it was resumed."""

from __future__ import annotations

import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..config.devices import accelerator
from ..config.training_params import LLMTrainingParams
from ..models.loading import keep_tokenizer
from .evaluation_inputs import remember_run
from .project_folder import CONFIG, Project
from .result import RunResult
from .result_files import check_result


def result_of_finished(project: Project, params: LLMTrainingParams) -> RunResult:
    """Load what a finished run has written: model, tokenizer and figures; there is no trainer.

    Args:
        project: Its folder.
        params: Its parameters.

    Raises:
        ProjectError: Its weights are damaged; see `check_result`.
    """
    check_result(project.folder)
    folder, trust = project.folder, params.trust_remote_code
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)  # nosec B615  # local
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=trust)  # nosec B615  # local
    torch.nn.Module.to(model, accelerator() or "cpu")
    model.eval()
    keep_tokenizer(model, tokenizer)
    remember_run(model, params, folder, None)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    names = {"config": CONFIG, "metrics": "metrics.json", "card": "README.md"}
    return RunResult(model, tokenizer, metrics, {"project": folder, **{k: folder / v for k, v in names.items()}})
