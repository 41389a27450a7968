"""Time and memory of the distillation loss with its gradients: ours, the plain version, and the bare matrix products.

The bare products are what no loss over a whole vocabulary can do without: both models' projections and the gradients
of the student's hidden states and weight. They are timed as one writes them, their results in new memory, and into
memory that is there already, which no loss that hands out gradients has. Memory is what a run takes above its inputs
and the gradients it returns.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _measure import MIB, alternating, machine, median_ratio, peak_bytes, print_json, table

from trl_distill import fused_distillation_loss

STUDENT, TEACHER = 256, 512
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def inputs(tokens: int, vocabulary: int, dtype: torch.dtype = torch.float32, *, frozen: bool = False) -> dict[str, Any]:
    """Return random hidden states, heads and targets; the student's head gets a gradient unless it is frozen."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return {
        "student_hidden": normal(tokens, STUDENT).requires_grad_(),
        "student_weight": (normal(vocabulary, STUDENT) / STUDENT**0.5).requires_grad_(not frozen),
        "teacher_hidden": normal(tokens, TEACHER),
        "teacher_weight": normal(vocabulary, TEACHER) / TEACHER**0.5,
        "targets": torch.randint(vocabulary, (tokens,), generator=generator),
    }


def loss_and_gradients(
    given: dict[str, Any], impl: str, divergence: str = "forward_kl", temperature: float = 3.0
) -> list[torch.Tensor | None]:
    """Compute the loss and its gradients as a training step does; returns what a step keeps."""
    given["student_hidden"].grad = given["student_weight"].grad = None
    out = fused_distillation_loss(**given, alpha=0.7, temperature=temperature, divergence=divergence, impl=impl)
    out.loss.backward()
    return [given["student_hidden"].grad, given["student_weight"].grad]


def compiled_plain(given: dict[str, Any], temperature: float) -> Callable[[], None]:
    """Return the plain formula from full logits, compiled by torch, with its gradients."""
    tensors = list(given.values())

    @torch.compile(dynamic=False)
    def loss(h_s: torch.Tensor, w_s: torch.Tensor, h_t: torch.Tensor, w_t: torch.Tensor, targets: torch.Tensor) -> Any:
        student, teacher = F.linear(h_s, w_s), F.linear(h_t, w_t)
        log_q, log_p = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
        kl = (log_p.exp() * (log_p - log_q)).sum()
        return 0.7 * temperature**2 * kl + 0.3 * F.cross_entropy(student, targets, reduction="sum")

    def run() -> None:
        given["student_hidden"].grad = given["student_weight"].grad = None
        loss(*tensors).backward()

    return run


def bare_products(given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute the four products as one writes them, the three of a frozen head."""
    h_s, w_s, h_t, w_t = (given[k].detach() for k in list(given)[:4])
    student, _ = h_s @ w_s.T, h_t @ w_t.T
    return student @ w_s, student.T @ h_s if given["student_weight"].requires_grad else None


def products_in_place(given: dict[str, Any]) -> Callable[[], None]:
    """Return the same products, in the faster of both layouts and into memory that is there already."""
    h_s, w_s, h_t, w_t = (given[k].detach() for k in list(given)[:4])
    student, teacher = torch.empty(len(w_s), len(h_s)), torch.empty(len(w_s), len(h_s))
    of_hidden = torch.empty_like(h_s)
    of_weight = torch.empty_like(w_s) if given["student_weight"].requires_grad else None

    def run() -> None:
        torch.mm(w_s, h_s.t(), out=student)
        torch.mm(w_t, h_t.t(), out=teacher)
        torch.mm(student.t(), w_s, out=of_hidden)
        if of_weight is not None:
            torch.mm(student, h_s, out=of_weight)

    return run


def memory_of(tokens: int, vocabulary: int, impl: str, divergence: str, frozen: bool) -> Callable[[], Any]:
    """Return what a child process measures; the first, small call loads what torch loads lazily."""
    loss_and_gradients(inputs(8, 64, frozen=frozen), impl, divergence)
    return functools.partial(loss_and_gradients, inputs(tokens, vocabulary, frozen=frozen), impl, divergence)


def peak(tokens: int, vocabulary: int, impl: str, divergence: str = "forward_kl", *, frozen: bool = False) -> float:
    """Return the MiB that a run takes above inputs and gradients."""
    gradients = 4 * STUDENT * (tokens + (0 if frozen else vocabulary))
    return (peak_bytes(functools.partial(memory_of, tokens, vocabulary, impl, divergence, frozen)) - gradients) / MIB


def trained(options: argparse.Namespace) -> dict[str, float]:
    """Print the table of a head that is trained, and return its figures."""
    rows, figures = [], {}
    for vocabulary in options.vocabularies:
        for divergence in options.divergences:
            given = inputs(options.tokens, vocabulary)
            sides = {
                impl: functools.partial(loss_and_gradients, given, impl, divergence) for impl in ("fused", "plain")
            }
            products = {"bare": functools.partial(bare_products, given), "in place": products_in_place(given)}
            seconds = alternating({**products, **sides}, rounds=options.rounds)
            del products, sides, given
            memory = {impl: peak(options.tokens, vocabulary, impl, divergence) for impl in ("fused", "plain")}
            medians = [statistics.median(seconds[name]) for name in ("in place", "bare", "fused", "plain")]
            ratios = [median_ratio(seconds["fused"], seconds[name]) for name in ("in place", "bare", "plain")]
            rows.append([f"{vocabulary:,}", divergence, *(f"{x:.2f}" for x in (*medians, *ratios)),
                         *(f"{memory[impl]:,.0f}" for impl in ("fused", "plain"))])  # fmt: skip
            print(" ".join(rows[-1]), file=sys.stderr, flush=True)
            key = f"{vocabulary}_{divergence}"
            figures |= {f"time_vs_bare_{key}": ratios[1], f"mib_{key}": memory["fused"]}
    head = ["V", "divergence", "in place s", "bare s", "ours s", "plain s", "ours/in place", "ours/bare", "ours/plain"]
    print(table([*head, "ours MiB", "plain MiB"], rows))
    print("\nPeak against the number of tokens, forward_kl, V=50,257:\n")
    counts = [256, 512, 1024, 2048, 4096]
    peaks = [peak(count, 50_257, "fused") for count in counts]
    print(table(["N", *(f"{count:,}" for count in counts)], [["MiB", *(f"{x:,.0f}" for x in peaks)]]))
    return {**figures, "mib_growth_256_to_4096": peaks[-1] - peaks[0]}


def frozen(options: argparse.Namespace) -> dict[str, float]:
    """Print the table of a frozen head, and return its figures."""
    rows, figures = [], {}
    for vocabulary in options.vocabularies:
        given = inputs(options.tokens, vocabulary, frozen=True)
        memory = peak(options.tokens, vocabulary, "fused", frozen=True)
        for temperature in (1.0, 3.0):
            sides = {
                "in place": products_in_place(given),
                "bare": functools.partial(bare_products, given),
                "ours": functools.partial(loss_and_gradients, given, "fused", temperature=temperature),
                "compiled": compiled_plain(given, temperature),
            }
            seconds = alternating(sides, rounds=options.rounds)
            medians = [statistics.median(seconds[name]) for name in sides]
            ratios = [median_ratio(seconds["ours"], seconds[name]) for name in ("in place", "bare", "compiled")]
            rows.append([f"{vocabulary:,}", f"{temperature:g}", *(f"{x:.2f}" for x in (*medians, *ratios)),
                         f"{memory:,.0f}"])  # fmt: skip
            print(" ".join(rows[-1]), file=sys.stderr, flush=True)
            key = f"frozen_{vocabulary}_T{temperature:g}"
            figures |= {f"time_vs_bare_{key}": ratios[1], f"time_vs_compiled_{key}": ratios[2], f"mib_{key}": memory}
    head = ["V", "T", "in place s", "bare s", "ours s", "compiled s", "ours/in place", "ours/bare", "ours/compiled"]
    print(table([*head, "ours MiB"], rows))
    return figures


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[50_257, 262_144])
    parser.add_argument("--divergences", nargs="+", default=["forward_kl", "reverse_kl", "jsd"])
    parser.add_argument("--heads", nargs="+", choices=["trained", "frozen"], default=["trained", "frozen"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print the figures as one last line too")
    options = parser.parse_args()
    torch.set_num_threads(2)
    print(machine("torch"))
    print(f"N={options.tokens}, H={STUDENT}/{TEACHER}, fp32; medians of {options.rounds} alternating runs\n")
    figures = {}
    if "trained" in options.heads:
        figures |= trained(options)
    if "frozen" in options.heads:
        print("\nA frozen head, forward_kl; compiled is torch.compile of the plain formula:\n")
        figures |= frozen(options)
    if options.json:
        print_json(figures)


if __name__ == "__main__":
    main()
