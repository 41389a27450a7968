"""Fingerprints of model weights, by tensors; by the content of files, see `folder_fingerprint`.

A folder that is copied or moved stays the same teacher; a model that is trained further does not.
"""

from __future__ import annotations

import hashlib
import json

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch.distributed.tensor import DTensor

CHUNK = 2**22  # values that are summed at a time: the sum needs them as 64-bit integers
SAMPLE = 256  # values of a tensor that are hashed in their places


def of_model(model: torch.nn.Module, *, adapters: bool = True) -> str:
    """Return a hash of a loaded model's weights and of the adapters that are switched on.

    Each tensor adds its name, shape, type, a sample of its values and the sum of all its bits, which no order of
    summation changes: the same weights have the same hash on every device. Without `adapters` it is the hash of the
    model before it had any.
    """
    digest = hashlib.sha256()
    state = model.state_dict() if adapters else without_adapters(model)
    for name, tensor in sorted(state.items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            digest.update(_digest_of_tensor(tensor))
    for name, module in model.named_modules():
        if adapters and isinstance(module, BaseTunerLayer):
            switched = [module.active_adapters, module.disable_adapters, module.merged_adapters]
            adapter = [name, *switched, getattr(module, "scaling", None)]
            digest.update(json.dumps(adapter, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def without_adapters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the state of the model that adapters were put into, by the names it had."""
    own = set()
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            own |= {f"{name}.{part}" for part in (*module.adapter_layer_names, *module.other_param_names)}
        elif isinstance(module, AuxiliaryTrainingWrapper):
            own |= {f"{name}.{part}" for part in module.adapter_layer_names}
    kept = {name: t for name, t in model.state_dict().items() if not any(name.startswith(part) for part in own)}
    return {name.replace(".base_layer.", ".").replace(".original_module.", "."): t for name, t in kept.items()}


def _digest_of_tensor(tensor: torch.Tensor) -> bytes:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if local.is_meta or local.numel() == 0:
        return b""
    flat = local.detach().reshape(-1)
    bits = (
        flat.view(torch.uint8) if flat.dtype == torch.bool or flat.is_complex() else flat.view(_INTEGERS[flat.itemsize])
    )
    total = sum(int(part.sum(dtype=torch.int64)) for part in bits.split(CHUNK))
    places = torch.linspace(0, len(bits) - 1, min(SAMPLE, len(bits)), dtype=torch.float64).long()
    return json.dumps([total, bits[places.to(bits.device)].tolist()]).encode()


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
