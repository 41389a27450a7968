"""The process in which vLLM runs a teacher: a GPU's memory is free again as soon as it ends.

`python -m trl_distill.teachers.completions.engines.vllm_process JOB FD` reads a file of JSON lines, the settings and
then a line for each request, and writes a line for each answer to a file descriptor as it is finished: the completion
of a prompt, or, of a request with `targets`, the likeliest tokens at its last positions. It ends with the process that
started it.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any

IN_FLIGHT = 1024  # prompts handed to vLLM at a time: more than it writes together, few enough for the memory


def main() -> None:
    """Write the answers to a job; an error is the last line."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with os.fdopen(int(sys.argv[2]), "w", buffering=1, encoding="utf-8") as results:
        try:
            with open(sys.argv[1], encoding="utf-8") as job:
                for line in _answers(job):
                    results.write(json.dumps(line) + "\n")
            results.write('{"done": true}\n')
        except Exception as error:
            results.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
            raise


def _answers(job: IO[str]) -> Iterator[dict[str, Any]]:
    """Yield the key of each request, with its completion or targets, in the order in which they are finished."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind

    settings = json.loads(job.readline())
    adapter = settings["adapter"]
    lora = None if adapter is None else LoRARequest("teacher", 1, adapter)
    engine = LLM(**settings["engine"]).llm_engine
    yield {"started": True}
    waiting, flying, targets = iter(job), 0, {}
    while True:
        for line in waiting:
            request = json.loads(line)
            targets[request["key"]] = request.get("targets")
            sampling = {**settings["sampling"], **request["sampling"]}
            params = SamplingParams(**sampling, output_kind=RequestOutputKind.FINAL_ONLY)
            engine.add_request(request["key"], {"prompt_token_ids": request["prompt"]}, params, lora_request=lora)
            flying += 1
            if flying >= settings.get("in_flight", IN_FLIGHT):
                break
        if not flying:
            return
        for output in engine.step():
            if output.finished:
                flying -= 1
                count = targets.pop(output.request_id)
                answer = {"ids": list(output.outputs[0].token_ids)} if count is None else _likeliest(output, count)
                yield {"key": output.request_id, **answer}


def _likeliest(output: Any, count: int) -> dict[str, str]:
    """Return the k likeliest tokens at the last `count` positions, as bytes of int32 ids and float32 log-probabilities.

    vLLM puts the token that is there in front of the k, whether it is one of them or not.

    Raises:
        RuntimeError: vLLM gave fewer positions than were asked for.
    """
    import numpy as np

    ids: list[int] = []
    log_probs: list[float] = []
    # of the prompt's own tokens, and of the one that follows it
    for flat, positions in ((output.prompt_logprobs, count - 1), (output.outputs[0].logprobs, 1)):
        starts = flat.start_indices[len(flat) - positions :] if positions else []
        if len(starts) != positions:
            raise RuntimeError(f"vLLM gave log-probabilities of {len(flat)} tokens and {positions} were asked for")
        for start, end in zip(starts, flat.end_indices[len(flat) - positions :] if positions else [], strict=True):
            ids += flat.token_ids[start + 1 : end]
            log_probs += flat.logprobs[start + 1 : end]
    arrays = {"ids": np.array(ids, np.int32), "log_probs": np.array(log_probs, np.float32)}
    return {name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()}


def _end_with_parent() -> None:
    """End at once if the process at the other end of the standard input ends."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
