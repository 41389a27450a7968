"""The steps of the dense loss's Triton kernels, over a range of columns of one row of logits.

Columns are summed from running maxima, first to last; the gradient is written last to first, so that it finds in the
cache what was read last. l are logits after bias, scale and softcap; s and t are (l - max l) / T of
student and teacher, q and p their softmax at T over the vocabulary that both share. Sums are float32 (float64 for
float64). Lanes of a block are summed by themselves and added up at the end; only the maxima need all lanes at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOW = tl.constexpr(-1e30)  # below every logit, and far from overflow where two of them are subtracted
FORWARD, REVERSE, JSD = (tl.constexpr(kind) for kind in range(3))  # the order of `config.choices.DIVERGENCES`
STAGES = tl.constexpr(3)  # blocks that are on their way from memory while one is summed


@triton.jit
def load_logits(row, bias, columns, stop, readable, SCALE: tl.constexpr, CAP: tl.constexpr, WIDE: tl.constexpr):
    """Load a block of a row and make logits of it, -inf from `stop` on; memory can be read up to `readable`."""
    x = tl.load(row + columns, mask=columns < readable, other=0.0).to(WIDE)
    if bias is not None:
        x += tl.load(bias + columns, mask=columns < stop, other=0.0).to(WIDE)
    if SCALE != 1.0:
        x *= SCALE
    if CAP is not None:
        x = CAP * (1.0 - 2.0 / (tl.exp(2.0 * (x / CAP)) + 1.0))  # tanh
    return tl.where(columns < stop, x, float("-inf"))


@triton.jit
def times(weight, value):
    """Return weight * value, and 0 if the weight is 0 even if the value is infinite."""
    return tl.where(weight == 0.0, 0.0, weight * value)


@triton.jit
def sum_shared(
    student, teacher, bias_s, bias_t, start, stop, readable_s, readable_t, inv_s, inv_t,
    SCALE_S: tl.constexpr, CAP_S: tl.constexpr, SCALE_T: tl.constexpr, CAP_T: tl.constexpr,
    KIND: tl.constexpr, ONE: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Sum up columns [start, stop) of a row of both models; `inv_s` and `inv_t` are what their logits are times by.

    Returns both maxima, both totals at T, the divergence's own sum, the student's logit at the teacher's maximum, and
    the student's total and mean logit at T = 1.
    """
    peak_s = tl.full([], LOW, WIDE)
    peak_t = tl.full([], LOW, WIDE)
    at_top = tl.full([], LOW, WIDE)
    total_s = tl.zeros([BLOCK], WIDE)
    total_t = tl.zeros([BLOCK], WIDE)
    cross = tl.zeros([BLOCK], WIDE)
    total = tl.zeros([BLOCK], WIDE)
    moment = tl.zeros([BLOCK], WIDE)
    for first in tl.range(start, stop, BLOCK, num_stages=STAGES):
        columns = first + tl.arange(0, BLOCK)
        own = load_logits(student, bias_s, columns, stop, readable_s, SCALE_S, CAP_S, WIDE)
        theirs = load_logits(teacher, bias_t, columns, stop, readable_t, SCALE_T, CAP_T, WIDE)
        higher_s = tl.maximum(peak_s, tl.max(own))
        higher_t = tl.maximum(peak_t, tl.max(theirs))
        if higher_t > peak_t:
            at_top = tl.max(tl.where(theirs == higher_t, own, float("-inf")))
        fall_s = (peak_s - higher_s) * inv_s
        fall_t = (peak_t - higher_t) * inv_t
        factor_s, factor_t = tl.exp(fall_s), tl.exp(fall_t)
        factor = factor_s if ONE else tl.exp(peak_s - higher_s)
        if KIND == FORWARD:
            cross = times(factor_t, cross + (fall_t - fall_s) * total_t)
        elif KIND == REVERSE:
            cross = times(factor_s, cross - (fall_t - fall_s) * total_s)
        moment = times(factor, moment + (peak_s - higher_s) * (total_s if ONE else total))
        peak_s, peak_t = higher_s, higher_t
        s = (own - peak_s) * inv_s
        t = (theirs - peak_t) * inv_t
        exp_s, exp_t = tl.exp(s), tl.exp(t)
        total_s = total_s * factor_s + exp_s
        total_t = total_t * factor_t + exp_t
        if KIND == FORWARD:
            cross += times(exp_t, t - s)
        elif KIND == REVERSE:
            cross += times(exp_s, s - t)
        at_one = exp_s
        if not ONE:
            at_one = tl.exp(own - peak_s)
            total = total * factor + at_one
        moment += times(at_one, own - peak_s)
    if ONE:
        total = total_s
    return (
        peak_s, peak_t, tl.sum(total_s), tl.sum(total_t), tl.sum(cross), at_top, tl.sum(total), tl.sum(moment)
    )  # fmt: skip


@triton.jit
def sum_rest(
    student, bias, start, stop, readable, SCALE: tl.constexpr, CAP: tl.constexpr, BLOCK: tl.constexpr,
    WIDE: tl.constexpr, inv=1.0,
):  # fmt: skip
    """Sum up columns [start, stop) of one model: the maximum of its logits times `inv`, their total and their mean."""
    peak = tl.full([], LOW, WIDE)
    total = tl.zeros([BLOCK], WIDE)
    moment = tl.zeros([BLOCK], WIDE)
    for first in tl.range(start, stop, BLOCK, num_stages=STAGES):
        columns = first + tl.arange(0, BLOCK)
        own = load_logits(student, bias, columns, stop, readable, SCALE, CAP, WIDE) * inv
        higher = tl.maximum(peak, tl.max(own))
        factor = tl.exp(peak - higher)
        moment = times(factor, moment + (peak - higher) * total)
        peak = higher
        at_one = tl.exp(own - peak)
        total = total * factor + at_one
        moment += times(at_one, own - peak)
    return peak, tl.sum(total), tl.sum(moment)


@triton.jit
def sum_columns(
    student, teacher, bias_s, bias_t, start, stop, vocabulary, readable_s, readable_t, inv_s, inv_t,
    SCALE_S: tl.constexpr, CAP_S: tl.constexpr, SCALE_T: tl.constexpr, CAP_T: tl.constexpr,
    KIND: tl.constexpr, ONE: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Sum up columns [start, stop), of which those below `vocabulary` are shared.

    Returns what `sum_shared` does, with the student's sums at T = 1 from the maximum of all its columns, which is last.
    """
    peak_s = tl.full([], LOW, WIDE)
    peak_t = tl.full([], LOW, WIDE)
    at_top = tl.full([], LOW, WIDE)
    total_s = tl.full([], 0.0, WIDE)
    total_t = tl.full([], 0.0, WIDE)
    cross = tl.full([], 0.0, WIDE)
    total = tl.full([], 0.0, WIDE)
    moment = tl.full([], 0.0, WIDE)
    if teacher is not None:
        peak_s, peak_t, total_s, total_t, cross, at_top, total, moment = sum_shared(
            student, teacher, bias_s, bias_t, start, tl.minimum(stop, vocabulary), readable_s, readable_t, inv_s, inv_t,
            SCALE_S, CAP_S, SCALE_T, CAP_T, KIND, ONE, BLOCK, WIDE,
        )  # fmt: skip
    peak, total_r, moment_r = sum_rest(
        student, bias_s, tl.maximum(start, vocabulary), stop, readable_s, SCALE_S, CAP_S, BLOCK, WIDE
    )
    highest = tl.maximum(peak_s, peak)
    factor, factor_r = tl.exp(peak_s - highest), tl.exp(peak - highest)
    moment = times(factor, moment + (peak_s - highest) * total) + times(factor_r, moment_r + (peak - highest) * total_r)
    total = total * factor + total_r * factor_r
    return peak_s, peak_t, total_s, total_t, cross, at_top, total, moment, highest


@triton.jit
def log_ratio(s, t, log_gap, BETA: tl.constexpr):
    """Return log p - log q and log(m / q), m = BETA p + (1 - BETA) q; `log_gap` is log Z_t - log Z_s."""
    gap = tl.where((s == float("-inf")) & (t == float("-inf")), 0.0, t - s - log_gap)
    gap = tl.where(gap > 80.0, 80.0, tl.where(gap < -1000.0, -1000.0, gap))  # as on a CPU; keeps NaN
    return gap, tl.log(1.0 + BETA * (tl.exp(gap) - 1.0))


@triton.jit
def sum_mixture(
    student, teacher, bias_s, bias_t, start, stop, readable_s, readable_t, inv_s, inv_t,
    peak_s, peak_t, total_s, total_t,
    SCALE_S: tl.constexpr, CAP_S: tl.constexpr, SCALE_T: tl.constexpr, CAP_T: tl.constexpr,
    BETA: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return a part of the Jensen-Shannon divergence and of KL(q || m), which need both softmaxes complete."""
    value = tl.zeros([BLOCK], WIDE)
    to_mixture = tl.zeros([BLOCK], WIDE)
    log_gap = tl.log(total_t) - tl.log(total_s)
    for first in tl.range(start, stop, BLOCK, num_stages=STAGES):
        columns = first + tl.arange(0, BLOCK)
        own = load_logits(student, bias_s, columns, stop, readable_s, SCALE_S, CAP_S, WIDE)
        theirs = load_logits(teacher, bias_t, columns, stop, readable_t, SCALE_T, CAP_T, WIDE)
        s = (own - peak_s) * inv_s
        t = (theirs - peak_t) * inv_t
        gap, ratio = log_ratio(s, t, log_gap, BETA)
        q, p = tl.exp(s) / total_s, tl.exp(t) / total_t
        to_mixture -= q * ratio
        value += BETA * p * (gap - ratio) - (1.0 - BETA) * q * ratio
    return tl.sum(value), tl.sum(to_mixture)


@triton.jit
def put_gradient(
    student, teacher, bias_s, bias_t, gradient, label, weight_ce, weight_kl, start, stop, vocabulary,
    readable_s, readable_t, inv_s, inv_t, peak_s, peak_t, total_s, total_t, total, highest, mean,
    SCALE_S: tl.constexpr, CAP_S: tl.constexpr, SCALE_T: tl.constexpr, CAP_T: tl.constexpr,
    KIND: tl.constexpr, BETA: tl.constexpr, ONE: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write the gradient of columns [start, stop) in the logits before bias, over the scale; last columns first.

    `weight_kl` is that of the divergence's gradient in s; `mean` is that of s - t under q, or KL(q || m).
    """
    of_one = weight_ce / total
    blocks = tl.cdiv(tl.maximum(stop - start, 0), BLOCK)
    for i in tl.range(0, blocks, num_stages=STAGES):
        columns = start + (blocks - 1 - i) * BLOCK + tl.arange(0, BLOCK)
        own = load_logits(student, bias_s, columns, stop, readable_s, SCALE_S, CAP_S, WIDE)
        out = tl.exp(own - highest) * of_one
        if teacher is not None:
            shared = tl.minimum(stop, vocabulary)
            theirs = load_logits(teacher, bias_t, columns, shared, readable_t, SCALE_T, CAP_T, WIDE)
            s = (own - peak_s) * inv_s
            t = (theirs - peak_t) * inv_t
            # rows that the teacher lacks may have logits far above the highest shared one
            q = tl.exp(tl.where(columns < shared, s, float("-inf"))) * (weight_kl / total_s)
            if KIND == FORWARD:
                out += q - tl.exp(t) * (weight_kl / total_t)
            elif KIND == REVERSE:
                out += times(q, s - t - mean)
            else:
                _, ratio = log_ratio(s, t, tl.log(total_t) - tl.log(total_s), BETA)
                out += (BETA - 1.0) * times(q, ratio + mean)
        out = tl.where(columns == label, out - weight_ce, out)
        if CAP_S is not None:
            out *= 1.0 - (own / CAP_S) * (own / CAP_S)
        tl.store(gradient + columns, out.to(gradient.dtype.element_ty), mask=columns < stop)


@triton.jit
def put_zeros(gradient, start, stop, BLOCK: tl.constexpr):
    for first in range(start, stop, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        tl.store(gradient + columns, tl.zeros([BLOCK], tl.float32).to(gradient.dtype.element_ty), mask=columns < stop)


@triton.jit
def put_values(
    values, tokens, student, bias, label, size, peak_s, peak_t, total_s, total_t, cross, at_top, total, moment,
    highest, weight_ce, weight_kl,
    SCALE: tl.constexpr, CAP: tl.constexpr, KIND: tl.constexpr, HAS_TEACHER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write cross-entropy, divergence, entropy, agreement, correctness and loss of a row; JSD is `cross` already."""
    own = load_logits(student, bias, tl.maximum(label, 0) + tl.arange(0, 1), size, size, SCALE, CAP, WIDE)
    logit = tl.sum(tl.where((label < 0) | (label >= size), float("nan"), own))  # an id that is no row shows
    log_total = tl.log(total)
    ce = log_total - (logit - highest)
    kl = cross
    if HAS_TEACHER:
        log_gap = tl.log(total_t) - tl.log(total_s)
        if KIND == FORWARD:
            kl = cross / total_t - log_gap
        elif KIND == REVERSE:
            kl = cross / total_s + log_gap
    tl.store(values, ce)
    tl.store(values + tokens, kl)
    tl.store(values + 2 * tokens, log_total - moment / total)
    if HAS_TEACHER:
        tl.store(values + 3 * tokens, (at_top == peak_s).to(WIDE))
    tl.store(values + 4 * tokens, (logit == highest).to(WIDE))
    tl.store(values + 5 * tokens, times(weight_ce, ce) + times(weight_kl, kl))
