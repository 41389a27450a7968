"""The targets of a server: found out, fetched once, kept as they come, and found again by content.

Of kind "prompt" a server scores given completions, whose ids it is sent. Of kind "top" it tells what it thinks while it
writes: then its completions come with it, and of others nothing is known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...data.cross_tokenizer.token_bytes import token_bytes
from ...errors import DistillError, TeacherError
from ...prompts.fitting import skipped_tokens
from ..completions.generate import saying_what_is_kept
from ..completions.jsonl_store import LineStore
from ..completions.store import CompletionStore, from_plain, key_of, plain
from ..target_store.folder import sequence_key
from .byte_matching import Matcher
from .capabilities import Found, check_same_tokens, find_prompt, find_top
from .client import Server, kept, written
from .logprob_format import PROMPT, TOP, for_prompt, for_top, read_prompt, read_top
from .request_pool import Again, Answer
from .scored_rows import Coverage, ScoredRow, nothing, pack, targets_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ...losses.signals import TopKTargets


class ServerTargets:
    """What a server says of completions.

    Args:
        server: Who is asked.
        tokenizer: The student's.
        vocabulary: Returns the rows of the student's vocabulary.
    """

    def __init__(self, server: Server, tokenizer: PreTrainedTokenizerBase, vocabulary: Callable[[], int]) -> None:
        self.server, self.tokenizer, self._vocabulary = server, tokenizer, vocabulary
        self.gives: Found | None = None
        self.reasons: list[str] = []  # why it gives none
        self.lines = LineStore(None)
        self._rows: dict[bytes, ScoredRow] = {}
        self._wrote: dict[str, list[dict[str, Any]]] = {}

    def is_kind(self, kind: str) -> bool:
        """Whether log-probabilities of this kind are used."""
        return self.gives is not None and self.gives.kind == kind

    def find(self, wanted: str, lines: LineStore, question: Mapping[str, Any]) -> list[str]:
        """Find out what log-probabilities the server gives, and return why it gives none of a kind.

        What it gives is kept in `lines` and not asked again.

        Args:
            wanted: "auto", "prompt" or "top".
            lines: Where log-probabilities are kept from one run to the next.
            question: A request for a few tokens of a completion.

        Raises:
            TeacherError: The server refuses the key or the model.
            DistillError: It does not answer, or the budget is spent.
        """
        self.lines, self.reasons = lines, []
        endpoint, k = self.server.settings.endpoint, self.server.settings.top_k
        kinds = [kind for kind in (PROMPT, TOP) if wanted in ("auto", kind)]
        keys = {kind: key_of(self._identity(kind, k), [endpoint]) for kind in kinds}
        known = [kind for kind in kinds if keys[kind] in lines]
        if known:
            self.gives = Found(known[0], int(lines[keys[known[0]]]["k"]))
            return []
        for kind in kinds:
            try:
                found = (
                    find_prompt(self.server.once, self.tokenizer, k)
                    if kind == PROMPT
                    else find_top(self.server.once, question, endpoint, k)
                )
            except DistillError as error:
                self.server.end(error, kept(0, 1, "answers about what it can do", None), none=True)
            if isinstance(found, Found):
                self.gives = found
                lines.add(keys[kind], {"gives": kind, "k": found.k})
                break
            self.reasons.append(found)
        return self.reasons

    def _identity(self, kind: str, k: int) -> dict[str, Any]:
        """Return all that log-probabilities depend on besides prompt and completion."""
        return {"url": self.server.url, "model": self.server.model, "kind": kind, "k": k}

    def take(self, rows: Iterable[Mapping[str, Any]], *, progress: bool = True) -> Coverage:
        """Fetch what the server says of completions, so that `targets` finds it; what is kept is not asked again.

        Args:
            rows: With `student_prompt`, `teacher_prompt`, `completion` (ids), and of `preparation` also `source`; if
                that is "teacher", `read` (the prompt, as JSON), `text` (its completion) and `whole` (the completion's
                ids before any were cut).
            progress: Whether to show a progress bar.

        Raises:
            TeacherError: The server refuses, or has another tokenizer than the student.
            DistillError: It does not answer, or the budget is spent; the text says what is kept.
            KeyboardInterrupt: Ctrl-C; its text says where what came is kept.
        """
        rows = list(rows)
        scored = self._score(rows, progress) if self.is_kind(PROMPT) else [self._matched(row) for row in rows]
        known = tokens = 0
        for row, said in zip(rows, scored, strict=True):
            self._rows[sequence_key(row["teacher_prompt"], row["completion"])] = said
            learnt = said.known[skipped_tokens(row["student_prompt"], row["teacher_prompt"]) :]
            known, tokens = known + int(learnt.sum()), tokens + len(learnt)
        return Coverage(known, tokens)

    def targets(self, batch: Mapping[str, torch.Tensor]) -> TopKTargets:
        """Return what was taken of a batch's completion tokens.

        Raises:
            TeacherError: A row that was not taken.
        """

        def missing(ids: list[int]) -> TeacherError:
            return TeacherError(
                f"teacher_model {self.server.model!r} was not asked about the sequence "
                f"{self.tokenizer.decode(ids)!r:.120}; give the trainer rows that are not prepared yet."
            )

        return targets_of(self._rows, batch, vocabulary=self._vocabulary(), missing=missing)

    def _score(self, rows: Sequence[Mapping[str, Any]], progress: bool) -> list[ScoredRow]:
        """Have given completions scored, each distinct sequence once."""
        assert self.gives is not None
        self.lines.refresh()
        identity = self._identity(PROMPT, self.gives.k)
        keys = [key_of(identity, [row["teacher_prompt"], row["completion"]]) for row in rows]
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in self.lines}
        if missing:
            with saying_what_is_kept(self.lines, keys, what="the teacher scored completions"):
                try:
                    what = "Teacher scores completions"
                    self.server.ask_all(missing, self._ask, self._keep, what=what, progress=progress)
                except DistillError as error:
                    there = sum(key in self.lines for key in keys)
                    told = kept(there, len(keys), "scored completions", self.lines.path)
                    self.server.end(error, told, none=not there)
        found = [self.lines[key] for key in keys]
        return [pack(entry["ids"], entry["log_probs"], vocabulary=self._vocabulary()) for entry in found]

    def _ask(self, _: str, row: Mapping[str, Any]) -> Answer:
        """Have one completion scored."""
        assert self.gives is not None
        ids, start, k = [*row["teacher_prompt"], *row["completion"]], len(row["teacher_prompt"]), self.gives.k

        def read(choice: dict[str, Any]) -> dict[str, Any]:
            entry = read_prompt(choice, ids, start, k)
            if entry is None:
                raise Again("an answer without log-probabilities")
            check_same_tokens(entry.pop("texts"), self.tokenizer, name=self.server.model)
            return entry

        return self.server.ask(for_prompt(ids, k), read)

    def _keep(self, key: str, answer: Answer) -> None:
        """Keep one completion's scores."""
        self.lines.add(key, answer.said)

    # what is said while it writes

    def fields(self) -> dict[str, Any]:
        """Return what a request for a completion asks for besides."""
        return for_top(self.server.settings.endpoint, self.gives.k) if self.gives and self.is_kind(TOP) else {}

    def read(self, choice: dict[str, Any]) -> dict[str, Any] | None:
        """Return what was said of a completion's tokens."""
        return read_top(choice, chat=self.server.settings.endpoint == "chat") if self.is_kind(TOP) else None

    def lacks(self, key: str) -> bool:
        """Whether a completion (by its key) is to be written for what is said of it."""
        return self.is_kind(TOP) and self._line(key) not in self.lines

    def keep_written(self, key: str, answer: Answer) -> None:
        """Keep what was said of a completion; the line holds the completion too, so that neither is lost alone."""
        if self.is_kind(TOP):
            said = answer.said if answer.said and answer.text else {"tokens": [], "alternatives": []}
            self.lines.add(self._line(key), {**plain(written(answer)), **said})

    def recover(self, keys: Iterable[str], store: CompletionStore) -> None:
        """Put completions into their store that a kill has kept from it."""
        if not self.is_kind(TOP):
            return
        self.lines.refresh()
        there = {key: self.lines[self._line(key)] for key in keys if key not in store and not self.lacks(key)}
        if there:
            store.add({key: from_plain(entry) for key, entry in there.items()})

    def note(self, prompts: Sequence[Any], keys: Sequence[str]) -> None:
        """Remember which completions were written for which prompts."""
        if self.is_kind(TOP):
            for prompt, key in zip(prompts, keys, strict=True):
                self._wrote.setdefault(json.dumps(prompt), []).append(self.lines[self._line(key)])

    def _line(self, key: str) -> str:
        """Return the key of what was said of a completion."""
        assert self.gives is not None
        return key_of(self._identity(TOP, self.gives.k), [key])

    def _matched(self, row: Mapping[str, Any]) -> ScoredRow:
        """Match what was said of a written completion to the student's tokens; of others nothing is known."""
        completion = list(row["completion"])
        entries = self._wrote.get(row["read"], []) if row.get("source") == "teacher" else []
        for entry in entries:
            thought = str(entry.get("reasoning", "")) if self.server.settings.reasoning == "keep" else ""
            if entry["text"] == row["text"]:
                return self._matcher.match(entry, row["whole"], thought).first(len(completion))
        return nothing(len(completion))

    @cached_property
    def _matcher(self) -> Matcher:
        """The student's tokens by their bytes."""
        return Matcher(token_bytes(self.tokenizer), self._vocabulary())
