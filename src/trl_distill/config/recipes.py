"""Named sets of settings from papers and their code, each value with its source: the table behind `--recipe`.

A recipe says what the student learns from, its loss and its learning rate. Batch size, length of training and lengths
in tokens depend on the rows, the model and the memory, and stay as they are. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from ..errors import ParamsError, UsageError, nearest, quoted
from .fields import CheckedSettings, plain
from .setting_names import flag_of, name_settings

Value = str | float | bool
PAPER, AUTHORS, TRL = "the paper", "the authors' code", "TRL's default"
WIDTH = 40  # of the column of values


@dataclass(frozen=True)
class Recipe:
    """A named set of settings.

    Attributes:
        job: What it is for.
        paper: The paper that describes the method.
        code: The implementation that the other values are from.
        values: Settings of `LLMTrainingParams`, each with its source.
        differs: What the source does that the recipe does not.
    """

    job: str
    paper: str
    code: str
    values: Mapping[str, tuple[Value, str]]
    differs: str


# a loss without cross-entropy, of the two distributions as they are
_DIVERGENCE_ALONE: dict[str, tuple[Value, str]] = {
    "distill_alpha": (1.0, f"{PAPER}: no cross-entropy"),
    "distill_temperature": (1.0, f"{PAPER}: the distributions as they are"),
}
RECIPES: dict[str, Recipe] = {
    "prompt-baking": Recipe(
        job="bakes a prompt into an adapter of the model that reads it",
        paper="Prompt Baking, Bhargava et al. 2024, https://arxiv.org/abs/2409.13697",
        code="https://github.com/amanb2000/prompt_weight_equivalence",
        values={
            "teacher_model": ("self", f"{AUTHORS}: the student with its adapter off"),
            "peft": (True, AUTHORS),
            "lora_r": (32, AUTHORS),
            "lora_dropout": (0.0, AUTHORS),
            "completions": ("teacher", f"{PAPER}: the prompted model's own"),
            "teacher_do_sample": (True, PAPER),
            "teacher_sampling_temperature": (1.0, f"{PAPER}: an expectation over the prompted model"),
            "distill_divergence": ("forward_kl", PAPER),
            **_DIVERGENCE_ALONE,
            "lr": (1e-4, AUTHORS),
            "scheduler": ("constant", AUTHORS),
            "warmup_ratio": (0.0, AUTHORS),
        },
        differs="The code draws 25 completions for each query, at a temperature of 2, and adapts the attention alone; "
        "its LoRA alpha of 1 makes small steps, over many epochs.",
    ),
    "opcd": Recipe(
        job="has the student learn a prompt on completions of its own",
        paper="On-Policy Context Distillation, Ye et al. 2026, https://arxiv.org/abs/2602.12275",
        code="https://github.com/microsoft/LMOps/tree/main/opcd",
        values={
            "distill_on_policy_fraction": (1.0, PAPER),
            "distill_on_policy_temperature": (1.0, AUTHORS),
            "distill_divergence": ("reverse_kl", PAPER),
            **_DIVERGENCE_ALONE,
            "lr": (5e-6, AUTHORS),
            "scheduler": ("constant", AUTHORS),
            "warmup_ratio": (0.0, AUTHORS),
            "weight_decay": (0.01, AUTHORS),
        },
        differs="The code compares the student's 256 likeliest tokens; here all tokens are compared.",
    ),
    "sdft": Recipe(
        job="has the student learn from demonstrations on completions of its own, to forget less",
        paper="Self-Distillation Enables Continual Learning, Shenfeld et al. 2026, https://arxiv.org/abs/2601.19897",
        code="https://github.com/idanshen/Self-Distillation",
        values={
            "teacher_model": ("ema", f"{PAPER}: a moving average of the student"),
            "teacher_ema_decay": (0.99, f"{AUTHORS}: 1 - 0.01"),
            "teacher_prompt_template": (
                "{input}\n\n{privileged_context}",
                f"{TRL}: the demonstration is the column privileged_context",
            ),
            "distill_on_policy_fraction": (1.0, PAPER),
            "distill_on_policy_temperature": (1.0, AUTHORS),
            "distill_divergence": ("forward_kl", f"{AUTHORS}, who say that the paper's results used it"),
            **_DIVERGENCE_ALONE,
            "lr": (2e-5, AUTHORS),
            "scheduler": ("cosine", AUTHORS),
            "warmup_ratio": (0.1, AUTHORS),
        },
        differs="The paper's formula has the reverse KL. The code leaves the first 3 tokens of each completion out of "
        "the loss, and corrects for the probabilities of vLLM.",
    ),
    "gkd": Recipe(
        job="distils a larger teacher, half of it on the student's own completions",
        paper="On-Policy Distillation of Language Models, Agarwal et al. 2024, https://arxiv.org/abs/2306.13649",
        code="https://github.com/huggingface/trl (trl.experimental.gkd)",
        values={
            "distill_on_policy_fraction": (0.5, f"{TRL}, lmbda"),
            "distill_on_policy_temperature": (0.9, f"{TRL}, temperature"),
            "distill_divergence": ("jsd", PAPER),
            "distill_jsd_beta": (0.5, f"{TRL}, beta"),
            **_DIVERGENCE_ALONE,
            "lr": (2e-5, TRL),
            "scheduler": ("linear", TRL),
            "warmup_ratio": (0.0, TRL),
        },
        differs="TRL generates at most 128 tokens; here --distill-max-teacher-length decides.",
    ),
    "sequence-kd": Recipe(
        job="trains on the teacher's completions as on any others, without its probabilities",
        paper="Sequence-Level Knowledge Distillation, Kim and Rush 2016, https://arxiv.org/abs/1606.07947",
        code="the paper alone",
        values={
            "completions": ("teacher", PAPER),
            "teacher_do_sample": (False, f"{PAPER}: the teacher's mode"),
            "distill_alpha": (0.0, f"{PAPER}: cross-entropy alone"),
        },
        differs="The paper finds the teacher's mode by beam search; here each token is the teacher's likeliest.",
    ),
}
NAMES = tuple(RECIPES)


class RecipeSettings(CheckedSettings):
    """Settings of which the recipe that `recipe` names sets those that are not given.

    A setting is given if the constructor has it as an argument or it is set later, even to its default. It does not
    matter whether the recipe is named before or after.
    """

    # slots, since `LLMTrainingParams(**vars(params))` makes equal settings only if `vars` holds nothing else
    __slots__ = ("_given", "_named")
    _given: frozenset[str] | None  # names that were given; None while the constructor runs
    _named: frozenset[str]  # the constructor's arguments
    recipe: str | None
    trainer: str

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Remember which arguments the constructor has."""
        made = super().__new__(cls, *args, **kwargs)
        places = list(cls.__dataclass_fields__)  # type: ignore[attr-defined]
        made._given, made._named = None, frozenset((*places[: len(args)], *kwargs))
        return made

    def __setattr__(self, name: str, value: object) -> None:
        """Set a field to a checked value, see `CheckedSettings`."""
        if name in RecipeSettings.__slots__:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def __post_init__(self) -> None:
        """Set the recipe's values, the arguments being known."""
        self._given = self._named - {"recipe"}
        self._follow(before=None)

    def set(self, name: str, value: object, *, called: str | None = None) -> None:
        """Set a field to a checked value, see `CheckedSettings.set`; of a recipe also the fields that it sets."""
        before = vars(self).get("recipe")
        super().set(name, value, called=called)
        if self._given is None:
            return  # by the constructor, which also sets the defaults
        if name == "recipe":
            self._follow(before=before)
        else:
            self._given |= {name}

    def _follow(self, *, before: str | None) -> None:
        """Set what the recipe sets and is not given; what an earlier one has set becomes the default again."""
        specs = type(self).__dataclass_fields__  # type: ignore[attr-defined]
        defaults = {name: specs[name].default for name in _values(before)}
        for name, value in {**defaults, **_values(self.recipe)}.items():
            if name not in (self._given or ()):
                CheckedSettings.set(self, name, value)


def recipe_named(name: str) -> Recipe:
    """Return a recipe.

    Raises:
        ParamsError: There is none of this name.
    """
    if name not in RECIPES:
        raise ParamsError(f"recipe is {name!r}; expected one of {', '.join(NAMES)}.{nearest(name, NAMES)}")
    return RECIPES[name]


def recipe_lines(settings: RecipeSettings) -> list[str]:
    """Return the lines that show a recipe's values with their sources, and which of them were given; [] without one."""
    if settings.recipe is None:
        return []
    recipe = RECIPES[settings.recipe]
    rows = []
    for name, (value, source) in recipe.values.items():
        used = getattr(settings, name)
        origin = source if used == value else f"given; the recipe has {shown(value)} ({source})"
        rows.append((name_settings(flag_of(name)), shown(used), origin))
    first, second = (min(WIDTH, max(len(row[column]) for row in rows)) for column in (0, 1))
    return [
        f"Recipe {settings.recipe}: {recipe.paper}",
        *(f"  {name:{first}}  {value:{second}}  {origin}" for name, value, origin in rows),
        f"  {name_settings(recipe.differs)}",
    ]


@contextmanager
def explaining_recipe(settings: RecipeSettings, *, distills: bool) -> Iterator[None]:
    """Say of an error inside which of the settings that it names the recipe has set.

    Args:
        settings: The settings.
        distills: Whether there is a teacher.

    Raises:
        ParamsError: There is a recipe and no teacher.
    """
    name = settings.recipe
    if name is not None and not distills:
        raise ParamsError(
            f"recipe is {name!r}, but trainer {settings.trainer!r} does not distil; add --use-distillation, or drop "
            "--recipe."
        )
    try:
        yield
    except UsageError as error:
        found = _named_in(str(error), _values(name).keys() - (settings._given or ()))
        if found:
            error.args = (f"{error} The recipe {name!r} sets {', '.join(map(flag_of, found))}.",)
        raise


def _values(name: str | None) -> dict[str, Any]:
    return {} if name is None else {setting: value for setting, (value, _) in RECIPES[name].values.items()}


def _named_in(text: str, names: Collection[str]) -> list[str]:
    return [name for name in sorted(names) if re.search(rf"\b{name}\b|{flag_of(name)}\b", text)]


def shown(value: object) -> str:
    """Return a value as the table of a recipe shows it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    text = str(plain(value))
    return text if text.isprintable() and len(text) <= WIDTH else quoted(text)
