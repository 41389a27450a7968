"""The settings of distillation itself, each written once: name, type, default and help text.

`DistillationSFTConfig` (flags under TrlParser) and `LLMTrainingParams` (flags of `aitraining llm`) both
inherit them. Standard library only, so that a command line can show its help without loading torch.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field, fields
from typing import Any

from .endpoints import parse_endpoint
from .errors import ParamsError

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
COMPLETIONS = ("auto", "data", "teacher")
OVERFLOWS = ("error", "left")
QUANTIZATIONS = ("int4", "int8")
DTYPES = ("auto", "float32", "bfloat16", "float16")
LOSS_IMPLEMENTATIONS = ("fused", "plain")
STORE_KINDS = ("topk", "sample", "hidden")
ENDPOINTS = ("chat", "completions")
LOGPROBS = ("auto", "prompt", "top", "none")
SCHEDULES = ("linear", "cosine")


class Help(str):
    """A help text that also carries its heading and what is accepted.

    HfArgumentParser hands every metadata key of a field to argparse, so nothing but help and choices may
    stand there.
    """

    group: str
    low: float | None
    high: float | None
    above: float | None
    off: float | None
    listed: bool
    objects: bool


def option(
    default: Any,
    help: str,
    *,
    group: str = "Distillation",
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    off: float | None = None,
    listed: bool = False,
    objects: bool = False,
) -> Any:
    """Make a dataclass field that knows its help text, its group in `--help` and the values it accepts.

    Args:
        default: The default; also tells the type that is accepted when the annotation is optional.
        help: One sentence for `--help`.
        group: Heading under which the flag stands in `aitraining llm --help`.
        choices: Accepted values, if they are few.
        low: Smallest accepted number (inclusive).
        high: Largest accepted number (inclusive).
        above: Accepted numbers are greater than this.
        off: A number outside the range that is accepted too.
        listed: Whether a list of texts is taken, to be joined by commas.
        objects: Whether Python may give another object than text; who takes it says what it must be.
    """
    text = Help(help)
    text.group, text.low, text.high, text.above = group, low, high, above
    text.off, text.listed, text.objects = off, listed, objects
    metadata: dict[str, Any] = {"help": text}
    if choices is not None:
        metadata["choices"] = list(choices)
    return field(default=default, metadata=metadata)


@dataclass
class DistillationArguments:
    """Settings of the teacher, the two prompts and the loss.

    Raises:
        ParamsError: From `check_arguments`, for a value outside what is accepted.
    """

    use_distillation: bool = option(
        False, "Learn from a teacher where the trainer is sft; the trainer distillation always does."
    )
    teacher_model: str | None = option(
        None,
        "Teacher, required without a --teacher-store, a --teacher-config or a column 'teacher' in the data: a folder, "
        "a Hub name, 'embedded', 'self' (with --peft), 'ema', openai:MODEL or http://host:port/v1#MODEL.",
        objects=True,
    )
    teacher_prompt_template: str = option(
        "{input}",
        "Prompt the teacher reads: text with {input} (and other columns), @file, or a JSON list of chat messages.",
        objects=True,
    )
    student_prompt_template: str = option(
        "{input}", "Prompt the student reads; written like the teacher's.", objects=True
    )
    distill_temperature: float = option(
        3.0, "Temperature T that softens both distributions in the divergence (2 to 4 is usual).", above=0.0
    )
    distill_alpha: float = option(
        0.7,
        "Weight of the divergence: 0 learns from the completions only, 1 from the teacher's distribution only.",
        low=0.0,
        high=1.0,
    )
    distill_max_teacher_length: int = option(512, "New tokens at most in a completion that the teacher writes.", low=1)
    distill_divergence: str = option("forward_kl", "Divergence of the student from the teacher.", choices=DIVERGENCES)
    distill_jsd_beta: float = option(
        0.5, "With the divergence jsd: weight of the teacher in the mixture.", above=0.0, high=0.999999
    )
    distill_loss_impl: str = option(
        "fused",
        "Loss implementation, of equal results: 'fused' in tiles of little memory, 'plain' with full logits.",
        choices=LOSS_IMPLEMENTATIONS,
    )
    distill_alpha_end: float | None = option(
        None, "Alpha at the end of training, which it moves to from --distill-alpha.", low=0.0, high=1.0
    )
    distill_temperature_end: float | None = option(
        None, "Temperature at the end of training, which it moves to from --distill-temperature.", above=0.0
    )
    distill_schedule: str = option("linear", "How alpha and temperature move to their ends.", choices=SCHEDULES)
    distill_on_policy_fraction: float = option(
        0.0,
        "Share of batches whose completions the student writes under its prompt, to be scored by the teacher.",
        low=0.0,
        high=1.0,
    )
    distill_on_policy_temperature: float = option(
        1.0, "Temperature at which the student draws them; 0 takes the likeliest token.", low=0.0
    )
    distill_on_policy_max_new_tokens: int | None = option(
        None, "New tokens at most in one of them (default: --distill-max-teacher-length).", low=1
    )
    distill_online: bool = option(
        False, "Have the teacher write the completions of every training batch anew, instead of before training."
    )
    completions: str = option(
        "auto",
        "Where completions come from: 'data', 'teacher', or 'auto' (the row's own, else the teacher's).",
        choices=COMPLETIONS,
    )
    completion_column: str | None = option(
        None,
        "Column with the completion (default: 'completion' or 'response' where there is one).",
        group="Data",
    )
    prompt_text_column: str | None = option(None, "Column with the input, where it is not --text-column.", group="Data")
    prompt_overflow: str = option(
        "error",
        "A prompt too long for its model: 'error' names the row, 'left' cuts its start.",
        choices=OVERFLOWS,
        group="Data",
    )
    max_bad_rows: int = option(
        0, "Rows with a missing or non-text value to set aside before it is an error.", low=0, group="Data"
    )
    teacher_config: str | None = option(
        None,
        "Several teachers instead of --teacher-model: a YAML file with a list of model, template, weight and rows.",
        group="Teacher",
        objects=True,
    )
    teacher_prompt_mixture: str | None = option(
        None,
        "Several templates instead of --teacher-prompt-template, one of them for each row: a YAML file with a list of "
        "template and weight.",
        group="Teacher",
        objects=True,
    )
    teacher_prompt_dropout: float = option(
        0.0,
        "Share of the training rows in which the student reads the teacher's own prompt, so that it goes on following "
        "it.",
        low=0.0,
        high=1.0,
        group="Teacher",
    )
    retain_data: str | None = option(
        None,
        "Rows, as --data-path takes them, on which the student learns to stay what it was before the run.",
        group="Teacher",
        objects=True,
    )
    retain_fraction: float = option(
        0.25, "Share of a training epoch's rows that are of --retain-data.", above=0.0, high=0.95, group="Teacher"
    )
    teacher_revision: str | None = option(None, "Revision of a Hub teacher.", group="Teacher")
    teacher_dtype: str = option("auto", "Precision the teacher is loaded in.", choices=DTYPES, group="Teacher")
    teacher_quantization: str | None = option(
        None, "Load the teacher quantized by bitsandbytes.", choices=QUANTIZATIONS, group="Teacher"
    )
    teacher_device_map: str | None = option(
        None,
        "device_map for the teacher, for example 'auto' (default: the student's device).",
        group="Teacher",
        objects=True,
    )
    teacher_batch_size: int = option(16, "Prompts per batch while the teacher writes.", low=1, group="Teacher")
    teacher_do_sample: bool = option(
        False, "Draw the teacher's completions instead of taking the likeliest token.", group="Teacher"
    )
    teacher_sampling_temperature: float = option(
        1.0,
        "Temperature of --teacher-do-sample; --distill-temperature is another setting.",
        above=0.0,
        group="Teacher",
    )
    teacher_top_p: float = option(
        1.0,
        "Nucleus of --teacher-do-sample: the smallest set of tokens with this probability.",
        above=0.0,
        high=1.0,
        group="Teacher",
    )
    teacher_ema_decay: float = option(
        0.95,
        "With the teacher 'ema': share of the average that each optimizer step keeps.",
        low=0.0,
        high=1.0,
        group="Teacher",
    )
    cross_tokenizer: bool = option(
        False,
        "With a local teacher of another tokenizer: compare both where they have read the same text.",
        group="Teacher",
    )
    teacher_store: str | None = option(
        None,
        "Folder of stored targets: trained from where it is complete, without loading the teacher; else written first.",
        group="Teacher",
    )
    teacher_store_kind: str | None = option(
        None,
        "What a store is written with: 'topk' (default; the likeliest tokens), 'sample' (drawn ones, few bytes) or "
        "'hidden' (hidden states and LM head: everything).",
        choices=STORE_KINDS,
        group="Teacher",
    )
    teacher_top_k: int = option(
        64,
        "Tokens of each distribution that a store is written with or a server is asked for, or draws.",
        low=1,
        group="Teacher",
    )
    teacher_temperatures: str | None = option(
        None,
        "Temperatures that a store is written for, separated by commas (default: --distill-temperature).",
        listed=True,
        group="Teacher",
    )
    teacher_endpoint: str = option(
        "chat", "What of a server is asked; 'completions' takes text prompts only.", choices=ENDPOINTS, group="Teacher"
    )
    teacher_concurrency: int = option(8, "Requests to a server under way at a time.", low=1, group="Teacher")
    teacher_timeout: float = option(300.0, "Seconds to wait for a server's answer.", above=0.0, group="Teacher")
    teacher_max_requests: int | None = option(
        None, "Requests a run may send to a server, repeated ones included.", low=1, group="Teacher"
    )
    teacher_max_tokens: int | None = option(
        None,
        "Tokens, of prompts and completions, after which a run asks a server nothing more.",
        low=1,
        group="Teacher",
    )
    teacher_max_cost: float | None = option(
        None,
        "Money, in the unit of the two prices, after which a run asks a server nothing more.",
        above=0.0,
        group="Teacher",
    )
    teacher_price_input: float | None = option(
        None, "Price of a million tokens of prompts, as your server bills them.", low=0.0, group="Teacher"
    )
    teacher_price_output: float | None = option(
        None, "Price of a million tokens of completions, as your server bills them.", low=0.0, group="Teacher"
    )
    teacher_logprobs: str = option(
        "auto",
        "Log-probabilities of a server to learn from where alpha is above 0: of given completions ('prompt'), of what "
        "it writes ('top'), 'none', or what it is found to give.",
        choices=LOGPROBS,
        group="Teacher",
    )
    allow_text_only_teacher: bool = option(
        False, "With a teacher that gives text only, learn from its completions alone, whatever alpha.", group="Teacher"
    )


def check_mixing(arguments: Any) -> None:
    """Refuse settings that do not go together with several prompts or with `retain_data`.

    Args:
        arguments: Anything with the fields of `DistillationArguments`.

    Raises:
        ParamsError: Naming the setting and what to do.
    """
    specs = DistillationArguments.__dataclass_fields__
    if arguments.retain_data is None and arguments.retain_fraction != specs["retain_fraction"].default:
        raise ParamsError(
            f"retain_fraction is {arguments.retain_fraction:g}, but there are no rows to retain; give --retain-data, "
            "or drop --retain-fraction."
        )
    for name in ("teacher_prompt_mixture", "retain_data"):
        if getattr(arguments, name) is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        if arguments.teacher_store is not None:
            raise ParamsError(
                f"{name} cannot be used with teacher_store, which keeps the targets of one teacher under one prompt; "
                f"drop {flag} or --teacher-store."
            )
        if arguments.cross_tokenizer:
            raise ParamsError(
                f"{name} cannot be used with cross_tokenizer, which takes one teacher under one prompt; drop {flag}."
            )
    if arguments.teacher_prompt_mixture is None:
        return
    if arguments.teacher_config is not None:
        raise ParamsError(
            "teacher_prompt_mixture does not go together with teacher_config, where each teacher has a template of its "
            "own; name a teacher there once for each template, and say with 'rows' how many rows it takes."
        )
    if arguments.teacher_prompt_template != specs["teacher_prompt_template"].default:
        raise ParamsError(
            "teacher_prompt_template does not go together with teacher_prompt_mixture, which lists the templates; drop "
            "--teacher-prompt-template."
        )


def check_several(arguments: Any) -> None:
    """Refuse settings of a single teacher beside `teacher_config`, see also `check_mixing`.

    Args:
        arguments: Anything with the fields of `DistillationArguments`.

    Raises:
        ParamsError: Naming the setting and what to do.
    """
    check_mixing(arguments)
    if arguments.teacher_config is None:
        return
    reasons = {
        "teacher_model": "the teachers are listed there",
        "teacher_revision": "each teacher has a 'revision' of its own there",
        "teacher_prompt_template": "each teacher has a 'template' of its own there",
        "teacher_store": "a store keeps the targets of one teacher",
    }
    for name, reason in reasons.items():
        value, default = getattr(arguments, name), DistillationArguments.__dataclass_fields__[name].default
        if value != default:
            shown = repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
            raise ParamsError(
                f"{name} is {shown}, which does not go together with teacher_config: {reason}; drop "
                f"--{name.replace('_', '-')}."
            )


def temperatures_of(arguments: Any) -> tuple[float, ...]:
    """Return the temperatures that a store is written for.

    Raises:
        ParamsError: A text that is no number above 0.
    """
    given = arguments.teacher_temperatures
    if given is None:
        return (float(arguments.distill_temperature),)
    try:
        numbers = sorted({float(part) for part in given.split(",")})
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise ParamsError(
            f"teacher_temperatures is {given!r}; accepted are numbers above 0, separated by commas, such as 2,3."
        )
    return tuple(numbers)


def check_cross_tokenizer(arguments: Any) -> None:
    """Check that `cross_tokenizer` has a teacher it can be used with.

    Raises:
        ParamsError: It is on with a store, a server, several teachers, or the student as its own teacher.
    """
    teacher = arguments.teacher_model
    if not arguments.cross_tokenizer:
        return
    if arguments.teacher_config is not None:
        raise ParamsError(
            "cross_tokenizer cannot be used with teacher_config, whose teachers have the student's tokenizer; give one "
            "--teacher-model."
        )
    if arguments.teacher_store is not None:
        raise ParamsError("cross_tokenizer cannot be used with teacher_store, whose targets are of one vocabulary.")
    if teacher == "self":
        raise ParamsError("cross_tokenizer cannot be used with teacher_model 'self', whose tokenizer is the student's.")
    if isinstance(teacher, str) and parse_endpoint(teacher) is not None:
        raise ParamsError(
            f"cross_tokenizer cannot be used with teacher_model {teacher!r}, a server; give a local model, or drop "
            "--cross-tokenizer."
        )


def check_prices(arguments: Any) -> None:
    """Check that a budget in money has both prices: there is no list of prices here that would be right tomorrow.

    Raises:
        ParamsError: Naming the price that is missing.
    """
    prices = {name: getattr(arguments, name) for name in ("teacher_price_input", "teacher_price_output")}
    given = [name for name, price in prices.items() if price is not None]
    missing = [f"--{name.replace('_', '-')}" for name in prices if name not in given]
    if missing and (given or arguments.teacher_max_cost is not None):
        what = "teacher_max_cost" if arguments.teacher_max_cost is not None else given[0]
        raise ParamsError(
            f"{what} is {getattr(arguments, what):g}, but what tokens cost is not known; give "
            f"{' and '.join(missing)}, money for a million tokens of prompts and of completions."
        )


def check_value(name: str, value: Any, spec: Any) -> Any:
    """Return `value` as the type of the dataclass field `spec`, or say what is accepted.

    Numbers given as text are converted (a YAML file writes `5e-5` as text), an int is taken for a float, a path
    becomes text (a template's one that names a file), and so does a list where commas separate. YAML reads the word
    `no` as false: where "no" is a choice, false means it.

    Raises:
        ParamsError: Wrong type, not among the choices, not finite, or outside the range.
    """
    text, kind = spec.metadata["help"], _types(spec)
    choices = spec.metadata.get("choices")
    if value is None:
        if "None" in kind or spec.default is None:
            return value
        raise ParamsError(f"{name} is empty; give {_accepted(spec)}.")
    if value is False and "no" in (choices or ()):
        value = "no"
    if isinstance(value, os.PathLike):
        value = ("@" if name.endswith("_prompt_template") else "") + os.fspath(value)
    if text.listed and isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value):
        value = ",".join(value)
    value = _converted(name, value, kind, spec)
    if choices is not None and value not in choices:
        raise ParamsError(f"{name} is {value!r}; accepted are {', '.join(map(repr, choices))}.")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not _inside(value, text):
        accepted = _accepted(spec)
        if isinstance(value, float) and math.isinf(value):
            accepted = accepted.replace("a number", "a finite number")
        raise ParamsError(f"{name} is {value!r}; accepted is {accepted}.")
    return value


def _inside(value: float, text: Help) -> bool:
    """Whether a number is finite and in the range."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    inside = (text.low is None or value >= text.low) and (text.high is None or value <= text.high)
    return (inside and (text.above is None or value > text.above)) or value == text.off


def _types(spec: Any) -> set[str]:
    """Return the names of a field's types; HfArgumentParser turns the annotation's text into types."""
    return set(re.findall(r"\w+", str(spec.type)))


def _converted(name: str, value: Any, kind: set[str], spec: Any) -> Any:
    """Return `value` as a bool, int or float where the annotation asks for one, and as it is where it is text."""
    wanted = next((k for k in ("bool", "int", "float") if k in kind), None)
    if wanted is None:
        if "str" not in kind or isinstance(value, str) or spec.metadata["help"].objects:
            return value
        raise ParamsError(f"{name} is {value!r}; accepted is {_accepted(spec)}.")
    if wanted != "bool" and "str" in kind and isinstance(value, str):
        return value
    try:
        if wanted == "bool":
            words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
            return value if isinstance(value, bool) else words[str(value).lower()]
        if isinstance(value, bool):
            raise ValueError
        if wanted == "int" and not isinstance(value, int):  # an int may be too long for a float
            if float(value) != int(float(value)):
                raise ValueError
            return int(float(value))
        return int(value) if wanted == "int" else float(value)
    except (ValueError, TypeError, KeyError, OverflowError):
        raise ParamsError(f"{name} is {value!r}; accepted is {_accepted(spec)}.") from None


def _accepted(spec: Any) -> str:
    """Say in words what a field accepts."""
    text, kind = spec.metadata["help"], _types(spec)
    if spec.metadata.get("choices"):
        return "one of " + ", ".join(map(repr, spec.metadata["choices"]))
    noun = {"bool": "true or false", "int": "a whole number", "float": "a number"}
    word = next((word for key, word in noun.items() if key in kind), "text")
    low, high, above = (None if x is None else _figure(x) for x in (text.low, text.high, text.above))
    other = "" if text.off is None else f", or {_figure(text.off)}"
    if low is not None and high is not None:
        return f"{word} from {low} to {high}{other}"
    if above is not None:
        return f"{word} above {above}" + (f" and at most {high}" if high is not None else "") + other
    return f"{word} of at least {low}{other}" if low is not None else word


def _figure(number: float) -> str:
    """Return a bound as a sentence shows it, a whole one with all its digits."""
    return str(int(number)) if number == int(number) else f"{number:g}"


def check_arguments(arguments: Any) -> None:
    """Check every distillation setting of a dataclass that inherits `DistillationArguments`.

    Raises:
        ParamsError: Naming the first setting outside what is accepted.
        TeacherError: A teacher's URL that cannot be used.
    """
    for spec in fields(DistillationArguments):
        setattr(arguments, spec.name, check_value(spec.name, getattr(arguments, spec.name), spec))
    check_several(arguments)
    check_prices(arguments)
    if isinstance(arguments.teacher_model, str):
        parse_endpoint(arguments.teacher_model)  # a URL with a password goes no further
    check_cross_tokenizer(arguments)
