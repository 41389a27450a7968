"""The line to an OpenAI-compatible server: one request at a time, and what its failures mean.

The key is read from the environment when the server is first asked, and is nowhere else.
"""

from __future__ import annotations

import email.utils
import math
import os
import time
from collections.abc import Mapping
from functools import cached_property
from importlib.util import find_spec
from typing import Any, NoReturn

from ..endpoints import Endpoint, base_url
from ..errors import TeacherError
from .asking import Again

OPENAI_URL = "https://api.openai.com/v1"
KEY, URL = "OPENAI_API_KEY", "OPENAI_BASE_URL"
ONCE_MORE = (408, 409, 425, 429)  # and whatever begins with 5, but what is not implemented
NEVER = 501
LONGEST = 200  # characters of what a server says
# what the client takes by name; the rest goes into the body as it is
OTHERS = ("prompt_logprobs",)


class Refused(TeacherError):
    """A server that will not answer a request.

    Args:
        text: The sentence.
        status: The HTTP status.
        said: What the server said, short and without the key.
    """

    def __init__(self, text: str, status: int, said: str) -> None:
        super().__init__(text)
        self.status, self.said = status, said


class Connection:
    """A server and one of its models.

    Args:
        endpoint: Which model, and where.
        timeout: Seconds to wait for an answer.

    Raises:
        TeacherError: The environment's OPENAI_BASE_URL cannot be used.
    """

    def __init__(self, endpoint: Endpoint, *, timeout: float) -> None:
        self.name, self.timeout = endpoint.model, timeout
        self.url = endpoint.url or base_url(os.environ.get(URL) or OPENAI_URL, setting=URL)

    @cached_property
    def client(self) -> Any:
        """The `openai` client; what it retries is ours to decide.

        Raises:
            TeacherError: The package or the key is missing.
        """
        if find_spec("openai") is None:
            raise TeacherError(
                f"teacher_model {self.name!r} is asked through the openai package, which is not installed; "
                "pip install 'trl-distill[openai]'."
            )
        from openai import OpenAI

        key = _key()
        if not key and self.url == OPENAI_URL:
            raise TeacherError(f"teacher_model {self.name!r} needs a key; set the environment variable {KEY}.")
        return OpenAI(api_key=key or "none", base_url=self.url, timeout=self.timeout, max_retries=0)

    def ask(self, request: dict[str, Any]) -> str:
        """Ask once and return the body of the answer: `/chat/completions` for messages, else `/completions`.

        Raises:
            Again: It failed in a way that may pass.
            Refused: The server does not want it.
        """
        import openai

        door = self.client.chat.completions if "messages" in request else self.client.completions
        named = {name: value for name, value in request.items() if name not in OTHERS}
        others = {name: request[name] for name in OTHERS if name in request}
        try:
            return str(door.with_raw_response.create(**named, extra_body=others or None).http_response.text)
        except openai.APITimeoutError:
            raise Again(f"no answer within {self.timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise Again(_said(error.__cause__ or error)) from None
        except openai.APIStatusError as error:
            self._refuse(error)

    def _refuse(self, error: Any) -> NoReturn:
        """Tell a status that may pass from one that will not."""
        status, said = error.status_code, _said(error.body or error)
        code = error.body.get("code") if isinstance(error.body, dict) else None
        if (status in ONCE_MORE or (status >= 500 and status != NEVER)) and code != "insufficient_quota":
            raise Again(f"status {status}: {said}", _retry_after(error.response.headers)) from None
        todo = {
            401: f"set the environment variable {KEY} to a key that it knows",
            403: f"use a key ({KEY}) that may ask for this model",
            404: "check the model's name and the URL, which ends in /v1 for most servers",
        }.get(status, "change what is asked, or choose another model")
        raise Refused(
            f"teacher_model {self.name!r} at {self.url} refuses the request with status {status} ({said}); {todo}.",
            status,
            said,
        ) from None


def _key() -> str:
    """Return the key in the environment, or an empty text.

    Raises:
        TeacherError: It cannot be sent; it is not repeated.
    """
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise TeacherError(f"the environment variable {KEY} holds characters that no key has; set it anew.")
    return key


def _said(error: Any) -> str:
    """Return what a server or the connection said in one short line, without the key."""
    told = error.get("message", error) if isinstance(error, dict) else error
    text = " ".join(str(told).split()) or type(error).__name__
    key = _key()
    return (text.replace(key, "***") if key else text)[:LONGEST].rstrip(".")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a server asks to be left alone."""
    given = headers.get("retry-after")
    if given is None:
        return None
    try:
        return None if math.isnan(float(given)) else max(float(given), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(given).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
