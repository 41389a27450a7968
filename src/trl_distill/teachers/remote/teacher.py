"""A teacher behind an OpenAI-compatible server: it reads prompts as text or chat messages and answers with text.

It has no token ids of its own; the student's tokenizer counts its prompts and cuts its completions into tokens. Where
the server gives log-probabilities they are fetched once, before training, and are its targets, see `server_targets`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...config.doors import spelled
from ...config.endpoints import Endpoint, takes_temperature
from ...errors import DistillError, TeacherError
from ...models.generation import Completion, GenerationSettings
from ..completions.generate import identity_of, keys_of, saying_what_is_kept
from ..completions.jsonl_store import LineStore
from ..completions.store import CompletionStore
from ..text.base import TextOnly
from .answers import cut_at_stop_string
from .capabilities import NEW_TOKENS
from .client import Server, kept, written
from .logprob_format import PROMPT
from .logprob_targets import ServerTargets
from .request_pool import Answer, RemoteSettings
from .scored_rows import Coverage

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ...losses.signals import Targets

logger = logging.getLogger(__name__)
SEEDS = 2**31  # what servers take
STOPS = 4  # stop strings that OpenAI takes


class RemoteTeacher(TextOnly):
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
        super().__init__(endpoint.model, tokenizer=tokenizer)
        self.endpoint = endpoint
        self.settings = RemoteSettings() if settings is None else settings
        self.server = Server(endpoint, self.settings)
        self.url = self.server.url
        self._said = False
        self.targets = ServerTargets(self.server, tokenizer, lambda: self.vocabulary_rows)

    def identity(self) -> dict[str, Any]:
        """What its completions depend on: the server, the model, and the endpoint that is asked."""
        return {"url": self.url, "model": self.endpoint.model, "endpoint": self.settings.endpoint}

    def describe(self) -> str:
        """Say which model it is, where it is asked, and what log-probabilities it was found to give."""
        given = "" if self.targets.gives is None else f"; {self.targets.gives.text()}"
        given = f"; it gives text only ({'; '.join(self.lacks)})" if self.lacks else given
        return f"{self.endpoint.model} at {self.url}{given}"

    def find(self, wanted: str, lines: LineStore) -> list[str]:
        """Find out what log-probabilities the server gives, and return why it gives none; see `ServerTargets.find`."""
        asked = self._request("0", self._messages("Hello"), GenerationSettings(max_new_tokens=NEW_TOKENS))
        return self.targets.find(wanted, lines, asked)

    @property
    def lacks(self) -> list[str]:
        """Why it gives no log-probabilities; empty if it does, or was not asked."""
        return [] if self.scores else self.targets.reasons

    @property
    def scores(self) -> bool:
        """Whether log-probabilities were found, so that `take` and `score` can be called."""
        return self.targets.gives is not None

    @property
    def reads_ids(self) -> bool:
        """Whether completions are scored after the ids of a prompt, made by the student's tokenizer."""
        return self.targets.is_kind(PROMPT)

    def as_read(self, prompt: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
        """Return a prompt as its ids are made from where completions are scored after them."""
        messages = self._messages(prompt)
        return messages[0]["content"] if self.settings.endpoint == "completions" else messages

    def take(self, rows: Iterable[Mapping[str, Any]], *, progress: bool = True) -> Coverage:
        """Fetch what the server says of prepared rows, so that `score` finds it; see `ServerTargets.take`."""
        return self.targets.take(rows, progress=progress)

    def score(self, batch: Mapping[str, torch.Tensor]) -> Targets:
        """Return what the server said of the batch's completion tokens, at T = 1.

        Raises:
            TeacherError: It gives text only, or was not asked about a row.
        """
        return self.targets.targets(batch) if self.scores else super().score(batch)

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
        self.targets.recover(keys, store)
        asked_by_key = dict(zip(keys, asked, strict=True))
        missing = {k: messages for k, messages in asked_by_key.items() if k not in store or self.targets.lacks(k)}
        if missing:
            with saying_what_is_kept(store, keys):
                try:
                    self._write_missing(missing, settings, store, progress=progress)
                except DistillError as error:
                    there = sum(key in store for key in keys)
                    self.server.end(error, kept(there, len(keys), "completions", store.path), none=not there)
        self.targets.note(prompts, keys)
        return self._learnable([store[key] for key in keys])

    def _learnable(self, completions: list[Completion]) -> list[Completion]:
        """Return completions with their reasoning where it is to be learned; say once where it is not."""
        thought = sum(bool(completion.reasoning) for completion in completions)
        if self.settings.reasoning == "keep" or not thought:
            return completions
        if not self._said:
            self._said = True
            logger.warning(
                spelled(
                    f"teacher_model {self.name!r} reasons before it answers ({thought:,} of {len(completions):,} "
                    "completions), and its reasoning is not learned; give --teacher-reasoning keep to learn it too."
                )
            )
        return [replace(completion, reasoning="") for completion in completions]

    def _write_missing(
        self, missing: Mapping[str, Any], settings: GenerationSettings, store: CompletionStore, *, progress: bool
    ) -> None:
        """Ask for completions and keep each as it comes."""

        def ask(key: str, messages: list[dict[str, Any]]) -> Answer:
            return self.server.write(self._request(key, messages, settings) | self.targets.fields(), self.targets.read)

        def keep(key: str, answer: Answer) -> None:
            answer = cut_at_stop_string(answer, settings.stop)
            self.targets.keep_written(key, answer)
            store.add({key: written(answer)})

        self.server.ask_all(missing, ask, keep, what="Teacher writes completions", progress=progress)

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
        # servers take so many; at the others the answer is cut here, as at all if a server ignores them
        request: dict[str, Any] = {"stop": list(settings.stop[:STOPS])} if settings.stop else {}
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
