"""vLLM writes for the student; run if a CPU build of vLLM is installed, which holds transformers back."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from conftest import make_tokenizer
from ranks import run_in
from small_runs import losses, make
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from trl_distill import DistillationSFTConfig, LLMTrainingParams, ParamsError, train

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own, and those of libraries that it holds back
missing = find_spec("vllm") is None
needs_vllm = pytest.mark.skipif(missing, reason="vLLM is not installed")
OWN = {
    "distill_on_policy_fraction": 1.0, "distill_on_policy_max_new_tokens": 8, "distill_on_policy_temperature": 0.0,
    "max_length": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def student_dir(tmp_path_factory):
    """A student whose heads have a width that vLLM takes on a CPU, and rows that are no tokens."""
    folder, tokenizer = tmp_path_factory.mktemp("student"), make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 2, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=512, initializer_range=0.1,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(64)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CODE = """
import torch
from on_cpu_vllm import keep_weights
from peft import LoraConfig
from small_runs import losses, make
from trl_distill.trainer.on_policy import BatchRandom

keep_weights()
peft = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if {lora!r} else None
trainer = make({student!r}, {teacher!r}, {folder!r}, peft=peft, use_vllm=True, **{settings!r})
batch = next(iter(trainer.get_train_dataloader()))


def completions(place=0, *, by="vllm"):
    trainer.args.use_vllm = by == "vllm"
    trainer.model.eval()
    batch_of = trainer.distiller.completions.by_student(batch, BatchRandom(7, trainer.state.global_step, place))
    trainer.args.use_vllm = True
    labels = batch_of["labels"]
    return [[token for token in row if token != -100] for row in labels.tolist()]


before = torch.random.get_rng_state()
result = {{"first": completions(), "own_first": completions(by="generate"), "other": completions(1)}}
result["again"] = completions()
result["unmoved"] = torch.equal(before, torch.random.get_rng_state())
result["losses"] = losses(trainer)
result |= {{"last": completions(), "own_last": completions(by="generate")}}
"""


def in_a_process(student, teacher, folder, *, lora=False, **settings):
    """Return what a trainer with vLLM finds; a process has one engine in its life."""
    code = CODE.format(
        student=str(student), teacher=str(teacher), folder=str(folder), lora=lora, settings={**OWN, **settings}
    )
    return run_in(1, code, folder)


def alike(rows, others):
    """Return the share of rows that begin with the same tokens.

    vLLM computes in half precision, in which a near tie may fall anew, after which a row goes another way.
    """
    return sum(row[:3] == other[:3] for row, other in zip(rows, others, strict=True)) / len(rows)


@needs_vllm
@pytest.mark.parametrize("lora", [False, True])
def test_vllm_generates_what_the_student_would_before_and_after_training(lora, student_dir, tiny_teacher_dir, tmp_path):
    found = in_a_process(student_dir, tiny_teacher_dir, tmp_path, lora=lora, learning_rate=0.1)
    assert alike(found["first"], found["own_first"]) >= 0.75
    assert alike(found["last"], found["own_last"]) >= 0.75
    assert alike(found["last"], found["first"]) <= 0.5  # so that weights of the start would be seen
    assert max(len(row) for row in found["last"]) <= OWN["distill_on_policy_max_new_tokens"]
    assert len(found["losses"]) == 3


@needs_vllm
def test_vllm_sampling_is_repeatable_and_leaves_the_random_state(student_dir, tiny_teacher_dir, tmp_path):
    found = in_a_process(student_dir, tiny_teacher_dir, tmp_path, distill_on_policy_temperature=1.0)
    assert found["first"] == found["again"] != found["other"]
    assert found["unmoved"]


@needs_vllm
def test_two_processes_with_vllm_have_the_losses_of_one_without(student_dir, tiny_teacher_dir, tmp_path):
    code = (
        "from on_cpu_vllm import keep_weights\nfrom small_runs import losses, make\nkeep_weights()\n"
        f"trainer = make({str(student_dir)!r}, {str(tiny_teacher_dir)!r}, {str(tmp_path)!r}, use_vllm=True,\n"
        f"    per_device_train_batch_size=2, **{OWN!r})\nresult = losses(trainer)\n"
    )
    expected = losses(make(student_dir, tiny_teacher_dir, tmp_path / "one", **OWN))
    assert run_in(2, code, tmp_path) == pytest.approx(expected, rel=0.15)  # a near tie may fall anew


@pytest.mark.skipif(not missing, reason="vLLM is installed")
def test_vllm_is_refused_where_it_is_not_installed(tiny_model_dir, tiny_teacher_dir, tmp_path):
    with pytest.raises(ParamsError, match="use_vllm needs a package that is missing; `pip install 'trl"):
        make(tiny_model_dir, tiny_teacher_dir, tmp_path, use_vllm=True, distill_on_policy_fraction=0.5)


@pytest.mark.skipif(not missing, reason="vLLM is installed")
def test_the_command_refuses_a_missing_vllm_before_a_model_loads(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": " b"}\n')
    params = LLMTrainingParams(
        model="embedded", trainer="distillation", teacher_model="embedded", data_path=str(tmp_path / "rows.jsonl"),
        project_name=str(tmp_path / "project"), distill_on_policy_fraction=0.5, use_vllm=True,
    )  # fmt: skip
    with pytest.raises(ParamsError, match="use_vllm needs a package that is missing"):
        train(params)


def test_use_vllm_refuses_an_int8_student():
    params = LLMTrainingParams(
        model="embedded", trainer="distillation", teacher_model="embedded", data_path="rows.jsonl",
        project_name="project", distill_on_policy_fraction=0.5, use_vllm=True, quantization="int8", peft=True,
    )  # fmt: skip
    with pytest.raises(ParamsError, match="use_vllm cannot be used with quantization='int8'"):
        params.validate()


def test_use_vllm_needs_on_policy_batches(tmp_path):
    with pytest.raises(ParamsError, match="use_vllm has nothing to generate; add distill_on_policy_fraction"):
        DistillationSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, use_vllm=True)


@needs_vllm
@pytest.mark.parametrize(("kind", "message"), [("int8", "int8 student"), ("nowhere", "a loaded model without a path")])
def test_a_student_that_vllm_cannot_load_is_refused(kind, message, tiny_model_dir, tiny_teacher_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    if kind == "int8":
        model.is_loaded_in_8bit = True
    else:
        model.name_or_path = ""
    with pytest.raises(ParamsError, match=message):
        make(tiny_model_dir, tiny_teacher_dir, tmp_path, model=model, use_vllm=True, **OWN)
