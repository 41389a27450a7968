"""Starts a run of the trainer in two processes, under a configuration of examples/accelerate, on a CPU.

`launched` starts a command by `accelerate launch`. `in_forks` has the environment that the launch gives, and forks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
from forks import run_forks
from ranks import joined

TESTS = Path(__file__).parent
CONFIGS = TESTS.parent / "examples" / "accelerate"
KINDS = {"ddp.yaml": "MULTI_CPU", "fsdp2.yaml": "FSDP", "zero2.yaml": "DEEPSPEED", "zero3.yaml": "DEEPSPEED"}
EVALUATED = ("eval_loss", "eval_kl", "eval_num_tokens")
SCRIPT = """
import json, os, sys
sys.path.insert(0, {tests!r})
from peft import LoraConfig
from small_runs import losses, make
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
import torch.distributed as dist

ranks = int(os.environ["WORLD_SIZE"])
peft = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if {lora!r} else None
model = AutoModelForCausalLM.from_pretrained({student!r})
if {tied!r}:
    model.config.tie_word_embeddings = True
    model.tie_weights()
if {stops!r}:
    model.generation_config.eos_token_id = {stops!r}
trainer = make({student!r}, {teacher!r}, {folder!r}, model=model, peft=peft, **{settings!r})
resumed = {resume!r}
trainer.train(resume_from_checkpoint=resumed)
evaluated = trainer.evaluate()
trainer.save_model({folder!r} + "/final")
models = {{"student": trainer.model, "teacher": trainer.teacher.model}}
layers = {{key: [p for name, p in m.named_parameters() if ".layers." in name] for key, m in models.items()}}


def split(p):  # by FSDP2, or by ZeRO-3
    return isinstance(p, DTensor) or (hasattr(p, "ds_tensor") and p.ds_tensor.numel() < p.ds_numel)


sharded = {{key: sum(split(p) for p in parameters) for key, parameters in layers.items()}}
found = {{
    "ranks": ranks,
    "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
    "eval": {{name: evaluated[name] for name in {evaluated!r}}},
    "sharded": sharded,
    "kind": str(trainer.accelerator.distributed_type),
}}
if trainer.accelerator.is_main_process:
    print("RESULT", json.dumps(found))
dist.barrier()
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # threads of gloo that are left may abort an interpreter that ends by itself
"""


def launch(config, command):
    """Return what launches a command with a configuration of examples/accelerate, and its environment on a CPU."""
    environment = {
        "ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    # a port of its own, since other tests may launch at the same time
    ours = ["--config_file", str(CONFIGS / config), "--main_process_port", "0"]
    return ["-m", "accelerate.commands.launch", *ours, *command], environment


def launched(config, command, *, timeout=150):
    """Run `accelerate launch` and return what is printed.

    Args:
        config: A file of examples/accelerate that needs no accelerator.
        command: A script or `-m MODULE`, and its arguments.
        timeout: Seconds after which the processes are killed.
    """
    program, environment = launch(config, command)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, *program], env={**os.environ, **environment}, **options) as started:
        try:
            printed, errors = started.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)  # the processes that wait for each other too
            raise
    assert started.returncode == 0, errors[-20_000:]
    return printed


@cache
def environments(config):
    """Return what `accelerate launch`, in a fork, adds to the environment of each of two processes."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "environment.py"
        script.write_text(
            "import json, os\nfrom pathlib import Path\n"
            f"Path({folder!r}, os.environ['RANK']).write_text(json.dumps(dict(os.environ)))\n"
        )
        program, environment = launch(config, [str(script)])
        (ended,) = run_forks(program, [environment], Path(folder, "printed"))
        assert ended.code == 0, ended.errors[-20_000:]
        found = [json.loads((Path(folder) / str(rank)).read_text()) for rank in range(2)]
    # what the launcher's own agent is needed for is left out
    return [{k: v for k, v in own.items() if os.environ.get(k) != v and "TORCHELASTIC" not in k} for own in found]


def in_forks(config, command, folder):
    """Run a command in two processes, as `accelerate launch` does; return what they print."""
    if config != "ddp.yaml":
        command = [str(TESTS / "on_cpu.py"), *command]
    both = run_forks(command, joined(environments(config)), folder)
    assert not any(ended.code for ended in both), "".join(ended.errors[-10_000:] for ended in both)
    return "".join(ended.printed for ended in both)


def in_two(config, folder, student, teacher, *, lora=False, tied=False, resume=None, stops=None, **settings):
    """Return what two processes find under a configuration."""
    script = folder / "script.py"
    script.write_text(
        SCRIPT.format(
            tests=str(TESTS), lora=lora, student=str(student), teacher=str(teacher), folder=str(folder / "two"),
            tied=tied, resume=resume, stops=stops, settings=settings, evaluated=EVALUATED,
        )
    )  # fmt: skip
    printed = in_forks(config, [str(script)], folder / "printed")
    found = json.loads(next(line for line in printed.splitlines() if line.startswith("RESULT"))[7:])
    assert found["ranks"] == 2
    assert found["kind"] == f"DistributedType.{KINDS[config]}"
    return {**found, "printed": printed}


def close(evaluated):
    """Return an evaluation's figures, to be compared with others."""
    return {name: pytest.approx(value, rel=1e-5) for name, value in evaluated.items()}
