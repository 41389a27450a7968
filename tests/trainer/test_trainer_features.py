"""What SFTTrainer saves memory and time with, and what Trainer counts and calls, on a run that has a teacher."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from peft import LoraConfig
from small_runs import check_teacher_is_apart, losses, make
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.utils import is_kernels_available

from trl_distill import DistillationSFTConfig
from trl_distill.errors import ParamsError
from trl_distill.teachers.loading import load_teacher

pytestmark = pytest.mark.usefixtures("device")

renamed = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning")  # by transformers, not by TRL
CHECKPOINTING = [{"use_reentrant": False}, {"use_reentrant": True}, {"selective": True}]


def lora():
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def counted(trainer):
    """Return the losses and how often the first layer's MLP has run in training."""
    calls = []
    trainer.base_student.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    return losses(trainer), len(calls)


@pytest.mark.cpu
@renamed
@pytest.mark.parametrize("how", CHECKPOINTING, ids=["plain", "reentrant", "selective"])
def test_gradient_checkpointing_recomputes_and_changes_nothing(how, tiny_model_dir, tiny_teacher_dir, tmp_path):
    plain, once = counted(make(tiny_model_dir, tiny_teacher_dir, tmp_path))
    trainer = make(
        tiny_model_dir, tiny_teacher_dir, tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs=how
    )
    found, twice = counted(trainer)
    assert found == plain
    assert twice == 2 * once == 6
    check_teacher_is_apart(trainer)


@renamed
@pytest.mark.parametrize("how", CHECKPOINTING[:2], ids=["plain", "reentrant"])
def test_gradient_checkpointing_changes_nothing_with_a_self_teacher(how, tiny_model_dir, tmp_path):
    plain, both = counted(make(tiny_model_dir, "self", tmp_path, peft=lora()))
    found, more = counted(
        make(
            tiny_model_dir,
            "self",
            tmp_path,
            peft=lora(),
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs=how,
        )
    )
    assert found == pytest.approx(plain, rel=1e-6)
    assert more == both + 3  # the student's forward again, three times; the teacher's has no gradients


@renamed
def test_selective_checkpointing_of_an_adapter_is_refused(tiny_model_dir, tiny_teacher_dir, tmp_path):
    how = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"selective": True}}
    with pytest.raises(ParamsError, match=r"gradient_checkpointing_kwargs has 'selective'.*; leave it out"):
        make(tiny_model_dir, tiny_teacher_dir, tmp_path, peft=lora(), **how)


@pytest.mark.cpu
def test_activation_offloading_is_refused_without_an_accelerator(tiny_model_dir, tiny_teacher_dir, tmp_path):
    with pytest.raises(ParamsError, match=r"activation_offloading .* this run has no accelerator; leave it out"):
        make(tiny_model_dir, tiny_teacher_dir, tmp_path, activation_offloading=True)


def test_two_gpus_of_one_process_are_refused(tiny_model_dir, tiny_teacher_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(DistillationSFTConfig, "n_gpu", 2, raising=False)
    with pytest.raises(ParamsError, match=r"one process sees 2 GPUs .* \(accelerate launch\), or show it one"):
        make(tiny_model_dir, tiny_teacher_dir, tmp_path)


@pytest.mark.cpu
@pytest.mark.parametrize("teacher", ["other", "self"])
def test_activation_offloading_moves_neither_head_nor_logits(teacher, tiny_model_dir, tiny_teacher_dir, tmp_path):
    """The hooks that `activation_offloading` sets, with the main memory on both sides."""
    name, peft = (tiny_teacher_dir, None) if teacher == "other" else ("self", lora)
    plain = losses(make(tiny_model_dir, name, tmp_path, peft=peft and peft()))
    trainer = make(tiny_model_dir, name, tmp_path, peft=peft and peft())
    moved = []

    def away(tensor):
        if isinstance(tensor, torch.nn.Parameter):  # TRL leaves these where they are
            return tensor
        moved.append(tuple(tensor.shape))
        return tensor.clone()

    trainer.maybe_activation_offload_context = torch.autograd.graph.saved_tensors_hooks(away, lambda tensor: tensor)
    assert losses(trainer) == plain
    vocabularies = {model.config.vocab_size for model in (trainer.base_student, trainer.teacher.model)}
    assert moved
    assert not [shape for shape in moved if vocabularies & {*shape}]


def test_liger_is_refused_on_a_cpu_and_where_it_is_not_installed(tiny_model_dir, tiny_teacher_dir, tmp_path):
    why = "which need a GPU .* cpu: drop it" if find_spec("liger_kernel") else "a package that is missing; `pip install"
    with pytest.raises(ParamsError, match=f"^use_liger_kernel .*{why}"):
        make(tiny_model_dir, tiny_teacher_dir, tmp_path, use_liger_kernel=True, use_cpu=True)


@pytest.mark.cpu
@pytest.mark.skipif(is_kernels_available(), reason="the package kernels is installed")
def test_hub_kernels_are_refused_early_without_their_package(tiny_model_dir, tmp_path):
    with pytest.raises(ParamsError, match=r"^model_init_kwargs has 'use_kernels', which .*kernels\]'` or leave it out"):
        make(tiny_model_dir, "missing", tmp_path, model="missing", model_init_kwargs={"use_kernels": True})


@pytest.mark.cpu
def test_a_self_teacher_keeps_the_kernels_of_training(tiny_model_dir, tmp_path, monkeypatch):
    """With `use_kernels` transformers looks for kernels whenever a model changes its mode, here a call that counts."""
    found = []
    monkeypatch.setattr(PreTrainedModel, "set_use_kernels", lambda model, *_: found.append(model.training))
    trainer = make(tiny_model_dir, "self", tmp_path, peft=lora())
    trainer.base_student._use_kernels = True
    trainer.base_student.eval()
    found.clear()
    losses(trainer)
    assert found == [True]  # not once more for what the teacher scores in three steps


@pytest.mark.cpu
def test_float16_weights_under_fp16_are_refused_on_an_accelerator(
    tiny_model_dir, tiny_teacher_dir, tmp_path, monkeypatch
):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float16)
    monkeypatch.setattr(DistillationSFTConfig, "device", torch.device("cuda"))
    with pytest.raises(ParamsError, match=r"^fp16 scales .* the student's are in float16; load it in float32\."):
        make(tiny_model_dir, tiny_teacher_dir, tmp_path, model=model, fp16=True)


@pytest.mark.filterwarnings("default")  # torch.compile looks at attributes that warn
@pytest.mark.parametrize("teacher", ["other", "self"])
def test_torch_compile_changes_nothing_and_compiles_the_model_alone(
    teacher, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    """With the backend that captures graphs and generates no code, which takes a minute for each.

    Left to itself, transformers has a GPU round to TF32 if torch.compile is on.
    """
    from torch._dynamo.utils import counters

    name, peft = (tiny_teacher_dir, None) if teacher == "other" else ("self", lora)
    settings = {"per_device_train_batch_size": 1, "max_steps": 8, "tf32": False}  # batches of many lengths
    plain = losses(make(tiny_model_dir, name, tmp_path, peft=peft and peft(), **settings))
    torch._dynamo.reset()
    counters.clear()
    trainer = make(
        tiny_model_dir, name, tmp_path, peft=peft and peft(), torch_compile=True, torch_compile_backend="eager",
        **settings,
    )  # fmt: skip
    assert losses(trainer) == pytest.approx(plain, rel=1e-5)
    assert 1 <= counters["stats"]["unique_graphs"] <= 6  # of both models; 42 if the loss is traced
    assert all("`torch.compiler.disable()`d function" in reason for reason in counters["graph_break"])
    torch._dynamo.reset()


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bf16", [False, True])
def test_half_precision_losses_are_close_to_float32(dtype, bf16, tiny_model_dir, tiny_teacher_dir, tmp_path):
    plain = losses(make(tiny_model_dir, tiny_teacher_dir, tmp_path))
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=getattr(torch, dtype))
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, model=model, bf16=bf16)
    found = losses(trainer)
    assert found == pytest.approx(plain, rel=5e-3)
    assert (found == plain) == (dtype == "float32" and not bf16)
    check_teacher_is_apart(trainer)


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_teacher_computes_in_its_own_precision_and_the_student_itself_in_the_students(
    dtype, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, bf16=True, teacher_dtype=dtype, max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    seen = []
    for model in (trainer.teacher.model, trainer.model):
        model.base_model.layers[0].register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    trainer.train()
    assert seen == [False, True]
    found = trainer.distiller.signal(batch).hidden
    alone = load_teacher(str(tiny_teacher_dir), dtype=dtype).score(batch).hidden
    assert found.dtype == alone.dtype == getattr(torch, dtype)
    assert torch.equal(found, alone)
    own = make(tiny_model_dir, "self", tmp_path, peft=lora(), bf16=True)
    own.base_student.base_model.layers[0].register_forward_hook(
        lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
    )
    own.distiller.signal(batch)
    assert seen == [False, True, False, True]


@pytest.mark.cpu
def test_fp16_on_a_cpu_is_left_at_float32_as_by_sft_trainer(tiny_model_dir, tiny_teacher_dir, tmp_path):
    plain, half = (losses(make(tiny_model_dir, tiny_teacher_dir, tmp_path, fp16=fp16)) for fp16 in (False, True))
    assert half == plain


@pytest.mark.parametrize("teacher", ["other", "self"])
def test_bf16_full_eval_evaluates_in_half(teacher, tiny_model_dir, tiny_teacher_dir, tmp_path):
    name, peft = (tiny_teacher_dir, None) if teacher == "other" else ("self", lora)
    plain = make(tiny_model_dir, name, tmp_path, peft=peft and peft()).evaluate()
    trainer = make(tiny_model_dir, name, tmp_path, peft=peft and peft(), bf16_full_eval=True)
    found = trainer.evaluate()
    assert next(trainer.base_student.parameters()).dtype == torch.bfloat16
    assert found["eval_kl"] == pytest.approx(plain["eval_kl"], rel=0.05)
    assert found["eval_ce"] == pytest.approx(plain["eval_ce"], rel=5e-3)
    assert found["eval_ce"] != plain["eval_ce"]


@pytest.mark.cpu
def test_neftune_noise_is_added_to_the_student_only(tiny_model_dir, tmp_path):
    trainer = make(tiny_model_dir, "self", tmp_path, peft=lora(), neftune_noise_alpha=50.0, max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    seen = []

    class Scored(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            trainer.model.train()
            scores = [trainer.teacher.score(batch).hidden for _ in range(2)]
            drawn = [trainer.compute_loss(trainer.model, batch).item() for _ in range(2)]
            seen.append(torch.equal(*scores) and drawn[0] != drawn[1])

    trainer.add_callback(Scored())
    trainer.train()
    assert seen == [True]


def test_rows_are_grouped_by_what_both_models_read(tiny_model_dir, tiny_teacher_dir, tmp_path):
    settings = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2}
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, **settings)
    row = trainer.train_dataset[0]
    tokens = len(row["student_prompt"]) + len(row["teacher_prompt"]) + 2 * len(row["completion"])
    assert row["length"] == tokens
    sampler = trainer._get_train_sampler()
    assert isinstance(sampler, LengthGroupedSampler)
    assert list(sampler.lengths) == list(trainer.train_dataset["length"])
    assert len(losses(trainer)) == 3
    assert trainer.evaluate()["eval_kl"] > 0


@pytest.mark.parametrize("counted", ["non_padding", "all"])
def test_num_input_tokens_seen_counts_the_students_tokens(counted, tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make(
        tiny_model_dir, tiny_teacher_dir, tmp_path, max_steps=2, include_num_input_tokens_seen=counted,
        label_names=["labels"],
    )  # fmt: skip
    trainer.train()
    tokens = sum(len(row["student_prompt"]) + len(row["completion"]) for row in trainer.train_dataset)
    if counted == "non_padding":
        assert trainer.state.num_input_tokens_seen == tokens
    else:
        assert trainer.state.num_input_tokens_seen > tokens


@pytest.mark.parametrize("metric", ["eval_loss", "eval_kl"])
def test_the_best_model_is_loaded_at_the_end(metric, tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make(
        tiny_model_dir, tiny_teacher_dir, tmp_path, max_steps=6, learning_rate=1e-2, eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True, metric_for_best_model=metric,
        greater_is_better=True, eval_on_start=True,
    )  # fmt: skip
    trainer.train()
    measured = [line[metric] for line in trainer.state.log_history if metric in line]
    assert len(measured) == 7  # one before the first step
    best = max(measured[1:])  # training lowers it, so that the last model is not what is asked for
    assert best > measured[-1]
    assert trainer.state.best_metric == best
    assert trainer.evaluate()[metric] == pytest.approx(best, rel=1e-6)
    check_teacher_is_apart(trainer, tmp_path / "checkpoint-6")


def test_callbacks_are_called_and_given_the_figures(tiny_model_dir, tiny_teacher_dir, tmp_path):
    called = {"step": 0, "evaluated": [], "logged": []}

    class Watching(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            called["step"] += 1
            control.should_training_stop = state.global_step == 2

        def on_evaluate(self, args, state, control, metrics, **kwargs):
            called["evaluated"].append(metrics)

        def on_log(self, args, state, control, logs, **kwargs):
            called["logged"].append(logs)

    trainer = make(
        tiny_model_dir,
        tiny_teacher_dir,
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        more={"callbacks": [Watching()]},
    )
    trainer.train()
    assert called["step"] == 2
    assert all("eval_loss" in figures for figures in called["evaluated"])
    assert len(called["evaluated"]) == 2
    assert any("kl" in line for line in called["logged"])
    assert any("eval_kl" in line for line in called["logged"])
