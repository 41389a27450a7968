"""`aitraining data`: diverse rows without near-duplicates, sampled evenly from categories."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields

import click

from ..config.data_settings import DATA_FIELDS, OF_RUNS, DataSettings
from ..config.setting_names import as_flags, settings_named_as
from ..config.training_params import FIELDS, LLMTrainingParams
from ..runs.library_output import quiet
from .error_messages import exit_on_error
from .llm_command import COMMAND_OPTIONS, CONTEXT, LLMCommand, set_typed
from .options import complete_files, options_of

HELP = """Write diverse rows of data: at most so many of each category, without near-duplicates.

\b
  aitraining data queries.jsonl --category-column topic \\
    --per-category 500 --holdout 0.1 --output diverse.jsonl
  aitraining llm ... --data-path diverse.jsonl
  aitraining evaluate PROJECT --data-path diverse.heldout.jsonl

SOURCES are files, folders or Hub datasets, as --data-path of aitraining llm takes them. Rows much like a held-out row
are removed. diverse.report.json lists every row that is not in the output, with the reason.
"""
AS_FLAGS = as_flags({**FIELDS, **DATA_FIELDS})


def as_typed(text: str) -> str:
    """Return a message with settings as this command has them: what others read from --data-path is a source here."""
    return AS_FLAGS("source" + text.removeprefix("data_path") if text.startswith("data_path ") else text)


@click.pass_context
def run_command(ctx: click.Context, sources: tuple[str, ...], **_: object) -> None:
    """Prepare data."""
    with exit_on_error(debug=ctx.params["debug"]):
        settings, reading = DataSettings(), LLMTrainingParams()
        set_typed(ctx, settings)
        set_typed(ctx, reading, names=OF_RUNS)
        debug = ctx.params["debug"]
        with settings_named_as(as_typed), nullcontext() if debug else quiet(own_process=True):
            from ..runs.prepare_data import prepare_data

            prepare_data(sources, settings, reading)


data = LLMCommand(
    "data",
    callback=run_command,
    params=[
        click.Argument(["sources"], nargs=-1, required=True, shell_complete=complete_files),
        *options_of(fields(DataSettings), {}),
        *options_of([spec for name, spec in FIELDS.items() if name in OF_RUNS], {}),
        *[option for option in COMMAND_OPTIONS if option.name != "config"],
    ],
    help=HELP,
    short_help="Sample diverse rows of data evenly, without near-duplicates or leaks.",
    context_settings=CONTEXT,
)
