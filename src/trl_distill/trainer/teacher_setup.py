"""Build a configuration's teacher, one or several, and check it against the student."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..config.endpoints import is_openai_name
from ..config.validation import NO_TEACHER
from ..errors import ParamsError, TeacherError, printable
from ..prompts.chat_template_choice import set_chat_template
from ..prompts.shared_vocabulary import shared_vocabulary
from ..teachers.base import Teacher, reads_text
from ..teachers.compatibility import CHAT_TEMPLATE, TARGET_STORE, require
from ..teachers.completions.engines.selection import check_engine
from ..teachers.completions.generate import settings_identity
from ..teachers.loading import load_teacher
from ..teachers.local.cross_tokenizer import check_brings_tokenizer, with_cross_tokenizer
from ..teachers.local.ema import EMA, MovingAverage
from ..teachers.local.teacher import LocalTeacher
from ..teachers.local.weights import SELF, AdapterOff, FrozenCopy
from ..teachers.multi.entries import TeacherEntry
from ..teachers.multi.teacher import MultiTeacher
from ..teachers.run_requirements import check_teacher_supports
from ..teachers.server_requirements import find_targets
from ..teachers.target_store.folder import COMPLETIONS, TargetFolder
from ..teachers.target_store.reader import StoredTeacher, tokenizer_hash
from ..teachers.text.local_text import LocalTextTeacher
from ..teachers.text.recorded import RecordedTeacher
from .plan import Plan, StudentModel

if TYPE_CHECKING:
    from collections.abc import Hashable

    from transformers import PreTrainedModel

    from ..prompts.template import Template
    from ..teachers.settings import TeacherSettings
    from .plan import GivenTeacher


class TeacherMaker:
    """Makes the teacher of a run.

    Args:
        settings: The run's teacher settings.
        student: The student.
        plan: The teachers and prompts.
    """

    def __init__(self, settings: TeacherSettings, student: StudentModel, plan: Plan) -> None:
        self.settings, self.student, self.plan = settings, student, plan

    def teacher_of(self, *, writing: bool = False) -> Teacher:
        """Return the teacher of the plan, or all that it lists as one, its vocabulary checked.

        With a complete `teacher_store` it is the store, checked against the teacher if one is named, unless `writing`.

        Raises:
            ParamsError: There is none, the store cannot be used with these settings, or see `check_teacher_supports`.
            TeacherError: See `load_teacher`, `shared_vocabulary`, `find_targets`, `MultiTeacher` and
                `check_teacher_supports`; a store that is damaged or of something else.
        """
        plan, student = self.plan, self.student
        if plan.listed is None:
            teacher = self._one_teacher(plan.given, self.settings.revision, writing=writing)
        else:
            loaded: dict[Hashable, Teacher] = {}
            for entry in plan.listed.teachers:
                if _model_key(entry) not in loaded:
                    given = entry.model
                    if entry.retained is not None:
                        given = LocalTeacher(entry.name, weights=FrozenCopy(student.weights.load), **student.sides)
                    loaded[_model_key(entry)] = self._one_teacher(given, entry.revision, key_env=entry.key_env)
            teacher = MultiTeacher([loaded[_model_key(entry)] for entry in plan.listed.teachers], plan.listed)
        check_teacher_supports(self.settings, teacher)
        return teacher

    def _one_teacher(
        self, given: GivenTeacher, revision: str | None, *, key_env: str | None = None, writing: bool = False
    ) -> Teacher:
        """Return one teacher, its vocabulary checked and shared; a complete store in its place."""
        settings, tokenizer = self.settings, self.student.tokenizer
        store, stored = settings.store, None
        if store is not None and not writing and TargetFolder(store.folder).complete:
            stored = StoredTeacher(store.folder)
        if given is None and self.plan.writers:
            given = RecordedTeacher(self.plan.writers, tokenizer=tokenizer)
        given = stored if given is None else given
        if given is None:
            raise ParamsError(NO_TEACHER)
        if settings.cross_tokenizer:
            check_brings_tokenizer(given)
        teacher = self._loaded(given, revision, key_env)
        if not settings.cross_tokenizer and not reads_text(teacher):
            try:
                self._restrict_to_shared(teacher)
            except TeacherError:
                text_alone = not settings.strict or settings.loss.start.alpha == 0 or settings.allow_text_only
                own = isinstance(teacher, LocalTeacher) and not teacher.weights.of_student
                if not own or not text_alone or store is not None:
                    raise
                teacher = LocalTextTeacher(teacher, tokenizer=tokenizer)  # of another tokenizer
        if teacher.capabilities.writes:
            check_engine(teacher, settings.generation.engine)
        if settings.chat_template is not None:
            self._set_chat_template(teacher, settings.chat_template)
        if reads_text(teacher) and not settings.cross_tokenizer:
            if store is not None:
                require(TARGET_STORE, teacher)
            teacher.restrict_vocabulary(self.student.rows)
            find_targets(settings, teacher)  # before anything costly is asked
            return teacher
        if teacher.tokenizer.chat_template is None:
            teacher.tokenizer.chat_template = tokenizer.chat_template  # a base model reads chats as its student does
        if settings.cross_tokenizer:
            return with_cross_tokenizer(teacher, tokenizer=tokenizer, student_rows=self.student.rows)
        stored = teacher if isinstance(teacher, StoredTeacher) else stored
        return teacher if stored is None else self._checked_store(stored, teacher)

    def _loaded(self, given: str | PreTrainedModel | Teacher, revision: str | None, key_env: str | None) -> Teacher:
        settings, student = self.settings, self.student
        if given == SELF:
            source = None if student.source is None else student.source.under_adapter
            return LocalTeacher(SELF, weights=AdapterOff(student.weights.load, source), **student.sides)
        if given == EMA:
            average = MovingAverage(student.weights.load, decay=settings.ema_decay)
            return LocalTeacher(EMA, weights=average, **student.sides)
        return load_teacher(
            given,
            tokenizer=student.tokenizer,
            revision=revision,
            dtype=settings.dtype,
            quantization=settings.quantization,
            device_map=settings.device_map,
            trust_remote_code=settings.trust_remote_code,
            device=student.device,
            remote=settings.remote if key_env is None else replace(settings.remote, key_env=key_env),
        )

    def _checked_store(self, stored: StoredTeacher, teacher: Teacher) -> StoredTeacher:
        """Return a complete store in the place of its teacher, checked against that and against the settings."""
        settings = self.settings
        if stored is not teacher:
            if stored.vocabulary is not None:
                teacher.restrict_vocabulary(stored.vocabulary)
            stored.check_matches({"teacher": teacher.identity(), "tokenizer": tokenizer_hash(teacher.tokenizer)})
            self._restrict_to_shared(stored)
        kind = None if settings.store is None else settings.store.kind
        made = {**prompts_and_writing(settings, self.plan.teacher_template), "kind": kind}
        if COMPLETIONS not in stored.manifest["files"]:
            made["generation"] = None  # the teacher wrote nothing
        stored.check_matches(made)
        stored.check_loss(settings.loss.start)
        return stored

    def _set_chat_template(self, teacher: Teacher, source: str) -> None:
        """Set the requested chat template on a copy of a teacher's tokenizer, which the student may share."""
        require(CHAT_TEMPLATE, teacher, setting=source)
        owner = teacher.writer if isinstance(teacher, LocalTextTeacher) else teacher
        own = copy.deepcopy(owner.tokenizer)
        set_chat_template(own, source, role="teacher_chat_template", trust_remote_code=self.settings.trust_remote_code)
        if not isinstance(owner, StoredTeacher):
            owner.tokenizer = own  # type: ignore[misc]
        elif own.chat_template != owner.tokenizer.chat_template:
            raise TeacherError(
                f"teacher_store {str(owner.folder.path)!r} was made with another chat template than "
                f"--teacher-chat-template {source!r}; give the same, or make a new store."
            )

    def _restrict_to_shared(self, teacher: Teacher) -> None:
        """Check a teacher's vocabulary against the student's and restrict it to what both have."""
        teacher.restrict_vocabulary(
            shared_vocabulary(
                self.student.tokenizer,
                teacher.tokenizer,
                student_rows=self.student.rows,
                teacher_rows=teacher.vocabulary_rows,
                teacher_name=teacher.name,
                stored=self.settings.store is not None,
            )
        )


def describe_teacher(plan: Plan, teacher: Teacher) -> str:
    """Return a one-line note on how each ambiguous teacher name was resolved, or "" if all were unambiguous."""
    if isinstance(teacher, MultiTeacher):
        both = zip(teacher.listed.teachers, teacher.teachers, strict=True)
        return "\n".join(filter(None, dict.fromkeys(_note(entry.model, one) for entry, one in both)))
    return _note(plan.given, teacher)


def prompts_and_writing(settings: TeacherSettings, template: Template) -> dict[str, Any]:
    """Return the settings that a store records: the teacher's prompts and its generation settings."""
    return {
        "teacher_prompt_template": template.content,
        "teacher_system": template.system.text or "",
        "generation": settings_identity(settings.generation),
    }


def _note(given: GivenTeacher, teacher: Teacher) -> str:
    if reads_text(teacher):
        return printable(f"Teacher: {teacher.describe()}")
    if isinstance(given, str) and is_openai_name(given):
        return f"Teacher: the folder {given} (openai:{given} is the model of this name at OpenAI)"
    return ""


def _model_key(entry: TeacherEntry) -> Hashable:
    """Return a key that identifies a model of the list."""
    return (entry.model, entry.revision, entry.key_env) if isinstance(entry.model, str) else id(entry.model)
