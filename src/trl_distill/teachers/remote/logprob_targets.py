"""A server's log-probabilities as targets: probed once, fetched once, stored as they arrive, and found by content.

Of the kind "prompt" a server scores given completions, whose ids it is sent. Of the kind "top" it gives them while it
writes: then they come with its own completions, and there are none of others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ...data.cross_tokenizer.token_bytes import token_bytes
from ...errors import TeacherError
from ...losses.signals import TopKSignal
from ...prompts.fitting import skipped_tokens
from ..completions.store import CompletionStore, JsonlStore, JsonObject, key_of
from ..target_store.folder import sequence_key
from .byte_matching import ByteMatcher
from .capabilities import LogprobSupport, other_token, probe
from .client import Server
from .logprob_format import PROMPT, TOP, prompt_request, read_prompt, read_top, top_fields
from .request_pool import Answer, RetryableError
from .scored_rows import Coverage, ScoredRow, batch_targets, pack, unknown

WITHOUT = "give --teacher-logprobs none to learn from its text alone"


class LogprobTargets:
    """A server's log-probabilities of completions.

    Args:
        server: The server.
        tokenizer: The student's.
        vocabulary: Returns the rows of the student's vocabulary.
    """

    def __init__(self, server: Server, tokenizer: PreTrainedTokenizerBase, vocabulary: Callable[[], int]) -> None:
        self.server, self.tokenizer, self._vocabulary = server, tokenizer, vocabulary
        self.support: LogprobSupport | None = None
        self.unsupported: list[str] = []  # why the server gives none
        self.store: JsonlStore[JsonObject] = JsonlStore(None)
        self._rows: dict[bytes, ScoredRow] = {}
        self._of_prompts: dict[str, list[JsonObject]] = {}

    @property
    def kind(self) -> str:
        """The kind of log-probabilities that are used; empty if there are none."""
        return "" if self.support is None else self.support.kind

    def probe(self, wanted: str, store: JsonlStore[JsonObject], question: Mapping[str, object]) -> list[str]:
        """Find out what log-probabilities the server gives, and return why it gives none of a kind.

        Its responses are kept in `store` and not requested again.

        Args:
            wanted: "auto", "prompt" or "top".
            store: Where log-probabilities are kept from one run to the next.
            question: A request for a few tokens of a completion.

        Raises:
            TeacherError: The server refuses the key or the model.
            DistillError: It does not answer, or the budget is spent.
        """
        self.store, self.unsupported = store, []
        settings = self.server.settings
        kinds = [kind for kind in (PROMPT, TOP) if wanted in ("auto", kind)]
        keys = {kind: key_of(self._identity(kind, settings.top_k), [settings.endpoint]) for kind in kinds}
        known = next((kind for kind in kinds if keys[kind] in store), None)
        if known is not None:
            self.support = LogprobSupport(known, int(store[keys[known]]["k"]))
            return []
        for kind in kinds:
            with self.server.reporting_kept([keys[kind]], JsonlStore(None), "answers", instead=WITHOUT):
                found = probe(self.server, kind, self.tokenizer, question)
            if isinstance(found, LogprobSupport):
                self.support = found
                store.add({keys[kind]: {"gives": kind, "k": found.k}})
                break
            self.unsupported.append(found)
        return self.unsupported

    def _identity(self, kind: str, k: int) -> JsonObject:
        """Return all that log-probabilities depend on except prompt and completion."""
        return {"url": self.server.url, "model": self.server.model, "kind": kind, "k": k}

    def fetch(self, rows: Iterable[Mapping[str, Any]], *, progress: bool = True) -> Coverage:
        """Fetch log-probabilities of completions, so that `targets` finds them; what is kept is not asked again.

        Args:
            rows: With `student_prompt`, `teacher_prompt`, `completion` (ids), and of `preparation` also `source`; if
                that is "teacher", `prompt_json` (the prompt), `text` (its completion) and `whole` (the completion's
                ids before any were cut).
            progress: Whether to show a progress bar.

        Raises:
            TeacherError: The server refuses, or has another tokenizer than the student.
            DistillError: It does not answer, or the budget is spent; the text says what is kept.
            KeyboardInterrupt: Ctrl-C; its text says where the answers are kept.
        """
        rows = list(rows)
        scored = self._score(rows, progress) if self.kind == PROMPT else [self._matched(row) for row in rows]
        known = tokens = 0
        for row, own in zip(rows, scored, strict=True):
            self._rows[sequence_key(row["teacher_prompt"], row["completion"])] = own
            supervised = own.known[skipped_tokens(row["student_prompt"], row["teacher_prompt"]) :]
            known, tokens = known + int(supervised.sum()), tokens + len(supervised)
        return Coverage(known, tokens)

    def targets(self, batch: Mapping[str, torch.Tensor]) -> TopKSignal:
        """Return what was fetched for a batch's completion tokens; raise TeacherError for a row that was not."""
        return batch_targets(self._row_of, batch, vocabulary=self._vocabulary())

    def _row_of(self, ids: list[int], count: int) -> ScoredRow:
        """Return the row of a sequence of whose last ids so many are targets."""
        # under an empty prompt of the student's the completion's first token is no target
        for prompt in (len(ids) - count, len(ids) - count - 1):
            row = self._rows.get(sequence_key(ids[:prompt], ids[prompt:])) if prompt >= 0 else None
            if row is not None:
                return row
        raise TeacherError(
            f"teacher_model {self.server.model!r} was not asked about the sequence "
            f"{self.tokenizer.decode(ids)!r:.120}; give the trainer rows that are not prepared yet."
        )

    def _score(self, rows: Sequence[Mapping[str, Any]], progress: bool) -> list[ScoredRow]:
        assert self.support is not None
        self.store.refresh()
        identity = self._identity(PROMPT, self.support.k)
        keys = [key_of(identity, [row["teacher_prompt"], row["completion"]]) for row in rows]
        with self.store.asking(keys) as absent:
            missing = {key: row for key, row in zip(keys, rows, strict=True) if key in absent}
            if missing:
                with self.server.reporting_kept(keys, self.store, "scored completions"):
                    self.server.send_all(
                        missing, self._send, self._keep, description="Teacher scores completions", progress=progress
                    )
        pairs = [
            [list(zip(*own, strict=True)) for own in zip(entry["ids"], entry["log_probs"], strict=True)]
            for entry in (self.store[key] for key in keys)
        ]
        return [pack(own, vocabulary=self._vocabulary()) for own in pairs]

    def _send(self, _: str, row: Mapping[str, Any]) -> Answer:
        assert self.support is not None
        ids, start, k = [*row["teacher_prompt"], *row["completion"]], len(row["teacher_prompt"]), self.support.k

        def read(choice: JsonObject) -> JsonObject:
            entry = read_prompt(choice, ids, start, k)
            if entry is None:
                raise RetryableError("an answer without log-probabilities")
            other = other_token(entry.pop("texts"), self.tokenizer)
            if other is not None:
                raise TeacherError(
                    f"teacher_model {self.server.model!r} cannot score the student's tokens "
                    f"({self.server.keys.hidden(other)}); choose another."
                )
            return entry

        return self.server.send(prompt_request(ids, k), read)

    def _keep(self, key: str, answer: Answer) -> None:
        self.store.add({key: answer.logprobs or {}})

    # what comes with the completions that it writes

    def fields(self) -> JsonObject:
        return top_fields(self.server.settings.endpoint, self.support.k) if self.support and self.kind == TOP else {}

    def read(self, choice: JsonObject) -> JsonObject | None:
        if self.support is None or self.kind != TOP:
            return None
        return read_top(choice, self.support.k, chat=self.server.settings.endpoint == "chat")

    def needs_logprobs(self, key: str) -> bool:
        """Whether a completion (by its key) has to be written for its log-probabilities."""
        return self.kind == TOP and self._line(key) not in self.store

    def keep_written(self, key: str, answer: Answer) -> None:
        """Keep a completion's log-probabilities; the line holds the completion too, so that neither is lost alone."""
        if self.kind == TOP:
            given = answer.logprobs if answer.completion.text else None
            logprobs = given or {"tokens": [], "alternatives": []}
            self.store.add({self._line(key): {**CompletionStore.to_line(answer.completion), **logprobs}})

    def recover(self, keys: Iterable[str], store: CompletionStore) -> None:
        """Put completions into their store that a kill has kept from it."""
        if self.kind != TOP:
            return
        self.store.refresh()
        there = {key: self.store[self._line(key)] for key in keys if key not in store and not self.needs_logprobs(key)}
        if there:
            store.add({key: CompletionStore.from_line(line) for key, line in there.items()})

    def remember(self, prompts: Sequence[object], keys: Sequence[str]) -> None:
        if self.kind == TOP:
            for prompt, key in zip(prompts, keys, strict=True):
                self._of_prompts.setdefault(json.dumps(prompt), []).append(self.store[self._line(key)])

    def _line(self, key: str) -> str:
        assert self.support is not None
        return key_of(self._identity(TOP, self.support.k), [key])

    def _matched(self, row: Mapping[str, Any]) -> ScoredRow:
        """Match the log-probabilities of a written completion to the student's tokens; there are none of others."""
        count = len(row["completion"])
        for entry in self._of_prompts.get(row["prompt_json"], []) if row.get("source") == "teacher" else []:
            reasoning = str(entry.get("reasoning", "")) if self.server.settings.reasoning == "keep" else ""
            if entry["text"] == row["text"]:
                return self._matcher.match(entry, row["whole"], reasoning).first(count)
        return unknown(count)

    @cached_property
    def _matcher(self) -> ByteMatcher:
        return ByteMatcher(token_bytes(self.tokenizer), self._vocabulary())
