"""The divergence between distributions over two vocabularies, written plainly, from full logits.

What the tiled version is checked against; autograd finds the gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .reference import divergence
from .result import wide_dtype


class Matched(NamedTuple):
    """Which tokens of two vocabularies are the same; ids in none of the four are no tokens (padding of an embedding).

    Attributes:
        student: [M] int64, ids of the student's vocabulary.
        teacher: [M] int64, of the teacher's; entry k is the same token as `student[k]`.
        student_rest: [U_s] int64, the student's other tokens.
        teacher_rest: [U_t] int64, the teacher's.
    """

    student: torch.Tensor
    teacher: torch.Tensor
    student_rest: torch.Tensor
    teacher_rest: torch.Tensor

    def to(self, device: torch.device) -> Matched:
        """Return the same ids on another device."""
        return Matched(*(ids.to(device) for ids in self))


def cross_divergence_from_logits(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    matched: Matched,
    *,
    temperature: float,
    divergence: str = "forward_kl",
    jsd_beta: float = 0.5,
) -> torch.Tensor:
    """Divergence per position between p = softmax(z_T / T) over V_t tokens and q = softmax(z_S / T) over V_s others.

        p(M) D(p|M, q|M) + sum_k | p_(k) - q_(k) |

    M are the tokens that both vocabularies have, p(M) the mass that the teacher gives to them, p|M and q|M both
    distributions renormalised to them, and D the divergence of `divergence()`. p_(k) and q_(k) are the k-th largest
    probabilities among the tokens that only one side has, the shorter list filled up with 0.

    The split into a matched part by divergence and an unmatched one by sorted probabilities is that of GOLD (Patiño
    et al., "Unlocking On-Policy Distillation for Any Model Family", 2025; `ULDLoss` of TRL 1.16), the second part the
    distance of ULD (arXiv:2402.12030). Ours differs in that D is between distributions, so that it is never
    negative, and weighed by the teacher's mass instead of a share of the vocabulary: with all tokens matched it is D
    itself, with none it is ULD's.

    Args:
        student_logits: [n, V_s], any float precision.
        teacher_logits: [n, V_t], at positions where the teacher has read the same text.
        matched: Which tokens are the same.
        temperature: T > 0.
        divergence: "forward_kl", "reverse_kl" or "jsd".
        jsd_beta: beta of "jsd".

    Returns:
        [n], at least 0, without the factor T^2; float64 for float64 logits, else float32.

    Raises:
        ValueError: See `divergence()`.
    """
    student, teacher = (z.to(wide_dtype(z.dtype)) for z in (student_logits, teacher_logits))
    count = len(matched.student)
    q = (student[:, torch.cat([matched.student, matched.student_rest])] / temperature).softmax(1)
    p = (teacher[:, torch.cat([matched.teacher, matched.teacher_rest])] / temperature).softmax(1)
    shared = _divergence(
        student[:, matched.student],
        teacher[:, matched.teacher],
        temperature=temperature,
        kind=divergence,
        jsd_beta=jsd_beta,
    )
    size = max(q.shape[1], p.shape[1]) - count
    sorted_q, sorted_p = (
        F.pad(x[:, count:].sort(1, descending=True).values, (0, size - (x.shape[1] - count))) for x in (q, p)
    )
    return p[:, :count].sum(1) * shared + (sorted_q - sorted_p).abs().sum(1)


_divergence = divergence  # the name is a keyword argument above
