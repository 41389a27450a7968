"""The settings of a distillation loss, as one value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LossSettings:
    """The settings of every loss; `check_settings` checks them. A run's are checked with its configuration.

    Attributes:
        alpha: Weight of the divergence, from 0 (cross-entropy only) to 1 (divergence only).
        temperature: T > 0, which divides the logits of both sides in the divergence.
        divergence: "forward_kl" is KL(teacher || student), "reverse_kl" is KL(student || teacher), "jsd" the
            generalised Jensen-Shannon divergence of GKD (arXiv:2306.13649); see `divergence()`.
        jsd_beta: Weight of the teacher in the mixture of "jsd", strictly between 0 and 1.
        impl: "fused", or "plain" with the logits of all tokens in memory.
        tile_bytes: Working memory of "fused" at most, in bytes; see `fused_distillation_loss` for the default.
        ignore_index: Label that marks a token to leave out.
    """

    alpha: float
    temperature: float
    divergence: str = "forward_kl"
    jsd_beta: float = 0.5
    impl: str = "fused"
    tile_bytes: int | None = None
    ignore_index: int = -100
