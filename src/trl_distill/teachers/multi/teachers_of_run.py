"""All teachers of a run as one list: those of `teacher_config`, a prompt mixture, and the teacher of retained rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...config.fields import model_in_memory
from ...data.loading import load_data, read_rows
from ...data.retention import Retained
from ...data.rows import Columns
from ...errors import DataError, ParamsError
from ...prompts.system_message import check_system
from ...prompts.template import IDENTITY, parse_template
from .entries import TeacherEntry, TeacherList, model_name, read_teachers
from .prompt_mixture import SETTING, read_mixture

if TYPE_CHECKING:
    from ...config.distillation_arguments import DistillationArguments
    from .entries import TeacherSpec

RETAIN = "retain_data"
START = "the initial student"


def teachers_of_run(settings: DistillationArguments, given: TeacherSpec = None) -> TeacherList | None:
    """Return the list of a run's teachers; None for one teacher under one prompt and nothing to retain.

    Args:
        settings: The run's.
        given: Replaces the settings' `teacher_model`.

    Raises:
        ParamsError: No teacher for several prompts; see also `read_teachers` and `read_mixture`.
        TemplateError: A template that does not parse.
        DataError: Rows to retain that cannot be found, read or used.
        TeacherError: A server's URL that cannot be used.
    """
    listed, model = None, settings.teacher_model if given is None else given
    if settings.teacher_config is not None:
        listed = read_teachers(settings.teacher_config)
    elif settings.teacher_prompt_mixture is not None:
        if model is None:
            raise ParamsError(f"teacher_model is missing; {SETTING} needs a teacher to read the prompts.")
        listed = read_mixture(settings.teacher_prompt_mixture, model=model, revision=settings.teacher_revision)
    for entry in () if listed is None else listed.teachers:
        check_system(entry.template, settings.teacher_system, setting="teacher_system")
    if settings.retain_data is None:
        return listed
    if listed is None:
        template = parse_template(settings.teacher_prompt_template, name="teacher_prompt_template", adds_input=True)
        alone = TeacherEntry(model, template, "teacher_model", settings.teacher_revision)
        listed = TeacherList("completions", (alone,))
    return replace(listed, teachers=(*listed.teachers, _retaining(settings)))


def _retaining(settings: DistillationArguments) -> TeacherEntry:
    """Return the teacher that `retain_data` adds: the initial student, with rows and prompts of its own."""
    given = settings.retain_data
    in_memory = model_in_memory(given)
    if in_memory is not None:
        raise DataError(f"{RETAIN} was a {in_memory} in memory, not a file; give its path.")
    try:
        data, _ = load_data(given)
    except DataError as error:
        raise DataError(str(error).replace("data_path", RETAIN)) from error
    columns = replace(Columns.of(settings), assistant_turns=False)
    rows, _ = read_rows(data, columns, source=RETAIN)
    source = given if isinstance(given, str) else f"a {model_name(given)} in memory"
    retained = Retained(rows, source, settings.retain_fraction)
    return TeacherEntry(START, parse_template(IDENTITY, name=RETAIN), RETAIN, retained=retained)
