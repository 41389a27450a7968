"""Starts a server with an exported form on this machine, asks it as any OpenAI client would, and ends it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DistillError
from .verify import Answer, Runtime

if TYPE_CHECKING:
    from .rows import Request

STARTS = 900  # seconds that a server may take to load its model
ANSWERS = 600  # seconds that an answer may take
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine


class Server:
    """An OpenAI-compatible server.

    Args:
        name: Of the runtime, for people.
        url: Up to and with /v1.
        model: Name of the model in requests.
        reads_ids: Whether its completions endpoint reads token ids.
    """

    concurrency = 8

    def __init__(self, name: str, url: str, model: str, *, reads_ids: bool = True) -> None:
        self.name, self.url, self.model, self.reads_ids = name, url, model, reads_ids

    def ask(self, request: Request, most: int) -> Answer | None:
        """See `Runtime`; a message goes to the chat endpoint."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": most, "temperature": 0, "return_token_ids": True}
        if request.message is not None:
            body["messages"] = [{"role": "user", "content": request.message}]
            choice = self._post("chat/completions", body)["choices"][0]
            text = choice["message"].get("content")
        elif self.reads_ids:
            choice = self._post("completions", {**body, "prompt": request.ids})["choices"][0]
            text = choice["text"]
        else:
            return None
        return Answer(text or "", choice.get("token_ids"))

    def _post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with OPENER.open(request, timeout=ANSWERS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            raise DistillError(f"{self.name} answered {error.code}: {said.strip()}") from error


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def served(
    command: Sequence[str], *, name: str, port: int, model: str, environment: Mapping[str, str] | None = None
) -> Iterator[Runtime]:
    """Start a server, yield it once it answers, and end it with all its processes.

    Raises:
        DistillError: It ends or does not answer in time; its log stays.
    """
    log = tempfile.NamedTemporaryFile(prefix="trl-distill-server-", suffix=".log", delete=False)  # noqa: SIM115
    with log:
        process = subprocess.Popen(  # nosec B603  # no shell
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    done = False
    try:
        url = f"http://127.0.0.1:{port}/v1"
        _wait(process, url, name, log.name)
        yield Server(name, url, model)
        done = True
    finally:
        _end(process)
        if done:
            Path(log.name).unlink()


def _wait(process: subprocess.Popen[bytes], url: str, name: str, log: str) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < STARTS:
        if process.poll() is not None:
            raise DistillError(f"{name} ended with status {process.returncode} before it answered; its log is {log}.")
        try:
            with OPENER.open(f"{url}/models", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            pass
        time.sleep(0.5)
    raise DistillError(f"{name} did not answer within {STARTS} seconds; its log is {log}.")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and its workers."""
    for kind, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            break
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
