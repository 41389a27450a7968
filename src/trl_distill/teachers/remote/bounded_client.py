"""An HTTP client whose answers end, whatever the server sends: each has a deadline and a largest size.

The deadline covers one exchange as a whole (name look-up, connection, headers and body), which no timeout of a single
read does. Requests run in an event loop of their own thread, where one that is too late is cancelled.
"""

from __future__ import annotations

import asyncio
import json
import threading
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Self
from urllib.parse import urljoin, urlsplit

if TYPE_CHECKING:
    import ssl

    import httpx

MOST = 64 * 2**20  # bytes of an answer, decompressed
MOST_OF_ERROR = 2**16  # of an error's, of which only the beginning is read
MOST_VALUES = 2**22  # values in a body, each of which takes up to 30 times its bytes in memory
COMPRESSION = "gzip"  # servers do not agree on what "deflate" is


class BrokenAnswerError(Exception):
    """No answer, or none that can be read; the text says what came instead."""


@dataclass(frozen=True)
class Response:
    """A server's response.

    Attributes:
        status: The HTTP status.
        headers: Names in lower case.
        body: Decompressed; of an error at most `MOST_OF_ERROR` bytes.
        address: Where a redirect points to, as an absolute URL; empty if it is none.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    address: str = ""

    def json(self) -> object:
        """Return the body's JSON.

        Raises:
            BrokenAnswerError: It is none, or so nested or so divided that it would fill the memory.
        """
        if sum(map(self.body.count, (b",", b"[", b"{"))) > MOST_VALUES:
            raise BrokenAnswerError(f"an answer of more than {MOST_VALUES:,} values")
        try:
            parsed: object = json.loads(self.body)
        except RecursionError:
            raise BrokenAnswerError("an answer that is nested too deeply") from None
        except ValueError as error:
            raise BrokenAnswerError(f"an answer that is not JSON ({type(error).__name__})") from None
        return parsed


class BoundedClient:
    """A context in which requests can be sent, from any number of threads. Redirects are not followed.

    Args:
        url: Base URL.
        seconds: How long one answer may take as a whole.
        headers: Sent with each request.
        trust_env: Whether the environment's proxies and certificates are used.
    """

    def __init__(
        self, url: str, *, seconds: float, headers: Mapping[str, str] | None = None, trust_env: bool = True
    ) -> None:
        import httpx

        self.url, self.seconds = url, seconds
        self._client = httpx.AsyncClient(
            headers={
                "Content-Type": "application/json",
                "Accept": "application/json",
                "Accept-Encoding": COMPRESSION,
                "User-Agent": "trl-distill",
                **(headers or {}),
            },
            timeout=seconds,  # of each step; of all together below
            limits=httpx.Limits(max_connections=None),
            follow_redirects=False,
            trust_env=trust_env,
            verify=_certificates(),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give up what is in flight, and close all connections."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def post(self, path: str, body: Mapping[str, object]) -> Response:
        """Send a JSON object and return the response, of whatever status.

        Raises:
            BrokenAnswerError: None came in time, or none that can be read.
            CancelledError: The context ended meanwhile.
        """
        # ASCII: text that is not valid Unicode can be sent too
        exchange = self._exchange(f"{self.url}{path}", json.dumps(body).encode())
        try:
            future = asyncio.run_coroutine_threadsafe(exchange, self._loop)
        except RuntimeError:  # the loop has ended
            exchange.close()
            raise CancelledError from None
        return future.result()

    async def _exchange(self, url: str, content: bytes) -> Response:
        import httpx

        try:
            async with asyncio.timeout(self.seconds), self._client.stream("POST", url, content=content) as got:
                body, address = await _body_of(got), _redirect_of(got)
                return Response(got.status_code, {k.lower(): v for k, v in got.headers.items()}, body, address)
        except (TimeoutError, httpx.TimeoutException):
            raise BrokenAnswerError(f"no answer within {self.seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise BrokenAnswerError(_cause_of(error)) from None

    async def _close(self) -> None:
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self._client.aclose()


@cache
def _certificates() -> ssl.SSLContext:
    """Return whom to trust; reading it takes longer than most requests."""
    import httpx

    return httpx.create_ssl_context()


async def _body_of(response: httpx.Response) -> bytes:
    """Return a response's body, decompressed as it comes, so that no more than the limit is ever in memory."""
    fine = 200 <= response.status_code < 300
    most = MOST if fine else MOST_OF_ERROR
    decompress = _decompressor(response.headers.get("content-encoding", "identity"))
    body = bytearray()
    async for piece in response.aiter_raw(MOST_OF_ERROR):
        body += decompress(piece, most + 1 - len(body))
        if len(body) > most:
            if not fine:
                break
            raise BrokenAnswerError(f"an answer of more than {MOST // 2**20} MiB")
    return bytes(body[:most])


def _decompressor(name: str) -> Callable[[bytes, int], bytes]:
    """Return a function of a piece that returns at most so many bytes of what is in it."""
    if name.strip().lower() == "identity":
        return lambda piece, most: piece[:most]
    if name.strip().lower() != COMPRESSION:
        raise BrokenAnswerError(f"an answer compressed in a way that was not asked for ({name[:40]!r})")
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)  # with gzip's header

    def decompress(piece: bytes, most: int) -> bytes:
        try:
            return stream.decompress(piece, most)
        except zlib.error:
            raise BrokenAnswerError("an answer that cannot be decompressed") from None

    return decompress


def _redirect_of(response: httpx.Response) -> str:
    """Return the URL that a redirect names, without anything secret in it."""
    location = response.headers.get("location", "")
    if not 300 <= response.status_code < 400 or not location:
        return ""
    try:
        parts = urlsplit(urljoin(str(response.url), location))
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _cause_of(error: BaseException) -> str:
    """Return what an error began with, if it says so: a refused connection, not that "all attempts failed"."""
    said, inner = str(error), error.__cause__ or error.__context__
    while inner is not None:
        if isinstance(inner, BaseExceptionGroup):  # of an address of IPv6 and one of IPv4
            inner = inner.exceptions[-1]
        said, inner = str(inner) or said, inner.__cause__ or inner.__context__
    return said or type(error).__name__
