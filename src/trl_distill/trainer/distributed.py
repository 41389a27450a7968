"""Distributed training: a local teacher is sharded like its student (FSDP2, ZeRO-3), or whole on each rank.

In an evaluation each row counts once, although all ranks get the same number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType, fsdp2_prepare_model, parse_flag_from_env

from ..errors import ParamsError
from ..models.batch_layout import IGNORE, LAYOUT, layout_of
from ..teachers.base import Teacher
from ..teachers.compatibility import SHARDED, require
from ..teachers.local.teacher import LocalTeacher

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, TrainingArguments
    from transformers.integrations import HfDeepSpeedConfig


def wrap_teacher(model: PreTrainedModel, accelerator: Accelerator) -> torch.nn.Module:
    """Return a teacher's model as it scores under an accelerator: sharded if the student is, never trained."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from trl.models import prepare_deepspeed

        return prepare_deepspeed(model, accelerator)
    quantized = getattr(model, "quantization_method", None) is not None  # such weights cannot be split
    if accelerator.is_fsdp2 and not quantized:
        model.requires_grad_(False)  # FSDP2 would make float32 of what can be trained, and reduce gradients
        return fsdp2_prepare_model(accelerator, model)
    mixed, accelerator.native_amp = accelerator.native_amp, False  # it computes in a precision of its own
    try:
        return accelerator.prepare_model(model, evaluation_mode=True)
    finally:
        accelerator.native_amp = mixed


@contextmanager
def read_whole(args: TrainingArguments) -> Iterator[None]:
    """Let one process load whole models and generate with them; under ZeRO-3 all ranks would do so together."""
    from transformers.integrations import set_hf_deepspeed_config, unset_hf_deepspeed_config

    ds_config = _loads_in_parts(args)
    if ds_config is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(ds_config)


def loads_alike(
    accelerator: Accelerator, args: TrainingArguments, teacher: LocalTeacher
) -> AbstractContextManager[None]:
    """Return a context in which all ranks load a teacher whole if one of them has, else in parts."""
    if _loads_in_parts(args) is None:
        return nullcontext()
    loaded = torch.tensor(float(teacher.loaded), device=accelerator.device)
    return read_whole(args) if accelerator.reduce(loaded, "sum") > 0 else nullcontext()


def _loads_in_parts(args: TrainingArguments) -> HfDeepSpeedConfig | None:
    """Return the object that makes transformers load models on all ranks together, or None.

    transformers itself has a weak reference to it alone, so that it could not be put back from there.
    """
    return getattr(args, "hf_deepspeed_config", None) or getattr(args.deepspeed_plugin, "dschf", None)


def check_merging(args: TrainingArguments) -> None:
    """Refuse to merge an adapter into weights of which a rank holds a part only.

    Args:
        args: The trainer's configuration, made in a process that `accelerate launch` has started or in any other.

    Raises:
        ParamsError: FSDP or ZeRO-3 is asked for.
    """
    if parse_flag_from_env("ACCELERATE_USE_FSDP") or getattr(args.deepspeed_plugin, "zero_stage", 0) == 3:
        raise ParamsError(
            "merge_adapter cannot merge if weights are sharded (FSDP, ZeRO-3); leave it out: the adapter is saved, "
            "and is merged wherever its folder is given as --model."
        )


def check_sharding(accelerator: Accelerator, teacher: Teacher) -> None:
    """Refuse what cannot be distilled with sharded weights.

    Raises:
        ParamsError: FSDP in its first version, which shows no whole LM head after a forward.
        TeacherError: The student is its own teacher, and only its own forward may gather its weights; or there are
            several, of which ranks need not ask the same ones in a batch.
    """
    kind = accelerator.distributed_type
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ParamsError("fsdp_version is 1, which distillation does not support; set fsdp_version: 2.")
    stage = 0 if plugin is None else plugin.zero_stage
    sharded = kind == DistributedType.FSDP or (kind == DistributedType.DEEPSPEED and stage == 3)
    if sharded:
        require(SHARDED, teacher)


def keep_loss_precise(accelerator: Accelerator) -> None:
    """Have FSDP2 return what a forward computes in float32: accelerate rounds a summed loss to half precision."""
    policy = accelerator.state.fsdp_plugin.mixed_precision_policy if accelerator.is_fsdp2 else None
    if policy is not None:
        accelerator.state.fsdp_plugin.mixed_precision_policy = replace(policy, output_dtype=torch.float32)


def without_repeats(batch: Mapping[str, torch.Tensor], accelerator: Accelerator) -> Mapping[str, torch.Tensor]:
    """Return an evaluation's batch without the labels of rows that another rank has too.

    Ranks get equally many items, each a row or the rows that share a sequence; the last ones are the first again.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
        return batch
    layout = layout_of(batch)
    items = len(layout.student.lengths) if layout.items is None else len(layout.items)
    rows = layout.rows_of(max(state.remainder - accelerator.process_index * items, 0))
    kept: dict[str, Any] = {**batch, LAYOUT: layout.without_labels_from(rows)}
    for name, tensor in batch.items():
        if name.endswith(("labels", "teacher_spans")):
            places = batch.get(f"{name.removesuffix('labels')}rows", torch.arange(len(tensor), device=tensor.device))
            # rows of the student's that share a sequence are numbered in it
            numbers = batch["seq_idx"] if layout.flat and name == "labels" else places[:, None]
            kept[name] = tensor.masked_fill(numbers >= rows, IGNORE)
    return kept
