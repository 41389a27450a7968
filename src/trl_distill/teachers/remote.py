"""A teacher behind an OpenAI-compatible server: it reads prompts as text or chat messages and answers with text.

It has no token ids and no probabilities of its own; the student's tokenizer counts its prompts and cuts its
completions into tokens. The key is read from the environment when the server is first asked, and is nowhere else.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm.auto import tqdm

from ..alignment import stop_of_turn
from ..endpoints import Endpoint, base_url, takes_temperature
from ..errors import DistillError, TeacherError
from .asking import Again, Answer, Asking, BudgetSpent, RemoteSettings
from .base import Completion, GenerationSettings
from .generate import identity_of, keys_of, saying_what_is_kept
from .store import CompletionStore

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ..targets import HiddenTargets

OPENAI_URL = "https://api.openai.com/v1"
KEY, URL = "OPENAI_API_KEY", "OPENAI_BASE_URL"
ONCE_MORE = (408, 409, 425, 429)  # and whatever begins with 5
LONGEST = 200  # characters of what a server says
SEEDS = 2**31  # what servers take


class RemoteTeacher:
    """A model that is asked over HTTP.

    Args:
        endpoint: Which model, and where.
        tokenizer: The student's.
        settings: How it is asked.

    Raises:
        TeacherError: The environment's OPENAI_BASE_URL cannot be used.
    """

    def __init__(
        self, endpoint: Endpoint, *, tokenizer: PreTrainedTokenizerBase, settings: RemoteSettings | None = None
    ) -> None:
        self.endpoint = endpoint
        self.tokenizer = tokenizer
        self.settings = RemoteSettings() if settings is None else settings
        self.vocabulary: int | None = None
        self.name = endpoint.model
        self.url = endpoint.url or base_url(os.environ.get(URL) or OPENAI_URL, setting=URL)

    @property
    def vocabulary_rows(self) -> int:
        """Rows of the student's vocabulary, which its completions are cut into."""
        return len(self.tokenizer) if self.vocabulary is None else self.vocabulary

    @property
    def length_limit(self) -> int | None:
        """None: the server knows, and says so where a prompt is too long."""
        return None

    @property
    def stop_ids(self) -> list[int]:
        """The student's ids that may end a completion."""
        ends = (self.tokenizer.eos_token_id, stop_of_turn(self.tokenizer))
        return list(dict.fromkeys(i for i in ends if i is not None))

    def share(self, vocabulary: int) -> None:
        """Take the student's vocabulary: completions become tokens of its tokenizer."""
        self.vocabulary = vocabulary

    def identity(self) -> dict[str, Any]:
        """What its completions depend on: the server, the model, and the endpoint that is asked."""
        return {"url": self.url, "model": self.endpoint.model, "endpoint": self.settings.endpoint}

    def describe(self) -> str:
        """Say which model it is and where it is asked."""
        return f"{self.endpoint.model} at {self.url}"

    def score(self, batch: Mapping[str, torch.Tensor]) -> HiddenTargets:
        """Refuse: a server that answers with text gives no probabilities.

        Raises:
            TeacherError: Always.
        """
        raise TeacherError(f"teacher_model {self.name!r} gives text only and scores nothing; set --distill-alpha 0.")

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Refuse: it reads text, see `write`.

        Raises:
            TeacherError: Always.
        """
        raise TeacherError(f"teacher_model {self.name!r} reads text, no token ids; have it write with write().")

    def write(
        self,
        prompts: Sequence[str | list[dict[str, Any]]],
        settings: GenerationSettings,
        *,
        store: CompletionStore | None = None,
        progress: bool = True,
    ) -> list[Completion]:
        """Return one completion (its `text`) for each prompt, in the order given.

        Equal prompts are asked once (unless drawn), those in the store not at all; each answer is kept as it comes.

        Args:
            prompts: Text or chat messages.
            settings: How the model writes.
            store: Where completions are kept from one run to the next; None keeps them in memory.
            progress: Whether to show a progress bar.

        Raises:
            TeacherError: The server refuses the request, the key or the model, or the `openai` package is missing.
            DistillError: The server does not answer, or the budget is spent; the text says what is kept.
            KeyboardInterrupt: Ctrl-C; its text says where the completions written so far are kept.
        """
        store = CompletionStore(None) if store is None else store
        asked = [self._messages(prompt) for prompt in prompts]
        keys = keys_of(identity_of(self, settings), asked, distinct=settings.do_sample)
        missing = {key: messages for key, messages in zip(keys, asked, strict=True) if key not in store}
        if missing:
            with saying_what_is_kept(store, keys):
                try:
                    self._write_missing(missing, settings, store, progress=progress)
                except DistillError as error:
                    self._end(error, kept=sum(key in store for key in keys), of=len(keys), store=store)
        return [store[key] for key in keys]

    def _write_missing(
        self, missing: Mapping[str, Any], settings: GenerationSettings, store: CompletionStore, *, progress: bool
    ) -> None:
        """Ask for completions and keep each as it comes."""
        _ = self.client  # a key that is missing is told before anything is sent
        asking = Asking(lambda key, messages: self._ask(self._request(key, messages, settings)), self.settings)
        with tqdm(total=len(missing), desc="Teacher writes completions", unit="row", disable=not progress) as bar:

            def keep(key: str, answer: Answer) -> None:
                store.add({key: Completion((), answer.finished, answer.text)})
                repeated = f", {asking.repeated:,} repeated" if asking.repeated else ""
                bar.set_postfix_str(f"{asking.requests:,} requests{repeated}, {asking.tokens:,} tokens", refresh=False)
                bar.update()

            asking.run(missing.items(), keep)

    def _end(self, error: DistillError, *, kept: int, of: int, store: CompletionStore) -> NoReturn:
        """End with what happened, what is kept, and how to go on."""
        where = "" if store.path is None else f" in {store.path}"
        there = f"{kept:,} of {of:,} completions are kept{where}"
        if isinstance(error, BudgetSpent):
            raise BudgetSpent(
                f"the teacher's budget is spent ({error}): {there}; the same command asks for the others with a budget "
                "of its own."
            ) from None
        if isinstance(error, TeacherError):
            raise TeacherError(f"{str(error).rstrip('.')}{f'; {there}' if kept else ''}.") from None
        raise type(error)(
            f"teacher_model {self.name!r} at {self.url} does not answer: {error}; {there}, and the same command goes "
            "on from them."
        ) from None

    def _messages(self, prompt: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a prompt as chat messages; text is what a user says.

        Raises:
            TeacherError: Chat messages for an endpoint that takes text.
        """
        if isinstance(prompt, str):
            return [{"role": "user", "content": prompt}]
        if self.settings.endpoint == "completions":
            raise TeacherError(
                "teacher_endpoint 'completions' takes text and the teacher's prompt is a list of chat messages; give "
                "--teacher-endpoint chat, or a text template."
            )
        return prompt

    def _request(self, key: str, messages: list[dict[str, Any]], settings: GenerationSettings) -> dict[str, Any]:
        """Return what is sent; a drawn completion's seed is made from its key, so that copies of a prompt differ."""
        length = (
            "max_completion_tokens" if self.endpoint.url is None else "max_tokens"
        )  # other servers know the old name
        request: dict[str, Any] = {"model": self.endpoint.model}
        if self.settings.endpoint == "completions":
            request |= {"prompt": messages[0]["content"], "max_tokens": settings.max_new_tokens}
        else:
            request |= {"messages": messages, length: settings.max_new_tokens}
        if not takes_temperature(self.endpoint.model):
            return request
        if not settings.do_sample:
            return request | {"temperature": 0}
        drawn = {"temperature": settings.temperature, "top_p": settings.top_p}
        return request | drawn | {"seed": int(key[:15], 16) % SEEDS}

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
        return OpenAI(api_key=key or "none", base_url=self.url, timeout=self.settings.timeout, max_retries=0)

    def _ask(self, request: dict[str, Any]) -> Answer:
        """Ask once.

        Raises:
            Again: It failed in a way that may pass.
            TeacherError: The server refuses.
        """
        import openai

        chat = "messages" in request
        door = self.client.chat.completions if chat else self.client.completions
        try:
            body = door.with_raw_response.create(**request).http_response.text
        except openai.APITimeoutError:
            raise Again(f"no answer within {self.settings.timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise Again(_said(error.__cause__ or error)) from None
        except openai.APIStatusError as error:
            self._refuse(error)
        return _read(body, chat=chat)

    def _refuse(self, error: Any) -> NoReturn:
        """Tell a status that may pass from one that will not."""
        status, said = error.status_code, _said(error.body or error)
        code = error.body.get("code") if isinstance(error.body, dict) else None
        if (status in ONCE_MORE or status >= 500) and code != "insufficient_quota":
            raise Again(f"status {status}: {said}", _retry_after(error.response.headers)) from None
        todo = {
            401: f"set the environment variable {KEY} to a key that it knows",
            403: f"use a key ({KEY}) that may ask for this model",
            404: "check the model's name and the URL, which ends in /v1 for most servers",
        }.get(status, "change what is asked, or choose another model")
        raise TeacherError(
            f"teacher_model {self.name!r} at {self.url} refuses the request with status {status} ({said}); {todo}."
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


def _read(body: str, *, chat: bool) -> Answer:
    """Return the answer in a response.

    Raises:
        Again: It is no JSON, or not of the form that it should have.
    """
    try:
        content = json.loads(body)
        choice = content["choices"][0]
        text = choice["message"]["content"] if chat else choice["text"]
        used = content.get("usage") or {}
        tokens = int(used.get("prompt_tokens") or 0) + int(used.get("completion_tokens") or 0)
        reason = choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise Again(f"an answer that is no completion ({type(error).__name__})") from None
    if not isinstance(text, str):  # the model refused, or called a tool: there is nothing to learn
        return Answer("", False, tokens)
    return Answer(text, reason == "stop", tokens)


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
