"""The values that settings accept."""

from __future__ import annotations

STRATEGIES = ("no", "steps", "epoch")
MIXED_PRECISIONS = ("auto", "no", "bf16", "fp16")


DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
COMPLETIONS = ("auto", "data", "teacher")
OVERFLOWS = ("error", "left")
QUANTIZATIONS = ("int4", "int8")
DTYPES = ("auto", "float32", "bfloat16", "float16")
LOSS_IMPLEMENTATIONS = ("fused", "plain")
STORE_KINDS = ("topk", "sample", "hidden")
ENDPOINTS = ("chat", "completions")
LOGPROBS = ("auto", "prompt", "top", "none")
REASONINGS = ("drop", "keep")
SCHEDULES = ("linear", "cosine")
ENGINES = ("auto", "transformers", "vllm")
VLLM = "vLLM"
VLLM_MODES = ("colocate", "server")
VLLM_IMPLEMENTATIONS = ("vllm", "transformers")
