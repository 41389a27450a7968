"""`DistillationSFTConfig`: TRL's SFTConfig with the settings of distillation, each a flag under TrlParser too."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from accelerate.utils import parse_flag_from_env
from transformers import SchedulerType
from transformers.training_args import OptimizerNames
from transformers.utils import ExplicitEnum, is_torch_xla_available
from trl import SFTConfig

from ..errors import ParamsError, nearest
from .deprecations import without_deprecations
from .devices import computes_in_bfloat16, has_fused_adamw
from .distillation_arguments import DistillationArguments, check_arguments
from .evaluation_checks import BETTER_IF_LOWER
from .recipes import recipe_named
from .setting_names import in_python, settings_named_as
from .training_params import FIELDS, LLMTrainingParams
from .validation import validate_combinations

# transformers reads warmup_steps below 1 as a share of the steps, rounded up, and 1 as one step
ALL_STEPS = math.nextafter(1.0, 0.0)

SCALED = "fp16 scales the gradients of float32 weights, and the student's are in float16; load it in float32."

# what the trainer calls a parameter of a run: a field of its configuration, or an argument
NAMES = {
    "batch_size": "per_device_train_batch_size",
    "block_size": "max_length",
    "chat_template": "chat_template_path",
    "data_path": "train_dataset",
    "epochs": "num_train_epochs",
    "eval_batch_size": "per_device_eval_batch_size",
    "gradient_accumulation": "gradient_accumulation_steps",
    "log": "report_to",
    "log_project": "project",
    "lr": "learning_rate",
    "mixed_precision": "fp16 and bf16",
    "optimizer": "optim",
    "peft": "peft_config",
    "project_name": "output_dir",
    "quantization": "quantization_config",
    "scheduler": "lr_scheduler_type",
    "text_column": "dataset_text_field",
    "valid_split": "eval_dataset",
}
# parameters that the configuration has too, under a name of `NAMES` or their own
SAME = (
    *("epochs", "max_steps", "batch_size", "gradient_accumulation", "auto_find_batch_size"),
    *("packing", "padding_free", "lr", "scheduler"),
    *("optimizer", "weight_decay", "max_grad_norm", "seed", "gradient_checkpointing", "torch_compile"),
    *("logging_steps", "eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit"),
    *("eval_on_start", "load_best_model_at_end"),
    *("text_column", "block_size", "dataset_num_proc", "assistant_only_loss", "trust_remote_code"),
)
OF_PEFT = ("peft", "lora_r", "lora_dropout")  # of a recipe: what the trainer's `peft_config` says
TRAINER = in_python(FIELDS, NAMES)  # how the trainer and its configuration name settings


@dataclass
class DistillationSFTConfig(DistillationArguments, SFTConfig):
    """SFTConfig with a teacher; with `use_distillation=False` (the default) it is SFTConfig.

    The fields are `distillation_arguments.DistillationArguments`' and SFTConfig's.

    Raises:
        ParamsError: A value outside what is accepted.
    """

    @settings_named_as(TRAINER)
    def __post_init__(self) -> None:
        """Check the settings of distillation, then let TRL check its own."""
        _check_known("optimizer", self.optim, OptimizerNames)
        _check_known("scheduler", self.lr_scheduler_type, SchedulerType)
        if check_arguments(self):
            validate_combinations(self)
        # transformers would put the model on a GPU, and accelerate the batches on the CPU
        self.use_cpu = self.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
        metric = (self.metric_for_best_model or "").removeprefix("eval_")
        if self.greater_is_better is None and metric in BETTER_IF_LOWER:  # transformers knows losses alone
            self.greater_is_better = False
        with without_deprecations():  # TRL's own default is one
            super().__post_init__()

    @classmethod
    def from_recipe(cls, recipe: str, **settings: Any) -> Self:
        """Return the configuration of a recipe; a recipe's adapter is the trainer's argument `peft_config`.

        Args:
            recipe: Its name, see docs/recipes.md.
            **settings: Other settings, which override the recipe's.

        Raises:
            ParamsError: There is no such recipe, or a value is outside what is accepted.
        """
        values = {name: value for name, (value, _) in recipe_named(recipe).values.items() if name not in OF_PEFT}
        given: dict[str, Any] = {NAMES.get(name, name): value for name, value in values.items()}
        if "warmup_ratio" in given:
            given["warmup_steps"] = min(given.pop("warmup_ratio"), ALL_STEPS)
        return cls(**{"use_distillation": True, **given, **settings})


def _check_known(setting: str, given: object, known: type[ExplicitEnum]) -> None:
    """Refuse a name that transformers does not know, with the nearest ones."""
    names = [one.value for one in known]
    if getattr(given, "value", given) not in names:
        hint = nearest(str(given), names) or f" Expected one of {', '.join(names)}."
        raise ParamsError(f"{setting} is {given!r}, which transformers does not know.{hint}")


def from_params(params: LLMTrainingParams) -> DistillationSFTConfig:
    """Turn a run's parameters into TRL's configuration; the one place where names are translated.

    Raises:
        ParamsError: A name that transformers does not know (optimizer, scheduler, log), or a precision that this
            machine cannot train in.
    """
    accelerated = torch.accelerator.is_available() or is_torch_xla_available()
    accelerated = accelerated and not parse_flag_from_env("ACCELERATE_USE_CPU")
    precision = _mixed_precision(params, accelerated=accelerated)
    if precision == "fp16" and params.dtype == "float16" and accelerated and not params.peft:
        raise ParamsError(SCALED)
    same = {NAMES.get(name, name): getattr(params, name) for name in SAME}
    folder = Path(params.project_name).expanduser()
    try:
        args = DistillationSFTConfig(
            **same,
            output_dir=str(folder),
            metric_for_best_model=_metric_for_best(params),
            report_to=params.trackers,
            run_name=params.run_name or folder.resolve().name,
            project=params.log_project or folder.resolve().name,
            per_device_eval_batch_size=params.eval_batch_size or params.batch_size,
            warmup_steps=min(params.warmup_ratio, ALL_STEPS),
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            use_cpu=not accelerated,
            dataloader_pin_memory=accelerated and not torch.backends.mps.is_available(),  # which has no pinned memory
            logging_nan_inf_filter=False,  # it would log a substitute for NaN
            push_to_hub=False,  # the trainer would upload every checkpoint
        )
    except ValueError as error:
        if isinstance(error, ParamsError):
            raise
        raise ParamsError(str(error).strip().splitlines()[0]) from error
    for name in DistillationArguments.__dataclass_fields__:  # which the parameters have checked
        setattr(args, name, getattr(params, name))
    args.use_distillation = params.distills
    if args.optim == OptimizerNames.ADAMW_TORCH_FUSED and not has_fused_adamw(args.device):
        args.optim = OptimizerNames.ADAMW_TORCH
    return args


def _metric_for_best(params: LLMTrainingParams) -> str | None:
    """Return the metric that evaluations are compared by, if any."""
    compared = params.load_best_model_at_end or params.early_stopping_patience is not None
    return (params.metric_for_best_model or "loss") if compared else None


def _mixed_precision(params: LLMTrainingParams, *, accelerated: bool) -> str | None:
    """Return the mixed precision that a run asks for; under "auto" accelerate's, if it was launched with one.

    Raises:
        ParamsError: None is asked for, and accelerate was given one.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # as TrainingArguments reads it
    if params.mixed_precision == "no" and launched != "no":
        raise ParamsError(
            f"mixed_precision is 'no', but accelerate was launched with {launched}; drop --mixed-precision, or launch "
            "accelerate without it."
        )
    if params.mixed_precision != "auto":
        return params.mixed_precision
    if launched == "no":
        return "bf16" if accelerated and computes_in_bfloat16() else None
    return launched


@contextmanager
def left_alone_on_failure(args: object) -> Iterator[None]:
    """Give a caller's configuration back as it was if the constructor fails."""
    before = dict(vars(args)) if args is not None else {}
    try:
        yield
    except BaseException:
        if args is not None:
            vars(args).clear()
            vars(args).update(before)
        raise
