"""A store of targets as the teacher: targets are found by the content of prompt and completion."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...config.devices import on_device
from ...errors import TeacherError
from ...losses import check_sparse_divergence
from ...models.batch_layout import layout_of
from ...models.generation import Completion, GenerationSettings
from ...prompts.chat_template import ChatTemplate
from ...prompts.shared_vocabulary import PROBE
from ..base import Capabilities
from .folder import HEAD, TOKENIZER, Manifest, TargetFolder, TargetRow, TargetTable, sequence_key
from .formats import format_of, padded_together
from .formats.hidden import load_head

if TYPE_CHECKING:
    import os

    import torch
    from transformers import PreTrainedTokenizerBase

    from ...losses.lm_head import LMHead
    from ...losses.settings import LossSettings
    from ...losses.signals import TeacherSignal

# what a run must agree with a store on, in the order in which the first difference is named
OF_GENERATION = {  # the settings of a run that `GenerationSettings` have other names for
    "max_new_tokens": "distill_max_teacher_length",
    "do_sample": "teacher_do_sample",
    "temperature": "teacher_sampling_temperature",
    "top_p": "teacher_top_p",
    "seed": "seed",
    "stop": "teacher_stop",
}
OF_RUN = {"kind": "teacher_store_kind", "k": "teacher_top_k", "temperatures": "teacher_temperatures"}
SHOWN, BEFORE = 80, 30  # characters of a value that differs, and those of them before the first that does
COMPARED = ("kind", "teacher", "tokenizer", "teacher_prompt_template", "teacher_system", "generation")


class StoredTeacher:
    """The reader of a complete store of targets; it loads no model.

    Rows are read from disk on demand; the index of their keys and, in the hidden format, the teacher's LM head are in
    memory.

    Raises:
        TeacherError: There is no store, it is unfinished, of another format, or a file of it is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = TargetFolder(folder)
        self.manifest = self.folder.manifest()
        if not self.manifest["complete"]:
            raise TeacherError(f"{self.folder} is unfinished; run the same `aitraining teach` command again to resume.")
        self.folder.check(self.manifest)
        self.name = str(self.manifest["name"])
        self.vocabulary: int | None = int(self.manifest["vocabulary"])
        settings = {name: self.manifest[name] for name in ("kind", "k", "temperatures", "vocabulary")}
        self.format = format_of(**settings)
        self._head: LMHead | None = None

    @property
    def capabilities(self) -> Capabilities:
        there = None if self.format.has_head else self.format.temperatures
        return Capabilities(
            dense=self.format.has_head, temperatures=there, scores_unseen=False, scores_gaps=False, writes=False
        )

    @property
    def kind(self) -> str:
        return self.format.name

    @cached_property
    def rows(self) -> TargetTable:
        return self.folder.rows(self.manifest)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder.path / TOKENIZER)  # nosec B615  # local

    @property
    def vocabulary_rows(self) -> int:
        return int(self.manifest["vocabulary_rows"])

    @property
    def length_limit(self) -> int | None:
        return self.manifest["length_limit"]

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end what the teacher writes; if the manifest does not say, those that its tokenizer knows."""
        return list(self.manifest.get("stop_ids") or ChatTemplate(self.tokenizer).end_tokens)

    def restrict_vocabulary(self, vocabulary: int) -> None:
        """Raise TeacherError for a student without all rows over which the targets were normalised."""
        if self.vocabulary is not None and vocabulary < self.vocabulary:
            raise TeacherError(
                f"{self.folder} has targets over {self.vocabulary} tokens and the student shares {vocabulary} of them; "
                "make a store for this student with `aitraining teach`."
            )

    def identity(self) -> dict[str, object]:
        return dict(self.manifest["teacher"])

    def check_matches(self, run: Mapping[str, Any]) -> None:
        """Raise TeacherError for the first setting in `COMPARED` that differs between run and store."""
        check_same(self.folder, self.manifest, run, COMPARED)

    def check_loss(self, loss: LossSettings) -> None:
        """Raise TeacherError for a temperature or a divergence that needs more than the targets hold."""
        there = self.capabilities.temperatures
        if there is None:
            return
        if loss.temperature not in there:
            known = ", ".join(f"{t:g}" for t in there)
            raise TeacherError(
                f"{self.folder} was written for the temperatures {known}, and distill_temperature is "
                f"{loss.temperature:g}; train at one of them, or make a store with --temperatures {loss.temperature:g}."
            )
        try:
            check_sparse_divergence(loss.divergence, self.format.name)
        except ValueError as error:
            raise TeacherError(f"distill_{error}") from None

    def check_rows(self, rows: Iterable[Mapping[str, Any]], *, name: str) -> None:
        """Raise TeacherError for the first prepared row that the store has no targets for."""
        for row in rows:
            if sequence_key(row["teacher_prompt"], row["completion"]) not in self.rows:
                raise TeacherError(
                    f"{self.folder} has no targets for {name}, row {row['row']}: its teacher's prompt or its "
                    "completion is another; make a store from this data with `aitraining teach`."
                )

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Raise TeacherError: only the completions in the store are known."""
        raise TeacherError(
            f"{self.folder} has no completion for a prompt, {self.tokenizer.decode(list(prompts[0]))!r:.80}; make a "
            f"store from this data and these settings with `aitraining teach`."
        )

    def score(self, batch: Mapping[str, Any]) -> TeacherSignal:
        """Return the stored targets at the batch's completion tokens; raise TeacherError for an unknown row."""
        side, device = layout_of(batch).teacher, batch["teacher_input_ids"].device
        assert side is not None
        found = [
            self._find(ids, int(count))
            for ids, count in zip(side.sequences, side.counts, strict=True)
            if count  # a row that another rank has too is scored there
        ] or [(self.rows.any(), 0)]
        arrays = {}
        for name in found[0][0].arrays:
            arrays[name] = _on_device(device, padded_together([row.arrays[name][row.tokens - n :] for row, n in found]))
        return self.format.decode(arrays, self._head_on(device))

    def _head_on(self, device: torch.device) -> LMHead | None:
        kept = None if self._head is None else self._head.weight
        if self.format.has_head and (kept is None or kept.device != device):
            self._head = load_head(self.folder.path / HEAD, device)
        return self._head

    def _find(self, ids: list[int], count: int) -> tuple[TargetRow, int]:
        # under an empty prompt of the student's the completion's first token is no target
        for prompt in (len(ids) - count, len(ids) - count - 1):
            row = self.rows.get(sequence_key(ids[:prompt], ids[prompt:])) if prompt >= 0 else None
            if row is not None and count <= row.tokens:
                return row, count
        raise TeacherError(
            f"{self.folder} has no targets for the sequence {self.tokenizer.decode(ids)!r:.120}; make a store of this "
            "data with `aitraining teach`."
        )


def _on_device(device: torch.device, array: np.ndarray) -> torch.Tensor:
    """Return an array on a device; token ids and counts as int64, since torch computes little with unsigned ones."""
    return on_device(array.astype(np.int64) if array.dtype.kind == "u" else array, device)


def check_same(folder: TargetFolder, manifest: Manifest, run: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise TeacherError for the first setting in `names` that differs between a run and a store's manifest."""
    for name in names:
        mine, theirs = run.get(name), manifest.get(name)
        if mine is None or theirs is None or mine == theirs:
            continue
        if name == "sequences":
            raise TeacherError(
                f"{folder} was made from other rows ({theirs['count']:,} different sequences, and this run has "
                f"{mine['count']:,}); give the same rows, or make another store."
            )
        what, old, new = OF_RUN.get(name, name), theirs, mine
        if isinstance(theirs, dict) and isinstance(mine, dict):
            key = next(key for key in sorted({*theirs, *mine}) if theirs.get(key) != mine.get(key))
            what = OF_GENERATION[key] if name == "generation" and key in OF_GENERATION else f"{name}'s {key}"
            old, new = theirs.get(key), mine.get(key)
        if name == "teacher_prompt_template":
            old, new = _written(str(theirs)), _written(str(mine))
        one, other = _shown(old, new)
        raise TeacherError(
            f"{folder} was made with another {what}: {one}, and this run has {other}; give the same, or make another "
            "store."
        )


def _written(content: str) -> str:
    """Return the content of a template (`PromptTemplate.content`) as a user writes it; as it is if it is none."""
    try:
        messages = [(role, [*pieces]) for role, pieces in json.loads(content)]
        texts = ["".join(f"{{{p}}}" if k % 2 else p for k, p in enumerate(pieces)) for _, pieces in messages]
    except (ValueError, TypeError, RecursionError):
        return content
    return "\n".join(f"{role}: {text}" if role else text for (role, _), text in zip(messages, texts, strict=True))


def _shown(old: object, new: object) -> tuple[str, str]:
    """Return two values as a message shows them; long ones from a little before their first difference."""
    texts = repr(old), repr(new)
    first = next((place for place, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), 0)
    start = max(first - BEFORE, 0) if max(map(len, texts)) > SHOWN else 0
    end = start + SHOWN
    before = "..." if start else ""
    one, other = (f"{before}{text[start:end]}{'...' if end < len(text) else ''}" for text in texts)
    return one, other


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a tokenizer's fingerprint: tokens, special ids, chat template and how it splits a text."""
    content = [
        sorted(tokenizer.get_vocab().items()),
        sorted(tokenizer.all_special_ids),
        tokenizer.chat_template,
        list(tokenizer(PROBE)["input_ids"]),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
