"""The guide's import paths lead here, and a second package of that name is warned of."""

from __future__ import annotations

import importlib
import warnings

import pytest

import trl_distill


def test_autotrain_has_the_import_paths_of_the_guide():
    from autotrain.trainers.clm import (
        evaluate,
        evaluate_distillation,
        prepare_distillation_data,
        queries_from_prompt,
        train,
        tune,
    )
    from autotrain.trainers.clm.params import LLMTrainingParams
    from autotrain.trainers.clm.train_clm_distill import PromptDistillationTrainer

    assert train is trl_distill.train
    assert tune is trl_distill.tune
    assert evaluate is trl_distill.evaluate
    assert evaluate_distillation is trl_distill.evaluate_distillation
    assert queries_from_prompt is trl_distill.queries_from_prompt
    assert prepare_distillation_data is trl_distill.prepare_distillation_data
    assert LLMTrainingParams is trl_distill.LLMTrainingParams
    assert PromptDistillationTrainer is trl_distill.PromptDistillationTrainer


def test_importing_autotrain_warns_of_another_package_of_that_name(monkeypatch):
    import autotrain

    found = {"autotrain": ["trl-distill", "autotrain-advanced", "trl-distill"]}
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: found)
    with pytest.warns(UserWarning, match="also installed by autotrain-advanced; this is trl-distill's"):
        importlib.reload(autotrain)


def test_importing_autotrain_without_another_package_warns_of_nothing(monkeypatch):
    import autotrain

    for found in ({}, {"autotrain": ["trl-distill"]}):
        monkeypatch.setattr("importlib.metadata.packages_distributions", lambda found=found: found)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            importlib.reload(autotrain)
        assert warned == []
