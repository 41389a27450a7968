"""A training step on a GPU, TRL's and ours, on rows of an instruction, an input and a completion.

Ours gives the instruction to the teacher alone; TRL's trainers know one prompt and read all of it in every row. Without
an instruction all sides read the same prompt.
"""

from __future__ import annotations

import contextlib
import gc
import io
import statistics
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from _device import peak_mib, synchronize
from datasets import Dataset
from peft import LoraConfig
from step_time import Size, StepTimes, make_tokenizer, train
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer


@dataclass(frozen=True)
class Case:
    """Models as (width, layers), a vocabulary, and the tokens of a row: an instruction, an input, a completion."""

    student: tuple[int, int] = (1024, 16)
    teacher: tuple[int, int] = (2048, 20)
    vocabulary: int = 151_936
    batch: int = 8
    instruction: int = 0
    input: int = 512
    completion: int = 512

    @property
    def length(self) -> int:
        """Tokens of a whole row."""
        return self.instruction + self.input + self.completion


SIDES = {
    "sft": "TRL SFT",
    "sft liger": "TRL SFT, Liger",
    "gkd": "TRL GKD",
    "gkd liger": "TRL GKD, Liger",
    "local": "ours, local",
    "plain": "ours, full logits",
    "stored": "ours, stored",
    "sft lora": "TRL SFT, LoRA",
    "self lora": "ours, self, LoRA",
}
PROMPT_SIDES = {
    "sft": "TRL SFT, whole prompt",
    "gkd": "TRL GKD, whole prompt",
    "local": "ours",
    "unshared": "ours, without prefix reuse",
    "self lora": "ours, self, LoRA",
}


def sides_at_hand(sides: dict[str, str], device: torch.device) -> list[str]:
    """Return the sides that can run here: Liger's kernels need a GPU and its package."""
    kernels = device.type == "cuda" and find_spec("liger_kernel") is not None
    return [side for side in sides if kernels or "liger" not in side]


class DeviceStepTimes(StepTimes):
    """Keeps the seconds from the end of each step to the end of the next, the device's work included."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the device, then look at the clock."""
        synchronize(args.device)
        super().on_step_end(args, state, control, **kwargs)


def _model(width: int, layers: int, case: Case, dtype: torch.dtype, device: torch.device) -> LlamaForCausalLM:
    """Return a random model with tied embeddings on the device."""
    config = LlamaConfig(
        vocab_size=case.vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64), max_position_embeddings=max(64, case.length + 8), pad_token_id=0,
        eos_token_id=1, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(width)
    with device:
        return LlamaForCausalLM(config).to(dtype)


def _rows(case: Case) -> tuple[str, Dataset, Dataset]:
    """Return the instruction, the rows as text without it, and whole as token ids and labels for TRL."""
    generator = torch.Generator().manual_seed(0)
    shape = (3 * case.batch, case.length)
    ids = torch.randint(3, case.vocabulary, shape, generator=generator)
    ids[:, : case.instruction] = ids[0, : case.instruction]
    ids[:, -1] = 1  # the end of a completion, which ours adds by itself
    prompt = case.instruction + case.input
    words = [[f"w{i}" for i in row[:-1]] for row in ids.tolist()]
    text = {
        "prompt": [" ".join(row[case.instruction : prompt]) for row in words],
        "completion": [" ".join(row[prompt:]) for row in words],
    }
    labels = ids.clone()
    labels[:, :prompt] = -100
    tokenized = Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return " ".join(words[0][: case.instruction]), Dataset.from_dict(text), tokenized


def make_trainer(side: str, case: Case, steps: int, device: torch.device) -> Any:
    """Return the trainer of a side with all models loaded and a store written: a float32 student under bf16 autocast.

    The teacher's weights are bfloat16. On a CPU everything is float32.
    """
    cuda = device.type == "cuda"
    instruction, text, tokenized = _rows(case)
    folder = tempfile.mkdtemp()
    settings: dict[str, Any] = {
        "output_dir": folder, "max_steps": steps, "per_device_train_batch_size": case.batch, "use_cpu": not cuda,
        "bf16": cuda, "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
        "gradient_checkpointing": False, "dataloader_pin_memory": cuda, "max_length": case.length,
    }  # fmt: skip
    common: dict[str, Any] = {
        "processing_class": make_tokenizer(Size(vocabulary=case.vocabulary)), "callbacks": [DeviceStepTimes()],
    }  # fmt: skip
    if "lora" in side:
        common["peft_config"] = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    student = _model(*case.student, case, torch.float32, device)
    if side.startswith("sft"):
        config = SFTConfig(**settings, use_liger_kernel="liger" in side)
        return SFTTrainer(student, config, train_dataset=tokenized, **common)
    own = None if "self" in side else _model(*case.teacher, case, torch.bfloat16 if cuda else torch.float32, device)
    if side.startswith("gkd"):
        config = GKDConfig(**settings, lmbda=0.0, beta=0.0, disable_dropout=False, use_liger_kernel="liger" in side)
        collator = DataCollatorForLanguageModeling(pad_token_id=0)
        return GKDTrainer(student, own, config, collator, train_dataset=tokenized, **common)
    if side == "plain":
        settings["distill_loss_impl"] = "plain"
    if side == "stored":
        settings["teacher_store"] = f"{folder}/store"
    if instruction or own is None:  # the same weights cannot teach from the same prompt
        settings["teacher_prompt_template"] = f"{instruction or 'w3'} {{input}}"
    config = DistillationSFTConfig(**settings, use_distillation=True)
    teacher = "self" if own is None else own.requires_grad_(False)
    with contextlib.redirect_stdout(io.StringIO()):  # the pre-flight
        trainer = DistillationSFTTrainer(student, config, train_dataset=text, teacher_model=teacher, **common)
    if side == "unshared":
        trainer.teacher.prefix.off = "measured without"
    return trainer


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure(
    sides: list[str], case: Case, device: torch.device, *, rounds: int, steps: int
) -> dict[str, dict[str, Any]]:
    """Return by side the milliseconds of a step, and the MiB that steps take above the loaded models.

    Models of all sides do not fit beside each other, so a side's are made anew in each round, whose order is reversed
    in every other one.
    """
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    peaks, failed = {}, {}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            if side in failed:
                continue
            try:
                trainer = make_trainer(side, case, steps, device)
                _free(device)
                peaks[side] = peak_mib(lambda run=trainer: train(run), device)
                times = next(c for c in trainer.callback_handler.callbacks if isinstance(c, StepTimes))
                seconds[side] += times.seconds()[1:]  # the first steps compile and allocate
            except (RuntimeError, ValueError) as error:  # out of memory is a RuntimeError
                failed[side] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
            trainer = None
            _free(device)
    able = [side for side in sides if side not in failed]
    done = {side: {"ms": 1000 * statistics.median(seconds[side]), "MiB": peaks[side]} for side in able}
    return done | {side: {"failed": why} for side, why in failed.items()}
