"""What a distilling SFTTrainer does differently: its data, its teacher, its loss and its metrics.

With `use_distillation=False` every method passes on to SFTTrainer untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.trainer_utils import PredictionOutput

from ..config.doors import entered
from ..config.sft_config import TRAINER, DistillationSFTConfig, left_alone_on_failure
from ..data.collator import DistillationCollator, MultiTeacherCollator
from ..data.memory import for_evaluation, for_trainer
from ..data.packing import packed
from ..data.split import Split
from ..data.streaming import check_streams, completions_of, is_stream
from ..errors import ParamsError
from ..losses.signals import LossSettings, TeacherSignal
from ..models.adapters import base_of, split_adapter_penalty
from ..models.batch_layout import layout_of
from ..models.completion_forward import add_completion_forward, completion_arguments
from ..models.generation import evaluating
from ..models.loading import ModelSource, resolve
from ..models.logits_check import check_logits
from ..models.own_chat_template import own_template
from ..models.padding_free import student_inputs
from ..models.quantization import keep_differentiable
from ..teachers.base import Teacher
from ..teachers.local.cross_tokenizer import CrossTeacher
from ..teachers.local.teacher import LocalTeacher, check_apart
from ..teachers.multi.teacher import SeveralTeachers, each, take_student
from ..teachers.same_weights import Student
from ..teachers.server_requirements import weighing
from ..teachers.taught_ends import add_taught_ends
from ..teachers.text.local_text import LocalTextTeacher
from .checkpoint_hooks import CheckpointsMixin
from .compatibility import SEARCH, check_constructor, check_features, check_plain
from .dataset_hooks import DatasetsMixin
from .distributed import check_sharding, keep_loss_precise, loads_alike, without_repeats, wrap_teacher
from .metrics import MetricsMixin
from .multi_teacher_setup import check_list, describe_teacher, put_names, recipe_of, teacher_of
from .packing_checks import check_keeps_rows_apart, hide_packing_from_sft_trainer
from .schedule import Annealing
from .setup import template_date, writers_of_data
from .step_hooks import MovingTeacherMixin, StepMixin

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from trl import SFTTrainer as _Base
else:
    _Base = object  # so that it can stand in front of any subclass of SFTTrainer


class DistillationMixin(DatasetsMixin, StepMixin, MetricsMixin, CheckpointsMixin, MovingTeacherMixin, _Base):
    """Put in front of `trl.SFTTrainer`: `class MyTrainer(DistillationMixin, SFTTrainer)`.

    Args:
        model: Student, as in SFTTrainer.
        args: DistillationSFTConfig; any other configuration, or `use_distillation=False`, trains plain SFT.
        data_collator: As in SFTTrainer; not accepted when distilling.
        train_dataset: Rows of any form that `rows.read_rows` takes, or what `preparation.prepare` returned: a
            `datasets.Dataset` or `IterableDataset`, a list of dicts or a pandas DataFrame.
        eval_dataset: The same, or a dict of them.
        processing_class: The student's tokenizer.
        teacher_model: A loaded model, a `Teacher` or a name; takes the place of `args.teacher_model`.
        formatting_func: As in SFTTrainer.
        **kwargs: Everything else of SFTTrainer.

    Raises:
        ParamsError: A setting that does not go together with distillation.
        DataError, TemplateError, TeacherError: See `preparation.prepare`, `load_teacher` and `check_apart`.
    """

    args: DistillationSFTConfig
    model: Any
    must_distil = False  # whether `use_distillation` must be set

    def __init__(
        self,
        model: Any,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *positional: Any,
        teacher_model: str | PreTrainedModel | Teacher | None = None,
        **kwargs: Any,
    ) -> None:
        self.distilling = isinstance(args, DistillationSFTConfig) and args.use_distillation
        with entered(TRAINER), left_alone_on_failure(args):
            given = (model, args, data_collator, train_dataset, eval_dataset, processing_class, *positional)
            if self.distilling:
                self._set_up(*given, teacher_model=teacher_model, **kwargs)
                return
            check_plain(args, teacher_model, must_distil=type(self).__name__ if self.must_distil else None)
            super().__init__(*given, **kwargs)

    def _set_up(
        self,
        model: Any,
        args: Any,
        data_collator: Any,
        train_dataset: Any,
        eval_dataset: Any,
        processing_class: Any,
        *positional: Any,
        teacher_model: str | PreTrainedModel | Teacher | None,
        **kwargs: Any,
    ) -> None:
        """Check everything, construct SFTTrainer around a collator of ours, and bring in teacher and data."""
        self._tag_names, self._name = ["trl", "distillation"], "Distillation"
        train_dataset, eval_dataset = for_trainer(train_dataset, name="train_dataset"), for_evaluation(eval_dataset)
        check_constructor(args, data_collator, kwargs)
        check_streams(args, train_dataset, eval_dataset)
        check_list(args, student=model, given=teacher_model)
        check_features(args, model=model, peft_config=kwargs.get("peft_config"))
        check_apart(student=model, teacher=teacher_model)
        self._written_by = writers_of_data(args, teacher_model, train_dataset)
        self._fresh_adapter = kwargs.get("peft_config") is not None
        model = resolve(model, role="model") if isinstance(model, str) else model
        self._loaded_from = model if isinstance(model, str) else None
        args.remove_unused_columns = False  # the collator takes columns that are no arguments of the model
        args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        turns, args.assistant_only_loss = args.assistant_only_loss, False  # TRL's needs a template with its marks
        self._formatting = kwargs.pop("formatting_func", None)
        flat = bool(args.padding_free or args.packing)
        collator = DistillationCollator(0, pad_to_multiple_of=args.pad_to_multiple_of, padding_free=flat)
        with hide_packing_from_sft_trainer(args):
            super().__init__(
                model,
                args,
                collator,
                train_dataset,
                eval_dataset,
                processing_class,
                *positional,
                **kwargs,
            )
        self.padding_free = flat
        args.assistant_only_loss = turns
        self._set_up_student()
        self._set_up_teacher(teacher_model)
        self._set_up_data(collator)
        self.start_vllm()

    def _set_up_student(self) -> None:
        """Teach the student the forward of distillation, and set its own tokenizer apart from the one to be saved."""
        self.mend_generation_config()
        saved = self._saved_tokenizer
        saved.chat_template = own_template(saved.chat_template)
        if saved.pad_token_id is None:
            saved.pad_token = saved.eos_token
        self._own_tokenizer = copy(saved)
        keep_differentiable(self.model)
        keep_loss_precise(self.accelerator)
        self.model_accepts_loss_kwargs = True  # our loss divides by num_items_in_batch itself
        self.start_counting()
        add_completion_forward(self.base_student)
        self._student_checked = not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        if self._student_checked:  # else its weights may not be here yet
            self._check_student(self.model)

    @property
    def base_student(self) -> Any:
        """The student without PEFT's wrapper."""
        return base_of(self.model)

    @property
    def tokenizer(self) -> Any:
        """The student's tokenizer; when distilling a copy with the chat template that it was trained with.

        `processing_class` is what is saved: its chat template renders the student's prompt, see `serving_template`.
        """
        return self._own_tokenizer if self.distilling else self._saved_tokenizer

    @property
    def _saved_tokenizer(self) -> Any:
        """The tokenizer of `processing_class`."""
        return getattr(self.processing_class, "tokenizer", self.processing_class)

    def _check_student(self, model: Any) -> None:
        """Find out where the student's logits come from, and whether it reads rows apart which share a sequence.

        See `check_logits` and `check_keeps_rows_apart`.
        """
        split = getattr(getattr(self.accelerator, "parallelism_config", None), "cp_enabled", False)
        with self.accelerator.autocast():
            with evaluating(model):
                line = check_logits(self.base_student, model)
            if line:
                self.accelerator.print(f"Student: {line}")
            check_keeps_rows_apart(self.args, self.base_student, model, context_parallel=bool(split))

    def _set_up_teacher(self, given: Any) -> None:
        """Find the teacher, check that its vocabulary is the student's, and prepare it for scoring."""
        args = self.args
        config = self.base_student.config
        self.teacher = teacher_of(
            args,
            given,
            tokenizer=self.tokenizer,
            student=config,
            device=self.accelerator.device,
            own=lambda: self.model,
            own_source=self._source(),
            generation_config=self.base_student.generation_config,
            written_by=self._written_by,
        )
        self.check_teacher()
        check_sharding(self.accelerator, self.teacher)
        copied = take_student(self.teacher, self.model, fresh=self._fresh_adapter)
        if copied:
            self.accelerator.print(copied)
        self.follow_student()
        put_names(args, self.teacher)
        said = (
            ""
            if isinstance(given, Teacher)
            else describe_teacher(args.teacher_model if given is None else given, self.teacher)
        )
        if said:
            self.accelerator.print(said)
        self.vocabulary = self.teacher.vocabulary
        weighed = weighing(args, self.teacher)
        self.loss_settings = LossSettings(
            weighed.alpha,
            weighed.temperature,
            args.distill_divergence,
            args.distill_jsd_beta,
            args.distill_loss_impl,
        )
        ends = weighed.alpha_end, weighed.temperature_end
        self.annealing = Annealing(self.loss_settings, *ends, args.distill_schedule)

    def _source(self) -> ModelSource | None:
        """Return where the student was loaded from; None for a loaded model, or weights that were quantized then."""
        model: Any = self.base_student
        if self._loaded_from is None or getattr(model, "quantization_method", None) is not None:
            return None
        options: Any = self.args.model_init_kwargs or {}
        return ModelSource(
            self._loaded_from,
            revision=options.get("revision"),
            dtype=str(model.dtype).removeprefix("torch."),
            device=self.accelerator.device,
            trust_remote_code=self.args.trust_remote_code,
        )

    def check_teacher(self) -> None:
        """Refuse a teacher, or settings beside it, that a subclass cannot use; called before anything is written.

        Raises:
            ParamsError: Naming the setting and what to do.
        """

    def _set_up_data(self, collator: DistillationCollator) -> None:
        """Bring the datasets into the form that the collator takes."""
        collator.pad_token_id = self.tokenizer.pad_token_id
        collator.teacher_pad_token_id = self.teacher.tokenizer.pad_token_id
        if isinstance(self.teacher, SeveralTeachers):
            pads = [teacher.tokenizer.pad_token_id for teacher in self.teacher.teachers]
            self.data_collator = MultiTeacherCollator(**vars(collator), teacher_pad_token_ids=pads)
        self.base_student.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        self.base_student.generation_config.pad_token_id = self.tokenizer.pad_token_id
        sides: dict[str, Any] = {"tokenizer": self.tokenizer, "student": self.base_student.config}
        weights = Student(lambda: self.model, trainer=type(self))
        self.recipe = recipe_of(self.args, self.teacher, **sides, weights=weights)
        if self.args.chat_template_date is None and self.args.should_save:
            template_date(self.args, self.teacher, self.tokenizer).keep()
        self.train_dataset = self.prepare_dataset(self.train_dataset, Split.TRAIN)
        self.eval_dataset = self.prepare_all(self.eval_dataset)
        self.check_prompts()
        self.take_stored_targets()
        taught, generation = completions_of(self.train_dataset), self.base_student.generation_config
        all_ends = self.online or self.learns_distribution
        add_taught_ends(generation, taught, teacher=self.teacher, tokenizer=self.tokenizer, all_ends=all_ends)
        for teacher in each(self.teacher):
            if isinstance(teacher, (LocalTeacher, CrossTeacher)):
                local = teacher.local if isinstance(teacher, CrossTeacher) else teacher
                with loads_alike(self.accelerator, self.args, local):
                    teacher.prepare(self._wrap_teacher)
                with self.accelerator.autocast():
                    line = local.check_logits()
                if line:
                    self.accelerator.print(line)
            elif isinstance(teacher, LocalTextTeacher):
                teacher.rest()  # it has written all that is learnt
        if is_stream(self.train_dataset):
            return
        if isinstance(self.teacher, (LocalTeacher, CrossTeacher)):
            self.teacher.expect(self.train_dataset["teacher_prompt"])
        elif isinstance(self.teacher, SeveralTeachers):
            self.teacher.expect_of(self.train_dataset)
        self.train_dataset = packed(self.train_dataset, self.args, Split.TRAIN)
        self.eval_dataset = packed(self.eval_dataset, self.args, Split.EVAL)

    def _wrap_teacher(self, model: Any) -> Any:
        """Prepare the teacher's model for scoring; see `wrap_teacher`."""
        return wrap_teacher(model, self.accelerator)

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse a search, which needs a new student and a new teacher for each trial; SFTTrainer's own has none.

        Raises:
            ParamsError: Always when distilling, with the way that works.
        """
        if self.distilling:
            raise ParamsError(f"hyperparameter_search {SEARCH}")
        return super().hyperparameter_search(*args, **kwargs)

    @entered(TRAINER)
    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as SFTTrainer does, on a dataset of any accepted form."""
        if self.distilling:
            eval_dataset = packed(self.prepare_all(eval_dataset), self.args, Split.EVAL)
            self.metrics_of[Split.EVAL].restart()
            before, self.loss_settings = self.loss_settings, self.annealing.end
            try:
                return super().evaluate(eval_dataset, *args, **kwargs)
            finally:
                self.loss_settings = before
        return super().evaluate(eval_dataset, *args, **kwargs)

    @entered(TRAINER)
    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the figures of a dataset of any accepted form; there are no predictions, since no logits are built."""
        if not self.distilling:
            return super().predict(test_dataset, *args, **kwargs)
        figures = self.evaluate(test_dataset, metric_key_prefix=kwargs.get("metric_key_prefix", "test"))
        return PredictionOutput(predictions=np.empty(0), label_ids=None, metrics=figures)

    def teacher_signal(self, inputs: Mapping[str, torch.Tensor]) -> TeacherSignal | None:
        """Return what the teacher says of a batch's completions; None where alpha is 0 and nothing is asked."""
        if self.settings_of(inputs).alpha == 0 and not isinstance(self.teacher, SeveralTeachers):
            return None
        with self.accelerator.autocast():  # for those who read as the student does
            if self.settings_of(inputs).alpha == 0:
                return self.teacher.score_retained(inputs)
            return self.teacher.score(inputs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return alpha * T^2 * divergence + (1 - alpha) * cross-entropy per completion token; see `settings_of`.

        The sum over the batch is divided by `num_items_in_batch`, the completion tokens of the whole optimizer
        step over all ranks (by the batch's own where it is None).
        """
        if not self.distilling:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not self.model.training:
            inputs = without_repeats(inputs, self.accelerator)
        if not self._student_checked:
            self._check_student(model)
            self._student_checked = True
        student, layout = self.base_student, layout_of(inputs)
        output = model(
            **student_inputs(inputs, student),
            **completion_arguments(student, inputs["labels"], layout.student_places),
            teacher_signal=self.teacher_signal(inputs),
            loss_settings=self.settings_of(inputs),
        )
        tokens = (inputs["labels"] != -100).sum()
        apart = split_adapter_penalty(self.model, output)
        if output.aux_loss is not None:
            balance = self.router_aux_loss_coef * output.aux_loss
            apart = balance if apart is None else apart + balance
        own = self.wrote(inputs) if self.model.training and self.args.distill_on_policy_fraction > 0 else None
        self.count(output, tokens, layout.student_tokens, on_policy=own)
        items = tokens if num_items_in_batch is None else num_items_in_batch
        loss = output.loss / (items.to(output.loss.device).clamp(min=1) if torch.is_tensor(items) else max(items, 1))
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients over ranks
        if apart is not None:  # a mean of its own, whatever the batch holds
            loss = loss + apart / (1 if num_items_in_batch is None else self.current_gradient_accumulation_steps)
        return (loss, output) if return_outputs else loss
