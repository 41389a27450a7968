"""The divergence between vocabularies: its plain version, its gradients, and where it is the ordinary one or ULD's."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from checks import check_close, relative_error
from losses.problems import NoWaits
from torch.utils._python_dispatch import TorchDispatchMode

from trl_distill.losses import LMHead, LossSettings, ModelSide, distillation_loss_from_logits, divergence
from trl_distill.losses.checks import check_settings
from trl_distill.losses.cross_tokenizer import Compared, add_cross_divergence, cross_divergence
from trl_distill.losses.dense import dense_loss
from trl_distill.losses.reference import Matched, cross_divergence_from_logits
from trl_distill.losses.signals import CrossTokenizerSignal

KINDS = ["forward_kl", "reverse_kl", "jsd"]


def normal(*shape, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * spread


def make_side(tokens, rows, width, *, bias=False, seed=0, **more):
    weight = normal(rows, width, seed=seed + 1) * 3 / math.sqrt(width)
    head = LMHead(weight, normal(rows, seed=seed + 2) if bias else None, **more)
    return ModelSide(normal(tokens, width, seed=seed), head)


def make_matched(student_rows, teacher_rows, *, both, dropped=0, seed=0):
    """Return a matching of `both` tokens at random places, with as many rows dropped as padding on each side."""
    generator = torch.Generator().manual_seed(seed)
    mine, theirs = (
        torch.randperm(rows, generator=generator)[: rows - dropped] for rows in (student_rows, teacher_rows)
    )
    return Matched(mine[:both], theirs[:both], mine[both:], theirs[both:])


def plain(student, teacher, matched, **settings):
    return cross_divergence_from_logits(student.logits(), teacher.logits(), matched, **settings)


def test_cross_tokenizer_divergence_by_hand():
    # tokens: student a, b, x; teacher a, b, y, z; T = 1
    q, p = torch.tensor([[0.5, 0.25, 0.25]]).double(), torch.tensor([[0.2, 0.2, 0.4, 0.2]]).double()
    matched = Matched(*(torch.tensor(ids) for ids in ([0, 1], [0, 1], [2], [2, 3])))
    shared = 0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))
    found = cross_divergence_from_logits(q.log(), p.log(), matched, temperature=1.0)
    assert found.item() == pytest.approx(0.4 * shared + abs(0.25 - 0.4) + 0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_tokens_matched_it_is_the_ordinary_divergence(kind):
    z, w, order = normal(5, 9, seed=1, spread=3), normal(5, 9, seed=2, spread=3), torch.randperm(9)
    nothing = torch.empty(0, dtype=torch.long)
    matched = Matched(order, torch.arange(9), nothing, nothing)
    found = cross_divergence_from_logits(z, w, matched, temperature=2.0, divergence=kind)
    torch.testing.assert_close(found, divergence(z[:, order], w, temperature=2.0, kind=kind), rtol=1e-13, atol=1e-14)


def test_with_none_matched_it_is_the_distance_of_sorted_probabilities():
    z, w, nothing = normal(5, 7, seed=1, spread=3), normal(5, 9, seed=2, spread=3), torch.empty(0, dtype=torch.long)
    found = cross_divergence_from_logits(
        z, w, Matched(nothing, nothing, torch.arange(7), torch.arange(9)), temperature=1.0
    )  # fmt: skip
    mine = torch.nn.functional.pad(z.softmax(1).sort(1).values, (2, 0))
    torch.testing.assert_close(found, (mine - w.softmax(1).sort(1).values).abs().sum(1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence_is_0_for_equal_distributions_and_positive_otherwise(kind):
    matched = Matched(*(torch.tensor(ids) for ids in ([0, 1, 2], [2, 0, 1], [3, 4], [4, 3, 5])))
    teacher = normal(6, 6, seed=3, spread=2)
    teacher[:, 5] = -torch.inf
    same = torch.stack([teacher[:, k] for k in (2, 0, 1, 3, 4)], 1)
    for impl in ("plain", "fused"):
        mine, theirs = (ModelSide(z.clamp(min=-900), LMHead(torch.eye(z.shape[1]).double())) for z in (same, teacher))
        others = replace(mine, hidden=mine.hidden.flip(1))
        how = {"teacher": theirs, "matched": matched, "settings": LossSettings(1.0, 1.5, kind, impl=impl)}
        assert cross_divergence(student=mine, **how)[0].abs().max() < 1e-14
        assert (cross_divergence(student=others, **how)[0] > 0).all()


CASES = {
    "some matched": {},
    "bias, softcap and scale": {"bias": True, "softcap": 5.0, "scale": 0.6},
    "none matched": {"both": 0},
    "all of the student's matched": {"student": 17, "both": 17},
    "all of the teacher's matched": {"teacher": 17, "both": 17},
    "all matched": {"student": 17, "teacher": 17, "both": 17},
    "padded embeddings": {"dropped": 4},
    "one position": {"tokens": 1},
    "no position": {"tokens": 0},
}


def make_case(*, tokens=11, student=23, teacher=31, both=17, dropped=0, **head):
    sides = make_side(tokens, student, 8, **head), make_side(tokens, teacher, 12, seed=9, **head)
    return *sides, make_matched(student, teacher, both=both, dropped=dropped)


def with_tensors(side, hidden, weight, bias):
    return ModelSide(hidden, replace(side.head, weight=weight, bias=bias))


def own(side):
    return with_tensors(side, *(None if t is None else t.clone().requires_grad_() for t in side.tensors))


def gradients(side):
    return dict(zip(("hidden", "weight", "bias"), (None if t is None else t.grad for t in side.tensors), strict=True))


@pytest.mark.parametrize(("name", "kind"), list(itertools.product(CASES, KINDS)))
def test_cross_tokenizer_values_and_gradients_are_the_plain_versions(name, kind):
    student, teacher, matched = make_case(**CASES[name])
    expected, found = own(student), own(student)
    values = plain(expected, teacher, matched, temperature=2.5, divergence=kind, jsd_beta=0.3)
    values.sum().backward()
    for tile_bytes in (None, 1, 6 * 8 * 54 * 3):
        found = own(student)
        settings = LossSettings(1.0, 2.5, kind, 0.3, tile_bytes=tile_bytes)
        kl, _, total = cross_divergence(student=found, teacher=own(teacher), matched=matched, settings=settings)
        (0.5 * total).backward()
        check_close({"kl": kl, "total": 2 * total}, {"kl": values, "total": 2 * values.sum()}, 1e-12)
        half = {k: None if g is None else g / 2 for k, g in gradients(expected).items()}
        check_close(gradients(found), half, 1e-12)


def sum_of(student, teacher, matched, **settings):
    """Return the sum of the divergence at T = 2."""
    how = LossSettings(1.0, 2.0, **settings)
    return cross_divergence(student=student, teacher=teacher, matched=matched, settings=how)[2]


def test_gradcheck_of_the_cross_tokenizer_divergence():
    student, teacher, matched = make_case(tokens=3, student=9, teacher=7, both=5, bias=True, softcap=4.0)
    student = own(student)

    def total(*tensors):
        return sum_of(with_tensors(student, *tensors), teacher, matched)

    assert torch.autograd.gradcheck(total, student.tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_as_exact_as_the_plain_version(dtype):
    student, teacher, matched = make_case(tokens=40)
    exact = own(student)
    plain(exact, teacher, matched, temperature=2.0).sum().backward()

    def error(impl):
        low, other = (
            ModelSide(side.hidden.to(dtype), LMHead(side.head.weight.to(dtype))) for side in (student, teacher)
        )
        low = own(low)
        sum_of(low, other, matched, impl=impl).backward()
        right = gradients(exact)
        return max(relative_error(gradients(low)[name], right[name]) for name in ("hidden", "weight"))

    assert error("fused") <= max(2 * error("plain"), 1e-5)


def test_a_head_without_gradient_gets_none():
    student, teacher, matched = make_case()
    hidden = student.hidden.clone().requires_grad_()
    sum_of(replace(student, hidden=hidden), teacher, matched).backward()
    assert hidden.grad.norm() > 0
    assert student.head.weight.grad is None
    assert not sum_of(student, teacher, matched).requires_grad


@pytest.mark.parametrize("impl", ["plain", "fused"])
@pytest.mark.parametrize("kind", KINDS)
def test_of_one_vocabulary_the_whole_loss_is_the_ordinary_one(impl, kind):
    student, teacher, _ = make_case(tokens=11, student=23, teacher=23)
    targets = torch.randint(23, (11,), generator=torch.Generator().manual_seed(1))
    order, nothing = torch.arange(23), torch.empty(0, dtype=torch.long)
    ordinary, crossed = own(student), own(student)
    expected = distillation_loss_from_logits(
        ordinary.logits(), teacher.logits(), targets, alpha=0.7, temperature=3.0, divergence=kind, jsd_beta=0.5
    )
    settings = LossSettings(0.7, 3.0, kind, impl=impl)
    ce = dense_loss(crossed, None, targets, replace(settings, alpha=0.0))
    parts = [  # every position once, in two ways that come to the same
        Compared(torch.arange(0, 11, 2), torch.arange(6), Matched(order, order, nothing, nothing)),
        Compared(torch.arange(1, 11, 2), torch.arange(6, 11), Matched(order.flip(0), order.flip(0), nothing, nothing)),
    ]
    other = replace(teacher, hidden=torch.cat([teacher.hidden[0::2], teacher.hidden[1::2]]))
    found = add_cross_divergence(ce, student=crossed, teacher=other, compared=parts, settings=settings)
    check_close(found._asdict(), expected._asdict(), 1e-12)
    expected.loss.backward()
    found.loss.backward()
    check_close(gradients(crossed), gradients(ordinary), 1e-12)


def test_sides_of_different_length_and_unknown_settings_are_refused():
    student, teacher, matched = make_case()
    with pytest.raises(ValueError, match="the student has 11 positions and the teacher 3"):
        sum_of(student, teacher.at(torch.arange(3)), matched)
    with pytest.raises(ValueError, match="divergence 'l2' is unknown"):
        check_settings(LossSettings(0.5, 2.0, "l2"))
    with pytest.raises(ValueError, match="impl 'fast' is unknown"):
        check_settings(LossSettings(0.5, 2.0, impl="fast"))


def test_the_logits_of_all_positions_are_never_held():
    student, teacher, matched = make_case(tokens=256, student=997, teacher=1499, both=600)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(
                [largest, *(t.numel() for t in (out if isinstance(out, tuple) else (out,)) if hasattr(t, "numel"))]
            )
            return out

    tile_bytes = 2 * 2**20
    with Watch():
        sum_of(own(student), teacher, matched, tile_bytes=tile_bytes).backward()
    assert largest * 8 <= tile_bytes / 4 < 256 * 997 * 8 / 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_comparison_waits_for_no_gpu(kind, monkeypatch):
    """But for the cross-entropy, which the kernels of a GPU compute; `test_gpu` has those."""
    student, teacher, matched = make_case(tokens=11)
    labels, settings = torch.arange(11), LossSettings(0.7, 2.0, kind)
    ce = dense_loss(student, None, labels, replace(settings, alpha=0.0))
    monkeypatch.setattr("trl_distill.losses.signals.cross_tokenizer.dense_loss", lambda *_: ce)
    kinds = np.arange(11) % 3
    signal = CrossTokenizerSignal(teacher.hidden[kinds > 0], teacher.head, kinds, {1: matched, 2: matched})
    found = own(student)
    with NoWaits():
        loss = signal.loss(found, labels, settings).loss
        loss.backward()
    assert found.head.weight.grad.norm() > 0
