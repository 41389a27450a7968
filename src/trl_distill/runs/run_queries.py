"""`--queries-from-prompt`: a run's teacher writes its inputs, once the teacher is known and checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..config.queries_settings import QueriesSettings
from ..config.setting_names import name_settings
from ..data.atomic_file import replacing
from ..data.input_collection import split_inputs
from ..data.plain_rows import write_rows
from ..teachers.base import reads_text
from ..teachers.completions.store import CompletionStore
from .query_checks import prompt_of
from .query_setup import generation_of, rows_of
from .query_writer import QueryWriter, Wanted, lines_of
from .run_data import RunData, input_column, load_run_data
from .writing_teacher import as_text_teacher

if TYPE_CHECKING:
    from ..trainer.setup import DistillationSetup
    from .checks import CheckedRun

DRY_RUN_ROWS = 16
ANSWERS, QUERIES = "teacher_queries.jsonl", "queries.jsonl"  # in the project


def write_run_data(checked: CheckedRun, setup: DistillationSetup, say: Callable[[str], object]) -> RunData:
    """Have a run's teacher write its inputs, and return them as the run's rows.

    Answers are kept in the project. The budget of a server is that of the whole run. A dry run has a few inputs.

    Args:
        checked: The run.
        setup: Its teacher.
        say: Called with lines for the user.

    Raises:
        DistillError: The teacher writes too few distinct inputs, or its server fails.
    """
    params, count = checked.params, checked.params.queries_from_prompt
    assert count is not None
    settings = QueriesSettings(count=min(count, DRY_RUN_ROWS) if params.dry_run else count)
    teacher = as_text_teacher(setup.teacher)
    if not reads_text(setup.teacher):
        teacher.options = {**setup.settings.data.options, **setup.date.options()}  # type: ignore[attr-defined]
    setup.date.keep()
    writer = QueryWriter(
        teacher,
        Wanted.of(settings, prompt_of(checked.templates[1]), None),
        generation_of(settings, params, teacher),
        CompletionStore(setup.settings.teacher.folder / ANSWERS),
        setting="--queries-from-prompt",
        name=params.teacher_model if isinstance(params.teacher_model, str) else setup.teacher.name,
        progress=setup.settings.teacher.progress,
    )
    say("The teacher writes the inputs of this run.")
    written = writer.write()
    say("\n".join(lines_of(written, teacher)))
    inputs, _ = split_inputs(written.inputs, 0.0, by_kind=False, seed=params.seed)
    rows = rows_of(inputs, column=input_column(params), chats=_are_chats(setup))
    if not params.dry_run:
        folder = checked.project.folder
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / QUERIES) as temporary:
            write_rows(temporary, rows)
    data = load_run_data(params, checked.templates, rows)
    if data.note:
        say(name_settings(data.note))
    return data


def _are_chats(setup: DistillationSetup) -> bool:
    """Whether inputs are users' messages: the student has a chat template, and no prompt is a text around them."""
    templates = setup.plan.student_template, setup.plan.teacher_template
    texts = [text for one in templates for role, text in one.messages if role == ""]
    return setup.student.tokenizer.chat_template is not None and all(text.pieces == ("", "input", "") for text in texts)
