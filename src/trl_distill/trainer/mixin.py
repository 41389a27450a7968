"""The Trainer hooks of a distilling SFTTrainer, which delegate to its `Distiller` and set-up.

With `use_distillation=False` every method passes on to SFTTrainer untouched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.trainer_utils import PredictionOutput

from ..config.setting_names import settings_named_as
from ..config.sft_config import TRAINER, DistillationSFTConfig, left_alone_on_failure
from ..data.atomic_file import make_readable
from ..data.packing import packed
from ..data.split import Split
from ..errors import ParamsError
from ..models.adapters import is_peft_model
from ..models.generation_config import make_saveable
from .batch_finder import GlobalBatchMixin
from .card import CardWriter
from .checkpoint_keeper import CheckpointKeeper
from .compatibility import SEARCH, check_plain
from .construction import Construction
from .extra_step import has_trained
from .memory_advice import memory_noted
from .model_setup import is_sharded
from .saveable import check_saveable
from .standard_streams import unbreakable_streams

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainingArguments
    from transformers.trainer_utils import BestRun, TrainOutput

    from ..models.completion_forward import CompletionOutput
    from ..teachers.base import Teacher
    from .on_policy import BatchRandom
    from .setup import DistillationSetup

    Batch = Mapping[str, torch.Tensor]


class DistillationMixin(GlobalBatchMixin, CardWriter):
    """Put in front of `trl.SFTTrainer`: `class MyTrainer(DistillationMixin, SFTTrainer)`.

    Args:
        model: Student, as in SFTTrainer.
        args: DistillationSFTConfig; any other configuration, or `use_distillation=False`, trains plain SFT.
        data_collator: As in SFTTrainer; not accepted when distilling.
        train_dataset: Rows of any form that `rows.read_rows` reads, or what `Recipe.prepare` returned: a
            `datasets.Dataset` or `IterableDataset`, a list of dicts or a pandas DataFrame.
        eval_dataset: The same, or a dict of them.
        processing_class: The student's tokenizer.
        teacher_model: A loaded model, a `Teacher` or a name; replaces `args.teacher_model`.
        setup: A run's set-up if it is built already; the datasets are then prepared by it.
        **kwargs: Everything else of SFTTrainer, `formatting_func` too.

    Raises:
        ParamsError: A setting that cannot be used with distillation.
        DataError, TemplateError, TeacherError: See `Recipe.prepare`, `load_teacher` and `check_apart`.

    Attributes:
        setup: The teacher, the recipe and the schedule.
        datasets: Prepares datasets.
        distiller: Computes the loss and the metrics.
        checkpoints: Saves and loads the distillation state of checkpoints.
    """

    must_distil = False  # whether `use_distillation` must be set

    @unbreakable_streams()
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
        with settings_named_as(TRAINER), left_alone_on_failure(args):
            self.distilling = isinstance(args, DistillationSFTConfig) and args.use_distillation
            if not (isinstance(args, DistillationSFTConfig) and args.use_distillation):
                check_plain(args, teacher_model, must_distil=type(self).__name__ if self.must_distil else None)
                given: tuple[Any, ...] = (model, args, data_collator, train_dataset, eval_dataset, processing_class)
                super().__init__(*given, *positional, **kwargs)
                return
            ours = Construction(
                args,
                model,
                train_dataset,
                eval_dataset,
                teacher_model=teacher_model,
                setup=setup,
                data_collator=data_collator,
                kwargs=kwargs,
            )
            self._tag_names, self._name = ["trl", "distillation"], "Distillation"
            with ours.settings_for_sft():
                given = (ours.model, args, ours.collator, ours.rows, ours.eval_rows, processing_class)
                super().__init__(*given, *positional, **kwargs)
            self.datasets, self.distiller = ours.finish(self)
            self.checkpoints = CheckpointKeeper(self)

    def by_teacher(self, batch: Batch, randomness: BatchRandom) -> dict[str, torch.Tensor]:
        """Return a training batch with completions that the teacher generates now, under its prompts."""
        return self.distiller.completions.by_teacher(batch, randomness)

    @settings_named_as(TRAINER)
    @unbreakable_streams()
    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as SFTTrainer does; with `resume_from_checkpoint=True`, from the newest checkpoint that is intact.

        With `auto_find_batch_size` an optimizer step keeps its rows: accumulation makes up for a smaller batch.

        Raises:
            ParamsError: There is none, it is damaged, or it has learned from other rows.
            ProjectError: Another process trains into the same `output_dir`, unless `save_strategy` is "no".
        """
        if not self.distilling:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        with self.checkpoints.lock(), memory_noted(self, "training"):
            return super().train(self.checkpoints.to_resume_from(resume_from_checkpoint), *args, **kwargs)

    @property
    def keeps_global_batch(self) -> bool:
        """Whether accumulation makes up for a smaller batch; SFTTrainer's own does not."""
        return self.distilling and super().keeps_global_batch

    def forget_step(self) -> None:
        """Forget the metrics of a step that ran out of memory."""
        self.distiller.metrics[Split.TRAIN].restart()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int | None]:
        """Return an optimizer step's batches and the number of their completion tokens over all ranks.

        Fresh completions are generated for the whole step first, so that their tokens are counted.
        """
        if has_trained(self):
            return [], None
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
        loss, output = self.distiller.loss(model, inputs, num_items_in_batch)
        if self.distiller.is_evaluating:
            self.distiller.losses[Split.EVAL].add(loss.detach())
        return (loss, output) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Take a step as SFTTrainer does; that its loss is a finite number is seen when metrics are logged."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if self.distilling:
            self.distiller.losses[Split.TRAIN].add(loss)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as SFTTrainer does, with the metrics of distillation.

        Raises:
            DistillError: The loss of a step since the last line is NaN or infinite.
        """
        if self.distilling and "train_loss" not in logs:  # that is the summary of a run, not of its last steps
            self.distiller.add_metrics(logs)
        super().log(logs, start_time)
        if self.distilling:
            for losses in self.distiller.losses.values():
                losses.check()

    @settings_named_as(TRAINER)
    def evaluate(self, eval_dataset: object = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as SFTTrainer does, on a dataset of any accepted form."""
        if not self.distilling:
            return super().evaluate(eval_dataset, *args, **kwargs)
        rows = packed(self.datasets.prepare_for_evaluation(eval_dataset), self.args, Split.EVAL)
        with memory_noted(self, "evaluating"), self.distiller.evaluating():
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

    @settings_named_as(TRAINER)
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as SFTTrainer does.

        Raises:
            DistillError: Training has broken the weights; they are not saved.
        """
        if self.distilling and not _internal_call:  # a checkpoint is checked before it is begun
            check_saveable(self, together=is_sharded(self))
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write the model as SFTTrainer does; a callback may have left a configuration that cannot be saved.

        Beside an adapter it writes how the student generates too, which PEFT leaves out: it may end elsewhere.
        """
        if self.distilling:
            make_saveable(self.base_student, self.accelerator.print)
        with self.checkpoints.as_configured() if self.distilling else nullcontext():
            super()._save(output_dir, state_dict)
        if not self.distilling or not self.args.should_save:
            return
        folder = str(output_dir or self.args.output_dir)
        make_readable(Path(folder))
        if is_peft_model(self.model):
            self.base_student.generation_config.save_pretrained(folder)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a checkpoint; one of the same step is incomplete from now on until its checksums are written."""
        if not self.distilling:
            super()._save_checkpoint(model, trial)
            return
        self.distiller.losses[Split.TRAIN].check()
        check_saveable(self, together=True)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with self.checkpoints.writing(folder):
            super()._save_checkpoint(model, trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Upload a checkpoint as SFTTrainer does, complete: whoever downloads it can resume from it."""
        if self.distilling:
            self.checkpoints.seal(Path(checkpoint_folder), flush=True)
        super()._push_from_checkpoint(checkpoint_folder)

    @settings_named_as(TRAINER)
    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Upload as SFTTrainer does.

        Raises:
            DistillError: Training has broken the weights; they are not uploaded.
        """
        if self.distilling:
            check_saveable(self, together=is_sharded(self))
        return super().push_to_hub(*args, **kwargs)

    def _load_best_model(self) -> None:
        """Load the weights of the best evaluation as SFTTrainer does, if its checkpoint is intact."""
        if self.distilling:
            self.checkpoints.check_best(self.state.best_model_checkpoint)
        super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Resume from a checkpoint as SFTTrainer does, with the moving average of the time."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.distilling:
            self.checkpoints.load(Path(checkpoint))
