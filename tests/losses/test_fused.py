"""The fused loss against the plain formula in float64: values and all gradients, by relative norm."""

from __future__ import annotations

import pytest
import torch
from checks import check_close, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from losses.problems import TOKENS, make_case
from torch.utils._python_dispatch import TorchDispatchMode

from trl_distill.losses import DistillationLoss, fused_distillation_loss

KINDS = ["forward_kl", "reverse_kl", "jsd"]
SMALL = 6000  # bytes of working memory that make several tiles and blocks of the problems here
NO_TEACHER = dict.fromkeys(("teacher_hidden", "teacher_weight", "teacher_bias"))

CASES = {
    "plain heads": {},
    "biases": {"bias": True},
    "softcap and scale": {"student_softcap": 5.0, "student_scale": 0.6, "teacher_scale": 1.4},
    "the teacher's softcap": {"teacher_softcap": 4.0, "bias": True},
    "a wider teacher's vocabulary": {"teacher": (40, 12)},
    "a wider student's vocabulary": {"student": (37, 8), "bias": True},
    "fewer shared rows": {"vocabulary": 25},
    "masked tokens": {"masked": 0.5},
    "one token": {"tokens": 1},
    "cross-entropy only": {"alpha": 0.0, "bias": True},
    "divergence only": {"alpha": 1.0, "bias": True},
    "a cold temperature": {"temperature": 0.5},
    "temperature 1": {"temperature": 1.0},
    "temperature 2": {"temperature": 2.0},
    "temperature 4": {"temperature": 4.0},
    "a hot temperature": {"temperature": 10.0},
    "wide logits": {"spread": 60.0},
    "everything at once": {
        "bias": True, "masked": 0.3, "student": (37, 8), "vocabulary": 29, "student_softcap": 6.0,
        "teacher_softcap": 7.0, "teacher_scale": 0.5, "student_scale": 1.5, "temperature": 2.5, "jsd_beta": 0.2,
    },
}  # fmt: skip


def values(out: DistillationLoss) -> dict[str, torch.Tensor]:
    return out._asdict()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile_bytes", [None, SMALL, 1], ids=["one tile", "small tiles", "smallest tiles"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_in_float64(name, kind, tile_bytes):
    case = make_case(divergence=kind, **CASES[name])
    expected, right = case.run(impl="plain")
    out, gradients = case.run(tile_bytes=tile_bytes)
    check_close(values(out), values(expected), 1e-12)
    check_close(gradients, right, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_in_float32(name, kind):
    case = make_case(divergence=kind, **CASES[name])
    expected, right = case.run(impl="plain")
    _, rounded = case.to(torch.float32).run(impl="plain")
    out, gradients = case.to(torch.float32).run(tile_bytes=SMALL)
    check_close({"loss": out.loss, "ce": out.ce}, {"loss": expected.loss, "ce": expected.ce}, 1e-5)
    for part, gradient in gradients.items():
        if gradient is not None:  # rounding the inputs alone costs more than 1e-5 where logits are wide
            limit = max(1e-5, 2 * relative_error(rounded[part], right[part]))
            check_close({part: gradient}, {part: right[part]}, limit)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["plain heads", "biases", "softcap and scale", "everything at once"])
def test_half_precision_is_at_most_twice_as_wrong_as_the_plain_version(name, kind, dtype):
    case = make_case(divergence=kind, tokens=TOKENS, student=(200, 32), teacher=(200, 48))
    case = case.with_settings(**{k: v for k, v in CASES[name].items() if k.endswith(("cap", "scale"))})
    if name != "plain heads":
        bias = torch.linspace(-2, 2, 200).double()
        case.tensors |= {"student_bias": bias, "teacher_bias": bias.flip(0)}
    half = case.to(dtype)
    expected, right = half.to(torch.float64).run(impl="plain")  # of the rounded inputs
    plain, rounded = half.run(impl="plain")
    out, gradients = half.run(tile_bytes=20_000)
    assert relative_error(out.loss, expected.loss) <= 2 * relative_error(plain.loss, expected.loss) + 1e-6
    for part, wanted in right.items():
        if wanted is not None:
            assert gradients[part].dtype == dtype
            error = relative_error(gradients[part], wanted)
            assert error <= 2 * relative_error(rounded[part], wanted), part


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_products_are_rounded_as_those_of_a_linear_layer(dtype):
    case = make_case(tokens=3 * TOKENS, student=(200, 32), teacher=(200, 48), bias=True)
    expected, right = case.run(impl="plain")
    single = case.to(torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        plain, rounded = single.run(impl="plain")
        out, gradients = single.run(tile_bytes=60_000)
    assert out.loss.dtype == torch.float32
    # token by token, since errors of their sum cancel by luck
    assert relative_error(out.ce, expected.ce) <= 2 * relative_error(plain.ce, expected.ce)
    for part, wanted in right.items():
        error = relative_error(gradients[part], wanted)
        assert gradients[part].dtype == torch.float32
        assert 1e-5 < error <= 2 * relative_error(rounded[part], wanted), part  # rounded, but no more than theirs


def test_a_gradient_whose_sum_is_beyond_float16_fits_once_it_is_a_mean():
    hidden, weight = torch.full((30, 8), 3000.0).half(), torch.zeros(20, 8).half().requires_grad_()
    targets = torch.zeros(30, dtype=torch.long)
    out = fused_distillation_loss(hidden, weight, None, None, targets, alpha=0.0, temperature=1.0)
    (out.loss / 30).backward()
    right = torch.full((20, 8), 3000 / 20)
    right[0] -= 3000
    torch.testing.assert_close(weight.grad.float(), right, rtol=2e-3, atol=0)


def test_targets_may_be_a_column_of_a_matrix():
    case = make_case(masked=0.3)
    expected, right = case.run()
    case.targets = torch.stack([case.targets, torch.full_like(case.targets, 7)], 1)[:, 0]
    out, gradients = case.run()
    check_close(out._asdict(), expected._asdict(), 1e-12)
    check_close(gradients, right, 1e-12)


def test_upstream_weights_of_ignored_tokens_may_be_nan():
    case = make_case(masked=0.3)
    weights = torch.where(case.targets == -100, torch.nan, 1.0)
    found = []
    for upstream in (weights, weights.nan_to_num(0.0)):
        own = {k: None if t is None else t.clone().requires_grad_("student" in k) for k, t in case.tensors.items()}
        out = fused_distillation_loss(**own, targets=case.targets, **case.settings)
        torch.autograd.backward(out.ce, upstream.to(out.ce.dtype))
        found.append({k: own[k].grad for k in ("student_hidden", "student_weight")})
    check_close(found[0], found[1], 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("term", ["ce", "kl"])
@pytest.mark.parametrize("temperature", [2.5, 3.0])
def test_a_term_alone_has_the_plain_versions_gradient(term, kind, temperature):
    case = make_case(divergence=kind, bias=True, temperature=temperature, teacher=(28, 12))
    found = []
    for impl in ("plain", "fused"):
        own = {k: None if t is None else t.clone().requires_grad_() for k, t in case.tensors.items()}
        out = fused_distillation_loss(**own, targets=case.targets, impl=impl, **case.settings)
        getattr(out, term).sum().backward()
        found.append({k: t.grad for k, t in own.items() if k.startswith("student")})
    check_close(found[1], found[0], 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_the_fused_loss(kind):
    case = make_case(tokens=5, student=(9, 4), teacher=(7, 3), bias=True, divergence=kind, student_softcap=9.0)
    teacher = {k: v for k, v in case.tensors.items() if k.startswith("teacher")}
    inputs = [case.tensors[f"student_{part}"].requires_grad_() for part in ("hidden", "weight", "bias")]

    def loss(hidden, weight, bias):
        out = fused_distillation_loss(
            student_hidden=hidden, student_weight=weight, student_bias=bias, **teacher, targets=case.targets % 9,
            **case.settings, tile_bytes=SMALL,
        )  # fmt: skip
        return out.loss, out.ce, out.kl

    # a second backward rounds otherwise; the check of undefined gradients warns that it is new
    assert torch.autograd.gradcheck(loss, inputs, nondet_tol=1e-12, check_undefined_grad=False)


@pytest.mark.parametrize("kind", KINDS)
def test_any_weight_per_token_may_be_put_on_both_terms(kind):
    case = make_case(divergence=kind, masked=0.3, bias=True)

    def gradients(**how):
        own = {k: t.clone().requires_grad_() for k, t in case.tensors.items()}
        out = fused_distillation_loss(**own, targets=case.targets, **case.settings, **how)
        weights = torch.linspace(-1, 2, len(case.targets)).double()
        (out.ce @ weights + 3 * out.kl @ weights.flip(0) + 0.5 * out.loss).backward()
        return {k: own[k].grad for k in ("student_hidden", "student_weight", "student_bias")}

    check_close(gradients(tile_bytes=SMALL), gradients(impl="plain"), 1e-12)


def test_the_same_weight_on_all_tokens_costs_no_second_pass(monkeypatch):
    from trl_distill.losses.fused import autograd as fused

    calls = []
    compute = fused._compute
    monkeypatch.setattr(fused, "_compute", lambda *a: calls.append(1) or compute(*a))
    case = make_case()
    own = {k: t.requires_grad_() if t is not None and "student" in k else t for k, t in case.tensors.items()}
    out = fused_distillation_loss(**own, targets=case.targets, **case.settings)
    (0.3 * out.ce.mean() + 0.7 * 9 * out.kl.mean()).backward()
    assert len(calls) == 1


def test_backward_may_run_twice():
    case = make_case(bias=True)
    own = {k: t.clone().requires_grad_() for k, t in case.tensors.items()}
    out = fused_distillation_loss(**own, targets=case.targets, **case.settings)
    first = torch.autograd.grad(2 * out.loss, own["student_weight"], retain_graph=True)[0]
    second = torch.autograd.grad(2 * out.loss, own["student_weight"], retain_graph=True)[0]
    torch.testing.assert_close(first, second, rtol=1e-13, atol=0)


@pytest.mark.parametrize("impl", ["fused", "plain"])
@pytest.mark.parametrize("masked", [False, True], ids=["no rows", "all rows masked"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_of_no_tokens_is_a_finite_differentiable_zero(impl, masked, kind):
    case = make_case(tokens=4 if masked else 0, bias=True, divergence=kind, impl=impl)
    case.targets.fill_(-100)
    out, gradients = case.run()
    assert all(torch.equal(t, torch.zeros_like(t)) for t in out)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_extreme_logits_give_finite_losses(kind, dtype, temperature):
    """Logits of +-1e4: one token has all the mass, and another one of the teacher's."""
    rows = torch.eye(6) * 2e4 - 1e4
    tensors = {
        "student_hidden": torch.eye(6), "student_weight": rows, "student_bias": torch.zeros(6),
        "teacher_hidden": torch.eye(6), "teacher_weight": rows.roll(2, 0), "teacher_bias": torch.zeros(6),
    }  # fmt: skip
    case = make_case(tokens=6, student=(6, 6), teacher=(6, 6), divergence=kind, temperature=temperature)
    case.tensors, case.targets = tensors, torch.tensor([0, 1, 2, 5, 4, 3])
    case = case.to(dtype)
    expected, right = case.to(torch.float64).run(impl="plain")
    out, gradients = case.run(tile_bytes=SMALL)
    assert all(bool(t.isfinite().all()) for t in out)
    check_close({"loss": out.loss}, {"loss": expected.loss}, 1e-6)
    check_close(gradients, right, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_equal_models_have_no_divergence_and_no_gradient(kind, temperature):
    case = make_case(teacher=(31, 8), divergence=kind, alpha=1.0, temperature=temperature)
    case.tensors |= {f"teacher_{part}": case.tensors[f"student_{part}"] for part in ("hidden", "weight", "bias")}
    out, gradients = case.run(tile_bytes=SMALL)
    assert out.kl.abs().max() < 1e-14
    assert out.top1_agreement == len(case.targets)
    assert all(g is None or g.norm() < 1e-12 for g in gradients.values())


@given(
    tokens=st.integers(0, 20), rows=st.tuples(st.integers(2, 40), st.integers(2, 40)), width=st.integers(1, 9),
    tile_bytes=st.integers(1, 20_000), kind=st.sampled_from(KINDS), alpha=st.sampled_from([0.0, 0.3, 1.0]),
    temperature=st.floats(0.5, 10), masked=st.sampled_from([0.0, 0.4]), bias=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_the_tile_size_changes_nothing(
    tokens, rows, width, tile_bytes, kind, alpha, temperature, masked, bias, seed
):  # fmt: skip
    case = make_case(
        tokens=tokens, student=(rows[0], width), teacher=(rows[1], 10 - width), divergence=kind, alpha=alpha,
        temperature=temperature, masked=masked, bias=bias, seed=seed,
    )  # fmt: skip
    whole, right = case.run()
    out, gradients = case.run(tile_bytes=tile_bytes)
    for name, expected in {**values(whole), **right}.items():
        found = {**values(out), **gradients}[name]
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_alpha_0_needs_no_teacher():
    case = make_case(alpha=0.0, bias=True)
    with_teacher, right = case.run()
    case.tensors |= NO_TEACHER
    for impl in ("fused", "plain"):
        out, gradients = case.run(impl=impl)
        torch.testing.assert_close(out.loss, with_teacher.loss)
        check_close(gradients, right, 1e-12)


@pytest.mark.parametrize("frozen", ["student_weight", "student_hidden"])
def test_no_unwanted_gradient_is_computed(frozen):
    case = make_case()
    own = {k: t.requires_grad_("student" in k and k != frozen) if t is not None else t for k, t in case.tensors.items()}
    fused_distillation_loss(**own, targets=case.targets, **case.settings).loss.backward()
    assert own[frozen].grad is None
    _, right = make_case().run(impl="plain")
    kept = ({"student_weight", "student_hidden"} - {frozen}).pop()
    check_close({kept: own[kept].grad}, {kept: right[kept]}, 1e-12)


class _Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes, in elements."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def test_no_tensor_grows_with_tokens_times_vocabulary():
    sizes = []
    for tokens in (200, 800):
        case = make_case(tokens=tokens, student=(3000, 4), teacher=(3000, 4)).to(torch.float32)
        with _Largest() as largest:
            case.run(tile_bytes=400_000)
        sizes.append(largest.size)
    assert sizes[0] == sizes[1] <= 400_000 // 4
    with _Largest() as largest:
        case.run(impl="plain")
    assert largest.size >= 800 * 3000  # so that the measure sees what it should


WRONG = [
    ({"alpha": 1.5}, r"alpha 1\.5 must lie between 0"),
    ({"temperature": 0.0}, r"temperature 0\.0 must be greater"),
    ({"divergence": "kl"}, "divergence 'kl' is unknown; choose one of forward_kl"),
    ({"divergence": "jsd", "jsd_beta": 1.0}, r"jsd_beta 1\.0 must lie strictly"),
    ({"impl": "fast"}, "impl 'fast' is unknown; choose one of fused, plain"),
    ({"vocabulary": 32}, "vocabulary 32 must lie between 1 and 31"),
    ({"targets": torch.zeros(3, dtype=torch.long)}, r"targets \(3,\) and the student's rows"),
    ({"targets": torch.zeros(23)}, r"targets are torch\.float32; pass token ids"),
    ({"targets": torch.full((23,), 31)}, "targets hold the id 31, but the student's head has 31 rows"),
    ({"targets": torch.full((23,), -1)}, "targets hold the id -1"),
    ({"teacher_hidden": None}, r"alpha 0\.7 weighs a divergence, but no teacher was given"),
    ({"teacher_hidden": torch.zeros(22, 12)}, r"the teacher's rows \(22, 12\) and the student's"),
    ({"student_weight": torch.zeros(31, 9)}, r"student_weight \(31, 9\) does not fit student_hidden \(23, 8\)"),
    ({"student_bias": torch.zeros(30)}, r"student_bias \(30,\) does not fit student_weight \(31, 8\)"),
]


@pytest.mark.parametrize("impl", ["fused", "plain"])
@pytest.mark.parametrize(("change", "said"), WRONG, ids=[next(iter(c)) + str(i) for i, (c, _) in enumerate(WRONG)])
def test_invalid_arguments_are_refused(change, said, impl):
    case = make_case()
    arguments = {**case.tensors, "targets": case.targets, **case.settings, "impl": impl, **change}
    with pytest.raises(ValueError, match=said):
        fused_distillation_loss(**arguments)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_divergence_of_a_model_from_itself_has_no_gradient(temperature):
    case = make_case(tokens=9, student=(300, 16), teacher=(300, 16), temperature=temperature, alpha=1.0)
    case.tensors |= {
        f"teacher_{name}": case.tensors[f"student_{name}"].detach().clone() for name in ("hidden", "weight")
    }
    _, gradients = case.to(torch.float32).run()
    assert all(not gradient.any() for gradient in gradients.values() if gradient is not None)
