"""Time of a teacher's scoring of a batch, with the prompt's common prefix read once and with whole prompts."""

from __future__ import annotations

import argparse
import functools
import statistics

import torch
from _measure import alternating, machine, median_ratio, print_json, table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trl_distill.data.collator import DistillationCollator
from trl_distill.embedded import embedded_path
from trl_distill.teachers.loading import load_teacher

VOCABULARY = 2560


def make_teacher(width: int, layers: int):
    """Return a teacher with random weights."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=8, max_position_embeddings=4096, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(embedded_path())
    return load_teacher(LlamaForCausalLM(config).eval(), tokenizer=tokenizer)


def make_batch(prefix: int, rest: int, completion: int, rows: int):
    """Return a batch whose teacher's prompts begin alike."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(10, VOCABULARY, (count,), generator=generator).tolist()

    front = ids(prefix)
    return DistillationCollator(pad_token_id=0)(
        [
            {"student_prompt": [5], "teacher_prompt": front + ids(rest), "completion": ids(completion)}
            for _ in range(rows)
        ]
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefixes", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--input", type=int, default=32, help="tokens of a row's input")
    parser.add_argument("--completion", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print the ratios as one last line too")
    options = parser.parse_args()
    torch.set_num_threads(2)
    print(machine("torch", "transformers"))
    shape = f"batch {options.batch}, inputs {options.input}, completions {options.completion}"
    print(f"teacher 512 x 6 layers, {shape}, fp32; medians of {options.rounds} alternating runs\n")
    rows, figures = [], {}
    for prefix in options.prefixes:
        reusing, plain = make_teacher(512, 6), make_teacher(512, 6)
        plain.prefix.off = "measured without"
        batch = make_batch(prefix, options.input, options.completion, options.batch)
        error = (reusing.score(batch).hidden - plain.score(batch).hidden).abs().max()
        sides = {name: functools.partial(one.score, batch) for name, one in (("reused", reusing), ("whole", plain))}
        seconds = alternating(sides, rounds=options.rounds)
        ratio = median_ratio(seconds["reused"], seconds["whole"])
        medians = [statistics.median(seconds[name]) for name in ("whole", "reused")]
        rows.append([f"{prefix:,}", *(f"{x:.3f}" for x in medians), f"{ratio:.3f}", f"{error:.1e}"])
        figures[f"ratio_{prefix}"] = ratio
    print(table(["prefix", "whole prompts s", "prefix reused s", "ratio", "largest difference of hidden states"], rows))
    if options.json:
        print_json(figures)


if __name__ == "__main__":
    main()
