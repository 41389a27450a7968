"""`train(params)`: load, prepare, train, save, report - the one engine behind the command and the library.

Everything that can be wrong in what the user typed is found before a model loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ModelError, RunInterrupted
from .hub import check_token
from .params import LLMTrainingParams, check_params
from .project import Project
from .prompts import parse_template
from .registry import get_trainer

if TYPE_CHECKING:
    from datasets import Dataset

    from .config import DistillationSFTConfig
    from .preflight import Preflight


@dataclass
class RunResult:
    """What a run leaves.

    Attributes:
        model: The trained model; None after a dry run.
        tokenizer: Its tokenizer.
        metrics: Figures of training and evaluation by name.
        paths: The written files by name: `project`, `config`, `card`, `metrics`.
        trainer: The trainer, for a look at its state; None after a dry run.
    """

    model: Any
    tokenizer: Any
    metrics: dict[str, Any]
    paths: dict[str, Path]
    trainer: Any = None


def train(params: LLMTrainingParams) -> Any:
    """Train and return the model, as in the guide. See `run` for the whole result.

    Args:
        params: The run's parameters.

    Raises:
        UsageError: Something that was asked for cannot be done; raised before a model loads.
        RunInterrupted: Ctrl-C; a checkpoint is written.
    """
    return run(params).model


def run(params: LLMTrainingParams) -> RunResult:
    """Train and return model, tokenizer, metrics, paths and trainer.

    The project folder then holds the model (safetensors), its tokenizer, the configuration, the metrics and a
    model card. With `dry_run` it stops after the pre-flight and writes nothing but completions paid for.

    Raises:
        UsageError: Something that was asked for cannot be done; raised before a model loads.
        RunInterrupted: Ctrl-C; a checkpoint is written.
    """
    check_params(params)
    check_token(params)
    templates = [
        parse_template(getattr(params, f"{side}_prompt_template"), name=f"{side}_prompt_template")
        for side in ("student", "teacher")
    ]
    trainer_class = _trainer_class(params)
    project = Project(params.project_name)
    if not params.dry_run:
        project.check(overwrite=params.overwrite, resume=params.resume)
    from .data import load_data

    data = load_data(
        params.data_path,
        train_split=params.train_split,
        valid_split=params.valid_split,
        config_name=params.data_config,
    )
    return _Run(params, project, trainer_class, data, templates).go()


def _trainer_class(params: LLMTrainingParams) -> type:
    """Return the registered trainer; an unknown name ends here."""
    return get_trainer(params.trainer, use_distillation=params.use_distillation)


class _Run:
    """The steps of one run, each a method; the constructor only stores."""

    def __init__(
        self,
        params: LLMTrainingParams,
        project: Project,
        trainer_class: type,
        data: tuple[Dataset, Dataset | None],
        templates: list[Any],
    ) -> None:
        self.params = params
        self.project = project
        self.trainer_class = trainer_class
        self.train_data, self.valid_data = data
        self.templates = templates
        self.preflights: dict[str, Preflight] = {}
        self.teacher: Any = None

    def go(self) -> RunResult:
        """Do all steps."""
        from accelerate import PartialState
        from transformers import set_seed

        from .config import from_params
        from .progress import show_lines

        params = self.params
        self.args = from_params(params)
        if self.valid_data is None:
            self.args.eval_strategy = "no"  # nothing to evaluate on
        set_seed(params.seed)
        self.state = PartialState(cpu=self.args.use_cpu)
        self.load_tokenizer()
        if params.distills:
            self.prepare_data()
        if params.dry_run:
            return RunResult(None, self.tokenizer, self.figures(), {"project": self.project.folder})
        trainer = show_lines(self.make_trainer())
        if self.state.is_main_process:
            self.project.begin(params, overwrite=params.overwrite)
        self.state.wait_for_everyone()
        outcome = self.fit(trainer)
        return self.save(trainer, outcome)

    def load_tokenizer(self) -> None:
        """Load the student's configuration and tokenizer, with the chat template asked for."""
        from .chat_templates import take_chat_template
        from .sources import check_can_merge, load_config, load_tokenizer, resolve

        model, trust = self.params.model, self.params.trust_remote_code
        if isinstance(model, str):
            self.model_path: str | None = resolve(model, role="model")
            check_can_merge(
                self.model_path,
                role="model",
                quantization=self.params.quantization,
                new_adapter=self.params.peft and not self.params.merge_adapter,
                trust_remote_code=trust,
            )
            self.model_config = load_config(self.model_path, role="model", trust_remote_code=trust)
        else:
            self.model_path, self.model_config = None, model.config
        source = self.model_path or model.config._name_or_path
        if not source:
            raise ModelError(
                "model is a loaded model that does not say where its tokenizer is; save it to a folder "
                "with its tokenizer and give that."
            )
        self.tokenizer = load_tokenizer(source, role="model", trust_remote_code=trust)
        take_chat_template(self.tokenizer, self.params.chat_template, trust_remote_code=trust)

    def prepare_data(self) -> None:
        """Check everything against everything, have completions written, and show the pre-flight."""
        from .preparation import prepare
        from .recipes import recipe_of, teacher_of

        given = None if isinstance(self.params.teacher_model, str) else self.params.teacher_model
        device = "cpu" if self.args.use_cpu else self.state.device
        config = self.model_config
        self.teacher = teacher_of(self.args, given, tokenizer=self.tokenizer, student=config, device=device)
        recipe = recipe_of(self.args, self.teacher, tokenizer=self.tokenizer, student=config)
        sample = DRY_RUN_ROWS if self.params.dry_run else None
        for name, data in (("train", self.train_data), ("validation", self.valid_data)):
            if data is None:
                continue
            with self.state.main_process_first():
                prepared, self.preflights[name] = prepare(data, recipe, name=name, rows_at_most=sample)
            self.state.print(self.preflights[name].text())
            if name == "train":
                self.train_data = prepared
            else:
                self.valid_data = prepared
        if sample is not None:
            self.state.print(f"Dry run: figures are of the first {sample} rows at most; nothing was trained.")

    def make_trainer(self) -> Any:
        """Load the student and make the trainer."""
        from .interrupt import StopCallback
        from .sources import load_model

        params = self.params
        model = params.model
        if self.model_path is not None:
            model = load_model(
                self.model_path,
                role="model",
                dtype=params.dtype,
                quantization=params.quantization,
                attn_implementation=params.attn_implementation,
                trust_remote_code=params.trust_remote_code,
            )
        extra: dict[str, Any] = {"teacher_model": self.teacher} if params.distills else {}
        return self.trainer_class(
            model,
            self._trainer_args(),
            train_dataset=self.train_data,
            eval_dataset=self.valid_data,
            processing_class=self.tokenizer,
            peft_config=_lora(params) if params.peft else None,
            callbacks=[StopCallback()],
            **extra,
        )

    def _trainer_args(self) -> DistillationSFTConfig:
        """Return the configuration with the folder of checkpoints."""
        self.args.output_dir = str(self.project.checkpoints)
        return self.args

    def fit(self, trainer: Any) -> Any:
        """Train; Ctrl-C ends at the next step with a checkpoint."""
        from .interrupt import StopCallback, asking_to_stop

        callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, StopCallback))
        last = self.project.last_checkpoint() if self.params.resume else None
        with asking_to_stop(callback):
            outcome = trainer.train(resume_from_checkpoint=str(last) if last else None)
        if callback.asked:
            raise RunInterrupted(
                f"stopped on request at step {trainer.state.global_step}; a checkpoint is in "
                f"{self.project.last_checkpoint()}; go on with the same command and --resume."
            )
        return outcome

    def save(self, trainer: Any, outcome: Any) -> RunResult:
        """Write the project folder, the manifest last, and tell where it is."""
        from .report import write_card

        metrics = {**self.figures(), **outcome.metrics}
        if self.valid_data is not None:
            metrics |= trainer.evaluate()
        model = trainer.model
        if self.params.merge_adapter:
            model = model.merge_and_unload()
        if self.state.is_main_process or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            self._save_model(trainer, model)
        paths: dict[str, Path] = {"project": self.project.folder}
        if self.state.is_main_process:
            history = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
            paths |= self.project.write_metrics(metrics, history)
            paths["card"] = write_card(
                self.project.folder,
                self.params,
                self.templates,
                metrics,
                model,
                self.tokenizer,
                self.preflights.get("train"),
            )
            paths |= self.project.finish()
            print(_closing(self.project.folder, metrics))
            if self.params.push_to_hub:
                from .hub import push

                push(self.project.folder, self.params)
        self.state.wait_for_everyone()
        return RunResult(model, self.tokenizer, metrics, paths, trainer)

    def _save_model(self, trainer: Any, model: Any) -> None:
        """Write model and tokenizer to a temporary folder and move them into the project."""
        with self.project.writing() as folder:
            if model is trainer.model:
                trainer.save_model(str(folder))
            else:
                model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def figures(self) -> dict[str, Any]:
        """Return the pre-flight's figures by name."""
        return {f"preflight_{name}": flight.to_dict() for name, flight in self.preflights.items()}


DRY_RUN_ROWS = 16


def _lora(params: LLMTrainingParams) -> Any:
    """Return the adapter's configuration."""
    from peft import LoraConfig

    modules: Any = [name.strip() for name in params.target_modules.split(",")]
    return LoraConfig(
        r=params.lora_r,
        lora_alpha=params.lora_alpha,
        lora_dropout=params.lora_dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=modules[0] if modules == ["all-linear"] else modules,
    )


def _closing(folder: Path, metrics: dict[str, Any]) -> str:
    """Return the last lines of a run."""
    shown = {k: metrics[k] for k in ("train_loss", "eval_loss", "eval_kl", "eval_ce") if k in metrics}
    figures = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    return f"Done in {metrics['train_runtime']:.0f} s: {figures}.\nModel, card and metrics are in {folder}."
