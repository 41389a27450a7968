"""Prompt distillation and knowledge distillation for TRL.

Every public name is imported from its module when it is first used, so that `import trl_distill` loads neither
torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# name -> module; tests/test_public_api.py pins both and the signatures
_HOME = {
    "DistillationMixin": "trainer.mixin",
    "DistillationSFTConfig": "config.sft_config",
    "DistillationSFTTrainer": "trainer.trainer",
    "LLMTrainingParams": "config.training_params",
    "PromptDistillationTrainer": "trainer.trainer",
    "RunResult": "runs.api",
    "TuningResult": "runs.tuning.result",
    "distillation_loss_from_logits": "losses",
    "evaluate": "runs.evaluate",
    "evaluate_distillation": "runs.evaluate",
    "export": "runs.export.api",
    "fused_distillation_loss": "losses",
    "generate_with_teacher": "runs.generate_with_teacher",
    "get_trainer": "trainer.registry",
    "load_teacher": "teachers.loading",
    "parse_template": "prompts.template",
    "prepare_distillation_data": "runs.diverse_queries",
    "queries_from_prompt": "runs.queries_from_prompt",
    "register_trainer": "trainer.registry",
    "run": "runs.api",
    "train": "runs.api",
    "train_stages": "runs.stages",
    "tune": "runs.tuning.api",
    **dict.fromkeys(
        (
            "DataError",
            "DistillError",
            "ModelError",
            "ParamsError",
            "ProjectError",
            "RunInterrupted",
            "TeacherError",
            "TemplateError",
            "UsageError",
        ),
        "errors",
    ),
}

__all__ = [*sorted(_HOME)]

if TYPE_CHECKING:  # "as" tells type checkers that the name is public
    from .config.sft_config import DistillationSFTConfig as DistillationSFTConfig
    from .config.training_params import LLMTrainingParams as LLMTrainingParams
    from .errors import DataError as DataError
    from .errors import DistillError as DistillError
    from .errors import ModelError as ModelError
    from .errors import ParamsError as ParamsError
    from .errors import ProjectError as ProjectError
    from .errors import RunInterrupted as RunInterrupted
    from .errors import TeacherError as TeacherError
    from .errors import TemplateError as TemplateError
    from .errors import UsageError as UsageError
    from .losses import distillation_loss_from_logits as distillation_loss_from_logits
    from .losses import fused_distillation_loss as fused_distillation_loss
    from .prompts.template import parse_template as parse_template
    from .runs.api import RunResult as RunResult
    from .runs.api import run as run
    from .runs.api import train as train
    from .runs.diverse_queries import prepare_distillation_data as prepare_distillation_data
    from .runs.evaluate import evaluate as evaluate
    from .runs.evaluate import evaluate_distillation as evaluate_distillation
    from .runs.export.api import export as export
    from .runs.generate_with_teacher import generate_with_teacher as generate_with_teacher
    from .runs.queries_from_prompt import queries_from_prompt as queries_from_prompt
    from .runs.stages import train_stages as train_stages
    from .runs.tuning.api import tune as tune
    from .runs.tuning.result import TuningResult as TuningResult
    from .teachers.loading import load_teacher as load_teacher
    from .trainer.mixin import DistillationMixin as DistillationMixin
    from .trainer.registry import get_trainer as get_trainer
    from .trainer.registry import register_trainer as register_trainer
    from .trainer.trainer import DistillationSFTTrainer as DistillationSFTTrainer
    from .trainer.trainer import PromptDistillationTrainer as PromptDistillationTrainer

    __version__: str


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("trl-distill")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__, "__version__"})
