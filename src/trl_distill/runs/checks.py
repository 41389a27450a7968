"""What can be wrong with a run and be known before any model's weights are read."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from ..config.training_params import LLMTrainingParams
from ..errors import ParamsError, nearest
from ..models.architectures import check_causal


def check_ready(params: LLMTrainingParams, config: Any) -> Any:
    """Check a run's parameters against the libraries that are installed and the student's architecture.

    Args:
        params: The run's parameters.
        config: The student's configuration.

    Returns:
        The student without weights; the model itself if it was handed over.

    Raises:
        ModelError: A student without a next-token distribution.
        ParamsError: A logger that is unknown or not installed, an attention implementation that cannot be used, or
            target modules that the student does not have.
    """
    given = params.model
    name = given if isinstance(given, str) else config._name_or_path or type(given).__name__
    check_causal(name, config, role="model")
    _check_logger(params.log)
    student = _without_weights(params, config) if isinstance(given, str) else given
    if params.peft:
        _check_target_modules(params.target_modules, student)
    return student


def _check_logger(name: str) -> None:
    """Refuse a logger that transformers does not know or that is not installed."""
    from transformers.integrations import get_available_reporting_integrations as available
    from transformers.integrations import get_reporting_integration_callbacks as callbacks

    if name in ("none", "all"):
        return
    try:
        callbacks([name])
    except ValueError as error:
        known = str(error).partition("only ")[2].partition(" are supported")[0]
        raise ParamsError(f"log is {name!r};{nearest(name, known.split(', '))} accepted are none, {known}.") from None
    if name not in available():
        raise ParamsError(f"log is {name!r}, which is not installed; `pip install {name}`, or give --log none.")


def _without_weights(params: LLMTrainingParams, config: Any) -> Any:
    """Return the student as it will be loaded, but without weights, for what its configuration alone does not say."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = {} if params.dtype == "auto" else {"dtype": getattr(torch, params.dtype)}
    attention = params.attn_implementation
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                deepcopy(config),  # which it changes
                attn_implementation=attention,
                trust_remote_code=params.trust_remote_code,
                **dtype,
            )
    except (ImportError, ValueError) as error:
        if attention is None:
            raise
        reason = str(error).strip().splitlines()[0].partition(". ")[0].rstrip(".")
        raise ParamsError(
            f"attn_implementation is {attention!r}, which cannot be used here ({reason}); give --attn-implementation "
            "sdpa or eager."
        ) from error


def _check_target_modules(given: str, model: Any) -> None:
    """Refuse names of modules that a model does not have."""
    if given == "all-linear":
        return
    there = sorted({path.rpartition(".")[2] for path, _ in model.named_modules()} - {""})
    for name in (part.strip() for part in given.split(",")):
        if not any(path == name or path.endswith(f".{name}") for path, _ in model.named_modules()):
            raise ParamsError(
                f"target_modules has {name!r}, which is no module of the student.{nearest(name, there)} Give names "
                "such as q_proj,v_proj, or all-linear."
            )
