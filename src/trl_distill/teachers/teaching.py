"""Writes a store of targets: each distinct sequence once, a shard at a time, to be gone on with after a kill.

Shard i has the sequences i * ROWS to (i + 1) * ROWS of the data in its order, scored in batches of a fixed make-up, so
that a store that was gone on with is byte by byte the one that an uninterrupted run writes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..collator import DistillationCollator
from ..errors import TeacherError
from ..losses import head_logits
from ..targets import HiddenTargets
from .base import Teacher
from .shards import COMPLETIONS, FORMAT, TOKENIZER, TargetFolder, TargetRow, sequence_key
from .store import CompletionStore
from .stored import check_same, tokenizer_hash

ROWS = 256  # sequences of a shard: what a kill costs at most
CHUNK = 512  # tokens whose full logits are in memory at a time
FIXED = ("teacher", "tokenizer", "teacher_prompt_template", "generation", "k", "temperatures", "sequences")


@dataclass(frozen=True)
class TargetSettings:
    """What to store.

    Attributes:
        k: Tokens of each distribution, at most the shared vocabulary.
        temperatures: Those the targets can be used at.
        teacher_prompt_template: The teacher's template as it was given, to tell a store from another.
        generation: How completions were written, for the same.
        batch_size: Sequences scored at a time.
    """

    k: int
    temperatures: tuple[float, ...]
    teacher_prompt_template: str
    generation: Mapping[str, Any]
    batch_size: int = 16


def write_targets(
    teacher: Teacher,
    rows: Iterable[Mapping[str, Any]],
    folder: TargetFolder,
    settings: TargetSettings,
    *,
    progress: bool = True,
) -> int:
    """Write what is missing of a store and return how many shards were made.

    Args:
        teacher: Who scores; its vocabulary is shared with the student already.
        rows: Prepared rows, with `teacher_prompt` and `completion`; equal ones are stored once.
        folder: Where to.
        settings: What to store.
        progress: Whether to show a progress bar.

    Raises:
        TeacherError: A folder of something else, a store made with other settings, or a damaged shard.
    """
    sequences = {sequence_key(row["teacher_prompt"], row["completion"]): row for row in rows}
    header = _header(teacher, list(sequences), settings)
    manifest = _begin(folder, header)
    _keep_tokenizer(folder, teacher)
    done = {shard["name"]: shard for shard in manifest["shards"]}
    todo = list(sequences.items())
    starts = range(0, len(todo), ROWS)
    made = 0
    with tqdm(total=len(todo), desc="Teacher scores", unit="row", disable=not progress) as bar:
        for i, start in enumerate(starts):
            name, part = f"shard-{i:05d}.parquet", todo[start : start + ROWS]
            if name not in done:
                content = list(_score(teacher, part, settings, bar))
                checksum = folder.write_shard(name, content, vocabulary=header["vocabulary"])
                tokens = sum(len(row.token_ids) for row in content)
                done[name] = {"name": name, "rows": len(part), "tokens": tokens, "sha256": checksum}
                folder.write_manifest({**header, "shards": _in_order(done), "files": {}, "complete": False})
                made += 1
            else:
                bar.update(len(part))
    if (folder.folder / COMPLETIONS).is_file():
        CompletionStore(folder.folder / COMPLETIONS).settle()
    beside = [COMPLETIONS, *(f"{TOKENIZER}/{path.name}" for path in sorted((folder.folder / TOKENIZER).iterdir()))]
    files = {name: folder.checksum(name) for name in beside if (folder.folder / name).is_file()}
    folder.write_manifest({**header, "shards": _in_order(done), "files": files, "complete": True})
    return made


def _in_order(shards: Mapping[str, Any]) -> list[Any]:
    return [shards[name] for name in sorted(shards)]


def _header(teacher: Teacher, keys: Sequence[bytes], settings: TargetSettings) -> dict[str, Any]:
    """Return all of the manifest that is known before anything is scored."""
    vocabulary = teacher.vocabulary_rows if teacher.vocabulary is None else teacher.vocabulary
    return {
        "format": FORMAT,
        "kind": "topk",
        "name": teacher.name,
        "teacher": teacher.identity(),
        "vocabulary": vocabulary,
        "vocabulary_rows": teacher.vocabulary_rows,
        "length_limit": teacher.length_limit,
        "stop_ids": teacher.stop_ids,
        "tokenizer": tokenizer_hash(teacher.tokenizer),
        "teacher_prompt_template": settings.teacher_prompt_template,
        "generation": dict(settings.generation),
        "k": min(settings.k, vocabulary),
        "temperatures": list(settings.temperatures),
        "sequences": {"count": len(keys), "sha256": hashlib.sha256(b"".join(keys)).hexdigest()},
    }


def _begin(folder: TargetFolder, header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest to go on from, without the shards that are missing."""
    empty = {**header, "shards": [], "files": {}, "complete": False}
    if folder.begun:
        manifest = folder.manifest()
        check_same(folder, manifest, _plain(header), FIXED)
        there = [shard for shard in manifest["shards"] if (folder.folder / shard["name"]).is_file()]
        manifest = {**manifest, "shards": there, "files": {}}
        folder.check(manifest)
        return manifest
    known = ("shard-", COMPLETIONS, TOKENIZER, ".")
    foreign = sorted(p.name for p in folder.folder.glob("*") if not p.name.startswith(known))
    if foreign:
        raise TeacherError(f"{folder} holds {foreign[0]!r}, which is of no store; give another folder.")
    folder.write_manifest(empty)
    return empty


def _plain(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return a header as it reads after JSON: tuples are lists there."""
    return dict(json.loads(json.dumps(header)))


def _keep_tokenizer(folder: TargetFolder, teacher: Teacher) -> None:
    """Save the teacher's tokenizer into the store, whole or not at all."""
    target, temporary = folder.folder / TOKENIZER, folder.folder / f".{TOKENIZER}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    teacher.tokenizer.save_pretrained(temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def _score(
    teacher: Teacher, part: Sequence[tuple[bytes, Mapping[str, Any]]], settings: TargetSettings, bar: Any
) -> Iterator[TargetRow]:
    """Yield the targets of a shard's sequences."""
    pad = teacher.tokenizer.pad_token_id
    collate = DistillationCollator(pad_token_id=0 if pad is None else pad)
    for start in range(0, len(part), settings.batch_size):
        batch = part[start : start + settings.batch_size]
        sides = [{**row, "student_prompt": row["teacher_prompt"]} for _, row in batch]  # the teacher's alone counts
        scored = teacher.score(collate(sides))
        if not isinstance(scored, HiddenTargets):
            raise TeacherError(f"{teacher.name} gives no full distribution; store the targets of a local model.")
        arrays = topk_arrays(scored, k=settings.k, temperatures=settings.temperatures)
        end = 0
        for key, row in batch:
            begin, end = end, end + len(row["completion"]) - (not row["teacher_prompt"])
            yield TargetRow(key, np.asarray(row["completion"]), *(array[begin:end] for array in arrays))
        bar.update(len(batch))


@torch.no_grad()
def topk_arrays(
    scored: HiddenTargets, *, k: int, temperatures: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return token ids [N, k], float16 log-probabilities [N, k] and float32 log-normalisers [N, m].

    A normaliser is that of the rounded log-probabilities: with it their mass at T, and so the tail's, is the exact
    one, and rounding moves mass among the stored tokens alone.

    Args:
        scored: The teacher's hidden states and head.
        k: Tokens to keep; all of the vocabulary where that is smaller.
        temperatures: The m temperatures T.
    """
    head, parts = scored.head, []
    rows = len(head.weight) if scored.vocabulary is None else scored.vocabulary
    bias = None if head.bias is None else head.bias[:rows]
    for hidden in scored.hidden.split(CHUNK):
        hidden = hidden.to(head.weight.dtype)
        logits = head_logits(hidden, head.weight[:rows], bias, softcap=head.softcap, scale=head.scale).float()
        values, ids = logits.log_softmax(-1).topk(min(k, rows))
        rounded = values.half().double()
        normalizers = []
        for temperature in temperatures:
            softened = (logits / temperature).double()
            mass = torch.logsumexp(softened.gather(1, ids), 1) - torch.logsumexp(softened, 1)  # log of the stored mass
            normalizers.append(torch.logsumexp(rounded / temperature, 1) - mass)
        parts.append((ids, values.half(), torch.stack(normalizers, 1).float()))
    first, second, third = (torch.cat(tensors).cpu().numpy() for tensors in zip(*parts, strict=True))
    return first, second, third
