"""A head's bias of -inf rules a token out: values and gradients are those of the formula with 0 log 0 = 0."""

from __future__ import annotations

import math

import pytest
import torch
from checks import check_close
from losses.problems import STUDENT, Case, make_case, mixed_loss, sampled_loss, topk_loss
from losses.test_cross_tokenizer import gradients as gradients_of
from losses.test_cross_tokenizer import make_matched, make_side
from losses.test_cross_tokenizer import own as owned
from losses.test_sampled import drawn_of, softened
from losses.test_topk import make_stored
from small_runs import losses, make
from transformers import AutoTokenizer, PhiConfig, PhiForCausalLM

from trl_distill.losses import (
    LMHead,
    LossSettings,
    ModelSide,
    divergence,
    fused_distillation_loss,
)
from trl_distill.losses.cross_tokenizer import cross_divergence

KINDS = ["forward_kl", "reverse_kl", "jsd"]
OUT = (3, 17, 30)  # rows of the vocabulary
LEFT = [i for i in range(31) if i not in OUT]
WAYS = [{"impl": "plain"}, {}, {"tile_bytes": 6000}, {"tile_bytes": 1}]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_way = pytest.mark.parametrize("how", WAYS, ids=["plain", "one tile", "small tiles", "smallest tiles"])
each_temperature = pytest.mark.parametrize("temperature", [1.0, 2.5, 3.0])


def ruled_out(case: Case, *sides: str) -> Case:
    """Return the case with `OUT` ruled out by these sides, and no target among them."""
    tensors = dict(case.tensors)
    for side in sides:
        bias = tensors[f"{side}_bias"].clone()
        bias[list(OUT)] = -math.inf
        tensors[f"{side}_bias"] = bias
    targets = torch.tensor(LEFT)[case.targets % len(LEFT)].where(case.targets >= 0, case.targets)
    return Case(tensors, targets, case.settings)


def without(case: Case) -> Case:
    """Return the case with the rows of `OUT` taken out of both vocabularies."""
    heads = {
        name: t[LEFT] if name.endswith(("weight", "bias")) else t for name, t in case.tensors.items() if t is not None
    }
    place = {row: i for i, row in enumerate(LEFT)}
    return Case(heads, torch.tensor([place.get(int(t), -100) for t in case.targets]), case.settings)


def run(loss, tensors, **settings):
    """Return a loss, and its gradients in the student's tensors."""
    own = {name: t.clone().requires_grad_() if name in STUDENT else t for name, t in tensors.items()}
    out = loss(**own, **settings)
    out.loss.backward()
    return out, {name: own[name].grad for name in STUDENT}


@each_way
@each_kind
@each_temperature
def test_a_token_ruled_out_by_both_changes_nothing(temperature, kind, how):
    case = ruled_out(make_case(bias=True, masked=0.2, divergence=kind, temperature=temperature), "student", "teacher")
    expected, right = without(case).run(impl="plain")
    out, gradients = case.run(**how)
    check_close(out._asdict(), expected._asdict(), 1e-12)
    left = {name: g if name == "student_hidden" else g[LEFT] for name, g in gradients.items()}
    check_close(left, right, 1e-12)
    assert not gradients["student_weight"][list(OUT)].any()
    assert not gradients["student_bias"][list(OUT)].any()


@each_way
@pytest.mark.parametrize(("kind", "side"), [("forward_kl", "teacher"), ("reverse_kl", "student"),
                                            ("jsd", "teacher"), ("jsd", "student")])  # fmt: skip
@each_temperature
def test_a_token_ruled_out_by_one_side_is_the_limit_of_small_probabilities(temperature, kind, side, how):
    """A bias of -1e4 gives a probability that no precision has, and no logarithm that is infinite."""
    case = ruled_out(make_case(bias=True, divergence=kind, temperature=temperature), side)
    near = Case(
        {name: None if t is None else t.clamp(min=-1e4) for name, t in case.tensors.items()}, case.targets,
        case.settings,
    )  # fmt: skip
    expected, right = near.run(impl="plain")
    assert expected.loss.isfinite()
    out, gradients = case.run(**how)
    check_close(out._asdict(), expected._asdict(), 1e-12)
    check_close(gradients, right, 1e-12)


@each_way
@each_temperature
def test_a_token_ruled_out_by_the_student_alone_makes_the_divergence_infinite(temperature, how):
    case = ruled_out(make_case(bias=True, temperature=temperature, alpha=1.0), "student")
    out, gradients = case.run(**how)
    assert out.kl.eq(math.inf).all()
    assert out.loss == math.inf
    assert out.ce.isfinite().all()
    tensors = case.tensors
    q, p = ((case.logits(side) / temperature).softmax(-1) for side in ("student", "teacher"))
    slope = temperature * (q - p)
    right = [slope @ tensors["student_weight"], slope.T @ tensors["student_hidden"], slope.sum(0)]
    check_close(gradients, dict(zip(STUDENT, right, strict=True)), 1e-12)


def test_an_infinite_divergence_does_not_depend_on_the_place_of_the_token():
    """Teacher alone in the reverse direction, student alone in the forward one; the mixture of both is never."""
    z = torch.randn(4, 9, dtype=torch.float64)
    for row in range(9):
        cut = z.clone()
        cut[:, row] = -math.inf
        assert divergence(z, cut, temperature=2.0, kind="reverse_kl").eq(math.inf).all()
        assert divergence(cut, z, temperature=2.0, kind="forward_kl").eq(math.inf).all()
        assert divergence(cut, z, temperature=2.0, kind="jsd").isfinite().all()


@each_way
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_ruled_out_label_counts_if_the_cross_entropy_has_a_weight(alpha, how):
    case = ruled_out(make_case(bias=True, alpha=alpha), "student", "teacher")
    case.targets[0] = OUT[0]
    out, gradients = case.run(**how)
    assert out.ce[0] == math.inf
    assert bool(out.loss.isfinite()) is (alpha == 1)
    assert all(g.isfinite().all() for g in gradients.values())


@each_way
@each_temperature
@pytest.mark.parametrize("known", ["topk", "sample"])
def test_a_ruled_out_token_changes_nothing_for_stored_targets(known, temperature, how):
    case = ruled_out(make_case(bias=True, temperature=temperature), "student", "teacher")
    small = without(case)
    loss = topk_loss if known == "topk" else sampled_loss
    found = []
    for one, rows, way in ((case, 31, how), (small, 28, {"impl": "plain"})):
        if known == "topk":
            said = make_stored(one.logits("teacher"), k=5, temperature=temperature)
        else:
            said = drawn_of(softened(small, 28, temperature), 20)
            if rows == 31:
                said["token_ids"] = torch.tensor([*LEFT, -1])[said["token_ids"]]
        own = {name: one.tensors[name] for name in STUDENT}
        found.append(run(loss, own, targets=one.targets, vocabulary=rows, **said, **one.settings, **way))
    (out, gradients), (expected, right) = found
    check_close(out._asdict(), expected._asdict(), 1e-12)
    check_close({n: g if n == "student_hidden" else g[LEFT] for n, g in gradients.items()}, right, 1e-12)


@each_way
def test_a_stored_token_or_tail_ruled_out_by_the_student_has_a_finite_gradient(how):
    case = make_case(bias=True, alpha=1.0, temperature=2.0)
    logits = case.logits("teacher")
    stored = make_stored(logits, k=5, temperature=2.0)
    own = {name: case.tensors[name] for name in STUDENT}
    first = stored["token_ids"][0]
    for cut in (first[:1], [i for i in range(31) if i not in first]):
        bias = own["student_bias"].clone()
        bias[cut] = -math.inf
        settings = {**case.settings, "targets": torch.full_like(case.targets, int(first[1])), "vocabulary": 31, **how}
        out, gradients = run(topk_loss, {**own, "student_bias": bias}, **stored, **settings)
        assert out.kl[0] == math.inf
        assert not out.kl.isnan().any()
        _, right = run(topk_loss, {**own, "student_bias": bias}, **stored, **{**settings, **WAYS[0]})
        check_close(gradients, right, 1e-12)


@each_way
@each_kind
@each_temperature
def test_a_ruled_out_token_changes_nothing_for_a_mixture(temperature, kind, how):
    case = ruled_out(make_case(bias=True, temperature=temperature, divergence=kind), "student", "teacher")
    found = []
    for one, way in ((case, how), (without(case), {"impl": "plain"})):
        hidden, weight, bias = (one.tensors[f"teacher_{part}"] for part in ("hidden", "weight", "bias"))
        side, other = ModelSide(hidden, LMHead(weight, bias)), ModelSide(hidden.flip(0), LMHead(weight.flip(1), bias))
        weights = torch.tensor([[0.3, 0.7]], dtype=torch.float64).repeat(len(one.targets), 1)
        weights[0, 0] = 0
        own = {name: one.tensors[name] for name in STUDENT}
        both = {"teachers": [side, other], "weights": weights, "targets": one.targets}
        found.append(run(mixed_loss, own, **both, **one.settings, **way))
    (out, gradients), (expected, right) = found
    check_close(out._asdict(), expected._asdict(), 1e-12)
    check_close({n: g if n == "student_hidden" else g[LEFT] for n, g in gradients.items()}, right, 1e-12)


@each_way
@each_kind
@each_temperature
def test_a_ruled_out_token_changes_nothing_across_vocabularies(temperature, kind, how):
    student, teacher = make_side(12, 20, 6, bias=True), make_side(12, 25, 5, bias=True, seed=9)
    matched = make_matched(20, 25, both=11)
    student.head.bias[matched.student[0]] = teacher.head.bias[matched.teacher[0]] = -math.inf
    fewer = matched._replace(student=matched.student[1:], teacher=matched.teacher[1:])
    found = []
    for which, way in ((matched, how), (fewer, {"impl": "plain"})):
        own, settings = owned(student), LossSettings(1.0, temperature, kind, **way)
        values, agreeing, total = cross_divergence(student=own, teacher=teacher, matched=which, settings=settings)
        total.backward()
        found.append(({"values": values, "agreeing": agreeing, "total": total}, gradients_of(own)))
    check_close(found[0][0], found[1][0], 1e-12)
    check_close(found[0][1], found[1][1], 1e-12)


def test_a_model_whose_bias_rules_tokens_out_trains(tiny_model_dir, tmp_path):
    """Phi's head has a bias; rows that no token has are ruled out, as some models pad their vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    found = []
    for bias in (-math.inf, -1e4):
        for name, width in (("student", 16), ("teacher", 32)):
            torch.manual_seed(width)
            config = PhiConfig(
                vocab_size=len(tokenizer) + 3, hidden_size=width, intermediate_size=32, num_hidden_layers=1,
                num_attention_heads=2, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None, initializer_range=0.3,
            )  # fmt: skip
            model = PhiForCausalLM(config)
            model.lm_head.bias.data[len(tokenizer) :] = bias
            model.save_pretrained(tmp_path / name)
            tokenizer.save_pretrained(tmp_path / name)
        trainer = make(tmp_path / "student", tmp_path / "teacher", tmp_path, logging_nan_inf_filter=False)
        found.append([losses(trainer), trainer.evaluate()["eval_entropy"]])
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


def test_a_loss_that_is_nan_stays_nan():
    """What is mended is 0 * inf alone: weights that are NaN show."""
    for side in ("student", "teacher"):
        case = ruled_out(make_case(bias=True), "student", "teacher")
        case.tensors[f"{side}_weight"][5, 0] = math.nan
        for how in WAYS:
            own = {name: t.clone() for name, t in case.tensors.items()}
            assert fused_distillation_loss(**own, targets=case.targets, **case.settings, **how).loss.isnan(), how
