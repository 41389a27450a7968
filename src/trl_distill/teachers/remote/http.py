"""The line to an OpenAI-compatible server: one request at a time, and what its failures mean.

The key is read from the environment when the server is first asked, and is nowhere else.
"""

from __future__ import annotations

import email.utils
import logging
import math
import os
import time
from collections.abc import Mapping
from functools import cached_property
from importlib.util import find_spec
from typing import Any, NoReturn

from ...config.endpoints import Endpoint, base_url
from ...errors import TeacherError
from .refusals import DISPENSABLE, filter_of, may_pass, status_of, unsupported_in, unwrapped
from .request_pool import Again

logger = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"
KEY, URL = "OPENAI_API_KEY", "OPENAI_BASE_URL"
LONGEST = 200  # characters of what a server says
TODO = {
    401: f"set the environment variable {KEY} to a key that it knows",
    402: "add credit to your account there, or choose another model",
    403: f"use a key ({KEY}) that may ask for this model",
    404: "check the model's name and the URL, which ends in /v1 for most servers",
}
# what the client takes by name; the rest goes into the body as it is
OTHERS = ("prompt_logprobs",)


class Refused(TeacherError):
    """A server that will not answer a request.

    Args:
        text: The sentence.
        status: The HTTP status; None if the error stands in a successful response.
        said: What the server said, short and without the key.
        filters: What the server calls the filter that refused the prompt; empty if it was no filter.
    """

    def __init__(self, text: str, status: int | None, said: str, filters: str = "") -> None:
        super().__init__(text)
        self.status, self.said, self.filters = status, said, filters


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
        self.unsupported: dict[str, str | None] = {}  # parameters that the server does not take, and what it does
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
            Again: It failed in a way that may pass, or the server does not take a parameter that it can do without.
            Refused: The server does not want it.
        """
        import openai

        sent = self._supported(request)
        door = self.client.chat.completions if "messages" in sent else self.client.completions
        named = {name: value for name, value in sent.items() if name not in OTHERS}
        others = {name: sent[name] for name in OTHERS if name in sent}
        try:
            return str(door.with_raw_response.create(**named, extra_body=others or None).http_response.text)
        except openai.APITimeoutError:
            raise Again(f"no answer within {self.timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise Again(_said(error.__cause__ or error)) from None
        except openai.APIStatusError as error:
            body = unwrapped(error.body)
            self._leave_out(body, error.status_code, sent)
            self.fail(body or error, error.status_code, _retry_after(error.response.headers))

    def _supported(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return a request without the parameters that the server was found not to take."""
        sent = dict(request)
        for name, instead in self.unsupported.items():
            value = sent.pop(name, None)
            if value is not None and instead is not None and "messages" in sent:
                sent[instead] = value
        return sent

    def _leave_out(self, error: Any, status: int, sent: Mapping[str, Any]) -> None:
        """Remember a parameter that the server does not take, and have the request asked again without it.

        Raises:
            Again: There is one.
        """
        name = unsupported_in(error, status, sent)
        if name is None or DISPENSABLE[name] in self.unsupported:  # it takes neither the one nor the other
            return
        if name not in self.unsupported:
            instead = self.unsupported.setdefault(name, DISPENSABLE[name])
            logger.warning(
                "teacher_model %r at %s does not take %s; it is asked %s.",
                self.name,
                self.url,
                name,
                f"with {instead} instead" if instead else "without it",
            )
        raise Again(f"the server does not take {name}", after=0.0) from None

    def fail(self, error: Any, status: int | None, after: float | None = None) -> NoReturn:
        """Tell an error that may pass from one that will not.

        Args:
            error: What the server said.
            status: The HTTP status; None if the error stands in the body of a successful response.
            after: Seconds that the server asks to be left alone.

        Raises:
            Again: It may pass.
            Refused: It will not.
        """
        said = _said(error)
        code = status_of(error) if status is None else status
        how = f"status {code}" if code is not None else "an error"
        if may_pass(error, code):
            raise Again(f"{how}: {said}", after) from None
        todo = TODO.get(code or 0, "change what is asked, or choose another model")
        if "v1/completions" in said:  # OpenAI's words for a model that has no chats
            todo = "give --teacher-endpoint completions"
        raise Refused(
            f"teacher_model {self.name!r} at {self.url} refuses the request with {how} ({said}); {todo}.",
            code,
            said,
            filter_of(error),
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
    said = error.get("message", error.get("detail", error)) if isinstance(error, dict) else error
    text = " ".join(str(said).split()) or type(error).__name__
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
