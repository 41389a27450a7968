"""vLLM's offline engine, which generates and scores completions in a process of its own.

The process loads the teacher by its name, and its GPU memory is free before training begins.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ....models.adapters import CONFIG, Adapter
from ....models.generation import Completion, GenerationSettings
from ....models.loading import ModelSource
from ..store import JsonObject, seed_of
from .base import EngineError

Scores = tuple[np.ndarray, np.ndarray]
CHILD, JOB = "trl_distill.teachers.completions.engines.vllm_process", "job.jsonl"
SHARE = 0.9  # of the GPU memory that is free
CPU_CACHE = "4"  # GiB of a CPU's memory for keys and values
# while it scores: logits [tokens, V] of a step are made in float32, out of the memory that is left
SCORING: JsonObject = {"max_num_batched_tokens": 1024, "max_num_seqs": 64}
IN_FLIGHT = 128  # sequences handed to it at a time while it scores: what may wait for the one that comes next
RANKS = ("RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_")
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for
# what of a LoRA adapter vLLM does not apply, and the value with which it need not
PLAIN_LORA: JsonObject = {
    "use_dora": False, "bias": "none", "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
    "trainable_token_indices": None, "layer_replication": None, "fan_in_fan_out": False, "lora_bias": False,
    "alora_invocation_tokens": None, "use_qalora": False, "use_bdlora": None, "target_parameters": None,
}  # fmt: skip


class VLLM:
    """vLLM, which loads a local teacher by its name.

    Args:
        teacher: A `LocalTeacher`; for any other, `why_not` gives the reason.

    Attributes:
        started: When it had loaded the teacher, in seconds of `time.perf_counter`; 0 before.
    """

    name = "vLLM"

    def __init__(self, teacher: Any) -> None:
        self.teacher = teacher
        self.started = 0.0

    @property
    def why_not(self) -> str | None:
        """Why vLLM cannot generate for this teacher; None if it can."""
        if find_spec("vllm") is None:
            return "vLLM is not installed (`pip install vllm`)"
        source: ModelSource | None = getattr(self.teacher, "source", None)
        if source is None:
            known = {None: "it is not a local model", True: "it is an encoder-decoder, which vLLM does not support"}
            config = getattr(self.teacher, "config", None)
            kind = None if config is None else bool(config.is_encoder_decoder)
            return known.get(kind, "its weights are only in memory, and vLLM loads a model by its folder or Hub name")
        if source.quantization == "int8" or (source.quantization is not None and not torch.cuda.is_available()):
            return f"vLLM does not load {source.quantization} weights of bitsandbytes here"
        return why_not_applied(source.adapter)

    def write(
        self, prompts: Mapping[str, Sequence[int]], settings: GenerationSettings
    ) -> Iterator[dict[str, Completion]]:
        """Yield completions as they are finished; see `generate_all`. Errors name the process's log."""
        for line in self._run(self._to_write(prompts, settings)):
            yield {line["key"]: self.teacher.completion(line["ids"], settings.stop)}

    def score(self, sequences: Mapping[str, tuple[Sequence[int], int]], k: int) -> Iterator[tuple[str, Scores]]:
        """Yield the likeliest tokens at the end of each sequence, by its key, as they are finished.

        Args:
            sequences: Token ids, and how many of the last ones (n, at least 1) are targets, by key.
            k: Tokens of each distribution.

        Yields:
            A key with [n, k] int32 token ids, the likeliest first, and [n, k] float32 log-probabilities at T = 1 over
            the teacher's whole vocabulary.

        Raises:
            EngineError: See `write`.
        """
        for line in self._run(self._to_score(sequences, k)):
            ids, log_probs = (
                np.frombuffer(base64.b64decode(line[name]), kind).reshape(-1, k)
                for name, kind in (("ids", np.int32), ("log_probs", np.float32))
            )
            yield line["key"], (ids, log_probs)

    def _run(self, job: Iterator[JsonObject]) -> Iterator[JsonObject]:
        """Run a job, given as lines, in the process and yield its answers; if it fails, its log is kept."""
        if self.why_not is not None:
            raise EngineError(self.why_not)
        folder = Path(tempfile.mkdtemp(prefix="trl-distill-vllm-"))
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, folder)
            with (folder / JOB).open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in job)
            try:
                for line in _lines_of(folder / JOB, folder / "vllm.log", _environment(self.teacher.source)):
                    if "started" in line:
                        self.started = time.perf_counter()
                    elif "key" in line:
                        yield line
            except EngineError:
                stack.pop_all()
                (folder / JOB).unlink()
                raise

    def _to_write(self, prompts: Mapping[str, Sequence[int]], settings: GenerationSettings) -> Iterator[JsonObject]:
        teacher = self.teacher
        most = {key: teacher.new_tokens(len(prompt), settings) for key, prompt in prompts.items()}
        longest = max(len(prompt) + most[key] for key, prompt in prompts.items())
        head = {**self._engine(longest, decodes=bool(settings.stop)), "sampling": self._sampling(settings)}
        # a CPU's generator is one for all prompts: vLLM 0.32 fails with one for each
        each = settings.do_sample and torch.cuda.is_available()
        head["engine"]["seed"] = seed_of([*prompts]) % 2**31
        yield head
        for key, prompt in prompts.items():
            own = {"max_tokens": most[key], **({"seed": seed_of([key])} if each else {})}
            yield {"key": key, "prompt": list(prompt), "sampling": own}

    def _to_score(self, sequences: Mapping[str, tuple[Sequence[int], int]], k: int) -> Iterator[JsonObject]:
        """Yield the lines of a job that scores: all but a sequence's last token are read, and one is written.

        The distribution at the last token is that of the one that is written, so that a sequence may fill the model's
        length.
        """
        head = self._engine(max(2, *(len(ids) for ids, _ in sequences.values())), decodes=False)
        head["engine"] |= {"max_logprobs": k, **SCORING}
        sampling = {"temperature": 0.0, "max_tokens": 1, "logprobs": k, "detokenize": False, "flat_logprobs": True}
        yield {**head, "sampling": {**sampling, "ignore_eos": True}, "in_flight": IN_FLIGHT}
        for key, (ids, targets) in sequences.items():
            own = {"prompt_logprobs": k} if targets > 1 else {}
            yield {"key": key, "prompt": list(ids[:-1]), "sampling": own, "targets": targets}

    def _engine(self, longest: int, *, decodes: bool) -> JsonObject:
        """Return the arguments of vLLM's engine, and the folder of an adapter.

        A prompt and its completion have `longest` tokens at most; an engine that decodes sees the text it writes.
        """
        source: ModelSource = self.teacher.source
        adapter, model = source.adapter, source.base.path
        dtype = getattr(self.teacher.config, "dtype", None) if source.dtype == "auto" else source.dtype
        engine: JsonObject = {
            "model": model,
            "tokenizer": source.path if adapter is not None and adapter.has_tokenizer else model,
            "skip_tokenizer_init": not decodes,  # it is read and written in token ids
            "dtype": str(dtype or "float32").removeprefix("torch."),  # "auto" of vLLM's own is half precision
            "max_model_len": longest,
            "enable_prefix_caching": True,
            "generation_config": "vllm",  # no limits and penalties of the model's own
            "trust_remote_code": source.trust_remote_code,
            "disable_log_stats": True,
        }
        if source.base.revision is not None:
            engine |= {"revision": source.base.revision, "tokenizer_revision": source.base.revision}
        if source.quantization is not None:
            engine["quantization"] = "bitsandbytes"
        if adapter is not None:
            rank = _settings_of(adapter)["r"]
            engine |= {"enable_lora": True, "max_lora_rank": next((r for r in LORA_RANKS if r >= rank), rank)}
        return {"engine": engine | _place(source), "adapter": None if adapter is None else adapter.folder}

    def _sampling(self, settings: GenerationSettings) -> JsonObject:
        teacher = self.teacher
        sampling: JsonObject = {"temperature": 0.0}
        if settings.do_sample:
            sampling = {"temperature": settings.temperature, "top_p": settings.top_p}
        # its own end-of-sequence token may be none of the teacher's stop tokens
        sampling |= {"stop_token_ids": list(teacher.stop_ids), "ignore_eos": True, "detokenize": bool(settings.stop)}
        suppressed = teacher.suppressed
        if suppressed:
            sampling["allowed_token_ids"] = list(range(suppressed[0]))
        if settings.stop:
            sampling |= {
                "stop": list(settings.stop),
                "include_stop_str_in_output": True,
                "skip_special_tokens": False,
                "spaces_between_special_tokens": False,
            }
        return sampling


def _lines_of(job: Path, log: Path, environment: Mapping[str, str]) -> Iterator[JsonObject]:
    """Run the process and yield its lines; raise EngineError if it fails. It ends with this generator."""
    reading, writing = os.pipe()
    with log.open("w") as out, os.fdopen(reading, encoding="utf-8") as answers:
        command = [sys.executable, "-m", CHILD, str(job), str(writing)]
        process = subprocess.Popen(  # nosec B603  # no shell
            command, stdin=subprocess.PIPE, stdout=out, stderr=out, pass_fds=[writing], env=dict(environment)
        )
        os.close(writing)
        try:
            line: JsonObject = {}
            for text in answers:
                if not text.endswith("\n"):
                    break
                line = json.loads(text)
                yield line
            if "done" not in line:
                error = str(line.get("error", "")).strip()
                why = error.splitlines()[0].rstrip(".") if error else f"its process ended with status {process.wait()}"
                raise EngineError(f"{why}; its log is {log}")
        finally:
            process.kill()
            process.communicate()  # waits, and closes its standard input


def _environment(source: ModelSource) -> dict[str, str]:
    """Return the environment of the process: one rank alone, on the teacher's own device."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(RANKS)}
    paths = [str(Path(__file__).parents[4]), environment.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine ends with its process
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE)
    gpus, visible = _gpus(source), environment.get("CUDA_VISIBLE_DEVICES", "")
    if gpus:
        names = visible.split(",") if visible else [str(gpu) for gpu in range(torch.cuda.device_count())]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(names[gpu] for gpu in gpus)
    return environment


def _place(source: ModelSource) -> JsonObject:
    """Return vLLM's devices and its share of their memory."""
    gpus = _gpus(source)
    if not gpus:
        return {"enforce_eager": True}  # compiling costs more than it saves
    torch.cuda.empty_cache()
    free = min(free / total for free, total in map(torch.cuda.mem_get_info, gpus))
    return {"gpu_memory_utilization": round(SHARE * free, 2), "tensor_parallel_size": len(gpus)}


def _gpus(source: ModelSource) -> list[int]:
    """Return the GPUs that a teacher is written with: its own, or all of them for one with a device map."""
    if not torch.cuda.is_available():
        return []
    if source.device_map is not None:
        return list(range(torch.cuda.device_count()))
    index = torch.device(source.device or "cuda").index
    return [torch.cuda.current_device() if index is None else index]


def _settings_of(adapter: Adapter) -> JsonObject:
    return dict(json.loads((Path(adapter.folder) / CONFIG).read_text(encoding="utf-8")))


def why_not_applied(adapter: Adapter | None) -> str | None:
    """Return why vLLM does not apply an adapter; None if it does, or there is none."""
    if adapter is None:
        return None
    settings = _settings_of(adapter)
    if settings.get("peft_type") != "LORA":
        return f"vLLM applies LoRA adapters, and this one is of the kind {settings.get('peft_type')}"
    for name, plain in PLAIN_LORA.items():
        if settings.get(name) and settings[name] != plain:
            return f"vLLM applies plain LoRA adapters, and this one has {name}"
    return None
