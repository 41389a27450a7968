"""A run's set-up: its teacher, recipe and loss schedule, each created and checked once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from accelerate import PartialState

from ..config.choices import STORE_KINDS
from ..teachers.base import single_teachers
from ..teachers.multi.teacher import MultiTeacher
from ..teachers.server_requirements import has_targets, supported_loss
from ..teachers.target_store.folder import TargetFolder
from ..teachers.target_store.reader import StoredTeacher
from ..teachers.target_store.writer import TargetSettings, check_resumable, write_targets
from .plan import Plan, StudentModel
from .recipe_setup import RecipeMaker, date_of
from .teacher_setup import TeacherMaker, describe_teacher, prompts_and_writing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset

    from ..config.sft_config import DistillationSFTConfig
    from ..data.preparation import Recipe
    from ..losses.schedule import LossSchedule
    from ..teachers.base import Teacher
    from ..teachers.multi.preparation import MultiTeacherRecipe
    from ..teachers.target_store.chat_template_date import TemplateDate
    from .settings import DistillationSettings


@dataclass(frozen=True)
class DistillationSetup:
    """The distillation objects of a run; see `build_setup`.

    Attributes:
        settings: The run's settings.
        student: The student.
        plan: The teachers and prompts.
        teacher: The teacher; one, or several as one.
        recipe: How rows become token ids.
        schedule: The loss settings of each optimizer step.
        date: The date that chat templates are given.
        note: How each ambiguous teacher name was resolved, a line each; empty if all were unambiguous.
    """

    settings: DistillationSettings
    student: StudentModel
    plan: Plan
    teacher: Teacher
    recipe: Recipe | MultiTeacherRecipe
    schedule: LossSchedule
    date: TemplateDate
    note: str = ""

    @property
    def vocabulary(self) -> int | None:
        """Rows of the LM head that teacher and student share; None is all."""
        return self.teacher.vocabulary

    def with_stored_targets(self, datasets: Sequence[tuple[str, Dataset]]) -> DistillationSetup:
        """Return the set-up with the store of its targets as its teacher, written first if it is not complete.

        Without a store it is the same. The new recipe does not keep the teacher in memory.

        Raises:
            TeacherError: See `write_targets` and `StoredTeacher`; a row that the store has no targets for.
        """
        if isinstance(self.teacher, StoredTeacher):
            setup, stored = self, self.teacher
        elif self.settings.teacher.store is None:
            return self
        else:
            state = PartialState()
            if state.is_main_process:
                self.write_store(datasets)
            state.wait_for_everyone()
            stored = StoredTeacher(self.settings.teacher.store.folder)
            stored.check_loss(self.settings.teacher.loss.start)
            stored.name = self.teacher.name
            setup = _assembled(self.settings, self.student, self.plan, stored)
        for name, rows in datasets:
            stored.check_rows(rows, name=name)
        return setup

    def write_store(self, datasets: Sequence[tuple[str, Dataset]]) -> int:
        """Write what is missing of the store and return how many shards were made; one process calls it.

        Raises:
            ProjectError: Another process writes it.
            TeacherError: See `write_targets`.
        """
        rows = (row for _, dataset in datasets for row in dataset)
        folder, settings = self._targets()
        with folder.locked():
            self.date.keep()
            return write_targets(self.teacher, rows, folder, settings, progress=self.settings.teacher.progress)

    def check_begun_store(self) -> None:
        """Refuse to go on with a store of other settings, before the teacher writes a completion.

        Raises:
            TeacherError: See `check_resumable`.
        """
        if self.settings.teacher.store is None or isinstance(self.teacher, StoredTeacher):
            return
        folder, settings = self._targets()
        if folder.begun:
            check_resumable(self.teacher, folder, settings)

    def _targets(self) -> tuple[TargetFolder, TargetSettings]:
        """Return the store that the settings name, and what is stored in it."""
        asked, store = self.settings.teacher, self.settings.teacher.store
        assert store is not None
        return TargetFolder(store.folder), TargetSettings(
            k=store.top_k,
            temperatures=store.temperatures,
            made_with=prompts_and_writing(asked, self.plan.teacher_template),
            batch_size=asked.generation.batch_size,
            kind=store.kind or STORE_KINDS[0],
            engine=asked.generation.engine,
        )


def build_setup(
    settings: DistillationSettings, student: StudentModel, plan: Plan, *, writing: bool = False
) -> DistillationSetup:
    """Build the distillation objects of a run: the teacher, the recipe and the schedule, checked against each other.

    Args:
        settings: The run's.
        student: The student.
        plan: The teachers and prompts, see `plan_setup`.
        writing: Whether the store of targets is to be written, so that the teacher itself is needed.

    Raises:
        ParamsError: See `TeacherMaker.teacher_of`.
        TeacherError: See `TeacherMaker.teacher_of`; a store that was begun with other settings.
    """
    teacher = TeacherMaker(settings.teacher, student, plan).teacher_of(writing=writing)
    setup = _assembled(settings, student, replace(plan, given=None), teacher)
    setup.check_begun_store()
    return replace(setup, note=describe_teacher(plan, teacher))


def _assembled(
    settings: DistillationSettings, student: StudentModel, plan: Plan, teacher: Teacher
) -> DistillationSetup:
    servers = [one for one in single_teachers(teacher) if has_targets(one, settings.teacher)]
    schedule = supported_loss(settings.teacher, teacher, servers)
    date = date_of(settings, student, teacher)
    maker = RecipeMaker(settings, student, plan, servers=servers, schedule=schedule, date=date)
    return DistillationSetup(settings, student, plan, teacher, maker.recipe_of(teacher), schedule, date)


def name_objects(args: DistillationSFTConfig, teacher: Teacher) -> None:
    """Replace models, a list of teachers and rows in memory in a configuration by names, so that it can be saved."""
    if not isinstance(args.teacher_model, (str, type(None))):
        args.teacher_model = teacher.name  # a model would be written with each checkpoint
    if isinstance(teacher, MultiTeacher) and not isinstance(args.teacher_config, (str, type(None))):
        args.teacher_config = teacher.listed.to_dict()
    if not isinstance(args.retain_data, (str, type(None))):
        args.retain_data = f"<{type(args.retain_data).__name__}>"
