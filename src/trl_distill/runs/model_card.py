"""The model card: what a user of the student must know, with the figures of the run and a snippet that was run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..config.training_params import LLMTrainingParams
from ..data.atomic_file import write_text
from ..models.own_chat_template import ORIGINAL
from ..prompts.template import Template
from ..teachers.multi.entries import TeacherEntry, model_name, read_teachers
from ..teachers.multi.prompt_mixture import read_mixture
from .usage_snippet import loading, printed, snippet

if TYPE_CHECKING:
    from ..data.preflight import Preflight

SHOWN = (
    "train_loss",
    "train_kl",
    "train_ce",
    "train_retain_kl",
    "eval_loss",
    "eval_kl",
    "eval_ce",
    "eval_top1_agreement",
    "eval_mean_token_accuracy",
    "train_runtime",
)
SERVED = (
    "Send your input as a user's message. The saved chat template renders it as in training, also for `pipeline`, "
    "`vllm serve` and chat endpoints."
)


def write_card(
    folder: Path,
    params: LLMTrainingParams,
    templates: list[Template],
    metrics: dict[str, Any],
    model: Any,
    tokenizer: Any,
    preflight: Preflight | None,
    computes: str = "",
) -> Path:
    """Write README.md, the model card, into a project folder that holds the saved model.

    Args:
        folder: The project folder.
        params: The run's parameters.
        templates: The student's and the teacher's.
        metrics: Figures by name.
        model: The trained model; None if this process cannot have it generate, as with sharded weights.
        tokenizer: Its tokenizer.
        preflight: Figures of the training data; None where nothing was distilled.
        computes: How the run computed, see `how_it_computes`.
    """
    head = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": _tags(params)}
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {folder.resolve().name}",
        _what(params, preflight),
    ]
    if preflight is not None:
        parts += ["## Use", _use(folder, model, tokenizer, preflight)]
        parts += ["## Teacher and prompts", _prompts(params, templates), *_system(*templates)]
    parts += ["## Training", _training(params, preflight, computes), "## Figures", _figures(metrics)]
    return write_text(folder / "README.md", "\n\n".join(parts) + "\n")


def _tags(params: LLMTrainingParams) -> list[str]:
    """Return the card's tags."""
    return ["trl", "trl-distill", "prompt-distillation" if params.distills else "sft"]


def _what(params: LLMTrainingParams, preflight: Preflight | None) -> str:
    """Return the first paragraph."""
    student = model_name(params.model)
    if preflight is None:
        return f"`{student}`, fine-tuned with TRL."
    if _written(params):
        return f"`{student}`, trained on the completions of teachers that its data names."
    return (
        f"`{student}`, trained to give what {_teacher(params)} gives under a longer prompt. "
        f"It saves {preflight.saved:,.1f} prompt tokens per query."
    )


def _use(folder: Path, model: Any, tokenizer: Any, preflight: Preflight) -> str:
    """Return how to put an input into the student, with a snippet and what it printed."""
    place = folder.name if folder.is_absolute() else folder  # as it was typed; a card names no folder of a machine
    code = (loading(place) + snippet(preflight.example, tokenizer)).rstrip("\n")
    served = preflight.serving is not None and preflight.serving.source is not None
    lead = SERVED if served else "Put your input into the student's template:"
    if served and tokenizer.chat_template[ORIGINAL]:
        lead += f" The model's own chat template is kept under the name `{ORIGINAL}`."
    parts = [lead, _fenced(code, "python")]
    if model is None:
        return "\n\n".join(parts)
    try:
        text = printed(preflight.example, model, tokenizer)
        parts += ["When this card was written it printed:", _fenced(text, "text")]
    except Exception as error:  # a card without its snippet's outcome is better than a lost run
        parts.append(f"It could not be run when this card was written: {type(error).__name__}: {error}")
    return "\n\n".join(parts)


def _teacher(params: LLMTrainingParams) -> str:
    """Return what the teacher was, or the store that was trained from without one."""
    if params.teacher_config is not None:
        names = dict.fromkeys(f"`{entry.name}`" for entry in _listed(params))
        return "; ".join(names) + (" (mixed)" if read_teachers(params.teacher_config).mixed else "")
    if params.teacher_model == "self":
        return f"`{model_name(params.model)}` itself, its adapter switched off,"
    if params.teacher_model == "ema":
        return f"the exponential moving average of `{model_name(params.model)}` itself"
    return f"`{model_name(params.teacher_store if params.teacher_model is None else params.teacher_model)}`"


def _written(params: LLMTrainingParams) -> bool:
    """Whether the run had no teacher but those that wrote its data."""
    return params.teacher_model is params.teacher_store is params.teacher_config is None


def _prompts(params: LLMTrainingParams, templates: list[Template]) -> str:
    """Return both templates, or all."""
    student, teacher = (_shown(template) for template in templates)
    if params.teacher_config is not None:
        each = [
            f"Teacher {n}: `{entry.name}`, {entry.rows}. Its template:\n\n{_fenced(_shown(entry.template), 'text')}"
            for n, entry in enumerate(_listed(params), 1)
        ]
        return "\n\n".join([*each, f"The student's template:\n\n{_fenced(student, 'text')}"])
    if params.teacher_prompt_mixture is not None:
        entries = read_mixture(params.teacher_prompt_mixture).teachers
        each = [f"In {e.share:.0%} of the rows:\n\n{_fenced(_shown(e.template), 'text')}" for e in entries]
        head = f"Teacher: {_teacher(params).rstrip(',')}, under several templates."
        return "\n\n".join([head, *each, f"The student's template:\n\n{_fenced(student, 'text')}"])
    if _written(params):
        return f"The data's column `teacher` says who wrote. The student's template:\n\n{_fenced(student, 'text')}"
    return (
        f"Teacher: {_teacher(params).rstrip(',')}. Its template:\n\n{_fenced(teacher, 'text')}\n\n"
        f"The student's template:\n\n{_fenced(student, 'text')}"
    )


def _system(student: Template, teacher: Template) -> list[str]:
    """Say whose the rows' own system message is, if only the teacher reads it."""
    alone = teacher.system.keep and not teacher.has_system and not student.system.keep
    return ["If a row has a system message, the teacher alone reads it."] if alone else []


def _listed(params: LLMTrainingParams) -> tuple[TeacherEntry, ...]:
    """Return the teachers of a list."""
    return read_teachers(params.teacher_config).teachers


def _shown(template: Template) -> str:
    """Return a template as text, its fields in braces."""
    text = [(role, t.render({f: f"{{{f}}}" for f in t.fields})) for role, t in template.messages]
    if template.system.text is not None:
        text = [("system", template.system.text), *text]
    return "\n".join(f"{role}: {t}" if role else t for role, t in text)


def _training(params: LLMTrainingParams, preflight: Preflight | None, computes: str) -> str:
    """Return a table of the settings that matter."""
    names = [
        "epochs",
        "batch_size",
        "gradient_accumulation",
        "lr",
        "scheduler",
        "mixed_precision",
        "seed",
        "peft",
        "quantization",
    ]
    if preflight is not None:
        names = [
            "distill_temperature",
            "distill_alpha",
            "distill_divergence",
            "distill_max_teacher_length",
            *names,
        ]
    values = params.to_dict()
    rows = {"data": values["data_path"], **{name: values[name] for name in names}}
    if preflight is not None:
        if preflight.text_only:
            rows["distill_alpha"] = "0 (the teacher gives text only)"
        if preflight.weighing is not None:
            used = preflight.weighing.used
            rows |= {n: f"{used[n]:g} ({why}; {asked} was given)" for n, (asked, why) in preflight.changed.items()}
        if params.retain_data is not None:
            rows |= {name: values[name] for name in ("retain_data", "retain_fraction")}
        if params.teacher_prompt_dropout > 0:
            rows["teacher_prompt_dropout"] = params.teacher_prompt_dropout
        rows |= {"rows": preflight.rows.used, "completions from": ", ".join(preflight.sources)}
    if computes:
        rows["computed"] = computes
    return _table(("setting", "value"), rows)


def _figures(metrics: dict[str, Any]) -> str:
    """Return a table of the figures."""
    return _table(("figure", "value"), {k: f"{metrics[k]:.4g}" for k in SHOWN if k in metrics})


def _table(head: tuple[str, str], rows: dict[str, Any]) -> str:
    """Return a Markdown table of two columns."""
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {key} | {value} |" for key, value in rows.items())])


def _fenced(text: str, language: str) -> str:
    """Return a code block whose fence the text does not contain."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
