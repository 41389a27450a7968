"""What a distilling SFTTrainer does differently: the hooks of Trainer, which its `Distiller` and set-up fill.

With `use_distillation=False` every method passes on to SFTTrainer untouched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.trainer_utils import PredictionOutput

from ..config.distillation_arguments import check_arguments
from ..config.setting_names import settings_named_as
from ..config.sft_config import TRAINER, DistillationSFTConfig, left_alone_on_failure
from ..config.validation import validate_combinations
from ..data.collator import DistillationCollator, MultiTeacherCollator
from ..data.data_fingerprint import fingerprint
from ..data.memory import for_evaluation, for_trainer
from ..data.packing import PackedRows, packed
from ..data.split import Split
from ..data.streaming import check_streams, is_stream
from ..errors import ParamsError
from ..models.adapters import is_peft_model
from ..models.generation_config import make_saveable
from ..models.loading import resolve
from ..teachers.base import Teacher
from ..teachers.local.ema import EmaCallback
from ..teachers.multi.teacher import MultiTeacher
from .base import DistillingTrainer
from .checkpoints import check_rows, keep_rows, mark_incomplete, to_resume_from
from .compatibility import SEARCH, check_constructor, check_features, check_plain, with_lengths
from .distiller import Distiller
from .model_setup import check_student, connect_teacher, ready_student, ready_teacher, student_of
from .packing_checks import hide_packing_from_sft_trainer
from .plan import plan_setup
from .settings import settings_of
from .setup import DistillationSetup, build_setup, name_objects
from .trainer_datasets import TrainerDatasets

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainingArguments
    from transformers.trainer_utils import BestRun, TrainOutput

    from ..models.completion_forward import CompletionOutput
    from .on_policy import BatchRandom

    Batch = Mapping[str, torch.Tensor]


class DistillationMixin(DistillingTrainer):
    """Put in front of `trl.SFTTrainer`: `class MyTrainer(DistillationMixin, SFTTrainer)`.

    Args:
        model: Student, as in SFTTrainer.
        args: DistillationSFTConfig; any other configuration, or `use_distillation=False`, trains plain SFT.
        data_collator: As in SFTTrainer; not accepted when distilling.
        train_dataset: Rows of any form that `rows.read_rows` reads, or what `preparation.prepare` returned: a
            `datasets.Dataset` or `IterableDataset`, a list of dicts or a pandas DataFrame.
        eval_dataset: The same, or a dict of them.
        processing_class: The student's tokenizer.
        teacher_model: A loaded model, a `Teacher` or a name; replaces `args.teacher_model`.
        setup: A run's set-up if it is built already; the datasets are then prepared by it.
        formatting_func: As in SFTTrainer.
        **kwargs: Everything else of SFTTrainer.

    Raises:
        ParamsError: A setting that cannot be used with distillation.
        DataError, TemplateError, TeacherError: See `preparation.prepare`, `load_teacher` and `check_apart`.

    Attributes:
        setup: The teacher, the recipe and the schedule.
        datasets: What prepares datasets.
        distiller: What computes and counts the loss.
    """

    must_distil = False  # whether `use_distillation` must be set
    datasets: TrainerDatasets
    distiller: Distiller

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: TrainingArguments | None = None,
        data_collator: object = None,
        train_dataset: object = None,
        eval_dataset: object = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        *positional: Any,
        teacher_model: str | PreTrainedModel | Teacher | None = None,
        setup: DistillationSetup | None = None,
        **kwargs: Any,
    ) -> None:
        self.distilling = isinstance(args, DistillationSFTConfig) and args.use_distillation
        with settings_named_as(TRAINER), left_alone_on_failure(args):
            if isinstance(args, DistillationSFTConfig) and args.use_distillation:
                check_constructor(args, data_collator, kwargs)
                data, more = (train_dataset, eval_dataset), (processing_class, *positional)
                self._set_up(model, args, *data, *more, teacher_model=teacher_model, setup=setup, **kwargs)
                return
            check_plain(args, teacher_model, must_distil=type(self).__name__ if self.must_distil else None)
            given: tuple[Any, ...] = (model, args, data_collator, train_dataset, eval_dataset, processing_class)
            super().__init__(*given, *positional, **kwargs)

    def _set_up(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: DistillationSFTConfig,
        train_dataset: object,
        eval_dataset: object,
        *more: Any,
        teacher_model: str | PreTrainedModel | Teacher | None,
        setup: DistillationSetup | None,
        **kwargs: Any,
    ) -> None:
        """Check everything, construct SFTTrainer around a collator of ours, and bring in teacher and data."""
        self._tag_names, self._name = ["trl", "distillation"], "Distillation"
        rows, eval_rows = for_trainer(train_dataset, name="train_dataset"), for_evaluation(eval_dataset)
        check_streams(args, rows, eval_rows)
        plan = None
        if setup is None:
            check_arguments(args)  # fields may have been set after the configuration was made
            validate_combinations(args)
            plan = plan_setup(args, teacher_model, student=model, data=rows)
        check_features(args, model=model, peft_config=kwargs.get("peft_config"))
        fresh_adapter = kwargs.get("peft_config") is not None
        loaded_from = resolve(model, role="model") if isinstance(model, str) else None
        args.remove_unused_columns = False  # the collator reads columns that are no arguments of the model
        given: Any = args.dataset_kwargs or {}
        args.dataset_kwargs = {**given, "skip_prepare_dataset": True}
        turns, args.assistant_only_loss = args.assistant_only_loss, False  # TRL's needs a template with its marks
        formatting = kwargs.pop("formatting_func", None)
        flat = bool(args.padding_free or args.packing)
        multiple: Any = args.pad_to_multiple_of  # which TRL annotates as text too
        collator = DistillationCollator(0, pad_to_multiple_of=multiple, padding_free=flat)
        with hide_packing_from_sft_trainer(args):
            super().__init__(loaded_from or model, args, collator, rows, eval_rows, *more, **kwargs)
        self.padding_free = flat
        args.assistant_only_loss = turns
        self._mend_generation_config()
        self._own_tokenizer = ready_student(self)
        self._student_checked = not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        if self._student_checked:  # else its weights may not be here yet
            check_student(self, self.model)
        self.datasets = TrainerDatasets(self, formatting)
        prepared = plan is None
        if plan is not None:
            setup = build_setup(settings_of(args), student_of(self, loaded_from), plan)
            name_objects(args, setup.teacher)
            if setup.note:
                self.accelerator.print(setup.note)
        assert setup is not None
        self.setup = setup
        self.check_teacher()
        connect_teacher(self, self.teacher, fresh_adapter=fresh_adapter)
        self._set_pads(collator)
        if prepared:
            self.train_dataset = with_lengths(self.train_dataset, args)
        else:
            self.datasets.prepare_own()
        self.distiller = Distiller(self, self.setup)
        ready_teacher(self, all_ends=self.online or self.distiller.learns_distribution)
        self.datasets.pack()
        self.distiller.completions.start_vllm()

    def _set_pads(self, collator: DistillationCollator) -> None:
        collator.pad_token_id = self.tokenizer.pad_token_id
        collator.teacher_pad_token_id = self.teacher.tokenizer.pad_token_id
        if isinstance(self.teacher, MultiTeacher):
            pads = [teacher.tokenizer.pad_token_id for teacher in self.teacher.teachers]
            self.data_collator = MultiTeacherCollator(**vars(collator), teacher_pad_token_ids=pads)

    def by_teacher(self, batch: Batch, randomness: BatchRandom) -> dict[str, torch.Tensor]:
        """Return a training batch with completions that the teacher writes now, under its prompts."""
        return self.distiller.completions.by_teacher(batch, randomness)

    @settings_named_as(TRAINER)
    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as SFTTrainer does; with `resume_from_checkpoint=True`, from the newest complete checkpoint.

        Raises:
            ParamsError: There is none.
        """
        if self.distilling and resume_from_checkpoint is True:
            resume_from_checkpoint = str(to_resume_from(str(self.args.output_dir)))
        if self.distilling and resume_from_checkpoint and self._learned_from is not None:
            check_rows(str(resume_from_checkpoint), *self._learned_from)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int | None]:
        """Return an optimizer step's batches and the number of their completion tokens over all ranks.

        Fresh completions are written for the whole step first, so that they are what is counted.
        """
        if self.distilling:
            epoch_iterator = self.distiller.begin_step(epoch_iterator)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, CompletionOutput]:
        """Return alpha * T^2 * divergence + (1 - alpha) * cross-entropy per completion token.

        The sum over the batch is divided by `num_items_in_batch`, the completion tokens of the whole optimizer
        step over all ranks (by the batch's own if it is None).
        """
        if not self.distilling:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not self._student_checked:
            check_student(self, model)
            self._student_checked = True
        loss, output = self.distiller.loss(model, inputs, num_items_in_batch)
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as SFTTrainer does, with the metrics of distillation."""
        if self.distilling and "train_loss" not in logs:  # that is the summary of a run, not of its last steps
            self.distiller.add_metrics(logs)
        super().log(logs, start_time)

    @settings_named_as(TRAINER)
    def evaluate(self, eval_dataset: object = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as SFTTrainer does, on a dataset of any accepted form."""
        if not self.distilling:
            return super().evaluate(eval_dataset, *args, **kwargs)
        rows = packed(self.datasets.prepare_for_evaluation(eval_dataset), self.args, Split.EVAL)
        with self.distiller.evaluating():
            return super().evaluate(rows, *args, **kwargs)

    @settings_named_as(TRAINER)
    def predict(self, test_dataset: object, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Return the figures of a dataset of any accepted form; there are no predictions, since no logits are built."""
        if not self.distilling:
            return super().predict(test_dataset, *args, **kwargs)  # type: ignore[arg-type]
        figures = self.evaluate(test_dataset, metric_key_prefix=kwargs.get("metric_key_prefix", "test"))
        return PredictionOutput(predictions=np.empty(0), label_ids=None, metrics=figures)

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> BestRun | list[BestRun]:
        """Refuse a search, which needs a new student and a new teacher for each trial; SFTTrainer's own has none.

        Raises:
            ParamsError: Always when distilling, with the way that works.
        """
        if self.distilling:
            raise ParamsError(f"hyperparameter_search {SEARCH}")
        return super().hyperparameter_search(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write the model as SFTTrainer does; a callback may have left a configuration that cannot be saved.

        Beside an adapter it writes how the student generates too, which PEFT leaves out: it may end elsewhere.
        """
        if self.distilling:
            self._mend_generation_config()
        super()._save(output_dir, state_dict)
        if self.distilling and self.args.should_save and is_peft_model(self.model):
            self.base_student.generation_config.save_pretrained(output_dir or self.args.output_dir)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a checkpoint; one of the same step is incomplete from now on until the trainer's state is written."""
        if self.distilling and self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            mark_incomplete(folder)
            if self._learned_from is not None:
                keep_rows(folder, self._learned_from[0])
            if self.teacher.capabilities.moves:
                EmaCallback(self.teacher).average.save(folder)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Resume from a checkpoint as SFTTrainer does, with the moving average of the time."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.distilling and self.teacher.capabilities.moves:
            EmaCallback(self.teacher).load(Path(checkpoint))

    @cached_property
    def _learned_from(self) -> tuple[str, Sequence[int]] | None:
        """The fingerprint of the rows to train on, and their numbers; None if they stream."""
        rows: Any = self.train_dataset
        rows = rows.rows if isinstance(rows, PackedRows) else rows
        return None if is_stream(rows) else (fingerprint(rows, leave_out=[self.args.length_column_name]), rows["row"])

    def _mend_generation_config(self) -> None:
        """Drop what keeps the student's generation configuration from being saved; see `make_saveable`."""
        dropped = make_saveable(self.base_student)
        if dropped:
            self.accelerator.print(dropped)
