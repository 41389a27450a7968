"""Checks of what `aitraining queries`, `queries_from_prompt` and a run need to have inputs written; no torch needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.data_settings import held_out_of
from ..config.fields import number_in
from ..config.queries_settings import QueriesSettings
from ..config.training_params import OWN_TEACHERS, LLMTrainingParams
from ..config.validation import validate_combinations
from ..errors import ParamsError, TeacherError, TemplateError, counted
from ..prompts.input_requests import prompt_text
from ..prompts.system_message import templates_of
from .prepare_data import held_out_rows, share_of

if TYPE_CHECKING:
    from ..data.diversity import HeldOut
    from ..prompts.template import Template

KIND = "kind"  # column with the kind that an input was written for
NO_PROMPT = (
    "there is no prompt to write inputs for; give --teacher-system or --teacher-prompt-template, as text or @file."
)


def checked_prompt(params: LLMTrainingParams) -> str:
    """Return the teacher's prompt as one text.

    Raises:
        ParamsError: There is none, or see `templates_of`.
        TemplateError: A template that does not parse, or has another field than `{input}`.
    """
    return prompt_of(templates_of(params)[1])


def prompt_of(template: Template) -> str:
    """Return a teacher's prompt as one text; see `checked_prompt`."""
    other = next((name for name in template.fields if name != "input"), None)
    if other is not None:
        raise TemplateError(
            f"{template.name} has the field {{{other}}}, and a teacher writes inputs alone; give a template with "
            "{input} as its only field."
        )
    text = prompt_text(template)
    if not text:
        raise ParamsError(NO_PROMPT)
    return text


def check_writes(params: LLMTrainingParams) -> None:
    """Refuse a teacher that is missing, is not there, or cannot be asked with these settings.

    Raises:
        ParamsError: No teacher, or settings that contradict each other.
        TeacherError: It is not found, or is the student itself.
    """
    from .early_checks import check_teachers

    if params.teacher_model is None:
        raise ParamsError(
            "teacher_model is missing; give --teacher a folder, a Hub name, openai:MODEL or a server's URL with #MODEL."
        )
    if params.teacher_model in OWN_TEACHERS:
        raise TeacherError(
            f"teacher_model is {params.teacher_model!r}, the student of a run, and there is no run; give the model's "
            "own name."
        )
    validate_combinations(params)
    check_teachers(params)


def share_held_out(settings: QueriesSettings) -> float | None:
    """Return the share of inputs to hold out, 0 for none; None if the setting names rows.

    Raises:
        ParamsError: A number that is no share, or one that leaves nothing to train on.
    """
    try:
        if settings.holdout is None or number_in(settings.holdout) == 0:
            return 0.0
    except ValueError:
        pass
    share = share_of(settings.holdout)
    if share and settings.holdout_by == "kinds" and settings.kind is not None and len(set(settings.kind)) == 1:
        raise ParamsError(
            f"holdout_by is 'kinds', and {settings.kind[0]!r} is the only kind; give another --kind, --holdout-by "
            "rows, or --holdout 0."
        )
    count = settings.count
    if share and held_out_of(count, share) == count:
        raise ParamsError(
            f"holdout is {share:g}, which leaves none of {counted(count, 'input')} to train on; lower it, or give 0."
        )
    return share


def held_out_inputs(rows: object, params: LLMTrainingParams) -> HeldOut | None:
    """Return rows of which no input may be a near-duplicate; None without rows.

    Raises:
        DataError: They cannot be read.
    """
    from ..data.rows import Columns
    from ..data.streaming import without_dataset_bars

    with without_dataset_bars():
        return held_out_rows(rows, Columns.of(params), ())
