"""Tries every architecture that transformers lists as a causal LM and writes docs/architectures.md.

    python docs/architectures.py [MODEL_TYPE ...]

Each is built with random weights from a configuration that is shrunk by rule (`shrunk`) and by the exceptions in
`SETTINGS`. The loss and all gradients of the student (alpha 0.6, T = 2, a random teacher) are held against a bare loop
over the model's own full logits, both in float64 if the model computes in it. With names, only those are tried and
nothing is written.
"""

from __future__ import annotations

import copy
import gc
import re
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from trl_distill.errors import ModelError
from trl_distill.losses.lm_head import LMHead
from trl_distill.losses.signals import DenseSignal, LossSettings
from trl_distill.models.architectures import ENCODERS, check_causal
from trl_distill.models.completion_forward import OWN_LOGITS, add_completion_forward
from trl_distill.models.logits_check import check_logits

DECODER = "(is_decoder=True)"
PAGE = Path(__file__).with_suffix(".md")
ROWS, ALPHA, T = 64, 0.6, 2.0
MOST = 3_000_000  # parameters
IDS = torch.tensor([[3, 17, 11, 24, 9, 22, 31, 12, 6, 40], [5, 50, 28, 41, 13, 7, 19, 0, 0, 0]])
MASK = torch.tensor([[1] * 10, [1] * 7 + [0] * 3])
LABELS = torch.where((torch.arange(10) >= 4) & MASK.bool(), IDS, -100)

SMALL = {
    64: "vocab_size vocab_size_per_layer_input text_vocab_size n_vocab unpadded_vocab_size "
        "encoder_hash_byte_group_vocab max_position_embeddings n_positions n_ctx max_seq_len max_seq_length",
    32: "hidden_size d_model n_embd dim embed_dim emb_dim embedding_size embedding_dim word_embed_proj_dim dim_model "
        "mamba_d_ssm lru_width attention_hidden_size",
    16: "qk_head_dim q_lora_rank kv_lora_rank o_lora_rank",
    8: "head_dim dim_head kv_channels attention_head_size qk_nope_head_dim qk_rope_head_dim v_head_dim "
       "global_head_dim mamba_d_head mamba_head_dim mamba_headdim linear_key_head_dim linear_value_head_dim rotary_dim "
       "index_head_dim indexer_head_dim mamba_n_heads n_mamba_heads",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts "
       "num_local_experts n_routed_experts moe_num_experts",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers num_blocks "
       "num_key_value_heads multi_query_group_num n_groups mamba_n_groups num_experts_per_tok moe_topk top_k moe_k "
       "num_experts_per_token moe_top_k num_selected_experts zero_expert_num",
    1: "n_group topk_group",
}  # fmt: skip
EXACT = {name: value for value, names in SMALL.items() for name in names.split()}
OFTEN_NONE = ("head_dim", "lru_width", "num_key_value_heads", "num_experts_per_tok", "num_local_experts")
LARGE = re.compile("size|dim|rank|width|channels|ffn|inner|intermediate|d_ff")
KEPT = re.compile("token|patch|window|chunk|block_size|conv|kernel|image|temporal|spatial")
SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "bailing_hybrid": {"n_group": 1, "topk_group": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "activation_sparsity_pattern": [0.0, 0.0],
        "intermediate_size": [32, 32],
    },
    "falcon_h1": {"mamba_n_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": None}},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2},
    "mamba2": {"num_heads": 8},
    "reformer": {"axial_pos_embds": False, "is_decoder": True},
    f"xmod {DECODER}": {"default_language": "en_XX"},
    # what these have between the backbone and the logits, at values that show
    "granite": {"logits_scaling": 8.0},
    "mpt": {"logit_scale": 0.5},
    "recurrent_gemma": {"num_hidden_layers": 3, "logits_soft_cap": 1.0},
    "xlstm": {"output_logit_soft_cap": 1.0, "hidden_size": 128, "embedding_dim": 128},
}


HEAD = """# Architectures

Every type that transformers {version} lists as a causal language model, and its encoders a second time as decoders.
`python docs/architectures.py` tried them with small random weights on a CPU (torch {torch}): of {all}, {worked} learn,
{refused} are refused and {untried} were not tried.

Before training, the logits that hidden states and LM head give are compared with the model's own on one short row, for
student and teacher. If they differ by more than 1e-3 of the largest (2e-2 in half precision), those of the model's own
forward are used and one line says so; that is slower, and the logits of all completion tokens of a batch are then in
memory at a time. `head`: the LM head gives them ({head}). `own logits`: the model's own forward does ({own}).

<!-- tests/models/test_logits_check.py::test_a_trainer_learns_what_the_models_own_logits_say -->
<!-- tests/models/test_logits_check.py::test_a_student_of_an_unknown_family_learns_from_its_own_logits -->
<!-- tests/models/test_logits_check.py::test_a_teacher_of_an_unknown_family_teaches_by_its_own_logits -->

The errors are those of one loss (alpha 0.6, T = 2, a random teacher) and of all its gradients together, relative to a
bare loop over the model's own full logits. A model that computes something in float32 by itself, or cannot compute in
float64, has the errors of float32.

{tables}
"""


def shrunk(config: Any) -> Any:
    """Return a configuration with its sizes made small, those of its parts too."""
    for name, value in list(vars(config).items()):
        if name.startswith("_") or isinstance(value, bool):
            continue
        if hasattr(value, "to_dict"):
            shrunk(value)
        elif name in EXACT and (isinstance(value, int) or (value is None and name in OFTEN_NONE)):
            setattr(config, name, EXACT[name])
        elif isinstance(value, int) and value > ROWS and LARGE.search(name) and not KEPT.search(name):
            setattr(config, name, 32)
        elif isinstance(value, int) and value >= ROWS and name.endswith("_id"):
            setattr(config, name, 3)
    layers = getattr(config, "num_hidden_layers", 2)
    for name in ("layer_types", "mlp_layer_types"):
        kinds = getattr(config, name, None)
        if kinds and len(kinds) > layers:  # one of each kind, as far as there are layers
            different = list(dict.fromkeys(kinds))
            setattr(config, name, (different + different[-1:] * layers)[:layers])
    if "kv_lora_rank" in vars(config):  # every head has its own keys there
        config.num_key_value_heads = config.num_attention_heads
    return config


def configuration(kind: str) -> Any:
    """Return the default configuration of a type, or of a type of encoders that is built as a decoder."""
    name, _, decoder = kind.partition(" ")
    config: Any = CONFIG_MAPPING[name]()
    if decoder:
        config.is_decoder = True
    return config


def tiny(kind: str, *, rows: int = ROWS) -> Any:
    """Return a small random model of a type, in evaluation mode.

    Args:
        kind: The type, as `configuration` takes it.
        rows: Of its vocabulary.

    Raises:
        RuntimeError: It stays too large.
        Exception: What the family's own code raises for a small configuration.
    """
    config = shrunk(configuration(kind))
    for name, value in SETTINGS.get(kind, {}).items():
        setattr(config.get_text_config(), name, value)
    for name in ("vocab_size", "unpadded_vocab_size"):
        if getattr(config.get_text_config(), name, None):
            setattr(config.get_text_config(), name, rows)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST:
        raise RuntimeError(f"{size / 1e6:.0f}M parameters even so")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and parameter.is_floating_point():  # so that the logits are far from uniform
                parameter.normal_(std=0.2)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
        logits_of(model)  # it has to run by itself
    return model


def logits_of(model: Any) -> torch.Tensor:
    """Return the model's own logits [B, S, V]."""
    return model(input_ids=IDS, attention_mask=MASK, use_cache=False).logits


def bare_loss(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the loss of full logits [B, S, V] against a teacher's of the completion [N, V], position by position."""
    total, k = logits.new_zeros((), dtype=teacher.dtype), 0
    for row, labels in zip(logits, LABELS, strict=True):
        for place in (labels != -100).nonzero()[:, 0].tolist():
            z = row[place - 1].to(teacher.dtype)
            p, log_q = F.softmax(teacher[k] / T, -1), F.log_softmax(z / T, -1)
            total = total + ALPHA * T**2 * (p * (p.log() - log_q)).sum()
            total = total - (1 - ALPHA) * F.log_softmax(z, -1)[labels[place]]
            k += 1
    return total


def bare_gradients(bare: Any, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of a model by the bare loop, and all its gradients as one vector."""
    loss = bare_loss(logits_of(bare), teacher)
    return loss.detach(), gradients(bare, loss)


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    """Return the gradients of a loss as one vector."""
    loss.backward()
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained(model)]
    return torch.cat(parts).double()


def trained(model: Any) -> list[torch.Tensor]:
    """Return the parameters that are trained."""
    return [p for p in model.parameters() if p.requires_grad]


def prepared(kind: str) -> tuple[Any, DenseSignal, tuple[torch.Tensor, torch.Tensor]]:
    """Return a small model, a random teacher, and the bare loop's loss and gradients.

    Raises:
        ModelError: A type that is refused.
        Exception: What the family's own code raises.
    """
    check_causal(kind, configuration(kind), role="model")
    model = tiny(kind)
    try:
        model = copy.deepcopy(model).double()
        with torch.no_grad():
            logits_of(model)
    except Exception:  # some compute in float32 by themselves
        model = tiny(kind)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        rows = logits_of(model).shape[-1]
    tokens = int((LABELS != -100).sum())
    hidden, weight = (torch.randn(n, 8, generator=generator, dtype=model.dtype) for n in (tokens, rows))
    return model, DenseSignal(hidden, LMHead(weight)), bare_gradients(copy.deepcopy(model), hidden @ weight.T)


def tried(kind: str) -> tuple[str, str]:
    """Return how a type gets its logits and what that is off by; or that it is refused or was not tried, and why."""
    try:
        model, teacher, (expected, right) = prepared(kind)
    except ModelError as error:
        return "refused", str(error).partition(" is ")[2].partition(";")[0]
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        return "not tried", f"{type(error).__name__}: {reason}"[:120].replace("|", "/")
    add_completion_forward(model)
    try:
        check_logits(model, model)
    except ModelError as error:
        return "refused", str(error).rstrip(".")
    loss = model(
        input_ids=IDS, attention_mask=MASK, completion_labels=LABELS, loss_settings=LossSettings(ALPHA, T),
        teacher_signal=teacher,
    ).loss  # fmt: skip
    off = float((loss.detach() - expected).abs() / expected.abs())
    gradient = float((gradients(model, loss) - right).norm() / right.norm())
    how = "own logits" if hasattr(model, OWN_LOGITS) else "head"
    return how, f"{str(model.dtype).removeprefix('torch.')} | {off:.0e} | {gradient:.0e}"


def page(results: dict[str, tuple[str, str]]) -> str:
    """Return the page of all results."""
    worked = {kind: figures for kind, (how, figures) in results.items() if how in ("head", "own logits")}
    counts = Counter(how for how, _ in results.values())
    tables = [
        "| architecture | logits | computed in | loss | gradients |\n|---|---|---|---|---|\n"
        + "\n".join(f"| {kind} | {results[kind][0]} | {figures} |" for kind, figures in worked.items()),
        *(
            f"| {how} | why |\n|---|---|\n"
            + "\n".join(f"| {kind} | {why} |" for kind, (found, why) in results.items() if found == how)
            for how in ("refused", "not tried", "failed")
            if counts[how]
        ),
    ]
    return HEAD.format(
        version=transformers.__version__, torch=torch.__version__, all=len(results), worked=len(worked),
        head=counts["head"], own=counts["own logits"], refused=counts["refused"], untried=counts["not tried"],
        tables="\n\n".join(tables),
    )  # fmt: skip


def main() -> None:
    """Write the page, or print what was asked for."""
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    names = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    kinds = sys.argv[1:] or [*names, *(f"{name} {DECODER}" for name in names if name in ENCODERS)]
    results = {}
    for kind in kinds:
        try:
            results[kind] = tried(kind)
        except Exception as error:
            results[kind] = ("failed", f"{type(error).__name__}: {error}".splitlines()[0])
        print(f"{kind:26} {' | '.join(results[kind])}", flush=True)
        gc.collect()
    if not sys.argv[1:]:
        PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
