"""The model card: what a user of the student must know, with the figures of the run and a snippet that was run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from ..config.training_params import LLMTrainingParams
from ..data.atomic_file import write_text
from ..data.split import Split
from ..models.own_chat_template import ORIGINAL
from ..prompts.template import Template
from ..teachers.multi.entries import model_name, read_teachers
from ..teachers.multi.prompt_mixture import read_mixture
from .usage_snippet import loading, printed, snippet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..data.preflight import Preflight
    from .fit import Trained

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
SETTINGS = (
    "epochs",
    "batch_size",
    "gradient_accumulation",
    "lr",
    "scheduler",
    "mixed_precision",
    "seed",
    "peft",
    "quantization",
)
SETTINGS_WITH_TEACHER = ("distill_temperature", "distill_alpha", "distill_divergence", "distill_max_teacher_length")
FIGURES = (
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


def write_card(trained: Trained, model: PreTrainedModel | None, metrics: Mapping[str, Any]) -> Path:
    """Write README.md, the model card, into a project folder that holds the saved model.

    Args:
        trained: The run.
        model: The trained model; None if this process cannot have it generate, as with sharded weights.
        metrics: Figures by name.
    """
    checked, preflight = trained.prepared.checked, trained.prepared.preflights.get(Split.TRAIN)
    params, folder, (student, teacher) = checked.params, checked.project.folder, checked.templates
    kind = "prompt-distillation" if params.distills else "sft"
    data = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=["trl", "trl-distill", kind])
    mixture = params.teacher_prompt_mixture
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=folder.resolve().name,
        student=model_name(params.model),
        teacher=_teacher(params),
        from_data=params.teacher_model is params.teacher_store is params.teacher_config is None,
        listed=() if params.teacher_config is None else read_teachers(params.teacher_config).teachers,
        mixture=() if mixture is None else read_mixture(mixture).teachers,
        student_template=student,
        teacher_template=teacher,
        system_for_teacher_alone=teacher.system.keep and not teacher.has_system and not student.system.keep,
        preflight=preflight,
        settings=_settings(params, preflight, trained.prepared.computes),
        figures={name: metrics[name] for name in FIGURES if name in metrics},
        fenced=_fenced,
        as_text=template_text,
        **({} if preflight is None else _usage(folder, model, trained.tokenizer, preflight)),
    )
    return write_text(folder / "README.md", f"{str(card).rstrip()}\n")


def _usage(
    folder: Path, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, preflight: Preflight
) -> dict[str, Any]:
    """Return how to put an input into the student: a snippet, and what it printed."""
    place = folder.name if folder.is_absolute() else folder  # as it was typed; a card names no folder of a machine
    serves = preflight.serving is not None and preflight.serving.source is not None
    templates = tokenizer.chat_template if serves else {}
    outcome = ""
    if model is not None:
        try:
            text = printed(preflight.example, model, tokenizer)
            outcome = f"When this card was written it printed:\n\n{_fenced(text, 'text')}"
        except Exception as error:  # a card without the snippet's output is better than a lost run
            outcome = f"It could not be run when this card was written: {type(error).__name__}: {error}"
    return {
        "code": (loading(place) + snippet(preflight.example, tokenizer)).rstrip("\n"),
        "outcome": outcome,
        "serves": serves,
        "own_chat_template": ORIGINAL if isinstance(templates, dict) and templates.get(ORIGINAL) else "",
    }


def _teacher(params: LLMTrainingParams) -> str:
    """Return what the teacher was, or the store that was trained from without one."""
    if params.teacher_config is not None:
        listed = read_teachers(params.teacher_config)
        return "; ".join(dict.fromkeys(f"`{entry.name}`" for entry in listed.teachers)) + " (mixed)" * listed.mixed
    if params.teacher_model == "self":
        return f"`{model_name(params.model)}` itself, its adapter switched off,"
    if params.teacher_model == "ema":
        return f"the exponential moving average of `{model_name(params.model)}` itself"
    return f"`{model_name(params.teacher_store if params.teacher_model is None else params.teacher_model)}`"


def _settings(params: LLMTrainingParams, preflight: Preflight | None, computes: str) -> dict[str, Any]:
    """Return the settings that matter, by name."""
    values = params.to_dict()
    names = SETTINGS if preflight is None else (*SETTINGS_WITH_TEACHER, *SETTINGS)
    shown = {"data": values["data_path"], **{name: values[name] for name in names}}
    if preflight is not None:
        if preflight.text_only:
            shown["distill_alpha"] = "0 (the teacher gives text only)"
        if preflight.schedule is not None:
            used = preflight.schedule.used
            shown |= {n: f"{used[n]:g} ({why}; {asked} was given)" for n, (asked, why) in preflight.changed.items()}
        if params.retain_data is not None:
            shown |= {name: values[name] for name in ("retain_data", "retain_fraction")}
        if params.teacher_prompt_dropout > 0:
            shown["teacher_prompt_dropout"] = params.teacher_prompt_dropout
        shown |= {"rows": preflight.rows.used, "completions from": ", ".join(preflight.sources)}
    if computes:
        shown["computed"] = computes
    return shown


def template_text(template: Template) -> str:
    """Return a template as text, its fields in braces."""
    text = [(role, t.render({f: f"{{{f}}}" for f in t.fields})) for role, t in template.messages]
    if template.system.text is not None:
        text = [("system", template.system.text), *text]
    return "\n".join(f"{role}: {t}" if role else t for role, t in text)


def _fenced(text: str, language: str = "text") -> str:
    """Return a code block whose fence the text does not contain."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
