"""`aitraining llm`: one flag for each field of `LLMTrainingParams`."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields

import click
from click.core import ParameterSource

from ..config.fields import CheckedSettings
from ..config.other_names import INSTEAD
from ..config.setting_names import as_flags, settings_named_as
from ..config.stages import read_stages
from ..config.training_params import ALIASES, FIELDS, LLMTrainingParams
from ..errors import ParamsError, RunInterrupted, near_names, without_secrets
from ..runs.library_output import quiet
from .config_file import read_config, refuse_models_in_memory
from .error_messages import exit_on_error
from .options import GroupedCommand, Setting, dashed, options_of, unescaped

HELP = """Train a language model to answer without the prompt that its teacher reads.

\b
A first run, on the model that comes with the package. Each line of
queries.jsonl is a row such as {"text": "red cat"}; the teacher writes the
completions:
  aitraining llm --model embedded --teacher-model embedded \\
    --teacher-prompt-template "Reverse the words.\\n\\nText: {input}\\nResult:" \\
    --data-path queries.jsonl --project-name runs/first

\b
A larger teacher, and a LoRA adapter instead of all weights:
  aitraining llm --model ./small --teacher-model ./large --peft --lora-r 32 \\
    --teacher-prompt-template @prompt.txt --data-path ./data \\
    --project-name runs/lora

A run needs --model and --teacher-model; everything else has a default. These are the flags that most runs need;
--help-all shows all. A YAML file of settings (--config) takes the same names, and flags override it. Underscores in
flags are read as dashes.
"""
# what `--help` shows
SHORT = (
    *("model", "project_name", "data_path", "holdout", "resume", "dry_run", "config", "text_column"),
    *("teacher_model", "teacher_prompt_template", "student_prompt_template", "teacher_system", "distill_temperature"),
    *("distill_alpha", "distill_max_teacher_length", "epochs", "batch_size", "gradient_accumulation", "lr", "peft"),
)


def refuse_token(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Refuse a token on the command line, without repeating it."""
    if value is not None:
        flag = typed_flag(ctx, param)
        with exit_on_error(debug=False):
            raise ParamsError(
                f"{flag} is not accepted, so that the token is written nowhere; set the environment variable HF_TOKEN."
            )


def refuse_other_name(command: click.Command, flag: str) -> None:
    """Refuse a flag of AutoTrain, TRL or transformers that a run does not have, with what to do instead."""
    name = flag.lstrip("-").removeprefix("no-").replace("-", "_")
    if name in INSTEAD and any(param.name == "trainer" for param in command.params):
        with exit_on_error(debug=False):
            raise ParamsError(f"{flag} is not a flag of this command; {INSTEAD[name]}.")


COMMAND = as_flags(FIELDS)  # how the command names settings, in errors of what it runs

COMMAND_OPTIONS = [
    Setting(["--config"], heading="Basic", shown="--config FILE", help="YAML file of settings; flags override it."),
    Setting(
        ["--debug"],
        is_flag=True,
        heading="Basic",
        shown="--debug",
        help="Show the traceback of an error, and all library messages.",
    ),
    Setting(
        ["--token", "--hub-token", "--hf-token"],
        hidden=True,
        expose_value=False,
        is_flag=False,
        flag_value="",
        callback=refuse_token,
        heading="Basic",
        shown="",
    ),
]

STAGES = Setting(
    ["--stages"],
    heading="Basic",
    shown="--stages FILE",
    help="YAML file that lists stages: each starts from the model of the one before and has settings of its own.",
)

CONTEXT = {
    "token_normalize_func": dashed,
    "allow_extra_args": True,  # rejected in parse_args, with a better message
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
}


class LLMCommand(GroupedCommand):
    """A command that remembers the flags as typed, so that messages can name them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and reject extra arguments without repeating anything that looks like a token."""
        ctx.meta["typed"] = list(args)
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            refuse_other_name(self, error.option_name)
            # click counts the dashes of two flags as a likeness
            words = {flag.lstrip("-"): flag for flag in error.possibilities or ()}
            near = [words[word] for word in near_names(error.option_name.lstrip("-"), words)]
            raise click.NoSuchOption(error.option_name, possibilities=near, ctx=error.ctx) from None
        if rest and not ctx.resilient_parsing:
            raise click.UsageError(
                f"unexpected argument {without_secrets(rest[0])!r}; put a value with spaces in quotes, and give a "
                "switch no value (--peft, or --no-peft).",
                ctx,
            )
        return rest


def typed_flag(ctx: click.Context, param: click.Parameter) -> str:
    """Return the flag with which a parameter was given last."""
    flags = [token.partition("=")[0] for token in ctx.meta["typed"] if token.startswith("--")]
    return next((flag for flag in reversed(flags) if dashed(flag) in param.opts), param.opts[0])


def params_of(ctx: click.Context) -> LLMTrainingParams:
    """Return the parameters of a parsed command: what was typed, over the file, over the defaults.

    Raises:
        ParamsError: Naming the flag as it was typed, or the file, and what is accepted.
    """
    path = ctx.params["config"]
    params = read_config(path) if path else LLMTrainingParams()
    set_typed(ctx, params)
    if path:
        refuse_models_in_memory(path, params)
    return params


def set_typed(ctx: click.Context, settings: CheckedSettings, *, names: Collection[str] | None = None) -> set[str]:
    """Set the fields whose flags were typed, and return their names.

    Args:
        ctx: The parsed command.
        settings: What they are fields of.
        names: The fields that the command has flags for (default: each that has a flag's name).

    Raises:
        ParamsError: Naming the flag as it was typed, and what is accepted.
    """
    specs, typed = {spec.name: spec for spec in fields(settings)}, set()  # type: ignore[arg-type]
    if names is not None:
        specs = {name: spec for name, spec in specs.items() if name in names}
    for param in ctx.command.params:
        name = str(param.name)
        if name in specs and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            value = ctx.params[name]
            if specs[name].metadata["help"].escapes:
                value = [unescaped(text) for text in value] if isinstance(value, tuple) else unescaped(value)
            settings.set(name, value, called=typed_flag(ctx, param))
            typed.add(name)
    return typed


def params_from_command(argv: Sequence[str]) -> LLMTrainingParams:
    """Parse a command line into parameters, without running anything.

    Args:
        argv: What follows `aitraining llm`.

    Raises:
        ParamsError: See `params_of`.
        click.UsageError: An unknown flag, or a flag without its value.
    """
    return params_of(llm.make_context("llm", list(argv)))


@contextmanager
def running(ctx: click.Context) -> Iterator[LLMTrainingParams]:
    """Yield the parameters of a command; an error inside exits with a sentence and an exit code.

    A command that ends in all processes together destroys their group, whose threads may otherwise abort the
    interpreter's exit.
    """
    with exit_on_error(debug=ctx.params["debug"]):
        params = params_of(ctx)
        four_bits = "int4" in (params.quantization, params.teacher_quantization)
        with (
            settings_named_as(COMMAND),
            nullcontext() if ctx.params["debug"] else quiet(four_bits=four_bits, own_process=True),
        ):
            try:
                yield params
            except RunInterrupted:  # in all processes together
                _leave_group()
                raise
            _leave_group()


def _leave_group() -> None:
    accelerate = sys.modules.get("accelerate")
    if accelerate is not None:
        accelerate.PartialState().destroy_process_group()


@click.pass_context
def run_command(ctx: click.Context, **_: object) -> None:
    """Train."""
    with running(ctx) as params:
        if ctx.params["stages"] is not None:
            from ..runs.stages import run_stages

            stages = read_stages(ctx.params["stages"])
            run_stages(params, stages, verbose=ctx.params["debug"], needs_model=False)
            return
        from ..runs.checks import finished_project

        if finished_project(params) is not None:
            return  # its model is not needed
        from ..runs.api import run

        run(params, verbose=ctx.params["debug"])


llm = LLMCommand(
    "llm",
    callback=run_command,
    params=[*options_of(fields(LLMTrainingParams), ALIASES), STAGES, *COMMAND_OPTIONS],
    help=HELP,
    short_help="Train a language model by distillation, or by plain SFT.",
    context_settings=CONTEXT,
    short=SHORT,
)
