"""A training step's time and peak memory: TRL's SFTTrainer and GKDTrainer, ours with each kind of teacher, the command.

All train on the same completion tokens of the same rows, with the same prompt for both models, since GKDTrainer takes
one; `self` has one token more in the teacher's. GKD runs off-policy (`lmbda=0`) with KL(teacher || student), its
`beta=0`; ours has the cross-entropy besides. A step's time is that from the end of one step to the end of the next;
sides run in turn, in both orders. Memory is what a child process takes at most above the loaded models, optimizer
states and gradients included. The command loads its own models, of which only
the steps are timed; it runs with its defaults, and with torch's unfused AdamW.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import io
import json
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from _measure import MIB, machine, median_ratio, peak_bytes, print_json, table
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, register_trainer, run

LORA = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
SIDES = {
    "sft": "TRL SFT",
    "gkd": "TRL GKD",
    "plain": "ours, full logits",
    "local": "ours, local",
    "stored": "ours, stored",
    "sft-lora": "TRL SFT, LoRA",
    "self": "ours, self, LoRA",
}
COMMANDS = {"command": "the command", "unfused": "the command, adamw_torch"}
OPTIMIZERS: dict[str, dict[str, Any]] = {"command": {}, "unfused": {"optimizer": "adamw_torch"}}

SPECIAL = ["<pad>", "<end>", "<unknown>"]


@dataclass(frozen=True)
class Size:
    """Models as (width, layers); rows of `sequence` tokens, the second half of each the completion."""

    student: tuple[int, int] = (256, 4)
    teacher: tuple[int, int] = (512, 6)
    vocabulary: int = 50_257
    batch: int = 4
    sequence: int = 256
    tied: bool = False


# the embeddings of Gemma 3 270M, which are most of it
LARGE_VOCABULARY = Size(student=(640, 2), teacher=(768, 2), vocabulary=262_144, tied=True)
SMALL = Size(student=(32, 1), teacher=(64, 1), vocabulary=512, sequence=16)


def make_model(width: int, layers: int, size: Size) -> LlamaForCausalLM:
    """Return a random model."""
    torch.manual_seed(width)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
            num_attention_heads=max(1, width // 64), max_position_embeddings=size.sequence + 1, pad_token_id=0,
            eos_token_id=1, bos_token_id=None, tie_word_embeddings=size.tied,
        )
    )  # fmt: skip


def make_tokenizer(size: Size) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a word for each row of the vocabulary."""
    words = {word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(3, size.vocabulary))])}
    backend = Tokenizer(models.WordLevel(words, unk_token=SPECIAL[2]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def make_rows(size: Size) -> tuple[Dataset, Dataset]:
    """Return the rows as text, prompt and completion apart, and as token ids and labels for TRL."""
    half, generator = size.sequence // 2, torch.Generator().manual_seed(0)
    shape = (3 * size.batch, size.sequence)
    ids = torch.randint(3, size.vocabulary, shape, generator=generator)
    ids[:, -1] = 1  # the end of a completion, which ours adds by itself
    text = [[f"w{i}" for i in row[:-1]] for row in ids.tolist()]
    pairs = {"prompt": [" ".join(t[:half]) for t in text], "completion": [" ".join(t[half:]) for t in text]}
    labels = ids.clone()
    labels[:, :half] = -100
    return Dataset.from_dict(pairs), Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


class StepTimes(TrainerCallback):
    """Keeps the seconds from the end of each step to the end of the next."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget an earlier run's."""
        self.ends.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the clock."""
        self.ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Return the seconds of all steps but the first."""
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


def make_trainer(side: str, size: Size, steps: int, **more: Any) -> Any:
    """Return the trainer of a side, with all models loaded and a store written.

    Args:
        side: One of `SIDES`.
        size: Models and rows.
        steps: Optimizer steps of one call of `train()`.
        **more: Settings of ours.
    """
    student, tokenizer, (text, tokenized) = make_model(*size.student, size), make_tokenizer(size), make_rows(size)
    folder = tempfile.mkdtemp()
    settings: dict[str, Any] = {
        "output_dir": folder, "max_steps": steps, "per_device_train_batch_size": size.batch, "use_cpu": True,
        "bf16": False, "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
        "gradient_checkpointing": False, "dataloader_pin_memory": False, "max_length": size.sequence,
    }  # fmt: skip
    common: dict[str, Any] = {"processing_class": tokenizer, "callbacks": [StepTimes()]}
    if side.endswith(("lora", "self")):
        common["peft_config"] = LORA
    if side.startswith("sft"):
        return SFTTrainer(student, SFTConfig(**settings), train_dataset=tokenized, **common)
    if side == "gkd":
        config = GKDConfig(**settings, lmbda=0.0, beta=0.0, disable_dropout=False)
        collator = DataCollatorForLanguageModeling(pad_token_id=0)
        teacher = make_model(*size.teacher, size)
        return GKDTrainer(student, teacher, config, collator, train_dataset=tokenized, **common)
    kinds = {"plain": {"distill_loss_impl": "plain"}, "stored": {"teacher_store": f"{folder}/store"}}
    kinds["self"] = {"teacher_prompt_template": "w3 {input}"}  # the same prompt would teach it nothing
    config = DistillationSFTConfig(**settings, use_distillation=True, **kinds.get(side, {}), **more)
    teacher = "self" if side == "self" else make_model(*size.teacher, size).requires_grad_(False)
    with contextlib.redirect_stdout(io.StringIO()):  # the pre-flight
        return DistillationSFTTrainer(student, config, train_dataset=text, teacher_model=teacher, **common)


class TimedTrainer(DistillationSFTTrainer):
    """The command's trainer, with a look at the clock."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(StepTimes())


class Command:
    """What `aitraining llm` does, by its Python entry, on models and rows in files.

    Args:
        side: One of `COMMANDS`.
        size: Models and rows.
        steps: Optimizer steps of a run.
        folder: Where models and rows are, or are put.
    """

    def __init__(self, side: str, size: Size, steps: int, folder: Path) -> None:
        register_trainer("timed", TimedTrainer)
        for name in ("student", "teacher"):
            if not (folder / name).exists():
                make_model(*getattr(size, name), size).save_pretrained(folder / name)
                make_tokenizer(size).save_pretrained(folder / name)
        rows = folder / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in make_rows(size)[0]), encoding="utf-8")
        self.project = folder / side
        self.params = LLMTrainingParams(
            model=str(folder / "student"), teacher_model=str(folder / "teacher"), trainer="timed", data_path=str(rows),
            project_name=str(self.project), max_steps=steps, batch_size=size.batch, gradient_accumulation=1,
            block_size=size.sequence, save_strategy="no", logging_steps=1_000, **OPTIMIZERS[side],
        )  # fmt: skip

    def seconds(self) -> float:
        """Run and return the median seconds of a step."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            trainer = run(self.params).trainer
        shutil.rmtree(self.project)
        return median_step(trainer)


def train(trainer: Any) -> None:
    """Train without the summary that a trainer prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()


def step_seconds(trainer: Any) -> float:
    """Train and return the median seconds of a step."""
    train(trainer)
    return median_step(trainer)


def median_step(trainer: Any) -> float:
    """Return the median seconds of a step of the last run."""
    times = next(c for c in trainer.callback_handler.callbacks if isinstance(c, StepTimes))
    return statistics.median(times.seconds())


def timed(sides: Sequence[str], size: Size, *, rounds: int, steps: int) -> dict[str, list[float]]:
    """Return the seconds of a step by side and round, the order reversed in every other one."""
    trainers = {side: make_trainer(side, size, steps) for side in sides if side not in COMMANDS}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        commands = {side: Command(side, size, steps, Path(folder)) for side in sides if side in COMMANDS}
        for number in range(rounds):
            for side in sides if number % 2 == 0 else reversed(sides):
                if side in commands:
                    seconds[side].append(commands[side].seconds())
                    continue
                seconds[side].append(step_seconds(trainers[side]))
                trainers[side].optimizer = trainers[side].lr_scheduler = None
    del trainers
    gc.collect()
    return seconds


def two_steps(side: str, size: Size, threads: int) -> Callable[[], Any]:
    """Return what a child process measures; the first, small run loads what the libraries load lazily."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    train(make_trainer(side, SMALL, 2))
    return functools.partial(train, make_trainer(side, size, 2))


def peaks(sides: Sequence[str], size: Size) -> dict[str, float]:
    """Return the MiB that two steps take above the loaded models, by side."""
    return {side: peak_bytes(functools.partial(two_steps, side, size, torch.get_num_threads())) / MIB for side in sides}


def check_alike(size: Size) -> int:
    """Return the completion tokens of a batch, after a look whether all sides learn the same ones.

    Raises:
        SystemExit: Two sides train on different tokens, or ours at alpha 1 and temperature 1 has another loss than GKD.
    """
    small = replace(size, student=(32, 1), teacher=(64, 1))
    trainers = {side: make_trainer(side, small, 1, **(ALIKE if side == "local" else {})) for side in SIDES}
    tokens, losses = {}, {}
    for side, trainer in trainers.items():
        batch = next(iter(trainer.get_train_dataloader()))
        tokens[side] = int((batch["labels"][:, 1:] != -100).sum())
        if side in ("gkd", "local"):
            with torch.no_grad():
                losses[side] = float(trainer.compute_loss(trainer.model, batch, num_items_in_batch=tokens[side]))
    if len(set(tokens.values())) > 1 or abs(losses["gkd"] - losses["local"]) > 1e-4 * losses["gkd"]:
        raise SystemExit(f"the sides do not learn the same: tokens {tokens}, losses {losses}")
    return tokens["local"]


ALIKE = {"distill_alpha": 1.0, "distill_temperature": 1.0}
GROWTH = {
    "vocabulary": [32_768, 65_536, 131_072, 262_144],
    "sequence": [128, 256, 512, 1024],
    "batch": [1, 2, 4, 8],
}


def grow(size: Size, rounds: int, steps: int) -> dict[str, list[tuple[int, dict[str, float], dict[str, float]]]]:
    """Return, for what grows, (value, seconds by side, MiB by side), and print a table of each."""
    sides, found = ("sft", "gkd", "local"), {}
    for name, values in GROWTH.items():
        found[name] = []
        for value in values:
            one = replace(size, **{name: value})
            seconds = {s: statistics.median(x) for s, x in timed(sides, one, rounds=rounds, steps=steps).items()}
            found[name].append((value, seconds, peaks(sides, one)))
            print(name, *found[name][-1], file=sys.stderr, flush=True)
        head = [name, *(f"{SIDES[s]} s" for s in sides), *(f"{SIDES[s]} MiB" for s in sides)]
        rows = [
            [f"{v:,}", *(f"{t[s]:.2f}" for s in sides), *(f"{m[s]:,.0f}" for s in sides)] for v, t, m in found[name]
        ]
        print(f"\n{table(head, rows)}")
    return found


def plot(found: dict[str, list[Any]], path: Path) -> None:
    """Draw the growth: seconds above, memory below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(found), 6), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False)
    for column, (name, points) in enumerate(found.items()):
        for row, (number, unit) in enumerate(((1, "seconds per step"), (2, "peak MiB"))):
            for side in points[0][1]:
                axes[row][column].plot(
                    [p[0] for p in points], [p[number][side] for p in points], "o-", label=SIDES[side]
                )
            axes[row][column].set(xlabel=name, ylabel=unit, ylim=(0, None))
    axes[0][0].legend()
    figure.savefig(path)


def large_vocabulary(rounds: int, steps: int) -> None:
    """Print the seconds of a step where the embeddings are most of the model, and the optimizer most of the step."""
    sides, size = ("sft", "local", *COMMANDS), LARGE_VOCABULARY
    print(f"{size}, fp32; medians of {rounds} alternating runs of {steps - 1} steps\n")
    seconds = timed(sides, size, rounds=rounds, steps=steps)
    rows = [
        [
            (SIDES | COMMANDS)[side],
            f"{statistics.median(seconds[side]):.2f}",
            f"{median_ratio(seconds[side], seconds['command']):.2f}",
        ]
        for side in sides
    ]
    print(table(["side", "s per step", "time/the command"], rows))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("student", Size.student), ("teacher", Size.teacher)):
        parser.add_argument(f"--{name}", type=int, nargs=2, default=default, metavar=("WIDTH", "LAYERS"))
    for name in GROWTH:
        parser.add_argument(f"--{name}", type=int, default=getattr(Size, name))
    parser.add_argument("--rounds", type=int, default=6, help="runs of each side, half of them in each order")
    parser.add_argument("--steps", type=int, default=3, help="steps of a run; the first is not counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--large-vocabulary",
        action="store_true",
        help="measure instead a small model of 262,144 tokens, by the command and the trainers",
    )
    parser.add_argument("--grow", action="store_true", help="also grow vocabulary, sequence and batch")
    parser.add_argument("--plot", type=Path, help="with --grow: draw it into this file (needs matplotlib)")
    parser.add_argument("--json", action="store_true", help="print the figures as one last line too")
    options = parser.parse_args()
    if options.plot is not None:
        try:
            import matplotlib  # noqa: F401 - before anything is measured
        except ImportError:
            parser.error("--plot needs matplotlib; pip install 'trl-distill[report]', or leave it out.")
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    if options.large_vocabulary:
        print(machine("torch", "transformers", "trl"))
        large_vocabulary(options.rounds, options.steps)
        return
    size = Size(tuple(options.student), tuple(options.teacher), options.vocabulary, options.batch, options.sequence)
    print(machine("torch", "transformers", "trl", "peft"))
    print(f"{size}, fp32; medians of {options.rounds} alternating runs of {options.steps - 1} steps")
    print(f"completion tokens of a batch, equal for all: {check_alike(size):,}\n")
    seconds = timed([*SIDES, *COMMANDS], size, rounds=options.rounds, steps=options.steps)
    memory = peaks([*SIDES], size)
    rows = []
    for side, label in (SIDES | COMMANDS).items():
        times = [f"{median_ratio(seconds[side], seconds[other]):.2f}" for other in ("gkd", "sft")]
        peak = [f"{memory[side] / memory[other]:.2f}" for other in ("gkd", "sft")] if side in memory else ["", ""]
        mib = f"{memory[side]:,.0f}" if side in memory else ""
        rows.append([label, f"{statistics.median(seconds[side]):.2f}", mib, *times, *peak])
    print(table(["side", "s per step", "peak MiB", "time/GKD", "time/SFT", "memory/GKD", "memory/SFT"], rows))
    lora = median_ratio(seconds["self"], seconds["sft-lora"]), memory["self"] / memory["sft-lora"]
    print(f"\nself over TRL SFT with the same adapter: time {lora[0]:.2f}, memory {lora[1]:.2f}")
    if options.grow:
        found = grow(size, min(options.rounds, 3), options.steps)
        if options.plot is not None:
            plot(found, options.plot)
    if options.json:
        print_json({
            "ratio_time_vs_gkd": median_ratio(seconds["local"], seconds["gkd"]),
            "ratio_memory_vs_gkd": memory["local"] / memory["gkd"],
            "ratio_time_vs_trl_sft": median_ratio(seconds["local"], seconds["sft"]),
        })  # fmt: skip


if __name__ == "__main__":
    main()
