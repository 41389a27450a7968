"""Each recipe trains the embedded model for two steps, prints its values and is recorded."""

from __future__ import annotations

import json

import pytest
import yaml

from trl_distill import LLMTrainingParams, TemplateError, run
from trl_distill.config.recipes import NAMES, RECIPES, recipe_lines

pytestmark = pytest.mark.usefixtures("device")

ROWS = [
    {"text": text, "privileged_context": "Write the words in reverse order."}
    for text in ("red cat", "sun moon", "blue dog", "river stone")
]
SETTINGS = {
    "model": "embedded", "max_steps": 2, "gradient_accumulation": 1, "logging_steps": 1, "save_strategy": "no",
    "distill_max_teacher_length": 4, "lr": 1e-3,
}  # fmt: skip
TEACHER = {"teacher_model": "embedded"}
PROMPT = {"teacher_prompt_template": "Write the words in reverse order.\n{input}\n"}
GIVEN = {"prompt-baking": PROMPT, "sdft": {}}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_trains_the_embedded_model(name, data, tmp_path, capsys):
    folder = tmp_path / name
    given = GIVEN.get(name, {**TEACHER, **PROMPT})
    params = LLMTrainingParams(recipe=name, data_path=str(data), project_name=str(folder), **SETTINGS, **given)
    result = run(params)
    printed, lines = capsys.readouterr().out, recipe_lines(params)
    assert printed.index(f"Recipe {name}: ") < printed.index("Pre-flight")
    for line in lines[1:-1]:  # whose settings a run from Python has as fields
        assert " ".join(line.split()[1:]) in " ".join(printed.split())
    assert json.loads((folder / "run.json").read_text())["recipe"] == name
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    assert kept["recipe"] == name
    assert {s: kept[s] for s in RECIPES[name].values} == {s: getattr(params, s) for s in RECIPES[name].values}
    assert RECIPES[name].paper.partition(",")[0] in (folder / "README.md").read_text()
    assert (folder / "adapter_model.safetensors").is_file() == (name == "prompt-baking")
    logged = [line for line in result.trainer.state.log_history if "loss" in line]
    assert len(logged) == 2
    if RECIPES[name].values.get("distill_on_policy_fraction", (0, ""))[0] == 1:
        assert [line["on_policy"] for line in logged] == [1, 1]
    if name == "sequence-kd":
        assert all(line["loss"] == pytest.approx(line["ce"], rel=1e-3) for line in logged)


def test_a_run_without_a_recipe_names_none(data, tmp_path, capsys):
    folder = tmp_path / "plain"
    run(LLMTrainingParams(data_path=str(data), project_name=str(folder), **SETTINGS, **TEACHER, **PROMPT))
    assert "Recipe" not in capsys.readouterr().out
    assert "recipe" not in json.loads((folder / "run.json").read_text())


def test_sdft_asks_for_the_column_of_the_demonstration(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "red cat", "demonstration": "cat red"}\n')
    params = LLMTrainingParams(recipe="sdft", data_path=str(path), project_name=str(tmp_path / "run"), **SETTINGS)
    message = r"\{privileged_context\}.* there are 'input', 'demonstration'.* The recipe 'sdft' sets teacher_prompt_tem"
    with pytest.raises(TemplateError, match=message):
        run(params)
