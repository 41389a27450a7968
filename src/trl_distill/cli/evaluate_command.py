"""`aitraining evaluate`: test on held-out rows whether a student works without its teacher's prompt."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import Field, fields

import click

from ..config.evaluation_settings import EVALUATION_FIELDS, EvaluationSettings
from ..config.setting_names import as_flags, settings_named_as
from ..config.training_params import ALIASES, FIELDS, LLMTrainingParams
from ..runs.evaluation_inputs import evaluated_fields
from ..runs.library_output import quiet
from .error_messages import exit_on_error
from .llm_command import COMMAND_OPTIONS, CONTEXT, LLMCommand, set_typed
from .options import Setting, complete_files, options_of

HELP = """Compare a student before and after training with its teacher, on rows that it was not trained on.

\b
  aitraining evaluate runs/first --data-path heldout.jsonl \\
    --reference-column answer

PROJECT is the folder of a run: it knows the models, the teacher, both prompts and, after --holdout, the rows. Flags
override what the run was given. Without a project:

\b
  aitraining evaluate --student ./trained --before ./base \\
    --teacher-model ./large --teacher-prompt-template @prompt.txt \\
    --data-path heldout.jsonl

Completions are kept: the same command again reuses them. These are the flags that most evaluations need; --help-all
shows all.
"""
# what `--help` shows
SHORT = (
    *("model", "student", "data_path", "output", "split", "max_rows", "reference_column", "text_column"),
    *("metric", "judge", "with_teacher_prompt", "timed_queries", "max_new_tokens", "use_vllm"),
    *("teacher_model", "teacher_prompt_template", "student_prompt_template", "teacher_system"),
)

OWN = [
    Setting(
        ["model", "--before", "--base", "--model"],
        heading="Basic",
        shown="--before TEXT",
        help="Student before training: a folder or a Hub name (default: the run's --model).  [also --base, --model]",
    ),
    Setting(
        ["data_path", "--data-path"],
        heading="Basic",
        shown="--data-path TEXT",
        help="Rows to evaluate on, in the forms of aitraining llm (default: those that the run held out).",
    ),
]
COMMAND = as_flags({**FIELDS, **EVALUATION_FIELDS, "before": FIELDS["model"]})


def fields_of_run() -> list[Field]:
    """Return the settings of a run that are flags of this command too."""
    own = {option.name for option in OWN} | {"project_name"}
    return [spec for spec in evaluated_fields() if spec.name not in own]


@click.pass_context
def run_command(ctx: click.Context, project: str | None, **_: object) -> None:
    """Evaluate."""
    with exit_on_error(debug=ctx.params["debug"]):
        settings, overrides = EvaluationSettings(), LLMTrainingParams()
        set_typed(ctx, settings)
        typed = set_typed(ctx, overrides)
        debug = ctx.params["debug"]
        with settings_named_as(COMMAND), nullcontext() if debug else quiet(own_process=True):
            from ..runs.evaluate import evaluate_project

            given = {name: getattr(overrides, name) for name in typed}
            evaluate_project(project, settings, given, verbose=debug)


evaluate = LLMCommand(
    "evaluate",
    callback=run_command,
    params=[
        click.Argument(["project"], required=False, shell_complete=complete_files),
        *OWN,
        *options_of(fields(EvaluationSettings), {}),
        *options_of(fields_of_run(), ALIASES),
        *[option for option in COMMAND_OPTIONS if option.name != "config"],
    ],
    help=HELP,
    short_help="Compare a trained student with its teacher on held-out rows.",
    context_settings=CONTEXT,
    short=SHORT,
)
