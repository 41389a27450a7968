"""`LLMTrainingParams`: every parameter of a run, as flat data of the standard library.

One field is one flag of `aitraining llm`; `sft_config.from_params` turns the whole into TRL's configuration.
A value is checked when it is set, in the constructor and afterwards; `validate` checks fields against each other.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from typing import Any

from ..errors import ParamsError, nearest
from .choices import DTYPES, MIXED_PRECISIONS, QUANTIZATIONS, STRATEGIES
from .distillation_arguments import DistillationArguments
from .endpoints import parse_endpoint
from .evaluation_checks import check_evaluations, needs_evaluations
from .fields import is_model, option, plain
from .other_names import INSTEAD
from .recipes import NAMES, RecipeSettings, explaining_recipe
from .setting_names import flag_of, in_python, settings_named_as
from .validation import check_queries, refuse_unused, validate_combinations

HUB_DATA = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # a dataset of an account
OWN_TEACHERS = ("self", "ema")
OF_ADAPTER = ("lora_r", "lora_alpha", "lora_dropout", "target_modules")
# settings of distillation that say how data is read, with a teacher or without
OF_PLAIN_SFT = ("completion_column", "prompt_text_column", "max_bad_rows", "chat_template_kwargs")

# what users of AutoTrain and TRL type for the same thing; flags of the command line as well
ALIASES = {
    "max_seq_length": "block_size",
    "model_max_length": "block_size",
    "max_length": "block_size",
    "learning_rate": "lr",
    "gradient_accumulation_steps": "gradient_accumulation",
    "per_device_train_batch_size": "batch_size",
    "num_train_epochs": "epochs",
}


@dataclass
class LLMTrainingParams(RecipeSettings, DistillationArguments):
    """Parameters of one training run; the defaults are those of the guide.

    Example:
        >>> config = LLMTrainingParams(model="gpt2", teacher_model="gpt2-large", data_path="queries.json")
        >>> config.distill_temperature
        3.0

    Raises:
        ParamsError: An unknown name (with the nearest known ones) or a value outside what is accepted, when
            the object is made and when a field is set later.
    """

    model: Any = option(
        None,
        "Student, required: a folder, a Hub name, 'embedded', or (in Python) a loaded model.",
        group="Basic",
        path=True,
    )
    trainer: str = option(
        "distillation",
        "Trainer: 'distillation', 'sft' (with or without a teacher), or another registered name.",
        group="Basic",
    )
    recipe: str | None = option(
        None, "Named set of settings from a paper; those that are given override it.", choices=NAMES, group="Basic"
    )
    project_name: str = option(
        "project-name", "Folder to write to; any path, created if missing.", group="Basic", path=True
    )
    data_path: Any = option(
        "data",
        "A file (json, jsonl, csv, tsv, parquet, arrow, txt), a folder of them, a Hub dataset, or (in Python) rows.",
        group="Basic",
        path=True,
    )
    train: bool = option(True, "Accepted for compatibility with AutoTrain; has no effect.", group="Basic")
    overwrite: bool = option(False, "Replace a finished run in the project folder.", group="Basic")
    resume: bool = option(False, "Resume from the project folder's last checkpoint.", group="Basic")
    dry_run: bool = option(False, "Show statistics and the first row of the training data, and stop.", group="Basic")

    queries_from_prompt: int | None = option(
        None,
        "Number of inputs that the teacher writes for its own prompt, instead of --data-path.",
        low=1,
        high=1_000_000,
        group="Data",
    )
    train_split: str = option("train", "Split to train on.", group="Data")
    valid_split: str | None = option(None, "Split to evaluate on (default: a folder's validation files).", group="Data")
    holdout: float = option(
        0.0,
        "Share of the rows to hold out for evaluation if there is no validation split; near-duplicates of them are "
        "left out of training.",
        low=0.0,
        high=0.9,
        group="Data",
    )
    data_config: str | None = option(None, "Configuration name of a Hub dataset.", group="Data")
    text_column: str = option("text", "Column with the input, which is {input} in a template.", group="Data")
    chat_template: str | None = option(
        None,
        "Chat template of the student: 'chatml', 'zephyr', a Jinja file, or a model that has one "
        "(default: 'tokenizer', its own).",
        group="Data",
        path=True,
    )
    assistant_only_loss: bool = option(
        False, "Train on every assistant turn of a conversation, not only the last.", group="Data"
    )
    block_size: int = option(
        1024, "Maximum number of tokens in a student's sequence, prompt and completion.", low=2, group="Data"
    )
    dataset_num_proc: int | None = option(
        None, "Processes that read and tokenize the data (default: this one).", low=1, high=4096, group="Data"
    )

    epochs: float = option(3.0, "Training epochs.", above=0.0, high=1e6, group="Training")
    max_steps: int = option(
        -1, "Maximum number of optimizer steps; with -1, --epochs decides.", low=1, off=-1, group="Training"
    )
    batch_size: int = option(4, "Rows per device in a batch.", low=1, group="Training")
    eval_batch_size: int | None = option(
        None, "Rows per device in evaluation (default: --batch-size).", low=1, group="Training"
    )
    gradient_accumulation: int = option(4, "Batches per optimizer step.", low=1, group="Training")
    auto_find_batch_size: bool = option(
        False,
        "When memory runs out, continue with a smaller --batch-size and as much more --gradient-accumulation.",
        group="Training",
    )
    packing: bool = option(
        False, "Fill sequences up to --block-size with several rows each, kept separate.", group="Training"
    )
    padding_free: bool = option(
        False, "Concatenate a batch's rows into one sequence without padding, kept separate.", group="Training"
    )
    # beyond it a step makes weights whose squares are infinite in float32
    lr: float = option(5e-5, "Learning rate.", above=0.0, high=1e20, group="Training")
    warmup_ratio: float = option(
        0.1, "Share of the steps over which the learning rate increases from 0.", low=0.0, high=1.0, group="Training"
    )
    scheduler: str = option(
        "linear", "Learning rate schedule, by transformers' name (linear, cosine, constant, ...).", group="Training"
    )
    optimizer: str = option(
        "adamw_torch_fused",
        "Optimizer, by transformers' name (adamw_torch, adafactor, ...); adamw_torch on a device without the "
        "fused AdamW.",
        group="Training",
    )
    weight_decay: float = option(0.0, "Weight decay.", low=0.0, group="Training")
    max_grad_norm: float = option(1.0, "Maximum gradient norm; 0 turns clipping off.", low=0.0, group="Training")
    seed: int = option(42, "Random seed.", low=0, high=2**32 - 1, group="Training")  # numpy's range
    mixed_precision: str | None = option(
        "auto",
        "Mixed precision of training; 'auto' is bf16 on CUDA devices that support it (compute capability 8.0 and "
        "later), else none.",
        choices=MIXED_PRECISIONS,
        group="Training",
    )
    gradient_checkpointing: bool = option(False, "Recompute activations to save memory.", group="Training")
    torch_compile: bool = option(
        False, "Compile the student with torch.compile: slow first steps, faster ones later.", group="Training"
    )

    dtype: str = option("float32", "Precision the student is loaded in.", choices=DTYPES, group="Model")
    attn_implementation: str | None = option(
        None, "Attention implementation, by transformers' name (sdpa, eager, ...).", group="Model"
    )
    quantization: str | None = option(
        None,
        "Load the student quantized by bitsandbytes (needs --peft).",
        choices=QUANTIZATIONS,
        group="Model",
    )
    peft: bool = option(False, "Train a LoRA adapter instead of all weights.", group="Model")
    lora_r: int = option(16, "Rank of the adapter.", low=1, high=65_536, group="Model")
    lora_alpha: int = option(32, "Scale of the adapter.", low=1, group="Model")
    lora_dropout: float = option(0.05, "Dropout of the adapter.", low=0.0, high=1.0, group="Model")
    target_modules: str = option("all-linear", "Modules to adapt, separated by commas.", listed=True, group="Model")
    merge_adapter: bool = option(False, "Save the adapter merged into the model.", group="Model")
    trust_remote_code: bool = option(
        False, "Trust remote code: allow models that come with their own code.", group="Model"
    )

    log: str = option(
        "none",
        "Trackers to log to in addition to the terminal, separated by commas: none, tensorboard, trackio, wandb, "
        "mlflow, ...",
        listed=True,
        group="Logging and saving",
    )
    run_name: str | None = option(
        None, "Name of the run in the trackers (default: the project folder's).", group="Logging and saving"
    )
    log_project: str | None = option(
        None,
        "The trackers' project that the run belongs to (default: the project folder's name).",
        group="Logging and saving",
    )
    logging_steps: int = option(10, "Steps between two log lines.", low=1, group="Logging and saving")
    eval_strategy: str = option(
        "epoch",
        "When to evaluate, if there is a validation split.",
        choices=STRATEGIES,
        group="Logging and saving",
    )
    eval_steps: int | None = option(None, "Steps between evaluations.", low=1, group="Logging and saving")
    eval_on_start: bool = option(False, "Evaluate before the first step too.", group="Logging and saving")
    eval_samples: int = option(
        0,
        "Validation rows whose completions are shown at each evaluation: the student's, its previous ones and the "
        "teacher's.",
        low=0,
        group="Logging and saving",
    )
    early_stopping_patience: int | None = option(
        None, "Stop after this many evaluations in a row without improvement.", low=1, group="Logging and saving"
    )
    early_stopping_threshold: float = option(
        0.0, "Smallest improvement that counts.", low=0.0, group="Logging and saving"
    )
    load_best_model_at_end: bool = option(
        False, "Save the weights of the best evaluation instead of the last ones.", group="Logging and saving"
    )
    metric_for_best_model: str | None = option(
        None,
        "Metric that decides which evaluation is best: loss (default), kl, ce, top1_agreement or mean_token_accuracy.",
        group="Logging and saving",
    )
    save_strategy: str = option("epoch", "When to write a checkpoint.", choices=STRATEGIES, group="Logging and saving")
    save_steps: int = option(500, "Steps between checkpoints.", low=1, group="Logging and saving")
    save_total_limit: int = option(1, "Checkpoints to keep.", low=1, group="Logging and saving")
    push_to_hub: bool = option(False, "Upload the result; the token is read from HF_TOKEN.", group="Logging and saving")
    card_example: bool = option(
        False,
        "Publish rows of the data: the card shows one, and --push-to-hub uploads the report page and the settings too.",
        group="Logging and saving",
    )
    username: str | None = option(None, "Hub account to upload to (default: the token's).", group="Logging and saving")

    @classmethod
    def _unknown(cls, name: str) -> str:
        if name in ("token", "hub_token"):
            return (
                f"{name} is not accepted, so that the token is written nowhere; set the environment variable HF_TOKEN."
            )
        if name in ALIASES:
            return f"unknown parameter {name!r}; it is called {ALIASES[name]!r} here."
        if name in INSTEAD:
            return f"unknown parameter {name!r}; {LIBRARY(INSTEAD[name])}."
        hint = nearest(name, FIELDS) or nearest(name, ALIASES)
        return f"unknown parameter {name!r}.{hint} `aitraining llm --help-all` lists all."

    def validate(self) -> None:
        """Check fields against each other; needs no model, no data and no network.

        Raises:
            ParamsError: A missing model or teacher, one that is neither a name nor a model, or two settings that
                contradict each other.
            TeacherError: A teacher's URL that cannot be used.
        """
        with settings_named_as(LIBRARY), explaining_recipe(self, distills=self.distills):
            self._check_all()

    def _check_all(self) -> None:
        if self.model is None:
            raise ParamsError("model is missing; give --model a folder, a Hub name or 'embedded'.")
        if not self.project_name.strip():
            raise ParamsError("project_name is empty; give --project-name a folder.")
        for name in ("model", "teacher_model"):
            given = getattr(self, name)
            if not (given is None or isinstance(given, str) or is_model(given)):
                raise ParamsError(f"{name} is of type {type(given).__name__}; give a name, a folder or a loaded model.")
        validate_combinations(self)
        if self.queries_from_prompt is not None:
            given = None if self.data_path == FIELDS["data_path"].default else self.data_path
            check_queries(self, distills=self.distills, data_path=given)
        none = self.teacher_model is self.teacher_store is self.teacher_config is None
        if self.distills and none and not self._may_be_written():
            raise ParamsError(
                "teacher_model is missing; distillation needs a teacher: give --teacher-model a folder, a Hub name "
                "or 'embedded'."
            )
        if isinstance(self.teacher_model, str):
            parse_endpoint(self.teacher_model)  # a URL with a password goes no further
        if self.eval_samples and not self.distills:
            raise ParamsError("eval_samples shows what the teacher writes too, and there is none; drop --eval-samples.")
        if not self.distills:
            why = f"trainer {self.trainer!r} does not distil; add --use-distillation"
            refuse_unused(self, why=why, used=OF_PLAIN_SFT)
        elif self.teacher_model == "self":
            self._check_own_teacher()
        if self.teacher_model in OWN_TEACHERS:
            self._check_own_weights()
        if self.quantization is not None and not self.peft:
            raise ParamsError(f"quantization {self.quantization!r} trains an adapter; add --peft.")
        if not self.peft and self.recipe is None and isinstance(self.model, str):  # a loaded model may have an adapter
            for name in OF_ADAPTER:
                if getattr(self, name) != FIELDS[name].default:
                    raise ParamsError(
                        f"{name} is {getattr(self, name)!r}, and no adapter is trained; add --peft, or drop "
                        f"{flag_of(name)}."
                    )
        if self.use_vllm and self.quantization == "int8":
            raise ParamsError("use_vllm cannot be used with --quantization int8, which vLLM does not load; use int4.")
        if self.valid_split == self.train_split:
            raise ParamsError(
                f"valid_split is {self.valid_split!r}, the split that is trained on; name another, give slices such "
                "as 'train[:90%]' and 'train[90%:]', or hold rows out with --holdout 0.1."
            )
        if self.merge_adapter and not self.peft:
            raise ParamsError("merge_adapter has no adapter to merge; add --peft.")
        if self.merge_adapter and self.quantization is not None:
            raise ParamsError("merge_adapter cannot merge into a quantized model; drop one of the two.")
        if self.padding_free and not self.packing and not self.distills:
            raise ParamsError("padding_free without a teacher is for packed rows only, as in TRL; add --packing.")
        if self.overwrite and self.resume:
            raise ParamsError("overwrite and resume contradict each other; give one of them.")
        check_evaluations(self)

    @property
    def evaluations_needed_by(self) -> str | None:
        """The setting that needs an evaluation during training; None if there is none."""
        return needs_evaluations(self)

    def _may_be_written(self) -> bool:
        """Whether the data may name the teachers that wrote its completions, which is checked once it is loaded."""
        path = self.data_path
        return not isinstance(path, str) or os.path.exists(os.path.expanduser(path)) or is_hub_data(path)

    def _check_own_teacher(self) -> None:
        """Check that a self-distilling student has an adapter that can be disabled."""
        if not self.peft and isinstance(self.model, str):
            raise ParamsError(
                "teacher_model is 'self', the student with its adapter switched off, but there is no adapter; add "
                "--peft, or give --teacher-model the model's own name for a teacher that is a copy."
            )

    def _check_own_weights(self) -> None:
        """Refuse settings for loading a teacher if the student's own weights teach."""
        for name in ("teacher_revision", "teacher_dtype", "teacher_quantization", "teacher_device_map"):
            if getattr(self, name) != FIELDS[name].default:
                raise ParamsError(
                    f"{name} is {getattr(self, name)!r}, but teacher_model is {self.teacher_model!r}: the student's "
                    f"own weights teach as they are; drop {flag_of(name)}."
                )

    @property
    def distills(self) -> bool:
        """Whether this run has a teacher: any trainer but plain SFT."""
        return self.trainer != "sft" or self.use_distillation

    @property
    def trackers(self) -> list[str]:
        """The trackers by name; ["all"] for all that are installed."""
        names = [name for name in (part.strip() for part in self.log.split(",")) if name not in ("", "none")]
        return ["all"] if "all" in names else names

    def to_dict(self) -> dict[str, object]:
        """Return all fields as plain data; a loaded model or dataset is named by its class."""
        given: dict[str, object] = {"data_path": self.data_path, "retain_data": self.retain_data}
        names = (str, os.PathLike, type(None))
        in_memory = {k: f"<{type(v).__name__}>" for k, v in given.items() if not isinstance(v, names)}
        return plain({**{name: getattr(self, name) for name in FIELDS}, **in_memory})


def is_hub_data(given: object) -> bool:
    """Whether this is the name of a Hub dataset (account/name), not of a file or folder."""
    named = isinstance(given, str) and HUB_DATA.fullmatch(given) is not None
    return named and not os.path.exists(str(given))


FIELDS = {spec.name: spec for spec in fields(LLMTrainingParams)}

# flags of `aitraining teach` that are no fields
_OF_TEACH = {"output": "teacher_store", "temperatures": "teacher_temperatures", "repair": "repair=True"}
LIBRARY = in_python(FIELDS, _OF_TEACH)  # how `train`, `run` and `teach` name settings


def check_params(params: object) -> None:
    """Check the type of a run's parameters, and validate them; see `LLMTrainingParams.validate`.

    Raises:
        ParamsError: Something else was given, or see `validate`.
    """
    if not isinstance(params, LLMTrainingParams):
        hint = "LLMTrainingParams(**settings)" if isinstance(params, dict) else "LLMTrainingParams(model=..., ...)"
        raise ParamsError(f"a run takes LLMTrainingParams, not {type(params).__name__}; make one with {hint}.")
    params.validate()
