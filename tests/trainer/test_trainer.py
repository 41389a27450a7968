"""The drop-in trainer: SFTTrainer when off, the formula when on."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import make_model_that_writes
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from trl import SFTConfig, SFTTrainer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer
from trl_distill.config.devices import accelerator
from trl_distill.errors import DataError, ParamsError, TeacherError
from trl_distill.losses import distillation_loss_from_logits

pytestmark = pytest.mark.usefixtures("device")

PLAIN = {"text": ["a b c d", "b c", "c d e f g", "e f", "g a b", "f e d c"]}
CHAT = {
    "messages": [
        [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"}],
        [{"role": "user", "content": "e"}, {"role": "assistant", "content": "f g a"}],
        [{"role": "user", "content": "b c"}, {"role": "assistant", "content": "d"}],
    ]
}
PAIRS = {
    "prompt": ["a b", "c", "d e f", "g", "b a", "c d", "e", "f g"],
    "completion": [" c d", " e f g a", " b", " d c b", " e", " f", " g a b c", " d"],
}


def quick(folder, **more):
    """Settings of a short run on the CPU."""
    settings = {
        "output_dir": str(folder), "per_device_train_batch_size": 2, "max_steps": 10, "learning_rate": 1e-3,
        "bf16": False, "use_cpu": accelerator() is None, "report_to": "none", "logging_steps": 1, "save_strategy": "no",
        "disable_tqdm": True, "gradient_checkpointing": False, "dataloader_pin_memory": False,
    }  # fmt: skip
    return {**settings, **more}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(trainer):
    return {name: tensor.detach().clone() for name, tensor in trainer.model.named_parameters()}


LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("data", "settings", "peft"),
    [
        (PLAIN, {}, None),
        (PLAIN, {"packing": True, "packing_strategy": "wrapped", "max_length": 8}, None),
        (PLAIN, {}, LORA),
        (CHAT, {}, None),
        (PAIRS, {"gradient_accumulation_steps": 2}, None),
    ],
    ids=["text", "packing", "lora", "chat", "prompt-completion"],
)
def test_without_distillation_losses_are_sft_trainers_to_the_bit(data, settings, peft, chat_model_dir, tmp_path):
    def trained(trainer_class, config_class):
        trainer = trainer_class(
            str(chat_model_dir),
            config_class(**quick(tmp_path, **settings)),
            train_dataset=Dataset.from_dict(data),
            peft_config=copy.deepcopy(peft),
        )
        trainer.train()
        return trainer

    theirs = trained(SFTTrainer, SFTConfig)
    ours = trained(DistillationSFTTrainer, DistillationSFTConfig)
    assert losses(ours) == losses(theirs)
    assert len(losses(ours)) == 10
    for (name, mine), other in zip(weights(ours).items(), weights(theirs).values(), strict=True):
        assert torch.equal(mine, other), name


def distilling(student, teacher, folder, data=PAIRS, **settings):
    model = AutoModelForCausalLM.from_pretrained(student)
    config = DistillationSFTConfig(
        **quick(folder, **{"max_steps": 2, "max_length": 64, **settings}),
        use_distillation=True,
        teacher_model=str(teacher),
    )
    tokenizer = AutoTokenizer.from_pretrained(student)
    return DistillationSFTTrainer(
        model, config, train_dataset=Dataset.from_dict(data), eval_dataset=Dataset.from_dict(data),
        processing_class=tokenizer,
    )  # fmt: skip


TEMPLATES = {"teacher_prompt_template": "g f e {input} d", "student_prompt_template": "{input}"}


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("impl", ["fused", "plain"])
def test_the_loss_is_the_formula_on_full_logits(kind, impl, tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = distilling(
        tiny_model_dir, tiny_teacher_dir, tmp_path, **TEMPLATES, distill_alpha=0.6, distill_temperature=2.0,
        distill_divergence=kind, distill_loss_impl=impl,
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    student = AutoModelForCausalLM.from_pretrained(tiny_model_dir).to(loss.device)
    teacher = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir).to(loss.device)
    rows = []
    for b in range(len(batch["input_ids"])):
        sides = []
        for model, prefix in ((student, ""), (teacher, "teacher_")):
            length = int(batch[f"{prefix}attention_mask"][b].sum())
            ids = batch[f"{prefix}input_ids"][b : b + 1, :length]
            labels = batch[f"{prefix}labels"][b, 1:length]
            sides.append((model(ids).logits[0, :-1][labels != -100], labels[labels != -100]))
        assert torch.equal(sides[0][1], sides[1][1])
        rows.append((sides[0][0], sides[1][0], sides[0][1]))
    out = distillation_loss_from_logits(
        torch.cat([r[0] for r in rows]), torch.cat([r[1] for r in rows]), torch.cat([r[2] for r in rows]),
        alpha=0.6, temperature=2.0, divergence=kind,
    )  # fmt: skip
    expected = out.loss / sum(len(r[2]) for r in rows)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    trainer.model.zero_grad()
    loss.backward()
    expected.backward()
    for (name, mine), other in zip(trainer.model.named_parameters(), student.parameters(), strict=True):
        assert (mine.grad - other.grad).norm() <= 1e-5 * other.grad.norm() + 1e-8, name


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_the_loss_does_not_depend_on_batch_and_accumulation(
    batch, accumulation, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    settings = {**TEMPLATES, "max_steps": 3, "lr_scheduler_type": "constant"}
    one = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, per_device_train_batch_size=8, **settings)
    one.train()
    other = distilling(
        tiny_model_dir, tiny_teacher_dir, tmp_path, per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation, **settings,
    )  # fmt: skip
    other.train()
    assert losses(other) == pytest.approx(losses(one), rel=1e-5)
    for key in ("kl", "ce", "entropy", "top1_agreement", "mean_token_accuracy"):
        assert other.state.log_history[0][key] == pytest.approx(one.state.log_history[0][key], rel=1e-5)


def test_the_teacher_is_never_trained_nor_saved(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, save_strategy="steps", save_steps=1, **TEMPLATES)
    before = {k: v.clone() for k, v in trainer.teacher.model.state_dict().items()}
    trainer.train()
    assert all(torch.equal(v, before[k]) for k, v in trainer.teacher.model.state_dict().items())
    mine = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not mine & {id(p) for p in trainer.teacher.model.parameters()}
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    assert saved.num_parameters() == trainer.model.num_parameters()


def test_every_figure_is_logged_in_training_and_evaluation(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, **TEMPLATES)
    trainer.train()
    line = trainer.state.log_history[0]
    names = {"kl", "ce", "entropy", "top1_agreement", "mean_token_accuracy"}
    assert {"loss", "num_tokens", "tokens_per_second", *names} <= set(line)
    expected = 0.7 * 9 * line["kl"] + 0.3 * line["ce"]
    assert line["loss"] == pytest.approx(expected, rel=1e-4)
    evaluated = {f"eval_{name}" for name in ("loss", "num_tokens", "tokens_per_second", *names)}
    assert evaluated <= set(trainer.evaluate())


def test_evaluation_takes_another_dataset_of_any_form(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, **TEMPLATES)
    other = Dataset.from_dict({"prompt": ["a"], "completion": [" b"]})
    figures = trainer.evaluate(other, metric_key_prefix="test")
    assert figures["test_kl"] > 0
    assert figures["test_ce"] > 0


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_the_loss_of_an_evaluation_is_that_of_its_tokens(batch, tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, per_device_eval_batch_size=batch, **TEMPLATES)
    figures = trainer.evaluate()
    assert figures["eval_loss"] == pytest.approx(0.7 * 9 * figures["eval_kl"] + 0.3 * figures["eval_ce"], rel=1e-5)
    assert figures["eval_num_tokens"] == sum(
        len(r["student_prompt"]) + len(r["completion"]) for r in trainer.eval_dataset
    )
    assert trainer.predict(trainer.eval_dataset).metrics["test_loss"] == pytest.approx(figures["eval_loss"], rel=1e-5)


def test_a_resumed_run_continues_counting_tokens(tiny_model_dir, tiny_teacher_dir, tmp_path):
    settings = {**TEMPLATES, "save_strategy": "steps", "save_steps": 1}
    whole = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, **settings)
    whole.train()
    resumed = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    counts = [[line["num_tokens"] for line in t.state.log_history if "num_tokens" in line] for t in (whole, resumed)]
    assert counts[0] == counts[1]


def test_formatting_func_makes_the_text(tiny_model_dir, tiny_teacher_dir, tmp_path):
    config = DistillationSFTConfig(
        **quick(tmp_path, max_steps=1), use_distillation=True, teacher_model=str(tiny_teacher_dir)
    )
    trainer = DistillationSFTTrainer(
        str(tiny_model_dir), config, train_dataset=Dataset.from_dict(PAIRS),
        formatting_func=lambda row: f"g{row['completion']}",
    )  # fmt: skip
    assert trainer.tokenizer.decode(trainer.train_dataset[0]["completion"]).startswith("g c d")


def test_embedded_is_a_model_name_in_a_script(tmp_path):
    more = {"use_distillation": True, "teacher_model": "embedded", "teacher_system": "Name the second word."}
    config = DistillationSFTConfig(**quick(tmp_path, max_steps=1), **more)
    data = Dataset.from_dict({"prompt": ["red blue"], "completion": ["blue"]})
    assert DistillationSFTTrainer("embedded", config, train_dataset=data).train().training_loss > 0


def test_with_lora_only_the_adapter_learns(tiny_model_dir, tiny_teacher_dir, tmp_path):
    config = DistillationSFTConfig(
        **quick(tmp_path, max_steps=3), use_distillation=True, teacher_model=str(tiny_teacher_dir), **TEMPLATES
    )
    trainer = DistillationSFTTrainer(
        str(tiny_model_dir), config, train_dataset=Dataset.from_dict(PAIRS), peft_config=copy.deepcopy(LORA)
    )
    before = weights(trainer)
    trainer.train()
    moved = {name for name, tensor in weights(trainer).items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)


def test_distillation_lowers_the_divergence(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = distilling(
        tiny_model_dir, tiny_teacher_dir, tmp_path, max_steps=60, learning_rate=1e-2, distill_alpha=1.0, **TEMPLATES
    )
    before = trainer.evaluate()["eval_kl"]
    trainer.train()
    assert trainer.evaluate()["eval_kl"] < 0.5 * before


def test_a_teacher_in_the_wrong_place_is_refused(tiny_model_dir, tmp_path):
    with pytest.raises(ParamsError, match="use_distillation is False"):
        DistillationSFTTrainer(
            str(tiny_model_dir), DistillationSFTConfig(**quick(tmp_path)), train_dataset=Dataset.from_dict(PLAIN),
            teacher_model="x",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"loss_type": "dft"}, "loss_type"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"completion_only_loss": False}, "completion_only_loss"),
    ],
)
def test_trainer_arguments_that_distillation_cannot_use_are_refused(
    setting, name, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    with pytest.raises(ParamsError, match=f"{name} cannot be used when distilling"):
        distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, **setting)


def test_a_missing_teacher_is_named(tiny_model_dir, tmp_path):
    config = DistillationSFTConfig(**quick(tmp_path), use_distillation=True)
    with pytest.raises(ParamsError, match="teacher_model is missing"):
        DistillationSFTTrainer(str(tiny_model_dir), config, train_dataset=Dataset.from_dict(PAIRS))


def test_a_pair_padded_like_qwen_works_on_the_shared_rows(tiny_model_dir, tmp_path):
    """Qwen2.5-7B has 152,064 rows and Qwen2.5-0.5B 151,936, with the same tokenizer."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    pair = {}
    for name, rows, width in (("teacher", 152_064, 16), ("student", 151_936, 8)):
        config = Qwen2Config(
            vocab_size=rows, hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        )  # fmt: skip
        Qwen2ForCausalLM(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        pair[name] = tmp_path / name
    trainer = distilling(pair["student"], pair["teacher"], tmp_path / "out", **TEMPLATES)
    assert trainer.vocabulary == 151_936
    trainer.train()
    assert all(torch.isfinite(torch.tensor(losses(trainer))))


def test_a_teacher_with_another_tokenizer_is_refused(tiny_model_dir, tiny_teacher_dir, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "</s>": 1, "zebra": 2, "a": 3}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(tiny_teacher_dir).save_pretrained(other)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>").save_pretrained(other)
    with pytest.raises(TeacherError, match="it gives text only, and every row has a completion of its own"):
        distilling(tiny_model_dir, other, tmp_path / "out")


def saved_stops(trainer, folder):
    """Return what a student that was trained and saved stops at."""
    trainer.train()
    trainer.save_model(str(folder))
    stops = GenerationConfig.from_pretrained(folder).eos_token_id
    return stops if isinstance(stops, list) else [stops]


def test_a_saved_student_stops_at_the_turns_end_it_was_taught(chat_model_dir, tmp_path):
    trainer = distilling(chat_model_dir, chat_model_dir, tmp_path / "run", data=CHAT, teacher_system="a b")
    tokenizer = trainer.processing_class
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    newline = tokenizer("\n")["input_ids"]  # the chat template writes it behind the end
    assert {tuple(row["completion"][-2:]) for row in trainer.train_dataset} == {(end, *newline)}
    assert saved_stops(trainer, tmp_path / "saved") == [tokenizer.eos_token_id, end]


def test_a_saved_student_stops_where_its_teacher_stopped(tiny_model_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    own, end = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")
    teacher = make_model_that_writes(tmp_path / "teacher", end)
    model = AutoModelForCausalLM.from_pretrained(teacher)
    model.generation_config.eos_token_id = end
    model.save_pretrained(teacher)
    settings = {"completions": "teacher", "distill_max_teacher_length": 4}
    trainer = distilling(tiny_model_dir, teacher, tmp_path / "run", **settings, **TEMPLATES)
    assert saved_stops(trainer, tmp_path / "saved") == [own, end]


def test_a_student_not_taught_another_end_keeps_its_stop_tokens(tiny_model_dir, tmp_path):
    trainer = distilling(tiny_model_dir, tiny_model_dir, tmp_path / "run", **TEMPLATES)
    own = [trainer.processing_class.eos_token_id]
    assert saved_stops(trainer, tmp_path / "saved") == own
    endless = make_model_that_writes(tmp_path / "teacher", 20)
    settings = {"completions": "teacher", "distill_max_teacher_length": 4}
    trainer = distilling(tiny_model_dir, endless, tmp_path / "endless", **settings)
    assert saved_stops(trainer, tmp_path / "saved") == own


def taught_by(teacher, folder, student=None, **settings):
    """Return a trainer whose teacher is a loaded model."""
    config = DistillationSFTConfig(**quick(folder, max_steps=2, **settings), use_distillation=True, **TEMPLATES)
    source = str(teacher.config._name_or_path)
    return DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(source) if student is None else student, config,
        train_dataset=Dataset.from_dict(PAIRS), teacher_model=teacher,
        processing_class=AutoTokenizer.from_pretrained(source),
    )  # fmt: skip


@pytest.mark.parametrize("bf16", [False, True])
def test_a_loaded_teacher_is_left_as_it_was_and_can_be_the_next_student(bf16, tiny_model_dir, tmp_path):
    teacher = AutoModelForCausalLM.from_pretrained(tiny_model_dir).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    attributes = set(vars(teacher))
    first = taught_by(teacher, tmp_path / "first", bf16=bf16)
    first.train()
    assert set(vars(teacher)) == attributes
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    assert all(module.training for module in teacher.modules())
    assert teacher.generation_config.suppress_tokens is None
    assert all(torch.equal(tensor.cpu(), before[name]) for name, tensor in teacher.state_dict().items())
    second = taught_by(first.model, tmp_path / "second", student=teacher)
    second.train()
    assert not all(torch.equal(tensor.cpu(), before[name]) for name, tensor in teacher.state_dict().items())


def test_a_teacher_with_an_adapter_teaches(tiny_model_dir, tmp_path):
    teacher = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir), copy.deepcopy(LORA))
    trainer = taught_by(teacher, tmp_path)
    trainer.train()
    assert len(losses(trainer)) == 2


@pytest.mark.parametrize("peft", [False, True])
def test_the_trained_model_object_is_refused_as_teacher(peft, tiny_model_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    student = get_peft_model(model, copy.deepcopy(LORA)) if peft else model
    with pytest.raises(TeacherError, match=r"teacher_model is the model that is trained.*give a copy .*or the folder"):
        taught_by(model, tmp_path, student=student)
    assert taught_by(copy.deepcopy(model), tmp_path, student=student)


def test_a_token_only_the_student_has_is_an_error_that_names_its_row(tiny_model_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<x>"])
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.resize_token_embeddings(len(tokenizer))
    student = tmp_path / "student"
    model.save_pretrained(student)
    tokenizer.save_pretrained(student)
    trainer = distilling(student, tiny_model_dir, tmp_path / "run")
    assert trainer.vocabulary == rows
    trainer.train()
    data = {"prompt": ["a <x>", "b"], "completion": ["b", "c <x>"]}
    with pytest.raises(DataError, match=f"train, row 2: the completion holds token {rows}, and teacher and student"):
        distilling(student, tiny_model_dir, tmp_path / "more", data=data)
