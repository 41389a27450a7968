"""`teacher_system` and `student_system`: each side's system message."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ParamsError, TemplateError, quoted
from .chat_template import ChatTemplate
from .template import System, Template, is_file_name, parse_template, read_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..config.distillation_arguments import DistillationArguments

KEEP, DROP = "keep", "drop"
PROBE = "SYSTEM"


def templates_of(settings: DistillationArguments) -> tuple[Template, Template]:
    """Return the student's and the teacher's template, with what is done with a row's system message; needs no model.

    Raises:
        TemplateError: A template that does not parse, or a file that cannot be read.
        ParamsError: See `check_system`; a system message that is empty, or the name of a file without its @.
    """
    student = parse_template(settings.student_prompt_template, name="student_prompt_template")
    teacher = parse_template(settings.teacher_prompt_template, name="teacher_prompt_template", adds_input=True)
    check_system(teacher, settings.teacher_system, setting="teacher_system")
    check_system(student, settings.student_system, setting="student_system")
    text = _text(settings.teacher_system, "teacher_system")
    given = settings.student_system
    if given is None:  # a system message of the student's template replaces the row's in any case
        given = KEEP if text is None or student.has_system else DROP
    is_text = given not in (KEEP, DROP)
    students = System(keep=given == KEEP, text=_text(given, "student_system") if is_text else None)
    return replace(student, system=students), replace(teacher, system=System(keep=text is None, text=text))


def check_system(template: Template, given: str | None, *, setting: str) -> None:
    """Raise ParamsError for a system message that is given beside a template that has one."""
    if given is not None and given != KEEP and template.has_system:
        raise ParamsError(
            f"{setting} cannot be used with {template.name}, whose chat messages have a system message; drop one "
            "of the two."
        )


def for_reader(
    template: Template, tokenizer: PreTrainedTokenizerBase, *, opens_chat: bool = False, moves: bool = False
) -> Template:
    """Return a template with its system message in a form that the model's chat template accepts.

    Args:
        template: The side's.
        tokenizer: The model's own.
        opens_chat: Whether a text prompt is a user message to it, as to a chat server.
        moves: Whether a row's own system message, too, goes before the first user message if the model accepts none.
    """
    if template.system.text is None and not moves:
        return template
    system = replace(template.system, as_message=opens_chat or takes_system(tokenizer), opens_chat=opens_chat)
    return replace(template, system=system)


def takes_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a chat template writes a system message; false if it refuses or ignores one, and writes a user's."""
    return _writes(tokenizer, "system", "user") or not _writes(tokenizer, "user")


def _writes(tokenizer: PreTrainedTokenizerBase, *roles: str) -> bool:
    """Whether a chat template renders the first message of a conversation with these roles."""
    if tokenizer.chat_template is None:
        return False
    try:
        messages = [{"role": r, "content": PROBE if r == roles[0] else "a"} for r in roles]
        return PROBE in ChatTemplate(tokenizer).render(messages)
    except TemplateError:
        return False


def _text(given: str | None, setting: str) -> str | None:
    """Return a system message, from a file if one is named."""
    if given is None:
        return None
    if not given.startswith("@") and Path(given).suffix and is_file_name(given):
        raise ParamsError(f"{setting} is the name of a file, {quoted(given)}; give {quoted('@' + given)} to read it.")
    text = read_file(given[1:], setting) if given.startswith("@") else given
    if not text.strip():
        raise ParamsError(f"{setting} is empty; give text or @file, or leave it out.")
    if setting == "student_system" and given.strip().lower() in (KEEP, DROP):
        raise ParamsError(f"{setting} is {given!r}; write {given.strip().lower()!r}.")
    return text
