"""Damages files of runs and stores at random, runs the command that reads them, and looks at what it does.

    python tests/faults/flips.py --folder /tmp/faults [--long] [--cases run store] [--damages 6]

A damage flips a bit of a file, cuts it, empties it or deletes it. The command then has to end in what an undamaged one
ends in, byte by byte, or with exit code 2 and one sentence of ours that leaves all files as they are. Anything else
ends the script with exit code 1: another student, a traceback, a library's message. Prints how many damages there were
and how many the command recovered from with a line about it, refused, or was not harmed by.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from _forks import arguments, start  # first: sets the environment
from conftest import make_model
from kill_train import weights

from trl_distill.cli import main
from trl_distill.teachers.target_store import writer as teaching

SHORT, LONG = 6, 100  # damages of each case
ROWS = 12
LONGEST = 500  # characters of a sentence
FORBIDDEN = ("Traceback", "weights_only", "pickle", "--debug for the traceback")  # also what a library advises
DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "flip": lambda content, draw: _flipped(content, draw.randrange(8 * len(content))) if content else None,
    "cut": lambda content, draw: content[: draw.randrange(len(content))] if content else None,
    "empty": lambda content, draw: b"",
    "delete": lambda content, draw: None,
}
# what the two cases train: an adapter with a moving average, and from stored targets
RUN = ["--teacher-model", "ema", "--peft", "--lora-dropout", "0.1", "--save-total-limit", "2"]
STORED = ["--teacher-store", "{store}"]


def _flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def rows(folder: Path) -> list[str]:
    return [
        *("--model", str(folder / "student"), "--data-path", str(folder / "data.jsonl")),
        *("--teacher-prompt-template", "t h e r u l e s {input}", "--distill-max-teacher-length", "6"),
    ]


def training(folder: Path, project: Path, *more: str) -> list[str]:
    """Return the arguments of a run of four steps with a checkpoint after each."""
    return [
        *("llm", *rows(folder), "--project-name", str(project), "--max-steps", "4", "--batch-size", "2"),
        *("--lr", "1e-2", "--logging-steps", "1", "--save-strategy", "steps", "--save-steps", "1", *more),
    ]


def teach(folder: Path, store: Path, *more: str) -> list[str]:
    """Return the arguments that write a store."""
    options = ("--teacher-model", str(folder / "teacher"), "--output", str(store), "--top-k", "8", *more)
    return ["teach", *rows(folder), *options]


def run(arguments: list[str], log: Path) -> int:
    """Run the command in a process of its own and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(start(partial(main, arguments), log), 0)[1])


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder, but for locks."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(".lock"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


class Case:
    """One kind of folder that is damaged.

    Attributes:
        intact: The folder.
        folder: Where everything is.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log = folder, log
        self.intact = self.make()
        self.files = sorted(contents(self.intact))

    def make(self) -> Path:
        """Make the folder and what is expected of it."""
        raise NotImplementedError

    def command(self, damaged: Path, draw: random.Random) -> tuple[list[str], Callable[[], bool]]:
        """Return the arguments of the command that reads a damaged folder, and whether it ended as it should."""
        raise NotImplementedError

    def begun(self, arguments: list[str]) -> None:
        if run(arguments, self.log):
            sys.exit(f"an undamaged command failed:\n{self.log.read_text()[-2000:]}")


class Run(Case):
    """An unfinished run, which is resumed."""

    def make(self) -> Path:
        whole, project = self.folder / "whole", self.folder / "run"
        self.begun(training(self.folder, whole, *RUN))
        self.expected = weights(whole)
        child = start(partial(main, training(self.folder, project, *RUN)), self.log)
        sealed = project / "checkpoints" / "checkpoint-3" / "checksums.json"
        while not (sealed.is_file() and len(sealed.read_bytes()) > 10):  # it is null before
            time.sleep(0.002)
        os.kill(child, 9)
        os.waitpid(child, 0)
        shutil.rmtree(project / "checkpoints" / "checkpoint-4", ignore_errors=True)
        return project

    def command(self, damaged: Path, draw: random.Random) -> tuple[list[str], Callable[[], bool]]:
        return training(self.folder, damaged, *RUN, "--resume"), lambda: weights(damaged) == self.expected


class Store(Case):
    """A store of targets, which a run reads or which is repaired."""

    def make(self) -> Path:
        store, project = self.folder / "store", self.folder / "from-store"
        self.begun(teach(self.folder, store))
        self.begun(training(self.folder, project, "--teacher-store", str(store)))
        self.expected = weights(project)
        return store

    def command(self, damaged: Path, draw: random.Random) -> tuple[list[str], Callable[[], bool]]:
        if draw.random() < 0.5:
            return teach(self.folder, damaged, "--repair"), lambda: contents(damaged) == contents(self.intact)
        project = self.folder / "again"
        shutil.rmtree(project, ignore_errors=True)
        arguments = training(self.folder, project, "--teacher-store", str(damaged))
        return arguments, lambda: weights(project) == self.expected


CASES: dict[str, type[Case]] = {"run": Run, "store": Store}


def damage_loop(case: Case, damages: int, seed: int) -> Counter[str]:
    """Return how often a command recovered, refused, or was not harmed."""
    draw, counted = random.Random(seed), Counter[str]()
    for number in range(damages):
        damaged = case.folder / "faulty"
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(case.intact, damaged)
        name, how = draw.choice(case.files), draw.choice([*DAMAGES])
        changed = DAMAGES[how]((damaged / name).read_bytes(), draw)
        (damaged / name).unlink()
        if changed is not None:
            (damaged / name).write_bytes(changed)
        before = contents(damaged)
        arguments, is_right = case.command(damaged, draw)
        code, said = run(arguments, case.log), case.log.read_text()
        wrong = next((f"says {text!r}" for text in FORBIDDEN if text in said), "")
        errors = [line for line in said.splitlines() if line.startswith("aitraining: error: ")]
        if code == 0:
            wrong = wrong or ("" if is_right() else "ends in something else")
        elif code == 2:
            wrong = wrong or ("" if len(errors) == 1 and len(errors[0]) < LONGEST else "says more than a sentence")
            wrong = wrong or ("" if contents(damaged) == before else "changes files")
        else:
            wrong = wrong or f"ends with exit code {code}"
        if wrong:
            sys.exit(f"{' '.join(arguments)}\n{wrong} after {how} of {name} ({number}, seed {seed}):\n{said[-3000:]}")
        counted["refused" if code else "recovered" if "damaged" in said else "not harmed"] += 1
    return counted


if __name__ == "__main__":
    given = arguments(__doc__, cases=CASES, counts="damages", short=SHORT, long=LONG)
    teaching.ROWS = 4  # several shards
    for name, hidden in (("student", 32), ("teacher", 48)):
        make_model(given.folder / name, hidden=hidden)
    letters = random.Random(1)
    texts = [f"p l {letters.choice('ab')} {letters.choice('abcd')} {letters.choice('xyz')}" for _ in range(ROWS)]
    (given.folder / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    total: Counter[str] = Counter(damages=given.count * len(given.cases))
    for case_name in given.cases:
        total += damage_loop(CASES[case_name](given.folder, given.folder / "log"), given.count, given.seed)
    print(json.dumps(total))
