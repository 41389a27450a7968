"""The loss stays within `tile_bytes` beside its inputs and gradients, and a step's memory within the loss's."""

from __future__ import annotations

import pytest
import torch

from trl_distill.losses import fused_distillation_loss

MIB = 2**20
TILE = 64 * MIB
WIDTH, VOCABULARY = 256, 32_000


def peak_of_loss(tokens, gpu, *, trained=True):
    """Return the bytes that the loss and its gradients take at most above the inputs, the kernels loaded already."""
    memory = torch.get_device_module(gpu)
    generator = torch.Generator(gpu).manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, device=gpu).to(torch.bfloat16)

    student, weight = normal(tokens, WIDTH).requires_grad_(), normal(VOCABULARY, WIDTH).requires_grad_(trained)
    given = (student, weight, normal(tokens, WIDTH), normal(VOCABULARY, WIDTH))
    targets = torch.randint(VOCABULARY, (tokens,), generator=generator, device=gpu)
    for _ in range(2):
        student.grad = weight.grad = None
        memory.synchronize()
        before = memory.memory_allocated()
        memory.reset_peak_memory_stats()
        fused_distillation_loss(*given, targets, alpha=0.7, temperature=2.0, tile_bytes=TILE).loss.backward()
        memory.synchronize()
    return memory.max_memory_allocated() - before


@pytest.mark.parametrize("trained", [True, False], ids=["trained head", "frozen head"])
def test_the_loss_takes_its_tiles_and_its_gradients(trained, gpu):
    tokens = 4096
    numbers = tokens * WIDTH + (VOCABULARY * WIDTH if trained else 0)
    gradients = (4 + 2) * numbers  # summed in float32, handed out in bfloat16
    per_token = 64 * tokens  # values, sums and counts of tokens
    assert peak_of_loss(tokens, gpu, trained=trained) <= TILE + gradients + per_token
    logits = 4 * tokens * VOCABULARY
    assert logits > 2 * (TILE + gradients)  # so that one model's logits alone would break the bound


def test_more_tokens_take_no_more_than_their_own_gradients(gpu):
    few, many = 4096, 16_384
    grown = peak_of_loss(many, gpu) - peak_of_loss(few, gpu)
    assert grown <= (many - few) * ((4 + 2) * WIDTH + 64) + TILE // 4  # tiles are evened out
