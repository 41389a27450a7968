"""All teachers of a run as one list: those of `teacher_config`, a mixture's prompts, who teaches what is retained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import ParamsError
from ...prompts.system_message import check_system
from ...prompts.template import parse_template
from .entries import TeacherEntry, TeacherList, read_teachers
from .prompt_mixture import SETTING, read_mixture
from .retention import read_retained


def teachers_of_run(settings: Any, given: Any = None) -> TeacherList | None:
    """Return the list of a run's teachers; None where there is one teacher under one prompt and nothing to retain.

    Args:
        settings: Anything with the fields of `DistillationArguments` and the name of the text column.
        given: A loaded model, a teacher or a name in the place of `teacher_model`.

    Raises:
        ParamsError: No teacher for several prompts; see also `read_teachers` and `read_mixture`.
        TemplateError: A template that does not parse.
        DataError: See `read_retained`.
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
        prompt = settings.teacher_prompt_template
        template = parse_template(prompt, name="teacher_prompt_template")
        alone = TeacherEntry(model, prompt, template, "teacher_model", settings.teacher_revision)
        listed = TeacherList("completions", (alone,))
    return replace(listed, teachers=(*listed.teachers, read_retained(settings)))
