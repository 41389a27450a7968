"""Prompt distillation and knowledge distillation for TRL.

Every public name is imported from its module when it is first used, so that `import trl_distill` loads neither
torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# name -> module; tests/test_public_api.py pins both and the signatures
_HOME = {
    "DistillationMixin": "mixin",
    "DistillationSFTConfig": "config",
    "DistillationSFTTrainer": "trainer",
    "LLMTrainingParams": "params",
    "PromptDistillationTrainer": "trainer",
    "RunResult": "training",
    "distillation_loss_from_logits": "losses",
    "fused_distillation_loss": "losses",
    "generate_with_teacher": "writing",
    "get_trainer": "registry",
    "load_teacher": "teachers",
    "parse_template": "prompts",
    "register_trainer": "registry",
    "run": "training",
    "train": "training",
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
    from .config import DistillationSFTConfig as DistillationSFTConfig
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
    from .mixin import DistillationMixin as DistillationMixin
    from .params import LLMTrainingParams as LLMTrainingParams
    from .prompts import parse_template as parse_template
    from .registry import get_trainer as get_trainer
    from .registry import register_trainer as register_trainer
    from .teachers import load_teacher as load_teacher
    from .trainer import DistillationSFTTrainer as DistillationSFTTrainer
    from .trainer import PromptDistillationTrainer as PromptDistillationTrainer
    from .training import RunResult as RunResult
    from .training import run as run
    from .training import train as train
    from .writing import generate_with_teacher as generate_with_teacher

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
