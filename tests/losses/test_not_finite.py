"""A token whose logits are NaN or +inf has a loss that is NaN, and no other token has, whichever side is at fault.

A run ends at such a loss: the cross-entropy says whether it is the student's, the divergence alone that it is the
teacher's.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from losses.problems import Case, make_case, mixed_loss, sampled_loss, student_of, topk_loss
from losses.test_sampled import drawn_of
from losses.test_topk import make_stored

from trl_distill.losses import LMHead, LossSettings, ModelSide, fused_distillation_loss
from trl_distill.losses.cross_tokenizer import cross_divergence
from trl_distill.losses.reference import Matched

BAD = 2  # the token at fault
IMPLEMENTATIONS = ("fused", "plain")


def student(case: Case) -> dict[str, torch.Tensor | None]:
    return {name: tensor for name, tensor in case.tensors.items() if name.startswith("student")}


def dense(case, **settings):
    return fused_distillation_loss(**case.tensors, targets=case.targets, **case.settings, **settings)


def topk(case, **settings):
    stored = make_stored(case.logits("teacher"), k=5, temperature=3.0)
    return topk_loss(**student(case), **stored, targets=case.targets, vocabulary=31, **case.settings, **settings)


def sampled(case, **settings):
    softened = (case.logits("teacher") / 3.0).softmax(-1)
    stored = drawn_of(softened.nan_to_num(1 / 31), 5)  # nothing can be drawn from NaN, and the sum of p log p has it
    stored["negentropy"] = (softened * softened.log()).sum(-1)
    return sampled_loss(**student(case), **stored, targets=case.targets, vocabulary=31, **case.settings, **settings)


def mixed(case, **settings):
    side = ModelSide(case.tensors["teacher_hidden"], LMHead(case.tensors["teacher_weight"], None))
    other = ModelSide(torch.ones_like(side.hidden), side.head)
    how = {"teachers": [side, other], "weights": torch.ones(len(case.targets), 2, dtype=torch.float64)}
    return mixed_loss(**student(case), **how, targets=case.targets, **case.settings, **settings)


WAYS = {
    **{kind: partial(dense, divergence=kind) for kind in ("forward_kl", "reverse_kl", "jsd")},
    "top-k": topk,
    "sampled": sampled,
    "a mixture": mixed,
}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_finite_shows_in_its_own_token_and_tells_the_sides_apart(way, side, value, impl):
    case = make_case()
    case.tensors[f"{side}_hidden"][BAD, 0] = value
    out = WAYS[way](case, impl=impl)
    bad = [token == BAD for token in range(len(case.targets))]
    assert out.ce.isnan().tolist() == (bad if side == "student" else [False] * len(bad))
    assert out.kl.isnan().tolist() == bad
    assert out.loss.isnan()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_it_shows_with_a_teacher_of_another_tokenizer_too(side, impl):
    case = make_case()
    case.tensors[f"{side}_hidden"][BAD, 0] = math.nan
    arguments = dict(case.tensors)
    mine = student_of(arguments)
    theirs = ModelSide(arguments["teacher_hidden"], LMHead(arguments["teacher_weight"], None))
    both, rest = torch.arange(20), torch.arange(20, 31)
    kl, _, total = cross_divergence(
        student=mine, teacher=theirs, matched=Matched(both, both, rest, rest),
        settings=LossSettings(alpha=0.7, temperature=3.0, impl=impl),
    )  # fmt: skip
    assert kl.isnan().tolist() == [token == BAD for token in range(len(case.targets))]
    assert total.isnan()
