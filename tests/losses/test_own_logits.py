"""Every loss takes logits in the place of hidden states and a head: same values, and autograd goes on from there."""

from __future__ import annotations

import pytest
import torch
from checks import check_close
from losses.problems import TOKENS

from trl_distill.losses import Matched, fused_distillation_loss, sparse_loss
from trl_distill.losses.dense import dense_loss
from trl_distill.losses.lm_head import LOGITS, LMHead, ModelSide
from trl_distill.losses.signals import (
    CrossTokenizerSignal,
    DenseSignal,
    LossSettings,
    MixtureSignal,
    PerRowSignal,
    RetainedSignal,
    SampledSignal,
    SampledTokens,
    TopKSignal,
    TopKTokens,
    cross_entropy,
)

N, V = TOKENS, 31
T = 2.0


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HIDDEN, WEIGHT = normal(N, 6), normal(V, 6, seed=1)
LABELS = torch.randint(V, (N,), generator=torch.Generator().manual_seed(2))
LOG_P = (2 * normal(N, V, seed=3)).log_softmax(-1)


def teacher(*, own, seed=4, rows=V, tokens=N):
    """Return a teacher, by its head or by its logits."""
    hidden, weight = normal(tokens, 5, seed=seed), 2 * normal(rows, 5, seed=seed + 1)
    return DenseSignal(hidden @ weight.T, LOGITS) if own else DenseSignal(hidden, LMHead(weight))


def topk(partial=False):
    top = LOG_P.topk(4)
    ids = top.indices.masked_fill(torch.arange(N)[:, None] % 5 == 0, -1) if partial else top.indices
    return TopKSignal(ids, top.values, {T: torch.logsumexp(LOG_P / T, 1)}, V)


def sampled():
    p = (LOG_P / T).softmax(-1)
    top = p.topk(5)
    return SampledSignal(
        {T: SampledTokens(top.indices, top.values / top.values.sum(1, keepdim=True), (p * p.log()).sum(1))}, V
    )


def mixture(own):
    weights = torch.rand(N, 2, generator=torch.Generator().manual_seed(7)) + 0.1
    return MixtureSignal([teacher(own=own), teacher(own=not own, seed=8, rows=V + 3)], weights, V)


def cross(own):
    kinds = (torch.arange(N) % 3 > 0).long()
    side = teacher(own=own, rows=40, tokens=int(kinds.sum()))
    matched = Matched(
        torch.arange(20), torch.arange(20) + 5, torch.arange(20, V), torch.tensor([*range(5), *range(25, 40)])
    )
    return CrossTokenizerSignal(side.hidden, side.head, kinds.numpy(), {1: matched})


def grouped(own):
    first, second, last = torch.arange(N).tensor_split(3)
    retained = RetainedSignal(teacher(own=own, tokens=len(last)))
    return PerRowSignal([(first, teacher(own=own, tokens=len(first))), (second, None), (last, retained)])


KINDS = {
    "hidden": lambda: teacher(own=False), "logits": lambda: teacher(own=True), "topk": topk,
    "logged by a server": lambda: topk(partial=True), "sample": sampled, "mixture": lambda: mixture(True),
    "another mixture": lambda: mixture(False), "cross": lambda: cross(False), "cross from logits": lambda: cross(True),
    "several and retained": lambda: grouped(False), "several from logits": lambda: grouped(True), "none": lambda: None,
}  # fmt: skip


def run(targets, *, own, settings):
    """Return a loss's figures, and the gradients of the student's hidden states and weight."""
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    side = ModelSide(hidden @ weight.T, LOGITS) if own else ModelSide(hidden, LMHead(weight))
    out = cross_entropy(side, LABELS, settings) if targets is None else targets.loss(side, LABELS, settings)
    (3 * out.loss).backward()
    return out, {"hidden": hidden.grad, "weight": weight.grad}


@pytest.mark.parametrize("impl", ["fused", "plain"])
@pytest.mark.parametrize("alpha", [0.6, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_students_logits_are_as_good_as_its_head(kind, alpha, impl):
    settings = LossSettings(alpha, T, impl=impl)
    expected, right = run(KINDS[kind](), own=False, settings=settings)
    found, gradients = run(KINDS[kind](), own=True, settings=settings)
    for name in found._fields:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-12)
    check_close(gradients, right, 1e-12)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("temperature", [1.0, 3.25])
def test_a_teachers_logits_are_as_good_as_its_head(divergence, temperature):
    settings = LossSettings(0.6, temperature, divergence, jsd_beta=0.3)
    expected, right = run(teacher(own=False), own=True, settings=settings)
    found, gradients = run(teacher(own=True), own=True, settings=settings)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=1e-12)
    check_close(gradients, right, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("tile_bytes", [2_000, 20_000, None])
def test_the_size_of_a_tile_changes_nothing(tile_bytes, dtype):
    logits, theirs = ((HIDDEN @ WEIGHT.T).to(dtype), teacher(own=True).hidden.to(dtype))
    known = topk()
    results = []
    for size in (tile_bytes, 10**8):
        for loss in (
            lambda own, size: fused_distillation_loss(
                own, None, theirs, None, LABELS, alpha=0.6, temperature=T, tile_bytes=size
            ),
            lambda own, size: sparse_loss(
                ModelSide(own, LOGITS), LABELS,
                TopKTokens(known.token_ids, known.log_probs, known.log_normalizers[T]),
                LossSettings(0.6, T, tile_bytes=size), V,
            ),
        ):  # fmt: skip
            own = logits.clone().requires_grad_()
            out = loss(own, size)
            out.loss.backward()
            results.append((out.loss.detach(), own.grad))
    for (loss, gradient), (expected, right) in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(loss, expected)
        assert gradient.dtype == dtype
        check_close({"logits": gradient}, {"logits": right}, 1e-12 if dtype == torch.float64 else 1e-3)


def test_a_bias_is_added_to_given_logits_by_both_implementations():
    sides = [ModelSide(normal(N, V, seed=seed), LMHead(None, normal(V, seed=seed + 9))) for seed in (1, 2)]
    added = [ModelSide(side.hidden + side.head.bias, LOGITS) for side in sides]
    expected = dense_loss(*added, LABELS, LossSettings(0.6, T)).loss
    for impl in ("fused", "plain"):
        torch.testing.assert_close(dense_loss(*sides, LABELS, LossSettings(0.6, T, impl=impl)).loss, expected)


def test_a_loss_of_no_logits_is_a_differentiable_zero():
    own = torch.zeros(0, V, requires_grad=True)
    out = fused_distillation_loss(
        own, None, torch.zeros(0, V), None, torch.zeros(0, dtype=torch.long), alpha=0.5, temperature=T
    )
    out.loss.backward()
    assert out.loss == 0
    assert own.grad.shape == (0, V)


def test_rows_that_only_pad_a_head_are_no_logits():
    """As Inkling's: the matrix has more rows than the logits."""
    targets = teacher(own=False)
    padded = ModelSide(HIDDEN, LMHead(torch.cat([WEIGHT, normal(5, 6, seed=9)]), rows=V))
    settings = LossSettings(0.6, T)
    expected = targets.loss(ModelSide(HIDDEN, LMHead(WEIGHT)), LABELS, settings)
    torch.testing.assert_close(targets.loss(padded, LABELS, settings).loss, expected.loss)
