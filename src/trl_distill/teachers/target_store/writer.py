"""Writes a store of targets: each distinct sequence once, a batch at a time, resumable after a kill.

Shard i has the sequences i * ROWS to (i + 1) * ROWS of the data in its order, scored in batches of fixed rows, so that
a resumed store is byte by byte the one that an uninterrupted run writes. A batch is kept as soon as it is scored; when
all of a shard are there, they become the shard.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field

import numpy as np
from tqdm.auto import tqdm

from ...data.atomic_file import flush_all, fresh_folder, remove
from ...data.collator import DistillationCollator
from ...data.row_report import numbered
from ...errors import TeacherError, printable
from ...losses.signals import DenseSignal
from ...models.out_of_memory import doing
from ..base import Teacher
from ..completions.engines.selection import VLLM_ALONE, Batches
from ..completions.store import CompletionStore
from ..local.teacher import LocalTeacher
from ..not_finite import numerical_remedy
from .folder import COMPLETIONS, DATE, FORMAT, HEAD, TOKENIZER, Manifest, TargetFolder, TargetRow, sequence_key
from .formats import Span, TargetFormat, format_of
from .formats.base import Arrays
from .formats.hidden import save_head
from .reader import check_same, tokenizer_hash
from .vllm_scores import Row, VLLMScores, why_unlike

ROWS = 256  # sequences of a shard
FIXED = (
    *("kind", "teacher", "tokenizer", "teacher_prompt_template", "teacher_system", "generation"),
    *("k", "temperatures", "sequences"),
)


@dataclass(frozen=True)
class TargetSettings:
    """What to store.

    Attributes:
        k: Tokens of each distribution, at most the shared vocabulary; draws with the kind "sample".
        temperatures: Those the targets can be used at; "hidden" has all.
        made_with: Prompts and generation settings of the rows, by their names in the manifest.
        batch_size: Sequences scored at a time: what a kill costs.
        kind: "topk", "sample" or "hidden", see `formats`.
        engine: The engine: "vllm" if its log-probabilities can be stored (see `why_unlike`), else transformers. A
            store may be resumed with another engine.
    """

    k: int
    temperatures: tuple[float, ...]
    made_with: Mapping[str, object] = field(default_factory=dict)
    batch_size: int = 16
    kind: str = "topk"
    engine: str = "auto"


def write_targets(
    teacher: Teacher, rows: Iterable[Row], folder: TargetFolder, settings: TargetSettings, *, progress: bool = True
) -> int:
    """Write what is missing of a store and return how many shards were made.

    Args:
        teacher: The teacher; its vocabulary is already restricted to the student's.
        rows: Prepared rows, with `teacher_prompt` and `completion`; equal ones are stored once.
        folder: Where to.
        settings: What to store.
        progress: Whether to show a progress bar.

    Raises:
        TeacherError: A folder of something else, a store made with other settings, a damaged shard, an LM head to
            keep that does not give the teacher's logits, or vLLM failed.
    """
    sequences = {sequence_key(row["teacher_prompt"], row["completion"]): row for row in rows}
    format_ = _format_for(teacher, settings)
    vocabulary = format_.vocabulary
    header = _header(teacher, list(sequences), settings, format_)
    by_vllm = settings.engine == VLLM_ALONE and _suits_vllm(teacher, format_, progress=progress)
    if not by_vllm and not folder.begun and isinstance(teacher, LocalTeacher):
        _check_logits(teacher, format_, progress=progress)
    manifest = _resumed_manifest(folder, header)
    _keep_tokenizer(folder, teacher)
    done = {shard["name"]: shard for shard in manifest["shards"]}
    todo = list(sequences.items())
    made = 0
    vllm = None
    if by_vllm:
        vllm = VLLMScores(teacher, format_, [row for i, (_, row) in enumerate(todo) if _shard(i // ROWS) not in done])
    elif isinstance(teacher, LocalTeacher):
        teacher.expect_prompts([row["teacher_prompt"] for row in sequences.values()])
    with (
        doing("scoring completions"),
        tqdm(total=len(todo), desc="Teacher scores", unit="row", disable=not progress) as bar,
        nullcontext() if vllm is None else closing(vllm),
    ):
        scorer = _Scorer(teacher, format_, folder, settings.batch_size, bar, vllm)
        for i, start in enumerate(range(0, len(todo), ROWS)):
            name, part = _shard(i), todo[start : start + ROWS]
            if name in done:
                bar.update(len(part))
                continue
            content = list(scorer.rows(name, part))
            checksum = folder.write_shard(name, content, vocabulary=vocabulary)
            tokens = sum(row.tokens for row in content)
            shard = {"name": name, "rows": len(part), "tokens": tokens, "sha256": checksum}
            done[name] = {**shard, "engine": scorer.engine}
            folder.write_manifest({**header, "shards": _in_order(done), "files": {}, "complete": False})
            folder.discard_parts(name)
            made += 1
        if todo and format_.has_head and not (folder.path / HEAD).is_file():
            scorer.ask(todo[: settings.batch_size])  # it went missing while all shards stayed
    _finish(folder, {**header, "shards": _in_order(done)})
    return made


def check_resumable(teacher: Teacher, folder: TargetFolder, settings: TargetSettings) -> None:
    """Refuse to resume a store with other settings than it was begun with, before the teacher writes completions.

    Args:
        teacher: The teacher; its vocabulary is already restricted to the student's.
        folder: A store that has been begun; its rows are compared later, by `write_targets`.
        settings: What to store.

    Raises:
        TeacherError: Naming the first setting that differs.
    """
    header = _header(teacher, [], settings, _format_for(teacher, settings))
    check_same(folder, folder.manifest(), _as_read(header), [name for name in FIXED if name != "sequences"])


def _format_for(teacher: Teacher, settings: TargetSettings) -> TargetFormat:
    vocabulary = teacher.vocabulary_rows if teacher.vocabulary is None else teacher.vocabulary
    return format_of(settings.kind, k=settings.k, temperatures=settings.temperatures, vocabulary=vocabulary)


def _as_read(header: Manifest) -> Manifest:
    """Return a manifest as JSON gives it back: tuples are lists."""
    return dict(json.loads(json.dumps(header)))


def _suits_vllm(teacher: Teacher, format_: TargetFormat, *, progress: bool) -> bool:
    why = why_unlike(teacher, format_)
    if why is not None and progress:
        tqdm.write(printable(f"Targets are computed by transformers, not by vLLM: {why}."), file=sys.stdout)
    return why is None


def _check_logits(teacher: LocalTeacher, format_: TargetFormat, *, progress: bool) -> None:
    """Say once where a teacher's logits come from; raise TeacherError if the LM head to keep does not give them."""
    line = teacher.check_logits()
    if line and format_.has_head:
        raise TeacherError(
            f"teacher {teacher.name!r} has logits that its LM head alone does not compute, and targets of the kind "
            f"{format_.name} are hidden states and that head; store the kind topk or sample."
        )
    if line and progress:
        tqdm.write(printable(line), file=sys.stdout)


def _shard(number: int) -> str:
    return f"shard-{number:05d}.parquet"


def _in_order(shards: Manifest) -> list[Manifest]:
    return [shards[name] for name in sorted(shards)]


def _header(teacher: Teacher, keys: Sequence[bytes], settings: TargetSettings, format_: TargetFormat) -> Manifest:
    """Return all of the manifest that is known before anything is scored."""
    return {
        **format_.header(),
        "format": FORMAT,
        "name": teacher.name,
        "revision": getattr(getattr(teacher, "config", None), "_commit_hash", None),
        "teacher": teacher.identity(),
        "vocabulary": format_.vocabulary,
        "vocabulary_rows": teacher.vocabulary_rows,
        "length_limit": teacher.length_limit,
        "stop_ids": teacher.stop_ids,
        "tokenizer": tokenizer_hash(teacher.tokenizer),
        **settings.made_with,
        "sequences": {"count": len(keys), "sha256": hashlib.sha256(b"".join(keys)).hexdigest()},
    }


def _resumed_manifest(folder: TargetFolder, header: Manifest) -> Manifest:
    """Return the manifest to resume from, without the shards that are missing."""
    empty = {**header, "shards": [], "files": {}, "complete": False}
    if folder.begun:
        manifest = folder.manifest()
        check_same(folder, manifest, _as_read(header), FIXED)
        there = [shard for shard in manifest["shards"] if (folder.path / shard["name"]).is_file()]
        manifest = {**manifest, "shards": there, "files": {}}
        folder.check(manifest)
        return manifest
    known = ("shard-", COMPLETIONS, TOKENIZER, HEAD, DATE, ".")
    foreign = sorted(p.name for p in folder.path.glob("*") if not p.name.startswith(known))
    if foreign:
        raise TeacherError(f"{folder} holds {foreign[0]!r}, which does not belong to a store; give another folder.")
    folder.discard_parts()  # their settings are not known
    (folder.path / HEAD).unlink(missing_ok=True)
    folder.write_manifest(empty)
    return empty


def _finish(folder: TargetFolder, content: Manifest) -> None:
    if (folder.path / COMPLETIONS).is_file():
        CompletionStore(folder.path / COMPLETIONS).settle()
    tokenizer = sorted((folder.path / TOKENIZER).iterdir())
    beside = [COMPLETIONS, HEAD, *(f"{TOKENIZER}/{path.name}" for path in tokenizer)]
    files = {name: folder.checksum(name) for name in beside if (folder.path / name).is_file()}
    folder.discard_parts()
    folder.write_manifest({**content, "files": files, "complete": True})


def _keep_tokenizer(folder: TargetFolder, teacher: Teacher) -> None:
    """Save the teacher's tokenizer into the store, whole or not at all."""
    target, temporary = folder.path / TOKENIZER, fresh_folder(folder.path / f".{TOKENIZER}.writing")
    teacher.tokenizer.save_pretrained(temporary)
    flush_all(temporary)
    remove(target)
    temporary.rename(target)


@dataclass(frozen=True)
class _Scorer:
    """Scores the sequences of shards with a teacher, and keeps each batch until its shard is written."""

    teacher: Teacher
    format: TargetFormat
    folder: TargetFolder
    batch_size: int
    bar: tqdm[None]
    vllm: VLLMScores | None

    @property
    def engine(self) -> str:
        return Batches.name if self.vllm is None else self.vllm.name

    def rows(self, shard: str, sequences: Sequence[tuple[bytes, Row]]) -> Iterator[TargetRow]:
        """Yield the targets of a shard's sequences; batches that the same engine has scored are read."""
        kept = f"{shard}.{self.engine}"
        for number, start in enumerate(range(0, len(sequences), self.batch_size)):
            batch = sequences[start : start + self.batch_size]
            rows = self.folder.read_part(kept, number)
            if [row.key for row in rows] != [key for key, _ in batch]:
                rows = self._score(batch)
                self.folder.write_part(kept, number, rows, vocabulary=self.format.vocabulary)
            self.bar.update(len(batch))
            yield from rows

    def _score(self, batch: Sequence[tuple[bytes, Row]]) -> list[TargetRow]:
        spans = [Span(key, len(row["completion"]) - (not row["teacher_prompt"])) for key, row in batch]
        if self.vllm is None:
            arrays = self.format.encode(self.ask(batch), spans)
        else:
            arrays = self.vllm.encode([row for _, row in batch])
        self._check(arrays, spans, [row for _, row in batch])
        rows, end = [], 0
        for span, (key, row) in zip(spans, batch, strict=True):
            begin, end = end, end + span.tokens
            own = {name: array[begin:end] for name, array in arrays.items()}
            rows.append(TargetRow(key, np.asarray(row["completion"]), own))
        return rows

    def _check(self, arrays: Arrays, spans: Sequence[Span], rows: Sequence[Row]) -> None:
        """Raise TeacherError for targets that are NaN or infinite, before any of their batch is kept."""
        if not any(span.tokens for span in spans):
            return
        of_token = np.repeat(np.arange(len(spans)), [span.tokens for span in spans])
        bad = np.unique(of_token[self.format.unusable(arrays)])
        if len(bad):
            numbers = [int(rows[i]["row"]) for i in bad if "row" in rows[i]]
            where = f" at {numbered(numbers)} of the data" if numbers else ""
            raise TeacherError(
                f"teacher {self.teacher.name!r}: its log-probabilities are NaN or infinite{where}, and are not stored; "
                f"{numerical_remedy(self.teacher)}, into another store."
            )

    def ask(self, batch: Sequence[tuple[bytes, Row]]) -> DenseSignal:
        """Have the teacher score a batch; save its head if that belongs to the targets and is not there yet."""
        sides = [{**row, "student_prompt": row["teacher_prompt"]} for _, row in batch]  # the teacher's alone counts
        collate = DistillationCollator(pad_token_id=self.teacher.tokenizer.pad_token_id or 0)
        scored = self.teacher.score(collate(sides))
        if not isinstance(scored, DenseSignal):
            raise TeacherError(f"{self.teacher.name} gives no full distribution; store the targets of a local model.")
        path = self.folder.path / HEAD
        if self.format.has_head and not path.is_file():
            save_head(scored.head, path, rows=self.format.vocabulary)
        return scored
