"""The kernels of a GPU: the losses' tests over them by Triton's interpreter, and what they compile to for an H100."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trl_distill.losses.fused.tile_plan import BLOCK, CHUNKS

triton = pytest.importorskip("triton", reason="triton is not installed (pip install 'trl-distill[kernels]')")
VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])

HERE = Path(__file__).parent
FILES = (
    "test_gpu.py", "test_fused.py", "test_mixture.py", "test_own_logits.py", "test_ruled_out.py", "test_topk.py",
    "test_sampled.py", "test_not_finite.py",
)  # fmt: skip
NOT_OF_KERNELS = "fit or refused or trains or stored or blocks_of or across or tensor_grows"  # rooms have a least size
SLOW = "tile_size or gradcheck or linear or rises_with_k or rounded or three or hot or cold or odd"


@pytest.mark.skipif(VERSION < (3, 7), reason="the interpreter of triton before 3.7 does not work with numpy 2.4")
def test_the_losses_tests_pass_over_the_kernels(tmp_path):
    """In a process of their own: Triton reads the variable when it is imported."""
    cases = os.environ.get("KERNEL_CASES", "pairwise")
    chosen = f"not ({NOT_OF_KERNELS}{f' or {SLOW}' if cases == 'pairwise' else ''})"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *(HERE / name for name in FILES), "-k", chosen,
         "-x", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning"],
        env={**os.environ, "TRITON_INTERPRET": "1", "KERNEL_CASES": cases, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]


MODELS = {
    "student": "*fp32", "stride_s": "i32", "readable_s": "i32", "size": "i32", "teacher": "*fp32", "stride_t": "i32",
    "readable_t": "i32", "vocabulary": "i32", "counted": "*i1", "temperature_s": "fp32", "temperature_t": "fp32",
}  # fmt: skip
TILE = {
    "labels": "*i64", "weights_ce": "*fp32", "weights_kl": "*fp32", "values": "*fp32", "tokens": "i32",
    "gradient": "*bf16", "stride_g": "i32",
}  # fmt: skip
ALONE = {"chunks": "i32", "chunk": "i32"}
SUMS = {"sums": "*fp32", **ALONE}
MIX = {
    "teacher": "*fp32", "stride": "i32", "readable": "i32", "vocabulary": "i32", "weights": "*fp32", "mixed": "*fp32",
    "stride_m": "i32", "temperature": "fp32",
}  # fmt: skip
KNOWN = {"ids": "*i64", "k": "i32", "picked": "*fp32"}
SPARSE = (
    MODELS | TILE | SUMS | KNOWN | {"probs": "*fp32", "tails": "*fp32", "negentropies": "*fp32", "temperature": "fp32"}
)
TOPK = {"K": 64, "MOST": CHUNKS, "ONE": False}
HEADS = {"SCALE_S": 1.0, "CAP_S": None, "SCALE_T": 1.0, "CAP_T": None, "BLOCK": BLOCK, "bias_s": None, "bias_t": None}
CAPPED = {"SCALE_S": 0.5, "CAP_S": 30.0, "SCALE_T": 2.0, "CAP_T": 50.0}
MERGING = {"MOST": CHUNKS, "BETA": 0.5}
COMPILED = {
    "forward KL at T = 1": ("row", MODELS | TILE | ALONE, {"KIND": 0, "ONE": True, **MERGING, "sums": None}),
    "forward KL": ("row", MODELS | TILE | ALONE, {"KIND": 0, "ONE": False, **MERGING, "sums": None}),
    "reverse KL": ("row", MODELS | TILE | ALONE, {"KIND": 1, "ONE": False, **MERGING, "sums": None}),
    "JSD": ("row", MODELS | TILE | ALONE, {"KIND": 2, "ONE": False, **MERGING, "sums": None}),
    "softcaps": ("row", MODELS | TILE | ALONE, {"KIND": 0, "ONE": True, **MERGING, "sums": None, **CAPPED}),
    "no teacher": ("row", MODELS | TILE | ALONE, {"KIND": 0, "ONE": True, **MERGING, "sums": None, "teacher": None}),
    "values alone": ("row", MODELS | TILE | ALONE, {"KIND": 0, "ONE": True, **MERGING, "sums": None, "gradient": None}),
    "chunks": ("sums", MODELS | SUMS, {"KIND": 2, "ONE": False}),
    "chunks of a JSD": ("mixture_sums", MODELS | SUMS, MERGING),
    "chunks' end": ("row", MODELS | TILE | SUMS, {"KIND": 2, "ONE": False, **MERGING}),
    "known tokens": ("pick", MODELS | KNOWN, TOPK),
    "a tail": ("tail_sums", SPARSE, TOPK),
    "a tail's end": ("tail_finish", SPARSE, {**TOPK, "negentropies": None}),
    "drawn tokens' end": ("tail_finish", SPARSE, {**TOPK, **CAPPED, "tails": None}),
    "a mixture": ("mix", MIX, {"SCALE": 1.0, "CAP": None, "FIRST": False, "BLOCK": BLOCK, "bias": None}),
}


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")  # 3.9 says that 3.10 will have another default
@pytest.mark.parametrize("name", COMPILED)
def test_a_kernel_compiles_for_an_h100_and_spills_no_register(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trl_distill.losses.fused import triton_kernels, triton_sparse

    kernel, types, constants = COMPILED[name]
    kernel = getattr(triton_kernels, f"{kernel}_kernel", None) or getattr(triton_sparse, f"{kernel}_kernel")
    names = kernel.arg_names
    constants = {n: v for n, v in {**HEADS, **constants}.items() if n in names}
    aligned = [n for n in names if n in types and n not in constants and types[n] != "fp32" and n != "chunks"]
    source = ASTSource(
        kernel,
        {n: "constexpr" if n in constants else types[n] for n in names},
        {(names.index(n),): v for n, v in constants.items()},
        {(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assembly = tmp_path / "kernel.ptx"
    assembly.write_text(built.asm["ptx"])
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    how = subprocess.run(
        [ptxas, "-v", "-arch=sm_90a", assembly, "-o", tmp_path / "kernel.cubin"], capture_output=True, text=True,
        check=True,
    ).stderr  # fmt: skip
    registers = int(re.search(r"Used (\d+) registers", how).group(1))
    print(f"{name}: {registers} registers, {built.metadata.shared} bytes shared")
    if VERSION >= (3, 7):  # earlier ones use fewer registers, and spill two with a softcap
        assert "0 bytes spill stores, 0 bytes spill loads" in how
    assert registers <= 128  # so that four programs of 128 threads share a processor
    assert "cp.async" in built.asm["ptx"] or name == "known tokens"  # logits are on their way before they are wanted
