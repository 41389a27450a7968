"""The plain formula, held against numbers worked out by hand and against TRL's own divergence."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from trl_distill.losses import LMHead, distillation_loss_from_logits, divergence

P, Q = torch.tensor([0.5, 0.25, 0.25]).double(), torch.tensor([0.25, 0.25, 0.5]).double()
KINDS = ["forward_kl", "reverse_kl", "jsd"]


def test_forward_kl_by_hand():
    # sum p log(p / q) = 0.5 log 2 + 0 + 0.25 log 0.5
    assert divergence(Q.log(), P.log(), temperature=1.0).item() == pytest.approx(0.25 * math.log(2))


def test_reverse_kl_by_hand():
    p, q = torch.tensor([0.5, 0.5]).double(), torch.tensor([0.9, 0.1]).double()
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert divergence(q.log(), p.log(), temperature=1.0, kind="reverse_kl") == pytest.approx(expected)


def test_jsd_by_hand():
    p, q, beta = torch.tensor([0.8, 0.2]).double(), torch.tensor([0.4, 0.6]).double(), 0.25
    m = [0.25 * 0.8 + 0.75 * 0.4, 0.25 * 0.2 + 0.75 * 0.6]
    to_p = 0.8 * math.log(0.8 / m[0]) + 0.2 * math.log(0.2 / m[1])
    to_q = 0.4 * math.log(0.4 / m[0]) + 0.6 * math.log(0.6 / m[1])
    found = divergence(q.log(), p.log(), temperature=1.0, kind="jsd", jsd_beta=beta)
    assert found == pytest.approx(beta * to_p + (1 - beta) * to_q)


@pytest.mark.parametrize("kind", KINDS)
def test_the_temperature_divides_the_logits(kind):
    z, w = torch.randn(4, 7).double(), torch.randn(4, 7).double()
    torch.testing.assert_close(
        divergence(z, w, temperature=2.5, kind=kind), divergence(z / 2.5, w / 2.5, temperature=1.0, kind=kind)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence_is_0_for_equal_logits_and_positive_otherwise(kind):
    z = torch.randn(5, 9).double()
    assert divergence(z, z + 1.5, temperature=2.0, kind=kind).abs().max() < 1e-15
    assert (divergence(z, z.flip(1), temperature=2.0, kind=kind) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_jsd_is_trls_generalized_jsd(kind, beta):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # trl.experimental announces itself
        from trl.experimental.gkd import GKDTrainer

    z, w = torch.randn(2, 3, 11).double(), torch.randn(2, 3, 11).double()
    theirs = GKDTrainer.generalized_jsd_loss(
        z, w, beta={"forward_kl": 0, "reverse_kl": 1, "jsd": beta}[kind], temperature=1.7, reduction="none"
    )
    torch.testing.assert_close(divergence(z, w, temperature=1.7, kind=kind, jsd_beta=beta), theirs.sum(-1))


def test_the_loss_weighs_both_terms_and_the_temperature_squared():
    z, w, targets = torch.randn(6, 9).double(), torch.randn(6, 9).double(), torch.arange(6)
    out = distillation_loss_from_logits(z, w, targets, alpha=0.25, temperature=3.0)
    ce = torch.nn.functional.cross_entropy(z, targets, reduction="none")
    kl = divergence(z, w, temperature=3.0)
    torch.testing.assert_close(out.ce, ce)
    torch.testing.assert_close(out.kl, kl)
    torch.testing.assert_close(out.loss, (0.25 * 9 * kl + 0.75 * ce).sum())


def test_entropy_agreement_and_accuracy():
    student = torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]])
    teacher = torch.tensor([[9.0, 0, 0], [0, 0, 9.0], [0, 0, 9.0]])
    out = distillation_loss_from_logits(student, teacher, torch.tensor([0, 1, -100]), alpha=0.5, temperature=1.0)
    assert (out.top1_agreement, out.top1_correct) == (1, 2)
    p = student.softmax(-1)[:2]
    torch.testing.assert_close(out.entropy, -(p * p.log()).sum())
    assert out.ce[2] == out.kl[2] == 0


def test_a_head_applies_bias_scale_and_softcap():
    hidden, weight, bias = torch.randn(4, 3), torch.randn(5, 3), torch.randn(5)
    plain = hidden @ weight.T + bias
    torch.testing.assert_close(LMHead(weight, bias).logits(hidden), plain)
    capped = LMHead(weight, bias, softcap=2.0, scale=0.5).logits(hidden)
    torch.testing.assert_close(capped, 2.0 * torch.tanh(0.5 * plain / 2.0))
