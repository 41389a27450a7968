"""Steps of a distilling trainer before and after SFTTrainer's constructor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..config.deprecations import without_deprecations
from ..config.distillation_arguments import check_arguments
from ..config.validation import validate_combinations
from ..data.collator import DistillationCollator, MultiTeacherCollator
from ..data.memory import for_evaluation, for_trainer
from ..data.streaming import check_streams
from ..errors import printable
from ..models.architectures import check_decoder
from ..models.generation_config import make_saveable
from ..models.loading import resolve
from ..teachers.multi.teacher import MultiTeacher
from .compatibility import check_constructor, check_features, with_lengths
from .distiller import Distiller
from .model_setup import check_student, connect_teacher, is_sharded, ready_student, ready_teacher, student_of
from .notebook import show_in_notebook
from .packing_checks import SHARING
from .plan import plan_setup
from .settings import settings_of
from .setup import DistillationSetup, build_setup, name_objects
from .trainer_datasets import TrainerDatasets

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from ..config.sft_config import DistillationSFTConfig
    from .base import DistillingTrainer
    from .plan import GivenTeacher


class Construction:
    """Checks what a trainer is given, and brings teacher and data into SFTTrainer once that is constructed.

    The arguments, and what is raised, are those of `DistillationMixin`; `formatting_func` is removed from
    `kwargs`. The attributes `model`, `rows`, `eval_rows` and `collator` are for SFTTrainer.
    """

    def __init__(
        self,
        args: DistillationSFTConfig,
        model: str | PreTrainedModel | PeftModel,
        train_dataset: object,
        eval_dataset: object,
        *,
        teacher_model: GivenTeacher,
        setup: DistillationSetup | None,
        data_collator: object,
        kwargs: dict[str, Any],
    ) -> None:
        check_constructor(args, data_collator, kwargs)
        args.logging_nan_inf_filter = False  # it logs a substitute for a loss that is NaN, and reads each step's
        self.args, self.setup, self.plan = args, setup, None
        self.rows, self.eval_rows = for_trainer(train_dataset, name="train_dataset"), for_evaluation(eval_dataset)
        check_streams(args, self.rows, self.eval_rows)
        given: Any = teacher_model
        if given is not None:
            args.teacher_model = given  # where checks and the card read it
        if setup is None:
            check_arguments(args)  # fields may have been set after the configuration was made
            validate_combinations(args)
            self.plan = plan_setup(args, student=model, data=self.rows)
        check_features(args, model=model, peft_config=kwargs.get("peft_config"))
        self.fresh_adapter = kwargs.get("peft_config") is not None
        self.formatting = kwargs.pop("formatting_func", None)
        self.loaded_from = resolve(model, role="model") if isinstance(model, str) else None
        self.model = self.loaded_from or model
        self.flat = bool(args.padding_free or args.packing)
        multiple: Any = args.pad_to_multiple_of  # which TRL annotates as text too
        self.collator = DistillationCollator(0, pad_to_multiple_of=multiple, padding_free=self.flat)

    @contextmanager
    def settings_for_sft(self) -> Iterator[None]:
        """Hide settings that SFTTrainer's constructor refuses together with a custom collator."""
        args = self.args
        args.remove_unused_columns = False  # the collator reads columns that are no arguments of the model
        given: Any = args.dataset_kwargs or {}
        args.dataset_kwargs = {**given, "skip_prepare_dataset": True}
        hidden = {name: getattr(args, name) for name in (*SHARING, "assistant_only_loss")}
        for name in hidden:
            setattr(args, name, False)
        try:
            with without_deprecations():
                yield
        finally:
            for name, value in hidden.items():
                setattr(args, name, value)

    def finish(self, trainer: DistillingTrainer) -> tuple[TrainerDatasets, Distiller]:
        """Prepare the student, connect teacher and data, and return what prepares datasets and computes the loss."""
        args = self.args
        trainer.padding_free = self.flat
        student = trainer.base_student
        name = self.loaded_from or student.config._name_or_path or type(student).__name__
        check_decoder(name, student.config, role="model")
        make_saveable(student, trainer.accelerator.print)
        trainer.own_tokenizer = ready_student(trainer)
        if not is_sharded(trainer):
            check_student(trainer, trainer.model)
        datasets = TrainerDatasets(trainer, self.formatting)
        setup = self.setup
        if setup is None:
            assert self.plan is not None
            setup = build_setup(settings_of(args), student_of(trainer, self.loaded_from), self.plan)
            name_objects(args, setup.teacher)
            if setup.note:
                trainer.accelerator.print(printable(setup.note))
        trainer.setup = setup
        trainer.check_teacher()
        connect_teacher(trainer, setup.teacher, fresh_adapter=self.fresh_adapter)
        self._set_pads(trainer)
        if self.setup is None:
            datasets.prepare_own()
        else:
            trainer.train_dataset = with_lengths(trainer.train_dataset, args)
        distiller = Distiller(trainer, trainer.setup)
        ready_teacher(trainer, all_ends=trainer.online or distiller.learns_distribution)
        datasets.pack()
        distiller.completions.start_vllm()
        show_in_notebook(trainer)
        return datasets, distiller

    def _set_pads(self, trainer: DistillingTrainer) -> None:
        collator, teacher = self.collator, trainer.teacher
        collator.pad_token_id = trainer.tokenizer.pad_token_id
        collator.teacher_pad_token_id = teacher.tokenizer.pad_token_id
        if isinstance(teacher, MultiTeacher):
            pads = [one.tokenizer.pad_token_id for one in teacher.teachers]
            trainer.data_collator = MultiTeacherCollator(**vars(collator), teacher_pad_token_ids=pads)
