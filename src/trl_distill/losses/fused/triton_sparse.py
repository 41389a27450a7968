"""The Triton kernels of the loss against a few known tokens of a row: top-k with a tail, or sampled tokens.

The known tokens' logits are moved out of a row first, so that the tail is summed from its own maximum: one far below
the known tokens keeps its gradient. Sums of chunks of a row go to memory; a second kernel adds them up, together with
the known tokens, and writes the gradient. There are no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_kernels import PLACES
from .triton_parts import LOW, STAGES, load_logits, put_zeros, sum_rest, times

ROOM = tl.constexpr(7)  # sums of a chunk
KNOWN = ["ids", "picked", "probs", "tails", "negentropies"]


@triton.jit
def load_rest(row, bias, columns, stop, readable, SCALE: tl.constexpr, CAP: tl.constexpr, WIDE: tl.constexpr):
    """As `load_logits`, and -inf where a known token was moved out, which a softcap would hide."""
    z = load_logits(row, bias, columns, stop, readable, SCALE, CAP, WIDE)
    if CAP is not None:
        x = tl.load(row + columns, mask=columns < readable, other=0.0).to(WIDE)
        z = tl.where(x == float("-inf"), x, z)
    return z


@triton.jit(do_not_specialize_on_alignment=["counted", *KNOWN])
def pick_kernel(
    student, stride_s, readable_s, bias_s, vocabulary, counted, ids, k, picked,
    SCALE_S: tl.constexpr, CAP_S: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Move the known tokens' logits out of a row; an id that is no row below `vocabulary` becomes NaN."""
    row = tl.program_id(0).to(tl.int64)
    WIDE: tl.constexpr = picked.dtype.element_ty
    if tl.load(counted + row):
        student += row * stride_s
        rank = tl.arange(0, K)
        columns = tl.load(ids + row * k + rank, mask=rank < k, other=-1)
        there = (columns >= 0) & (columns < vocabulary)
        z = load_logits(
            student, bias_s, tl.where(there, columns, readable_s), vocabulary, readable_s, SCALE_S, CAP_S, WIDE
        )
        z = tl.where(columns >= vocabulary, float("nan"), z)
        tl.store(picked + row * k + rank, z, mask=rank < k)
        tl.debug_barrier()  # several threads may hold the same token: all have read it before it is masked
        masked = tl.full([K], float("-inf"), tl.float32).to(student.dtype.element_ty)
        tl.store(student + columns, masked, mask=there)


@triton.jit(do_not_specialize_on_alignment=["counted"])
def tail_sums_kernel(
    student, stride_s, readable_s, size, bias_s, vocabulary, counted, sums, chunk, temperature,
    SCALE_S: tl.constexpr, CAP_S: tl.constexpr, ONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the sums of one chunk of a row: of the tail, and of what the teacher's vocabulary lacks."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    WIDE: tl.constexpr = sums.dtype.element_ty
    if tl.load(counted + row):
        student += row * stride_s
        inv = tl.full([], 1.0, WIDE) / temperature
        start = part * chunk
        stop = tl.minimum(start + chunk, size)
        peak = tl.full([], LOW, WIDE)
        total_t = tl.zeros([BLOCK], WIDE)  # of the tail at T
        total = tl.zeros([BLOCK], WIDE)
        moment = tl.zeros([BLOCK], WIDE)
        end = tl.minimum(stop, vocabulary)
        for first in tl.range(start, end, BLOCK, num_stages=STAGES):
            columns = first + tl.arange(0, BLOCK)
            own = load_rest(student, bias_s, columns, end, readable_s, SCALE_S, CAP_S, WIDE)
            higher = tl.maximum(peak, tl.max(own))
            fall = peak - higher
            factor = tl.exp(fall)
            moment = times(factor, moment + fall * total)
            peak = higher
            at_one = tl.exp(own - peak)
            total = total * factor + at_one
            moment += times(at_one, own - peak)
            if not ONE:
                total_t = total_t * tl.exp(fall * inv) + tl.exp((own - peak) * inv)
        if ONE:
            total_t = total
        peak_r, total_r, moment_r = sum_rest(
            student, bias_s, tl.maximum(start, vocabulary), stop, readable_s, SCALE_S, CAP_S, BLOCK, WIDE
        )
        sums += (row * tl.num_programs(1) + part) * ROOM
        tl.store(sums, tl.sum(total_t))
        tl.store(sums + 1, peak)
        tl.store(sums + 2, tl.sum(total))
        tl.store(sums + 3, tl.sum(moment))
        tl.store(sums + 4, peak_r)
        tl.store(sums + 5, total_r)
        tl.store(sums + 6, moment_r)


@triton.jit
def merge_at_one(sums, every, there):
    """Return maximum, total and mean logit at T = 1 of a row from maxima at `sums` and what follows them."""
    peaks = tl.load(sums + every, mask=there, other=LOW)
    totals = tl.load(sums + every + 1, mask=there, other=0.0)
    moments = tl.load(sums + every + 2, mask=there, other=0.0)
    peak = tl.max(peaks)
    factors = tl.exp(peaks - peak)
    return peak, tl.sum(totals * factors), tl.sum(times(factors, moments + (peaks - peak) * totals))


@triton.jit
def merged_tail(sums, chunks, z, inv, MOST: tl.constexpr):
    """Return the sums of a whole row, from those of its chunks, [chunks, ROOM], and the known tokens' logits z, [K].

    Returns the tail's total at T and its maximum, the total at T of all columns that are compared and their maximum,
    and total, mean logit and maximum at T = 1 of the whole row.
    """
    chunk = tl.arange(0, MOST)
    there = chunk < chunks
    every = chunk * ROOM
    # the tail at T, from its own maximum; then all three parts at T = 1
    peak_t, total, moment = merge_at_one(sums + 1, every, there)
    falls = tl.load(sums + every + 1, mask=there, other=LOW) - peak_t
    tail = tl.sum(tl.load(sums + every, mask=there, other=0.0) * tl.exp(falls * inv))
    peak_r, total_r, moment_r = merge_at_one(sums + 4, every, there)
    peak = tl.maximum(peak_t, tl.max(z))
    highest = tl.maximum(peak, peak_r)
    at_one = tl.exp(z - highest)
    total_s = tail * tl.exp((peak_t - peak) * inv) + tl.sum(tl.exp((z - peak) * inv))
    factor, factor_r = tl.exp(peak_t - highest), tl.exp(peak_r - highest)
    moment = (
        times(factor, moment + (peak_t - highest) * total) + tl.sum(times(at_one, z - highest))
        + times(factor_r, moment_r + (peak_r - highest) * total_r)
    )  # fmt: skip
    total = total * factor + tl.sum(at_one) + total_r * factor_r
    return tail, peak_t, total_s, peak, total, moment, highest


@triton.jit
def put_tail_values(
    values, tokens, student, bias, label, size, readable, inv, columns, z, p, negentropy, tail_p, tail, peak_t,
    total_s, peak, total, moment, highest, weight_ce, weight_kl,
    SCALE: tl.constexpr, CAP: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """As `put_values`, against known tokens `columns` of the probabilities p and a tail of the probability `tail_p`."""
    log_total = tl.log(total_s)
    kl = negentropy - tl.sum(times(p, (z - peak) * inv - log_total))
    log_tail = (peak_t - peak) * inv + tl.log(tail) - log_total
    kl += times(tail_p, tl.log(tl.where(tail_p > 0.0, tail_p, 1.0)) - log_tail)
    at = tl.where((label < 0) | (label >= size), 0, label)
    logit = tl.max(load_rest(student, bias, at + tl.arange(0, 1), size, readable, SCALE, CAP, WIDE))
    is_label = columns == label
    logit = tl.where(tl.max(is_label.to(tl.int32)) > 0, tl.sum(tl.where(is_label, z, 0.0)), logit)
    logit = tl.where(at == label, logit, float("nan"))  # an id that is no row shows
    ce = tl.log(total) - (logit - highest)
    first = tl.max(tl.where(tl.arange(0, K) == 0, z, float("-inf")))
    tl.store(values, ce)
    tl.store(values + tokens, kl)
    tl.store(values + 2 * tokens, tl.log(total) - moment / total)
    tl.store(values + 3 * tokens, (first == peak).to(WIDE))
    tl.store(values + 4 * tokens, (logit == highest).to(WIDE))
    tl.store(values + 5 * tokens, times(weight_ce, ce) + times(weight_kl, kl))


@triton.jit(do_not_specialize=["tokens", "chunks"], do_not_specialize_on_alignment=[*PLACES, *KNOWN])
def tail_finish_kernel(
    student, stride_s, readable_s, size, bias_s, vocabulary, labels, counted, weights_ce, weights_kl, values, tokens,
    gradient, stride_g, ids, k, picked, probs, tails, negentropies, sums, chunks, chunk, temperature,
    SCALE_S: tl.constexpr, CAP_S: tl.constexpr, ONE: tl.constexpr, K: tl.constexpr, MOST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up the sums of a row's chunks; write the gradient of one of them, and the first one's program the values."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    WIDE: tl.constexpr = values.dtype.element_ty
    start = part * chunk
    stop = tl.minimum(start + chunk, size)
    if gradient is not None:
        gradient += row * stride_g
    if tl.load(counted + row):
        student += row * stride_s
        inv = tl.full([], 1.0, WIDE) / temperature
        label = tl.load(labels + row)
        weight_ce, weight_kl = tl.load(weights_ce + row), tl.load(weights_kl + row)
        rank = tl.arange(0, K)
        columns = tl.load(ids + row * k + rank, mask=rank < k, other=-1)
        z = tl.load(picked + row * k + rank, mask=rank < k, other=float("-inf"))
        p = tl.load(probs + row * k + rank, mask=rank < k, other=0.0)
        tail, peak_t, total_s, peak, total, moment, highest = merged_tail(
            sums + row * chunks * ROOM, chunks, z, inv, MOST
        )
        tail_p = tl.full([], 0.0, WIDE)
        if tails is not None:
            tail_p = tl.load(tails + row)
        if part == 0:
            own = tl.sum(tl.where(p > 0.0, p * tl.log(tl.where(p > 0.0, p, 1.0)), 0.0))
            if negentropies is not None:
                own = tl.load(negentropies + row)
            put_tail_values(
                values + row, tokens, student, bias_s, label, size, readable_s, inv, columns, z, p, own, tail_p, tail,
                peak_t, total_s, peak, total, moment, highest, weight_ce, weight_kl, SCALE_S, CAP_S, K, WIDE,
            )  # fmt: skip
        if gradient is not None:
            of_one, weight_kl = weight_ce / total, weight_kl * inv
            of_tail = tl.exp((peak_t - peak) * inv) / total_s
            # a tail that is ruled out has no gradient
            of_tail -= tl.where((tail_p > 0.0) & (tail > 0.0), tail_p / tl.where(tail > 0.0, tail, 1.0), 0.0)
            put_rest(
                student, bias_s, gradient, label, start, stop, vocabulary, readable_s, inv, peak_t, highest,
                weight_kl * of_tail, of_one, weight_ce, SCALE_S, CAP_S, BLOCK, WIDE,
            )  # fmt: skip
            tl.debug_barrier()  # what was written in the known tokens' places is written before they are
            at_one = tl.exp(z - highest)
            out = weight_kl * (tl.exp((z - peak) * inv) / total_s - p) + at_one * of_one
            out = tl.where(columns == label, out - weight_ce, out)
            if CAP_S is not None:
                out *= 1.0 - (z / CAP_S) * (z / CAP_S)
            mine = (columns >= start) & (columns < tl.minimum(stop, vocabulary))
            tl.store(gradient + columns, out.to(gradient.dtype.element_ty), mask=mine)
    elif gradient is not None:
        put_zeros(gradient, start, stop, BLOCK)


@triton.jit
def put_rest(
    student, bias, gradient, label, start, stop, vocabulary, readable, inv, peak, highest, of_tail, of_one, weight_ce,
    SCALE: tl.constexpr, CAP: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write the gradient of columns [start, stop) but for the known tokens', over the scale; last columns first."""
    blocks = tl.cdiv(tl.maximum(stop - start, 0), BLOCK)
    for i in tl.range(0, blocks, num_stages=STAGES):
        columns = start + (blocks - 1 - i) * BLOCK + tl.arange(0, BLOCK)
        own = load_rest(student, bias, columns, stop, readable, SCALE, CAP, WIDE)
        # rows that the teacher lacks may have logits far above the highest shared one
        at_t = tl.exp(tl.where(columns < vocabulary, (own - peak) * inv, float("-inf")))
        out = at_t * of_tail + tl.exp(own - highest) * of_one
        out = tl.where(columns == label, out - weight_ce, out)
        if CAP is not None:
            out *= 1.0 - (own / CAP) * (own / CAP)
        tl.store(gradient + columns, out.to(gradient.dtype.element_ty), mask=columns < stop)
