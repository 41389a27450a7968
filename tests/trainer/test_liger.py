"""Liger's layers in a student: the losses of the model's own, by Triton's interpreter on a CPU.

In a process of their own: Liger changes the classes of a whole family of models, and Triton reads its variable when it
is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from small_runs import make

from trl_distill.errors import ParamsError
from trl_distill.trainer import compatibility as features

pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
triton = pytest.importorskip("triton", reason="triton is not installed (pip install 'trl-distill[kernels]')")
OLD = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7)

# what the interpreter of triton 3.7 does not take of Liger's kernels: numbers that are no constants, and libdevice
PROGRAM = """
import json, sys
import liger_kernel.ops.rms_norm, numpy, triton
import triton.language as tl
from triton.runtime import interpreter

def number(given, others=interpreter._implicit_cvt):
    if not isinstance(given, float):
        return others(given)
    return tl.tensor(interpreter.TensorHandle(numpy.array([given], dtype=numpy.float32), tl.float32), tl.float32)

@triton.jit
def rsqrt(x):
    return tl.rsqrt(x)

interpreter._implicit_cvt, liger_kernel.ops.rms_norm.rsqrt = number, rsqrt

from peft import LoraConfig
from small_runs import losses, make

student, other, folder = sys.argv[1:]

def trainers(**more):
    how = {"use_cpu": True, "max_steps": 2, "rows": 4, **more}
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return make(student, other, folder, **how), make(student, "self", folder, peft=lora, **how)

plain = [losses(trainer) for trainer in trainers()]
with_liger = trainers(use_liger_kernel=True)
found = [losses(trainer) for trainer in with_liger]
layer = with_liger[0].base_student.model.layers[0]
kinds = [module.forward.__func__.__qualname__ for module in (layer.mlp, layer.input_layernorm)]
print(json.dumps([plain, found, kinds]))
"""


@pytest.mark.parametrize("loss", ["fused_linear_cross_entropy", "cross_entropy"])
def test_liger_losses_are_refused(loss, tiny_model_dir, tiny_teacher_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "INTERPRETED", True)
    with pytest.raises(ParamsError, match=f"^liger_kernel_config has '{loss}', a loss that would replace"):
        make(tiny_model_dir, tiny_teacher_dir, tmp_path, use_liger_kernel=True, liger_kernel_config={loss: True})


@pytest.mark.skipif(OLD, reason="the interpreter of triton before 3.7 does not work with numpy 2.4")
def test_liger_layers_give_the_losses_of_the_models_own_layers(tiny_model_dir, tiny_teacher_dir, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, tiny_model_dir, tiny_teacher_dir, tmp_path],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    plain, found, kinds = json.loads(done.stdout.splitlines()[-1])
    assert kinds == ["LigerSwiGLUMLP.forward", "LigerRMSNorm.forward"]
    for before, after in zip(plain, found, strict=True):  # of another teacher, and of the student under its adapter
        assert len(before) == 2
        assert after == pytest.approx(before, rel=1e-5)
