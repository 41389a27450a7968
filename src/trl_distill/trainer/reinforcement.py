"""Training on rewards after distillation: `PPOConfig` and `PPOTrainer`, over TRL's RLOOTrainer or GRPOTrainer.

TRL no longer has a PPO trainer. Both trainers sample several completions for each prompt and raise the probability of
those with more reward than the others; neither needs the value model that PPO has.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.fields import CheckedSettings, option
from ..config.setting_names import in_python, settings_named_as
from ..data.folder_lock import LOCK, folder_lock
from ..errors import DataError, ModelError, ParamsError, ProjectError, printable
from ..prompts.template import Template, parse_template

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["PPOConfig", "PPOTrainer"]

ALGORITHMS = ("rloo", "grpo")


@dataclass
class PPOConfig(CheckedSettings):
    """Settings of a run on rewards.

    Args:
        model: The student: a loaded model, as `train` returns it, a folder, a Hub name or "embedded".
        reward_model: What scores completions: a function as TRL's trainers take it (`prompts`, `completions` and the
            data's columns by keyword; a list of floats), a loaded model for sequence classification with one label, or
            such a model's name.
        data_path: Prompts: a file, a folder, a Hub dataset or a datasets.Dataset.
        prompt_template: The student's prompt, as in `student_prompt_template`.

    Raises:
        ParamsError: An unknown name or a value outside what is accepted, when the object is made and when a field is
            set later.
    """

    model: Any = option(None, "Student, required.")
    reward_model: Any = option(None, "Reward function or model that scores completions, required.")
    data_path: Any = option(None, "Prompts, required.")
    prompt_template: Any = option("{input}", "The student's prompt.", objects=True)
    text_column: str = option("text", "Column with the input, which is {input} in the template.")
    max_bad_rows: int = option(
        0, "Maximum number of rows with a missing or non-text value to skip before it is an error.", low=0
    )
    algorithm: str = option("rloo", "TRL's trainer: RLOOTrainer or GRPOTrainer.", choices=ALGORITHMS)
    project_name: str = option("ppo-model", "Folder to write the model to.")
    overwrite: bool = option(False, "Replace the contents of that folder.")
    epochs: float = option(1.0, "Training epochs over the prompts.", above=0.0)
    max_steps: int = option(-1, "Maximum number of optimizer steps; with -1, epochs decides.", low=1, off=-1)
    batch_size: int = option(8, "Completions per device and step.", low=1)
    gradient_accumulation: int = option(1, "Batches per optimizer step.", low=1)
    num_generations: int = option(4, "Completions per prompt, which are compared with each other.", low=2)
    max_new_tokens: int = option(256, "Maximum number of new tokens in a completion.", low=1)
    temperature: float = option(1.0, "Sampling temperature.", above=0.0)
    kl_coef: float = option(0.05, "Weight of the divergence from the initial student; 0 turns it off.", low=0.0)
    lr: float = option(1e-6, "Learning rate.", above=0.0)
    seed: int = option(42, "Random seed.", low=0, high=2**32 - 1)
    gradient_checkpointing: bool = option(False, "Recompute activations to save memory.")
    log: str = option("none", "Trackers to log to in addition to the terminal.")
    logging_steps: int = option(10, "Steps between two log lines.", low=1)
    trust_remote_code: bool = option(False, "Trust remote code: allow models that come with their own code.")

    def validate(self) -> None:
        """Check what needs no model and no data.

        Raises:
            ParamsError: A missing setting, a reward model that cannot be one, or batches that hold no whole group.
            TemplateError: A template that does not parse.
            ProjectError: A folder that holds something.
        """
        for name, what in (
            ("model", "a loaded model, a folder, a Hub name or 'embedded'"),
            ("reward_model", "a function of prompts and completions, a model for sequence classification, or its name"),
            ("data_path", "a file, a folder, a Hub dataset or a datasets.Dataset with the prompts"),
        ):
            if getattr(self, name) is None:
                raise ParamsError(f"{name} is missing; give {what}.")
        together = self.batch_size * self.gradient_accumulation
        if together % self.num_generations:
            raise ParamsError(
                f"batch_size {self.batch_size} times gradient_accumulation {self.gradient_accumulation} is not a "
                f"multiple of num_generations {self.num_generations}; the completions of a prompt belong in one step."
            )
        if isinstance(self.reward_model, str) or callable(self.reward_model):
            parse_template(self.prompt_template, name="prompt_template")
            _check_folder(self)
            return
        raise ParamsError(
            f"reward_model is of type {type(self.reward_model).__name__}; give a function of prompts and completions, "
            "a model for sequence classification, or its name."
        )


DOOR = in_python(PPOConfig.__dataclass_fields__, {})


class PPOTrainer:
    """Trains a student on rewards; the constructor checks the settings and loads nothing.

    Example:
        >>> config = PPOConfig(model="embedded", reward_model=len, data_path="prompts.jsonl")
        >>> PPOTrainer(config).config.algorithm
        'rloo'

    Args:
        config: The settings.

    Raises:
        UsageError: See `PPOConfig.validate`.

    Attributes:
        trainer: TRL's trainer, once `train` was called.
    """

    def __init__(self, config: PPOConfig) -> None:
        if not isinstance(config, PPOConfig):
            raise ParamsError(f"PPOTrainer takes a PPOConfig, not {type(config).__name__}.")
        with settings_named_as(DOOR):
            config.validate()
        self.config = config
        self.trainer: Any = None

    @settings_named_as(DOOR)
    def train(self) -> PreTrainedModel:
        """Train, save model and tokenizer into the project folder, and return the model.

        Raises:
            UsageError: See `PPOConfig.validate`; a model, data or a reward model that cannot be used; another process
                trains into the folder.
            DistillError: Training has broken the weights; they are not saved.
        """
        self.config.validate()  # it may have been changed since
        folder = Path(self.config.project_name).expanduser()
        with folder_lock(folder, what=f"project_name {str(folder)!r}", instead="another project_name"):
            return self._train()

    def _train(self) -> PreTrainedModel:
        from ..models.adapters import is_peft_model, trainable
        from ..models.generation_config import make_saveable
        from ..models.loading import ModelSource, keep_tokenizer, resolve
        from .saveable import check_weights

        config = self.config
        template = parse_template(config.prompt_template, name="prompt_template")
        given = resolve(config.model, role="model") if isinstance(config.model, str) else config.model
        trust = config.trust_remote_code
        tokenizer, served = _tokenizers(given, trust)
        rows = _rendered_prompts(config, template)
        reward, reward_tokenizer = _reward(config)
        model = ModelSource(given, trust_remote_code=trust).load_model() if isinstance(given, str) else trainable(given)
        _check_lengths(rows, model, tokenizer, config.max_new_tokens)
        lines: list[str] = []
        make_saveable(model, lines.append)
        self.trainer = trainer = self._make_trainer(model, tokenizer, rows, reward, reward_tokenizer)
        _check_reference(trainer)
        trainer.accelerator.print(printable("\n".join([*lines, self._describe(trainer, len(rows))])))
        with warnings.catch_warnings():  # TRL 1.16 calls gradient checkpointing by its older name
            warnings.filterwarnings("ignore", "`gradient_checkpointing_", FutureWarning)
            trainer.train()
        check_weights(trainer)
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        if is_peft_model(model) and "ref" in model.peft_config:
            model.delete_adapter("ref")  # TRL's, to measure the divergence from
        folder = str(Path(config.project_name).expanduser())
        trainer.save_model(folder)
        served.save_pretrained(folder)
        if not is_peft_model(model):
            model.config._name_or_path = folder
        keep_tokenizer(model, served)
        return model.eval()

    def _make_trainer(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Dataset,
        reward: Callable[..., object] | PreTrainedModel,
        reward_tokenizer: PreTrainedTokenizerBase | None,
    ) -> Any:
        import torch
        import trl

        from ..config.devices import accelerator

        config = self.config
        accelerated = accelerator() is not None
        name = config.algorithm.upper()
        made = getattr(trl, f"{name}Config")(
            output_dir=str(Path(config.project_name).expanduser()),
            num_train_epochs=config.epochs,
            max_steps=config.max_steps,
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            num_generations=config.num_generations,
            max_completion_length=config.max_new_tokens,
            temperature=config.temperature,
            beta=config.kl_coef,
            learning_rate=config.lr,
            seed=config.seed,
            gradient_checkpointing=config.gradient_checkpointing,
            report_to=config.log,
            logging_steps=config.logging_steps,
            trust_remote_code=config.trust_remote_code,
            save_strategy="no",
            bf16=accelerated and model.dtype == torch.bfloat16,
            use_cpu=not accelerated,
            dataloader_pin_memory=accelerated,
        )
        return getattr(trl, f"{name}Trainer")(
            model,
            reward,
            args=made,
            train_dataset=rows,
            processing_class=tokenizer,
            reward_processing_classes=reward_tokenizer,
        )

    def _describe(self, trainer: Any, prompts: int) -> str:
        config = self.config
        return (
            f"PPOTrainer: TRL has no PPO; its {type(trainer).__name__} trains, with {prompts:,} prompts, "
            f"{config.num_generations} completions of each, rewards of {trainer.reward_func_names[0]} and a "
            f"divergence of weight {config.kl_coef:g} from the initial student."
        )


def _check_folder(config: PPOConfig) -> None:
    """Refuse a project folder that cannot be made or holds something."""
    folder = Path(config.project_name).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ProjectError(f"project_name {str(folder)!r} is a file; give project_name a folder.")
    if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()) and not config.overwrite:
        raise ProjectError(
            f"project_name {str(folder)!r} holds files already; give another project_name, or overwrite=True."
        )


def _rendered_prompts(config: PPOConfig, template: Template) -> Dataset:
    """Return the rendered prompts, with the data's columns for a reward function.

    A row's completion is in the column `reference`.
    """
    from datasets import Dataset

    from ..data.loading import load_data, read_rows
    from ..data.rows import Columns, rows_of
    from ..prompts.rendering import render

    data, _ = load_data(config.data_path)
    rows, _ = read_rows(data, Columns(config.text_column, max_bad_rows=config.max_bad_rows), source="data_path")
    read = list(rows_of(rows))
    template.check_columns(read[0].values, read=data.column_names)
    made: list[dict[str, Any]] = []
    for row in read:
        columns = {name: value for name, value in row.values.items() if not name.startswith("__")}
        reference = {} if row.completion is None else {"reference": row.completion}
        made.append({**columns, **reference, "input": row.input, "prompt": render(template, row)})
    names = dict.fromkeys(name for row in made for name in row)
    table = {name: [row.get(name) for row in made] for name in names}
    for name, values in table.items():
        if name != "prompt" and len({type(value) for value in values if value is not None}) > 1:
            table[name] = [None if value is None else str(value) for value in values]
    kinds = {type(prompt) for prompt in table["prompt"]}
    if len(kinds) > 1:
        raise DataError("data_path has conversations and plain text; give rows of one kind.")
    return Dataset.from_dict(table)


def _reward(
    config: PPOConfig,
) -> tuple[Callable[..., object] | PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Return the reward function or model, and a model's tokenizer.

    Raises:
        ModelError: No model that scores a text with one number.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from ..models.loading import ModelSource, resolve, tokenizer_of

    given, trust = config.reward_model, config.trust_remote_code
    if not isinstance(given, str):
        if not hasattr(given, "config"):
            return given, None
        _check_scores(given.config, type(given).__name__)
        return given, tokenizer_of(given, role="reward_model", trust_remote_code=trust)
    path = resolve(given, role="reward_model")
    tokenizer = ModelSource(path, "reward_model", trust_remote_code=trust).load_tokenizer()
    found = AutoConfig.from_pretrained(path, trust_remote_code=trust)  # nosec B615  # no revision is asked for
    _check_scores(found, *(found.architectures or ["a model of no known kind"])[:1])
    reward = AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=trust)  # nosec B615  # as above
    return reward, tokenizer


def _check_scores(found: PretrainedConfig, kind: str) -> None:
    """Refuse a reward model without one score for a text: transformers would give it a random one."""
    if not kind.endswith("ForSequenceClassification") or found.num_labels != 1:
        labels = f" with {found.num_labels} labels" if kind.endswith("ForSequenceClassification") else ""
        raise ModelError(
            f"reward_model is {kind}{labels}, which gives no score of a text; give a model for sequence classification "
            "with one label, as TRL's RewardTrainer makes, or a function."
        )


def _tokenizers(given: str | PreTrainedModel, trust: bool) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """Return the student's tokenizer with its own chat template, and as the student is served."""
    from transformers import AutoTokenizer

    from ..models.loading import ModelSource, tokenizer_of
    from ..models.own_chat_template import own_tokenizer

    if not isinstance(given, str):
        served = tokenizer_of(given, trust_remote_code=trust)
        return own_tokenizer(served), served
    source = ModelSource(given, trust_remote_code=trust)
    own = source.load_tokenizer()
    if source.adapter is not None and not source.adapter.has_tokenizer:
        return own, own
    return own, AutoTokenizer.from_pretrained(given, trust_remote_code=trust)  # nosec B615  # as above


def _check_lengths(rows: Dataset, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new: int) -> None:
    """Refuse a prompt that leaves the student no room for a completion."""
    from ..models.generation import length_limit
    from ..prompts.prefix_tokenizer import PromptTokens

    limit, tokens = length_limit(model.config), PromptTokens(tokenizer)
    if limit is None:
        return
    for number, prompt in enumerate(rows["prompt"], 1):
        length = len(tokens(prompt, {}))
        if length + new > limit:
            raise DataError(
                f"data_path, row {number}: the prompt has {length:,} tokens, and with max_new_tokens {new:,} that is "
                f"more than the {limit:,} of the model; shorten it, or lower max_new_tokens."
            )


def _check_reference(trainer: Any) -> None:
    """Refuse a student that is not what TRL read from its folder to measure the divergence from.

    Raises:
        ModelError: Its weights were changed since it was read.
    """
    import torch

    reference = trainer.ref_model
    if reference is None or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return
    theirs = dict(trainer.accelerator.unwrap_model(reference).named_parameters())
    for name, own in trainer.model.named_parameters():
        if name not in theirs or not torch.equal(own.detach(), theirs[name].detach().to(own.device, own.dtype)):
            raise ModelError(
                f"model is not what is saved in {trainer.model.config._name_or_path!r}, from where TRL reads the "
                "student that the divergence is measured from; save it and give the folder, or set kl_coef=0."
            )
