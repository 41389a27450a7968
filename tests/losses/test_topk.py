"""The loss against stored top-k targets: its plain version, its gradients, and where it is the full divergence."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from checks import check_close, relative_error
from losses.problems import topk_loss

from trl_distill.losses import DistillationLoss, LMHead, distillation_loss_from_logits

STUDENT = ("student_hidden", "student_weight", "student_bias")


def make_stored(logits: torch.Tensor, *, k: int, temperature: float) -> dict[str, torch.Tensor]:
    """Return what a store has of a teacher's logits [N, V], unrounded."""
    log_p = logits.log_softmax(-1)
    top = log_p.topk(k)
    normalizer = torch.logsumexp(log_p / temperature, -1)
    return {"token_ids": top.indices, "log_probs": top.values, "log_normalizer": normalizer}


def make_topk_case(
    *,
    k: int = 5,
    tokens: int = 23,
    rows: int = 31,
    vocabulary: int = 31,
    bias: bool = False,
    masked: float = 0.0,
    spread: float = 3.0,
    temperature: float = 3.0,
    fewer: float = 0.0,
    unknown: float = 0.0,
    **settings: Any,
) -> tuple[dict[str, torch.Tensor | None], torch.Tensor, dict[str, Any], torch.Tensor]:
    """Return the student's tensors, the teacher's logits, the other arguments and the targets, in float64.

    A share `fewer` of the stored tokens but the first is not there, nor is any of a share `unknown` of the rows.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    student = {
        "student_hidden": normal(tokens, 8),
        "student_weight": normal(rows, 8) * spread / math.sqrt(8),
        "student_bias": normal(rows) if bias else None,
    }
    teacher = normal(tokens, vocabulary) * spread
    targets = torch.randint(rows, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < masked] = -100
    stored = make_stored(teacher, k=k, temperature=temperature)
    gone = torch.rand(tokens, k, generator=generator) < fewer
    gone[:, :1] = False
    gone |= torch.rand(tokens, 1, generator=generator) < unknown
    stored["token_ids"] = stored["token_ids"].masked_fill(gone, -1)
    settings = {"alpha": 0.7, "vocabulary": vocabulary, "temperature": temperature, **settings}
    return student, teacher, {**stored, **settings}, targets


def run_topk(student, targets, **settings) -> tuple[DistillationLoss, dict[str, torch.Tensor | None]]:
    """Return the loss, and its gradients by name after `loss.backward()`."""
    own = {name: None if t is None else t.clone().requires_grad_() for name, t in student.items()}
    out = topk_loss(**own, targets=targets, **settings)
    out.loss.backward()
    return out, {name: None if t is None else t.grad for name, t in own.items()}


CASES = {
    "plain head": {},
    "one stored token": {"k": 1},
    "bias, softcap and scale": {"bias": True, "student_softcap": 5.0, "student_scale": 0.6},
    "a wider student's vocabulary": {"rows": 37, "vocabulary": 29, "bias": True},
    "masked tokens": {"masked": 0.5},
    "all masked": {"masked": 1.1},
    "one token": {"tokens": 1},
    "no token": {"tokens": 0},
    "divergence only": {"alpha": 1.0},
    "cross-entropy only": {"alpha": 0.0},
    "a cold temperature": {"temperature": 0.5},
    "temperature 1": {"temperature": 1.0},
    "an odd temperature": {"temperature": 2.5},
    "a hot temperature": {"temperature": 10.0},
    "wide logits": {"spread": 60.0},
    "every token stored": {"k": 31},
    "all tokens but one": {"k": 30},
    "fewer tokens than k": {"fewer": 0.4},
    "fewer tokens than the whole vocabulary": {"fewer": 0.1, "k": 31},
    "unknown tokens": {"unknown": 0.5, "masked": 0.2},
    "nothing but unknown tokens": {"unknown": 1.1},
    "unknown tokens, divergence only": {"unknown": 0.5, "alpha": 1.0, "temperature": 2.5},
}


@pytest.mark.parametrize("tile_bytes", [None, 6000, 1], ids=["one tile", "small tiles", "smallest tiles"])
@pytest.mark.parametrize("name", CASES)
def test_topk_values_and_gradients_are_the_plain_versions(name, tile_bytes):
    student, _, settings, targets = make_topk_case(**CASES[name])
    expected, right = run_topk(student, targets, impl="plain", **settings)
    out, gradients = run_topk(student, targets, tile_bytes=tile_bytes, **settings)
    check_close(out._asdict(), expected._asdict(), 1e-12)
    check_close(gradients, right, 1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 10.0])
def test_gradcheck_of_topk_targets(temperature):
    student, _, settings, targets = make_topk_case(
        tokens=4, rows=9, vocabulary=8, k=3, bias=True, temperature=temperature, spread=1.0
    )
    own = [student[name].requires_grad_() for name in STUDENT]

    def loss(*tensors):
        out = topk_loss(**dict(zip(STUDENT, tensors, strict=True)), targets=targets, tile_bytes=2000, **settings)
        return out.loss, out.kl, out.ce

    assert torch.autograd.gradcheck(loss, own, nondet_tol=1e-12, check_undefined_grad=False)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("impl", ["fused", "plain"])
def test_topk_divergence_with_every_token_is_the_full_divergence(impl, temperature):
    student, teacher, settings, targets = make_topk_case(k=31, rows=37, temperature=temperature, masked=0.2)
    out, gradients = run_topk(student, targets, impl=impl, **settings)
    own = {name: None if t is None else t.clone().requires_grad_() for name, t in student.items()}
    logits = LMHead(own["student_weight"]).logits(own["student_hidden"])
    full = distillation_loss_from_logits(logits, teacher, targets, alpha=0.7, temperature=temperature)
    full.loss.backward()
    check_close(out._asdict(), full._asdict(), 1e-12)
    check_close(gradients, {name: None if t is None else t.grad for name, t in own.items()}, 1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 10.0])
def test_the_topk_divergence_lies_between_0_and_the_full_one_and_rises_with_k(temperature):
    values = []
    for k in (1, 2, 5, 20, 31):
        student, _, settings, targets = make_topk_case(k=k, temperature=temperature)
        values.append(run_topk(student, targets, **settings)[0].kl)
        assert (values[-1] >= -1e-14).all()
    for fewer, more in itertools.pairwise(values):
        assert (fewer <= more + 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_rounded_log_probabilities_never_make_the_divergence_negative(dtype):
    student, _, settings, targets = make_topk_case(k=30, tokens=40, alpha=1.0)
    logits = LMHead(student["student_weight"]).logits(student["student_hidden"])
    stored = make_stored(logits, k=30, temperature=3.0)  # a teacher that is the student: the divergence is 0
    rounded = {**settings, **stored, "log_probs": stored["log_probs"].to(dtype)}
    kl = run_topk(student, targets, **rounded)[0].kl
    assert (kl >= -1e-15).all()
    assert kl.max() <= 1e-4


def test_the_topk_gradient_is_q_minus_p_with_the_tail_scaled_as_a_whole():
    student, teacher, settings, targets = make_topk_case(alpha=1.0, temperature=2.0)
    bias = torch.zeros(31, dtype=torch.float64)
    out, gradients = run_topk({**student, "student_bias": bias}, targets, **settings)
    q = (LMHead(student["student_weight"]).logits(student["student_hidden"]) / 2).softmax(-1)
    p = (teacher / 2).softmax(-1)
    stored = torch.zeros_like(q, dtype=torch.bool).scatter(1, settings["token_ids"], True)
    tails = [side.masked_fill(stored, 0).sum(1, keepdim=True) for side in (p, q)]
    expected = torch.where(stored, q - p, q * (1 - tails[0] / tails[1])) * 2  # T^2 / T
    check_close({"bias": gradients["student_bias"]}, {"bias": expected.sum(0)}, 1e-12)
    assert out.top1_agreement == (q.argmax(1) == p.argmax(1)).sum()


def test_a_token_of_which_nothing_is_known_trains_on_the_cross_entropy_alone():
    student, _, settings, targets = make_topk_case(tokens=8)
    ids = settings["token_ids"].clone()
    ids[3:] = -1
    out, gradients = run_topk(student, targets, **{**settings, "token_ids": ids})
    assert out.kl[3:].tolist() == [0] * 5
    unknown = torch.arange(8) >= 3
    known_alone, first = run_topk(student, targets.masked_fill(unknown, -100), **settings)
    ce_alone, second = run_topk(student, targets.masked_fill(~unknown, -100), **{**settings, "alpha": 0.0})
    check_close({"loss": out.loss}, {"loss": known_alone.loss + ce_alone.loss}, 1e-12)
    check_close(gradients, {n: None if g is None else g + second[n] for n, g in first.items()}, 1e-12)


def test_gradcheck_of_every_term_with_unknown_tokens():
    student, _, settings, targets = make_topk_case(unknown=0.5, bias=True, tokens=4, rows=9, vocabulary=8, k=3)
    own = [student[name].requires_grad_() for name in STUDENT]

    def values(*tensors):
        out = topk_loss(**dict(zip(STUDENT, tensors, strict=True)), targets=targets, **settings)
        return out.loss, out.kl, out.ce

    assert torch.autograd.gradcheck(values, own, nondet_tol=1e-12, check_undefined_grad=False)


def test_a_tail_far_below_keeps_its_gradient_in_float32():
    z = torch.zeros(1, 4)
    z[0, 0] = 200.0  # the student is sure of the stored token, and exp(-200) is 0 in float32
    weight = z.t().contiguous().requires_grad_()
    stored = make_stored(torch.tensor([[1.0, 0, 0, 0]]), k=1, temperature=1.0)
    settings = {**stored, "vocabulary": 4, "alpha": 1.0, "temperature": 1.0}
    student = {"student_hidden": torch.ones(1, 1), "student_weight": weight}
    out = topk_loss(**student, targets=torch.zeros(1, dtype=torch.long), **settings)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    tail = 3 / (3 + math.e)
    torch.testing.assert_close(weight.grad[:, 0], torch.tensor([tail, *[-tail / 3] * 3]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"divergence": "reverse_kl"}, "needs the teacher's probability of every token"),
        ({"divergence": "jsd"}, "needs the teacher's probability of every token"),
        ({"vocabulary": 40}, "vocabulary 40 must lie between"),
        ({"vocabulary": 3}, "vocabulary 3 must lie between"),
        ({"log_normalizer": torch.zeros(3)}, "log_normalizer"),
        ({"token_ids": torch.full((23, 5), 31)}, "not a row below vocabulary 31"),
    ],
)
def test_invalid_arguments_are_refused(change, sentence):
    student, _, settings, targets = make_topk_case()
    with pytest.raises(ValueError, match=sentence):
        run_topk(student, targets, **{**settings, **change})


def test_given_logits_need_no_weight_and_are_not_changed():
    student, _, settings, targets = make_topk_case(rows=37, vocabulary=29, masked=0.2)
    logits = LMHead(student["student_weight"]).logits(student["student_hidden"])
    own = {"student_hidden": logits, "student_weight": None, "student_bias": None}
    before = logits.clone()
    expected, right = run_topk(own, targets, impl="plain", **settings)
    given = logits.clone().requires_grad_()
    out = topk_loss(student_hidden=given, student_weight=None, targets=targets, tile_bytes=6000, **settings)
    out.loss.backward()
    check_close(out._asdict(), expected._asdict(), 1e-12)
    check_close({"logits": given.grad}, {"logits": right["student_hidden"]}, 1e-12)
    assert torch.equal(given.detach(), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_student_has_at_most_the_plain_versions_error(dtype):
    student, _, settings, targets = make_topk_case(bias=True, unknown=0.2)
    half = {name: None if t is None else t.to(dtype) for name, t in student.items()}
    whole = {name: None if t is None else t.double() for name, t in half.items()}
    _, right = run_topk(whole, targets, impl="plain", **settings)
    _, plain = run_topk(half, targets, impl="plain", **settings)
    _, gradients = run_topk(half, targets, **settings)
    for name, gradient in gradients.items():
        assert gradient.dtype == dtype
        assert relative_error(gradient, right[name]) <= 2 * relative_error(plain[name], right[name])
