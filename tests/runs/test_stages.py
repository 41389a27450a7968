"""Stages of one run: each from the model of the one before, in one project, resumed by stage, on one page."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from evaluation.pages import check_inert
from holding import another_process
from safetensors.torch import load_file
from small_runs import no_model
from transformers import AutoModelForCausalLM

from trl_distill import LLMTrainingParams, evaluate_distillation, train, train_stages
from trl_distill.cli import main
from trl_distill.errors import DataError, ParamsError, ProjectError, UsageError
from trl_distill.models.loading import ModelSource
from trl_distill.runs import disk_estimate

TEXTS = ("a b", "c", "d e f", "g", "b a", "c d", "e", "f g", "a c", "b d", "e g", "f a")
STAGES = [
    {"teacher_prompt_template": "g f e d c b a", "epochs": 1, "distill_temperature": 2.0},
    {"teacher_prompt_template": "e f {input}", "max_steps": 2, "distill_alpha": 0.5},
    {"teacher_prompt_template": "e f {input}", "max_steps": 2, "distill_temperature": 1.0, "distill_alpha": 1.0},
]


@pytest.fixture(scope="module")
def settings(tiny_model_dir, tiny_teacher_dir, tmp_path_factory):
    data = tmp_path_factory.mktemp("stages-data") / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return {
        "model": str(tiny_model_dir), "teacher_model": str(tiny_teacher_dir), "data_path": str(data), "holdout": 0.25,
        "distill_max_teacher_length": 4, "lr": 3e-2, "gradient_accumulation": 1, "batch_size": 4, "logging_steps": 1,
        "save_strategy": "no", "warmup_ratio": 0.0, "mixed_precision": "no",
    }  # fmt: skip


@pytest.fixture(scope="module")
def staged(settings, tmp_path_factory):
    """A project of three stages: its folder, the model and what was printed."""
    folder = tmp_path_factory.mktemp("stages") / "run"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        model = train_stages(LLMTrainingParams(**settings, project_name=str(folder)), STAGES)
    return folder, model, printed.getvalue()


def weights(folder):
    return load_file(folder / "model.safetensors")


def are_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_each_stage_starts_from_the_model_of_the_one_before(staged, settings, tmp_path):
    folder, _, _ = staged
    models = [yaml.safe_load((place / "config.yaml").read_text())["model"] for place in places(folder)]
    assert models == [settings["model"], str(folder / "stage-1"), str(folder / "stage-2")]
    own = LLMTrainingParams(**{**settings, **STAGES[1], "model": models[1]}, project_name=str(tmp_path / "alone"))
    train(own)
    assert are_equal(weights(tmp_path / "alone"), weights(folder / "stage-2"))
    assert not are_equal(weights(folder / "stage-1"), weights(folder / "stage-2"))


def test_what_a_link_in_the_place_of_a_stage_leads_to_stays(staged, settings, tmp_path):
    elsewhere, project = tmp_path / "elsewhere", tmp_path / "run"
    shutil.copytree(staged[0], project)
    (project / "stage-1").rename(elsewhere)
    (project / "stage-1").symlink_to(elsewhere)
    files = {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}
    train_stages(LLMTrainingParams(**settings, project_name=str(project), overwrite=True), STAGES[:2])
    assert {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()} == files
    assert not (project / "stage-1").is_symlink()
    assert (project / "stage-1" / "model.safetensors").is_file()


def test_a_later_stage_trains_the_adapter_of_the_one_before(settings, tmp_path):
    """The second stage is one step that is too small to change a weight; "self" stays the base."""
    folder = tmp_path / "run"
    own = {**settings, "teacher_model": "self", "peft": True, "lora_r": 2}
    stages = [{"teacher_prompt_template": "e f {input}", "max_steps": 1, "lr": lr} for lr in (3e-2, 1e-15)]
    model = train_stages(LLMTrainingParams(**own, project_name=str(folder)), stages)
    first, last = (load_file(place / "adapter_model.safetensors") for place in (folder / "stage-1", folder))
    assert are_equal(first, last)
    assert any(value.any() for name, value in first.items() if "lora_B" in name)
    written = json.loads((folder / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == settings["model"]
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, model.cpu()(ids).logits)
    stores = [(place / "teacher_completions.jsonl").read_bytes() for place in (folder / "stage-1", folder)]
    assert stores[0] == stores[1]


def places(folder):
    return [folder / "stage-1", folder / "stage-2", folder]


def test_the_project_holds_the_last_stages_model(staged):
    folder, model, _ = staged
    saved = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(saved.parameters(), model.parameters(), strict=True))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert {name: config[name] for name in STAGES[2]} == STAGES[2]


def test_each_stage_has_a_line_when_it_begins_and_one_when_it_is_done(staged):
    folder, _, printed = staged
    begins = re.findall(r"^Stage (\d) of 3 \((.*?)\): (.*)$", printed, re.MULTILINE)
    assert [(number, place) for number, place, _ in begins] == [
        ("1", str(folder / "stage-1")), ("2", str(folder / "stage-2")), ("3", str(folder)),
    ]  # fmt: skip
    assert begins[0][2] == "epochs 1, T 2, alpha 0.7, prompt 'g f e d c b a', max_steps -1"
    assert re.findall(r"^Stage (\d) of 3 is done in \d+ s: train_loss ", printed, re.MULTILINE) == ["1", "2", "3"]
    assert printed.count("Next:") == 1  # of the last
    assert printed.count("teacher_prompt_template has no {input}, so a blank line and {input} are added") == 1


def test_the_completions_of_the_same_prompt_are_generated_once(staged):
    folder, _, _ = staged
    first, second, third = ((place / "teacher_completions.jsonl").read_bytes() for place in places(folder))
    assert second == third
    assert first != second


def test_one_page_shows_all_stages(staged):
    folder, _, _ = staged
    data = json.loads((folder / "report.json").read_text())
    stages = data["stages"]
    assert [stage["folder"] for stage in stages] == ["stage-1", "stage-2", ""]
    for stage, place in zip(stages, places(folder), strict=True):
        metrics = json.loads((place / "metrics.json").read_text())
        losses = [line["loss"] for line in metrics["history"] if "loss" in line]
        assert [value for _, value in stage["loss"]] == losses
        assert stage["steps"] == len(losses)
        assert stage["evaluation"] == metrics["metrics"]["eval_loss"]
    page = check_inert((folder / "report.html").read_text(encoding="utf-8"))
    assert "Stages" in page.text
    assert "g f e d c b a" in page.text
    last = stages[2]["loss"][-1][1]
    assert f"stage 3, step {sum(stage['steps'] for stage in stages)}: {last:.4g}" in page.titles


def test_an_evaluation_compares_with_the_model_before_the_first_stage(staged, settings):
    folder, _, _ = staged
    before_page = json.loads((folder / "report.json").read_text())["stages"]
    evaluation = evaluate_distillation(str(folder), timed_queries=0, max_new_tokens=4).evaluation
    assert {side.name: side.model for side in evaluation.sides}["before"] == settings["model"]
    assert evaluation.settings["teacher_prompt_template"] == STAGES[2]["teacher_prompt_template"]
    assert json.loads((folder / "report.json").read_text())["stages"] == before_page


def test_finished_stages_are_not_run_again(staged, settings, capsys, monkeypatch):
    folder, _, _ = staged
    monkeypatch.chdir(folder.parent)
    params = LLMTrainingParams(**settings, project_name=folder.name, resume=True)  # the same folder by another path
    before = {place: (place / "run.json").stat().st_mtime_ns for place in places(folder)}
    model = train_stages(params, STAGES)
    assert {place: (place / "run.json").stat().st_mtime_ns for place in before} == before
    assert "All stages have finished; there is nothing left to resume." in capsys.readouterr().out
    last = weights(folder)
    assert torch.equal(model.get_input_embeddings().weight.cpu(), last["model.embed_tokens.weight"])
    for name in ("run.json", "model.safetensors"):  # as a kill in the last stage leaves it
        (folder / name).unlink()
    train_stages(params, STAGES)
    printed = capsys.readouterr().out
    assert printed.count(" of 3 has finished (") == 2
    assert are_equal(weights(folder), last)


def test_a_finished_stage_with_other_settings_is_named(staged, settings):
    params = LLMTrainingParams(**settings, project_name=str(staged[0]), resume=True)
    with pytest.raises(ProjectError, match=r"stage 1: .* holds a finished run with distill_temperature=2.0"):
        train_stages(params, [{**STAGES[0], "distill_temperature": 4.0}, *STAGES[1:]])
    with pytest.raises(ProjectError, match="holds a run of 3 stages, and this one has 2"):
        train_stages(params, STAGES[:2])
    with pytest.raises(ProjectError, match="holds a finished run; give overwrite=True"):
        train_stages(LLMTrainingParams(**settings, project_name=str(staged[0])), STAGES)


def test_a_stage_that_fails_leaves_those_that_have_finished(settings, tmp_path, capsys, monkeypatch):
    params = LLMTrainingParams(**{**settings, "project_name": str(tmp_path / "run")})
    params.max_steps, short = 1, [(1, "e f"), (2, "g")]
    with monkeypatch.context() as patch:
        load = ModelSource.load_model

        def fail_at_last(self):
            if str(tmp_path) in self.path:
                raise DataError("the second stage fails.")
            return load(self)

        patch.setattr(ModelSource, "load_model", fail_at_last)
        with pytest.raises(DataError, match=r"stage 2: the second stage fails\."):
            train_stages(params, short)
    with pytest.raises(ProjectError, match="holds a run of 2 stages, 1 of them finished; give resume=True"):
        train_stages(params, short)
    first = (tmp_path / "run" / "stage-1" / "run.json").read_bytes()
    params.resume = True
    train_stages(params, short)
    assert (tmp_path / "run" / "stage-1" / "run.json").read_bytes() == first
    assert "Stage 1 of 2 has finished" in capsys.readouterr().out
    # another first stage: the second has learned from what is no longer there
    (tmp_path / "run" / "stage-1" / "run.json").write_bytes(first + b"\n")
    train_stages(params, short)
    printed = capsys.readouterr().out
    assert "Stage 1 of 2 has finished" in printed
    assert "Stage 2 of 2 is done" in printed


def test_a_dry_run_shows_the_rows_of_every_stage_and_writes_no_model(settings, tmp_path, capsys):
    params = LLMTrainingParams(**settings, project_name=str(tmp_path / "run"), dry_run=True)
    assert train_stages(params, STAGES[:2]) is None
    assert capsys.readouterr().out.count("Pre-flight (train)") == 2
    assert not list(tmp_path.rglob("*.safetensors"))


WRONG = [
    ([{}, {"project_name": "x"}], "stage 2: project_name cannot differ: all stages are in one project"),
    ([{}, {"model": "x"}], "stage 2: model cannot differ: each stage starts from the model of the one before"),
    ([{"seed": 3}], "stage 1: seed cannot differ: rows that one stage holds out could be trained on in another"),
    ([{}, {"data_path": "other.json"}], "stage 2: data_path cannot differ with holdout"),
    ([{}, {"distil_alpha": 0.5}], "stage 2: unknown parameter 'distil_alpha'. Did you mean 'distill_alpha'"),
    ([{}, {"distill-alpha": 7}], "stage 2: distill_alpha is 7"),
    ([{}, {"lr": 1e-3, "learning_rate": 1e-3}], "stage 2: lr is given twice"),
    ([{}, {"quantization": "int4"}], "stage 2: quantization 'int4' trains an adapter"),
    ([{}, {"queries_from_prompt": 9}], "stage 2: queries_from_prompt would write inputs for each stage"),
    ([{"peft": True}, {"peft": True, "lora_r": 4}], "stage 2: lora_r is 4, but it trains the adapter of stage 1"),
    ([{}, {}, {"peft": True, "target_modules": "q_porj"}], "stage 3: target_modules has 'q_porj'"),
    ([{}, {}, {"teacher_prompt_template": "@no.txt"}], "stage 3: teacher_prompt_template names the file 'no.txt'"),
    ([{}, {"teacher_model": "./nowhere"}], "stage 2: teacher_model './nowhere' is not a folder"),
    ([{}, {"teacher_prompt_template": "{rule} {input}"}], "stage 2: teacher_prompt_template has the field {rule}"),
    ([{}, {"student_prompt_template": "no field"}], "stage 2: student_prompt_template has no {input}"),
    ([(1, "a"), (3, "b")], "stage 2 has the number 3; number the stages 1, 2"),
    ([{}, "a prompt"], "stage 2 is 'a prompt'; give"),
    ([], "stages has 0 stages"),
    ("stages.yaml", "stages holds a str; give a list"),
]


@pytest.mark.parametrize(("stages", "said"), WRONG, ids=[said[:40] for _, said in WRONG])
def test_every_stage_is_checked_before_the_first_model_loads(stages, said, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelSource, "load_model", no_model)
    params = LLMTrainingParams(**settings, project_name=str(tmp_path / "run"))
    with pytest.raises(UsageError, match=re.escape(said)):
        train_stages(params, stages)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ParamsError, match="takes LLMTrainingParams, not dict"):
        train_stages({}, [{}])


def test_the_space_for_all_stages_is_compared_before_the_first(settings, tmp_path, monkeypatch):
    size = (Path(settings["model"]) / "model.safetensors").stat().st_size
    monkeypatch.setattr(disk_estimate, "free_bytes", lambda _: 2.5 * size)
    monkeypatch.setattr(ModelSource, "load_model", no_model)
    params = LLMTrainingParams(**settings, project_name=str(tmp_path / "run"))
    with pytest.raises(ProjectError, match=r"this run writes about .* \(the trained model .*, the trained model"):
        train_stages(params, STAGES)


def test_a_damaged_model_of_a_finished_stage_is_no_start(staged, settings):
    folder, _, _ = staged
    (folder / "run.json").rename(folder / "kept.json")
    second = folder / "stage-2" / "model.safetensors"
    intact = second.read_bytes()
    second.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    try:
        with pytest.raises(ProjectError, match=r"stage 2: .*model.safetensors is damaged.*; restore it, or delete"):
            train_stages(LLMTrainingParams(**settings, project_name=str(folder), resume=True), STAGES)
    finally:
        second.write_bytes(intact)
        (folder / "kept.json").rename(folder / "run.json")


def test_a_run_in_use_by_another_process_is_left_alone(settings, tmp_path):
    folder = tmp_path / "run"
    with another_process(folder), pytest.raises(ProjectError, match="is in use by process"):
        train_stages(LLMTrainingParams(**settings, project_name=str(folder)), STAGES)


def test_the_command_runs_the_stages_of_a_file_as_documented(tmp_path, monkeypatch):
    """On the embedded model, with a few words as inputs; figures may differ."""
    page = (Path(__file__).parents[2] / "docs" / "stages.md").read_text(encoding="utf-8")
    (stages,), (command,), (shown,) = (
        re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        for language in ("yaml", "bash", "text")
    )
    monkeypatch.chdir(tmp_path)
    Path("stages.yaml").write_text(stages)
    Path("queries.jsonl").write_text('{"text": "red cat"}\n{"text": "old blue door"}\n')
    words = [*shlex.split(command.replace("\\\n", " "))[1:], "--distill-max-teacher-length", "8"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    figure = re.compile(r"\d[\d.]*")
    printed = [figure.sub("#", line) for line in done.stdout.splitlines()]
    for line in shown.splitlines():
        assert figure.sub("#", line) in printed
    assert Path("runs/staged/stage-1/model.safetensors").is_file()
    again = CliRunner().invoke(main, [*words, "--resume"])
    assert again.exit_code == 0, again.output
    assert again.stdout.splitlines()[-1] == "All stages have finished; there is nothing left to resume."
