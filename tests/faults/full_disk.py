"""Fills the disk while a run writes, at different moments, and looks at what is said, what is left and what resumes.

    python tests/faults/full_disk.py --folder /tmp/faults [--long]

Each run is a process of its own, forked from one that has the libraries loaded, in which no file may get larger than a
limit; the same command without the limit has to end in the uninterrupted student or store, byte by byte. `--long` tries
30 limits, and a file system of 1 MB if it may mount one. Ends with exit code 1 at the first difference.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from _forks import arguments, fork, run_and_exit  # first: sets the environment
from conftest import make_model

from trl_distill.cli import main

ROWS = 16
ERROR = "aitraining: error: "


def run(command: str, *, limit: int | None = None) -> tuple[int, str]:
    """Run a command in a fork and return its exit code and its output; no file gets larger than `limit` bytes."""
    reader, writer = os.pipe()
    child = fork(longest=120)
    if not child:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.close(reader)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        run_and_exit(partial(main, command.split()))
    os.close(writer)
    with os.fdopen(reader, errors="replace") as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def expect(fact: object, said: str) -> None:
    """End the script with what a run said if a fact does not hold."""
    if not fact:
        sys.exit(f"unexpected (line {sys._getframe(1).f_lineno}):\n{said[-3000:]}")


def error_of(command: str, *, limit: int) -> str:
    """Run a command that fails, and return its one sentence."""
    code, said = run(command, limit=limit)
    errors = [line for line in said.splitlines() if line.startswith(ERROR)]
    expect(code == 1 and len(errors) == 1 and "Traceback" not in said, f"exit code {code}\n{said}")
    return errors[0]


def llm(folder: Path, project: str) -> str:
    return (
        f"llm --model {folder}/student --teacher-model {folder}/teacher --data-path {folder}/data.jsonl --resume "
        f"--teacher-prompt-template e{{input}} --project-name {folder}/{project} --max-steps 6 --lr 1e-2 "
        "--batch-size 2 --gradient-accumulation 1 --save-strategy steps --save-steps 2 --distill-max-teacher-length 8 "
        "--teacher-batch-size 1"
    )


def teach(folder: Path, store: str) -> str:
    return (
        f"teach --model {folder}/student --teacher-model {folder}/teacher --data-path {folder}/data.jsonl "
        f"--teacher-prompt-template e{{input}} --output {folder}/{store} --distill-max-teacher-length 8 "
        "--teacher-batch-size 4"
    )


def nothing_partial(folder: Path) -> None:
    """Fail if a file or a checkpoint was left that is not complete."""
    partial = [path for path in folder.rglob("*") if ".writing" in path.name]
    for checkpoint in folder.glob("checkpoints/checkpoint-*"):
        partial += [] if json.loads((checkpoint / "checksums.json").read_text()) else [checkpoint]
    for path in folder.glob("*.jsonl"):
        partial += [] if path.read_bytes().endswith(b"\n") else [path]
    expect(not partial, f"{partial}")


def resumes(command: str, folder: Path, *names: str) -> None:
    """Run a command without a limit, and compare a file with the uninterrupted one."""
    code, said = run(command)
    expect(code == 0, said)
    whole, found = (path.read_bytes() for path in (folder / names[0], folder / names[1]))
    expect(whole == found, f"{names[1]} is another file")


def in_completions(folder: Path) -> None:
    """While the teacher writes, its completions are kept, whole lines alone."""
    error = error_of(llm(folder, "a"), limit=1000)
    expect(
        re.search(r"teacher_completions\.jsonl' could not be written, .* kept in '.*': \d+ completions; ", error), error
    )
    expect(error.endswith("make room, then run the same again and add --resume to continue."), error)
    nothing_partial(folder / "a")
    resumes(llm(folder, "a"), folder, "whole/model.safetensors", "a/model.safetensors")


def in_weights(folder: Path) -> None:
    """In the weights of a checkpoint, by safetensors."""
    size = (folder / "whole" / "model.safetensors").stat().st_size
    error = error_of(llm(folder, "b"), limit=size - 1000)
    expect(re.search(r"checkpoint-2/.*' could not be written, .* kept in '.*': 16 completions; ", error), error)
    expect(not list((folder / "b" / "checkpoints").glob("checkpoint-*")), error)
    nothing_partial(folder / "b")
    resumes(llm(folder, "b"), folder, "whole/model.safetensors", "b/model.safetensors")


def in_optimizer(folder: Path) -> None:
    """In the state of the optimizer, by torch."""
    size = (folder / "whole" / "model.safetensors").stat().st_size
    error = error_of(llm(folder, "c"), limit=size + 1000)
    expect("checkpoint-2/optimizer.pt' could not be written" in error, error)
    nothing_partial(folder / "c")
    resumes(llm(folder, "c"), folder, "whole/model.safetensors", "c/model.safetensors")


def in_result(folder: Path) -> None:
    """In the result: the last checkpoint is kept."""
    size = (folder / "whole" / "model.safetensors").stat().st_size
    code, said = run(llm(folder, "d").replace("--max-steps 6", "--max-steps 4"))
    expect(code == 0, said)
    (folder / "d" / "model.safetensors").rename(folder / "four-steps.safetensors")
    (folder / "d" / "run.json").unlink()
    (folder / "d" / ".unfinished").write_text("{}\n")
    error = error_of(llm(folder, "d").replace("--max-steps 6", "--max-steps 4"), limit=size - 1000)
    expect("': checkpoint-4, 16 completions; make room" in error, error)
    nothing_partial(folder / "d")
    command = llm(folder, "d").replace("--max-steps 6", "--max-steps 4")
    resumes(command, folder, "four-steps.safetensors", "d/model.safetensors")  # without a further step


def in_store(folder: Path) -> None:
    """In a store of targets."""
    error = error_of(teach(folder, "e"), limit=1500)
    expect("could not be written" in error and error.endswith("run the same command again to continue."), error)
    nothing_partial(folder / "e")
    resumes(teach(folder, "e"), folder, "store/shard-00000.parquet", "e/shard-00000.parquet")


def in_export(folder: Path) -> None:
    """In an export, of which nothing is left."""
    size = (folder / "whole" / "model.safetensors").stat().st_size
    command = f"export {folder}/whole --to merged --output {folder}/exported"
    error = error_of(command, limit=size - 1000)
    expect("could not be written" in error, error)
    expect(not (folder / "exported").exists() and not list(folder.glob(".exported*")), error)


def before_loading(folder: Path) -> None:
    """A disk with too little space is refused with both figures before a model loads; needs no limit."""
    big = folder / "big"
    make_model(big, hidden=32)
    config = json.loads((big / "config.json").read_text())
    (big / "config.json").write_text(json.dumps({**config, "intermediate_size": 2**27, "num_hidden_layers": 100}))
    code, said = run(llm(folder, "f").replace(f"{folder}/student", str(big)))
    expect(code == 2, said)
    figures = (
        r"has [\d.]+ [GT]B free, and this run writes about [\d.]+ TB \(the trained model .* TB, 2 checkpoints .* TB\)"
    )
    expect(re.search(figures, said), said)
    expect(not (folder / "f").exists(), said)


def at_limits(folder: Path, count: int) -> int:
    """Return how many limits were tried, up to the size of the largest file."""
    largest = max(path.stat().st_size for path in (folder / "whole").rglob("*") if path.is_file())
    for number in range(count):
        code, said = run(llm(folder, f"limit-{number}"), limit=400 + number * largest // count)
        expect(code in (0, 1, 2) and "Traceback" not in said, said)
        if code == 1:
            nothing_partial(folder / f"limit-{number}")
        if not (folder / f"limit-{number}" / "run.json").is_file():
            name = f"limit-{number}/model.safetensors"
            resumes(llm(folder, f"limit-{number}"), folder, "whole/model.safetensors", name)
    return count


def on_a_small_disk(folder: Path) -> int:
    """Run on a file system of 1 MB, which is then made larger; return 0 if none can be mounted here."""
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        return 0
    try:
        (disk / "taken").write_bytes(b"0" * 700_000)
        command = llm(folder, "disk/run").replace("--save-steps 2", "--save-steps 2 --save-total-limit 3")
        code, said = run(command)
        expect(code in (1, 2) and ("free" in said or "disk is full" in said), said)
        (disk / "taken").unlink()
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        resumes(command, folder, "whole/model.safetensors", "disk/run/model.safetensors")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return 1


if __name__ == "__main__":
    given = arguments(__doc__, seeded=False)
    for name, hidden in (("student", 32), ("teacher", 48)):
        make_model(given.folder / name, hidden=hidden)
    rows = [{"text": f"p l a y {'abcdefgh'[i % 8]} {'ij'[i // 8]}"} for i in range(ROWS)]
    (given.folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for command in (llm(given.folder, "whole"), teach(given.folder, "store")):
        ended, said = run(command)
        expect(ended == 0, said)
    cases: tuple[Callable[[Path], None], ...] = (
        *(in_completions, in_weights, in_optimizer, in_result, in_store, in_export, before_loading),
    )
    for case in cases:
        case(given.folder)
        print(case.__name__, file=sys.stderr, flush=True)
    counted = {"cases": len(cases), "limits": at_limits(given.folder, 30) if given.long else 0}
    print(json.dumps({**counted, "disks": on_a_small_disk(given.folder) if given.long else 0}))
