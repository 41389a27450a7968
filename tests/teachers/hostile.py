"""A server that sends what a test gives it, byte for byte: slowly, without end, compressed, or malformed."""

from __future__ import annotations

import itertools
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer

Pieces = Iterator[bytes]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


class Hostile(ThreadingTCPServer):
    """A server on a port of its own.

    Attributes:
        send: Returns the pieces of the next answers, as they go over the wire.
        requests: The head and the body of each request so far.
    """

    daemon_threads = True
    block_on_close = False
    send: Callable[[], Pieces]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def heads(self) -> list[str]:
        """The heads of the requests so far, in lower case."""
        return [head.lower() for head, _ in self.requests]


class Handler(BaseRequestHandler):
    """Reads one request after the other and sends what the test wants."""

    server: Hostile

    def handle(self) -> None:
        with suppress(ConnectionError), self.request.makefile("rb") as sent:
            while True:
                head = b"".join(iter(sent.readline, b"\r\n")) if sent.peek(1) else b""
                if not head:
                    return
                length = int(head.lower().split(b"content-length:")[1].split()[0])
                self.server.requests.append((head.decode(), sent.read(length)))
                for piece in self.server.send():
                    self.request.sendall(piece)


@contextmanager
def hostile_server() -> Iterator[Hostile]:
    with Hostile() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:  # a server that is only closed keeps a core busy
            server.shutdown()


def sends(body: bytes | str, *, status: str = "200 OK", headers: str = "") -> Callable[[], Pieces]:
    """Return what sends a complete answer with this body."""
    body = body.encode() if isinstance(body, str) else body
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return lambda: iter([head.encode() + body])


def completion(text: str = "a b", **changes: object) -> dict:
    """Return an answer of `/chat/completions`."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}, **changes}


def slow_head() -> Pieces:
    yield OK
    for number in itertools.count():
        yield b"X-%d: a\r\n" % number
        time.sleep(0.05)


def slow_body() -> Pieces:
    yield OK + b"Content-Length: 1000000\r\n\r\n"
    for _ in range(1_000_000):
        yield b" "
        time.sleep(0.05)


def endless_body() -> Pieces:
    yield OK + b"Transfer-Encoding: chunked\r\n\r\n"
    piece = b"%x\r\n%s\r\n" % (2**20, b" " * 2**20)
    yield from itertools.repeat(piece)


def slow_chunks() -> Pieces:
    yield OK + b"Transfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"1\r\n \r\n"
        time.sleep(0.05)


def endless_interim() -> Pieces:
    while True:
        yield b"HTTP/1.1 102 Processing\r\n\r\n"
        time.sleep(0.001)


def gzip_bomb() -> Pieces:
    packed = zlib.compressobj(wbits=31)
    member = b"".join(packed.compress(bytes(2**20)) for _ in range(96)) + packed.flush()  # of 96 MiB
    yield OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(member) + member


def nothing() -> Pieces:
    time.sleep(3)
    yield b""


NESTED = "[" * 100_000
GOOD = json.dumps(completion())
