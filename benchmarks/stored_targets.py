"""Stored targets: bytes per completion token, what is lost against full logits, and the time of the loss, by k.

    python benchmarks/stored_targets.py [--tokens 8192] [--vocabulary 150000]

The teacher is the embedded model; the student is the teacher with noise on its weights. Two texts: completions of the
embedded model's own tasks, which it is sure of, and the pages of this repository, which it does not know. For the size
its 2,560 token ids are spread over a larger vocabulary, as a larger model's would be. Errors are those of the
divergence and of its gradient in the student's hidden states (by relative norm) against full logits.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import alternating, machine, median_ratio, table
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill.collator import DistillationCollator
from trl_distill.embedded import embedded_path
from trl_distill.embedded.measure import held_out_examples
from trl_distill.embedded.tasks import KINDS
from trl_distill.forward import add_completion_forward
from trl_distill.lm_head import LMHead
from trl_distill.losses import fused_distillation_loss, topk_distillation_loss
from trl_distill.targets import HiddenTargets
from trl_distill.teachers.shards import TargetFolder, TargetRow, sequence_key
from trl_distill.teachers.teaching import topk_arrays

ROOT = Path(__file__).parents[1]
SIZES = (16, 50, 64, 256)
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


def bytes_per_token(arrays: tuple[np.ndarray, ...], rows: Rows, vocabulary: int, spread: np.ndarray) -> float:
    """Return the size of shards of 256 rows, by completion token.

    Args:
        arrays: What `topk_arrays` returned for all completion tokens.
        rows: The rows.
        vocabulary: Tokens of the model that is stood in for.
        spread: [2560], the id of each of the embedded model's tokens in it.
    """
    stored, end = [], 0
    for row in rows:
        begin, end = end, end + len(row["completion"])
        ids, *others = (array[begin:end] for array in arrays)
        stored.append(TargetRow(sequence_key(**row), spread[row["completion"]], spread[ids], *others))
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
        self.heads = [LMHead.of(model).weight.detach() for model in (student, teacher)]
        self.targets = torch.tensor([i for row in rows for i in row["completion"]])

    def full(self, temperature: float) -> tuple[float, torch.Tensor]:
        """Return the divergence by full logits, and its gradient."""
        out = fused_distillation_loss(
            *(self.mine, self.heads[0], self.theirs, self.heads[1], self.targets), alpha=1.0, temperature=temperature
        )
        return out.loss.item(), torch.autograd.grad(out.loss, self.mine)[0]

    def stored(self, arrays: tuple[np.ndarray, ...], column: int) -> tuple[float, torch.Tensor]:
        """Return the same from stored targets."""
        ids, log_probs, normalizers = (torch.from_numpy(array) for array in arrays)
        out = topk_distillation_loss(
            *(self.mine, self.heads[0], self.targets), token_ids=ids, log_probs=log_probs.float(),
            log_normalizer=normalizers[:, column], vocabulary=len(self.heads[0]), alpha=1.0,
            temperature=TEMPERATURES[column],
        )  # fmt: skip
        return out.loss.item(), torch.autograd.grad(out.loss, self.mine)[0]

    def line(self, k: int, vocabulary: int, spread: np.ndarray) -> list[str]:
        """Return the figures of one k."""
        head = LMHead(self.heads[1])
        arrays = topk_arrays(HiddenTargets(self.theirs, head), k=k, temperatures=TEMPERATURES)
        cells = [f"{bytes_per_token(arrays, self.rows, vocabulary, spread):.0f}"]
        for column, temperature in enumerate(TEMPERATURES):
            (loss, gradient), (expected, right) = self.stored(arrays, column), self.full(temperature)
            error = (gradient - right).norm() / right.norm()
            cells += [f"{abs(loss - expected) / expected:.1%}", f"{error.item():.1%}"]
        return cells


def time_ratio(*, tokens: int = 512, vocabulary: int = 50_257, k: int = 64) -> float:
    """Return the time of the loss from stored targets over that of the cross-entropy alone, gradients included."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, 256, requires_grad=True), torch.randn(vocabulary, 256) / 16
    weight.requires_grad_()
    log_p, targets = torch.randn(tokens, vocabulary).log_softmax(-1), torch.randint(vocabulary, (tokens,))
    top = log_p.topk(k)
    stored = {"token_ids": top.indices, "log_probs": top.values, "log_normalizer": torch.logsumexp(log_p / 3, -1)}

    def plain() -> None:
        out = fused_distillation_loss(hidden, weight, None, None, targets, alpha=0.0, temperature=3.0)
        torch.autograd.grad(out.loss, (hidden, weight))

    def ours() -> None:
        out = topk_distillation_loss(
            hidden, weight, targets, **stored, vocabulary=vocabulary, alpha=0.7, temperature=3.0
        )
        torch.autograd.grad(out.loss, (hidden, weight))

    seconds = alternating({"ours": ours, "plain": plain}, rounds=5)
    return median_ratio(seconds["ours"], seconds["plain"])


def main() -> None:
    """Print a table of each text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=150_000)
    given = parser.parse_args()
    teacher = AutoModelForCausalLM.from_pretrained(embedded_path(), dtype="float32").eval()
    student = copy.deepcopy(teacher)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.1)
    spread = np.random.default_rng(0).choice(given.vocabulary, teacher.config.vocab_size, replace=False)
    print(machine("torch", "pyarrow"))
    head = ["k", "bytes per token", *(f"{what}, T={t:g}" for t in TEMPERATURES for what in ("loss", "gradient"))]
    for name, rows in read_texts(given.tokens).items():
        side = Side(teacher, student, rows)
        print(f"\nErrors on {name}, {len(side.targets):,} tokens:\n")
        print(table(head, [[str(k), *side.line(k, given.vocabulary, spread)] for k in SIZES]))
    print(f"\nLoss from the store over cross-entropy alone, N=512, V=50,257, k=64: {time_ratio():.2f} of the time")


if __name__ == "__main__":
    main()
