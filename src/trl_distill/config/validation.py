"""Checks across several distillation settings. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import fields
from datetime import date
from importlib.util import find_spec
from typing import Any

from ..errors import ParamsError, quoted
from .distillation_arguments import DistillationArguments
from .endpoints import parse_endpoint
from .fields import number_in, plain
from .server_keys import check_key_variable
from .setting_names import flag_of

EMA = "ema"
NO_TEACHER = (
    "teacher_model is missing; distillation needs a teacher: a folder, a Hub name, 'embedded', a teacher_store "
    "that is complete, or data whose column 'teacher' names for every row the model that wrote its completion."
)

# settings that fresh completions cannot be used with, and how the sentence ends
_NOT_WITH_FRESH = {
    "teacher_store": ", which has targets only for completions that are known before training; drop --teacher-store.",
    "cross_tokenizer": (
        ": fresh completions are not matched to another tokenizer's; give a teacher with the student's tokenizer."
    ),
    "teacher_config": "; give one --teacher-model.",
    "assistant_only_loss": ", which trains on turns of the data; drop one of the two.",
    "packing": ": completions that do not exist yet have no length; drop --packing.",
    "padding_free": ": completions that do not exist yet have no length; drop --padding-free.",
}
_NOT_WITH_CROSS_TOKENIZER = {
    "teacher_config": ", whose teachers have the student's tokenizer; give one --teacher-model.",
    "teacher_store": ", whose targets have one vocabulary.",
}
_NOT_WITH_SEVERAL_PROMPTS = {
    "teacher_store": (", which keeps the targets of one teacher under one prompt; drop {flag} or --teacher-store."),
    "cross_tokenizer": ", which takes one teacher under one prompt; drop {flag}.",
}
_WRITTEN_FIRST = "write the inputs by aitraining queries, and give them as --data-path."
_NOT_WITH_QUERIES = {
    "teacher_store": f", which needs to know its inputs; {_WRITTEN_FIRST}",
    "teacher_config": f", since one teacher writes the inputs; {_WRITTEN_FIRST}",
    "teacher_prompt_mixture": f", since inputs are written for one prompt; {_WRITTEN_FIRST}",
    "valid_split": ": such inputs have no splits; give --holdout instead.",
    "assistant_only_loss": ", which trains on turns of the data; drop it.",
}
_NOT_WITH_LIST = {
    "teacher_model": "the teachers are listed there",
    "teacher_chat_template": "each teacher has its own",
    "teacher_revision": "each teacher has a 'revision' of its own there",
    "teacher_key_env": "each teacher has a 'key_env' of its own there",
    "teacher_prompt_template": "each teacher has a 'template' of its own there",
    "teacher_store": "a store keeps the targets of one teacher",
}


def validate_combinations(arguments: DistillationArguments) -> None:
    """Refuse settings of distillation that contradict each other.

    Raises:
        ParamsError: Naming the setting and what to do.
        TeacherError: A teacher's URL that cannot be used.
    """
    if arguments.teacher_temperatures is not None:
        temperatures_of(arguments)
    chat_template_options(arguments)
    _check_servers(arguments)
    _check_prices(arguments)
    _check_several_prompts(arguments)
    _check_list(arguments)
    _check_cross_tokenizer(arguments)
    _check_fresh(arguments)
    if arguments.teacher_model == EMA:
        check_average(arguments)
    if arguments.teacher_prompt_dropout > 0 and getattr(arguments, "assistant_only_loss", False):
        raise ParamsError(
            "teacher_prompt_dropout cannot be used with assistant_only_loss, whose turns follow prompts of their "
            "own; drop one of the two."
        )
    anneals = arguments.distill_temperature_end is not None or arguments.distill_alpha_end is not None
    if arguments.distill_schedule != "linear" and not anneals:
        raise ParamsError(
            f"distill_schedule is {arguments.distill_schedule!r}, but neither alpha nor temperature changes; give "
            f"--distill-temperature-end or "
            "--distill-alpha-end, or drop --distill-schedule."
        )
    _check_engine(arguments)


def check_queries(arguments: DistillationArguments, *, distills: bool, data_path: object) -> None:
    """Refuse settings that cannot be used if the teacher writes a run's inputs.

    Args:
        arguments: The run's parameters.
        distills: Whether it has a teacher.
        data_path: Its rows, if they are not the default.

    Raises:
        ParamsError: Naming the setting.
    """
    if not distills:
        raise ParamsError("queries_from_prompt asks a teacher, and there is none; add --use-distillation.")
    if data_path is not None:
        raise ParamsError("queries_from_prompt takes the place of data_path; give one of them.")
    if arguments.completions == "data":
        raise ParamsError("completions is 'data', and inputs of queries_from_prompt have none; drop --completions.")
    for name, why in _NOT_WITH_QUERIES.items():
        if getattr(arguments, name, None):
            raise ParamsError(f"queries_from_prompt cannot be used with {name}{why}")


def _check_servers(arguments: DistillationArguments) -> None:
    """Refuse keys and passwords in settings, which are written to files."""
    if arguments.teacher_key_env is not None:
        check_key_variable(arguments.teacher_key_env, setting="teacher_key_env")
    if "@" in (arguments.vllm_server_base_url or ""):
        raise ParamsError("vllm_server_base_url has credentials, which would be written to files; leave them out.")


def temperatures_of(arguments: DistillationArguments) -> tuple[float, ...]:
    """Return the temperatures that a store is written for.

    Raises:
        ParamsError: A text that is no number above 0.
    """
    given = arguments.teacher_temperatures
    if given is None:
        return (float(arguments.distill_temperature),)
    try:
        numbers = sorted({number_in(part.strip()) for part in given.split(",")})
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number <= 1000 for number in numbers):
        raise ParamsError(
            f"teacher_temperatures is {quoted(given)}; expected numbers above 0 and at most 1000, separated by commas, "
            "such as 2,3."
        )
    return tuple(numbers)


def chat_template_options(arguments: DistillationArguments) -> dict[str, Any]:
    """Return the keywords of both chat templates, and check the date that they are given.

    Raises:
        ParamsError: `chat_template_kwargs` is no JSON object, or `chat_template_date` no date.
    """
    given, day = arguments.chat_template_kwargs, arguments.chat_template_date
    try:
        found = json.loads(given) if isinstance(given, str) else given or {}
    except (ValueError, RecursionError):  # nested without end
        found = None
    if not isinstance(found, dict):
        raise ParamsError(
            f"chat_template_kwargs is {quoted(given)}; expected a JSON object of names and values, such as "
            "'{\"enable_thinking\": false}'."
        )
    try:
        date.fromisoformat(day or "2000-01-01")
    except ValueError:
        raise ParamsError(f"chat_template_date is {quoted(day)}; expected a date such as 2026-01-31.") from None
    return found


def check_average(arguments: DistillationArguments) -> None:
    """Refuse settings that do not work with a teacher whose weights change.

    Raises:
        ParamsError: Naming the setting and what to do.
    """
    if arguments.teacher_config is not None:
        raise ParamsError("teacher_config cannot list 'ema', an average of the student; give it as --teacher-model.")
    if arguments.teacher_store is not None:
        raise ParamsError(
            "teacher_store keeps the targets of a teacher that stays as it is, and teacher_model is 'ema', an average "
            "that moves with the student; drop --teacher-store."
        )
    if arguments.cross_tokenizer:
        raise ParamsError("cross_tokenizer cannot be used with teacher_model 'ema', whose tokenizer is the student's.")


def refuse_unused(arguments: DistillationArguments, *, why: str, used: Collection[str] = ()) -> None:
    """Refuse distillation settings that plain SFT would ignore.

    Args:
        arguments: The settings.
        why: Why it ignores them, and how to distil.
        used: Fields that it uses nevertheless.

    Raises:
        ParamsError: Naming the first setting that is not its default.
    """
    for spec in fields(DistillationArguments):
        value = getattr(arguments, spec.name)
        if spec.name not in used and value != spec.default:
            raise ParamsError(f"{spec.name} is {plain(value)!r}, but {why}, or drop {flag_of(spec.name)}.")


def _refuse_beside(arguments: DistillationArguments, what: str, ends: Mapping[str, str]) -> None:
    """Refuse settings that cannot be combined with something; `ends` has the end of the sentence for each."""
    for name, end in ends.items():
        if getattr(arguments, name, None) not in (None, False):
            raise ParamsError(f"{what} cannot be used with {name}{end}")


def _is_server(teacher: object) -> bool:
    return isinstance(teacher, str) and parse_endpoint(teacher) is not None


def _default(name: str) -> object:
    return DistillationArguments.__dataclass_fields__[name].default


def _check_prices(arguments: DistillationArguments) -> None:
    """Check that a cost budget has both prices; the package ships no price list, which would soon be outdated."""
    prices = {name: getattr(arguments, name) for name in ("teacher_price_input", "teacher_price_output")}
    given = [name for name, price in prices.items() if price is not None]
    missing = [flag_of(name) for name in prices if name not in given]
    if missing and (given or arguments.teacher_max_cost is not None):
        what = "teacher_max_cost" if arguments.teacher_max_cost is not None else given[0]
        raise ParamsError(
            f"{what} is {getattr(arguments, what):g}, but what tokens cost is not known; give "
            f"{' and '.join(missing)}, the cost of a million prompt and completion tokens."
        )


def _check_several_prompts(arguments: DistillationArguments) -> None:
    """Refuse settings that contradict several prompts or `retain_data`."""
    if arguments.retain_data is None and arguments.retain_fraction != _default("retain_fraction"):
        raise ParamsError(
            f"retain_fraction is {arguments.retain_fraction:g}, but there are no rows to retain; give --retain-data, "
            "or drop --retain-fraction."
        )
    for name in ("teacher_prompt_mixture", "retain_data"):
        if getattr(arguments, name) is not None:
            ends = {other: end.format(flag=flag_of(name)) for other, end in _NOT_WITH_SEVERAL_PROMPTS.items()}
            _refuse_beside(arguments, name, ends)
    if arguments.teacher_prompt_mixture is None:
        return
    if arguments.teacher_config is not None:
        raise ParamsError(
            "teacher_prompt_mixture cannot be used with teacher_config, where each teacher has a template of its "
            "own; name a teacher there once for each template, and say with 'rows' how many rows it takes."
        )
    if arguments.teacher_prompt_template != _default("teacher_prompt_template"):
        raise ParamsError(
            "teacher_prompt_template cannot be used with teacher_prompt_mixture, which lists the templates; drop "
            "--teacher-prompt-template."
        )


def _check_list(arguments: DistillationArguments) -> None:
    """Refuse single-teacher settings together with `teacher_config`."""
    for name, reason in _NOT_WITH_LIST.items() if arguments.teacher_config is not None else ():
        value = getattr(arguments, name)
        if value != _default(name):
            shown = repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
            raise ParamsError(
                f"{name} is {shown}, which cannot be used with teacher_config: {reason}; drop {flag_of(name)}."
            )


def _check_cross_tokenizer(arguments: DistillationArguments) -> None:
    """Check that `cross_tokenizer` has a teacher it can be used with."""
    if not arguments.cross_tokenizer:
        return
    _refuse_beside(arguments, "cross_tokenizer", _NOT_WITH_CROSS_TOKENIZER)
    teacher = arguments.teacher_model
    if teacher == "self":
        raise ParamsError("cross_tokenizer cannot be used with teacher_model 'self', whose tokenizer is the student's.")
    if _is_server(teacher):
        raise ParamsError(
            f"cross_tokenizer cannot be used with teacher_model {teacher!r}, a server; give a local model, or drop "
            "--cross-tokenizer."
        )


def _check_fresh(arguments: DistillationArguments) -> None:
    """Refuse teachers that cannot score completions generated during training, and vLLM with nothing to generate."""
    fresh, teacher = arguments.fresh_completions, arguments.teacher_model
    if fresh is not None:
        _refuse_beside(arguments, fresh, _NOT_WITH_FRESH)
        if _is_server(teacher):
            raise ParamsError(
                f"{fresh} cannot be used with teacher_model {teacher!r}, a server, which is only asked before "
                f"training; give a local model."
            )
    if arguments.use_vllm and arguments.distill_on_policy_fraction == 0:
        raise ParamsError("use_vllm has nothing to generate; add --distill-on-policy-fraction, or drop it.")


def _check_engine(arguments: DistillationArguments) -> None:
    """Check that vLLM, if selected for the teacher, has a local teacher that generates before training."""
    teacher = arguments.teacher_model
    if arguments.teacher_engine != "vllm":
        return
    why = None
    if _is_server(teacher):
        why = f"teacher_model {teacher!r} is a server, which generates by itself"
    elif teacher == EMA:
        why = "teacher_model is 'ema', an average in memory that vLLM cannot load"
    elif arguments.distill_online:
        why = "distill_online has the teacher generate during training, with the weights that score"
    if why is not None:
        raise ParamsError(f"teacher_engine is 'vllm', but {why}; drop --teacher-engine.")
    if find_spec("vllm") is None:
        raise ParamsError(
            "teacher_engine is 'vllm', which is not installed; `pip install vllm`, or drop --teacher-engine."
        )
