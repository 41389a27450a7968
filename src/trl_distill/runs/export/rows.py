"""Held-out rows as a served student is asked them: by a user's message if that is rendered as in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...config.sft_config import from_params
from ...data.rows import read_rows, rows_of
from ...models.own_chat_template import own_tokenizer
from ...prompts.chat_template import ChatTemplate
from ...prompts.rendering import KWARGS, TOOLS, options_of, render
from ...prompts.serving_template import Frame
from ...prompts.system_message import for_reader, templates_of
from ...trainer.settings import settings_of
from ..evaluation_inputs import evaluated_params, rows_to_evaluate

if TYPE_CHECKING:
    from .student import TrainedStudent

NAME = "the rows to verify on"


@dataclass(frozen=True)
class Request:
    """What a student is asked.

    Attributes:
        ids: Its prompt's token ids, those of training.
        message: The user's message that the saved chat template renders as these ids; None if it does not.
    """

    ids: list[int]
    message: str | None


def requests_of(student: TrainedStudent, data: object, count: int) -> tuple[list[Request], str]:
    """Return the first rows as a student is asked them, and where they are from.

    Args:
        student: The student.
        data: Rows in any form that a run reads; None is those that its run held out.
        count: Rows at most.

    Raises:
        DataError: There are none, or they cannot be read.
        TemplateError: A field of the student's template that is no column.
    """
    params, saved = student.run.params, student.tokenizer
    rows, source = rows_to_evaluate(student.run, data, config_name=params.data_config)
    rows = rows.select(range(min(count, len(rows))))
    template, settings = templates_of(params)[0], settings_of(from_params(evaluated_params(params))).data
    own = own_tokenizer(saved)
    template = for_reader(template, own)
    fields = {*template.fields, TOOLS, KWARGS}
    read, _ = read_rows(rows, settings.columns, fields=fields, source=NAME)
    requests = []
    for row in rows_of(read):
        template.check_columns(row.values, read=rows.column_names)
        more = {} if row.history is None else options_of(row.values, where=f"{NAME}, row {row.number}")
        frame = Frame(render(template, row), {**settings.options, **more})
        if not isinstance(frame.prompt, str):
            frame = frame.opened(student.run.opening)
        ids = list(frame.prompt_ids(own))
        requests.append(Request(ids, row.input if _served_ids(row.input, saved) == ids else None))
    return requests, source


def _served_ids(message: str, saved: object) -> Sequence[int] | None:
    """Return the ids that a chat endpoint makes of a user's message; None without a chat template."""
    template = ChatTemplate(saved)  # type: ignore[arg-type]
    return None if template.source is None else template.prompt_ids([{"role": "user", "content": message}], {})
