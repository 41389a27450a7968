"""`aitraining teach`: writes a store of the teacher's targets, for `aitraining llm --teacher-store`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click

from ..config.doors import entered
from ..config.training_params import ALIASES, LLMTrainingParams
from .error_messages import told_in_a_sentence
from .llm_command import COMMAND, COMMAND_OPTIONS, CONTEXT, LLMCommand, params_of, quiet_unless_debug
from .options import Setting, options_of

HELP = """Have a teacher say what it thinks of every completion, once, and keep that: a store.

\b
  aitraining teach --model ./small --teacher-model ./large \\
    --teacher-prompt-template @prompt.txt --data-path queries.jsonl --output store
  aitraining llm --model ./small --teacher-store store \\
    --teacher-prompt-template @prompt.txt --data-path queries.jsonl

The second command loads no teacher. A store that was stopped is gone on with by the same command.
"""

# the settings of a run that its targets depend on, besides all of the groups Data and Teacher
BASIC = frozenset(
    (
        *("model", "trainer", "use_distillation", "teacher_model", "data_path", "seed", "trust_remote_code"),
        *("teacher_prompt_template", "student_prompt_template", "distill_max_teacher_length", "completions"),
        *("teacher_system", "student_system", "distill_temperature"),
    )
)
OWN = [
    Setting(
        ["teacher_store", "--output", "--teacher-store"],
        heading="Basic",
        shown="--output TEXT",
        help="Store to write, required: a folder, made when missing.",
    ),
    Setting(
        ["teacher_store_kind", "--kind", "--teacher-store-kind"],
        heading="Teacher",
        shown="--kind TEXT",
        help="Likeliest tokens ('topk', default), drawn ones ('sample'), or hidden states and LM head ('hidden').",
    ),
    Setting(
        ["teacher_top_k", "--top-k", "--teacher-top-k"],
        heading="Teacher",
        shown="--top-k INT",
        help="Tokens of each distribution to keep, or draws.  [default: 64]",
    ),
    Setting(
        ["teacher_temperatures", "--temperatures", "--teacher-temperatures"],
        heading="Teacher",
        shown="--temperatures TEXT",
        help="Temperatures to train at later, separated by commas (default: --distill-temperature).",
    ),
    Setting(
        ["--repair"],
        is_flag=True,
        heading="Basic",
        shown="--repair",
        help="Make damaged files of the store again.",
    ),
]


def fields_of_teaching() -> list[Any]:
    """Return the fields of a run that are flags here under their own names."""
    own = {option.name for option in OWN}
    return [
        spec
        for spec in fields(LLMTrainingParams)
        if (spec.name in BASIC or spec.metadata["help"].group in ("Data", "Teacher")) and spec.name not in own
    ]


@click.pass_context
def run_command(ctx: click.Context, **_: Any) -> None:
    """Write what was asked for."""
    with told_in_a_sentence(debug=ctx.params["debug"]):
        params = params_of(ctx)
        from ..runs.api import teach as write

        with entered(COMMAND), quiet_unless_debug(ctx, params):
            made = write(params, repair=ctx.params["repair"])
        shards = "shard" if made == 1 else "shards"
        click.echo(f"Done: {made} {shards} written; targets are in {params.teacher_store}.")


teach = LLMCommand(
    "teach",
    callback=run_command,
    params=[*OWN, *options_of(fields_of_teaching(), ALIASES), *COMMAND_OPTIONS],
    help=HELP,
    short_help="Write a teacher's targets into a store, to train from without the teacher.",
    context_settings=CONTEXT,
)
