"""Client of one OpenAI-compatible server and model: requests within a budget, and classification of failures.

The key is read from the environment at the first request, and stored nowhere else.
"""

from __future__ import annotations

import email.utils
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, NoReturn

from tqdm.auto import tqdm

from ...config.endpoints import Endpoint, base_url
from ...errors import DistillError, TeacherError
from ...models.generation import Completion
from ..completions.generate import report_kept_on_interrupt
from ..completions.store import Entry, JsonlStore, JsonObject
from .answers import failure_of, filtered, read_answer
from .refusals import DISPENSABLE, filter_of, is_temporary, status_of, unsupported_in, unwrapped
from .request_pool import Answer, BudgetSpent, Job, RemoteSettings, RequestPool, RetryableError, Usage

if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)

ReadLogprobs = Callable[[JsonObject], JsonObject | None]
OPENAI_URL = "https://api.openai.com/v1"
KEY, URL = "OPENAI_API_KEY", "OPENAI_BASE_URL"
LONGEST = 200  # characters of what a server says
TODO = {
    401: f"set the environment variable {KEY} to a key that it knows",
    402: "add credit to your account there, or choose another model",
    403: f"use a key ({KEY}) that may use this model",
    404: "check the model's name and the URL, which ends in /v1 for most servers",
}


class RefusedError(TeacherError):
    """A server refuses a request.

    Args:
        text: The sentence.
        status: The HTTP status; None if the error stands in a successful response.
        message: The server's message, short and without the key.
        filters: The server's name for the filter that refused the prompt; empty if it was not a filter.
    """

    def __init__(self, text: str, status: int | None, message: str, filters: str = "") -> None:
        super().__init__(text)
        self.status, self.message, self.filters = status, message, filters


class Server:
    """A model behind a server.

    Args:
        endpoint: The model and its server.
        settings: Settings of requests.

    Raises:
        TeacherError: The environment's OPENAI_BASE_URL cannot be used.
    """

    def __init__(self, endpoint: Endpoint, settings: RemoteSettings) -> None:
        self.model, self.settings = endpoint.model, settings
        self.name = f"{settings.model_setting} {endpoint.model!r}"  # as messages have it
        self.url = endpoint.url or base_url(os.environ.get(URL) or OPENAI_URL, setting=URL)
        self.usage = Usage()
        self._replacements: dict[str, str | None] = {}  # of parameters that the server does not support; None drops one

    @cached_property
    def client(self) -> OpenAI:
        """The `openai` client, without its retries, which count towards no budget.

        Raises:
            TeacherError: The package or the key is missing.
        """
        if find_spec("openai") is None:
            raise TeacherError(
                f"{self.name} is asked through the openai package, which is not installed; "
                "pip install 'trl-distill[openai]'."
            )
        from openai import OpenAI

        key = _api_key()
        if not key and self.url == OPENAI_URL:
            raise TeacherError(f"{self.name} needs a key; set the environment variable {KEY}.")
        return OpenAI(api_key=key or "none", base_url=self.url, timeout=self.settings.timeout, max_retries=0)

    def send_all(
        self,
        jobs: Mapping[str, Job],
        send: Callable[[str, Job], Answer],
        keep: Callable[[str, Answer], None],
        *,
        description: str = "",
        progress: bool = False,
    ) -> None:
        """Run a `RequestPool` within the run's budget, with a progress bar."""
        _ = self.client  # refuses a missing key before anything is sent
        with tqdm(total=len(jobs), desc=description, unit="row", disable=not progress) as bar:

            def keep_and_show(key: str, answer: Answer) -> None:
                keep(key, answer)
                bar.set_postfix_str(self.usage.text(self.settings), refresh=False)
                bar.update()

            RequestPool(send, self.settings, self.usage).run(jobs, keep_and_show)

    def send_one(self, request: Mapping[str, object], read_logprobs: ReadLogprobs) -> Answer:
        answers: list[Answer] = []
        send, keep = (lambda _, sent: self.send(sent, read_logprobs)), (lambda _, answer: answers.append(answer))
        self.send_all({"": request}, send, keep)
        return answers[0]

    def complete(self, request: Mapping[str, object], read_logprobs: ReadLogprobs) -> Answer:
        """Send a request for a completion once; a prompt that the server filters has none, and the others may."""
        try:
            return self.send(request, read_logprobs)
        except RefusedError as error:
            if not error.filters:
                raise
            return Answer(Completion((), True, "", unusable=filtered(error.filters)), billed=False)

    def send(self, request: Mapping[str, object], read_logprobs: ReadLogprobs) -> Answer:
        """Send a request, all of it but the model, once: to `/chat/completions` if it has messages.

        Raises:
            RetryableError: It may succeed later, or without a parameter that the server does not support.
            RefusedError: The server rejects it.
        """
        body = self._post(request)
        try:
            content = json.loads(body)
            failure = failure_of(content)
            if failure is not None:
                self._fail(failure)
            answer = read_answer(content, chat="messages" in request)
        except TeacherError:
            raise
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise RetryableError(f"an answer that is not a completion ({type(error).__name__})") from None
        return replace(answer, logprobs=read_logprobs(content["choices"][0]))

    def _post(self, request: Mapping[str, object]) -> str:
        import httpx
        import openai

        sent = self._supported(request)
        path = "/chat/completions" if "messages" in sent else "/completions"
        try:
            return self.client.post(path, cast_to=httpx.Response, body={"model": self.model, **sent}).text
        except openai.APITimeoutError:
            raise RetryableError(f"no answer within {self.settings.timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise RetryableError(_message(error.__cause__ or error)) from None
        except openai.APIStatusError as error:
            body = unwrapped(error.body)
            self._replace_unsupported(body, error.status_code, sent)
            self._fail(body or error, error.status_code, _retry_after(error.response.headers))

    def _supported(self, request: Mapping[str, object]) -> JsonObject:
        """Return a request without the parameters that the server was found not to support."""
        sent = dict(request)
        for name, instead in self._replacements.items():
            value = sent.pop(name, None)
            if value is not None and instead is not None and "messages" in sent:
                sent[instead] = value
        return sent

    def _replace_unsupported(self, error: object, status: int, sent: JsonObject) -> None:
        """Remember a parameter that the server does not support; raise RetryableError if there is one."""
        name = unsupported_in(error, status, sent)
        if name is None or DISPENSABLE[name] in self._replacements:  # it supports neither the one nor the other
            return
        if name not in self._replacements:
            instead = self._replacements.setdefault(name, DISPENSABLE[name])
            logger.warning(
                "%s at %s does not accept %s; requests are sent %s.",
                self.name,
                self.url,
                name,
                f"with {instead} instead" if instead else "without it",
            )
        raise RetryableError(f"the server does not accept {name}", after=0.0) from None

    def _fail(self, error: object, status: int | None = None, after: float | None = None) -> NoReturn:
        """Raise a server's error; one in the body of a successful response has no HTTP status.

        Raises:
            RetryableError: The same request may succeed later.
            RefusedError: It will not.
        """
        message = _message(error)
        code = status_of(error) if status is None else status
        how = f"status {code}" if code is not None else "an error"
        if is_temporary(error, code):
            raise RetryableError(f"{how}: {message}", after) from None
        todo = TODO.get(code or 0, "change what is asked, or choose another model")
        if "v1/completions" in message:  # OpenAI's words for a model that has no chats
            todo = "give --teacher-endpoint completions"
        sentence = f"{self.name} at {self.url} refuses the request with {how} ({message}); {todo}."
        raise RefusedError(sentence, code, message, filter_of(error)) from None

    @contextmanager
    def reporting_kept(self, keys: Sequence[str], store: JsonlStore[Entry], what: str) -> Iterator[None]:
        """Add to an error or Ctrl-C how much of `what` is stored, and how to resume."""
        with report_kept_on_interrupt(store, keys, what=what):
            try:
                yield
            except DistillError as error:
                kept = sum(key in store for key in keys)
                place = "" if store.path is None else f" in {store.path}"
                said = f"{kept:,} of {len(keys):,} {what} are kept{place}"
                if isinstance(error, BudgetSpent):
                    raise BudgetSpent(
                        f"the {self.settings.role}'s budget is spent ({error}): {said}; the same command asks for the "
                        "others with a budget of its own."
                    ) from None
                if isinstance(error, TeacherError):
                    raise TeacherError(f"{str(error).rstrip('.')}{f'; {said}' if kept else ''}.") from None
                raise type(error)(
                    f"{self.name} at {self.url} does not answer: {error}; {said}. Run the same command again to resume."
                ) from None


def _api_key() -> str:
    """Return the key in the environment, or an empty text; raise TeacherError, without it, if it cannot be sent."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise TeacherError(f"the environment variable {KEY} holds characters that no key has; set it again.")
    return key


def _message(error: object) -> str:
    """Return an error's message as one short line, without the key."""
    said = error.get("message", error.get("detail", error)) if isinstance(error, dict) else error
    text = " ".join(str(said).split()) or type(error).__name__
    key = _api_key()
    return (text.replace(key, "***") if key else text)[:LONGEST].rstrip(".")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header."""
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
