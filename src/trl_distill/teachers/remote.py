"""A teacher behind an OpenAI-compatible server: it reads prompts as text or chat messages and answers with text.

It has no token ids of its own; the student's tokenizer counts its prompts and cuts its completions into tokens. Where
the server gives log-probabilities they are fetched once, before training, and are its targets, see `logprobs`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm.auto import tqdm

from ..alignment import skipped_tokens, stop_of_turn, tokenize_completion
from ..endpoints import Endpoint, takes_temperature
from ..errors import DistillError, TeacherError
from ..token_bytes import token_bytes
from .asking import Again, Answer, Asking, BudgetSpent, RemoteSettings, Spent
from .base import Completion, GenerationSettings
from .connection import Connection
from .finding import NEW_TOKENS, Found, check_same_tokens, find_prompt, find_top
from .generate import identity_of, keys_of, saying_what_is_kept
from .lines import LineStore
from .logprobs import PROMPT, TOP, for_prompt, for_top, read_prompt, read_top
from .matching import Matcher
from .scored import Coverage, ScoredRow, nothing, pack, targets_of
from .shards import sequence_key
from .store import CompletionStore, key_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ..targets import TopKTargets

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
        self.connection = Connection(endpoint, timeout=self.settings.timeout)
        self.url = self.connection.url
        self.spent = Spent()
        self.gives: Found | None = None
        self.lines = LineStore(None)
        self.rows: dict[bytes, ScoredRow] = {}
        self._wrote: dict[str, list[dict[str, Any]]] = {}

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
        """Say which model it is, where it is asked, and what log-probabilities it was found to give."""
        given = "" if self.gives is None else f"; {self.gives.text()}"
        return f"{self.endpoint.model} at {self.url}{given}"

    def find(self, wanted: str, lines: LineStore) -> list[str]:
        """Find out what log-probabilities the server gives, and return why it gives none of a kind.

        What it gives is kept in `lines` and not asked again.

        Args:
            wanted: "auto", "prompt" or "top".
            lines: Where log-probabilities are kept from one run to the next.

        Raises:
            TeacherError: The server refuses the key or the model.
            DistillError: It does not answer, or the budget is spent.
        """
        self.lines, reasons = lines, []
        kinds = [kind for kind in (PROMPT, TOP) if wanted in ("auto", kind)]
        keys = {kind: key_of({**self.identity(), "k": self.settings.top_k}, ["gives", kind]) for kind in kinds}
        for kind in kinds:
            if keys[kind] in lines:
                self.gives = Found(kind, int(lines[keys[kind]]["k"]))
                return []
        for kind in kinds:
            try:
                found = self._find(kind)
            except DistillError as error:
                self._end(error, "nothing was asked yet but what it can do")
            if isinstance(found, Found):
                self.gives = found
                lines.add(keys[kind], {"gives": kind, "k": found.k})
                break
            reasons.append(found)
        return reasons

    def _find(self, kind: str) -> Found | str:
        """Ask whether it gives one kind."""

        def once(request: dict[str, Any], read: Callable[[dict[str, Any]], Any]) -> Answer:
            answers: list[Answer] = []
            request = {"model": self.endpoint.model, **request}
            self._ask_all({"": request}, lambda _, sent: self._ask(sent, read), lambda _, a: answers.append(a))
            return answers[0]

        if kind == PROMPT:
            return find_prompt(once, self.tokenizer, self.settings.top_k)
        asked = self._request("0" * 15, self._messages("Hello"), GenerationSettings(max_new_tokens=NEW_TOKENS))
        return find_top(once, asked, self.settings.endpoint, self.settings.top_k)

    def as_read(self, prompt: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
        """Return a prompt as its ids are made from: as the server reads it where it scores ids, else its text alone."""
        if self.gives is None or self.gives.kind != PROMPT:
            return prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)
        return prompt if self.settings.endpoint == "completions" else self._messages(prompt)

    def take(self, rows: Iterable[Mapping[str, Any]], *, progress: bool = True) -> Coverage:
        """Fetch what the server says of completions, so that `score` finds it; what is kept is not asked again.

        Args:
            rows: With `student_prompt`, `teacher_prompt`, `completion` (ids), and of `preparation` also `source`,
                `read` (the prompt, as JSON), `chat`.
            progress: Whether to show a progress bar.

        Raises:
            TeacherError: The server refuses, or has another tokenizer than the student.
            DistillError: It does not answer, or the budget is spent; the text says what is kept.
        """
        rows = list(rows)
        scored = self._score_prompts(rows, progress) if self._gives(PROMPT) else self._match(rows)
        known = tokens = 0
        for row, said in zip(rows, scored, strict=True):
            self.rows[sequence_key(row["teacher_prompt"], row["completion"])] = said
            learnt = said.known[skipped_tokens(row["student_prompt"], row["teacher_prompt"]) :]
            known, tokens = known + int(learnt.sum()), tokens + len(learnt)
        return Coverage(known, tokens)

    def score(self, batch: Mapping[str, torch.Tensor]) -> TopKTargets:
        """Return what the server said of the batch's completion tokens, see `take`.

        Raises:
            TeacherError: It gives text only, or was not asked about a row.
        """
        if self.gives is None:
            raise TeacherError(
                f"teacher_model {self.name!r} gives text only and scores nothing; set --distill-alpha 0."
            )

        def missing(ids: list[int]) -> TeacherError:
            return TeacherError(
                f"teacher_model {self.name!r} was not asked about the sequence {self.tokenizer.decode(ids)!r:.120}; "
                "give the trainer rows that are not prepared yet."
            )

        return targets_of(self.rows, batch, vocabulary=self.vocabulary_rows, missing=missing)

    def _gives(self, kind: str) -> bool:
        """Whether log-probabilities of this kind are used."""
        return self.gives is not None and self.gives.kind == kind

    def _score_prompts(self, rows: Sequence[Mapping[str, Any]], progress: bool) -> list[ScoredRow]:
        """Have given completions scored, each distinct sequence once."""
        assert self.gives is not None
        self.lines.refresh()
        k = self.gives.k
        identity = {**self.identity(), "k": k, "kind": PROMPT, "vocabulary": self.vocabulary_rows}
        identity.pop("endpoint")  # how completions are written; the ids are all that counts here
        keys = [key_of(identity, [row["teacher_prompt"], row["completion"]]) for row in rows]
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in self.lines}

        def ask(_: str, row: Mapping[str, Any]) -> Answer:
            start = len(row["teacher_prompt"])
            ids = [*row["teacher_prompt"], *row["completion"]]
            request = {"model": self.endpoint.model, **for_prompt(ids, k)}

            def read(choice: dict[str, Any]) -> dict[str, Any]:
                entry = read_prompt(choice, ids, start, k)
                if entry is None:
                    raise Again("an answer without log-probabilities")
                return entry

            return self._ask(request, read)

        def keep(key: str, answer: Answer) -> None:
            check_same_tokens(answer.said["texts"], self.tokenizer, name=self.name)
            self.lines.add(key, {"ids": answer.said["ids"], "log_probs": answer.said["log_probs"]})

        with saying_what_is_kept(self.lines, keys, what="the teacher scored completions"):
            try:
                self._ask_all(missing, ask, keep, what="Teacher scores completions", progress=progress)
            except DistillError as error:
                there = sum(key in self.lines for key in keys)
                self._end(error, self._kept(there, len(keys), "scored completions", self.lines.path), none=not there)
        found = [self.lines[key] for key in keys]
        return [pack(entry["ids"], entry["log_probs"], vocabulary=self.vocabulary_rows) for entry in found]

    def _match(self, rows: Sequence[Mapping[str, Any]]) -> list[ScoredRow]:
        """Match what was said of written completions to the student's tokens; of others nothing is known."""
        scored = []
        for row in rows:
            completion, how = list(row["completion"]), {"chat": bool(row.get("chat"))}
            for entry in self._wrote.get(row.get("read", ""), ()) if row.get("source") == "teacher" else ():
                ids = tokenize_completion(self.tokenizer, entry["text"], finished=entry["finished"], **how)
                if ids[: len(completion)] == completion:
                    scored.append(self._matcher.match(entry, completion))
                    break
            else:
                scored.append(nothing(len(completion)))
        return scored

    @cached_property
    def _matcher(self) -> Matcher:
        """The student's tokens by their bytes."""
        return Matcher(token_bytes(self.tokenizer), self.vocabulary_rows)

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
        self._recover(keys, store)
        missing = {
            key: messages
            for key, messages in zip(keys, asked, strict=True)
            if key not in store or (self._gives(TOP) and self._line(key) not in self.lines)
        }
        if missing:
            with saying_what_is_kept(store, keys):
                try:
                    self._write_missing(missing, settings, store, progress=progress)
                except DistillError as error:
                    kept = sum(key in store for key in keys)
                    self._end(error, self._kept(kept, len(keys), "completions", store.path), none=not kept)
        if self._gives(TOP):
            for prompt, key in zip(prompts, keys, strict=True):
                self._wrote.setdefault(json.dumps(prompt), []).append(self.lines[self._line(key)])
        return [store[key] for key in keys]

    def _line(self, key: str) -> str:
        """Return the key of what was said of a completion."""
        assert self.gives is not None
        return key_of({"kind": TOP, "k": self.gives.k}, [key])

    def _recover(self, keys: Iterable[str], store: CompletionStore) -> None:
        """Take completions from their log-probabilities' lines: a kill may have come between the two files."""
        if self._gives(TOP):
            self.lines.refresh()
            there = {key: self.lines[self._line(key)] for key in keys if self._line(key) in self.lines}
            lost = {k: Completion((), e["finished"], e["text"]) for k, e in there.items() if k not in store}
            if lost:
                store.add(lost)

    def _write_missing(
        self, missing: Mapping[str, Any], settings: GenerationSettings, store: CompletionStore, *, progress: bool
    ) -> None:
        """Ask for completions and keep each as it comes."""
        top = self.gives if self._gives(TOP) else None
        chat = self.settings.endpoint == "chat"
        more = {} if top is None else for_top(self.settings.endpoint, top.k)

        def ask(key: str, messages: list[dict[str, Any]]) -> Answer:
            return self._ask({**self._request(key, messages, settings), **more}, lambda c: read_top(c, chat=chat))

        def keep(key: str, answer: Answer) -> None:
            if top is not None:  # the line holds the completion too: neither is lost without the other
                said = answer.said if answer.said and answer.text else {"tokens": [], "alternatives": []}
                self.lines.add(self._line(key), {"text": answer.text, "finished": answer.finished, **said})
            store.add({key: Completion((), answer.finished, answer.text)})

        self._ask_all(missing, ask, keep, what="Teacher writes completions", progress=progress)

    def _ask_all(
        self,
        jobs: Mapping[str, Any],
        ask: Callable[[str, Any], Answer],
        keep: Callable[[str, Answer], None],
        *,
        what: str = "",
        progress: bool = False,
    ) -> None:
        """Ask within the run's budget and hand each answer on as it comes, with a progress bar."""
        if not jobs:
            return
        _ = self.connection.client  # a key that is missing is told before anything is sent
        with tqdm(total=len(jobs), desc=what, unit="row", disable=not progress) as bar:

            def came(key: str, answer: Answer) -> None:
                keep(key, answer)
                bar.set_postfix_str(self.spent.text(self.settings), refresh=False)
                bar.update()

            Asking(ask, self.settings, self.spent).run(jobs.items(), came)

    def _ask(self, request: dict[str, Any], read: Callable[[dict[str, Any]], Any]) -> Answer:
        """Ask once, and read the log-probabilities where they were asked for."""
        asked = any(name in request for name in ("logprobs", "prompt_logprobs"))
        return _read(self.connection.ask(request), chat="messages" in request, read=read if asked else None)

    @staticmethod
    def _kept(kept: int, of: int, what: str, path: Any) -> str:
        """Say how much of something is kept, and where."""
        return f"{kept:,} of {of:,} {what} are kept{'' if path is None else f' in {path}'}"

    def _end(self, error: DistillError, there: str, *, none: bool = False) -> NoReturn:
        """End with what happened, what is kept, and how to go on."""
        if isinstance(error, BudgetSpent):
            raise BudgetSpent(
                f"the teacher's budget is spent ({error}): {there}; the same command asks for the others with a budget "
                "of its own."
            ) from None
        if isinstance(error, TeacherError):
            raise TeacherError(f"{str(error).rstrip('.')}{'' if none else f'; {there}'}.") from None
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


def _read(body: str, *, chat: bool, read: Callable[[dict[str, Any]], Any] | None) -> Answer:
    """Return the answer in a response, and what `read` finds in its choice.

    Raises:
        Again: It is no JSON, or not of the form that it should have.
    """
    try:
        content = json.loads(body)
        choice = content["choices"][0]
        text = choice["message"]["content"] if chat else choice["text"]
        used = content.get("usage") or {}
        tokens = int(used.get("prompt_tokens") or 0), int(used.get("completion_tokens") or 0)
        reason = choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise Again(f"an answer that is no completion ({type(error).__name__})") from None
    if not isinstance(text, str):  # the model refused, or called a tool: there is nothing to learn
        return Answer("", False, *tokens)
    return Answer(text, reason == "stop", *tokens, None if read is None else read(choice))


