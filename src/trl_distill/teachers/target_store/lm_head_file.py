"""A teacher's LM head on disk, beside targets that are its hidden states."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ...data.atomic_file import replacing
from ...losses.lm_head import LMHead


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
