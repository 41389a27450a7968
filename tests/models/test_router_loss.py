"""A mixture of experts as the student: its load-balancing loss is TRL's."""

from __future__ import annotations

import pytest
import torch
from conftest import make_tokenizer
from datasets import Dataset
from peft import LoraConfig
from small_runs import PAIRS, make
from transformers import (
    AutoModelForCausalLM,
    DogeConfig,
    DogeForCausalLM,
    GptOssConfig,
    GraniteMoeConfig,
    MixtralConfig,
    PhimoeConfig,
    Qwen3MoeConfig,
)
from trl import SFTConfig, SFTTrainer

from trl_distill import ParamsError
from trl_distill.config.devices import accelerator
from trl_distill.losses.signals import LossSettings
from trl_distill.models.completion_forward import add_completion_forward

pytestmark = pytest.mark.usefixtures("device")

SIZES = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts_per_tok": 2, "initializer_range": 0.2, "router_aux_loss_coef": 0.5,
    "bos_token_id": None, "max_position_embeddings": 512,
}  # fmt: skip
FAMILIES = {
    "gpt_oss": (GptOssConfig, {"num_local_experts": 4, "head_dim": 8}),
    "granitemoe": (GraniteMoeConfig, {"num_local_experts": 4}),
    "mixtral": (MixtralConfig, {"num_local_experts": 4}),
    "phimoe": (PhimoeConfig, {"num_local_experts": 4}),
    "qwen3_moe": (Qwen3MoeConfig, {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 8}),
}


def student_of(family):
    kind, more = FAMILIES[family]
    tokenizer = make_tokenizer()
    ends = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(kind(**SIZES, **ends, pad_token_id=tokenizer.pad_token_id, **more))


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def expert_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    student_of("qwen3_moe").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_has_the_models_own_auxiliary_loss(family):
    model = student_of(family).eval()
    model.config.output_router_logits = True
    ids = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 2, 2]])
    inputs = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])}
    own = model(**inputs).aux_loss
    if not torch.is_tensor(own):
        pytest.skip(f"this version of transformers computes no auxiliary loss for {family}: it is {own}")
    own.backward()
    theirs = gradients(model)
    model.zero_grad()
    add_completion_forward(model)
    ours = model(**inputs, completion_labels=ids, loss_settings=LossSettings(0.0, 1.0)).aux_loss
    ours.backward()
    torch.testing.assert_close(ours, own)
    torch.testing.assert_close(gradients(model), theirs)
    assert any("router" in name or "gate" in name for name in theirs)


def test_mixture_of_experts_losses_and_weights_are_trls_at_alpha_0(expert_dir, tiny_teacher_dir, tmp_path):
    ours = make(expert_dir, tiny_teacher_dir, tmp_path / "ours", distill_alpha=0.0, gradient_accumulation_steps=2)
    config = SFTConfig(
        output_dir=str(tmp_path / "theirs"), per_device_train_batch_size=4, max_steps=3, learning_rate=1e-2,
        use_cpu=accelerator() is None, bf16=False, report_to="none", logging_steps=1, save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False, dataloader_pin_memory=False, gradient_accumulation_steps=2,
    )  # fmt: skip
    theirs = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(expert_dir), config, train_dataset=Dataset.from_dict(PAIRS),
        processing_class=make_tokenizer(),
    )  # fmt: skip
    for trainer in (ours, theirs):
        trainer.train()
    lines = [[line for line in t.state.log_history if "loss" in line] for t in (ours, theirs)]
    for mine, other in zip(*lines, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert mine["aux_loss"] == pytest.approx(other["aux_loss"], rel=1e-5)
        assert mine["loss"] == pytest.approx(mine["ce"] + 0.5 * mine["aux_loss"], rel=1e-4)
    for (name, mine), other in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_the_router_loss_is_added_in_training_and_left_out_of_eval_loss(expert_dir, tiny_teacher_dir, tmp_path):
    with_it = make(expert_dir, tiny_teacher_dir, tmp_path / "with", peft=LoraConfig(target_modules=["q_proj"]))
    without = make(expert_dir, tiny_teacher_dir, tmp_path / "without", router_aux_loss_coef=0.0)
    batch = next(iter(with_it.get_train_dataloader()))
    pair = []
    for trainer in (with_it, without):
        trainer.model.eval()
        pair.append(trainer.compute_loss(trainer.model, dict(batch), return_outputs=True))
    (loss, output), (plain, nothing) = pair
    assert nothing.aux_loss is None
    assert output.aux_loss > 0.5
    torch.testing.assert_close(loss, plain + 0.5 * output.aux_loss)
    figures, others = with_it.evaluate(), without.evaluate()
    assert figures["eval_loss"] == pytest.approx(others["eval_loss"], rel=1e-5)
    assert figures["eval_aux_loss"] > 0.5
    assert "eval_aux_loss" not in others


def test_the_router_loss_is_the_same_without_padding(expert_dir, tiny_teacher_dir, tmp_path):
    values = [
        make(expert_dir, tiny_teacher_dir, tmp_path / name, **settings).evaluate()["eval_aux_loss"]
        for name, settings in (("padded", {}), ("flat", {"padding_free": True}))
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize("settings", [{"distill_on_policy_fraction": 1.0}, {"distill_online": True}])
def test_a_mixture_with_router_loss_generates(settings, expert_dir, tmp_path):
    models = [AutoModelForCausalLM.from_pretrained(expert_dir, output_router_logits=True) for _ in range(2)]
    trainer = make(
        expert_dir, "ignored", tmp_path, model=models[0], more={"teacher_model": models[1]}, max_steps=1,
        distill_max_teacher_length=4, **settings,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.log_history[0]["aux_loss"] > 0  # it is added where the student learns
    assert [model.config.output_router_logits for model in models] == [True, True]


def test_routers_of_another_kind_are_refused():
    tokenizer = make_tokenizer()
    ends = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    model = DogeForCausalLM(DogeConfig(**SIZES, **ends, num_experts=4, is_moe=True, output_router_logits=True))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    try:
        model(input_ids=ids)
    except TypeError as error:
        pytest.skip(f"this version of transformers has a Doge that does not run: {error}")
    add_completion_forward(model)
    with pytest.raises(ParamsError, match=r"of DogeForCausalLM .* set router_aux_loss_coef to 0"):
        model(input_ids=ids, completion_labels=ids, loss_settings=LossSettings(0.0, 1.0))
