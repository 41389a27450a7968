"""Writes the folder of the embedded model: weights, tokenizer, how it was trained, model card."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

TRAINING = "training.json"


def save(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    output: Path,
    *,
    passes: list[dict[str, Any]],
    rates: dict[str, float],
) -> None:
    """Write the folder under another name, then move its files into place; the weights are stored in bfloat16.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        output: The folder; files of other names in it stay.
        passes: Settings of each training pass, the last one included.
        rates: Share of right completions per kind.
    """
    partial = output.with_name(output.name + f".partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    half: Any = copy.deepcopy(model).to(dtype=torch.bfloat16)
    half.save_pretrained(partial)
    tokenizer.backend_tokenizer.no_padding()  # a call that pads leaves it switched on
    tokenizer.save_pretrained(partial)
    parameters = sum(weight.numel() for weight in model.parameters())
    (partial / TRAINING).write_text(json.dumps(passes, indent=2) + "\n", encoding="utf-8")
    (partial / "README.md").write_text(model_card(parameters, rates), encoding="utf-8")
    output.mkdir(parents=True, exist_ok=True)
    for file in sorted(partial.iterdir()):
        file.chmod(0o644)
        file.replace(output / file.name)
    partial.rmdir()


def passes_of(folder: Path) -> list[dict[str, Any]]:
    """Return the settings of the passes that made the model in a folder."""
    return json.loads((folder / TRAINING).read_text(encoding="utf-8"))


def model_card(parameters: int, rates: dict[str, float]) -> str:
    """Return the model card, with the figures of this run."""
    rows = "\n".join(f"| {kind} | {rate:.1%} |" for kind, rate in rates.items())
    return (
        "---\nlicense: apache-2.0\nlanguage: en\npipeline_tag: text-generation\n---\n\n"
        "# The embedded model of trl-distill\n\n"
        f"A Llama-type model of {parameters / 1e6:.1f} million parameters, trained from nothing by\n"
        "`python -m tools.embedded_model.train` on instructions made by `tools.embedded_model.tasks`. It is there to\n"
        "try prompt distillation without a download; it knows no facts and no other language.\n\n"
        "Exactly right completions on held-out inputs, greedy:\n\n"
        f"| kind | right |\n|---|---|\n{rows}\n\n"
        f"The settings of each training pass are in `{TRAINING}`.\n"
    )
