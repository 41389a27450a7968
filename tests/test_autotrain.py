"""The guide's import paths lead here, and a second package of that name is warned of."""

from __future__ import annotations

import importlib
import warnings

import pytest

import trl_distill


def test_the_guides_import_paths():
    from autotrain.trainers.clm import train
    from autotrain.trainers.clm.params import LLMTrainingParams
    from autotrain.trainers.clm.train_clm_distill import PromptDistillationTrainer

    assert train is trl_distill.train
    assert LLMTrainingParams is trl_distill.LLMTrainingParams
    assert PromptDistillationTrainer is trl_distill.PromptDistillationTrainer


def test_another_package_of_that_name_is_warned_of(monkeypatch):
    import autotrain

    found = {"autotrain": ["trl-distill", "autotrain-advanced", "trl-distill"]}
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: found)
    with pytest.warns(UserWarning, match="also installed by autotrain-advanced; this is trl-distill's"):
        importlib.reload(autotrain)


def test_alone_it_is_silent(monkeypatch):
    import autotrain

    for found in ({}, {"autotrain": ["trl-distill"]}):
        monkeypatch.setattr("importlib.metadata.packages_distributions", lambda found=found: found)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            importlib.reload(autotrain)
        assert warned == []
