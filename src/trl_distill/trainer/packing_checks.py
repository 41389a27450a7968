"""Checks of `packing` and `padding_free`: conditions for rows to share a sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ..errors import ModelError, ParamsError
from ..models.generation import evaluating
from ..models.padding_free import keeps_rows_apart

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.trainer_pt_utils import AcceleratorConfig

    from ..config.sft_config import DistillationSFTConfig

SHARING = ("packing", "padding_free", "eval_packing")  # with which rows share a sequence


def check_packing(args: DistillationSFTConfig) -> None:
    """Check how rows become batches.

    Raises:
        ParamsError: A strategy that cuts rows, no length to pack up to, or batches that one rank makes for all.
    """
    if cast("AcceleratorConfig", args.accelerator_config).dispatch_batches:
        raise ParamsError(
            "dispatch_batches sends out batches that one process makes, whose sequences have different lengths; set "
            "dispatch_batches=False in accelerator_config."
        )
    if not (args.packing or args.eval_packing):
        return
    if args.packing_strategy != "bfd":
        raise ParamsError(
            f"packing_strategy {args.packing_strategy!r} cuts rows apart, and a completion without its prompt has "
            f"nothing to compare with the teacher; leave it at 'bfd'."
        )
    if args.max_length is None:
        raise ParamsError("packing fills sequences up to max_length, which is None; set it, or set padding_free=True.")


def check_keeps_rows_apart(
    args: DistillationSFTConfig, model: PreTrainedModel, forward: torch.nn.Module, *, context_parallel: bool = False
) -> None:
    """Check that the student keeps rows apart that share a sequence, if a configuration has them share one.

    Raises:
        ModelError: It does not; found by trying.
        ParamsError: Context parallelism, which drops the mask that keeps them apart.
    """
    asked = [name for name in SHARING if getattr(args, name)]
    if not asked:
        return
    if context_parallel:
        raise ParamsError(
            f"{asked[0]} cannot be used with context parallelism, which would let rows attend to each other; set it to "
            "False."
        )
    with evaluating(forward):
        apart = keeps_rows_apart(model, forward)
    if not apart:
        config = model.config
        raise ModelError(
            f"{asked[0]} puts several rows into one sequence, but model {config.model_type!r} with the attention "
            f"{config._attn_implementation!r} does not keep them apart, so that a row would attend to the one before "
            f"it; set {asked[0]}=False, or choose another model or attn_implementation."
        )
