"""Trackers: several at once, and named after the project unless the run or the environment says otherwise."""

from __future__ import annotations

import os

import pytest

from trl_distill import LLMTrainingParams, ParamsError, run
from trl_distill.config.sft_config import from_params
from trl_distill.runs.trackers import PROJECT_VARIABLES, check_trackers, tracked


@pytest.mark.parametrize(
    ("given", "trackers"),
    [
        ("none", []),
        ("tensorboard", ["tensorboard"]),
        ("tensorboard, wandb", ["tensorboard", "wandb"]),
        (["trackio", "mlflow"], ["trackio", "mlflow"]),
        ("all", ["all"]),
    ],
)
def test_several_trackers_may_be_named(given, trackers):
    assert LLMTrainingParams(log=given).trackers == trackers


def test_runs_and_projects_are_named_after_the_project_folder(tmp_path):
    params = LLMTrainingParams(model="x", project_name=str(tmp_path / "shop"), log="none")
    args = from_params(params)
    assert (args.report_to, args.run_name, args.project) == ([], "shop", "shop")
    params.run_name, params.log_project = "third", "desk"
    args = from_params(params)
    assert (args.run_name, args.project) == ("third", "desk")


def test_a_project_is_named_in_the_environment_of_the_run_alone(tmp_path, monkeypatch):
    for variable in PROJECT_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    before = dict(os.environ)
    with tracked(LLMTrainingParams(), tmp_path / "shop"):
        assert os.environ["WANDB_PROJECT"] == "mine"
        assert os.environ["MLFLOW_EXPERIMENT_NAME"] == "shop"
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "shop" / "tensorboard")
    with tracked(LLMTrainingParams(log_project="desk"), tmp_path / "shop"):
        assert {os.environ[variable] for variable in PROJECT_VARIABLES} == {"desk"}
    assert dict(os.environ) == before


def test_each_tracker_must_be_known_and_installed():
    with pytest.raises(
        ParamsError, match=r"log is 'tensorbord'; expected one of none, .*\. Did you mean 'tensorboard'\?$"
    ):
        check_trackers(LLMTrainingParams(log="none,tensorbord"))
    check_trackers(LLMTrainingParams(log="none"))
    check_trackers(LLMTrainingParams(log="all"))


def test_tensorboard_writes_into_the_project_and_restarts_with_overwrite(tiny_model_dir, tiny_teacher_dir, tmp_path):
    pytest.importorskip("tensorboard")
    params = LLMTrainingParams(
        model=str(tiny_model_dir), teacher_model=str(tiny_teacher_dir), project_name=str(tmp_path / "shop"),
        data_path=[{"text": w, "completion": "a b"} for w in "abcd"], max_steps=1, log="tensorboard", overwrite=True,
    )  # fmt: skip
    for _ in range(2):
        run(params)
        assert len(list((tmp_path / "shop" / "tensorboard").glob("events.*"))) == 1
