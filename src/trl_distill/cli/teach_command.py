"""`aitraining teach`: stores the teacher's targets for `aitraining llm --teacher-store`."""

from __future__ import annotations

from dataclasses import Field, fields

import click

from ..config.training_params import ALIASES, LLMTrainingParams
from ..errors import counted, printable
from .llm_command import COMMAND_OPTIONS, CONTEXT, LLMCommand, running
from .options import Setting, options_of

HELP = """Compute the teacher's targets for every completion once and save them.

\b
  aitraining teach --model ./small --teacher-model ./large \\
    --teacher-prompt-template @prompt.txt --data-path queries.jsonl --output store
  aitraining llm --model ./small --teacher-store store \\
    --teacher-prompt-template @prompt.txt --data-path queries.jsonl

The second command trains without loading the teacher. If the first is interrupted, run it again to resume. These are
the flags that most stores need; --help-all shows all.
"""
# what `--help` shows
SHORT = (
    *("teacher_store", "teacher_store_kind", "teacher_top_k", "teacher_temperatures", "repair", "config"),
    *("model", "teacher_model", "data_path", "text_column", "holdout", "teacher_prompt_template"),
    *("student_prompt_template", "teacher_system", "distill_temperature", "distill_max_teacher_length"),
)

# the settings of a run that its targets depend on, in addition to the groups Data and Teacher
BASIC = frozenset(
    (
        *("model", "trainer", "recipe", "use_distillation", "teacher_model", "data_path", "seed", "trust_remote_code"),
        *("teacher_prompt_template", "student_prompt_template", "distill_max_teacher_length", "completions"),
        *("teacher_system", "student_system", "distill_temperature"),
    )
)
OWN = [
    Setting(
        ["teacher_store", "--output", "--teacher-store"],
        heading="Basic",
        shown="--output TEXT",
        help="Folder of the store, required; created if missing.",
    ),
    Setting(
        ["teacher_store_kind", "--kind", "--teacher-store-kind"],
        heading="Teacher",
        shown="--kind TEXT",
        help="Likeliest tokens ('topk', default), sampled tokens ('sample'), or hidden states and LM head ('hidden').",
    ),
    Setting(
        ["teacher_top_k", "--top-k", "--teacher-top-k"],
        heading="Teacher",
        shown="--top-k INT",
        help="Tokens to store of each distribution, or samples to draw.  [default: 64]",
    ),
    Setting(
        ["teacher_temperatures", "--temperatures", "--teacher-temperatures"],
        heading="Teacher",
        shown="--temperatures TEXT",
        help="Temperatures to train at, separated by commas (default: --distill-temperature).",
    ),
    Setting(
        ["--repair"],
        is_flag=True,
        heading="Basic",
        shown="--repair",
        help="Write damaged files of the store again.",
    ),
]


def fields_of_teaching() -> list[Field]:
    """Return the fields of a run that are flags of this command under their own names."""
    own = {option.name for option in OWN}
    return [
        spec
        for spec in fields(LLMTrainingParams)
        if (spec.name in BASIC or spec.metadata["help"].group in ("Data", "Teacher")) and spec.name not in own
    ]


@click.pass_context
def run_command(ctx: click.Context, **_: object) -> None:
    """Write the store."""
    with running(ctx) as params:
        from ..runs.api import teach as write

        made = write(params, repair=ctx.params["repair"], verbose=ctx.params["debug"])
    click.echo(printable(f"Done: {counted(made, 'shard')} written; targets are in {params.teacher_store}."))


teach = LLMCommand(
    "teach",
    callback=run_command,
    params=[*OWN, *options_of(fields_of_teaching(), ALIASES), *COMMAND_OPTIONS],
    help=HELP,
    short_help="Store a teacher's targets, to train from without the teacher.",
    context_settings=CONTEXT,
    short=SHORT,
)
