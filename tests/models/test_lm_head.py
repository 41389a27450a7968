"""A head as one value gives the logits of its model, whatever the family, the adapter or the quantization."""

from __future__ import annotations

import pytest
import torch
from checks import check_close
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from trl_distill.errors import ModelError
from trl_distill.losses import LMHead, distillation_loss_from_logits
from trl_distill.losses.signals import DenseSignal, LossSettings
from trl_distill.models.completion_forward import add_completion_forward
from trl_distill.models.lm_head import lm_head_of

SIZE = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = {**SIZE, "num_key_value_heads": 1}
FAMILIES = {
    "llama": GROUPED,
    "gpt2": {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},  # tied to its embeddings
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "gemma2": {**GROUPED, "head_dim": 8, "final_logit_softcapping": 1.5},
    "gemma3_text": {**GROUPED, "head_dim": 8, "final_logit_softcapping": 2.0},
    "cohere": {**GROUPED, "logit_scale": 0.25},
    "cohere2": {**GROUPED, "head_dim": 8, "logit_scale": 0.5},
    "granite": {**GROUPED, "logits_scaling": 8.0},
    "granitemoe": {**GROUPED, "logits_scaling": 4.0, "num_local_experts": 2, "num_experts_per_tok": 1},
    "falcon_h1": {**GROUPED, "lm_head_multiplier": 0.3, "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8},
    "phi": SIZE,  # its head has a bias
    "opt": {"vocab_size": 50, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 32},
    "gpt_neox": SIZE,
}  # fmt: skip
IDS = torch.tensor([[3, 7, 11, 4, 9, 2], [5, 5, 8, 1, 0, 0]])
MASK = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
LABELS = torch.tensor([[-100, -100, -100, 4, 9, 2], [-100, -100, 8, 1, -100, -100]])


def make(family, **more):
    """Return a random model whose logits differ from the uniform ones."""
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(family, initializer_range=0.3, **special, **{**FAMILIES[family], **more})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    if family == "phi":
        nn.init.normal_(model.lm_head.bias, std=1.0)  # a bias starts at 0, where a lost one would not be seen
    return model


def predicting(logits):
    """Return the rows of logits that predict the labelled tokens."""
    return logits[:, :-1][LABELS[:, 1:] != -100]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_loss_equal_the_models_own(family):
    model = make(family)
    logits = predicting(model(input_ids=IDS, attention_mask=MASK).logits)
    targets = LABELS[LABELS != -100]
    teacher = DenseSignal(torch.randn(len(targets), 24), LMHead(torch.randn(50, 24)))
    settings = LossSettings(alpha=0.6, temperature=2.0)
    theirs = teacher.hidden @ teacher.head.weight.T
    expected = distillation_loss_from_logits(logits, theirs, targets, alpha=0.6, temperature=2.0)
    right = torch.autograd.grad(expected.loss, list(model.parameters()), allow_unused=True)

    add_completion_forward(model)
    hidden = model(input_ids=IDS, attention_mask=MASK, completion_labels=LABELS).hidden
    head = lm_head_of(model)
    found = head.logits(hidden)
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)
    out = model(
        input_ids=IDS, attention_mask=MASK, completion_labels=LABELS, teacher_signal=teacher, loss_settings=settings
    )
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(out.loss, list(model.parameters()), allow_unused=True)
    rows = zip((name for name, _ in model.named_parameters()), gradients, right, strict=True)
    # a key's bias moves all scores of a query alike, so its gradient is rounding alone
    rows = [row for row in rows if "k_proj.bias" not in row[0] or family != "opt"]
    check_close({name: g for name, g, _ in rows}, {name: r for name, _, r in rows}, 2e-5)


@pytest.mark.parametrize(
    "settings",
    [{"target_modules": ["lm_head", "q_proj"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}],
    ids=["LoRA on the head", "the head trained whole"],
)
def test_an_adapted_head_gives_and_learns_what_its_model_does(settings):
    base = make("llama")
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=12, lora_dropout=0.0, **settings))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)  # it starts at 0, where a lost adapter would not be seen
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    logits = predicting(model(input_ids=IDS, attention_mask=MASK).logits)
    targets = LABELS[LABELS != -100]
    right = torch.autograd.grad(nn.functional.cross_entropy(logits, targets, reduction="sum"), learning.values())
    add_completion_forward(base)
    settings = LossSettings(alpha=0.0, temperature=1.0)
    out = model(input_ids=IDS, attention_mask=MASK, completion_labels=LABELS, loss_settings=settings)
    gradients = torch.autograd.grad(out.loss, learning.values())
    check_close(dict(zip(learning, gradients, strict=True)), dict(zip(learning, right, strict=True)), 1e-5)
    assert any("lm_head" in name for name in learning)


def test_a_head_with_a_disabled_adapter_is_the_bare_one():
    base = make("llama")
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["lm_head"]))
    nn.init.normal_(model.get_parameter("base_model.model.lm_head.lora_B.default.weight"))
    bare = base.lm_head.get_base_layer().weight
    assert not torch.equal(lm_head_of(base).weight, bare)
    with model.disable_adapter():
        assert torch.equal(lm_head_of(base).weight, bare)


def test_an_adapter_that_is_no_sum_of_two_matrices_is_refused():
    base = make("llama")
    get_peft_model(base, LoraConfig(r=4, target_modules=["lm_head"], use_dora=True))
    with pytest.raises(ModelError, match="not a sum of two matrices; leave the head out of target_modules"):
        lm_head_of(base)


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_a_quantized_head_is_used_dequantized(kind, tmp_path):
    make("llama", hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    how = {"load_in_4bit": True} if kind == "int4" else {"load_in_8bit": True}
    config = BitsAndBytesConfig(**how, llm_int8_skip_modules=["nothing"])  # the default spares the head
    where = {"": "cpu"}  # transformers takes a GPU that it finds
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=config, dtype=torch.float32, device_map=where
    )
    assert not model.lm_head.weight.is_floating_point()
    logits = predicting(model(input_ids=IDS, attention_mask=MASK).logits.float())
    add_completion_forward(model)
    hidden = model(input_ids=IDS, attention_mask=MASK, completion_labels=LABELS).hidden
    head = lm_head_of(model)
    found = LMHead(head.weight.float()).logits(hidden.float())
    assert (found - logits).norm() <= 2e-2 * logits.norm()  # int8 rounds the hidden states too


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ModelError, match="Linear has no LM head; load a causal language model"):
        lm_head_of(nn.Linear(2, 2))
