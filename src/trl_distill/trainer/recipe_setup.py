"""Build the recipe, which turns rows into token ids, from a run's settings and teacher."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.preparation import Recipe
from ..data.recipe import PromptSide
from ..models.generation import length_limit
from ..prompts.fitting import Limit
from ..prompts.system_message import for_reader
from ..teachers.base import Teacher, reads_text, single_teachers
from ..teachers.completions.generate import complete
from ..teachers.completions.store import CompletionStore
from ..teachers.local.cross_tokenizer import CrossTokenizerTeacher
from ..teachers.multi.preparation import MultiTeacherRecipe
from ..teachers.multi.teacher import MultiTeacher
from ..teachers.remote.teacher import RemoteTeacher
from ..teachers.run_requirements import why_in_one_piece
from ..teachers.same_weights import teaches_nothing
from ..teachers.server_requirements import fetch_targets
from ..teachers.target_store.chat_template_date import TemplateDate
from ..teachers.target_store.folder import COMPLETIONS, TargetFolder
from ..teachers.text.local_text import LocalTextTeacher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..data.recipe import Write
    from ..losses.schedule import LossSchedule
    from ..models.generation import Completion
    from ..prompts.template import Template
    from ..teachers.settings import TeacherSettings
    from .plan import Plan, StudentModel
    from .settings import DistillationSettings

STORE = "teacher_completions.jsonl"
WHOLE = "the teachers of teacher_config score completions in one piece"


class RecipeMaker:
    """Makes the recipes of a run's teachers.

    Args:
        settings: The run's.
        student: The student, whose weights refuse a teacher that is the student reading the same tokens.
        plan: The templates of both sides.
        servers: The teachers whose log-probabilities the run uses.
        schedule: The loss, as the teacher supports it.
        date: The date that chat templates are given.
    """

    def __init__(
        self,
        settings: DistillationSettings,
        student: StudentModel,
        plan: Plan,
        *,
        servers: Sequence[RemoteTeacher],
        schedule: LossSchedule,
        date: TemplateDate,
    ) -> None:
        self.settings, self.weights, self.plan = settings.teacher, student.weights, plan
        self.servers, self.schedule, self.date = servers, schedule, date
        self.data = replace(settings.data, options={**settings.data.options, **date.options()})
        self.student = PromptSide(
            student.tokenizer,
            for_reader(plan.student_template, student.tokenizer),
            _students_limit(settings, student),
            student.rows,
        )

    def recipe_of(self, teacher: Teacher) -> Recipe | MultiTeacherRecipe:
        """Return how rows become token ids for one teacher, or several as one."""
        if not isinstance(teacher, MultiTeacher):
            return self._for_one(teacher, self.plan.teacher_template)
        listed, system = teacher.listed, self.plan.teacher_template.system
        alike = all(entry.template.is_identity for entry in listed.of_data) and system.text is None
        recipes = []
        for entry, one in zip(listed.teachers, teacher.teachers, strict=True):
            recipe = self._for_one(one, replace(entry.template, system=system))
            if entry.retained is None:
                plain = recipe.plain_text and (alike or not listed.mixed)
                recipes.append(replace(recipe, plain_text=plain, in_one_piece=WHOLE))
                continue
            own, theirs = (replace(side, template=entry.template) for side in (recipe.student, recipe.teacher))
            recipes.append(replace(recipe, student=own, teacher=theirs, prompt_dropout=0.0))  # of the same prompt
        return MultiTeacherRecipe(tuple(recipes), listed, self.data.seed)

    def _for_one(self, teacher: Teacher, template: Template) -> Recipe:
        server = next((server for server in self.servers if server is teacher), None)
        loss, weights, gives_text = self.settings.loss, self.weights, reads_text(teacher)
        if isinstance(teacher, LocalTextTeacher):
            teacher.options = dict(self.data.options)
        return Recipe(
            **vars(replace(self.data, plain_text=self.data.plain_text and not gives_text)),  # such a teacher is asked
            student=self.student,
            teacher=self._side_of(teacher, template),
            write=_writer(self.settings, teacher, self.date),
            vocabulary=teacher.vocabulary,
            reads_text=gives_text,
            tokenizer_pair=teacher.tokenizer_pair if isinstance(teacher, CrossTokenizerTeacher) else None,
            format_prompt=server.format_prompt if server is not None and server.reads_ids else None,
            estimates=gives_text and not (server is not None and server.reads_ids),
            fetch_targets=None if server is None else partial(fetch_targets, self.settings, server),
            schedule=self.schedule,
            in_one_piece=why_in_one_piece(self.settings, teacher, server),
            teaches_nothing=cache(lambda: teaches_nothing(loss, teacher, weights)),
        )

    def _side_of(self, teacher: Teacher, template: Template) -> PromptSide:
        reader = teacher.writer.tokenizer if isinstance(teacher, LocalTextTeacher) else teacher.tokenizer
        opens_chat = isinstance(teacher, RemoteTeacher) and teacher.settings.endpoint == "chat"
        moves = not self.plan.student_template.system.keep
        return PromptSide(
            teacher.tokenizer,
            for_reader(template, reader, opens_chat=opens_chat, moves=moves),
            None if teacher.length_limit is None else Limit(teacher.length_limit, "the teacher's own context length"),
            teacher.vocabulary_rows,
        )


def _writer(settings: TeacherSettings, teacher: Teacher, date: TemplateDate) -> Write:
    """Return what has a teacher write completions, kept in the run's folder or in its store of targets."""

    def write(prompts: list[Any]) -> list[Completion]:
        date.keep()
        if settings.store is None:
            store = CompletionStore(settings.folder / STORE)
        else:
            folder = TargetFolder(settings.store.folder)
            store = CompletionStore(folder.path / COMPLETIONS, complete=str(folder) if folder.is_whole else None)
        if reads_text(teacher):
            return teacher.write(prompts, settings.generation, store=store, progress=settings.progress)
        return complete(teacher, prompts, settings.generation, store=store, progress=settings.progress)

    return write


def date_of(settings: DistillationSettings, student: StudentModel, teacher: Teacher) -> TemplateDate:
    """Return the date that a run's chat templates are given."""
    store = settings.teacher.store
    folder = settings.teacher.folder if store is None else Path(store.folder)
    readers = [one.writer if isinstance(one, LocalTextTeacher) else one for one in single_teachers(teacher)]
    templates = [student.tokenizer.chat_template, *(reader.tokenizer.chat_template for reader in readers)]
    return TemplateDate.of(templates, settings.chat_template_date, folder.expanduser())


def _students_limit(settings: DistillationSettings, student: StudentModel) -> Limit | None:
    own, limits = length_limit(student.config), []
    if own is not None:
        limits.append(Limit(own, "the student's own context length"))
    if settings.max_length is not None:
        limits.append(Limit(settings.max_length, "--block-size", "raise --block-size"))
    return min(limits, default=None)
