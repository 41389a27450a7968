"""One server and its model as a run asks it: within one budget, each answer handed on as it comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from tqdm.auto import tqdm

from ...config.endpoints import Endpoint
from ...errors import DistillError, TeacherError
from ...models.generation import Completion
from .answers import failure_of, filtered, read_choice
from .http import Connection, Refused
from .request_pool import Again, Answer, Asking, BudgetSpent, RemoteSettings, Spent

Read = Callable[[dict[str, Any]], Any]


class Server:
    """A model behind a server.

    Args:
        endpoint: Which model, and where.
        settings: How it is asked.

    Raises:
        TeacherError: The environment's OPENAI_BASE_URL cannot be used.
    """

    def __init__(self, endpoint: Endpoint, settings: RemoteSettings) -> None:
        self.model, self.settings = endpoint.model, settings
        self.connection = Connection(endpoint, timeout=settings.timeout)
        self.url = self.connection.url
        self.spent = Spent()

    def ask_all(
        self,
        jobs: Mapping[str, Any],
        ask: Callable[[str, Any], Answer],
        keep: Callable[[str, Answer], None],
        *,
        what: str = "",
        progress: bool = False,
    ) -> None:
        """Ask within the run's budget and hand each answer on as it comes, with a progress bar.

        Args:
            jobs: What to ask, by key.
            ask: Asks one of them once.
            keep: Takes a key and its answer.
            what: What the bar says.
            progress: Whether there is one.

        Raises:
            DistillError: See `Asking.run`.
        """
        _ = self.connection.client  # a key that is missing is told before anything is sent
        with tqdm(total=len(jobs), desc=what, unit="row", disable=not progress) as bar:

            def came(key: str, answer: Answer) -> None:
                keep(key, answer)
                bar.set_postfix_str(self.spent.text(self.settings), refresh=False)
                bar.update()

            Asking(ask, self.settings, self.spent).run(jobs.items(), came)

    def ask(self, request: Mapping[str, Any], read: Read | None = None) -> Answer:
        """Ask once.

        Args:
            request: The fields of the protocol but for the model.
            read: What to read out of the answer's choice besides its text.

        Raises:
            Again: It failed in a way that may pass.
            TeacherError: The server refuses.
        """
        body = self.connection.ask({"model": self.model, **request})
        return self._read(body, chat="messages" in request, read=read)

    def write(self, request: Mapping[str, Any], read: Read | None = None) -> Answer:
        """Ask once for a completion; a prompt that the server filters has none, and the others may.

        Raises:
            Again, TeacherError: See `ask`.
        """
        try:
            return self.ask(request, read)
        except Refused as error:
            if not error.filters:
                raise
            return Answer("", True, 0, 0, unusable=filtered(error.filters), billed=False)

    def _read(self, body: str, *, chat: bool, read: Read | None) -> Answer:
        """Return the answer in a response, and what `read` finds in its choice.

        Raises:
            Again: It is no JSON, not of the form that it should have, or an error that may pass.
            Refused: It is an error that will not pass.
        """
        try:
            content = json.loads(body)
            failure = failure_of(content)
            if failure is not None:
                self.connection.fail(failure, None)
            choice, used = content["choices"][0], content.get("usage") or {}
            tokens = int(used.get("prompt_tokens") or 0), int(used.get("completion_tokens") or 0)
            hidden = int((used.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0)
            said = read_choice(choice, chat=chat, hidden=hidden)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            if isinstance(error, TeacherError):
                raise
            raise Again(f"an answer that is no completion ({type(error).__name__})") from None
        more = None if read is None else read(choice)
        return Answer(said.text, said.finished, *tokens, more, said.reasoning, said.unusable)

    def once(self, request: Mapping[str, Any], read: Read) -> Answer:
        """Ask one question with patience, as any other."""
        answers: list[Answer] = []
        self.ask_all({"": request}, lambda _, sent: self.ask(sent, read), lambda _, answer: answers.append(answer))
        return answers[0]

    def end(self, error: DistillError, kept: str, *, none: bool = False) -> NoReturn:
        """End with what happened, what is kept, and how to go on.

        Args:
            error: What happened.
            kept: How much is kept, and where.
            none: Whether that is nothing, which a refusal need not say.
        """
        if isinstance(error, BudgetSpent):
            raise BudgetSpent(
                f"the teacher's budget is spent ({error}): {kept}; the same command asks for the others with a budget "
                "of its own."
            ) from None
        if isinstance(error, TeacherError):
            raise TeacherError(f"{str(error).rstrip('.')}{'' if none else f'; {kept}'}.") from None
        raise type(error)(
            f"teacher_model {self.model!r} at {self.url} does not answer: {error}; {kept}, and the same command goes "
            "on from them."
        ) from None


def kept(count: int, of: int, what: str, path: Any) -> str:
    """Say how much of something is kept, and where."""
    return f"{count:,} of {of:,} {what} are kept{'' if path is None else f' in {path}'}"


def written(answer: Answer) -> Completion:
    """Return an answer as the completion that is kept, what cannot be learned included: it is paid for too."""
    return Completion((), answer.finished, answer.text, answer.reasoning, answer.unusable)
