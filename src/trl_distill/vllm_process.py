"""The process in which vLLM writes a teacher's completions: a GPU's memory is free again as soon as it ends.

`python -m trl_distill.vllm_process JOB FD` reads a file of JSON lines, the settings and then a line for each prompt,
and writes a line for each completion to a file descriptor as it is finished. It ends with the process that started it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any

IN_FLIGHT = 1024  # prompts handed to vLLM at a time: more than it writes together, few enough for the memory


def main() -> None:
    """Write the completions of a job; an error is the last line."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with os.fdopen(int(sys.argv[2]), "w", buffering=1, encoding="utf-8") as results:
        try:
            with open(sys.argv[1], encoding="utf-8") as job:
                for line in _completions(job):
                    results.write(json.dumps(line) + "\n")
            results.write('{"done": true}\n')
        except Exception as error:
            results.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
            raise


def _completions(job: IO[str]) -> Iterator[dict[str, Any]]:
    """Yield the key and the token ids of each completion in the order in which they are finished."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind

    settings = json.loads(job.readline())
    adapter = settings["adapter"]
    lora = None if adapter is None else LoRARequest("teacher", 1, adapter)
    engine = LLM(**settings["engine"]).llm_engine
    yield {"started": True}
    waiting, flying = iter(job), 0
    while True:
        for line in waiting:
            request = json.loads(line)
            sampling = {**settings["sampling"], **request["sampling"]}
            params = SamplingParams(**sampling, output_kind=RequestOutputKind.FINAL_ONLY)
            engine.add_request(request["key"], {"prompt_token_ids": request["prompt"]}, params, lora_request=lora)
            flying += 1
            if flying >= IN_FLIGHT:
                break
        if not flying:
            return
        for output in engine.step():
            if output.finished:
                flying -= 1
                yield {"key": output.request_id, "ids": list(output.outputs[0].token_ids)}


def _end_with_parent() -> None:
    """End at once if the process at the other end of the standard input is gone."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
