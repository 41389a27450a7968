"""The loss against drawn tokens: its plain version, its gradients, and that it is the full divergence on average."""

from __future__ import annotations

import pytest
import torch
from checks import check_close
from losses.problems import STUDENT, Case, make_case, sampled_loss

from trl_distill.losses import DistillationLoss


def drawn_of(p: torch.Tensor, draws: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return what a store has of `draws` tokens drawn from p [N, V]: the likeliest first, then those drawn."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(p, draws, replacement=True, generator=generator)
    shares = torch.zeros_like(p).scatter_add(1, drawn, torch.ones_like(drawn, dtype=p.dtype)) / draws
    order = (shares + p.argmax(1, keepdim=True).eq(torch.arange(p.shape[1]))).argsort(descending=True)
    there = shares.gather(1, order) > 0
    there[:, 0] = True
    width = int(there.sum(1).max())
    ids = order.masked_fill(~there, -1)[:, :width]
    return {
        "token_ids": ids,
        "probs": shares.gather(1, order)[:, :width],
        "negentropy": torch.xlogy(p, p).sum(1),
    }


def softened(case: Case, vocabulary: int, temperature: float) -> torch.Tensor:
    """Return the teacher's distributions at T, [N, vocabulary]."""
    return (case.logits("teacher")[:, :vocabulary] / temperature).softmax(-1)


def run_sampled(case: Case, known, **settings) -> tuple[DistillationLoss, dict[str, torch.Tensor | None]]:
    """Return the loss, and its gradients by name after `loss.backward()`."""
    own = {
        name: None if case.tensors[name] is None else case.tensors[name].clone().requires_grad_() for name in STUDENT
    }
    out = sampled_loss(targets=case.targets, **own, **known, **{**case.settings, **settings})
    out.loss.backward()
    return out, {name: None if t is None else t.grad for name, t in own.items()}


CASES = {
    "plain head": {},
    "bias, softcap and scale": {"bias": True, "student_softcap": 5.0, "student_scale": 0.6},
    "a wider student's vocabulary": {"student": (37, 8), "vocabulary": 29, "bias": True},
    "masked tokens": {"masked": 0.5},
    "one token": {"tokens": 1},
    "divergence only": {"alpha": 1.0},
    "an odd temperature": {"temperature": 2.5},
    "wide logits": {"spread": 60.0, "temperature": 1.0},
}


@pytest.mark.parametrize("tile_bytes", [None, 6000, 1], ids=["one tile", "small tiles", "smallest tiles"])
@pytest.mark.parametrize("name", CASES)
def test_sampled_values_and_gradients_are_the_plain_versions(name, tile_bytes):
    case = make_case(**{"vocabulary": 31, **CASES[name]})
    known = drawn_of(softened(case, case.settings["vocabulary"], case.settings["temperature"]), 12)
    expected, right = run_sampled(case, known, impl="plain")
    out, gradients = run_sampled(case, known, tile_bytes=tile_bytes)
    check_close(out._asdict(), expected._asdict(), 1e-12)
    check_close(gradients, right, 1e-12)


def test_gradcheck_of_sampled_targets():
    case = make_case(tokens=4, student=(9, 8), teacher=(9, 6), bias=True, vocabulary=9, spread=1.0)
    known = drawn_of(softened(case, 9, 3.0), 5)

    def loss(*tensors):
        student = dict(zip(STUDENT, tensors, strict=True))
        out = sampled_loss(**student, targets=case.targets, **known, **case.settings)
        return out.loss, out.kl, out.ce

    own = [case.tensors[name].requires_grad_() for name in STUDENT]
    assert torch.autograd.gradcheck(loss, own, nondet_tol=1e-12, check_undefined_grad=False)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_estimate_is_linear_in_the_shares_and_exact_at_the_teachers_probabilities(temperature):
    """So that its expectation over draws, whose shares are the teacher's probabilities on average, is the full one."""
    case = make_case(temperature=temperature, bias=True, vocabulary=31)
    p = softened(case, 31, temperature)
    every = torch.arange(31).expand_as(p)
    order = p.argsort(descending=True)
    own = {"token_ids": order, "probs": p.gather(1, order), "negentropy": torch.xlogy(p, p).sum(1)}
    full, right = case.run()
    out, gradients = run_sampled(case, own)
    check_close(out._asdict(), full._asdict(), 1e-12)
    check_close(gradients, right, 1e-12)
    shares = [torch.rand_like(p).softmax(-1) for _ in range(2)]
    parts = [run_sampled(case, {**own, "token_ids": every, "probs": s}) for s in (*shares, (shares[0] + shares[1]) / 2)]
    check_close({"kl": (parts[0][0].kl + parts[1][0].kl) / 2}, {"kl": parts[2][0].kl}, 1e-12)
    mean = {n: None if g is None else (g + parts[1][1][n]) / 2 for n, g in parts[0][1].items()}
    check_close(mean, parts[2][1], 1e-12)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"divergence": "jsd"}, "targets of the kind sample have that of a few"),
        ({"probs": torch.ones(23, 2)}, r"probs \(23, 2\) must be \[N, k\]"),
        ({"negentropy": torch.zeros(2)}, r"negentropy \(2,\) must be \[N\]"),
    ],
)
def test_invalid_arguments_are_refused(change, sentence):
    case = make_case(vocabulary=31)
    known = drawn_of(softened(case, 31, 3.0), 12)
    with pytest.raises(ValueError, match=sentence):
        run_sampled(case, {**known, **{k: v for k, v in change.items() if k in known}},
                    **{k: v for k, v in change.items() if k not in known})  # fmt: skip
