"""The settings of distillation itself, each written once: name, type, default and help text.

`DistillationSFTConfig` (flags under TrlParser) and `LLMTrainingParams` (flags of `aitraining llm`) both
inherit them. Standard library only, so that a command line can show its help without loading torch.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import ParamsError

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
COMPLETIONS = ("auto", "data", "teacher")
OVERFLOWS = ("error", "left")
QUANTIZATIONS = ("int4", "int8")
DTYPES = ("auto", "float32", "bfloat16", "float16")
LOSS_IMPLEMENTATIONS = ("fused", "plain")


class Help(str):
    """A help text that also carries its heading and the accepted range.

    HfArgumentParser hands every metadata key of a field to argparse, so nothing but help and choices may
    stand there.
    """

    group: str
    low: float | None
    high: float | None
    above: float | None


def option(
    default: Any,
    help: str,
    *,
    group: str = "Distillation",
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
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
    """
    text = Help(help)
    text.group, text.low, text.high, text.above = group, low, high, above
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

    use_distillation: bool = option(False, "Learn from a teacher's distribution besides the completion itself.")
    teacher_model: str | None = option(None, "Teacher: a folder, a Hub name, or 'embedded'. Required to distil.")
    teacher_prompt_template: str = option(
        "{input}",
        "Prompt the teacher reads: text with {input} (and other columns), @file, or a JSON list of chat messages.",
    )
    student_prompt_template: str = option("{input}", "Prompt the student reads; takes what the teacher's takes.")
    distill_temperature: float = option(
        3.0, "Temperature T that softens both distributions in the divergence (2 to 4 is usual).", above=0.0
    )
    distill_alpha: float = option(
        0.7, "Weight of the divergence: 0 is cross-entropy only, 1 is divergence only.", low=0.0, high=1.0
    )
    distill_max_teacher_length: int = option(512, "New tokens at most in a completion that the teacher writes.", low=1)
    distill_divergence: str = option("forward_kl", "Divergence between teacher and student.", choices=DIVERGENCES)
    distill_jsd_beta: float = option(
        0.5, "Weight of the teacher in the mixture of the jsd divergence.", above=0.0, high=0.999999
    )
    distill_loss_impl: str = option(
        "fused",
        "Loss implementation: 'fused' in tiles, 'plain' with full logits.",
        choices=LOSS_IMPLEMENTATIONS,
    )
    completions: str = option(
        "auto",
        "Where completions come from: 'data', 'teacher', or 'auto' (the row's own where there is one).",
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
    teacher_revision: str | None = option(None, "Revision of a Hub teacher.", group="Teacher")
    teacher_dtype: str = option("auto", "Precision the teacher is loaded in.", choices=DTYPES, group="Teacher")
    teacher_quantization: str | None = option(
        None, "Load the teacher quantized by bitsandbytes.", choices=QUANTIZATIONS, group="Teacher"
    )
    teacher_device_map: str | None = option(
        None,
        "device_map for the teacher, for example 'auto' (default: the student's device).",
        group="Teacher",
    )
    teacher_batch_size: int = option(16, "Prompts per batch while the teacher writes.", low=1, group="Teacher")
    teacher_do_sample: bool = option(
        False, "Draw the teacher's completions instead of taking the likeliest token.", group="Teacher"
    )
    teacher_sampling_temperature: float = option(
        1.0,
        "Temperature of that drawing; the distillation temperature is another setting.",
        above=0.0,
        group="Teacher",
    )
    teacher_top_p: float = option(
        1.0,
        "Nucleus of that drawing: smallest set of tokens with this probability.",
        above=0.0,
        high=1.0,
        group="Teacher",
    )


def check_value(name: str, value: Any, spec: Any) -> Any:
    """Return `value` as the type of the dataclass field `spec`, or say what is accepted.

    Numbers given as text are converted (a YAML file writes `5e-5` as text), an int is taken for a float, and a path
    becomes text (a template's one that names a file).

    Raises:
        ParamsError: Wrong type, not among the choices, or outside the range.
    """
    text, kind = spec.metadata["help"], _types(spec)
    if value is None:
        if "None" in kind or spec.default is None:
            return value
        raise ParamsError(f"{name} is empty; give {_accepted(spec)}.")
    if isinstance(value, os.PathLike):
        value = ("@" if name.endswith("_template") else "") + os.fspath(value)
    value = _converted(name, value, kind, spec)
    choices = spec.metadata.get("choices")
    if choices is not None and value not in choices:
        raise ParamsError(f"{name} is {value!r}; accepted are {', '.join(map(repr, choices))}.")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        inside = (text.low is None or value >= text.low) and (text.high is None or value <= text.high)
        if not (inside and (text.above is None or value > text.above)):  # also refuses NaN
            raise ParamsError(f"{name} is {value!r}; accepted is {_accepted(spec)}.")
    return value


def _types(spec: Any) -> set[str]:
    """Return the names of a field's types; HfArgumentParser turns the annotation's text into types."""
    return set(re.findall(r"\w+", str(spec.type)))


def _converted(name: str, value: Any, kind: set[str], spec: Any) -> Any:
    """Return `value` as a bool, int or float where the annotation asks for one."""
    wanted = next((k for k in ("bool", "int", "float") if k in kind), None)
    if wanted is None or (wanted != "bool" and "str" in kind and isinstance(value, str)):
        return value
    try:
        if wanted == "bool":
            words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
            return value if isinstance(value, bool) else words[str(value).lower()]
        if isinstance(value, bool):
            raise ValueError
        if wanted == "int":
            if float(value) != int(float(value)):
                raise ValueError
            return int(float(value))
        return float(value)
    except (ValueError, TypeError, KeyError, OverflowError):
        raise ParamsError(f"{name} is {value!r}; accepted is {_accepted(spec)}.") from None


def _accepted(spec: Any) -> str:
    """Say in words what a field accepts."""
    text, kind = spec.metadata["help"], _types(spec)
    if spec.metadata.get("choices"):
        return "one of " + ", ".join(map(repr, spec.metadata["choices"]))
    noun = {"bool": "true or false", "int": "a whole number", "float": "a number"}
    word = next((word for key, word in noun.items() if key in kind), "text")
    low, high, above = text.low, text.high, text.above
    if low is not None and high is not None:
        return f"{word} from {low:g} to {high:g}"
    if above is not None:
        return f"{word} above {above:g}" + (f" and at most {high:g}" if high is not None else "")
    return f"{word} of at least {low:g}" if low is not None else word


def check_arguments(arguments: Any) -> None:
    """Check every distillation setting of a dataclass that inherits `DistillationArguments`.

    Raises:
        ParamsError: Naming the first setting outside what is accepted.
    """
    for spec in fields(DistillationArguments):
        setattr(arguments, spec.name, check_value(spec.name, getattr(arguments, spec.name), spec))
