"""Runs a GGUF file by llama.cpp: its server, or the package xllamacpp in this process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DistillError
from .verify import Answer

if TYPE_CHECKING:
    from .rows import Request

SERVER = "llama-server"


def llama_server(converter: str | None) -> str | None:
    """Return the program llama-server: on the PATH, or built in llama.cpp's folder; None if there is none."""
    found = shutil.which(SERVER)
    homes = [Path(home).expanduser() for home in (converter, os.environ.get("LLAMA_CPP")) if home]
    built = [home / "build" / "bin" / SERVER for home in homes]
    return found or next((str(path) for path in built if path.is_file()), None)


class InProcess:
    """llama.cpp as the package xllamacpp has it.

    Args:
        file: The GGUF file.
        length: Tokens that a sequence may have.
    """

    name, concurrency = "llama.cpp", 1

    def __init__(self, file: Path, length: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx = length
        params.n_parallel, params.use_jinja, params.warmup, params.verbosity = 1, True, False, -1
        self.server: Any = xllamacpp.Server(params)

    def ask(self, request: Request, most: int) -> Answer:
        """See `Runtime`."""
        body: dict[str, object] = {"max_tokens": most, "temperature": 0}
        if request.message is None:
            return Answer(_choice(self.server.handle_completions({**body, "prompt": request.ids}))["text"] or "")
        messages = [{"role": "user", "content": request.message}]
        choice = _choice(self.server.handle_chat_completions({**body, "messages": messages}))
        return Answer(choice["message"]["content"] or "")


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    if "choices" not in answer:
        raise DistillError(f"llama.cpp does not answer: {str(answer)[:300]}.")
    return dict(answer["choices"][0])
