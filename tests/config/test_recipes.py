"""`recipe`: the values of a paper, with their sources, under what the user gives."""

from __future__ import annotations

import copy

import pytest
from click.testing import CliRunner

from trl_distill.cli.llm_command import params_from_command
from trl_distill.cli.teach_command import teach
from trl_distill.config.recipes import NAMES, RECIPES, recipe_lines
from trl_distill.config.training_params import LLMTrainingParams
from trl_distill.errors import ParamsError
from trl_distill.runs.project_folder import Project

ASKED_FOR = ("prompt-baking", "opcd", "sdft", "gkd", "sequence-kd")


def good(recipe, **settings):
    """Return a run's parameters with a recipe, and the teacher that it may leave to the user."""
    teacher = {} if "teacher_model" in RECIPES[recipe].values else {"teacher_model": "gpt2-large"}
    return LLMTrainingParams(recipe=recipe, **{"model": "gpt2", **teacher, **settings})


def test_the_recipes_are_those_of_the_documentation():
    assert NAMES == ASKED_FOR


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_sets_its_values_and_leaves_the_rest(name):
    params, plain = good(name), LLMTrainingParams()
    params.validate()
    values = RECIPES[name].values
    assert {setting: getattr(params, setting) for setting in values} == {s: value for s, (value, _) in values.items()}
    others = params.to_dict().keys() - values.keys() - {"recipe", "model", "teacher_model"}
    assert {setting: getattr(params, setting) for setting in others} == {s: getattr(plain, s) for s in others}


def test_a_given_setting_overrides_the_recipe_even_with_its_default():
    params = good("gkd", distill_alpha=0.7, lr=1e-3)
    assert (params.distill_alpha, params.lr, params.distill_divergence) == (0.7, 1e-3, "jsd")
    later = LLMTrainingParams()
    later.distill_alpha = 0.7
    later.recipe = "gkd"
    later.lr = 1e-3
    assert (later.distill_alpha, later.lr, later.distill_divergence) == (0.7, 1e-3, "jsd")
    by_place = LLMTrainingParams(True, "gpt2-large", recipe="prompt-baking")  # use_distillation and teacher_model
    assert (by_place.use_distillation, by_place.teacher_model, by_place.peft) == (True, "gpt2-large", True)


def test_another_recipe_takes_the_place_of_the_first():
    params = good("gkd", lr=1e-3)
    params.recipe = "opcd"
    assert params == good("opcd", lr=1e-3)
    params.recipe = None
    assert params == LLMTrainingParams(model="gpt2", teacher_model="gpt2-large", lr=1e-3)


def test_a_copy_keeps_what_was_given():
    params = copy.copy(good("gkd", distill_alpha=0.7))
    params.recipe = "sequence-kd"
    assert (params.distill_alpha, params.completions) == (0.7, "teacher")


def test_settings_hold_nothing_but_settings():
    settings = LLMTrainingParams(recipe="gkd", lr=1e-3)
    assert list(vars(settings)) == list(LLMTrainingParams.__dataclass_fields__)
    assert LLMTrainingParams(**vars(settings)) == settings


def test_flags_and_files_override_the_recipe_wherever_it_is_named(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("lr: 1e-3\nrecipe: prompt-baking\nlora_r: 4\n")
    params = params_from_command(["--config", str(path), "--no-peft", "--model", "gpt2", "--teacher-model", "t"])
    assert (params.lr, params.lora_r, params.peft, params.teacher_model) == (1e-3, 4, False, "t")
    assert (params.scheduler, params.teacher_do_sample) == ("constant", True)
    params = params_from_command(["--config", str(path), "--recipe", "gkd", "--distill-alpha", "0.7"])
    assert (params.lr, params.peft, params.distill_divergence, params.distill_alpha) == (1e-3, False, "jsd", 0.7)
    params = params_from_command(["--distill-temperature", "3", "--recipe", "gkd"])
    assert (params.distill_temperature, params.distill_alpha) == (3.0, 1.0)


def test_teach_takes_a_recipe():
    context = teach.make_context("teach", ["--model", "m", "--recipe", "sequence-kd", "--output", "store"])
    assert context.params["recipe"] == "sequence-kd"


def test_the_settings_of_a_run_keep_their_values(tmp_path):
    params = good("gkd", project_name=str(tmp_path / "a"), lr=1e-3)
    path = Project(params.project_name).begin(params)
    assert params_from_command(["--config", str(path)]) == params
    other = params_from_command(["--config", str(path), "--recipe", "opcd"])
    assert other.distill_divergence == "jsd"
    assert LLMTrainingParams(**params.to_dict()) == params


@pytest.mark.parametrize("name", NAMES)
def test_each_value_is_shown_with_its_source(name):
    recipe = RECIPES[name]
    first, *lines, last = recipe_lines(good(name))
    assert first == f"Recipe {name}: {recipe.paper}"
    assert last == f"  {recipe.differs}"
    assert [line.split()[0] for line in lines] == [f"--{setting.replace('_', '-')}" for setting in recipe.values]
    for line, (_, source) in zip(lines, recipe.values.values(), strict=True):
        assert line.endswith(f"  {source}")


def test_a_given_value_is_shown_beside_the_recipes():
    *lines, _ = recipe_lines(good("gkd", distill_alpha=0.7, lr=2e-5, scheduler="cosine"))
    given = [line.split(maxsplit=2) for line in lines if "given" in line]
    assert given == [
        ["--distill-alpha", "0.7", "given; the recipe has 1 (the paper: no cross-entropy)"],
        ["--scheduler", "cosine", "given; the recipe has linear (TRL's default)"],
    ]
    long = "Say it.\n" * 100 + "{input}"
    shown = next(line for line in recipe_lines(good("sdft", teacher_prompt_template=long)) if "template" in line)
    assert len(shown) < 300
    assert recipe_lines(LLMTrainingParams()) == []


def test_an_unknown_recipe_is_refused_with_those_there_are():
    with pytest.raises(ParamsError, match=r"recipe is 'gdk'; expected one of 'prompt-baking', 'opcd', .*'gkd'"):
        LLMTrainingParams(recipe="gdk")
    from trl_distill.cli.llm_command import llm

    ended = CliRunner().invoke(llm, ["--model", "embedded", "--recipe", "gdk"])
    assert ended.exit_code == 2
    assert "--recipe is 'gdk'; expected one of 'prompt-baking'" in ended.output


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("prompt-baking", {"peft": False}, r"there is no adapter; .* The recipe 'prompt-baking' sets teacher_model\.$"),
        ("gkd", {"packing": True}, r"; drop packing\. The recipe 'gkd' sets distill_on_policy_fraction\.$"),
        ("opcd", {"teacher_store": "s"}, r"The recipe 'opcd' sets distill_on_policy_fraction\.$"),
        ("gkd", {"distill_on_policy_fraction": 0.25, "packing": True}, r"; drop packing\.$"),
    ],
)
def test_an_error_says_what_the_recipe_has_set(recipe, settings, message):
    with pytest.raises(ParamsError, match=message):
        good(recipe, **settings).validate()


def test_a_recipe_needs_a_trainer_that_distils():
    with pytest.raises(ParamsError, match="recipe is 'gkd', but trainer 'sft' does not distil; add use_distillation"):
        good("gkd", trainer="sft").validate()
    good("gkd", trainer="sft", use_distillation=True).validate()


def test_a_recipe_leaves_the_teacher_to_the_user_if_the_paper_has_another_model():
    for name in NAMES:
        alone = LLMTrainingParams(model="gpt2", recipe=name, data_path="nowhere.jsonl")
        if "teacher_model" in RECIPES[name].values:
            alone.validate()
        else:
            with pytest.raises(ParamsError, match="teacher_model is missing"):
                alone.validate()
