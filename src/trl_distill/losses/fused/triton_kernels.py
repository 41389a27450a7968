"""The Triton kernels of the dense loss.

A tile's row is one program's work. If a tile has too few rows to keep a GPU busy, each is cut into chunks: their
sums go to memory first, and are added up before the gradient is written. There are no atomics, so that results
are the same every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_parts import (
    FORWARD,
    JSD,
    LOW,
    REVERSE,
    load_logits,
    put_gradient,
    put_values,
    put_zeros,
    sum_columns,
    sum_mixture,
    sum_rest,
    times,
)

# places in tensors of all tokens, which are aligned or not: kernels are not compiled anew for that
PLACES = ["labels", "counted", "weights_ce", "weights_kl", "values"]
SUMS = tl.constexpr(9)  # what `sum_columns` returns
ROOM = tl.constexpr(11)  # with what `sum_mixture` returns


@triton.jit
def merged(sums, chunks, inv_s, inv_t, KIND: tl.constexpr, MOST: tl.constexpr, WIDE: tl.constexpr):
    """Return what `sum_columns` would of a whole row, from the sums of its chunks, [chunks, ROOM]."""
    chunk = tl.arange(0, MOST)
    there = chunk < chunks
    sums += chunk * ROOM
    peaks_s = tl.load(sums, mask=there, other=LOW)
    peaks_t = tl.load(sums + 1, mask=there, other=LOW)
    totals_s = tl.load(sums + 2, mask=there, other=0.0)
    totals_t = tl.load(sums + 3, mask=there, other=0.0)
    crosses = tl.load(sums + 4, mask=there, other=0.0)
    at_tops = tl.load(sums + 5, mask=there, other=LOW)
    totals = tl.load(sums + 6, mask=there, other=0.0)
    moments = tl.load(sums + 7, mask=there, other=0.0)
    highests = tl.load(sums + 8, mask=there, other=LOW)
    peak_s, peak_t, highest = tl.max(peaks_s), tl.max(peaks_t), tl.max(highests)
    falls_s, falls_t = (peaks_s - peak_s) * inv_s, (peaks_t - peak_t) * inv_t
    factors_s, factors_t = tl.exp(falls_s), tl.exp(falls_t)
    if KIND == FORWARD:
        crosses = times(factors_t, crosses + (falls_t - falls_s) * totals_t)
    elif KIND == REVERSE:
        crosses = times(factors_s, crosses - (falls_t - falls_s) * totals_s)
    at_top = tl.max(tl.where(peaks_t == peak_t, at_tops, LOW))
    falls = highests - highest
    factors = tl.exp(falls)
    moment = tl.sum(times(factors, moments + falls * totals))
    return (
        peak_s, peak_t, tl.sum(totals_s * factors_s), tl.sum(totals_t * factors_t), tl.sum(crosses), at_top,
        tl.sum(totals * factors), moment, highest,
    )  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=["counted"])
def sums_kernel(
    student, stride_s, readable_s, size, bias_s, teacher, stride_t, readable_t, vocabulary, bias_t,
    counted, sums, chunk, temperature_s, temperature_t,
    SCALE_S: tl.constexpr, CAP_S: tl.constexpr, SCALE_T: tl.constexpr, CAP_T: tl.constexpr,
    KIND: tl.constexpr, ONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the sums of one chunk of a row."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    WIDE: tl.constexpr = sums.dtype.element_ty
    if tl.load(counted + row):
        if teacher is not None:
            teacher += row * stride_t
        inv_s, inv_t = tl.full([], 1.0, WIDE) / temperature_s, tl.full([], 1.0, WIDE) / temperature_t
        start = part * chunk
        peak_s, peak_t, total_s, total_t, cross, at_top, total, moment, highest = sum_columns(
            student + row * stride_s, teacher, bias_s, bias_t, start, tl.minimum(start + chunk, size), vocabulary,
            readable_s, readable_t, inv_s, inv_t, SCALE_S, CAP_S, SCALE_T, CAP_T, KIND, ONE, BLOCK, WIDE,
        )  # fmt: skip
        sums += (row * tl.num_programs(1) + part) * ROOM
        tl.store(sums, peak_s)
        tl.store(sums + 1, peak_t)
        tl.store(sums + 2, total_s)
        tl.store(sums + 3, total_t)
        tl.store(sums + 4, cross)
        tl.store(sums + 5, at_top)
        tl.store(sums + 6, total)
        tl.store(sums + 7, moment)
        tl.store(sums + 8, highest)


@triton.jit(do_not_specialize_on_alignment=["counted"])
def mixture_sums_kernel(
    student, stride_s, readable_s, bias_s, teacher, stride_t, readable_t, vocabulary, bias_t,
    counted, sums, chunk, temperature_s, temperature_t,
    SCALE_S: tl.constexpr, CAP_S: tl.constexpr, SCALE_T: tl.constexpr, CAP_T: tl.constexpr,
    BETA: tl.constexpr, MOST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the sums of one chunk of a row that need both softmaxes of all chunks."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    WIDE: tl.constexpr = sums.dtype.element_ty
    if tl.load(counted + row):
        inv_s, inv_t = tl.full([], 1.0, WIDE) / temperature_s, tl.full([], 1.0, WIDE) / temperature_t
        sums += row * tl.num_programs(1) * ROOM
        peak_s, peak_t, total_s, total_t, _, _, _, _, _ = merged(
            sums, tl.num_programs(1), inv_s, inv_t, JSD, MOST, WIDE
        )
        start = part * chunk
        value, to_mixture = sum_mixture(
            student + row * stride_s, teacher + row * stride_t, bias_s, bias_t, start,
            tl.minimum(start + chunk, vocabulary), readable_s, readable_t, inv_s, inv_t,
            peak_s, peak_t, total_s, total_t, SCALE_S, CAP_S, SCALE_T, CAP_T, BETA, BLOCK, WIDE,
        )  # fmt: skip
        tl.store(sums + part * ROOM + SUMS, value)
        tl.store(sums + part * ROOM + SUMS + 1, to_mixture)


@triton.jit(do_not_specialize=["tokens", "chunks"], do_not_specialize_on_alignment=PLACES)
def row_kernel(
    student, stride_s, readable_s, size, bias_s, teacher, stride_t, readable_t, vocabulary, bias_t,
    labels, counted, weights_ce, weights_kl, values, tokens, gradient, stride_g, sums, chunks, chunk,
    temperature_s, temperature_t,
    SCALE_S: tl.constexpr, CAP_S: tl.constexpr, SCALE_T: tl.constexpr, CAP_T: tl.constexpr,
    KIND: tl.constexpr, BETA: tl.constexpr, ONE: tl.constexpr, MOST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the values of a row and the gradient of its logits; those of a row that does not count are 0.

    Without `sums` a program sums up its row. With those of a row's chunks it adds them up, each program writes the
    gradient of one chunk, and the first one's the values.
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    WIDE: tl.constexpr = values.dtype.element_ty
    start, stop = 0, size
    if sums is not None:
        start = part * chunk
        stop = tl.minimum(start + chunk, size)
    if gradient is not None:
        gradient += row * stride_g
    if tl.load(counted + row):
        student += row * stride_s
        if teacher is not None:
            teacher += row * stride_t
        label = tl.load(labels + row)
        weight_ce, weight_kl = tl.load(weights_ce + row), tl.load(weights_kl + row)
        inv_s, inv_t = tl.full([], 1.0, WIDE) / temperature_s, tl.full([], 1.0, WIDE) / temperature_t
        if sums is None:
            peak_s, peak_t, total_s, total_t, cross, at_top, total, moment, highest = sum_columns(
                student, teacher, bias_s, bias_t, start, stop, vocabulary, readable_s, readable_t, inv_s, inv_t,
                SCALE_S, CAP_S, SCALE_T, CAP_T, KIND, ONE, BLOCK, WIDE,
            )  # fmt: skip
        else:
            sums += row * chunks * ROOM
            peak_s, peak_t, total_s, total_t, cross, at_top, total, moment, highest = merged(
                sums, chunks, inv_s, inv_t, KIND, MOST, WIDE
            )
        mean = cross
        if teacher is not None:
            if KIND == REVERSE:
                mean = cross / total_s
            elif KIND == JSD:
                if sums is None:
                    cross, mean = sum_mixture(
                        student, teacher, bias_s, bias_t, start, vocabulary, readable_s, readable_t, inv_s, inv_t,
                        peak_s, peak_t, total_s, total_t, SCALE_S, CAP_S, SCALE_T, CAP_T, BETA, BLOCK, WIDE,
                    )  # fmt: skip
                else:
                    every = tl.arange(0, MOST)
                    cross = tl.sum(tl.load(sums + every * ROOM + SUMS, mask=every < chunks, other=0.0))
                    mean = tl.sum(tl.load(sums + every * ROOM + SUMS + 1, mask=every < chunks, other=0.0))
        if part == 0:
            put_values(
                values + row, tokens, student, bias_s, label, size, peak_s, peak_t, total_s, total_t, cross, at_top,
                total, moment, highest, weight_ce, weight_kl, SCALE_S, CAP_S, KIND, teacher is not None, WIDE,
            )  # fmt: skip
        if gradient is not None:
            put_gradient(
                student, teacher, bias_s, bias_t, gradient, label, weight_ce, weight_kl * inv_s, start, stop,
                vocabulary, readable_s, readable_t, inv_s, inv_t, peak_s, peak_t, total_s, total_t, total, highest,
                mean, SCALE_S, CAP_S, SCALE_T, CAP_T, KIND, BETA, ONE, BLOCK, WIDE,
            )  # fmt: skip
    elif gradient is not None:
        put_zeros(gradient, start, stop, BLOCK)


@triton.jit(do_not_specialize_on_alignment=["weights"])
def mix_kernel(
    teacher, stride, readable, vocabulary, bias, weights, mixed, stride_m, temperature,
    SCALE: tl.constexpr, CAP: tl.constexpr, FIRST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add a teacher's weighted distribution to a mixture's log-probabilities; the first teacher begins them."""
    row = tl.program_id(0).to(tl.int64)
    WIDE: tl.constexpr = mixed.dtype.element_ty
    inv = tl.full([], 1.0, WIDE) / temperature
    teacher += row * stride
    mixed += row * stride_m
    peak, total, _ = sum_rest(teacher, bias, 0, vocabulary, readable, SCALE, CAP, BLOCK, WIDE, inv)
    shift = tl.log(tl.load(weights + row).to(WIDE)) - peak - tl.log(total)
    for first in tl.range(0, vocabulary, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        there = columns < vocabulary
        out = load_logits(teacher, bias, columns, vocabulary, readable, SCALE, CAP, WIDE) * inv + shift
        if not FIRST:
            before = tl.load(mixed + columns, mask=there, other=0.0)
            high = tl.maximum(out, before)
            sum_of_both = high + tl.log(tl.exp(out - high) + tl.exp(before - high))
            out = tl.where(high == float("-inf"), high, sum_of_both)
        tl.store(mixed + columns, out, mask=there)


@triton.jit
def scale_kernel(numbers, count, factor, BLOCK: tl.constexpr):
    """Multiply numbers of half precision by one of float32, in place."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = places < count
    product = tl.load(numbers + places, mask=there, other=0.0).to(factor.dtype.element_ty) * tl.load(factor)
    tl.store(numbers + places, product.to(numbers.dtype.element_ty), mask=there)
