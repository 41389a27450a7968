"""Many requests to one server: a bounded number at a time, retried with back-off, within a budget."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from ...errors import DistillError, TeacherError, counted
from ...models.generation import Completion
from ..completions.store import JsonObject

TRIES = 6
BACKOFF = 0.5  # seconds before the second try, doubled for each further one
LONGEST_BACKOFF = 30.0
LONGEST_PAUSE = 600.0  # a server that asks for more is not waited for
Job = TypeVar("Job")


@dataclass(frozen=True)
class RemoteSettings:
    """Settings of requests: each field is the setting `teacher_...` of its name, see `DistillationArguments`.

    Attributes:
        role: The model's role, "teacher" or "judge"; a judge has a `judge_key_env` of its own.
    """

    endpoint: str = "chat"
    concurrency: int = 8
    timeout: float = 300.0
    max_requests: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    price_input: float | None = None
    price_output: float | None = None
    top_k: int = 64
    reasoning: str = "drop"
    role: str = "teacher"
    key_env: str | None = None

    @property
    def model_setting(self) -> str:
        """The setting that names the model."""
        return "teacher_model" if self.role == "teacher" else self.role


@dataclass(frozen=True)
class Answer:
    """A server's answer.

    Attributes:
        completion: The completion; an unusable one is stored too, since it was paid for.
        prompt_tokens: Of the prompt, as the server counts them.
        completion_tokens: Of the completion, as the server counts them.
        logprobs: The log-probabilities that were asked for, see `logprob_format`.
        billed: Whether it has tokens that a server bills; a prompt that it refuses has none.
    """

    completion: Completion
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: JsonObject | None = None
    billed: bool = True


@dataclass
class Usage:
    """A run's usage of a server so far, over all its request pools.

    Attributes:
        requests: Sent, retries included.
        retries: Those of them that were sent again.
        prompt_tokens: Of the answers' prompts.
        completion_tokens: Of their completions.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def cost(self, settings: RemoteSettings) -> float | None:
        """Return what the tokens cost; None without both prices."""
        if settings.price_input is None or settings.price_output is None:
            return None
        return (self.prompt_tokens * settings.price_input + self.completion_tokens * settings.price_output) / 1e6

    def text(self, settings: RemoteSettings) -> str:
        """Return a progress line, with the cost if prices are given."""
        retries = f", {self.retries:,} repeated" if self.retries else ""
        cost = self.cost(settings)
        priced = "" if cost is None else f", cost {_shown(cost)}"
        return f"{counted(self.requests, 'request')}{retries}, {counted(self.tokens, 'token')}{priced}"

    def check_budget(self, settings: RemoteSettings) -> None:
        """Raise BudgetSpent, naming the limit, once one is reached."""
        limits = (
            (self.requests, settings.max_requests, "requests"),
            (self.tokens, settings.max_tokens, "tokens"),
            (self.cost(settings), settings.max_cost, "cost"),
        )
        for used, limit, what in limits:
            if limit is not None and used is not None and used >= limit:
                priced = f" at a cost of {_shown(used)}" if what == "cost" else ""
                raise BudgetSpent(
                    f"{counted(self.requests, 'request')} and {counted(self.tokens, 'token')}{priced} reach "
                    f"--teacher-max-{what} {limit:,}"
                )


def _shown(cost: float) -> str:
    """Return a cost with four decimals, or more where they are 0."""
    return f"{cost:.2g}" if 0 < cost < 1e-4 else f"{cost:,.4f}"


class RetryableError(Exception):
    """A request that failed and may succeed another time.

    Args:
        reason: What happened, without anything secret.
        after: Seconds of the server's Retry-After.
    """

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.after = reason, after


class NoResponseError(DistillError):
    """The server gave no answer after all tries."""


class BudgetSpent(DistillError):
    """The budget is spent."""


class _Stopped(Exception):
    """Stops the other threads after a failure or an interruption."""


class RequestPool(Generic[Job]):
    """Sends jobs from several threads.

    The threads are daemons that nothing waits for after Ctrl-C, unlike those of `concurrent.futures` and
    `multiprocessing.pool`: an answer may never come.

    Args:
        send: Sends a job once and returns its `Answer`; raises `RetryableError` for what may be tried again.
        settings: Bounds and budget.
        usage: Earlier usage, which counts towards the budget.
    """

    def __init__(self, send: Callable[[str, Job], Answer], settings: RemoteSettings, usage: Usage) -> None:
        self.settings, self.usage = settings, usage
        self._send = send
        self._lock, self._keeping = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._quiet_until = 0.0

    def run(self, jobs: Mapping[str, Job], keep: Callable[[str, Answer], None]) -> None:
        """Send all jobs and pass each answer to `keep` as it arrives.

        After a failure nothing new is sent; what is in flight is awaited and kept.

        Args:
            jobs: What to send, by key; at least one.
            keep: Stores an answer under its key; called by one thread at a time.

        Raises:
            DistillError: The first failure; `BudgetSpent` and `NoResponseError` are ours, others are `send`'s.
            KeyboardInterrupt: Ctrl-C; what had come is kept, what was in flight is given up.
        """
        waiting: SimpleQueue[tuple[str, Job]] = SimpleQueue()
        for item in jobs.items():
            waiting.put(item)
        workers = [
            threading.Thread(target=self._work, args=(waiting, keep), daemon=True)
            for _ in range(min(self.settings.concurrency, len(jobs)))
        ]
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        except BaseException as interrupt:  # a signal: no worker raises
            self._fail(interrupt)
        if self._failure is not None:
            raise self._failure

    def _work(self, waiting: SimpleQueue[tuple[str, Job]], keep: Callable[[str, Answer], None]) -> None:
        """Answer jobs until none is left or something fails."""
        try:
            while True:
                key, job = waiting.get_nowait()
                answer = self._with_retries(key, job)
                with self._keeping:
                    if isinstance(self._failure, KeyboardInterrupt):
                        return
                    keep(key, answer)
                self._check_counted(answer)
        except (Empty, _Stopped):
            return
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or error
            self._stop.set()

    def _with_retries(self, key: str, job: Job) -> Answer:
        reason = ""
        for attempt in range(TRIES):
            self._wait_for_turn(retry=attempt > 0)
            try:
                answer = self._send(key, job)
            except RetryableError as failure:
                reason = failure.reason
                if failure.after is not None and failure.after > LONGEST_PAUSE:
                    raise NoResponseError(f"{reason}, and asks to wait {failure.after:,.0f} s") from None
                if attempt + 1 < TRIES:
                    self._backoff(failure, attempt)
                continue
            with self._lock:
                self.usage.prompt_tokens += answer.prompt_tokens
                self.usage.completion_tokens += answer.completion_tokens
            return answer
        raise NoResponseError(f"{reason} ({TRIES} tries)")

    def _wait_for_turn(self, *, retry: bool) -> None:
        """Wait until the server's Retry-After has passed, then count a request."""
        while True:
            with self._lock:
                wait = self._quiet_until - time.monotonic()
                if wait <= 0 and not self._stop.is_set():
                    self.usage.check_budget(self.settings)
                    self.usage.requests += 1
                    self.usage.retries += retry
                    return
            self._pause(wait)

    def _backoff(self, failure: RetryableError, attempt: int) -> None:
        """Wait before another try; all jobs wait if the server says for how long."""
        if failure.after is not None:
            with self._lock:
                self._quiet_until = max(self._quiet_until, time.monotonic() + failure.after)
            return
        delay = min(BACKOFF * 2**attempt, LONGEST_BACKOFF)
        self._pause(delay * random.uniform(0.75, 1.25))  # nosec B311  # not all at the same moment

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(max(seconds, 0)):
            raise _Stopped

    def _check_counted(self, answer: Answer) -> None:
        """Refuse an answer without counted tokens if they are needed for a budget in money."""
        counted = answer.prompt_tokens + answer.completion_tokens > 0 or not answer.billed
        if self.settings.max_cost is not None and not counted:
            raise TeacherError(
                "the server does not report the tokens of its answers, so --teacher-max-cost cannot be enforced; give "
                "--teacher-max-requests instead."
            )
