"""The steps of one run, from the checks that need no model to the files it leaves."""

from __future__ import annotations

from collections.abc import Collection
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.training_params import LLMTrainingParams
from ..data.split import Split
from ..errors import DistillError, RunInterrupted
from .checks import check_ready
from .project_folder import Project
from .summary import closing, last_evaluation, training_means

if TYPE_CHECKING:
    from datasets import Dataset

    from ..config.sft_config import DistillationSFTConfig
    from ..data.preflight import Preflight

DRY_RUN_ROWS = 16
NAMES = {Split.TRAIN: "train", Split.EVAL: "validation"}  # in messages and in the figures


@dataclass
class RunResult:
    """What a run leaves.

    Attributes:
        model: The trained model; None after a dry run.
        tokenizer: Its tokenizer, as it was saved.
        metrics: Figures of training and evaluation by name.
        paths: The written files by name: `project`, `config`, `card`, `metrics`.
        trainer: The trainer, for a look at its state; None after a dry run.
    """

    model: Any
    tokenizer: Any
    metrics: dict[str, Any]
    paths: dict[str, Path]
    trainer: Any = None


class Run:
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
        self.preflights: dict[Split, Preflight] = {}
        self.teacher: Any = None

    def go(self) -> RunResult:
        """Do all steps."""
        from .progress import show_lines

        params = self.params
        self.set_up()
        self.prepare_data()
        if params.dry_run:
            return RunResult(None, self.tokenizer, self.figures(), {"project": self.project.folder})
        trainer = show_lines(self.make_trainer())
        if self.state.is_main_process:
            self.project.begin(params)  # not before all that can be refused has been
            if params.distills:
                self.day.keep()
        self.state.wait_for_everyone()
        self.fit(trainer)
        return self.save(trainer)

    def teach(self) -> int:
        """Write the store of targets instead of training, and return how many shards were made."""
        from ..trainer.target_store_setup import write_store

        self.set_up()
        self._prepare_for_teacher(writing=True)
        return write_store(self.args, self.teacher, self._named()) if self.state.is_main_process else 0

    def set_up(self) -> None:
        """Make the configuration, load the tokenizer and refuse what can be refused before a model loads."""
        from accelerate import PartialState
        from transformers import set_seed

        from ..config.sft_config import from_params
        from ..teachers.local.teacher import check_apart
        from ..trainer.compatibility import check_compiler, check_optimizer, check_vllm
        from ..trainer.distributed import check_merging, read_whole
        from ..trainer.multi_teacher_setup import check_list

        params = self.params
        self.args = from_params(params)
        if params.merge_adapter:
            check_merging(self.args)
        check_optimizer(self.args)
        check_compiler(self.args)
        if params.use_vllm:
            check_vllm(params.model)
        if self.valid_data is None:
            self.args.eval_strategy = "no"  # nothing to evaluate on
        set_seed(params.seed)
        self.state = PartialState(cpu=self.args.use_cpu)
        self.load_tokenizer()
        with read_whole(self.args):  # a model is made of the configuration, without weights
            self.outline = check_ready(params, self.model_config)
        check_apart(student=params.model, teacher=params.teacher_model)
        check_list(params, student=params.model)

    def load_tokenizer(self) -> None:
        """Load the student's configuration and tokenizer, with the chat template asked for."""
        from ..models.loading import ModelSource, resolve, tokenizer_of
        from ..models.own_chat_template import own_tokenizer
        from ..prompts.chat_template_choice import set_chat_template

        params, model, trust = self.params, self.params.model, self.params.trust_remote_code
        self.source: ModelSource | None = None
        if isinstance(model, str):
            self.source = ModelSource(
                resolve(model, role="model"),
                dtype=params.dtype,
                quantization=params.quantization,
                device=self._device,
                attn_implementation=params.attn_implementation,
                trust_remote_code=trust,
            )
            self.source.check_can_merge(new_adapter=params.peft and not params.merge_adapter)
            self.model_config, self.tokenizer = self.source.config, self.source.load_tokenizer()
        else:
            self.model_config = model.config
            self.tokenizer = copy(own_tokenizer(tokenizer_of(model, trust_remote_code=trust)))  # that one stays
        set_chat_template(self.tokenizer, self.params.chat_template, trust_remote_code=trust)

    def prepare_data(self) -> None:
        """Check everything against everything, have completions written, and show the pre-flight."""
        if self.params.distills:
            self._prepare_for_teacher()
            return
        from ..data.preflight import COMPUTES
        from ..data.sft_rows import check_marks, plain_rows
        from ..trainer.compute import how_it_computes

        self.computes = how_it_computes(self.args, self.outline, quantization=self.params.quantization)
        if self.params.assistant_only_loss:
            check_marks(self.tokenizer)
        for split, data in self._datasets().items():
            rows, report = plain_rows(data, self.params, name=NAMES[split])
            computes = f"\n  {COMPUTES}{self.computes}" if split is Split.TRAIN else ""
            self.state.print(f"Pre-flight ({NAMES[split]})\n  rows          {report.summary()}{computes}")
            if split is Split.TRAIN:
                self._check_rows(rows, fields=None)
            self._put(split, rows)

    def _prepare_for_teacher(self, *, writing: bool = False) -> None:
        """Prepare rows for a teacher; all are read before the teacher writes for any."""
        from ..teachers.multi.preparation import fields_read, prepare, read
        from ..teachers.same_weights import Student
        from ..teachers.server_requirements import check_teaches
        from ..trainer.compute import how_it_computes
        from ..trainer.distributed import read_whole
        from ..trainer.multi_teacher_setup import describe_teacher, recipe_of, teacher_of
        from ..trainer.setup import template_date, writers_of_data
        from ..trainer.target_store_setup import from_store

        given = None if isinstance(self.params.teacher_model, str) else self.params.teacher_model
        config = self.model_config
        self.teacher = teacher_of(
            self.args,
            given,
            tokenizer=self.tokenizer,
            student=config,
            device=self._device,
            own=lambda: self.student,
            own_source=self.source,
            generation_config=self._generation_config(),
            writing=writing,
            written_by=writers_of_data(self.args, given, self.train_data),
        )
        said = describe_teacher(self.params.teacher_model, self.teacher)
        if said:
            self.state.print(said)
        self.day = template_date(self.args, self.teacher, self.tokenizer)
        self.args.chat_template_date = None if self.day.day is None else self.day.day.isoformat()
        weights = Student(lambda: self.student, self.source, self.trainer_class)
        recipe = recipe_of(self.args, self.teacher, tokenizer=self.tokenizer, student=config, weights=weights)
        self.computes = how_it_computes(
            self.args, self.outline, teacher=self.teacher, quantization=self.params.quantization
        )
        sample = DRY_RUN_ROWS if self.params.dry_run and not writing else None
        readings = {split: read(data, recipe, name=NAMES[split]) for split, data in self._datasets().items()}
        self._check_rows(readings[Split.TRAIN][0], fields=fields_read(recipe))
        for split, reading in readings.items():
            with read_whole(self.args), self.state.main_process_first():  # the others find the completions in the store
                prepared, self.preflights[split] = prepare(
                    reading, recipe, split=split, name=NAMES[split], rows_at_most=sample
                )
            computes = self.computes if split is Split.TRAIN and not writing else ""
            self.state.print(self.preflights[split].text(computes=computes))
            if split is Split.TRAIN:
                check_teaches(self.args, self.teacher, self.preflights[split])
            self._put(split, prepared)
        if sample is not None:
            self.state.print(f"Dry run: figures are of the first {sample} rows at most; nothing was trained.")
        elif not writing:
            self.teacher = from_store(self.args, self.teacher, self._named())

    def _check_rows(self, rows: Dataset, *, fields: Collection[str] | None) -> None:
        """Refuse to resume on other rows, before the teacher writes for any."""
        from ..data.data_fingerprint import fingerprint

        numbers = rows["row"] if "row" in rows.column_names else range(1, len(rows) + 1)
        self.project.check_rows(fingerprint(rows, fields=fields), numbers, self.params)

    def _datasets(self) -> dict[Split, Dataset]:
        """Return the datasets there are, by what they are for."""
        both = {Split.TRAIN: self.train_data, Split.EVAL: self.valid_data}
        return {split: data for split, data in both.items() if data is not None}

    def _named(self) -> list[tuple[str, Dataset]]:
        """Return the datasets there are, each with its name."""
        return [(NAMES[split], data) for split, data in self._datasets().items()]

    def _put(self, split: Split, data: Dataset) -> None:
        """Put a prepared dataset in the place of what it was made from."""
        if split is Split.TRAIN:
            self.train_data = data
        else:
            self.valid_data = data

    def make_trainer(self) -> Any:
        """Load the student and make the trainer."""
        from ..models.adapters import is_peft_model, lora_config
        from ..models.quantization import keep_differentiable
        from .interrupt import StopCallback
        from .watch import WatchCallback

        params = self.params
        self.stop, self.watch = StopCallback(), WatchCallback()
        model = self.student
        self._mend_generation_config(model)
        keep_differentiable(model)
        extra: dict[str, Any] = {"teacher_model": self.teacher} if params.distills else {}
        trainer = self.trainer_class(
            model,
            self._trainer_args(),
            train_dataset=self.train_data,
            eval_dataset=self.valid_data,
            processing_class=self.served_tokenizer,
            # a model that comes with an adapter, as an earlier stage returns it, goes on with that one
            peft_config=lora_config(params) if params.peft and not is_peft_model(model) else None,
            callbacks=[self.stop, self.watch],
            **extra,
        )
        preflight = self.preflights.get(Split.TRAIN)
        if preflight is not None and preflight.serving is not None:  # prepared rows do not say it to the trainer
            preflight.serving.put(self.served_tokenizer)
        return trainer

    @cached_property
    def served_tokenizer(self) -> Any:
        """The tokenizer that is saved: once the trainer is made, its chat template renders the student's prompt."""
        return copy(self.tokenizer)

    def _mend_generation_config(self, model: Any) -> None:
        """Have a model's generation configuration be one that can be saved, so that its weights are."""
        from ..models.generation_config import make_saveable

        said = make_saveable(model)
        if said:
            self.state.print(said)

    def _generation_config(self) -> Any:
        """Return the student's generation configuration, without its weights."""
        return self.params.model.generation_config if self.source is None else self.source.load_generation_config()

    @property
    def _device(self) -> Any:
        """Where this process's models go."""
        return "cpu" if self.args.use_cpu else self.state.device

    @cached_property
    def student(self) -> Any:
        """The student: loaded, or as it was handed over, ready to learn."""
        params = self.params
        if self.source is not None:
            return self.source.load_model()
        if not any(p.requires_grad for p in params.model.parameters()):
            params.model.requires_grad_(True)  # one that was a teacher, or whose adapter was merged, is frozen
        return params.model

    def _trainer_args(self) -> DistillationSFTConfig:
        """Return the configuration with the folder of checkpoints."""
        self.args.output_dir = str(self.project.checkpoints)
        if self.teacher is not None and not isinstance(self.args.teacher_model, (str, type(None))):
            self.args.teacher_model = self.teacher.name  # checkpoints hold the configuration, which must not hold it
        return self.args

    def fit(self, trainer: Any) -> None:
        """Train; Ctrl-C ends at the next step with a checkpoint, a loss that is no number without one.

        Raises:
            RunInterrupted: Ctrl-C.
            DistillError: The loss is no number any more.
        """
        from .interrupt import asking_to_stop

        last = self.project.last_checkpoint() if self.params.resume else None
        with asking_to_stop(self.stop):
            self.outcome = trainer.train(resume_from_checkpoint=str(last) if last else None)
        if self.watch.diverged is not None:
            step, name = self.watch.diverged
            raise DistillError(
                f"training diverged: {name} is no number at step {step}, and nothing was saved since "
                f"{self.project.last_checkpoint() or 'the beginning'}; lower --lr (it is {self.params.lr:g}), or look "
                "at the precision."
            )
        if self.stop.asked:
            raise RunInterrupted(
                f"stopped on request at step {trainer.state.global_step}; a checkpoint is in "
                f"{self.project.last_checkpoint()}; go on with the same command and --resume."
            )

    def save(self, trainer: Any) -> RunResult:
        """Write the project folder, the manifest last, and tell where it is."""
        from .model_card import write_card

        evaluated = self._evaluate(trainer) if self.params.merge_adapter else None  # merging takes the adapter apart
        model = self._finished(trainer)
        with self.project.writing(self.state) as folder:
            self._save_model(trainer, model, folder)
        evaluated = self._evaluate(trainer) if evaluated is None else evaluated
        model = self._unwrapped(trainer, model)
        history = trainer.state.log_history
        metrics = {**self.figures(), **self.outcome.metrics, **training_means(history), **evaluated}
        paths: dict[str, Path] = {"project": self.project.folder}
        if self.state.is_main_process:
            lines = [entry for entry in history if "loss" in entry or "eval_loss" in entry]
            paths |= self.project.write_metrics(metrics, lines)
            folder, preflight = self.project.folder, self.preflights.get(Split.TRAIN)
            sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
            shown = None if sharded else model
            paths["card"] = write_card(
                folder, self.params, self.templates, metrics, shown, self.served_tokenizer, preflight, self.computes
            )
            paths |= self.project.finish()
            print(closing(folder, metrics))
            if self.params.push_to_hub:
                from .hub import push

                push(folder, self.params)
        self.state.wait_for_everyone()
        self._carry_on(model)
        return RunResult(model, self.served_tokenizer, metrics, paths, trainer)

    def _evaluate(self, trainer: Any) -> dict[str, Any]:
        """Return the figures at the end, measured now unless the last step's were."""
        if self.valid_data is None or self.args.eval_strategy == "no":
            return {}
        known = last_evaluation(trainer.state.log_history, trainer.state.global_step)
        return known or dict(trainer.evaluate())

    def _finished(self, trainer: Any) -> Any:
        """Return the trained model, its adapter merged where that was asked for."""
        from ..models.adapters import merged

        return merged(trainer.model) if self.params.merge_adapter else trainer.model

    def _save_model(self, trainer: Any, model: Any, folder: Path) -> None:
        """Write model, tokenizer and training arguments into a folder; every rank that holds a part calls this."""
        import torch

        self._mend_generation_config(model)  # a callback may have left one that cannot be
        if model is trainer.model:
            if self.state.is_main_process or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
                trainer.save_model(str(folder))
        elif self.state.is_main_process:
            model.save_pretrained(folder)
            torch.save(trainer.args, folder / "training_args.bin")
        if self.state.is_main_process:
            self.served_tokenizer.save_pretrained(folder)

    def _unwrapped(self, trainer: Any, model: Any) -> Any:
        """Return the model with its own forward, in evaluation mode: ready to answer."""
        from ..models.adapters import base_of
        from ..models.completion_forward import restore_forward

        model = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        restore_forward(base_of(model))
        return model.eval()

    def _carry_on(self, model: Any) -> None:
        """Have the model say where it was saved, and bring its tokenizer to a next stage."""
        from ..models.adapters import base_of
        from ..models.loading import TOKENIZER

        if base_of(model) is model:
            model.config._name_or_path = str(self.project.folder)
        setattr(model, TOKENIZER, self.served_tokenizer)

    def figures(self) -> dict[str, Any]:
        """Return the pre-flight's figures by name."""
        return {f"preflight_{NAMES[split]}": flight.to_dict() for split, flight in self.preflights.items()}
