"""Starting weights that can already look things up.

From random weights a small model reads tens of millions of tokens before it finds that a word asked about also
stands further up, with its value behind it. Here the first layer's heads start by looking 1, 2 and 3 tokens
back, and the second layer's heads by looking for the token whose neighbour that was. Everything is trained
from there, and the other layers start at random.
"""

from __future__ import annotations

import torch
from transformers import LlamaForCausalLM

OFFSETS = (1, 2, 3)
SCALE = 0.4  # of a token's embedding
HEAD_SCALE = 0.04  # of the same token's row in the LM head: what is copied is what is written
CONSTANT = 8  # times that, in place 0 of every embedding: what a head can attend from whatever the token


@torch.no_grad()
def start_with_lookup(model: LlamaForCausalLM, *, sharpness: float = 24.0, match: float = 3.0) -> None:
    """Set the first two layers' attention; draws from torch's global generator.

    Args:
        model: An untrained model with at least two layers and four heads, as many keys as queries.
        sharpness: Length of the query and of the key that make a first-layer head look back.
        match: Scale of query and key in the second layer, where a head compares tokens.
    """
    config = model.config
    hidden, width = config.hidden_size, config.hidden_size // config.num_attention_heads
    slow, fast = _bands(width)
    table = model.model.embed_tokens.weight
    free = 1 + len(OFFSETS) * len(slow)  # places before are kept for the constant and for tokens looked back at
    table.normal_(0.0, SCALE)
    table[:, :free] = 0.0
    model.lm_head.weight.copy_(table * (HEAD_SCALE / SCALE))
    table[:, 0] = CONSTANT * SCALE
    seen = CONSTANT / ((CONSTANT**2 + hidden - free) / hidden) ** 0.5  # the constant behind the norm
    for layer in model.model.layers:
        for output in (layer.self_attn.o_proj, layer.mlp.down_proj):
            output.weight[:free] = 0.0
    back, search = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    for head, offset in enumerate(OFFSETS):
        first = head * width
        here = torch.zeros(width)
        here[fast] = sharpness / len(fast) ** 0.5
        back.k_proj.weight[first : first + width, 0] = here / seen
        back.q_proj.weight[first : first + width, 0] = _turned(model, here, -offset) / seen
        read = _orthogonal(len(slow), hidden, free)
        kept = torch.arange(1 + head * len(slow), 1 + (head + 1) * len(slow))
        back.v_proj.weight[first + slow] = read
        back.o_proj.weight[kept, first + slow] = SCALE
        search.q_proj.weight[first + slow] = match * read
        search.k_proj.weight[first + slow] = 0.0
        search.k_proj.weight[first + slow, kept] = match
        copy = _orthogonal(width, hidden, free)
        search.v_proj.weight[first : first + width] = copy
        search.o_proj.weight[:, first : first + width] = SCALE * copy.T


def _bands(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the places of a head that positions turn slowly and those that they turn fast."""
    half = width // 2
    slow = torch.arange(half * 5 // 8, half)
    fast = torch.arange(0, half // 4)
    return torch.cat([slow, slow + half]), torch.cat([fast, fast + half])


def _turned(model: LlamaForCausalLM, vector: torch.Tensor, positions: int) -> torch.Tensor:
    """Return the vector as the rotary embedding turns it at a position."""
    angle = positions * model.model.rotary_emb.inv_freq.float()
    left, right = vector.chunk(2)
    return torch.cat([left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()])


def _orthogonal(rows: int, columns: int, free: int) -> torch.Tensor:
    """Return orthonormal rows that are zero in the places before `free`."""
    found = torch.zeros(rows, columns)
    found[:, free:] = torch.linalg.qr(torch.randn(columns - free, rows))[0].T
    return found
