"""`teacher_system` and `student_system`: what each side reads as its system message."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import ParamsError, TemplateError
from .chat_rendering import rendered
from .template import System, Template, parse_template, read_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEEP, DROP = "keep", "drop"
PROBE = "SYSTEM"


def templates_of(settings: Any) -> tuple[Template, Template]:
    """Return the student's and the teacher's template, with what becomes of a row's system message; needs no model.

    Args:
        settings: Anything with the fields of `DistillationArguments`.

    Raises:
        TemplateError: A template that does not parse, or a file that cannot be read.
        ParamsError: See `check_system`; an empty system message.
    """
    student = parse_template(settings.student_prompt_template, name="student_prompt_template")
    teacher = parse_template(settings.teacher_prompt_template, name="teacher_prompt_template")
    check_system(teacher, settings.teacher_system, setting="teacher_system")
    check_system(student, settings.student_system, setting="student_system")
    student = replace(student, system=students_system(settings, student))
    return student, replace(teacher, system=teachers_system(settings))


def teachers_system(settings: Any) -> System:
    """Return what the teacher does with a row's system message."""
    text = _text(settings.teacher_system, "teacher_system")
    return System(keep=text is None, text=text)


def students_system(settings: Any, template: Template) -> System:
    """Return what the student does with a row's system message; one of its template stands in its place anyway."""
    given = settings.student_system
    if given is None:
        given = KEEP if settings.teacher_system is None or template.has_system else DROP
    if given in (KEEP, DROP):
        return System(keep=given == KEEP)
    return System(keep=False, text=_text(given, "student_system"))


def check_system(template: Template, given: str | None, *, setting: str) -> None:
    """Refuse a system message beside a template that has one.

    Args:
        template: The side's.
        given: The setting's value.
        setting: Its name.

    Raises:
        ParamsError: Naming both.
    """
    if given is not None and given != KEEP and template.has_system:
        raise ParamsError(
            f"{setting} does not go together with {template.name}, whose chat messages have a system message; drop one "
            "of the two."
        )


def for_reader(
    template: Template, tokenizer: PreTrainedTokenizerBase, *, opens_chat: bool = False, moves: bool = False
) -> Template:
    """Return a template whose system message is put as the model that reads it takes one.

    Args:
        template: The side's.
        tokenizer: The model's own.
        opens_chat: Whether a text prompt is a user message to it, as to a chat server.
        moves: Whether a row's own system message, too, goes before the first user message if the model takes none.
    """
    if template.system.text is None and not moves:
        return template
    system = replace(template.system, as_message=opens_chat or takes_system(tokenizer), opens_chat=opens_chat)
    return replace(template, system=system)


def takes_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a chat template writes a system message; false if it refuses or ignores one, and writes a user's."""
    return _writes(tokenizer, "system", "user") or not _writes(tokenizer, "user")


def _writes(tokenizer: PreTrainedTokenizerBase, *roles: str) -> bool:
    """Whether a chat template writes what is said first in a conversation of these roles."""
    if tokenizer.chat_template is None:
        return False
    try:
        return PROBE in rendered(tokenizer, [{"role": r, "content": PROBE if r == roles[0] else "a"} for r in roles])
    except TemplateError:
        return False


def _text(given: str | None, setting: str) -> str | None:
    """Return a system message, from a file if one is named."""
    if given is None:
        return None
    text = read_file(given[1:], setting) if given.startswith("@") else given
    if not text.strip():
        raise ParamsError(f"{setting} is empty; give text or @file, or leave it out.")
    if setting == "student_system" and given.strip().lower() in (KEEP, DROP):
        raise ParamsError(f"{setting} is {given!r}; write {given.strip().lower()!r}.")
    return text
