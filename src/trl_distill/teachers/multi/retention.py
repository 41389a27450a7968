"""`retain_data`: rows that the student learns to answer as it did before the run.

Their prompts are their own, without a template, and the same for both models. Who teaches them is the student's
starting point.
"""

from __future__ import annotations

from typing import Any

from ...config.fields import model_in_memory
from ...data.loading import load_data, read_rows
from ...data.retention import Retained
from ...data.rows import Columns
from ...errors import DataError
from ...prompts.template import IDENTITY, parse_template
from .entries import TeacherEntry, model_name

SETTING = "retain_data"
START = "the student as it starts"


def read_retained(settings: Any) -> TeacherEntry:
    """Return the teacher that `retain_data` adds to a run, with the rows that are its own; needs no model.

    Args:
        settings: Anything with the fields of `DistillationArguments` and the name of the text column.

    Raises:
        DataError: Rows that cannot be found, read or used.
    """
    given = settings.retain_data
    in_memory = model_in_memory(given)
    if in_memory is not None:
        raise DataError(f"{SETTING} was a {in_memory} in memory, not a file; give its path.")
    text = settings.dataset_text_field if hasattr(settings, "dataset_text_field") else settings.text_column
    try:
        data, _ = load_data(given)
    except DataError as error:
        raise DataError(str(error).replace("data_path", SETTING)) from error
    columns = Columns(text, settings.prompt_text_column, settings.completion_column, settings.max_bad_rows)
    rows, report = read_rows(data, columns, source=SETTING)
    source = given if isinstance(given, str) else f"a {model_name(given)} in memory"
    retained = Retained(rows, report, source, settings.retain_fraction)
    return TeacherEntry(START, IDENTITY, parse_template(IDENTITY, name=SETTING), SETTING, retained=retained)
