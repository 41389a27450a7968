"""Rows that share a sequence are learnt as rows that do not, and what cannot be packed is said."""

from __future__ import annotations

import pytest
import torch
from checks import check_close
from conftest import make_tokenizer
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer

LETTERS = "abcdefg"
ROWS = {
    "prompt": [" ".join(LETTERS[(n + k) % 7] for k in range(1 + n % 4)) for n in range(8)],
    "completion": ["".join(f" {LETTERS[(3 * n + k) % 7]}" for k in range(1 + n % 5)) for n in range(8)],
}
ROOM = 16  # tokens: several rows a sequence, and several sequences
TEMPLATES = {"teacher_prompt_template": "g f e {input} d"}
LONG = {"teacher_prompt_template": " ".join("gfedcba" * 4) + " {input}"}
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.1,
}  # fmt: skip
GPT2 = {
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.1,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
# a window shorter than a row, so that one which counted the tokens of other rows would be seen
WINDOW = {"head_dim": 8, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, SHAPE),
    "gpt2": (GPT2LMHeadModel, GPT2Config, GPT2),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {**SHAPE, "head_dim": 8}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {**SHAPE, **WINDOW}),
}


def built(kind, config, shape, seed=0, **more):
    """Return a random model of the tests' vocabulary."""
    tokenizer = make_tokenizer()
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind._from_config(config(vocab_size=len(tokenizer), **ids, **shape), **more)


def trainer_of(student, teacher, folder, *, peft=None, evaluated=False, **settings):
    """Return a trainer of one batch a step over all rows, for three steps."""
    config = DistillationSFTConfig(
        **{
            "output_dir": str(folder), "per_device_train_batch_size": 8, "num_train_epochs": 3, "learning_rate": 1e-2,
            "bf16": False, "use_cpu": True, "report_to": "none", "logging_steps": 1, "save_strategy": "no",
            "disable_tqdm": True, "gradient_checkpointing": False, "dataloader_pin_memory": False, "max_length": ROOM,
            "lr_scheduler_type": "constant", "optim": "sgd", **TEMPLATES, **settings,
        },
        use_distillation=True,
    )  # fmt: skip
    return DistillationSFTTrainer(
        student, config, train_dataset=Dataset.from_dict(ROWS), processing_class=make_tokenizer(),
        eval_dataset=Dataset.from_dict(ROWS) if evaluated else None, teacher_model=teacher, peft_config=peft,
    )  # fmt: skip


TIMES = ("_runtime", "_per_second", "tokens_per_second", "train_runtime")


def figures(trainer):
    """Return the logged figures by step and name, without times."""
    return {
        f"{line['step']} {name}": torch.tensor(float(value))
        for line in trainer.state.log_history
        for name, value in line.items()
        if not name.endswith(TIMES) and name not in ("step", "total_flos")
    }


def learnt(trainer):
    """Train, and return the figures and the weights that were learnt."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    after = {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}
    moved = {name: after[name] - before[name] for name in before}
    assert all(change.norm() > 0 for name, change in moved.items() if "bias" not in name), "nothing was learnt"
    return figures(trainer), moved


def check_alike(packed, plain):
    """Fail where two runs differ by more than rounding: figures at 1e-5, what the weights moved by at 1e-4."""
    check_close(packed[0], plain[0], 1e-5)
    check_close(packed[1], plain[1], 1e-4)  # a key's bias moves by rounding alone


def run_of(family, folder, *, peft=None, attention="sdpa", **settings):
    """Return what a student of a family learns from a teacher of the same."""
    student, teacher = (built(*FAMILIES[family], seed=seed, attn_implementation=attention) for seed in (1, 2))
    return learnt(trainer_of(student, teacher, folder, peft=peft, **settings))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_are_learnt_as_others(family, attention, tmp_path):
    plain = run_of(family, tmp_path, attention=attention)
    for settings in ({"padding_free": True}, {"packing": True}):
        check_alike(run_of(family, tmp_path, attention=attention, **settings), plain)


@pytest.mark.parametrize(
    "settings",
    [
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"pad_to_multiple_of": 16},
        {"gradient_checkpointing": True},
        {"distill_alpha": 0.0},
        {"distill_divergence": "jsd", "student_prompt_template": "{input} a"},
    ],
    ids=["accumulation", "multiple", "checkpointing", "no teacher", "jsd"],
)
def test_packing_goes_with_other_settings(settings, tmp_path):
    check_alike(run_of("llama", tmp_path, packing=True, **settings), run_of("llama", tmp_path, **settings))


@pytest.mark.parametrize("name", ["padding_free", "packing"])
def test_an_adapter_learns_the_same(name, tmp_path):
    runs = []
    for settings in ({}, {name: True}):
        torch.manual_seed(0)  # the adapter's first weights
        runs.append(run_of("llama", tmp_path, peft=LORA, **settings))
    check_close(runs[1][0], runs[0][0], 1e-5)
    check_close(runs[1][1], runs[0][1], 1e-4)
