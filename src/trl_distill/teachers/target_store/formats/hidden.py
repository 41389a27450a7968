"""A teacher's last hidden states, and once its LM head: the whole distribution, without the teacher's layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ....data.atomic_file import replacing
from ....losses.lm_head import LMHead
from ....losses.signals import DenseSignal
from .base import Arrays, Span, TargetFormat

HIDDEN, BITS = "hidden", "bfloat16"
EXPONENT = 0x7F80  # of a bfloat16; that of NaN and infinity has all bits


class HiddenFormat(TargetFormat):
    """Hidden states as the teacher computed them, to the bit; neither k nor temperatures matter."""

    name = "hidden"
    has_head = True

    def __init__(self, *, k: int, temperatures: tuple[float, ...], vocabulary: int) -> None:
        super().__init__(k=0, temperatures=(), vocabulary=vocabulary)

    def encode(self, scored: DenseSignal, spans: Sequence[Span]) -> Arrays:
        """Return the hidden states [N, H]; bfloat16, which numpy does not have, as the float16 of the same bits."""
        hidden = scored.hidden.detach().cpu().contiguous()
        if hidden.dtype == torch.bfloat16:
            return {BITS: hidden.view(torch.float16).numpy()}
        return {HIDDEN: hidden.numpy()}

    def unusable(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the tokens whose hidden states are not finite numbers; numpy has the bits of bfloat16 alone."""
        if BITS in arrays:
            return ((arrays[BITS].view(np.uint16) & EXPONENT) == EXPONENT).any(1)
        return ~np.isfinite(arrays[HIDDEN]).all(1)

    def decode(self, arrays: Mapping[str, torch.Tensor], head: LMHead | None) -> DenseSignal:
        if head is None:
            raise ValueError("targets of the kind hidden need the teacher's LM head.")
        bits = arrays.get(BITS)
        hidden = arrays[HIDDEN] if bits is None else bits.contiguous().view(torch.bfloat16)
        return DenseSignal(hidden, head, self.vocabulary)


def save_head(head: LMHead, path: Path, *, rows: int) -> None:
    """Write the first rows of a head, whole or not at all."""
    tensors = {"weight": head.weight, "bias": head.bias}
    kept = {name: t[:rows].detach().cpu().contiguous() for name, t in tensors.items() if t is not None}
    # one entry: the order of several is another in each file
    metadata = {"head": json.dumps({"softcap": head.softcap, "scale": head.scale})}
    with replacing(path) as temporary:
        save_file(kept, temporary, metadata=metadata)


def load_head(path: Path, device: torch.device) -> LMHead:
    with safe_open(path, framework="pt", device=str(device)) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        settings = json.loads(file.metadata()["head"])
    return LMHead(tensors["weight"], tensors.get("bias"), settings["softcap"], settings["scale"])
