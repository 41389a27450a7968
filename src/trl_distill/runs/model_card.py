"""The model card: the metrics of the run, its prompts, and a tested usage snippet.

It shows no row of the data unless `card_example` is set, and names no place of the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import ModelCard, ModelCardData

from ..config.recipes import RECIPES
from ..config.training_params import LLMTrainingParams, is_hub_data
from ..data.atomic_file import write_text
from ..data.split import Split
from ..models.adapters import base_of, is_peft_model
from ..models.own_chat_template import ORIGINAL
from ..teachers.multi.entries import model_name
from ..trainer.card import base_model, prompts_section, teacher_in_words
from ..trainer.card_text import code, escaped, fenced, place_from_here, public_name
from .next_steps import ASKS, steps_after
from .usage_snippet import loading, printed, snippet, without_row

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


@dataclass(frozen=True)
class RunCard:
    """The card of a run, for its folder and for the Hub.

    Attributes:
        trained: The run.
        model: The trained model; None if this process cannot have it generate, as with sharded weights.
        metrics: Figures by name.
    """

    trained: Trained
    model: PreTrainedModel | None
    metrics: Mapping[str, Any]

    def write(self) -> Path:
        """Write README.md into the project folder, with code that loads the model from where the run was started."""
        folder = self.trained.prepared.checked.project.folder
        place = place_from_here(folder)
        outside = place.name if len(place.parts) == 1 and place.resolve() != folder.resolve() else ""
        return write_text(folder / "README.md", self._text(place, self._steps(place), outside=outside))

    def for_hub(self, repository: str) -> str:
        """Return the card for a repository, with code that loads the model from there."""
        place = Path(repository)
        return self._text(place, {what: command for what, command in self._steps(place).items() if what == ASKS})

    def _steps(self, place: Path) -> dict[str, str]:
        shows = self.trained.prepared.checked.params.card_example
        return steps_after(self.trained.prepared, self.trained.tokenizer, place=place, shows_input=shows)

    @cached_property
    def _usage(self) -> dict[str, Any] | None:
        preflight = self.trained.prepared.preflights.get(Split.TRAIN)
        if preflight is None:
            return None
        shows = self.trained.prepared.checked.params.card_example
        return _usage(self.model, self.trained.tokenizer, preflight, shows_row=shows)

    def _text(self, place: Path, steps: Mapping[str, str], *, outside: str = "") -> str:
        prepared = self.trained.prepared
        params, preflight = prepared.checked.params, prepared.preflights.get(Split.TRAIN)
        plan = None if prepared.setup is None else prepared.setup.plan
        student = public_name(model_name(params.model))
        teacher = teacher_in_words(params, student=student)
        card = ModelCard.from_template(
            _metadata(self.trained),
            template_path=str(TEMPLATE),
            name=escaped(prepared.checked.project.folder.resolve().name),
            student=code(student),
            teacher=teacher,
            from_data=plan is not None and bool(plan.writers),
            prompts="" if plan is None else prompts_section(plan, teacher=teacher),
            preflight=preflight,
            settings=_settings(params, preflight, prepared.computes),
            cell=escaped,
            figures={name: self.metrics[name] for name in FIGURES if name in self.metrics},
            fenced=fenced,
            next="\n\n".join(f"# {what}\n{command}" for what, command in steps.items()),
            loading=loading(place),
            usage=self._usage,
            outside=outside and code(outside),
        )
        return f"{str(card).rstrip()}\n"


def _metadata(trained: Trained) -> ModelCardData:
    """Return the Hub metadata: the base model, the datasets and the library that loads the model."""
    params, model = trained.prepared.checked.params, cast("PreTrainedModel", trained.trainer.model)
    adapter = is_peft_model(model) and not params.merge_adapter
    name = params.model if isinstance(params.model, str) else base_of(model).config._name_or_path
    data = ModelCardData(
        base_model=base_model(name),
        datasets=[str(given) for given in (params.data_path, params.retain_data) if is_hub_data(given)] or None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["trl", "trl-distill", "prompt-distillation" if params.distills else "sft"],
    )
    if data.base_model is not None:
        data["base_model_relation"] = "adapter" if adapter else "finetune"
    return data


def _usage(
    model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, preflight: Preflight, *, shows_row: bool
) -> dict[str, Any]:
    """Return a usage snippet; of a row, if it may be shown, with its output, else of a placeholder."""
    serves = preflight.serving is not None and preflight.serving.source is not None
    templates = tokenizer.chat_template if serves else {}
    outcome, example = "", preflight.example if shows_row else without_row(preflight.placeholder, tokenizer)
    if model is not None and shows_row:
        try:
            text = printed(example, model, tokenizer)
            outcome = f"When this card was written it printed:\n\n{fenced(text, 'text')}"
        except Exception as error:  # a card without the snippet's output is better than a lost run
            outcome = f"It could not be run when this card was written: {escaped(f'{type(error).__name__}: {error}')}"
    return {
        "code": snippet(example, tokenizer).rstrip("\n"),
        "outcome": outcome,
        "serves": serves,
        "own_chat_template": ORIGINAL if isinstance(templates, dict) and templates.get(ORIGINAL) else "",
    }


def _settings(params: LLMTrainingParams, preflight: Preflight | None, computes: str) -> dict[str, Any]:
    """Return the settings that matter, by name."""
    values = params.to_dict()
    names = SETTINGS if preflight is None else (*SETTINGS_WITH_TEACHER, *SETTINGS)
    written = params.queries_from_prompt
    data = public_name(str(values["data_path"])) if written is None else f"{written:,} inputs written by the teacher"
    shown = {"data": data, **{name: values[name] for name in names}}
    if params.recipe is not None:
        shown["recipe"] = f"{params.recipe} ({RECIPES[params.recipe].paper})"
    if preflight is not None:
        if preflight.text_only:
            shown["distill_alpha"] = "0 (the teacher gives text only)"
        if preflight.schedule is not None:
            used = preflight.schedule.used
            shown |= {n: f"{used[n]:g} ({why}; {asked} was given)" for n, (asked, why) in preflight.changed.items()}
        if params.retain_data is not None:
            shown |= {"retain_data": public_name(str(values["retain_data"])), "retain_fraction": params.retain_fraction}
        if params.teacher_prompt_dropout > 0:
            shown["teacher_prompt_dropout"] = params.teacher_prompt_dropout
        shown |= {"rows": preflight.rows.used, "completions from": ", ".join(preflight.sources)}
    if computes:
        shown["computed"] = computes
    return shown
