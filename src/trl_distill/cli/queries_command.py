"""`aitraining queries`: a teacher writes inputs for its own prompt."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields

import click

from ..config.queries_settings import OF_RUNS, QUERIES_FIELDS, QueriesSettings
from ..config.setting_names import as_flags, settings_named_as
from ..config.training_params import FIELDS, LLMTrainingParams
from ..runs.library_output import quiet
from .error_messages import exit_on_error
from .llm_command import COMMAND_OPTIONS, CONTEXT, LLMCommand, set_typed
from .options import Setting, options_of

HELP = """Have a teacher write inputs for its own prompt, if you have a prompt and no data.

\b
  aitraining queries --teacher openai:gpt-4o-mini \\
    --teacher-system @prompt.txt --count 500 --output queries.jsonl
  aitraining llm --teacher-model openai:gpt-4o-mini \\
    --teacher-system @prompt.txt --data-path queries.jsonl ...
  aitraining evaluate PROJECT --data-path queries.heldout.jsonl

The teacher lists kinds of inputs, edge cases and lengths, then writes inputs of each kind, and some to which each list
item of the prompt applies. Near-duplicates, copies of the prompt's examples and inputs like a held-out row are removed.
Answers are kept in queries.answers.jsonl: the same command resumes from them. queries.report.json counts inputs,
refusals, requests and their cost. These are the flags that most prompts need; --help-all shows all.
"""
# what `--help` shows
SHORT = (
    *("teacher_model", "teacher_system", "teacher_prompt_template", "output", "count", "holdout", "chats", "overwrite"),
    *("kinds", "kind", "length", "max_new_tokens", "temperature", "text_column", "teacher_max_requests"),
)
OWN = [
    Setting(
        ["teacher_model", "--teacher", "--teacher-model"],
        heading="Basic",
        shown="--teacher TEXT",
        help="Who writes, required: a folder, a Hub name, openai:MODEL or http://host:port/v1#MODEL.  "
        "[also --teacher-model]",
    ),
    Setting(
        ["teacher_system", "--teacher-system"],
        heading="Basic",
        shown="--teacher-system TEXT",
        help="Prompt that inputs are written for, as a system message: text or @file.",
    ),
    Setting(
        ["teacher_prompt_template", "--teacher-prompt-template"],
        heading="Basic",
        shown="--teacher-prompt-template TEXT",
        help="The same as a template: text with {input}, @file, or a JSON list of chat messages.",
    ),
]
OWN_NAMES = {option.name for option in OWN}
AS_FLAGS = as_flags({**FIELDS, **QUERIES_FIELDS})


def as_typed(text: str) -> str:
    """Return a message with settings as this command has them: the teacher is --teacher here."""
    return AS_FLAGS(text).replace("--teacher-model", "--teacher")


@click.pass_context
def run_command(ctx: click.Context, **_: object) -> None:
    """Write inputs."""
    with exit_on_error(debug=ctx.params["debug"]):
        settings, params = QueriesSettings(), LLMTrainingParams()
        set_typed(ctx, settings)
        set_typed(ctx, params, names=OF_RUNS)
        debug = ctx.params["debug"]
        four_bits = params.teacher_quantization == "int4"
        with settings_named_as(as_typed), nullcontext() if debug else quiet(four_bits=four_bits, own_process=True):
            from ..runs.queries import write_queries

            write_queries(settings, params)


queries = LLMCommand(
    "queries",
    callback=run_command,
    params=[
        *OWN,
        *options_of(fields(QueriesSettings), {}),
        *options_of([spec for name, spec in FIELDS.items() if name in OF_RUNS - OWN_NAMES], {}),
        *[option for option in COMMAND_OPTIONS if option.name != "config"],
    ],
    help=HELP,
    short_help="Have a teacher write inputs for its own prompt.",
    context_settings=CONTEXT,
    short=SHORT,
)
