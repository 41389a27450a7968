"""Starts two runs together that would write into one folder, and prints what each said.

    python tests/faults/two_runs.py --folder /tmp/faults [--long] [--cases project store] [--rounds 1]

One must come to its end, and the other be refused with a sentence that names its process, before it loads a model; the
teacher must have been asked once for each row. `killed` is a run after one that was killed, whose lock must not be in
its way. Each run is a fork of a process that has the libraries loaded. Ends with exit code 1 if something else happens.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

from _forks import arguments, ended, start  # first: sets the environment
from conftest import make_model
from kill_train import script

from trl_distill.cli import main

ROWS, STEPS = 24, 6
APART = 0.1  # seconds at most from the start of one run to that of the other
SHORT, LONG = 1, 20  # rounds
PROMPT = "t h e s e a r e t h e r u l e s o f t h e g a m e {input}"
REFUSED = r"is in use by process (\d+) on this machine \(\S+\) since [\d-]+ [\d:]+; wait until it ends, or give "


def llm(folder: Path, project: str, *more: str) -> None:
    """Train in a project of the folder."""
    main([
        *("llm", "--model", str(folder / "student"), "--teacher-model", str(folder / "teacher")),
        *("--data-path", str(folder / "data.jsonl"), "--teacher-prompt-template", PROMPT),
        *("--project-name", str(folder / project), "--max-steps", str(STEPS), "--batch-size", "2"),
        *("--gradient-accumulation", "1", "--distill-max-teacher-length", "8", "--logging-steps", "1"),
        *("--teacher-batch-size", "2", "--save-strategy", "steps", "--save-steps", "2", *more),
    ])  # fmt: skip


def teach(folder: Path) -> None:
    """Store the teacher's targets."""
    main([
        *("teach", "--model", str(folder / "student"), "--teacher-model", str(folder / "teacher")),
        *("--data-path", str(folder / "data.jsonl"), "--teacher-prompt-template", PROMPT),
        *("--distill-max-teacher-length", "8", "--teacher-batch-size", "2", "--top-k", "8"),
        *("--output", str(folder / "store")),
    ])  # fmt: skip


def pair(case: str, folder: Path) -> list[partial[None]]:
    """Return the two runs of a case."""
    data = ("--data-path", str(folder / "data.jsonl"))
    stored = ("--teacher-store", str(folder / "store"), "--teacher-top-k", "8")
    if case == "store":
        return [partial(llm, folder, project, *stored) for project in ("one", "another")]
    once = {
        "project": partial(llm, folder, "first"),
        "overwrite": partial(llm, folder, "finished", "--overwrite"),
        "stages": partial(llm, folder, "staged", "--stages", str(folder / "stages.yaml")),
        "teach": partial(teach, folder),
        "evaluate": partial(main, ["evaluate", str(folder / "finished"), *data]),
        "export": partial(main, ["export", str(folder / "finished"), "--to", "merged", "--verify", "8", *data]),
        "script": partial(script, folder, folder / "trainer"),
    }[case]
    return [once, once]


def together(case: str, folder: Path) -> None:
    """Start both runs of a case; end the script unless one comes to its end and the other is refused because of it."""
    logs = [folder / f"{case}-{number}.log" for number in (1, 2)]
    runs = []
    for work, log in zip(pair(case, folder), logs, strict=True):
        runs.append(start(work, log))
        time.sleep(random.uniform(0, APART))
    codes = [os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]) for run in runs]
    for number, (code, log) in enumerate(zip(codes, logs, strict=True), 1):
        print(f"{case}, run {number}: exit code {code}; {log.read_text().strip().splitlines()[-1]}")
    refusal = 9 if case == "script" else 2
    if sorted(codes) != [0, refusal]:
        sys.exit(f"exit codes {codes} of {case}:\n{logs[0].read_text()[-2000:]}\n{logs[1].read_text()[-2000:]}")
    said = logs[codes.index(refusal)].read_text()
    found = re.search(REFUSED, said)
    if found is None or int(found[1]) != runs[codes.index(0)]:
        sys.exit(f"the refused run of {case} did not name process {runs[codes.index(0)]}:\n{said}")


def check(folder: Path) -> None:
    """End the script if a lock or a temporary file is left, or a teacher wrote a completion twice."""
    left = [path for path in folder.rglob(".*") if path.name != ".unfinished"]
    if left:
        sys.exit(f"left over: {left}")
    for store in (*folder.glob("*/teacher_completions.jsonl"), *folder.glob("store/completions.jsonl")):
        keys = [json.loads(line)["key"] for line in store.read_text().splitlines()]
        if len(keys) != ROWS or len(set(keys)) != ROWS:
            sys.exit(f"{store} has {len(keys)} completions of {ROWS} rows")


def killed(folder: Path) -> None:
    """Kill a run that trains, and start it again."""
    log = folder / "killed-1.log"
    run = start(partial(llm, folder, "killed"), log)
    while not (folder / "killed" / "checkpoints" / "checkpoint-2" / "trainer_state.json").is_file():
        time.sleep(0.005)
        if ended(run, log, wait=False):
            sys.exit("the run ended before it could be killed")
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
    lock = json.loads((folder / "killed" / ".lock").read_text())
    print(f"killed, run 1: left the lock of process {lock['pid']}")
    log = folder / "killed-2.log"
    ended(start(partial(llm, folder, "killed", "--resume"), log), log, wait=True)
    print(f"killed, run 2: exit code 0; {log.read_text().strip().splitlines()[-1]}")


CASES = ("project", "stages", "store", "teach", "overwrite", "evaluate", "export", "script", "killed")
NEED_A_RUN = ("overwrite", "evaluate", "export")


def rounds(cases: list[str], folder: Path, count: int) -> dict[str, int]:
    """Return how many pairs of each case were started."""
    made = folder / "made"
    for number in range(count):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        for name, hidden in (("student", 32), ("teacher", 48)):
            make_model(made / name, hidden=hidden)
        rows = [f"p l a y {'abcd'[i % 4]} {'xyz'[i // 4 % 3]} {'efgh'[i // 12]}" for i in range(ROWS)]
        (made / "stages.yaml").write_text("- max_steps: 2\n- epochs: 1\n")
        (made / "data.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        if set(cases) & set(NEED_A_RUN):
            log = made / "log"
            ended(start(partial(llm, made, "finished"), log), log, wait=True)
        print(f"round {number + 1}")
        for case in cases:
            if case == "killed":
                killed(made)
            else:
                together(case, made)
            shutil.rmtree(made / "trainer", ignore_errors=True)
            if case == "store":
                shutil.rmtree(made / "store")
            check(made)
    return dict.fromkeys(cases, count)


if __name__ == "__main__":
    given = arguments(__doc__, cases=CASES, counts="rounds", short=SHORT, long=LONG, seeded=False)
    print(json.dumps(rounds(given.cases, given.folder, given.count)))
