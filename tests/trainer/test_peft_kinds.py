"""Adapters that SFTTrainer takes, on a student that has a teacher: what each trains, and what it leaves."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from conftest import make_tokenizer
from datasets import Dataset
from peft import AutoPeftModelForCausalLM
from small_runs import check_teacher_is_apart, losses, make
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

from trl_distill.data.collator import DistillationCollator
from trl_distill.errors import ParamsError, TeacherError
from trl_distill.models.adapters import merged
from trl_distill.models.loading import ModelSource

pytestmark = pytest.mark.usefixtures("device")

TASK = {"task_type": "CAUSAL_LM"}
LINEAR = {**TASK, "r": 4, "target_modules": "all-linear"}
QV = {**TASK, "target_modules": ["q_proj", "v_proj"]}
KINDS = {
    "lora": peft.LoraConfig(**LINEAR),
    "dora": peft.LoraConfig(**LINEAR, use_dora=True),
    "rslora": peft.LoraConfig(**LINEAR, use_rslora=True),
    "embedding": peft.LoraConfig(**TASK, r=4, target_modules=["embed_tokens", "q_proj"]),
    "modules_to_save": peft.LoraConfig(**LINEAR, modules_to_save=["lm_head", "embed_tokens"]),
    "tokens": peft.LoraConfig(**LINEAR, trainable_token_indices={"embed_tokens": [*range(69, 80)]}),
    "ia3": peft.IA3Config(**TASK, target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "adalora": peft.AdaLoraConfig(**QV, total_step=10),
    "loha": peft.LoHaConfig(**QV),
    "vera": peft.VeraConfig(**TASK, target_modules=["q_proj"]),
    "oft": peft.OFTConfig(**QV, r=0, oft_block_size=8),
    "prompt": peft.PromptTuningConfig(**TASK, num_virtual_tokens=3),
    "prefix": peft.PrefixTuningConfig(**TASK, num_virtual_tokens=3),
    "p_tuning": peft.PromptEncoderConfig(**TASK, num_virtual_tokens=3, encoder_hidden_size=16),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@each_kind
def test_each_kind_of_adapter_learns_and_the_base_model_stays(kind, tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make(
        tiny_model_dir, tiny_teacher_dir, tmp_path, peft=copy.deepcopy(KINDS[kind]), save_strategy="steps", save_steps=3
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    found = losses(trainer)
    assert len(set(found)) == 3
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    learning = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert moved
    assert moved <= learning
    assert len(learning) < len(before)
    check_teacher_is_apart(trainer, tmp_path / "checkpoint-3")
    ids = torch.tensor([[70, 71, 72]], device=trainer.args.device)
    saved = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "checkpoint-3").to(ids.device)
    torch.testing.assert_close(saved(ids).logits, trainer.model.eval()(input_ids=ids).logits)


@each_kind
def test_self_teacher_is_the_model_under_each_kind_of_adapter(kind, tiny_model_dir, tmp_path):
    own, copied = (
        losses(make(tiny_model_dir, teacher, tmp_path, peft=copy.deepcopy(KINDS[kind])))
        for teacher in ("self", tiny_model_dir)
    )
    assert own == pytest.approx(copied, rel=1e-5)


@pytest.mark.parametrize("kind", ["adalora", "prompt", "prefix"])
def test_an_adapters_loss_does_not_depend_on_batch_and_accumulation(kind, tiny_model_dir, tiny_teacher_dir, tmp_path):
    one, two = (
        losses(
            make(
                tiny_model_dir, tiny_teacher_dir, tmp_path, peft=copy.deepcopy(KINDS[kind]),
                per_device_train_batch_size=4 // n, gradient_accumulation_steps=n,
            )
        )
        for n in (1, 2)
    )  # fmt: skip
    assert two == pytest.approx(one, rel=1e-5)


def test_adalora_penalty_is_added_as_a_mean(tiny_model_dir, tiny_teacher_dir, tmp_path):
    """Its weight is PEFT's, whatever the number of tokens; the other figures are without it."""
    config = copy.deepcopy(KINDS["adalora"])
    with_it = make(tiny_model_dir, tiny_teacher_dir, tmp_path, peft=copy.deepcopy(config), max_steps=1)
    config.orth_reg_weight = 1e-9
    without = make(tiny_model_dir, tiny_teacher_dir, tmp_path, peft=config, max_steps=1)
    vectors = {name: p.detach() for name, p in with_it.model.named_parameters()}
    grams = [p @ p.T for name, p in vectors.items() if "lora_A" in name]
    grams += [p.T @ p for name, p in vectors.items() if "lora_B" in name]
    penalty = sum((gram - torch.eye(len(gram), device=gram.device)).norm().item() for gram in grams) / len(grams)
    gap = losses(with_it)[0] - losses(without)[0]
    assert gap == pytest.approx(0.5 * penalty, rel=1e-4)
    assert with_it.state.log_history[0]["kl"] == pytest.approx(without.state.log_history[0]["kl"], rel=1e-6)


def quantized(folder, kind):
    how = BitsAndBytesConfig(load_in_4bit=True) if kind == "int4" else BitsAndBytesConfig(load_in_8bit=True)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=how)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("kind", "adapter"), [("int4", "lora"), ("int4", "dora"), ("int8", "lora")])
def test_a_quantized_student_learns(kind, adapter, checkpointing, wide_dir, tiny_teacher_dir, tmp_path):
    trainer = make(
        wide_dir, tiny_teacher_dir, tmp_path, model=quantized(wide_dir, kind), peft=copy.deepcopy(KINDS[adapter]),
        gradient_checkpointing=checkpointing, save_strategy="steps", save_steps=12, max_steps=12,
    )  # fmt: skip
    found = losses(trainer)
    assert sum(found[-2:]) < sum(found[:2])
    check_teacher_is_apart(trainer, tmp_path / "checkpoint-12")


@pytest.mark.cpu
@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_a_quantized_teachers_loss_is_close_to_the_unquantized_ones(kind, tiny_model_dir, wide_dir, tmp_path):
    plain = make(tiny_model_dir, wide_dir, tmp_path).evaluate()
    trainer = make(tiny_model_dir, wide_dir, tmp_path, teacher_quantization=kind)
    found = trainer.evaluate()
    assert found["eval_kl"] != plain["eval_kl"]
    assert found["eval_kl"] == pytest.approx(plain["eval_kl"], rel=0.5)
    assert found["eval_ce"] == plain["eval_ce"]
    trainer.train()
    check_teacher_is_apart(trainer)


def test_an_adapter_of_the_head_is_refused(tiny_model_dir, tiny_teacher_dir, tmp_path):
    on_head = peft.LoraConfig(**TASK, target_modules=["q_proj", "lm_head"])
    with pytest.raises(ParamsError, match=r"target_modules has 'lm_head'.*modules_to_save"):
        make(tiny_model_dir, tiny_teacher_dir, tmp_path, peft=on_head)


@pytest.mark.cpu
def test_dora_on_an_int8_model_is_refused_on_a_cpu(tiny_teacher_dir, wide_dir, tmp_path):
    model = ModelSource(str(wide_dir), quantization="int8", device="cpu").load_model()
    with pytest.raises(ParamsError, match="use_dora cannot be trained on an int8 model on a CPU"):
        make(wide_dir, tiny_teacher_dir, tmp_path, model=model, peft=copy.deepcopy(KINDS["dora"]))


def tied(folder, source):
    """Save the student with its embedding as its head."""
    model = AutoModelForCausalLM.from_pretrained(source)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def test_trainable_tokens_of_a_tied_embedding_are_refused(tiny_model_dir, tiny_teacher_dir, tmp_path):
    folder = tied(tmp_path / "tied", tiny_model_dir)
    for config in (copy.deepcopy(KINDS["tokens"]), peft.TrainableTokensConfig(**TASK, token_indices=[70, 71])):
        for model in (None, str(folder)):
            with pytest.raises(ParamsError, match="trainable_token_indices trains tokens of an embedding whose weight"):
                make(folder, tiny_teacher_dir, tmp_path, model=model, peft=copy.deepcopy(config))
    shared = peft.LoraConfig(**TASK, r=4, target_modules=["embed_tokens"], ensure_weight_tying=True)
    for model in (None, str(folder)):
        with pytest.raises(ParamsError, match="ensure_weight_tying has the LM head share the adapter of 'embed_"):
            make(folder, tiny_teacher_dir, tmp_path, model=model, peft=copy.deepcopy(shared))


@pytest.mark.parametrize(
    "adapter",
    [
        {"target_modules": ["embed_tokens", "q_proj"]}, {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
    ids=["embedding", "no embedding", "embedding whole"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*(tie_word_embeddings|tied|save_embedding_layers).*:UserWarning")
@torch.no_grad()
def test_a_merged_adapter_on_tied_embeddings_is_the_trained_model(adapter, tiny_model_dir, tmp_path):
    folder = tied(tmp_path / "tied", tiny_model_dir)
    student = AutoModelForCausalLM.from_pretrained(folder)
    model = peft.get_peft_model(student, peft.LoraConfig(**TASK, r=4, init_lora_weights=False, **adapter)).eval()
    for name, p in model.named_parameters():
        if "modules_to_save" in name:
            p.add_(torch.randn_like(p))
    ids = torch.tensor([[70, 71, 72]])
    expected = model(ids).logits
    model.save_pretrained(tmp_path / "adapter")
    loaded = ModelSource(str(tmp_path / "adapter")).load_model()  # as a teacher, or a next stage's student
    torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-4, atol=1e-5)
    merged(model).save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(again(ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert again.config.tie_word_embeddings is ("embed_tokens" not in str(adapter))


@pytest.mark.cpu
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_self_teacher_is_refused_if_the_adapter_changes_base_weights(bias, tmp_path):
    """GPT-2 has biases. `self` is refused, and what is retained is a copy of where the run starts."""
    folder = make_gpt2(tmp_path / "gpt2")
    lora = peft.LoraConfig(**TASK, r=2, target_modules=["c_attn"], fan_in_fan_out=True, bias=bias)
    with pytest.raises(TeacherError, match=f"the adapter has bias '{bias}', which changes weights of the model itself"):
        make(folder, "self", tmp_path, peft=copy.deepcopy(lora))
    pissa = peft.LoraConfig(**TASK, r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights="pissa")
    with pytest.raises(TeacherError, match="the adapter has init_lora_weights 'pissa'"):
        make(folder, "self", tmp_path, peft=pissa)
    retained = Dataset.from_dict({"prompt": ["x y z"], "completion": [" u v"]})
    trainer = make(folder, "ema", tmp_path, peft=lora, retain_data=retained)
    start = trainer.teacher.teachers[-1]
    batch = DistillationCollator(0)([{"student_prompt": [70], "teacher_prompt": [70, 71], "completion": [72, 73]}])
    before = start.score(batch).hidden
    trainer.train()
    assert start.weights.is_copy
    assert torch.equal(start.score(batch).hidden, before)
    moved = [name for name, p in trainer.model.named_parameters() if p.requires_grad and name.endswith(".bias")]
    assert moved


def make_gpt2(folder):
    tokenizer = make_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
