"""Two processes, joined by gloo on a CPU: they lose what one does on the same global batch, plain or sharded."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType
from peft import LoraConfig
from safetensors.torch import load_file
from small_runs import losses, make
from transformers import AutoModelForCausalLM
from two_processes import CONFIGS, EVALUATED, TESTS, close, in_forks, in_two, launched

from trl_distill import LLMTrainingParams, ParamsError, TeacherError, load_teacher, train
from trl_distill.data.collator import IGNORE
from trl_distill.teachers.multi.entries import read_teachers
from trl_distill.teachers.multi.teacher import MultiTeacher
from trl_distill.trainer.distributed import check_sharding
from trl_distill.trainer.on_policy import BatchRandom

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="the extra 'deepspeed' is not installed")
ZERO_2 = pytest.param("zero2.yaml", marks=needs_deepspeed)
ZERO_3 = pytest.param("zero3.yaml", marks=needs_deepspeed)
EVERY = ["ddp.yaml", "fsdp2.yaml", ZERO_2, ZERO_3]
SHARDED = ["fsdp2.yaml", ZERO_3]


@pytest.mark.parametrize("config", EVERY)
def test_two_processes_have_the_losses_and_weights_of_one(config, tiny_model_dir, tiny_teacher_dir, tmp_path):
    """With gradients accumulated, and an evaluation whose last batch is too short for two."""
    one = make(tiny_model_dir, tiny_teacher_dir, tmp_path, per_device_eval_batch_size=6)
    expected = losses(one)
    found = in_two(
        config, tmp_path, tiny_model_dir, tiny_teacher_dir, per_device_train_batch_size=1,
        gradient_accumulation_steps=2, per_device_eval_batch_size=3,
    )  # fmt: skip
    assert found["losses"] == pytest.approx(expected, rel=1e-5)
    assert found["eval"] == close({name: one.evaluate()[name] for name in EVALUATED})
    both = found["sharded"]
    assert (both["student"] > 0, both["teacher"] > 0) == (config in ("fsdp2.yaml", "zero3.yaml"),) * 2
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "final").state_dict()
    for name, tensor in one.model.state_dict().items():
        assert (saved[name] - tensor).norm() <= 1e-4 * tensor.norm(), name


@pytest.mark.parametrize("config", SHARDED)
def test_sharded_models_fall_back_to_their_own_logits(config, tiny_model_dir, tiny_teacher_dir, tmp_path):
    """A factor in the configuration that the family's forward does not know: the head would give other logits."""
    expected = losses(make(tiny_model_dir, tiny_teacher_dir, tmp_path))
    folders = []
    for folder in (tiny_model_dir, tiny_teacher_dir):
        folders.append(shutil.copytree(folder, tmp_path / f"{folder.name}_scaled"))
        path = folders[-1] / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "logit_scale": 0.5}))
    found = in_two(config, tmp_path, *folders, per_device_train_batch_size=2)
    assert found["losses"] == pytest.approx(expected, rel=1e-5)
    assert found["sharded"]["student"] > 0
    assert "Student: the LM head alone does not compute the logits of LlamaForCausalLM" in found["printed"]
    assert "scaled': the LM head alone does not compute the logits of LlamaForCausalLM" in found["printed"]


@pytest.mark.parametrize("rows", [5, 6, 7])
@pytest.mark.parametrize("how", [{}, {"padding_free": True}, {"packing": True, "max_length": 11}])
def test_each_row_of_an_evaluation_counts_once(how, rows, tiny_model_dir, tiny_teacher_dir, tmp_path):
    one = make(tiny_model_dir, tiny_teacher_dir, tmp_path, rows=rows, learning_rate=0.0)
    found = in_two(
        "ddp.yaml", tmp_path, tiny_model_dir, tiny_teacher_dir, rows=rows, learning_rate=0.0,
        per_device_train_batch_size=2, per_device_eval_batch_size=2 if "packing" not in how else 1, **how,
    )  # fmt: skip
    assert found["eval"] == close({name: one.evaluate()[name] for name in EVALUATED})


@pytest.mark.parametrize("config", SHARDED)
@pytest.mark.parametrize("student", ["lora", "tied", "checkpointed"])
def test_adapters_tied_embeddings_and_checkpointing_work_sharded(
    config, student, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    peft = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if student == "lora" else None
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    if student == "tied":
        model.config.tie_word_embeddings = True
        model.tie_weights()
    expected = losses(make(tiny_model_dir, tiny_teacher_dir, tmp_path, model=model, peft=peft))
    found = in_two(
        config, tmp_path, tiny_model_dir, tiny_teacher_dir, lora=peft is not None, tied=student == "tied",
        per_device_train_batch_size=2, gradient_checkpointing=student == "checkpointed",
    )  # fmt: skip
    assert found["losses"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("config", SHARDED)
def test_in_bfloat16_the_loss_stays_in_float32(config, tiny_model_dir, tiny_teacher_dir, tmp_path):
    found = in_two(config, tmp_path, tiny_model_dir, tiny_teacher_dir, per_device_train_batch_size=2, bf16=True)
    tokens = 25  # of the evaluation's completions; a sum rounded to bfloat16 has eight bits
    total = found["eval"]["eval_loss"] * tokens
    assert abs(total * 16 - round(total * 16)) > 1e-3
    expected = losses(make(tiny_model_dir, tiny_teacher_dir, tmp_path, bf16=True))
    assert found["losses"] == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("config", SHARDED)
def test_a_sharded_run_resumes_from_a_checkpoint(config, tiny_model_dir, tiny_teacher_dir, tmp_path):
    settings = {"per_device_train_batch_size": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = in_two(config, tmp_path, tiny_model_dir, tiny_teacher_dir, **settings)
    checkpoint = str(tmp_path / "two" / "checkpoint-2")
    resumed = in_two(config, tmp_path, tiny_model_dir, tiny_teacher_dir, resume=checkpoint, **settings)
    assert resumed["losses"] == pytest.approx(whole["losses"], rel=1e-6)
    assert resumed["eval"] == close(whole["eval"])


@pytest.mark.parametrize("config", SHARDED)
def test_self_teacher_is_refused_with_sharded_weights(config, tiny_model_dir, tmp_path):
    with pytest.raises(AssertionError, match="'self' cannot be used if weights are sharded"):
        in_two(config, tmp_path, tiny_model_dir, "self", lora=True)


@needs_deepspeed
def test_self_teacher_works_under_zero_2(tiny_model_dir, tmp_path):
    peft = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    expected = losses(make(tiny_model_dir, "self", tmp_path, peft=peft))
    found = in_two("zero2.yaml", tmp_path, tiny_model_dir, "self", lora=True, per_device_train_batch_size=2)
    assert found["losses"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("config", EVERY)
def test_the_student_generates_the_same_in_two_processes_as_in_one(config, tiny_model_dir, tiny_teacher_dir, tmp_path):
    """Though one process has written all its tokens before the other."""
    settings = {
        "distill_on_policy_fraction": 1.0, "distill_on_policy_max_new_tokens": 20, "distill_on_policy_temperature": 0.0,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.generation_config.eos_token_id = stops = list(range(60))
    one = make(tiny_model_dir, tiny_teacher_dir, tmp_path, model=model, **settings)
    first = next(iter(one.get_train_dataloader()))
    lengths = (one.distiller.completions.by_student(first, BatchRandom(0, 0, 0))["labels"] != IGNORE).sum(1).tolist()
    assert max(lengths[:2]) != max(lengths[2:])
    found = in_two(
        config, tmp_path, tiny_model_dir, tiny_teacher_dir, stops=stops, per_device_train_batch_size=2, **settings
    )
    assert found["losses"] == pytest.approx(losses(one), rel=1e-5)


def command(folder, student, teacher, rows, *flags):
    """Return the command that trains on rows for two steps."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "-m", "trl_distill.cli", "llm", "--trainer", "distillation", "--model", str(student), "--teacher-model",
        str(teacher), "--data-path", str(folder / "rows.jsonl"), "--max-steps", "2", "--batch-size", "1",
        "--gradient-accumulation", "1", "--project-name", str(folder / "project"), "--log", "none", *flags,
    ]  # fmt: skip


@pytest.mark.parametrize("config", EVERY)
def test_the_command_runs_under_accelerate_launch(config, tiny_model_dir, tiny_teacher_dir, tmp_path):
    """The first process alone loads the teacher to write, and the saved model to try the card's example."""
    rows = [{"prompt": p} for p in "abcd"]
    words = command(tmp_path, tiny_model_dir, tiny_teacher_dir, rows, "--distill-max-teacher-length", "4")
    printed = launched(config, words) if config == "ddp.yaml" else in_forks(config, words, tmp_path / "printed")
    assert "Model, card and metrics are in" in printed
    assert "; 2 processes; optimizer" in printed
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "project").num_parameters() > 0
    assert len(json.loads((tmp_path / "project" / "metrics.json").read_text())) > 0


@needs_deepspeed
def test_the_command_trains_a_sharded_adapter_and_leaves_the_process_group(tiny_model_dir, tiny_teacher_dir, tmp_path):
    rows = [{"prompt": p, "completion": " b"} for p in "abcd"]
    flags = ("--peft", "--target-modules", "q_proj,v_proj")
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\nfrom torch import distributed\nfrom trl_distill.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\nassert not distributed.is_initialized(), 'the group is open'\n"
    )
    arguments = command(tmp_path, tiny_model_dir, tiny_teacher_dir, rows, *flags)[2:]
    in_forks("zero3.yaml", [str(script), *arguments], tmp_path / "printed")
    tensors = load_file(tmp_path / "project" / "adapter_model.safetensors")
    assert {tensor.dim() for tensor in tensors.values()} == {2}
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)


def test_merging_into_sharded_weights_is_refused(tiny_model_dir, tiny_teacher_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch` sets it
    params = LLMTrainingParams(
        model=str(tiny_model_dir), trainer="distillation", teacher_model=str(tiny_teacher_dir), peft=True,
        merge_adapter=True, data_path=str(tmp_path / "rows.jsonl"), project_name=str(tmp_path / "project"),
    )  # fmt: skip
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": " b"}\n')
    with pytest.raises(ParamsError, match="merge_adapter cannot merge if weights are sharded"):
        train(params)


def test_a_sharded_teacher_writes_no_completions(tiny_model_dir, tiny_teacher_dir, tmp_path):
    script = tmp_path / "late.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(TESTS)!r})\nfrom small_runs import make\nfrom datasets import Dataset\n"
        f"trainer = make({str(tiny_model_dir)!r}, {str(tiny_teacher_dir)!r}, {str(tmp_path)!r},\n"
        "    completions='teacher', distill_max_teacher_length=3)\n"
        "trainer.train()\n"
        "trainer.evaluate(Dataset.from_dict({'prompt': ['a new one'], 'completion': ['b']}))\n"
    )
    with pytest.raises(AssertionError, match="is sharded over ranks and cannot write completions"):
        in_forks("fsdp2.yaml", [str(script)], tmp_path / "printed")


def test_fsdp_1_is_refused():
    """By the check alone: accelerate starts no FSDP of the first version without an accelerator."""
    first = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False, state=SimpleNamespace())
    with pytest.raises(ParamsError, match="fsdp_version is 1, which distillation does not support"):
        check_sharding(first, load_teacher("embedded"))


def test_several_teachers_are_refused_with_sharded_weights(tiny_teacher_dir):
    second = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=True, state=SimpleNamespace())
    listed = read_teachers([{"model": str(tiny_teacher_dir)}, {"model": str(tiny_teacher_dir)}])
    several = MultiTeacher([load_teacher(str(tiny_teacher_dir)) for _ in range(2)], listed)
    with pytest.raises(TeacherError, match=r"several teachers, .* cannot be used if weights are sharded"):
        check_sharding(second, several)


def test_accelerate_reads_every_example_configuration():
    from accelerate.commands.config.config_args import load_config_from_file

    kinds = {path.stem: load_config_from_file(str(path)) for path in CONFIGS.glob("*.yaml")}
    assert kinds.keys() == {"ddp", "fsdp2", "zero2", "zero3"}
    assert kinds["fsdp2"].fsdp_config["fsdp_version"] == 2
    assert [kinds[f"zero{stage}"].deepspeed_config["zero_stage"] for stage in (2, 3)] == [2, 3]
