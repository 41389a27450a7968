"""The loss against a mixture of teachers: the plain formula, its gradients, and where it is a single teacher's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from checks import check_close, relative_error
from losses.problems import TOKENS, mixed_loss

from trl_distill.losses import (
    LMHead,
    ModelSide,
    divergence,
    fused_distillation_loss,
    mixture_logits,
)

KINDS = ["forward_kl", "reverse_kl", "jsd"]
STUDENT = ("student_hidden", "student_weight", "student_bias")


def make_mixture(
    *,
    tokens: int = TOKENS,
    rows: int = 31,
    teachers: tuple[tuple[int, int], ...] = ((31, 12), (31, 5)),
    bias: bool = False,
    masked: float = 0.0,
    left_out: float = 0.0,
    spread: float = 3.0,
    teacher: dict[str, float] | None = None,
    **settings,
):
    """Return the student's tensors, the other arguments of the loss and the targets, in float64.

    Args:
        tokens: N.
        rows: V of the student.
        teachers: (V, H) of each.
        bias: Whether all heads have one.
        masked: Share of the tokens to leave out.
        left_out: Share of the tokens that the first teacher has no weight at.
        spread: Standard deviation of the logits.
        teacher: Softcap and scale of all teachers.
        **settings: Of the loss.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def head(v, h):
        return normal(tokens, h), normal(v, h) * spread / math.sqrt(h), normal(v) * spread if bias else None

    student = dict(zip(STUDENT, head(rows, 8), strict=True))
    sides = []
    for v, h in teachers:
        hidden, *parameters = head(v, h)
        sides.append(ModelSide(hidden, LMHead(*parameters, **(teacher or {}))))
    weights = torch.rand(tokens, len(teachers), generator=generator, dtype=torch.float64) + 0.1
    weights[torch.rand(tokens, generator=generator) < left_out, 0] = 0
    targets = torch.randint(rows, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < masked] = -100
    settings = {"alpha": 0.7, "temperature": 3.0, "teachers": sides, "weights": weights, **settings}
    return student, settings, targets


def run_mixture(student, targets, **settings):
    """Return the loss, and its gradients by name after `loss.backward()`."""
    own = {name: None if t is None else t.clone().requires_grad_() for name, t in student.items()}
    out = mixed_loss(**own, targets=targets, **settings)
    out.loss.backward()
    return out, {name: None if t is None else t.grad for name, t in own.items()}


CASES = {
    "two teachers of other widths": {},
    "one teacher": {"teachers": ((31, 12),)},
    "three teachers": {"teachers": ((31, 12), (31, 3), (31, 8))},
    "biases, softcaps and scales": {
        "bias": True, "student_softcap": 5.0, "student_scale": 0.6, "teacher": {"softcap": 4.0, "scale": 1.4},
    },
    "wider vocabularies": {"teachers": ((40, 12), (35, 5)), "bias": True},
    "fewer shared rows": {"teachers": ((40, 12), (35, 5)), "rows": 37, "vocabulary": 29},
    "a teacher that takes half of the rows": {"left_out": 0.5},
    "masked tokens": {"masked": 0.5, "left_out": 0.5},
    "all masked": {"masked": 1.1},
    "one token": {"tokens": 1},
    "no token": {"tokens": 0},
    "divergence only": {"alpha": 1.0},
    "a cold temperature": {"temperature": 0.5},
    "temperature 1": {"temperature": 1.0},
    "an odd temperature": {"temperature": 2.5},
    "a hot temperature": {"temperature": 10.0},
    "wide logits": {"spread": 60.0},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile_bytes", [None, 6000, 1], ids=["one tile", "small tiles", "smallest tiles"])
@pytest.mark.parametrize("name", CASES)
def test_mixture_values_and_gradients_are_the_plain_versions(name, tile_bytes, kind):
    student, settings, targets = make_mixture(divergence=kind, **CASES[name])
    expected, right = run_mixture(student, targets, impl="plain", **settings)
    out, gradients = run_mixture(student, targets, tile_bytes=tile_bytes, **settings)
    check_close(out._asdict(), expected._asdict(), 1e-12)
    check_close(gradients, right, 1e-12)


def test_blocks_of_the_normalisers_pass_change_nothing(monkeypatch):
    student, settings, targets = make_mixture()
    whole = run_mixture(student, targets, **settings)[0]
    monkeypatch.setattr("trl_distill.losses.fused.projection.BLOCK", 7)
    check_close(run_mixture(student, targets, **settings)[0]._asdict(), whole._asdict(), 1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_mixture_is_of_the_softened_distributions(temperature):
    _, settings, _ = make_mixture(tokens=5)
    logits = [side.logits() for side in settings["teachers"]]
    weights = settings["weights"] / settings["weights"].sum(1, keepdim=True)
    p = sum(w[:, None] * (z / temperature).softmax(-1) for w, z in zip(weights.unbind(1), logits, strict=True))
    mixed = mixture_logits(logits, settings["weights"], temperature=temperature, vocabulary=31)
    torch.testing.assert_close((mixed / temperature).softmax(-1), p)
    student, more, targets = make_mixture(tokens=5, temperature=temperature, alpha=1.0)
    kl = run_mixture(student, targets, **more)[0].kl
    own = LMHead(student["student_weight"]).logits(student["student_hidden"])
    torch.testing.assert_close(kl, divergence(own, temperature * p.log(), temperature=temperature))


@pytest.mark.parametrize("kind", KINDS)
def test_one_teacher_twice_is_that_teacher(kind):
    student, settings, targets = make_mixture(divergence=kind)
    one = settings["teachers"][0]
    settings["teachers"] = [one, one]
    out, gradients = run_mixture(student, targets, **settings)
    own = {name: None if t is None else t.clone().requires_grad_() for name, t in student.items()}
    alone = fused_distillation_loss(
        **own, teacher_hidden=one.hidden, teacher_weight=one.head.weight, targets=targets, alpha=0.7, temperature=3.0,
        divergence=kind,
    )  # fmt: skip
    alone.loss.backward()
    check_close(out._asdict(), alone._asdict(), 1e-12)
    check_close(gradients, {name: None if t is None else t.grad for name, t in own.items()}, 1e-12)


def test_a_teacher_of_weight_0_changes_nothing():
    student, settings, targets = make_mixture(left_out=0.5)
    first, second = settings["teachers"]
    silent = settings["weights"][:, 0] == 0
    assert 0 < silent.sum() < len(silent)
    other = replace(first, hidden=torch.where(silent[:, None], 0.0, first.hidden))
    out, gradients = run_mixture(student, targets, **settings)
    changed, same = run_mixture(student, targets, **{**settings, "teachers": [other, second]})
    check_close(changed._asdict(), out._asdict(), 1e-14)
    check_close(same, gradients, 1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_a_mixture(kind):
    student, settings, targets = make_mixture(
        tokens=4, rows=9, teachers=((8, 3), (9, 5)), bias=True, left_out=0.4, spread=1.0, divergence=kind
    )
    own = [student[name].requires_grad_() for name in STUDENT]

    def loss(*tensors):
        out = mixed_loss(**dict(zip(STUDENT, tensors, strict=True)), targets=targets, tile_bytes=2000, **settings)
        return out.loss, out.kl, out.ce

    assert torch.autograd.gradcheck(loss, own, nondet_tol=1e-12, check_undefined_grad=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_in_float32_is_as_exact_as_its_inputs(kind):
    student, settings, targets = make_mixture(divergence=kind, left_out=0.3)
    expected, right = run_mixture(student, targets, impl="plain", **settings)
    narrow = {name: None if t is None else t.float() for name, t in student.items()}
    settings["teachers"] = [
        ModelSide(side.hidden.float(), LMHead(side.head.weight.float())) for side in settings["teachers"]
    ]
    settings["weights"] = settings["weights"].float()
    out, gradients = run_mixture(narrow, targets, tile_bytes=6000, **settings)
    assert relative_error(out.loss, expected.loss) <= 1e-5
    for part, gradient in gradients.items():
        if gradient is not None:
            assert relative_error(gradient, right[part]) <= 1e-5, part


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"teachers": []}, "at least one teacher"),
        ({"alpha": 0.0}, "an alpha above 0"),
        ({"weights": torch.ones(23, 3)}, r"weights \(23, 3\) do not fit 23 tokens and 2 teachers"),
        ({"weights": torch.zeros(23, 2)}, "one above 0 at every token"),
        ({"weights": -torch.ones(23, 2)}, "at least 0"),
        ({"vocabulary": 40}, "vocabulary 40 must lie between"),
    ],
)
def test_invalid_arguments_are_refused(change, sentence):
    student, settings, targets = make_mixture()
    with pytest.raises(ValueError, match=sentence):
        run_mixture(student, targets, **{**settings, **change})
