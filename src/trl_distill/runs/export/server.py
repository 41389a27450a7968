"""Starts a server with an exported form on this machine, asks it as any OpenAI client would, and ends it."""

from __future__ import annotations

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
from ...teachers.remote.bounded_client import BoundedClient, BrokenAnswerError
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
        client: Asks its base URL, up to and with /v1.
        model: Name of the model in requests.
        reads_ids: Whether its completions endpoint reads token ids.
    """

    concurrency = 8

    def __init__(self, name: str, client: BoundedClient, model: str, *, reads_ids: bool = True) -> None:
        self.name, self.client, self.model, self.reads_ids = name, client, model, reads_ids

    def ask(self, request: Request, most: int) -> Answer | None:
        """See `Runtime`; a message goes to the chat endpoint."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": most, "temperature": 0, "return_token_ids": True}
        if request.message is not None:
            path, body["messages"] = "/chat/completions", [{"role": "user", "content": request.message}]
        elif self.reads_ids:
            path, body["prompt"] = "/completions", request.ids
        else:
            return None
        try:
            response = self.client.post(path, body)
            if response.status != 200:
                said = response.body.decode(errors="replace")[:300]
                raise DistillError(f"{self.name} answered {response.status}: {said.strip()}")
            return _answer_in(response.json())
        except BrokenAnswerError as error:
            raise DistillError(f"{self.name} sends {error}.") from None
        except (LookupError, TypeError, AttributeError) as error:
            raise DistillError(f"{self.name} sends no completion ({type(error).__name__}).") from None


def asking(url: str) -> BoundedClient:
    """Return a client of a server on this machine, which no proxy stands before."""
    return BoundedClient(url, seconds=ANSWERS, trust_env=False)


def _answer_in(content: Any) -> Answer:
    """Return the completion in an answer of either endpoint."""
    choice = content["choices"][0]
    text = choice["message"].get("content") if "message" in choice else choice["text"]
    return Answer(text if isinstance(text, str) else "", choice.get("token_ids"))


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
        with asking(url) as client:
            yield Server(name, client, model)
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
