"""The loss with its gradients on a GPU: ours, the plain version, torch.compile's, Liger's, and the bare products."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from _device import failure, liger_loss, peak_mib, to_its_end
from _measure import MIB, alternating, median_ratio

from trl_distill import fused_distillation_loss

ALPHA = 0.7
ROWS = 1024  # of a block of the bare products, and of Liger's


@dataclass(frozen=True)
class Head:
    """One problem: N tokens, both models' hidden states H wide, a vocabulary of V rows."""

    tokens: int
    hidden: int
    vocabulary: int
    temperature: float = 1.0
    divergence: str = "forward_kl"
    frozen: bool = False

    @property
    def name(self) -> str:
        """The problem in a table's cell."""
        size = " x ".join(f"{count:,}" for count in (self.tokens, self.hidden, self.vocabulary))
        frozen = ", frozen head" if self.frozen else ""
        return f"{size}, {self.divergence}, T={self.temperature:g}{frozen}"


def problems(sizes: list[tuple[int, int, int]]) -> list[Head]:
    """Return what is measured of each size: forward KL at both temperatures, jsd, and a frozen head."""
    found = []
    for size in sizes:
        one = Head(*size)
        found += [one, replace(one, temperature=3.0), replace(one, divergence="jsd"), replace(one, frozen=True)]
    return found


def inputs(problem: Head, dtype: torch.dtype, device: torch.device, *, apart: float = 1.0) -> dict[str, torch.Tensor]:
    """Return hidden states, heads and targets; the teacher's hidden states differ from the student's by `apart`."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    n, h, v = problem.tokens, problem.hidden, problem.vocabulary
    student, weight = normal(n, h), normal(v, h) * (2 / h**0.5)
    teacher = normal(n, h) if apart == 1.0 else student + apart * normal(n, h)
    return {
        "student_hidden": student.to(dtype).requires_grad_(),
        "student_weight": weight.to(dtype).requires_grad_(not problem.frozen),
        "teacher_hidden": teacher.to(dtype),
        "teacher_weight": weight.to(dtype) if apart != 1.0 else (normal(v, h) * (2 / h**0.5)).to(dtype),
        "targets": torch.randint(v, (n,), generator=generator, device=device),
    }


def ours(given: dict[str, torch.Tensor], problem: Head, impl: str = "fused") -> torch.Tensor:
    """Return the loss for each token."""
    how: dict[str, Any] = {"temperature": problem.temperature, "divergence": problem.divergence, "impl": impl}
    return fused_distillation_loss(**given, alpha=ALPHA, **how).loss / problem.tokens


def _formula(
    student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor, temperature: float, wide: torch.dtype
) -> torch.Tensor:
    """Return the loss with the forward KL from logits, as one writes it in torch."""
    student, teacher = student.to(wide), teacher.to(wide)
    softened = (F.log_softmax(z / temperature, -1) for z in (student, teacher))
    divergence = F.kl_div(*softened, reduction="sum", log_target=True) * temperature**2
    return (ALPHA * divergence + (1 - ALPHA) * F.cross_entropy(student, targets, reduction="sum")) / len(targets)


def full_logits(given: dict[str, torch.Tensor], problem: Head) -> torch.Tensor:
    """Return the formula of the logits of all tokens, for torch.compile."""
    h_s, w_s, h_t, w_t, targets = given.values()
    return _formula(h_s @ w_s.T, h_t @ w_t.T, targets, problem.temperature, torch.float32)


def liger(given: dict[str, torch.Tensor], problem: Head, *, compiled: bool) -> torch.Tensor:
    """Return Liger's chunked loss; its divergence has no factor T^2, which its time does not show."""
    loss = liger_loss()(
        weight_hard_loss=1 - ALPHA, weight_soft_loss=ALPHA, temperature=problem.temperature, compiled=compiled,
        beta=0.5 if problem.divergence == "jsd" else 0.0, chunk_size=ROWS,
    )  # fmt: skip
    return loss(*given.values())


def bare(given: dict[str, torch.Tensor], problem: Head) -> None:
    """Compute the products that no such loss can do without, in blocks of rows: four, three for a frozen head."""
    h_s, w_s, h_t, w_t, _ = (tensor.detach() for tensor in given.values())
    for start in range(0, len(h_s), ROWS):
        rows = slice(start, start + ROWS)
        student, _ = h_s[rows] @ w_s.T, h_t[rows] @ w_t.T
        _ = student @ w_s, None if problem.frozen else student.T @ h_s[rows]


def sides_of(problem: Head, device: torch.device) -> dict[str, Callable[..., Any]]:
    """Return what is measured, by name."""
    found: dict[str, Callable[..., Any]] = {"bare": bare, "ours": ours, "plain": functools.partial(ours, impl="plain")}
    if device.type == "cuda" and problem.divergence == "forward_kl":
        found["compiled"] = torch.compile(full_logits)
    if liger_loss() is not None:
        found["Liger"] = functools.partial(liger, compiled=device.type == "cuda")
    return found


def step(side: Callable[..., Any], given: dict[str, torch.Tensor], problem: Head) -> None:
    """Compute a loss and its gradients as a training step does."""
    given["student_hidden"].grad = given["student_weight"].grad = None
    loss = side(given, problem)
    if loss is not None:
        loss.backward()


def measure(problem: Head, dtype: torch.dtype, device: torch.device, rounds: int) -> dict[str, dict[str, Any]]:
    """Return by side its milliseconds, its time over the bare products', and its MiB above inputs and gradients."""
    given = inputs(problem, dtype, device)
    work = {name: functools.partial(step, side, given, problem) for name, side in sides_of(problem, device).items()}
    failed = {name: failure(run, device) for name, run in work.items()}
    able = {name: run for name, run in work.items() if failed[name] is None}
    seconds = alternating({name: to_its_end(run, device) for name, run in able.items()}, rounds=rounds)
    leaves = [given["student_hidden"], *([] if problem.frozen else [given["student_weight"]])]
    gradients = sum(leaf.numel() * leaf.element_size() for leaf in leaves) / MIB
    found: dict[str, dict[str, Any]] = {name: {"failed": why} for name, why in failed.items() if why is not None}
    for name, run in able.items():
        for leaf in leaves:
            leaf.grad = None
        found[name] = {
            "ms": 1000 * statistics.median(seconds[name]),
            "time/bare": median_ratio(seconds[name], seconds["bare"]),
            "MiB": peak_mib(run, device) - (gradients if name != "bare" else 0),
        }
    return found


def errors(problem: Head, dtype: torch.dtype, device: torch.device, apart: float) -> dict[str, tuple[float, float]]:
    """Return by side the relative errors of both gradients against float64 on the same inputs."""
    given = inputs(problem, dtype, device, apart=apart)
    exact = {name: t.detach().double() if t.is_floating_point() else t for name, t in given.items()}
    leaves = {name: exact[name].requires_grad_() for name in ("student_hidden", "student_weight")}
    h_s, w_s, h_t, w_t, targets = exact.values()
    _formula(h_s @ w_s.T, h_t @ w_t.T, targets, problem.temperature, torch.float64).backward()
    found = {}
    for name, side in sides_of(problem, device).items():
        if name == "bare" or (name == "Liger" and problem.temperature != 1.0):  # Liger has no T^2
            continue
        if failure(functools.partial(step, side, given, problem), device) is None:
            found[name] = tuple(
                float((given[k].grad.double() - leaf.grad).norm() / leaf.grad.norm()) for k, leaf in leaves.items()
            )
    return found
