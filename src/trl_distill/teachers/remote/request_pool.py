"""Many questions to one server: a bounded number at a time, tried again with patience, within a budget.

Answers are handed back one by one in the caller's thread as they come, so that each can be kept at once. What is
asked and what an answer is are the caller's business.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ...errors import DistillError, TeacherError

TRIES = 6
BACKOFF = 0.5  # seconds before the second try, doubled for each further one
LONGEST_BACKOFF = 30.0
LONGEST_PAUSE = 600.0  # a server that asks for more is not waited for


@dataclass(frozen=True)
class RemoteSettings:
    """How a server is asked.

    Attributes:
        endpoint: "chat" (`/chat/completions`) or "completions" (`/completions`, text prompts alone).
        concurrency: Requests under way at a time.
        timeout: Seconds to wait for an answer.
        max_requests: Requests to send at most, repeated ones included; None is no limit.
        max_tokens: Tokens of prompts and completions after which nothing more is asked; None is no limit.
        max_cost: Money after which nothing more is asked, in the unit of the prices; None is no limit.
        price_input: Money for a million tokens of prompts.
        price_output: Money for a million tokens of completions.
        top_k: Log-probabilities of a token to ask for, where they are.
        reasoning: "drop" what a model thought before it answered, or "keep" it as a part of the completion.
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

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Return what tokens of prompts and completions cost; None without both prices."""
        if self.price_input is None or self.price_output is None:
            return None
        return (prompt_tokens * self.price_input + completion_tokens * self.price_output) / 1e6


@dataclass(frozen=True)
class Answer:
    """What a server wrote.

    Attributes:
        text: The completion.
        finished: Whether the model ended it; if not it was cut.
        prompt_tokens: Of the prompt, as the server counts them.
        completion_tokens: Of the completion, likewise.
        said: The log-probabilities that were asked for.
        reasoning: What the model thought before it; empty if it did not, or the server does not tell.
        unusable: Why nothing can be learned from it; empty if something can.
        billed: Whether it has tokens that a server bills; a prompt that it refuses has none.
    """

    text: str
    finished: bool
    prompt_tokens: int
    completion_tokens: int
    said: Any = None
    reasoning: str = ""
    unusable: str = ""
    billed: bool = True


@dataclass
class Spent:
    """What a run has asked of a server so far, over all rounds of questions.

    Attributes:
        requests: Sent, repeated ones included.
        repeated: Those of them that were repeated.
        prompt_tokens: Of the answers' prompts.
        completion_tokens: Of their completions.
    """

    requests: int = 0
    repeated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of prompts and completions."""
        return self.prompt_tokens + self.completion_tokens

    def text(self, settings: RemoteSettings) -> str:
        """Return it as a progress line shows it, with what it cost where prices are given."""
        repeated = f", {self.repeated:,} repeated" if self.repeated else ""
        cost = settings.cost(self.prompt_tokens, self.completion_tokens)
        priced = "" if cost is None else f", cost {cost:,.4f}"
        return f"{self.requests:,} requests{repeated}, {self.tokens:,} tokens{priced}"


class Again(Exception):
    """A request that failed and may succeed another time.

    Args:
        reason: What happened, without anything secret.
        after: Seconds that the server asks to be left alone.
    """

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.after = reason, after


class Unanswered(DistillError):
    """The server gave no answer after all tries."""


class BudgetSpent(DistillError):
    """As much was asked as was allowed."""


class Asking:
    """One round of questions.

    Args:
        ask: Asks one question once and returns its `Answer`; raises `Again` for what may be tried again.
        settings: Bounds and budget.
        spent: What was asked before, to be counted on; the budget is over all of it.
    """

    def __init__(self, ask: Callable[[str, Any], Answer], settings: RemoteSettings, spent: Spent | None = None) -> None:
        self.settings = settings
        self.spent = Spent() if spent is None else spent
        self._ask = ask
        self._jobs: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._came: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._quiet_until = 0.0

    def run(self, jobs: Iterable[tuple[str, Any]], keep: Callable[[str, Answer], None]) -> None:
        """Ask all and hand each answer to `keep` in this thread as it comes.

        After a failure nothing new is asked; what is under way is awaited and kept.

        Args:
            jobs: Keys and what to ask.
            keep: Takes a key and its answer.

        Raises:
            DistillError: The first failure; `BudgetSpent` and `Unanswered` are ours, others are `ask`'s.
            KeyboardInterrupt: Ctrl-C; what had come is kept, what was under way is given up.
        """
        for job in jobs:
            self._jobs.put(job)
        working = min(self.settings.concurrency, self._jobs.qsize())
        failure: BaseException | None = None
        try:
            for _ in range(working):  # daemons: an answer that never comes must not hold up the end of the program
                threading.Thread(target=self._work, daemon=True).start()
            while working:
                came = self._came.get()
                if came is None:
                    working -= 1
                elif isinstance(came, BaseException):
                    failure = failure or came
                else:
                    keep(*came)
        except KeyboardInterrupt:
            self._stop.set()
            while not self._came.empty():
                came = self._came.get()
                if isinstance(came, tuple):
                    keep(*came)
            raise
        finally:
            self._stop.set()
        if failure is not None:
            raise failure

    def _work(self) -> None:
        """Answer one question after another, until there are none or something failed."""
        try:
            while not self._stop.is_set():
                try:
                    key, question = self._jobs.get_nowait()
                except queue.Empty:
                    return
                answer = self._answer(key, question)
                if answer is not None:
                    self._came.put((key, answer))
                    self._check_counted(answer)
        except BaseException as error:
            self._stop.set()
            self._came.put(error)
        finally:
            self._came.put(None)

    def _answer(self, key: str, question: Any) -> Answer | None:
        """Ask until there is an answer; None when all was stopped meanwhile."""
        reason = ""
        for attempt in range(TRIES):
            if not self._may_ask(repeated=attempt > 0):
                return None
            try:
                answer = self._ask(key, question)
            except Again as failure:
                reason = failure.reason
                if failure.after is not None and failure.after > LONGEST_PAUSE:
                    raise Unanswered(f"{reason}, and asks to wait {failure.after:,.0f} s") from None
                if attempt + 1 < TRIES and not self._put_off(failure, attempt):
                    return None
                continue
            with self._lock:
                self.spent.prompt_tokens += answer.prompt_tokens
                self.spent.completion_tokens += answer.completion_tokens
            return answer
        raise Unanswered(f"{reason} ({TRIES} tries)")

    def _may_ask(self, *, repeated: bool) -> bool:
        """Wait while the server wants to be left alone, then count a request; False when all was stopped."""
        while True:
            with self._lock:
                wait = self._quiet_until - time.monotonic()
                if wait <= 0 and not self._stop.is_set():
                    self._check_budget()
                    self.spent.requests += 1
                    self.spent.repeated += repeated
                    return True
            if self._stop.wait(max(wait, 0)):
                return False

    def _check_budget(self) -> None:
        """End where the budget ends."""
        settings, spent = self.settings, self.spent
        limits = (
            (spent.requests, settings.max_requests, "--teacher-max-requests"),
            (spent.tokens, settings.max_tokens, "--teacher-max-tokens"),
            (settings.cost(spent.prompt_tokens, spent.completion_tokens), settings.max_cost, "--teacher-max-cost"),
        )
        for used, limit, flag in limits:
            if limit is not None and used is not None and used >= limit:
                cost = f" at a cost of {used:,.4f}" if flag == "--teacher-max-cost" else ""
                raise BudgetSpent(
                    f"{spent.requests:,} requests and {spent.tokens:,} tokens{cost} reach {flag} {limit:,}"
                )

    def _check_counted(self, answer: Answer) -> None:
        """End where a budget in money cannot be kept: the server does not say how many tokens an answer has."""
        counted = answer.prompt_tokens + answer.completion_tokens > 0 or not answer.billed
        if self.settings.max_cost is not None and not counted:
            raise TeacherError(
                "the server does not count the tokens of its answers, so --teacher-max-cost cannot be kept; give "
                "--teacher-max-requests instead."
            )

    def _put_off(self, failure: Again, attempt: int) -> bool:
        """Wait before another try: all wait where the server says for how long; False when all was stopped."""
        if failure.after is not None:
            with self._lock:
                self._quiet_until = max(self._quiet_until, time.monotonic() + failure.after)
            return True
        delay = min(BACKOFF * 2**attempt, LONGEST_BACKOFF)
        return not self._stop.wait(delay * random.uniform(0.75, 1.25))  # not all at the same moment
