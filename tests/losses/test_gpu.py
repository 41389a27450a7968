"""The kernels of a GPU beyond the other tests; run by Triton's interpreter, see test_kernels.py."""

from __future__ import annotations

import math
import os

import pytest
import torch
from checks import check_close, relative_error
from losses.problems import TOKENS, NoWaits, make_case

from trl_distill.losses import dense, fused_distillation_loss
from trl_distill.losses.fused import autograd as fused
from trl_distill.losses.fused import gpu, products
from trl_distill.losses.fused.tile_plan import KernelPlan, padded, plan_kernels

KINDS = ["forward_kl", "reverse_kl", "jsd"]
interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the process that test_kernels.py starts"
)


@pytest.fixture
def launched(monkeypatch):
    """Count the kernels that run."""
    from trl_distill.losses.fused import gpu_pass

    counts: dict[str, int] = {}

    class Counted:
        def __init__(self, name):
            self.name, self.kernel = name, getattr(gpu_pass, name)

        def __getitem__(self, grid):
            counts[self.name] = counts.get(self.name, 0) + 1
            return self.kernel[grid]

    for name in ("row_kernel", "sums_kernel", "mixture_sums_kernel", "mix_kernel"):
        monkeypatch.setattr(gpu_pass, name, Counted(name))
    return counts


@interpreted
@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_are_cut_into_chunks_with_the_same_result(kind, launched, monkeypatch):
    case = make_case(tokens=3, student=(75, 8), teacher=(70, 6), bias=True, divergence=kind, vocabulary=40, masked=0.4)
    expected, right = case.run(impl="plain")
    for processors in (1, 3, 99):
        launched.clear()
        monkeypatch.setattr(gpu, "_processors", lambda device, n=processors: n)
        out, gradients = case.run()
        assert launched.keys() >= {"row_kernel"}
        assert ("sums_kernel" in launched) is (processors > 1)
        check_close(out._asdict(), expected._asdict(), 1e-12)
        check_close(gradients, right, 1e-12)


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_gradient_is_right_for_models_that_nearly_agree(kind, temperature, dtype):
    """A student that converges, and one that is to stay what it was: bf16 logits are useless there."""
    case = make_case(tokens=12, student=(60, 32), teacher=(60, 32), alpha=1.0, temperature=temperature, divergence=kind)
    noise = torch.randn(60, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = case.tensors["student_weight"]
    case.tensors |= {
        "teacher_hidden": case.tensors["student_hidden"], "teacher_weight": weight + 3e-3 * temperature * noise
    }  # fmt: skip
    single = case.to(torch.float32)
    if dtype == torch.bfloat16:  # of the same numbers, so that what is asked is what float64 gets
        own = {k: None if t is None else t.to(dtype) for k, t in case.tensors.items()}
        own["teacher_weight"] = own["student_weight"] + (0.004 * temperature * noise).to(dtype)
        single.tensors = own
    expected, right = single.to(torch.float64).run(impl="plain")
    assert 1e-5 < expected.kl.mean() < 5e-4
    _, gradients = single.run()
    most = 2e-3 if dtype == torch.float32 else 3e-3
    assert relative_error(gradients["student_hidden"], right["student_hidden"]) <= most


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [3, 20])
def test_a_half_precision_student_gets_half_precision_gradients(dtype, tokens, launched):
    case = make_case(tokens=tokens, student=(50, 16), teacher=(50, 16), bias=True, masked=0.3).to(dtype)
    _, right = case.to(torch.float64).run(impl="plain")
    _, plain = case.run(impl="plain")
    _, gradients = case.run(tile_bytes=20_000)
    assert launched
    for name, gradient in gradients.items():
        assert gradient.dtype == dtype
        assert relative_error(gradient, right[name]) <= 2 * relative_error(plain[name], right[name])


@interpreted
def test_hidden_states_of_ignored_tokens_may_be_nan():
    case = make_case(masked=0.4, bias=True)
    expected, right = case.run(impl="plain")
    out = case.targets == -100
    for side in ("student_hidden", "teacher_hidden"):
        case.tensors[side] = case.tensors[side].masked_fill(out[:, None], math.nan)
    found, gradients = case.run(tile_bytes=6000)
    check_close(found._asdict(), expected._asdict(), 1e-12)
    check_close(gradients, right, 1e-12)


@interpreted
def test_a_frozen_head_costs_no_product_of_its_gradient(monkeypatch):
    shapes = []
    multiply = gpu.multiply
    monkeypatch.setattr(
        gpu, "multiply", lambda a, b, out, **how: shapes.append(out.shape) or multiply(a, b, out, **how)
    )
    case = make_case()
    own = {k: t if t is None else t.clone() for k, t in case.tensors.items()}
    own["student_hidden"].requires_grad_()
    fused_distillation_loss(**own, targets=case.targets, **case.settings).loss.backward()
    assert shapes == [(TOKENS, 31), (TOKENS, 31), (TOKENS, 8)]  # both models' logits, and the hidden states' gradient
    shapes.clear()
    own["student_hidden"].requires_grad_(False)
    fused_distillation_loss(**own, targets=case.targets, **case.settings)
    assert shapes == [(TOKENS, 31), (TOKENS, 31)]


@interpreted
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("through", ["loss", "ce"])
def test_nothing_waits_for_a_gpu(kind, through, monkeypatch):
    """But for the check of labels, which a CPU makes and a GPU does not."""
    monkeypatch.setattr(dense, "valid_rows", lambda labels, student, settings: labels != settings.ignore_index)
    monkeypatch.setattr(fused, "_common_factor", lambda *_: None)  # as on a GPU
    case = make_case(masked=0.4, bias=True, divergence=kind)
    own = {k: t.clone().requires_grad_("student" in k) for k, t in case.tensors.items()}
    with NoWaits():
        out = fused_distillation_loss(**own, targets=case.targets, **case.settings)
        getattr(out, through).sum().backward()
    assert own["student_weight"].grad.isfinite().all()


@interpreted
@pytest.mark.parametrize("label", [31, -7, 10**6])
def test_a_label_that_is_no_token_shows_in_the_loss(label, monkeypatch):
    """A GPU is not waited for to raise an error; what lies beside its memory is not read."""
    monkeypatch.setattr(dense, "valid_rows", lambda labels, student, settings: labels != settings.ignore_index)
    case = make_case()
    case.targets[2] = label
    out, _ = case.run()
    assert out.loss.isnan()
    assert out.ce.isnan().tolist() == [i == 2 for i in range(TOKENS)]


@pytest.mark.parametrize("version", ["2.8.0", "2.9.1+cu128", "2.10.0", "2.13.0"])
@pytest.mark.parametrize("add", [False, True])
def test_every_torch_multiplies_half_precision_into_float32(version, add, monkeypatch):
    """A CPU has no such products; these do what a GPU's do, within what the version allows."""

    def mm(left, right, *, out_dtype, out=None):
        product = left.to(out_dtype) @ right.to(out_dtype)
        return product if out is None else out.copy_(product)

    def addmm(before, left, right, *, out_dtype, beta, alpha, out):
        assert version.startswith("2.1"), "what is added is of the factors' precision there"
        return out.copy_(beta * before + alpha * mm(left, right, out_dtype=out_dtype))

    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(torch, "addmm", addmm)
    monkeypatch.setattr(products, "CHUNK", 20)
    left, right = torch.randn(9, 5).bfloat16(), torch.randn(5, 6).bfloat16()
    out = torch.ones(9, 6)
    products._multiply_unrounded(left, right, out, 0.3, add)
    torch.testing.assert_close(out, add + 0.3 * (left.float() @ right.float()))


def buffers(tokens: int, width: int, vocabulary: int, *, frozen: bool) -> tuple[int, dict[str, int]]:
    """Return what a call takes of a GPU's memory above its inputs and gradients, in bytes, bf16 on both sides."""
    plan = plan_kernels(
        tokens, vocabulary, logits=2 * padded(vocabulary), width=width, itemsize=2, trains_weight=not frozen,
        accumulates=True, processors=132,
    )  # fmt: skip
    several = plan.group < tokens
    parts = {
        "logits": plan.rows * 2 * padded(vocabulary) * 4,
        "gradient of logits": min(plan.group, tokens) * padded(vocabulary) * 2,
        "hidden states' gradient": tokens * width * 4,
        "hidden states without rows that do not count": 0 if frozen else min(plan.group, tokens) * width * 2,
        "weight's gradient": 0 if frozen or not several else vocabulary * width * 4,
        "workspace of cuBLAS": 32 * 2**20,
    }
    return sum(parts.values()), parts


@pytest.mark.parametrize(
    ("tokens", "width", "vocabulary", "frozen", "gib"),
    [(8192, 4096, 128_256, False, 2.75), (8192, 4096, 128_256, True, 1.1), (8192, 896, 151_936, False, 2.75),
     (65_536, 4096, 128_256, True, 2.0), (65_536, 896, 151_936, False, 2.75)],
)  # fmt: skip
def test_the_buffers_of_a_call_stay_within_their_bound(tokens, width, vocabulary, frozen, gib):
    total, parts = buffers(tokens, width, vocabulary, frozen=frozen)
    assert total <= gib * 2**30, {name: f"{size / 2**30:.2f} GiB" for name, size in parts.items()}


@pytest.mark.parametrize("trains_weight", [True, False])
@pytest.mark.parametrize("mib", [16, 64, 256])
def test_logits_and_their_gradient_stay_within_a_given_bound(mib, trains_weight):
    plan = plan_kernels(
        4096, 32_000, logits=2 * 32_000, width=256, itemsize=2, trains_weight=trains_weight, accumulates=True,
        processors=132, tile_bytes=mib * 2**20,
    )  # fmt: skip
    assert plan.rows * 2 * 32_000 * 4 + plan.group * 32_000 * 2 <= mib * 2**20


def test_many_tokens_are_split_into_groups_of_like_size():
    plan = plan_kernels(
        9000, 151_936, logits=2 * 151_936, width=896, itemsize=2, trains_weight=True, accumulates=True, processors=132
    )
    assert plan.rows == 512
    assert plan.group % plan.rows == 0
    assert -(-9000 // plan.group) * plan.group - 9000 < plan.rows  # no group is left with few


@pytest.mark.parametrize(("rows", "chunks"), [(1, 63), (100, 3), (263, 2), (264, 1), (512, 1)])
def test_rows_are_cut_if_there_are_fewer_than_two_for_each_processor(rows, chunks):
    plan = KernelPlan(rows=512, group=512, block=1024, processors=132)
    count, columns = plan.chunks(rows, 128_256)
    assert count == chunks
    assert count * columns >= 128_256 > (count - 1) * columns
