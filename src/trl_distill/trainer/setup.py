"""A run's set-up: its teacher, how rows become token ids, and how the loss is weighed, each made and checked once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from accelerate import PartialState

from ..config.choices import STORE_KINDS
from ..config.validation import temperatures_of
from ..losses.settings import LossSettings, LossWeights
from ..teachers.base import single_teachers
from ..teachers.multi.teacher import MultiTeacher
from ..teachers.server_requirements import has_targets, supported_loss_weights
from ..teachers.target_store.folder import TargetFolder
from ..teachers.target_store.reader import StoredTeacher
from ..teachers.target_store.writer import TargetSettings, write_targets
from .distributed import read_whole
from .plan import Plan, StudentModel
from .recipe_setup import date_of, recipe_of
from .schedule import LossSchedule
from .teacher_setup import describe_teacher, prompts_and_writing, teacher_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset

    from ..config.sft_config import DistillationSFTConfig
    from ..data.preparation import Recipe
    from ..teachers.base import Teacher
    from ..teachers.multi.preparation import MultiTeacherRecipe
    from ..teachers.target_store.chat_template_date import TemplateDate


@dataclass(frozen=True)
class DistillationSetup:
    """What distillation adds to a run; see `build_setup`.

    Attributes:
        student: The student.
        plan: What the settings say of teachers and prompts.
        teacher: Who writes and scores; one, or several as one.
        recipe: How rows become token ids.
        schedule: How the loss is weighed at each optimizer step.
        date: The date that chat templates are given.
        plain_text: Whether a row of text alone may be learned as SFT would, see `Recipe`.
        note: How each ambiguous teacher name was resolved, a line each; empty if all were unambiguous.
    """

    student: StudentModel
    plan: Plan
    teacher: Teacher
    recipe: Recipe | MultiTeacherRecipe
    schedule: LossSchedule
    date: TemplateDate
    plain_text: bool
    note: str = ""

    @property
    def vocabulary(self) -> int | None:
        """Rows of the LM head that teacher and student share; None is all."""
        return self.teacher.vocabulary

    def with_stored_targets(
        self, args: DistillationSFTConfig, datasets: Sequence[tuple[str, Dataset]]
    ) -> DistillationSetup:
        """Return the set-up with the store of a configuration as its teacher, written first if it is not complete.

        Without a store it is the same. The new recipe does not keep the teacher in memory.

        Raises:
            TeacherError: See `write_targets` and `StoredTeacher`; a row that the store has no targets for.
        """
        if isinstance(self.teacher, StoredTeacher):
            setup, stored = self, self.teacher
        elif args.teacher_store is None:
            return self
        else:
            state = PartialState()
            if state.is_main_process:
                self.write_store(args, datasets)
            state.wait_for_everyone()
            stored = StoredTeacher(args.teacher_store)
            stored.check_loss(args.distill_temperature, args.distill_divergence)
            stored.name = self.teacher.name
            setup = _assembled(args, self.student, self.plan, stored, plain_text=self.plain_text)
        for name, rows in datasets:
            stored.check_rows(rows, name=name)
        return setup

    def write_store(self, args: DistillationSFTConfig, datasets: Sequence[tuple[str, Dataset]]) -> int:
        """Write what is missing of a configuration's store and return how many shards were made; one process calls it.

        Raises:
            TeacherError: See `write_targets`.
        """
        settings = TargetSettings(
            k=args.teacher_top_k,
            temperatures=temperatures_of(args),
            **prompts_and_writing(args, self.plan.teacher_template),
            batch_size=args.teacher_batch_size,
            kind=args.teacher_store_kind or STORE_KINDS[0],
            engine=args.teacher_engine,
        )
        rows = (row for _, dataset in datasets for row in dataset)
        folder, progress = TargetFolder(str(args.teacher_store)), not args.disable_tqdm
        self.date.keep()
        with read_whole(args):
            return write_targets(self.teacher, rows, folder, settings, progress=progress)


def build_setup(
    args: DistillationSFTConfig, student: StudentModel, plan: Plan, *, writing: bool = False, plain_text: bool = True
) -> DistillationSetup:
    """Build what distillation adds to a run: the teacher, the recipe and the schedule, checked against each other.

    Args:
        args: The configuration; loaded models and datasets in it are replaced by names, so that it can be saved.
        student: The student.
        plan: What the settings say of teachers and prompts, see `plan_setup`.
        writing: Whether the store of targets is to be written, so that the teacher itself is needed.
        plain_text: Whether a row of text alone may be learned as SFT would, see `Recipe`.

    Raises:
        ParamsError: See `teacher_of`.
        TeacherError: See `teacher_of`.
    """
    teacher = teacher_of(args, student, plan, writing=writing)
    setup = _assembled(args, student, replace(plan, given=None), teacher, plain_text=plain_text)
    note = describe_teacher(plan, teacher)
    if isinstance(teacher, MultiTeacher) and not isinstance(args.teacher_config, (str, type(None))):
        args.teacher_config = teacher.listed.to_dict()
    if not isinstance(args.retain_data, (str, type(None))):
        args.retain_data = f"<{type(args.retain_data).__name__}>"
    return replace(setup, note=note)


def _assembled(
    args: DistillationSFTConfig, student: StudentModel, plan: Plan, teacher: Teacher, *, plain_text: bool
) -> DistillationSetup:
    servers = [one for one in single_teachers(teacher) if has_targets(one, args)]
    asked = LossWeights(
        args.distill_alpha, args.distill_temperature, args.distill_alpha_end, args.distill_temperature_end
    )
    weights = supported_loss_weights(asked, args, teacher, servers)
    date = date_of(args, student, teacher)
    recipe = recipe_of(
        args, student, plan, teacher, servers=servers, loss_weights=weights, date=date, plain_text=plain_text
    )
    settings = LossSettings(
        weights.alpha, weights.temperature, args.distill_divergence, args.distill_jsd_beta, args.distill_loss_impl
    )
    ends = {"alpha": weights.alpha_end, "temperature": weights.temperature_end}
    moving = {name: end for name, end in ends.items() if end is not None}
    schedule = LossSchedule(settings, moving, args.distill_schedule)
    return DistillationSetup(student, plan, teacher, recipe, schedule, date, plain_text)
