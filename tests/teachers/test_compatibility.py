"""The table of what each feature needs of a teacher."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from trl_distill.errors import ParamsError, TeacherError, UsageError
from trl_distill.teachers.base import Capabilities
from trl_distill.teachers.compatibility import CHAT_TEMPLATE, GAPS, REQUIREMENTS, UNSEEN, require, unmet

LOCAL = Capabilities()
STORE = Capabilities(scores_unseen=False, scores_gaps=False, writes=False)
SERVER = Capabilities(
    reads="text", dense=False, scores_unseen=False, scores_gaps=False, renders=False, same_tokenizer=False
)
OTHER_TOKENIZER = Capabilities(dense=False, scores_unseen=False, scores_gaps=False, same_tokenizer=False)
LIST = Capabilities(dense=False, single=False, shardable=False)
STUDENT = Capabilities(of_student=True, shardable=False)
KINDS = {
    "local": LOCAL, "store": STORE, "server": SERVER, "other tokenizer": OTHER_TOKENIZER, "list": LIST,
    "student": STUDENT,
}  # fmt: skip


def teacher(can):
    return SimpleNamespace(name="a teacher", capabilities=can)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda one: f"{one.feature}: {one.sentence[-30:]}")
def test_each_requirement_is_met_by_a_local_model_and_not_by_every_teacher(requirement):
    assert requirement.needs(LOCAL)
    assert not all(requirement.needs(can) for can in KINDS.values())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("store", "distill_online cannot be used with teacher_model 'a teacher', a store, which has targets only for"),
        ("other tokenizer", "of another tokenizer, to which fresh completions are not matched; give a local model"),
        ("list", "a list of teachers; give a local model of the student's tokenizer"),
        ("server", "one that is asked for text before training"),
    ],
)
def test_the_reason_is_that_of_the_kind_of_teacher(kind, said):
    with pytest.raises(TeacherError, match=said):
        require(UNSEEN, teacher(KINDS[kind]), setting="distill_online")


def test_completions_with_gaps_name_who_cannot_score_them():
    found = {kind: unmet(GAPS, teacher(KINDS[kind])) for kind in ("local", "store", "other tokenizer", "server")}
    assert found["local"] is None
    assert [one.sentence.split()[1] for one in found.values() if one] == ["teacher_store", "compares", "server"]


def test_the_class_of_the_error_is_that_of_the_table():
    with pytest.raises(ParamsError, match="teacher_chat_template is 'chatml', but teacher_model 'a teacher' is sent"):
        require(CHAT_TEMPLATE, teacher(SERVER), setting="chatml")
    require(CHAT_TEMPLATE, teacher(replace(SERVER, renders=True)), setting="chatml")
    assert all(issubclass(requirement.error, UsageError) for requirement in REQUIREMENTS)
