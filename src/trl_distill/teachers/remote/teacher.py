"""A teacher on an OpenAI-compatible server: it reads prompts as text or chat messages and returns text.

It has no token ids of its own; the student's tokenizer counts its prompts and cuts its completions into tokens. If the
server gives log-probabilities they are fetched once, before training, and are its targets, see `logprob_targets`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ...config.endpoints import Endpoint, takes_temperature
from ...config.setting_names import name_settings
from ...errors import TeacherError
from ...losses.signals import TeacherSignal
from ...models.generation import Completion, GenerationSettings
from ...prompts.messages import Message, Prompt
from ..base import Capabilities, TextTeacher
from ..completions.generate import identity_of, keys_of
from ..completions.store import CompletionStore, JsonlStore, JsonObject
from .answers import cut_at_stop_string
from .capabilities import NEW_TOKENS
from .client import Server
from .logprob_format import PROMPT
from .logprob_targets import LogprobTargets
from .request_pool import Answer, RemoteSettings
from .scored_rows import Coverage

logger = logging.getLogger(__name__)
SEEDS = 2**31  # what servers take
STOPS = 4  # stop strings that OpenAI takes


class RemoteTeacher(TextTeacher):
    """A model behind an HTTP API.

    Args:
        endpoint: The model and its server.
        tokenizer: The student's.
        settings: Settings of requests.

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
        self._warned = False
        self.logprobs = LogprobTargets(self.server, tokenizer, lambda: self.vocabulary_rows)

    @property
    def capabilities(self) -> Capabilities:
        """Text, and log-probabilities at T = 1 if the server returns them."""
        return replace(super().capabilities, scores=self.scores, temperatures=(1.0,), renders=False)

    def identity(self) -> dict[str, Any]:
        return {"url": self.url, "model": self.endpoint.model, "endpoint": self.settings.endpoint}

    def describe(self) -> str:
        """Describe the model, its server, and the log-probabilities that it returns."""
        support, why = self.logprobs.support, "; ".join(self.why_text_only)
        given = f"it gives text only ({why})" if why else "" if support is None else support.describe()
        return f"{self.endpoint.model} at {self.url}{f'; {given}' if given else ''}"

    def probe(self, wanted: str, store: JsonlStore[JsonObject]) -> list[str]:
        """Find out what log-probabilities the server gives, and return why it gives none; see `LogprobTargets`."""
        question = self._request("0", self._messages("Hello"), GenerationSettings(max_new_tokens=NEW_TOKENS))
        return self.logprobs.probe(wanted, store, question)

    @property
    def why_text_only(self) -> list[str]:
        """Why it returns no log-probabilities; empty if it does, or was not probed."""
        return [] if self.scores else self.logprobs.unsupported

    @property
    def scores(self) -> bool:
        """Whether log-probabilities were found, so that `fetch_targets` and `score` can be called."""
        return self.logprobs.support is not None

    @property
    def reads_ids(self) -> bool:
        """Whether completions are scored after the ids of a prompt, made by the student's tokenizer."""
        return self.logprobs.kind == PROMPT

    def format_prompt(self, prompt: Prompt) -> Prompt:
        """Return a prompt in the form that its ids are made from when completions are scored after them."""
        messages = self._messages(prompt)
        return messages[0]["content"] if self.settings.endpoint == "completions" else messages

    def fetch_targets(self, rows: Iterable[Mapping[str, Any]], *, progress: bool = True) -> Coverage:
        return self.logprobs.fetch(rows, progress=progress)

    def score(self, batch: Mapping[str, torch.Tensor]) -> TeacherSignal:
        """Return a batch's log-probabilities of completion tokens, at T = 1; raise TeacherError if there are none."""
        return self.logprobs.targets(batch) if self.scores else super().score(batch)

    def write(
        self,
        prompts: Sequence[Prompt],
        settings: GenerationSettings,
        *,
        store: CompletionStore | None = None,
        progress: bool = True,
    ) -> list[Completion]:
        """Return one completion (its `text`) for each prompt, in the order given.

        Equal prompts are sent once (unless sampled), those in the store not at all; each answer is kept as it comes,
        without a store in memory alone.

        Raises:
            ProjectError: Another process adds to the store.
            TeacherError: The server refuses the request, the key or the model, or the key is missing.
            DistillError: The server does not answer, or the budget is spent; the text says what is kept.
            KeyboardInterrupt: Ctrl-C; its text says where the completions so far are kept.
        """
        store = CompletionStore(None) if store is None else store
        messages = [self._messages(prompt) for prompt in prompts]
        keys = keys_of(identity_of(self, settings), messages, distinct=settings.do_sample)
        self.logprobs.recover(keys, store)
        by_key = dict(zip(keys, messages, strict=True))

        def send(key: str, messages: list[Message]) -> Answer:
            request = self._request(key, messages, settings) | self.logprobs.fields()
            return self.server.complete(request, self.logprobs.read)

        def keep(key: str, answer: Answer) -> None:
            answer = cut_at_stop_string(answer, settings.stop)
            self.logprobs.keep_written(key, answer)
            store.add({key: answer.completion})

        with store.asking(by_key) as absent:
            missing = {key: own for key, own in by_key.items() if key in absent or self.logprobs.needs_logprobs(key)}
            if missing:
                judges = self.settings.role == "judge"
                what = "Judge compares completions" if judges else "Teacher generates completions"
                with self.server.reporting_kept(keys, store, "answers" if judges else "completions"):
                    self.server.send_all(missing, send, keep, description=what, progress=progress)
        self.logprobs.remember(prompts, keys)
        return self._learnable([store[key] for key in keys])

    def _learnable(self, completions: list[Completion]) -> list[Completion]:
        """Return completions with their reasoning if it is to be learned; warn once if it is not."""
        thought = sum(bool(completion.reasoning) for completion in completions)
        if self.settings.reasoning == "keep" or not thought:
            return completions
        if not self._warned:
            self._warned = True
            logger.warning(
                name_settings(
                    f"teacher_model {self.name!r} reasons before it answers ({thought:,} of {len(completions):,} "
                    "completions), and its reasoning is not learned; give --teacher-reasoning keep to learn it too."
                )
            )
        return [replace(completion, reasoning="") for completion in completions]

    def _messages(self, prompt: Prompt) -> list[Message]:
        """Return a prompt as chat messages; raise TeacherError if it is, and the endpoint takes text."""
        if isinstance(prompt, str):
            return [{"role": "user", "content": prompt}]
        if self.settings.endpoint == "completions":
            raise TeacherError(
                "teacher_endpoint 'completions' takes text and the teacher's prompt is a list of chat messages; give "
                "--teacher-endpoint chat, or a text template."
            )
        return prompt

    def _request(self, key: str, messages: list[Message], settings: GenerationSettings) -> JsonObject:
        """Return what is sent; a sampled completion's seed is made from its key, so that copies of a prompt differ."""
        # servers take so many; the answer is cut here at the others, and at all if a server ignores them
        request: JsonObject = {"stop": list(settings.stop[:STOPS])} if settings.stop else {}
        if self.settings.endpoint == "completions":
            request |= {"prompt": messages[0]["content"], "max_tokens": settings.max_new_tokens}
        else:  # OpenAI has renamed the limit, other servers know the old name
            length = "max_completion_tokens" if self.endpoint.url is None else "max_tokens"
            request |= {"messages": messages, length: settings.max_new_tokens}
        if not takes_temperature(self.endpoint.model):
            return request
        if not settings.do_sample:
            return request | {"temperature": 0}
        sampling = {"temperature": settings.temperature, "top_p": settings.top_p}
        return request | sampling | {"seed": int(key[:15], 16) % SEEDS}
