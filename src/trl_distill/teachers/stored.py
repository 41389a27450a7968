"""A teacher that is not there: its targets come from a store, found by the content of prompt and completion."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..alignment import PROBE
from ..errors import TeacherError
from ..targets import TopKTargets
from .base import Completion, GenerationSettings
from .shards import TOKENIZER, TargetFolder, TargetRow, sequence_key

if TYPE_CHECKING:
    import os

    from transformers import PreTrainedTokenizerBase

# what a run must agree with a store on, in the order in which the first difference is named
COMPARED = ("teacher", "tokenizer", "teacher_prompt_template", "generation")


class StoredTeacher:
    """The reader of a store of targets; it loads no model.

    The whole store is in memory, 6 bytes (8 for vocabularies above 65,536 tokens) times k for each completion token.

    Args:
        folder: The store, complete.

    Raises:
        TeacherError: There is none, it is unfinished, of another format, or a file of it is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = TargetFolder(folder)
        self.manifest = self.folder.manifest()
        if not self.manifest["complete"]:
            raise TeacherError(f"{self.folder} is unfinished; go on with the same `aitraining teach` command.")
        self.folder.check(self.manifest)
        self.name = str(self.manifest["name"])
        self.vocabulary: int | None = int(self.manifest["vocabulary"])
        self.temperatures = tuple(float(t) for t in self.manifest["temperatures"])

    @cached_property
    def rows(self) -> dict[bytes, TargetRow]:
        """The store's rows by key."""
        size = {"k": self.manifest["k"], "temperatures": len(self.temperatures)}
        shards = (self.folder.read_shard(shard["name"], **size) for shard in self.manifest["shards"])
        return {row.key: row for rows in shards for row in rows}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The teacher's tokenizer, kept with the targets."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder.folder / TOKENIZER)

    @property
    def vocabulary_rows(self) -> int:
        """Rows of the teacher's LM head."""
        return int(self.manifest["vocabulary_rows"])

    @property
    def length_limit(self) -> int | None:
        """Tokens a sequence of the teacher's may have."""
        return self.manifest["length_limit"]

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end what the teacher writes."""
        return list(self.manifest["stop_ids"])

    def share(self, vocabulary: int) -> None:
        """Accept a student that has all the rows over which the targets were normalised.

        Raises:
            TeacherError: It has fewer.
        """
        if self.vocabulary is not None and vocabulary < self.vocabulary:
            raise TeacherError(
                f"{self.folder} has targets over {self.vocabulary} tokens and the student shares {vocabulary} of them; "
                "make a store for this student with `aitraining teach`."
            )

    def identity(self) -> dict[str, Any]:
        """Return the teacher's own, so that what it wrote is found by it."""
        return dict(self.manifest["teacher"])

    def check_matches(self, run: Mapping[str, Any]) -> None:
        """Refuse a run that the targets were not made for.

        Args:
            run: What the run has of `COMPARED`; what is left out is not compared.

        Raises:
            TeacherError: Naming the first difference.
        """
        check_same(self.folder, self.manifest, run, COMPARED)

    def check_temperature(self, temperature: float) -> None:
        """Refuse a temperature at which there is no log-normaliser.

        Raises:
            TeacherError: Naming those there are.
        """
        if temperature not in self.temperatures:
            known = ", ".join(f"{t:g}" for t in self.temperatures)
            raise TeacherError(
                f"{self.folder} has log-normalisers at the temperatures {known}, and distill_temperature is "
                f"{temperature:g}; train at one of them, or make a store with --temperatures {temperature:g}."
            )

    def check_rows(self, rows: Iterable[Mapping[str, Any]], *, name: str) -> None:
        """Refuse prepared rows that the store has no targets for.

        Args:
            rows: With `row`, `teacher_prompt` and `completion`.
            name: What to call the dataset in messages.

        Raises:
            TeacherError: Naming the first row.
        """
        for row in rows:
            if sequence_key(row["teacher_prompt"], row["completion"]) not in self.rows:
                raise TeacherError(
                    f"{self.folder} has no targets for {name}, row {row['row']}: its teacher's prompt or its "
                    "completion is another; make a store of this data with `aitraining teach`."
                )

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Refuse to write: completions that were written are in the store.

        Raises:
            TeacherError: Always.
        """
        raise TeacherError(
            f"{self.folder} has no completion for a prompt, {self.tokenizer.decode(list(prompts[0]))!r:.80}; make a "
            "store of this data and these settings with `aitraining teach`."
        )

    def score(self, batch: Mapping[str, torch.Tensor]) -> TopKTargets:
        """Return the stored targets at the batch's completion tokens.

        Raises:
            TeacherError: A row that is not in the store.
        """
        found = [
            self._find(ids[: int(mask.sum())].tolist(), labels)
            for ids, mask, labels in zip(
                *(batch[f"teacher_{name}"].cpu() for name in ("input_ids", "attention_mask", "labels")), strict=True
            )
        ]
        token_ids, log_probs, normalizers = (
            torch.from_numpy(
                np.concatenate([getattr(row, name)[len(row.token_ids) - n :].astype(kind) for row, n in found])
            )
            for name, kind in (("token_ids", np.int64), ("log_probs", np.float32), ("log_normalizers", np.float32))
        )
        by_temperature = {t: normalizers[:, i] for i, t in enumerate(self.temperatures)}
        return TopKTargets(token_ids, log_probs, by_temperature, int(self.manifest["vocabulary"]))

    def _find(self, ids: list[int], labels: torch.Tensor) -> tuple[TargetRow, int]:
        """Return a sequence's row and how many of its last tokens are asked for."""
        labelled = (labels != -100).nonzero()
        count = len(labelled)
        # under an empty prompt of the student's the completion's first token is no target
        for prompt in (len(ids) - count, len(ids) - count - 1):
            row = self.rows.get(sequence_key(ids[:prompt], ids[prompt:])) if prompt >= 0 else None
            if row is not None and count <= len(row.token_ids):
                return row, count
        raise TeacherError(
            f"{self.folder} has no targets for the sequence {self.tokenizer.decode(ids)!r:.120}; make a store of this "
            "data with `aitraining teach`."
        )


def check_same(folder: TargetFolder, manifest: Mapping[str, Any], run: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse a run whose settings are not those in a store's manifest.

    Raises:
        TeacherError: Naming the first difference, in the order of `names`.
    """
    for name in names:
        mine, theirs = run.get(name), manifest.get(name)
        if mine is None or theirs is None or mine == theirs:
            continue
        what, old, new = name, theirs, mine
        if isinstance(theirs, dict) and isinstance(mine, dict):
            key = next(key for key in sorted({*theirs, *mine}) if theirs.get(key) != mine.get(key))
            what, old, new = f"{name}'s {key}", theirs.get(key), mine.get(key)
        raise TeacherError(
            f"{folder} was made with another {what}: {_short(old)}, and this run has {_short(new)}; give the same, or "
            "make another store."
        )


def _short(value: Any) -> str:
    """Return a value as a sentence shows it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:60] + "..." + text[-17:]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what tells a tokenizer from others: tokens, special ids, chat template and how it splits a text."""
    content = [
        sorted(tokenizer.get_vocab().items()),
        sorted(tokenizer.all_special_ids),
        tokenizer.chat_template,
        list(tokenizer(PROBE)["input_ids"]),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
