"""Stored targets of each kind: bytes per completion token, what is lost against full logits, and the time of a step.

    python benchmarks/stored_targets.py [--tokens 8192] [--vocabulary 150000] [--rounds 5] [--json]

The teacher is the embedded model; the student is the teacher with noise on its weights. Two texts: completions of the
embedded model's own tasks, which it is sure of, and the pages of this repository, which it does not know. For the size
its 2,560 token ids are spread over a larger vocabulary, as a larger model's would be. Errors are those of the
divergence and of its gradients against full logits, by relative norm: in each token's hidden states, and summed over
all tokens in the student's LM head, where errors that have no direction cancel.

A step is a whole optimizer step of a random student (256 wide, 4 layers, 50,257 tokens; batch 4 x 256, half of it
completion), from a store against the same trainer with alpha 0, which is plain SFT with our head.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import alternating, machine, median_ratio, print_json, table
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer
from trl_distill.data.collator import DistillationCollator
from trl_distill.embedded import embedded_path
from trl_distill.losses.lm_head import LMHead, ModelSide
from trl_distill.losses.signals import DenseSignal, LossSettings, TeacherSignal
from trl_distill.models.completion_forward import add_completion_forward
from trl_distill.models.lm_head import lm_head_of
from trl_distill.teachers.target_store.folder import TargetFolder, TargetRow, sequence_key
from trl_distill.teachers.target_store.formats import Span, format_of

sys.path.insert(0, str(Path(__file__).parents[1]))  # tools/ is beside this folder
from tools.embedded_model.measure import held_out_examples
from tools.embedded_model.tasks import KINDS

ROOT = Path(__file__).parents[1]
STORED = [*(("topk", k) for k in (16, 50, 64, 256)), *(("sample", k) for k in (16, 50, 64, 256)), ("hidden", 0)]
LENGTH = 128
TEMPERATURES = (1.0, 3.0)
Rows = list[dict[str, list[int]]]


def read_texts(tokens: int) -> dict[str, Rows]:
    """Return rows of about `tokens` completion tokens of each text."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_path())
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    ids = [i for page in pages for i in tokenizer(page.read_text(encoding="utf-8"), verbose=False)["input_ids"]]
    parts = [ids[i : i + LENGTH] for i in range(0, min(tokens, len(ids)), LENGTH)]
    known: Rows = []
    for example in (e for kind in KINDS for e in held_out_examples(kind, tokens // 8 // len(KINDS))):
        prompt, completion = (tokenizer(text)["input_ids"] for text in (example.prompt, example.completion))
        known.append({"prompt": prompt, "completion": [*completion, tokenizer.eos_token_id]})
    return {"its tasks": known, "pages": [{"prompt": part[:1], "completion": part[1:]} for part in parts]}


@torch.no_grad()
def hidden_of(model: Any, rows: Rows) -> torch.Tensor:
    """Return the hidden states [N, H] that predict the rows' completion tokens."""
    add_completion_forward(model)
    collate, parts = DistillationCollator(pad_token_id=0), []
    for start in range(0, len(rows), 16):
        part = rows[start : start + 16]
        batch = collate([{**row, "student_prompt": row["prompt"], "teacher_prompt": row["prompt"]} for row in part])
        taken = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        parts.append(model(**taken, completion_labels=batch["labels"]).hidden)
    return torch.cat(parts)


def bytes_per_token(arrays: dict[str, np.ndarray], rows: Rows, vocabulary: int, spread: np.ndarray) -> float:
    """Return the size of shards of 256 rows, by completion token.

    Args:
        arrays: What a kind stores of all completion tokens.
        rows: The rows.
        vocabulary: Tokens of the model that is stood in for.
        spread: [2560], the id of each of the embedded model's tokens in it.
    """
    arrays = {name: spread[array] if name.startswith("token_ids") else array for name, array in arrays.items()}
    stored, end = [], 0
    for row in rows:
        begin, end = end, end + len(row["completion"])
        own = {name: array[begin:end] for name, array in arrays.items()}
        stored.append(TargetRow(sequence_key(**row), spread[row["completion"]], own))
    with tempfile.TemporaryDirectory() as folder:
        store, size = TargetFolder(folder), 0
        for start in range(0, len(stored), 256):
            store.write_shard("shard.parquet", stored[start : start + 256], vocabulary=vocabulary)
            size += (store.folder / "shard.parquet").stat().st_size
    return size / end


class Side:
    """Teacher and student on one text."""

    def __init__(self, teacher: Any, student: Any, rows: Rows) -> None:
        self.rows = rows
        self.theirs, self.mine = hidden_of(teacher, rows), hidden_of(student, rows).requires_grad_()
        self.student, head = (LMHead(lm_head_of(model).weight.detach().clone()) for model in (student, teacher))
        self.student.weight.requires_grad_()
        self.full = DenseSignal(self.theirs, head)
        self.labels = torch.tensor([i for row in rows for i in row["completion"]])
        self.right = {t: self.loss(self.full, t) for t in TEMPERATURES}

    def loss(self, targets: TeacherSignal, temperature: float) -> tuple[float, torch.Tensor, torch.Tensor]:
        """Return the divergence, and its gradients in the student's hidden states and head."""
        out = targets.loss(ModelSide(self.mine, self.student), self.labels, LossSettings(1.0, temperature))
        return out.loss.item(), *torch.autograd.grad(out.loss, (self.mine, self.student.weight))

    def line(self, name: str, k: int, vocabulary: int, spread: np.ndarray) -> list[str]:
        """Return the figures of one kind."""
        form = format_of(name, k=k, temperatures=TEMPERATURES, vocabulary=len(spread))
        spans = [Span(sequence_key(**row), len(row["completion"])) for row in self.rows]
        arrays = form.encode(self.full, spans)
        as_read = {n: torch.from_numpy(a.astype(np.int64) if a.dtype.kind == "u" else a) for n, a in arrays.items()}
        targets = form.decode(as_read, self.full.head)
        cells = [f"{bytes_per_token(arrays, self.rows, vocabulary, spread):,.0f}"]
        for temperature in TEMPERATURES:
            (loss, *gradients), (expected, *right) = self.loss(targets, temperature), self.right[temperature]
            errors = [(g - r).norm() / r.norm() for g, r in zip(gradients, right, strict=True)]
            cells += [f"{(loss - expected) / expected:+.1%}", *(f"{error.item():.1%}" for error in errors)]
        return cells


def save_model(folder: Path, width: int, layers: int) -> None:
    """Write a random model of 50,257 tokens with the embedded model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_path())
    config = LlamaConfig(
        vocab_size=50_257, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=1024, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_trainer(folder: Path, store: str | None) -> Any:
    """Return a trainer of two steps: from a store of this kind, or with alpha 0."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_path())
    words = tokenizer.decode(tokenizer("lamp river stone " * 200)["input_ids"][:127])
    rows = {"prompt": [f"{i} {words}" for i in range(8)], "completion": [words] * 8}
    kind = {} if store is None else {"teacher_store": str(folder / store), "teacher_store_kind": store}
    config = DistillationSFTConfig(
        output_dir=tempfile.mkdtemp(), use_distillation=True, teacher_model=str(folder / "teacher"), max_steps=2,
        distill_alpha=0.7 if store else 0.0, use_cpu=True, per_device_train_batch_size=4, bf16=False, report_to="none",
        save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, dataloader_pin_memory=False,
        logging_strategy="no", max_length=256, **kind,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):  # the pre-flight
        return DistillationSFTTrainer(
            AutoModelForCausalLM.from_pretrained(folder / "student"), config, train_dataset=Dataset.from_dict(rows),
            processing_class=AutoTokenizer.from_pretrained(folder / "student"),
        )  # fmt: skip


def time_steps(rounds: int) -> dict[str, list[float]]:
    """Return the seconds of two steps by side, the sides in turn."""
    with tempfile.TemporaryDirectory() as name:
        save_model(Path(name) / "student", 256, 4)
        save_model(Path(name) / "teacher", 512, 6)
        sides = {side: make_trainer(Path(name), None if side == "alpha 0" else side) for side in ("alpha 0", *NAMES)}
        return alternating({side: trainer.train for side, trainer in sides.items()}, rounds=rounds)


NAMES = ("topk", "sample", "hidden")


def main() -> None:
    """Print a table of each text, and of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=150_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the figures as one last line too")
    given = parser.parse_args()
    teacher = AutoModelForCausalLM.from_pretrained(embedded_path(), dtype="float32").eval()
    student = copy.deepcopy(teacher)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.1)
    spread = np.random.default_rng(0).choice(given.vocabulary, teacher.config.vocab_size, replace=False)
    print(machine("torch", "pyarrow", "datasets"))
    what = ("loss", "gradient", "head's")
    head = ["kind", "bytes per token", *(f"{part}, T={t:g}" for t in TEMPERATURES for part in what)]
    for name, rows in read_texts(given.tokens).items():
        side = Side(teacher, student, rows)
        print(f"\nErrors on {name}, {len(side.labels):,} tokens, teacher {side.theirs.shape[1]} wide:\n")
        lines = [[f"{kind} {k or ''}".strip(), *side.line(kind, k, given.vocabulary, spread)] for kind, k in STORED]
        print(table(head, lines))
    seconds = time_steps(given.rounds)
    ratios = {name: median_ratio(seconds[name], seconds["alpha 0"]) for name in NAMES}
    print("\nTime of a step against plain SFT with the same head (alpha 0):\n")
    cells = [[n, f"{statistics.median(seconds[n]) / 2:.2f}", f"{ratios.get(n, 1.0):.2f}"] for n in seconds]
    print(table(["from", "s per step", "ratio"], cells))
    if given.json:
        print_json({f"ratio_time_{name}_vs_sft": ratio for name, ratio in ratios.items()})


if __name__ == "__main__":
    main()
