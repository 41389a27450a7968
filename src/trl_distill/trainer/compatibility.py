"""Checks of SFTTrainer features with a teacher, on this machine and with the installed libraries.

Features that would fail in SFTTrainer's first step are refused here, in one sentence.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

import torch
from transformers import Trainer
from transformers.utils import is_kernels_available, is_liger_kernel_available

from ..config.devices import accelerator
from ..config.sft_config import SCALED, DistillationSFTConfig
from ..config.validation import refuse_unused
from ..errors import ParamsError, first_line
from ..losses.fused.gpu import INTERPRETED
from ..models.adapters import is_peft_model
from ..models.loading import ModelSource, resolve
from .packing_checks import SHARING, check_packing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

    Student = str | PreTrainedModel | PeftModel  # or its name

SEARCH = (
    "needs a new student, teacher and trainer for each trial; have optuna call trl_distill.run(params).metrics in its "
    "objective, with a project_name for each trial."
)


def check_constructor(args: DistillationSFTConfig, collator: object, kwargs: Mapping[str, object]) -> None:
    """Refuse what cannot be used with distillation.

    Raises:
        ParamsError: Naming the setting and what to do.
    """
    refused = {
        "data_collator": (collator is not None, "distillation makes its own batches; drop it"),
        "completion_only_loss": (args.completion_only_loss is False, "prompts are not learned; leave it out"),
        "loss_type": (args.loss_type != "nll", "distillation has its own loss; leave it at 'nll'"),
        "label_smoothing_factor": (
            args.label_smoothing_factor > 0,
            "the teacher's distribution already smooths labels; set it to 0",
        ),
        "compute_loss_func": (kwargs.get("compute_loss_func") is not None, "override compute_loss instead"),
        "model_init": (kwargs.get("model_init") is not None, SEARCH),
        "compute_metrics": (kwargs.get("compute_metrics") is not None, "no logits are built; use a callback"),
        "formatting_func": (
            kwargs.get("formatting_func") is not None and args.completion_only_loss is True,
            "it makes plain text, which has no completion, but completion_only_loss is True; leave that out",
        ),
    }
    for name, (given, why) in refused.items():
        if given:
            raise ParamsError(f"{name} cannot be used when distilling: {why.rstrip('.')}.")
    check_packing(args)


def check_plain(args: object, teacher: object, *, must_distil: str | None) -> None:
    """Refuse settings of distillation if SFTTrainer alone trains.

    Args:
        args: The configuration, of any class.
        teacher: The value of teacher_model.
        must_distil: Name of a trainer that does nothing else; None for one that may.

    Raises:
        ParamsError: Naming the setting.
    """
    if must_distil is not None:
        raise ParamsError(f"{must_distil} is for distillation only; set use_distillation=True in its configuration.")
    if teacher is not None:
        raise ParamsError(
            "teacher_model is given, but use_distillation is False; set use_distillation=True, or drop it."
        )
    if isinstance(args, DistillationSFTConfig):
        refuse_unused(args, why="use_distillation is False; set use_distillation=True")


def check_features(args: DistillationSFTConfig, *, model: Student, peft_config: PeftConfig | None) -> None:
    """Refuse what cannot run here.

    Raises:
        ParamsError: Naming the setting and what to do.
    """
    if args.n_gpu > 1:
        raise ParamsError(
            f"one process sees {args.n_gpu} GPUs and would split batches over them without the teacher's inputs; "
            "start a process for each (accelerate launch), or show it one (CUDA_VISIBLE_DEVICES=0)."
        )
    adapters = [] if peft_config is None else [peft_config]
    if not isinstance(model, str) and is_peft_model(model):
        adapters += model.peft_config.values()
    if args.activation_offloading and (args.use_cpu or accelerator() is None):
        raise ParamsError(
            "activation_offloading moves activations from an accelerator to main memory, and this run has no "
            "accelerator; leave it out, and use gradient_checkpointing to save memory."
        )
    check_kernels(args)
    if peft_config is None:
        check_scaled(args, model)
    check_optimizer(args)
    check_compiler(args)
    if args.use_vllm:
        check_vllm(model)
    how = cast(dict[str, object], args.gradient_checkpointing_kwargs) or {}
    if args.gradient_checkpointing and how.get("selective") and adapters:
        raise ParamsError(
            "gradient_checkpointing_kwargs has 'selective', which TRL passes unchanged to a model with an adapter; "
            "leave it out."
        )
    for config in adapters:
        _check_adapter(config, model, args)


def check_optimizer(args: DistillationSFTConfig) -> None:
    """Refuse an optimizer whose package is missing; one that only a model can make is looked at later.

    Raises:
        ParamsError: Naming the package.
    """
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, ValueError) as error:
        reason = first_line(error)
        if "pass a `model`" in reason:
            return
        name = getattr(args.optim, "value", args.optim)
        raise ParamsError(f"optimizer is {name!r}, which cannot be used here ({reason}); choose another.") from error


def check_kernels(args: DistillationSFTConfig) -> None:
    """Refuse Liger's or the Hub's kernels if they cannot run here; training would fail in its first step.

    Raises:
        ParamsError: A package is missing, there is no GPU, or Liger's loss is to take the place of distillation's.
    """
    if (cast(dict[str, object], args.model_init_kwargs) or {}).get("use_kernels") and not is_kernels_available():
        raise ParamsError(
            "model_init_kwargs has 'use_kernels', which needs the package kernels in a version that transformers "
            "accepts; `pip install 'transformers[kernels]'` or leave it out."
        )
    if not args.use_liger_kernel:
        return
    if not is_liger_kernel_available():
        raise ParamsError("use_liger_kernel needs a package that is missing; `pip install liger-kernel` or drop it.")
    if args.device.type in ("cpu", "mps") and not INTERPRETED:
        raise ParamsError(
            f"use_liger_kernel replaces layers by Triton kernels, which need a GPU that Triton supports; "
            f"this run is on {args.device.type}: drop it."
        )
    for name in ("fused_linear_cross_entropy", "cross_entropy"):
        if (args.liger_kernel_config or {}).get(name):
            raise ParamsError(
                f"liger_kernel_config has {name!r}, a loss that would replace distillation's or torch's; leave it out."
            )


def check_scaled(args: DistillationSFTConfig, model: Student) -> None:
    """Refuse float16 weights that are to be trained under fp16: torch scales gradients in float32 alone.

    Raises:
        ParamsError: What to do instead.
    """
    if not args.fp16 or args.device.type == "cpu" or isinstance(model, str):
        return
    if any(p.requires_grad and p.dtype == torch.float16 for p in model.parameters()):
        raise ParamsError(SCALED)


def check_compiler(args: DistillationSFTConfig) -> None:
    """Refuse torch.compile without the compiler it needs, which would only be missed in the first step.

    Raises:
        ParamsError: Naming what to install.
    """
    if not args.torch_compile or args.torch_compile_backend != "inductor":
        return
    if args.device.type == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        raise ParamsError(
            "torch_compile needs a C++ compiler on a CPU, and there is none; install g++, or drop --torch-compile."
        )
    if args.device.type == "cuda" and find_spec("triton") is None:
        raise ParamsError(
            "torch_compile needs a package that is missing; `pip install triton`, or drop --torch-compile."
        )


def check_vllm(model: Student) -> None:
    """Refuse a student that vLLM cannot load, or a missing vLLM.

    Raises:
        ParamsError: Naming what to do.
    """
    if find_spec("vllm") is None:
        raise ParamsError("use_vllm needs a package that is missing; `pip install 'trl[vllm]'` or drop it.")
    if isinstance(model, str):
        return
    if getattr(model, "is_loaded_in_8bit", False):
        raise ParamsError("use_vllm cannot be used with an int8 student, which vLLM does not load; drop one.")
    if not model.name_or_path:
        raise ParamsError(
            "use_vllm makes vLLM load the student itself, but model is a loaded model without a path; "
            "save it to a folder with its tokenizer and load it from there."
        )


def _check_adapter(config: PeftConfig, model: Student, args: DistillationSFTConfig) -> None:
    """Refuse an adapter that would not be trained, or that PEFT cannot train on this student."""
    head = _name_of(model, "get_output_embeddings", "lm_head")
    embedding = _name_of(model, "get_input_embeddings", "embed_tokens")
    targets = getattr(config, "target_modules", None) or ()
    targets = {targets} if isinstance(targets, str) else {name.rpartition(".")[2] for name in targets}
    if head in targets:
        raise ParamsError(
            f"target_modules has {head!r}, whose adapter SFTTrainer does not train; leave it out, or train the head "
            f"whole with modules_to_save=[{head!r}]."
        )
    if _has_trained_tokens(config) and _is_tied(model):
        raise ParamsError(
            "trainable_token_indices trains tokens of an embedding whose weight is the LM head's too (tied "
            "embeddings), and SFTTrainer does not train an adapter of the head; leave it out, or choose a model whose "
            "embeddings are not tied."
        )
    if getattr(config, "ensure_weight_tying", False) and embedding in targets and _is_tied(model):
        raise ParamsError(
            f"ensure_weight_tying has the LM head share the adapter of {embedding!r}, and SFTTrainer does not train an "
            "adapter of the head; leave it out: the embedding is then trained alone."
        )
    if getattr(config, "is_prompt_learning", False):
        _check_learned_prompt(config, args)
    int8_on_cpu = getattr(model, "is_loaded_in_8bit", False) and getattr(model, "device", None) == torch.device("cpu")
    if getattr(config, "use_dora", False) and int8_on_cpu:
        raise ParamsError(
            "use_dora cannot be trained on an int8 model on a CPU, where bitsandbytes drops scales that PEFT reads; "
            "load the model in int4, or use LoRA."
        )


def _check_learned_prompt(config: PeftConfig, args: DistillationSFTConfig) -> None:
    kind = getattr(config.peft_type, "value", config.peft_type)
    together = next((name for name in SHARING if getattr(args, name)), None)
    if together is not None:
        raise ParamsError(
            f"{together} puts several rows into one sequence, but an adapter of the kind {kind} has a learned prompt, "
            f"which would stand before the first row alone; set {together}=False, or train a LoRA adapter."
        )
    if args.gradient_checkpointing and kind in ("PREFIX_TUNING", "CARTRIDGE"):
        raise ParamsError(
            f"gradient_checkpointing drops the keys and values that an adapter of the kind {kind} learns; set "
            "gradient_checkpointing=False."
        )
    if args.use_vllm:
        raise ParamsError(
            f"use_vllm sends vLLM the student's weights, but an adapter of the kind {kind} also has a learned "
            "prompt; drop use_vllm, or train a LoRA adapter."
        )


def _name_of(model: Student, getter: str, usual: str) -> str:
    """Return the name of a student's LM head or embedding; of one that is not loaded yet, the usual name."""
    if isinstance(model, str):
        return usual
    found = getattr(model, getter)()
    names = (name for name, module in model.named_modules() if found is not None and module is found)
    return next(names, usual).rpartition(".")[2]


def _has_trained_tokens(config: PeftConfig) -> bool:
    return any(getattr(config, name, None) for name in ("trainable_token_indices", "token_indices"))


def _is_tied(model: Student) -> bool:
    config = ModelSource(resolve(model, role="model")).config if isinstance(model, str) else model.config
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", False))


def with_lengths(dataset: Dataset, args: DistillationSFTConfig) -> Dataset:
    """Return prepared rows with the column by which Trainer groups them, if it does.

    A row's length is the tokens that both models read of it.
    """
    if args.train_sampling_strategy != "group_by_length" or args.length_column_name in dataset.column_names:
        return dataset
    sides = zip(dataset["student_prompt"], dataset["teacher_prompt"], dataset["completion"], strict=True)
    lengths = [len(student) + len(teacher) + 2 * len(completion) for student, teacher, completion in sides]
    return dataset.add_column(args.length_column_name, lengths)
