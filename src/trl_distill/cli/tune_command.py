"""`aitraining tune`: the flags of `aitraining llm`, each with one value or several."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields

import click

from ..config.search_space import Space, read_space, takes_list, values_of
from ..config.setting_names import as_flags, flag_of, settings_named_as
from ..config.training_params import ALIASES, FIELDS, LLMTrainingParams
from ..config.tuning_settings import TUNING_FIELDS, TuningSettings
from ..runs.library_output import quiet
from .config_file import named_values, naming_file, refuse_models_in_memory
from .error_messages import exit_on_error
from .llm_command import COMMAND_OPTIONS, CONTEXT, SHORT, LLMCommand, set_typed, typed_flag
from .options import Setting, options_of, unescaped

HELP = """Try settings of a run, judge each by held-out rows, and say which are best.

\b
Every flag of aitraining llm takes one value or several, by commas:
  aitraining tune --model embedded --teacher-model embedded \\
    --teacher-prompt-template "Reverse the words.\\n\\nText: {input}\\nResult:" \\
    --data-path queries.jsonl --holdout 0.2 --project-name runs/tuned \\
    --distill-temperature 1,2,3 --distill-alpha 0.5,0.7,0.9

\b
Without --trials every combination is run. With it, optuna searches, in
ranges too, and stops trials that fall behind:
  aitraining tune ... --trials 20 --lr 1e-5..1e-3 --distill-temperature 1..4

A prompt may hold commas: give the flag once for each, or several files as @a.txt,@b.txt; a switch takes true,false.
If the command is stopped, run it again to go on. The best settings are in best.yaml, for aitraining llm --config.
"""
OWN_SHORT = ("trials", "keep_all", "reference_column", "metric")
COMMAND = as_flags({**FIELDS, **TUNING_FIELDS})


def _options() -> list[click.Parameter]:
    """Return the flags of `aitraining llm`, each of which may be given several times."""
    made: list[click.Parameter] = []
    for option in options_of(fields(LLMTrainingParams), ALIASES):
        assert isinstance(option, Setting)
        if not option.is_flag or option.name in ("overwrite", "resume", "dry_run", "train"):
            option.multiple = not option.is_flag
            option.default = () if option.multiple else None
            made.append(option)
            continue
        name = str(option.name)
        made.append(
            Setting(
                [name, *option.opts],
                heading=option.heading,
                shown=flag_of(name),
                help=option.help,
                is_flag=False,
                flag_value="true",
                multiple=True,
                type=str,
            )
        )
        made += _off(name, option)
    return made


def _off(name: str, option: Setting) -> list[click.Parameter]:
    """Return the flag that turns a switch off, if it has one."""
    flags = list(option.secondary_opts)
    if not flags:
        return []
    return [Setting([f"no_{name}", *flags], is_flag=True, hidden=True, heading=option.heading, shown=flags[0])]


@click.pass_context
def run_command(ctx: click.Context, **_: object) -> None:
    """Search."""
    with exit_on_error(debug=ctx.params["debug"]):
        settings = TuningSettings()
        set_typed(ctx, settings)
        params, space = searched(ctx)
        debug = ctx.params["debug"]
        with settings_named_as(COMMAND), nullcontext() if debug else quiet(own_process=True):
            from ..runs.tuning.api import run_tuning

            run_tuning(params, space, settings, verbose=debug)


def searched(ctx: click.Context) -> tuple[LLMTrainingParams, Space]:
    """Return what a parsed command shares among its trials, and what it varies.

    Raises:
        ParamsError: Naming the flag as it was typed, or the file, and what is accepted.
    """
    path, params, space = ctx.params["config"], LLMTrainingParams(), Space()
    for name, value in named_values(path).items() if path else ():
        with naming_file(path):
            if isinstance(value, list) and name in FIELDS and not takes_list(name):
                space |= read_space({name: value})
            else:
                params.set(name, value)
    for param in ctx.command.params:
        name, given = str(param.name), ctx.params.get(str(param.name))
        if name.startswith("no_") and given:
            name, given = name.removeprefix("no_"), (*(ctx.params[name.removeprefix("no_")] or ()), "false")
        if name not in FIELDS or given in (None, ()):
            continue
        called = typed_flag(ctx, param)
        space.pop(name, None)
        if isinstance(given, bool):
            params.set(name, given, called=called)
            continue
        texts = [unescaped(text) for text in given] if FIELDS[name].metadata["help"].escapes else list(given)
        values = values_of(name, texts, called=called)
        if isinstance(values, tuple) and len(values) == 1:
            params.set(name, values[0], called=called)
        else:
            space[name] = values
    if path:
        refuse_models_in_memory(path, params)
    return params, space


tune = LLMCommand(
    "tune",
    callback=run_command,
    params=[*options_of(fields(TuningSettings), {}), *_options(), *COMMAND_OPTIONS],
    help=HELP,
    short_help="Try settings of a run on held-out rows and say which are best.",
    context_settings=CONTEXT,
    short=(*OWN_SHORT, *SHORT),
)
