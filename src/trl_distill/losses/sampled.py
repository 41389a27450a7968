"""The loss against tokens that were drawn from the teacher: unbiased where a store of the likeliest is not.

"Sparse Logit Sampling" (arXiv:2503.16870, Random Sampling Knowledge Distillation with the proposal q = p): of m tokens
drawn from the teacher's p at T, each token's share estimates its probability. With the teacher's own sum p log p,

    sum_v p log p - sum_drawn share log q

is in expectation the forward KL, and so is its gradient q_v - share_v. An estimate may be negative.
"""

from __future__ import annotations

import torch

from .fused.projection import wide_dtype
from .fused.sparse_tile import Sparse, checked_rows, sparse_loss
from .reference import head_logits, sampled_loss_from_logits
from .result import DistillationLoss

Tensor = torch.Tensor


def sampled_distillation_loss(
    student_hidden: Tensor,
    student_weight: Tensor | None,
    targets: Tensor,
    *,
    token_ids: Tensor,
    probs: Tensor,
    negentropy: Tensor,
    vocabulary: int,
    alpha: float,
    temperature: float,
    divergence: str = "forward_kl",
    student_bias: Tensor | None = None,
    student_softcap: float | None = None,
    student_scale: float = 1.0,
    ignore_index: int = -100,
    impl: str = "fused",
    tile_bytes: int | None = None,
) -> DistillationLoss:
    """Sum of alpha T^2 KL(teacher_T, student_T) + (1 - alpha) CE(student, targets), the KL estimated from drawn tokens.

    Args:
        student_hidden: [N, H_s], the student's hidden states.
        student_weight: [V_s, H_s] of its LM head; None if `student_hidden` are its logits [N, V_s] already.
        targets: [N] int64 token ids; rows of `ignore_index` are dropped before anything is computed.
        token_ids: [N, k] int64, distinct in a row, the teacher's likeliest first (its share may be 0); -1 for none.
            These and what follows of the teacher's may be on the CPU; there ids are checked, while on a GPU an id that
            is no row makes the loss NaN.
        probs: [N, k], each token's share of the draws from the teacher at T over `vocabulary`.
        negentropy: [N], the teacher's sum_v p log p in nats at T.
        vocabulary: Rows [0, vocabulary) over which teacher and student are normalised; at most V_s.
        alpha: Weight of the divergence, from 0 to 1.
        temperature: T > 0 of the divergence, the one the tokens were drawn at.
        divergence: "forward_kl"; the others need the teacher's whole distribution.
        student_bias: [V_s] or None.
        student_softcap: Bound of the student's logits, or None.
        student_scale: Factor of the student's logits before the softcap.
        ignore_index: Target that marks a token to leave out.
        impl: "fused", or "plain" with the logits of all tokens in memory.
        tile_bytes: Working memory of "fused" at most, in bytes.

    Returns:
        As `fused_distillation_loss`; `top1_agreement` counts by the first token.

    Raises:
        ValueError: Arguments that do not fit together or lie outside what is accepted; the sentence names them.
    """
    valid = checked_rows(
        "sample",
        (student_hidden, student_weight, student_bias),
        targets,
        (token_ids, {"probs": probs}, {"negentropy": negentropy}),
        vocabulary=vocabulary,
        alpha=alpha,
        temperature=temperature,
        divergence=divergence,
        ignore_index=ignore_index,
        impl=impl,
    )
    token_ids, probs, negentropy = (t.to(targets.device, non_blocking=True) for t in (token_ids, probs, negentropy))
    token_ids = token_ids.long()
    if impl == "plain":
        return sampled_loss_from_logits(
            head_logits(student_hidden, student_weight, student_bias, softcap=student_softcap, scale=student_scale),
            targets,
            token_ids=token_ids,
            probs=probs,
            negentropy=negentropy,
            vocabulary=vocabulary,
            alpha=alpha,
            temperature=temperature,
            ignore_index=ignore_index,
        )
    wide = wide_dtype(student_hidden.dtype)
    known = Sparse(token_ids, probs.to(wide).masked_fill(token_ids < 0, 0.0), negentropy=negentropy.to(wide))
    return sparse_loss(
        *(student_hidden, student_weight, targets, known, valid),
        student_bias=student_bias,
        student_softcap=student_softcap,
        student_scale=student_scale,
        vocabulary=vocabulary,
        alpha=alpha,
        temperature=temperature,
        tile_bytes=tile_bytes,
    )
