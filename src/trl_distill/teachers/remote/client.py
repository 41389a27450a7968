"""Client of one OpenAI-compatible server and model: requests within a budget, and classification of failures."""

from __future__ import annotations

import email.utils
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

from tqdm.auto import tqdm

from ...config.endpoints import KEY, OPENAI_URL, Endpoint
from ...errors import DistillError, TeacherError
from ...models.generation import Completion
from ..completions.generate import report_kept_on_interrupt
from ..completions.store import Entry, JsonlStore, JsonObject
from .answers import failure_of, filtered, read_answer
from .bounded_client import BoundedClient, BrokenAnswerError, Response
from .keys import Keys, openai_url
from .refusals import DISPENSABLE, filter_of, is_temporary, status_of, unsupported_in, unwrapped
from .request_pool import Answer, BudgetSpent, Job, RemoteSettings, RequestPool, RetryableError, Usage

logger = logging.getLogger(__name__)

ReadLogprobs = Callable[[JsonObject], JsonObject | None]
LONGEST = 200  # characters of what a server says
# what reading an answer of any other form raises
OTHER_FORM = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
TODO = {
    402: "add credit to your account there, or choose another model",
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
        self.url = endpoint.url or openai_url()
        self.keys = Keys(self.url, settings.key_env, settings.role)
        self.usage = Usage()
        self._replacements: dict[str, str | None] = {}  # of parameters that the server does not support; None drops one
        self._client: BoundedClient | None = None

    def check_can_ask(self) -> dict[str, str]:
        """Return the headers of requests.

        Raises:
            TeacherError: The key is missing.
        """
        if self.url == OPENAI_URL and not self.keys.key:
            raise TeacherError(f"{self.name} needs a key; set the environment variable {KEY}.")
        return self.keys.headers()

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
        client = self._new_client()  # refuses a missing key before anything is sent
        with client, tqdm(total=len(jobs), desc=description, unit="row", disable=not progress) as bar:
            self._client = client

            def keep_and_show(key: str, answer: Answer) -> None:
                keep(key, answer)
                bar.set_postfix_str(self.usage.text(self.settings), refresh=False)
                bar.update()

            RequestPool(send, self.settings, self.usage).run(jobs, keep_and_show)

    def _new_client(self) -> BoundedClient:
        import httpx

        headers = self.check_can_ask()
        try:
            return BoundedClient(self.url, seconds=self.settings.timeout, headers=headers)
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise TeacherError(
                f"{self.name} cannot be asked through the proxy that the environment names "
                f"({self._message(error)}); correct HTTP_PROXY, HTTPS_PROXY, ALL_PROXY or NO_PROXY, or unset them."
            ) from None
        except OSError as error:
            raise TeacherError(
                f"{self.name} cannot be asked with the certificates that the environment names "
                f"({self._message(error)}); correct SSL_CERT_FILE or SSL_CERT_DIR, or unset them."
            ) from None

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
        try:
            content = self._content(request)
            failure = failure_of(content)
            if failure is not None:
                self._fail(failure)
            answer = read_answer(content, chat="messages" in request)
            logprobs = read_logprobs(content["choices"][0])
        except DistillError:
            raise
        except BrokenAnswerError as error:
            raise RetryableError(self._message(error)) from None
        except OTHER_FORM as error:
            raise RetryableError(f"an answer that is not a completion ({type(error).__name__})") from None
        pieces = "".join(piece or "" for piece in (logprobs or {}).get("tokens", ()))
        received = (answer.completion.text, answer.completion.reasoning, pieces, json.dumps(logprobs))
        if self.keys.repeated_in(*received):
            raise RetryableError("an answer that repeats the key that it was asked with")
        return replace(answer, logprobs=logprobs)

    def _content(self, request: Mapping[str, object]) -> JsonObject:
        """Send a request and return the body of a successful response, whose form is not known yet."""
        assert self._client is not None
        sent = self._supported(request)
        path = "/chat/completions" if "messages" in sent else "/completions"
        response = self._client.post(path, {"model": self.model, **sent})
        if 200 <= response.status < 300:
            return response.json()  # type: ignore[return-value]
        if 300 <= response.status < 400:
            raise self._redirected(response, path)
        error = unwrapped(_error_in(response))
        self._replace_unsupported(error, response.status, sent)
        self._fail(error, response.status, _retry_after(response.headers))

    def _redirected(self, response: Response, path: str) -> RefusedError:
        """Return the error of a redirect: who follows one sends the prompts where the server says."""
        target = self._message(response.address.removesuffix(path)) if response.address else "no address"
        return RefusedError(
            f"{self.name} at {self.url} redirects requests (status {response.status}) to {target}, which is not "
            "followed, since the prompts would go there; if that is the right server, give its address instead.",
            response.status,
            "a redirect",
        )

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
        message = self._message(error)
        code = status_of(error) if status is None else status
        how = f"status {code}" if code is not None else "an error"
        if is_temporary(error, code):
            raise RetryableError(f"{how}: {message}", after) from None
        keys = {401: self.keys.advice, 403: f"use a key that may use this model: {self.keys.advice}"}
        todo = (TODO | keys).get(code or 0, "change what is asked, or choose another model")
        if "v1/completions" in message and self.settings.role == "teacher":  # OpenAI's words for one without chats
            todo = "give --teacher-endpoint completions"
        sentence = f"{self.name} at {self.url} refuses the request with {how} ({message}); {todo}."
        raise RefusedError(sentence, code, message, filter_of(error)) from None

    def _message(self, error: object) -> str:
        """Return an error's message as one short line, without the key."""
        said = error.get("message", error.get("detail", error)) if isinstance(error, dict) else error
        text = " ".join(str(said).split()) or type(error).__name__
        return self.keys.hidden(text)[:LONGEST].rstrip(".")

    @contextmanager
    def reporting_kept(
        self, keys: Sequence[str], store: JsonlStore[Entry], what: str, *, instead: str = ""
    ) -> Iterator[None]:
        """Add to an error or Ctrl-C how much of `what` is stored, or what to do `instead`, and how to resume."""
        with report_kept_on_interrupt(store, keys, what=what):
            try:
                yield
            except DistillError as error:
                kept = sum(key in store for key in keys)
                place = "" if store.path is None else f" in {store.path}"
                said = f"{kept:,} of {len(keys):,} {what} are kept{place}"
                if isinstance(error, BudgetSpent) and instead:  # it would be spent on the same again
                    raise BudgetSpent(
                        f"the {self.settings.role}'s budget is spent ({error}) before it is known what the server "
                        f"gives; give a larger one, or {instead}."
                    ) from None
                if isinstance(error, BudgetSpent):
                    raise BudgetSpent(
                        f"the {self.settings.role}'s budget is spent ({error}): {said}; the same command asks for the "
                        "others with a budget of its own."
                    ) from None
                if isinstance(error, TeacherError):
                    raise TeacherError(f"{str(error).rstrip('.')}{f'; {said}' if kept else ''}.") from None
                said = "" if instead else f"; {said}"
                raise type(error)(
                    f"{self.name} at {self.url} gives no usable answer: {error}{said}. Run the same command again to "
                    f"resume{f', or {instead}' if instead else ''}."
                ) from None


def _error_in(response: Response) -> object:
    """Return the body of an error: its JSON, else its text."""
    try:
        return response.json() or "it does not say why"
    except BrokenAnswerError:
        return response.body.decode(errors="replace").strip() or "it does not say why"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header."""
    given = headers.get("retry-after")
    if given is None:
        return None
    try:
        return max(float(given), 0.0) if math.isfinite(float(given)) else None
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(given).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):  # of a date, or of a year that no clock has
        return None
