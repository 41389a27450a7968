"""What a distilling SFTTrainer does differently: its data, its teacher, its loss and its metrics.

With `use_distillation=False` every method passes on to SFTTrainer untouched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from transformers.trainer_utils import PredictionOutput

from .adapters import take_penalty
from .agreement import refuse_unused
from .checkpoints import begin_anew, check_rows, keep_rows, to_resume_from
from .collator import DistillationCollator
from .combining import prepare
from .config import TRAINER, DistillationSFTConfig
from .data_fingerprint import fingerprint
from .doors import entered
from .during import MovingTeacherMixin, StepMixin
from .errors import ParamsError
from .features import check_features, with_lengths
from .flattening import student_inputs, student_tokens
from .forward import CompletionOutput, add_completion_forward
from .generation_config import mend
from .logits_check import check_logits
from .memory import for_evaluation, for_trainer
from .metrics import DistillationMetrics
from .packing import PackedRows, check_apart_in, check_packing, packed, unseen
from .preparation import is_prepared
from .quantization import keep_differentiable
from .readers import CONVERSATIONS
from .recipes import add_taught_ends, from_store, template_date, writers_of_data
from .rows import COMPLETIONS
from .same_weights import Student
from .schedules import Annealing
from .server_targets import check_teaches, weighing
from .serving_template import own_template
from .several import check_list, put_names, recipe_of, teacher_of, told
from .several_collator import SeveralCollator
from .sharding import check_sharding, keep_loss_precise, loads_alike, read_whole, without_repeats, wrap_teacher
from .sources import resolve
from .split import Split
from .streams import check_streams, columns_of, completions_of, is_stream, prepare_stream
from .system_message import templates_of
from .targets import LossSettings, Targets
from .teachers import (
    CrossTeacher,
    LocalTeacher,
    LocalTextTeacher,
    SeveralTeachers,
    StoredTeacher,
    Teacher,
    check_apart,
    each,
    take_student,
)
from .teachers.local import evaluating
from .tokenized import IDS

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from trl import SFTTrainer as _Base
else:
    _Base = object  # so that it can stand in front of any subclass of SFTTrainer


SEARCH = (
    "needs a new student, teacher and trainer for each trial; have optuna call trl_distill.run(params).metrics in its "
    "objective, with a project_name for each trial."
)


class DistillationMixin(StepMixin, MovingTeacherMixin, _Base):
    """Put in front of `trl.SFTTrainer`: `class MyTrainer(DistillationMixin, SFTTrainer)`.

    Args:
        model: Student, as in SFTTrainer.
        args: DistillationSFTConfig; any other configuration, or `use_distillation=False`, trains plain SFT.
        data_collator: As in SFTTrainer; not accepted when distilling.
        train_dataset: Rows of any form that `data.read_rows` takes, or what `preparation.prepare` returned: a
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
        with entered(TRAINER), _left_alone_on_failure(args):
            given = (model, args, data_collator, train_dataset, eval_dataset, processing_class, *positional)
            if self.distilling:
                self._set_up(*given, teacher_model=teacher_model, **kwargs)
                return
            _check_plain(args, teacher_model, must_distil=type(self).__name__ if self.must_distil else None)
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
        _check(args, data_collator, kwargs)
        check_streams(args, train_dataset, eval_dataset)
        check_list(args, student=model, given=teacher_model)
        check_features(args, model=model, peft_config=kwargs.get("peft_config"))
        check_apart(student=model, teacher=teacher_model)
        self._written_by = writers_of_data(args, teacher_model, train_dataset)
        self._fresh_adapter = kwargs.get("peft_config") is not None
        model = resolve(model, role="model") if isinstance(model, str) else model
        args.remove_unused_columns = False  # the collator takes columns that are no arguments of the model
        args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        turns, args.assistant_only_loss = args.assistant_only_loss, False  # TRL's needs a template with its marks
        self._formatting = kwargs.pop("formatting_func", None)
        flat = bool(args.padding_free or args.packing)
        collator = DistillationCollator(0, pad_to_multiple_of=args.pad_to_multiple_of, padding_free=flat)
        with unseen(args):
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
        self._mend_generation_config()
        saved = self._saved_tokenizer
        saved.chat_template = own_template(saved.chat_template)
        if saved.pad_token_id is None:
            saved.pad_token = saved.eos_token
        self._own_tokenizer = copy(saved)
        keep_differentiable(self.model)
        keep_loss_precise(self.accelerator)
        self.model_accepts_loss_kwargs = True  # our loss divides by num_items_in_batch itself
        self.metrics_of = {split: DistillationMetrics() for split in Split}
        add_completion_forward(self.base_student)
        self._student_checked = not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        if self._student_checked:  # else its weights may not be here yet
            self._check_student(self.model)
        self._set_up_teacher(teacher_model)
        self._set_up_data(collator)
        self.start_vllm()

    @property
    def base_student(self) -> Any:
        """The student without PEFT's wrapper."""
        return self.model.get_base_model() if is_peft_model(self.model) else self.model

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

        See `check_logits` and `check_apart_in`.
        """
        split = getattr(getattr(self.accelerator, "parallelism_config", None), "cp_enabled", False)
        with self.accelerator.autocast():
            with evaluating(model):
                line = check_logits(self.base_student, model)
            if line:
                self.accelerator.print(f"Student: {line}")
            check_apart_in(self.args, self.base_student, model, context_parallel=bool(split))

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
        said = "" if isinstance(given, Teacher) else told(args.teacher_model if given is None else given, self.teacher)
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

    def check_teacher(self) -> None:
        """Refuse a teacher, or settings beside it, that a subclass cannot use; called before anything is written.

        Raises:
            ParamsError: Naming the setting and what to do.
        """

    def _mend_generation_config(self) -> None:
        """Have the student's generation configuration be one that can be saved, see `generation_config.mend`."""
        said = mend(self.base_student)
        if said:
            self.accelerator.print(said)

    def _set_up_data(self, collator: DistillationCollator) -> None:
        """Bring the datasets into the form that the collator takes."""
        collator.pad_token_id = self.tokenizer.pad_token_id
        collator.teacher_pad_token_id = self.teacher.tokenizer.pad_token_id
        if isinstance(self.teacher, SeveralTeachers):
            pads = [teacher.tokenizer.pad_token_id for teacher in self.teacher.teachers]
            self.data_collator = SeveralCollator(**vars(collator), teacher_pad_token_ids=pads)
        self.base_student.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        self.base_student.generation_config.pad_token_id = self.tokenizer.pad_token_id
        sides: dict[str, Any] = {"tokenizer": self.tokenizer, "student": self.base_student.config}
        weights = Student(lambda: self.model, trainer=type(self))
        self.recipe = recipe_of(self.args, self.teacher, **sides, weights=weights)
        if self.args.chat_template_date is None and self.args.should_save:
            template_date(self.args, self.teacher, self.tokenizer).keep()
        self.train_dataset = self.prepare_dataset(self.train_dataset, Split.TRAIN)
        self.eval_dataset = self._prepare_all(self.eval_dataset)
        self.check_prompts()
        self._take_stored_targets()
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

    def _take_stored_targets(self) -> None:
        """Put the store in the teacher's place where one is asked for, so that the teacher is not held any more."""
        if self.args.teacher_store is None and not isinstance(self.teacher, StoredTeacher):
            return
        both = [("train", self.train_dataset), *_named(self.eval_dataset)]
        if any(is_stream(part) for _, part in both):
            raise ParamsError(f"{self.teacher.name} is a store of targets, and a dataset is a stream; give a Dataset.")
        self.teacher = from_store(self.args, self.teacher, both)
        # the recipe that made the rows would keep the teacher in memory
        self.recipe = recipe_of(self.args, self.teacher, tokenizer=self.tokenizer, student=self.base_student.config)

    def _wrap_teacher(self, model: Any) -> Any:
        """Prepare the teacher's model for scoring; see `wrap_teacher`."""
        return wrap_teacher(model, self.accelerator)

    def prepare_dataset(self, dataset: Any, split: Split, name: str | None = None) -> Any:
        """Return a dataset as the collator takes it, and print its pre-flight.

        Args:
            dataset: Rows of any accepted form; one that is prepared already is returned as it is.
            split: What it is for.
            name: What to call it in messages (default: the split).
        """
        name = split.value if name is None else name
        if isinstance(dataset, PackedRows):
            return dataset
        dataset = for_trainer(dataset, name=f"{split.value}_dataset")
        if is_prepared(dataset):
            return with_lengths(dataset, self.args)
        dataset = self._formatted(dataset, name)
        if self.args.shuffle_dataset:
            dataset = dataset.shuffle(seed=self.args.seed)
        with read_whole(self.args), PartialState().main_process_first():  # the others find completions in the store
            if is_stream(dataset):
                apart = self.args.dataloader_num_workers > 0 or self.accelerator.num_processes > 1
                prepared, preflight = prepare_stream(dataset, self.recipe, split=split, name=name, apart=apart)
            else:
                prepared, preflight = prepare(dataset, self.recipe, split=split, name=name)
        self.accelerator.print(preflight.text())
        if split is Split.TRAIN:
            check_teaches(self.args, self.teacher, preflight)
            if preflight.serving is not None:
                preflight.serving.put(self._saved_tokenizer)
        return with_lengths(prepared, self.args)

    def _formatted(self, dataset: Any, name: str) -> Any:
        """Return a dataset with the text that `formatting_func` makes of its rows, as SFTTrainer has it."""
        func, columns = self._formatting, [] if self._formatting is None else columns_of(dataset)
        if func is None or IDS in columns:
            if func is not None:
                self.accelerator.print(f"formatting_func is not used: {name} has token ids already.")
            return dataset
        read_instead = sorted(set(columns) & {*CONVERSATIONS, *COMPLETIONS, "prompt"})
        text = (
            self.args.dataset_text_field
        )  # the function is pickled for its fingerprint, and must not hold the trainer
        return dataset.map(lambda row: {text: func(row)}, remove_columns=read_instead)

    def _prepare_all(self, dataset: Any) -> Any:
        """Prepare a dataset to evaluate on, a dict of them, or nothing; a name is one of `eval_dataset`."""
        known = isinstance(dataset, str) and isinstance(self.eval_dataset, dict) and dataset in self.eval_dataset
        if known or dataset is None:
            return dataset
        if isinstance(dataset, dict):
            return {key: self.prepare_dataset(part, Split.EVAL, key) for key, part in dataset.items()}
        return self.prepare_dataset(dataset, Split.EVAL)

    @entered(TRAINER)
    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as SFTTrainer does; with `resume_from_checkpoint=True`, from the newest complete checkpoint.

        Raises:
            ParamsError: There is none.
        """
        if self.distilling and resume_from_checkpoint is True:
            resume_from_checkpoint = str(to_resume_from(str(self.args.output_dir)))
        if self.distilling and resume_from_checkpoint and self._learned_from is not None:
            check_rows(str(resume_from_checkpoint), *self._learned_from)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse a search, which needs a new student and a new teacher for each trial; SFTTrainer's own has none.

        Raises:
            ParamsError: Always when distilling, with the way that works.
        """
        if self.distilling:
            raise ParamsError(f"hyperparameter_search {SEARCH}")
        return super().hyperparameter_search(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the model as SFTTrainer does; a callback may have left a configuration that cannot be saved.

        Beside an adapter it writes how the student generates too, which PEFT leaves out: it may end elsewhere.
        """
        if self.distilling:
            self._mend_generation_config()
        super()._save(output_dir, state_dict)
        if self.distilling and self.args.should_save and is_peft_model(self.model):
            self.base_student.generation_config.save_pretrained(output_dir or self.args.output_dir)

    @cached_property
    def _learned_from(self) -> tuple[str, Sequence[int]] | None:
        """The fingerprint of the rows to train on, and their numbers; None if they stream."""
        rows: Any = self.train_dataset
        rows = rows.rows if isinstance(rows, PackedRows) else rows
        return None if is_stream(rows) else (fingerprint(rows, leave_out=[self.args.length_column_name]), rows["row"])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint; one of the same step is incomplete from now on until it is written."""
        if self.distilling and self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            begin_anew(folder)
            if self._learned_from is not None:
                keep_rows(folder, self._learned_from[0])
        super()._save_checkpoint(model, trial)

    @entered(TRAINER)
    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as SFTTrainer does, on a dataset of any accepted form."""
        if self.distilling:
            eval_dataset = packed(self._prepare_all(eval_dataset), self.args, Split.EVAL)
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

    def teacher_targets(self, inputs: Mapping[str, torch.Tensor]) -> Targets | None:
        """Return what the teacher says of a batch's completions; None where alpha is 0 and nothing is asked."""
        if self.settings_of(inputs).alpha == 0:
            if not isinstance(self.teacher, SeveralTeachers):
                return None
            with self.accelerator.autocast():
                return self.teacher.score_retained(inputs)
        with self.accelerator.autocast():
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
        output = model(
            **student_inputs(inputs, self.base_student),
            completion_labels=inputs["labels"],
            teacher_targets=self.teacher_targets(inputs),
            loss_settings=self.settings_of(inputs),
        )
        tokens = (inputs["labels"] != -100).sum()
        apart = take_penalty(self.model, output)
        if output.aux_loss is not None:
            balance = self.router_aux_loss_coef * output.aux_loss
            apart = balance if apart is None else apart + balance
        self._count(output, tokens, inputs)
        items = tokens if num_items_in_batch is None else torch.as_tensor(num_items_in_batch, device=output.loss.device)
        loss = output.loss / items.clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients over ranks
        if apart is not None:  # a mean of its own, whatever the batch holds
            loss = loss + apart / (1 if num_items_in_batch is None else self.current_gradient_accumulation_steps)
        return (loss, output) if return_outputs else loss

    def _count(self, output: CompletionOutput, tokens: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> None:
        """Add a batch to the metrics."""
        mode = Split.TRAIN if self.model.training else Split.EVAL
        own = self.wrote(inputs) if mode is Split.TRAIN and self.args.distill_on_policy_fraction > 0 else None
        self.metrics_of[mode].add(output, tokens, student_tokens(inputs) * (tokens > 0), on_policy=own)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of distillation to a log line; evaluation's carry its prefix.

        Evaluation's loss is replaced by the mean over its tokens: Trainer's is a mean over batches.
        """
        if self.distilling and "train_loss" not in logs:  # that is the summary of a run, not of its last steps
            training = self.model.training
            metrics = self.metrics_of[Split.TRAIN if training else Split.EVAL]
            if training and not metrics.tokens_seen:  # a resumed run goes on counting
                seen = (line["num_tokens"] for line in reversed(self.state.log_history) if "num_tokens" in line)
                metrics.tokens_seen = next(seen, 0.0)
            means = metrics.take(self.accelerator.gather, self.accelerator.device)
            prefix = "" if training else next((k for k in logs if k.endswith("_loss")), "loss").removesuffix("loss")
            if training:
                means.pop("loss", None)
                means |= self.annealing.figures(self.loss_settings)
            else:
                metrics.tokens_seen = 0.0
            logs.update({prefix + name: value for name, value in means.items()})
        super().log(logs, start_time)


def _named(dataset: Any) -> list[tuple[str, Any]]:
    """Return evaluation's datasets, each with its name: there may be one, a dict of them, or none."""
    if dataset is None or isinstance(dataset, str):
        return []
    return list(dataset.items()) if isinstance(dataset, dict) else [("eval", dataset)]


@contextmanager
def _left_alone_on_failure(args: Any) -> Iterator[None]:
    """Give a caller's configuration back as it was if the constructor fails."""
    before = dict(vars(args)) if args is not None else {}
    try:
        yield
    except BaseException:
        if args is not None:
            vars(args).clear()
            vars(args).update(before)
        raise


def _check_plain(args: Any, teacher: Any, *, must_distil: str | None) -> None:
    """Refuse settings of distillation where SFTTrainer alone trains.

    Args:
        args: The configuration, of any class.
        teacher: What is given for teacher_model.
        must_distil: Name of a trainer that does nothing else; None for one that may.

    Raises:
        ParamsError: Naming the setting.
    """
    if must_distil is not None:
        raise ParamsError(f"{must_distil} only distils; set use_distillation=True in its configuration.")
    if teacher is not None:
        raise ParamsError(
            "teacher_model is given, but use_distillation is False; set use_distillation=True, or drop it."
        )
    if isinstance(args, DistillationSFTConfig):
        refuse_unused(args, why="use_distillation is False; set use_distillation=True")


def _check(args: DistillationSFTConfig, collator: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse what does not go together with distillation.

    Raises:
        ParamsError: Naming the setting and what to do.
        TemplateError: A template that does not parse.
    """
    refused = {
        "data_collator": (collator is not None, "distillation makes its own batches; drop it"),
        "completion_only_loss": (
            args.completion_only_loss is False,
            "prompts are not learnt; leave it out",
        ),
        "loss_type": (args.loss_type != "nll", "distillation has its own loss; leave it at 'nll'"),
        "label_smoothing_factor": (
            args.label_smoothing_factor > 0,
            "the teacher's distribution smooths; set it to 0",
        ),
        "compute_loss_func": (kwargs.get("compute_loss_func") is not None, "override compute_loss instead"),
        "model_init": (kwargs.get("model_init") is not None, SEARCH),
        "compute_metrics": (kwargs.get("compute_metrics") is not None, "no logits are built; use a callback"),
        "formatting_func": (
            kwargs.get("formatting_func") is not None and args.completion_only_loss is True,
            "it makes text, which has no completion, and completion_only_loss is True; leave that out",
        ),
    }
    for name, (given, why) in refused.items():
        if given:
            raise ParamsError(f"{name} cannot be used when distilling: {why.rstrip('.')}.")
    check_packing(args)
    templates_of(args)  # before the model loads
