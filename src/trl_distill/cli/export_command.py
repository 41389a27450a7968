"""`aitraining export`: a trained student in the form in which it is served."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields

import click

from ..config.export_settings import EXPORT_FIELDS, ExportSettings
from ..config.setting_names import as_flags, settings_named_as
from ..runs.library_output import quiet
from .error_messages import exit_on_error
from .llm_command import COMMAND_OPTIONS, CONTEXT, LLMCommand, set_typed
from .options import complete_files, options_of

HELP = """Write a trained student in the form in which it is served.

\b
  aitraining export runs/first --to vllm --verify 100
  sh runs/first/exports/vllm/serve.sh

PROJECT is the folder of a finished run. The forms:

\b
  merged  one model, for transformers and all that reads its files
  vllm    serve.sh, for vLLM with the adapter or with merged weights
  gguf    a file for llama.cpp, with a Modelfile for ollama
  ollama  the same, given to ollama
  mlx     weights for Apple's MLX

A plain user message to the served student is rendered as in training.
"""
COMMAND = as_flags(EXPORT_FIELDS)


@click.pass_context
def run_command(ctx: click.Context, project: str, **_: object) -> None:
    """Export."""
    with exit_on_error(debug=ctx.params["debug"]):
        settings = ExportSettings()
        set_typed(ctx, settings)
        debug = ctx.params["debug"]
        with settings_named_as(COMMAND), nullcontext() if debug else quiet(own_process=True):
            from ..runs.export.api import export_project

            export_project(project, settings, verbose=debug)


export = LLMCommand(
    "export",
    callback=run_command,
    params=[
        click.Argument(["project"], shell_complete=complete_files),
        *options_of(fields(ExportSettings), {}),
        *[option for option in COMMAND_OPTIONS if option.name != "config"],
    ],
    help=HELP,
    short_help="Write a trained student for transformers, vLLM, llama.cpp, ollama or MLX.",
    context_settings=CONTEXT,
)
