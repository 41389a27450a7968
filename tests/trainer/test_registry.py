"""Trainers by name: ours, registered ones, and those of other packages."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from trl_distill.errors import ParamsError
from trl_distill.trainer import registry
from trl_distill.trainer.registry import get_trainer, names_of_trainers, register_trainer


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setattr(registry, "_trainers", dict(registry._trainers))


@pytest.fixture
def packages(monkeypatch):
    """Pretend that an installed package brings two trainers."""
    entries = [
        EntryPoint("theirs", "collections:OrderedDict", registry.ENTRY_POINTS),
        EntryPoint("broken", "no_such_module:Trainer", registry.ENTRY_POINTS),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == registry.ENTRY_POINTS else [])


def test_distillation_and_sft_with_the_flag_are_the_same_trainer():
    from trl import SFTTrainer

    from trl_distill.trainer.trainer import DistillationSFTTrainer

    assert get_trainer("distillation") is DistillationSFTTrainer
    assert get_trainer("distillation", use_distillation=True) is DistillationSFTTrainer
    assert get_trainer("sft", use_distillation=True) is DistillationSFTTrainer
    assert get_trainer("sft") is SFTTrainer


@pytest.mark.parametrize("target", [dict, "builtins:dict"])
def test_a_class_or_its_name_may_be_registered(target):
    register_trainer("mine", target)
    assert get_trainer("mine") is dict
    assert get_trainer("mine", use_distillation=True) is dict
    assert "mine" in names_of_trainers()


def test_a_trainer_may_be_registered_for_distillation_only():
    register_trainer("mine", dict, use_distillation=True)
    assert get_trainer("mine", use_distillation=True) is dict
    with pytest.raises(ParamsError, match="'mine' is registered only for runs with use_distillation"):
        get_trainer("mine")


def test_naming_a_target_does_not_import_it():
    register_trainer("mine", "no_such_module:Trainer")
    with pytest.raises(ParamsError, match="'no_such_module:Trainer', which cannot be imported"):
        get_trainer("mine")


def test_packages_bring_trainers_by_entry_point(packages):
    from collections import OrderedDict

    assert get_trainer("theirs") is OrderedDict
    assert get_trainer("theirs", use_distillation=True) is OrderedDict
    assert names_of_trainers() == ("broken", "distillation", "sft", "theirs")
    with pytest.raises(ParamsError, match=r"'broken'.*cannot be imported"):
        get_trainer("broken")


def test_a_registered_trainer_takes_precedence_over_an_entry_point(packages):
    register_trainer("theirs", dict)
    assert get_trainer("theirs") is dict


def test_an_unknown_trainer_is_an_error_with_the_nearest_name():
    with pytest.raises(ParamsError) as error:
        get_trainer("distilation")
    assert "Did you mean 'distillation'?" in str(error.value)
    assert "Registered are 'distillation', 'sft'." in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("target", ["", "module", "module:", ":Class", "module.Class"])
def test_a_target_of_another_form_is_refused_when_it_is_registered(target):
    with pytest.raises(ParamsError, match="give a class or 'module:Class'"):
        register_trainer("mine", target)


def test_a_target_that_is_no_class_is_refused():
    register_trainer("mine", "os:getcwd")
    with pytest.raises(ParamsError, match="is not a class"):
        get_trainer("mine")
