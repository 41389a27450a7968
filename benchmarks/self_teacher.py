"""Peak memory and step time of distilling a student with a LoRA adapter: its own teacher, or a copy of its model."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measure import MIB, alternating, machine, median_ratio, peak_bytes, print_json, table
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer
from trl_distill.embedded import embedded_path


def save_model(folder: Path, width: int, layers: int, vocabulary: int) -> int:
    """Write a random model with the embedded tokenizer and return its bytes."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_path())
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=8, max_position_embeddings=1024, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(p.numel() * p.element_size() for p in model.parameters())


def make_trainer(folder: str, teacher: str, steps: int) -> Any:
    """Return a trainer that has loaded its student, and its teacher if that is another model."""
    rows = {"prompt": ["red blue green " * 8] * 8, "completion": [" lamp river stone" * 8] * 8}
    config = DistillationSFTConfig(
        output_dir=tempfile.mkdtemp(), use_distillation=True, teacher_model=teacher, max_steps=steps, use_cpu=True,
        per_device_train_batch_size=4, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, dataloader_pin_memory=False, logging_strategy="no",
        teacher_prompt_template="Write the words in reverse order.\n{input}", student_prompt_template="{input}",
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):  # the pre-flight
        return DistillationSFTTrainer(
            AutoModelForCausalLM.from_pretrained(folder), config, train_dataset=Dataset.from_dict(rows),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        )  # fmt: skip


def whole_run(folder: str, teacher: str) -> Callable[[], Any]:
    """Return what a child process measures: loading, and two steps."""
    return lambda: make_trainer(folder, folder if teacher == "copy" else teacher, 2).train()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the figures as one last line too")
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        size = save_model(Path(name), options.width, options.layers, options.vocabulary)
        peaks = {side: peak_bytes(functools.partial(whole_run, name, side)) for side in ("self", "copy")}
        trainers = {"self": make_trainer(name, "self", 1), "copy": make_trainer(name, name, 1)}
        seconds = alternating({side: trainer.train for side, trainer in trainers.items()}, rounds=options.rounds)
    print(machine("torch", "transformers", "trl", "peft"))
    print(f"LoRA r=8 on a model of {size / MIB:,.0f} MiB, fp32, batch 4; peak over the process before it loads\n")
    medians = {side: statistics.median(seconds[side]) for side in seconds}
    rows = [[side, f"{peaks[side] / MIB:,.0f}", f"{medians[side]:.2f}"] for side in ("self", "copy")]
    print(table(["teacher", "peak MiB", "s per step"], rows))
    memory, ratio = peaks["self"] / peaks["copy"], median_ratio(seconds["self"], seconds["copy"])
    print(f"\nself/copy: memory {memory:.2f}, time {ratio:.2f}; saved {(peaks['copy'] - peaks['self']) / MIB:,.0f} MiB")
    if options.json:
        print_json({"ratio_memory": memory, "ratio_time": ratio})


if __name__ == "__main__":
    main()
