"""Makes the embedded model: trains its tokenizer and its weights from nothing and writes the folder.

    python -m tools.embedded_model.train --output DIR

Data come from `tasks.py`, every figure from the seed. A prompt and its completion are tokenized apart and
appended, as trl-distill does. The loss is taken on completions alone; an instruction is followed several times
in a row (each time with another input), so that one long prompt teaches more than one completion.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .export import passes_of, save
from .lookup_init import start_with_lookup
from .measure import accuracy_by_kind
from .tasks import Example, make_example

PAD, END, START = "<|pad|>", "<|end|>", "<|start|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + '<|end|>\n' }}"
    "{% else %}{{ message['role'] | capitalize + ': ' + message['content'] + '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
IGNORED = -100


@dataclass(frozen=True)
class Settings:
    """What the model is and how it is trained.

    Attributes:
        steps: Optimizer steps.
        batch_tokens: Tokens a step reads, padding included.
        seed: Seeds data, order and weights.
        lr: Peak learning rate.
        warmup: Steps of linear warm-up.
        decay: Share of the steps at the end over which the learning rate falls to 0.
        lookup: Share of the steps at the start that learn look-ups alone, in batches a quarter as large.
        growth: Share of the steps, after those, over which instructions grow to their full length.
        hidden, layers, heads, inner: Sizes of the Llama-type model.
        vocabulary: Tokens.
        threads: CPU threads; figures are reproducible for the same number.
        focus: A kind of example to draw more often than the others; "" for none.
        focus_share: The share of all examples that it gets beside its own.
    """

    steps: int = 3000
    batch_tokens: int = 4096
    seed: int = 0
    lr: float = 3e-3
    warmup: int = 50
    decay: float = 0.4
    lookup: float = 0.1
    growth: float = 0.4
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    inner: int = 640
    vocabulary: int = 2560
    threads: int = 2
    focus: str = ""
    focus_share: float = 0.3


def train_tokenizer(settings: Settings) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on made examples: any text encodes, a word of the lists is one token."""
    rng = Random(f"tokenizer {settings.seed}")
    tokenizer = Tokenizer(models.BPE())
    # a blank in front makes a completion's first word the token it is inside the prompt
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[PAD, END, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (part for _ in range(10_000) for turn in make_example(rng, turns=2).turns for part in turn)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, bos_token=START, model_max_length=1024
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained model."""
    config = LlamaConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.hidden,
        intermediate_size=settings.inner,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, examples: list[Example]) -> list[tuple[list[int], list[int]]]:
    """Return (ids, labels) of each example; labels are -100 but on completions and the end that follows each."""
    texts = [part for example in examples for turn in example.turns for part in turn]
    tokenizer.backend_tokenizer.no_padding()  # a call that pads leaves it switched on
    encoded = iter(tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False))
    rows = []
    for example in examples:
        ids: list[int] = []
        labels: list[int] = []
        for _ in example.turns:
            prompt, completion = next(encoded).ids, [*next(encoded).ids, tokenizer.eos_token_id]
            ids += prompt + completion
            labels += [IGNORED] * len(prompt) + completion
        rows.append((ids, labels))
    return rows


def batches(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield `settings.steps` batches (ids, labels), both [B, S], of about `settings.batch_tokens` tokens.

    Rows wait in a bucket of their length, rounded up to 8, until it fills a batch: little padding, few shapes.
    """
    rng = Random(f"data {settings.seed}")
    buckets: dict[int, list[tuple[list[int], list[int]]]] = {}
    made = 0
    while made < settings.steps:
        progress = made / settings.steps
        kind, level, most, budget = _lesson(progress, settings)
        examples = []
        for _ in range(100):
            turns = rng.randint(1, most)
            drawn = settings.focus if settings.focus and rng.random() < settings.focus_share else kind
            examples.append(make_example(rng, kind=drawn, turns=turns, level=level))
        for row in encode(tokenizer, examples):
            length = -(-len(row[0]) // 8) * 8
            bucket = buckets.setdefault(length, [])
            bucket.append(row)
            if len(bucket) * length + length > budget and made < settings.steps:
                yield _pad(buckets.pop(length), length, tokenizer.pad_token_id)
                made += 1


def _lesson(progress: float, settings: Settings) -> tuple[str | None, float, int, int]:
    """Return kind (None: all), level, most turns and tokens of a batch: from short look-ups to everything."""
    if progress < settings.lookup:
        return "lookup", progress / settings.lookup, 8, settings.batch_tokens // 4
    grown = (progress - settings.lookup) / settings.growth if settings.growth else 1.0
    level = min(1.0, 0.05 + grown)
    if grown < 0.5:
        return None, level, 6, settings.batch_tokens // 2
    return None, level, 6 if grown < 1 else 4, settings.batch_tokens


def _pad(rows: list[tuple[list[int], list[int]]], length: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the right: causal attention then needs no mask, and padding has no label."""
    ids = torch.tensor([row + [pad] * (length - len(row)) for row, _ in rows])
    labels = torch.tensor([row + [IGNORED] * (length - len(row)) for _, row in rows])
    return ids, labels


def completion_loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of the completion tokens; ids and labels are [B, S]."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        kept = wanted != IGNORED
        logits = model.lm_head(hidden[kept])
    return functional.cross_entropy(logits.float(), wanted[kept])


def learning_rate_scale(step: int, settings: Settings) -> float:
    """Return the factor of the peak learning rate: linear warm-up, a plateau, a cosine to 0."""
    start = settings.steps * (1 - settings.decay)
    rise = min(1.0, (step + 1) / settings.warmup)
    fall = 1.0 if step < start else 0.5 + 0.5 * math.cos(math.pi * (step - start) / (settings.steps - start))
    return rise * fall


def make_optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the layers and AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr / 3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def train(
    settings: Settings, *, start: Path | None = None, snapshots: Path | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train tokenizer and model; prints the loss every hundred steps.

    Args:
        settings: Sizes, steps, seed.
        start: Folder of a model that an earlier call wrote, to train further; None starts from nothing.
        snapshots: Folder that is rewritten every 250 steps with the moving average of the weights, which stands in
            for a finished model while the learning rate is high.
    """
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    if start is None:
        tokenizer = train_tokenizer(settings)
        model = make_model(settings, tokenizer)
        start_with_lookup(model)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
        model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
    model.train()
    optimizers = make_optimizers(model, settings.lr)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    started, tokens, losses = time.perf_counter(), 0, []
    for step, (ids, labels) in enumerate(batches(settings, tokenizer)):
        loss = completion_loss(model, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * learning_rate_scale(step, settings)
            optimizer.step()
            optimizer.zero_grad()
        average.update_parameters(model)
        losses.append(loss.item())
        tokens += ids.numel()
        if (step + 1) % 100 == 0 or step + 1 == settings.steps:
            mean, seconds = sum(losses) / len(losses), time.perf_counter() - started
            speed = f"{tokens / seconds:,.0f} tokens/s"
            print(f"step {step + 1:5d}  loss {mean:.4f}  {speed}  {seconds:,.0f} s", flush=True)
            losses = []
        if snapshots is not None and (step + 1) % 250 == 0:
            save(average.module, tokenizer, snapshots, passes=[], rates={})
    return model.eval(), tokenizer


def main(argv: list[str] | None = None) -> None:
    """Train, measure and write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--measure", type=int, default=200, help="held-out examples a kind, measured at the end")
    parser.add_argument("--start", type=Path, help="a folder written before, to train its model further")
    parser.add_argument("--snapshots", type=Path, help="a folder to write the model to every 250 steps")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    given = vars(parser.parse_args(argv))
    output, count = given.pop("output"), given.pop("measure")
    folders = {"start": given.pop("start"), "snapshots": given.pop("snapshots")}
    settings = Settings(**given)
    model, tokenizer = train(settings, **folders)
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()  # what is measured is what is written
    rates = accuracy_by_kind(model, tokenizer, count=count) if count else {}
    for kind, rate in rates.items():
        print(f"{kind:10s} {rate:6.1%}")
    earlier = passes_of(folders["start"]) if folders["start"] else []
    save(model, tokenizer, output, passes=[*earlier, asdict(settings)], rates=rates)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
