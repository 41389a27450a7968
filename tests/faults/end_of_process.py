"""Ends runs by signals at different moments, and takes their terminal away; looks at exit codes, output and results.

    python tests/faults/end_of_process.py --folder /tmp/faults [--long]

Each run is a process of its own, forked from one that has the libraries loaded. `--long` adds 60 SIGTERMs at
random moments of a run that is resumed until it has finished; its student has to be the uninterrupted one, byte by
byte.
Ends with exit code 1 at the first difference.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from _forks import arguments, fork, run_and_exit  # first: sets the environment
from conftest import make_model
from ranks import joined

import trl_distill
from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, RunInterrupted
from trl_distill.cli import main
from trl_distill.cli.llm_command import params_from_command

ROWS, STEPS = 24, 10
ERROR = "aitraining: error: "


class Run:
    """A command in a forked process.

    Args:
        folder: With the models and the data; its output goes there too.
        command: What follows `aitraining`, {folder} replaced, or a function to call.
        environment: Added to this process's.
        ignored: A signal that it ignores, as under nohup.
        output: Where its standard output goes, if not to the log.
        encoding: Of its standard streams.
    """

    def __init__(
        self,
        folder: Path,
        command: str | Callable[[], object],
        *,
        environment: dict[str, str] | None = None,
        ignored: int = 0,
        output: int | None = None,
        encoding: str = "utf-8",
    ) -> None:
        self.log = folder / f"log-{(environment or {}).get('RANK', 0)}"
        self.log.write_text("")
        self.process = fork(longest=120)
        if self.process:
            return
        written = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        os.dup2(written if output is None else output, 1)
        os.dup2(written, 2)
        if output is not None:
            os.close(output)
        sys.stdout.reconfigure(line_buffering=True, encoding=encoding, errors="strict")
        os.environ.update(environment or {})
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs and nohup ignore these
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)
        run_and_exit(partial(main, command.format(folder=folder).split()) if isinstance(command, str) else command)

    def said(self) -> str:
        return self.log.read_text()

    def wait_until(self, reached: Callable[[], object]) -> None:
        """Wait for a moment of the run."""
        deadline = time.monotonic() + 60
        while not reached():
            expect(os.waitpid(self.process, os.WNOHANG)[0] == 0 and time.monotonic() < deadline, self.said())
            time.sleep(0.001)

    def wait_for(self, words: str) -> None:
        """Wait until it has said something."""
        self.wait_until(lambda: re.search(words, self.said(), re.MULTILINE))

    def send(self, number: int) -> None:
        os.kill(self.process, number)

    def ends_with(self, code: int) -> None:
        """Wait for its end, which has to be with this exit code."""
        found = self.ended()
        expect(found == code, f"exit code {found} instead of {code}\n{self.said()}")

    def ended(self) -> int:
        """Return its exit code; a negative one is of a signal that has killed it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def expect(fact: object, said: str) -> None:
    """End the script with what a run said if a fact does not hold."""
    if not fact:
        sys.exit(f"unexpected (line {sys._getframe(1).f_lineno}):\n{said[-3000:]}")


def errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith(ERROR)]


def command(project: str, *, steps: int = STEPS, teacher: str = "{folder}/teacher") -> str:
    """Return a command that trains, with a checkpoint every three steps."""
    return (
        f"llm --model {{folder}}/student --teacher-model {teacher} --data-path {{folder}}/data.jsonl --resume "
        f"--teacher-prompt-template e{{{{input}}}} --project-name {{folder}}/{project} --max-steps {steps} --lr 1e-2 "
        "--batch-size 2 --gradient-accumulation 2 --logging-steps 1 --save-strategy steps --save-steps 3 "
        "--distill-max-teacher-length 8 --teacher-batch-size 1"
    )


def incomplete(project: Path) -> bool:
    """Whether a checkpoint is being written."""
    made = list(project.glob("checkpoints/checkpoint-*"))
    return bool(made) and not all((folder / "trainer_state.json").is_file() for folder in made)


def finishes(folder: Path, project: str) -> None:
    """Resume a run, and compare its student with the uninterrupted one."""
    run = Run(folder, command(project))
    run.ends_with(0)
    same_student(folder, project)


def same_student(folder: Path, project: str) -> None:
    names = ("whole", project)
    whole, found = ((folder / name / "model.safetensors").read_bytes() for name in names)
    expect(whole == found, "the student is another one")


def in_training(folder: Path) -> None:
    """Each signal leaves a checkpoint, says one sentence and has an exit code of its own; nohup ignores SIGHUP."""
    for number, code in ((signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)):
        run = Run(folder, command("run"))
        run.wait_for(r" step +\d+/")
        run.send(number)
        run.ends_with(code)
        (error,) = errors(run.said())
        expect(re.search(r"stopped on request at step \d+; a checkpoint is in .*--resume to continue\.$", error), error)
        expect("Traceback" not in run.said(), run.said())
    run = Run(folder, command("run"), ignored=signal.SIGHUP)
    run.wait_for(r" step +\d+/")
    run.send(signal.SIGHUP)
    run.ends_with(0)
    finishes(folder, "run")
    expect("has finished; there is nothing left to resume" in (folder / "log-0").read_text(), "")


def in_stages(folder: Path) -> None:
    """In the second of two stages, while its teacher writes and while it trains, the sentence says how to continue."""
    (folder / "stages.yaml").write_text("- max_steps: 3\n- teacher_prompt_template: 'f{input}'\n")
    staged, store = (
        command("staged") + " --stages {folder}/stages.yaml",
        folder / "staged" / "teacher_completions.jsonl",
    )
    run = Run(folder, staged)
    run.wait_until(lambda: store.is_file() and store.read_bytes().count(b"\n") > 2)
    run.send(signal.SIGTERM)
    run.ends_with(143)
    (error,) = errors(run.said())
    expect(
        re.search(r"stage 2: interrupted: \d+ of 24 completions are kept in .* add --resume to continue\.$", error),
        error,
    )
    run = Run(folder, staged)
    run.wait_for(r" step +\d+/")
    run.send(signal.SIGTERM)
    run.ends_with(143)
    (error,) = errors(run.said())
    expect(re.search(r"stage 2: stopped on request at step \d+; .* add --resume to continue\.$", error), error)
    run = Run(folder, staged)
    run.ends_with(0)
    expect("Stage 1 of 2 has finished" in run.said(), run.said())


def second_signal(folder: Path) -> None:
    """A second signal ends a run at once, and a checkpoint that was being written is left out."""
    run = Run(folder, command("twice"))
    run.wait_until(lambda: incomplete(folder / "twice"))
    run.send(signal.SIGTERM)
    run.wait_for("Stopping after this step")
    run.send(signal.SIGTERM)
    run.ends_with(143)
    expect(len(errors(run.said())) == 1, run.said())
    finishes(folder, "twice")


def while_generating(folder: Path) -> None:
    """While the teacher writes, the sentence says how many completions are kept."""
    run, store = Run(folder, command("writing")), folder / "writing" / "teacher_completions.jsonl"
    run.wait_until(lambda: store.is_file() and store.read_bytes().count(b"\n") > 2)
    run.send(signal.SIGTERM)
    run.ends_with(143)
    (error,) = errors(run.said())
    expect(re.search(r"interrupted: \d+ of 24 completions are kept in .*; run the same command again", error), error)
    finishes(folder, "writing")


def while_asking(folder: Path) -> None:
    """While a server is asked, a signal ends the command at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1#m"
        run = Run(folder, command("asking", teacher=url) + " --distill-alpha 0")
        server.settimeout(60)
        asked, _ = server.accept()
        began = time.monotonic()
        run.send(signal.SIGTERM)
        run.ends_with(143)
        expect(time.monotonic() - began < 5, run.said())
        asked.close()
    expect("0 of 24 completions are kept" in errors(run.said())[0], run.said())


def while_teaching(folder: Path) -> None:
    """`teach` ends with the signal's code, and the same command resumes."""
    teach = (
        "teach --model {folder}/student --teacher-model {folder}/teacher --data-path {folder}/data.jsonl "
        "--teacher-prompt-template e{{input}} --output {folder}/store --distill-max-teacher-length 8 "
        "--teacher-batch-size 1"
    )
    run = Run(folder, teach)
    run.wait_until(lambda: list((folder / "store" / ".parts").glob("*")))
    run.send(signal.SIGTERM)
    run.ends_with(143)
    expect(len(errors(run.said())) == 1, run.said())
    run = Run(folder, teach)
    run.ends_with(0)


def one_of_two_processes(folder: Path) -> None:
    """A signal that reaches one of two processes stops both after the same step, and the first one speaks."""
    prepared = Run(folder, command("ranks", steps=3))
    expect(prepared.ended() == 0, prepared.said())
    shutil.move(folder / "ranks" / "teacher_completions.jsonl", folder / "kept")
    shutil.rmtree(folder / "ranks")
    (folder / "ranks").mkdir()
    shutil.move(folder / "kept", folder / "ranks" / "teacher_completions.jsonl")
    runs = [Run(folder, command("ranks", steps=300), environment=own) for own in joined([{}, {}])]
    runs[0].wait_for(r" step +\d+/")
    runs[1].send(signal.SIGTERM)
    codes = [run.ended() for run in runs]
    expect(codes == [143, 143], runs[0].said() + runs[1].said())
    expect(len(errors(runs[0].said())) == 1, runs[0].said())
    expect(not errors(runs[1].said()), runs[1].said())


def in_a_script(folder: Path) -> None:
    """`train` raises an error with the signal's exit code, and leaves a handler of the script alone."""

    def script(own: bool) -> None:
        if own:
            signal.signal(signal.SIGTERM, lambda *_: (folder / "handled").touch())
        params = params_from_command(command("library").format(folder=folder).split()[1:])
        try:
            trl_distill.train(params)
        except RunInterrupted as stop:
            sys.exit(stop.exit_code)

    for own, code in ((False, 143), (True, 0)):
        run = Run(folder, partial(script, own))
        run.wait_for(r" step +\d+/")
        run.send(signal.SIGTERM)
        run.ends_with(code)
        expect((folder / "handled").exists() == own, run.said())
    finishes(folder, "library")


def closed_pipe(folder: Path) -> None:
    """A reader that leaves (`| head -1`), and a full disk below the output, end nothing."""
    reader, writer = os.pipe()
    run = Run(folder, command("unread"), output=writer)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    run.ends_with(0)
    with open("/dev/full", "wb") as full:
        run = Run(folder, command("full"), output=full.fileno())
        run.ends_with(0)
    for name in ("unread", "full"):
        same_student(folder, name)


def ascii_terminal(folder: Path) -> None:
    """A terminal that shows ASCII alone gets escapes, from the command and from a trainer in a script."""
    rows = [{"text": f"a \u2603 {letter}"} for letter in "abcd"]
    (folder / "snow.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = Run(folder, command("ascii", steps=1).replace("data.jsonl", "snow.jsonl"), encoding="ascii")
    run.ends_with(0)
    expect("\\u2603" in run.said(), run.said())

    def script() -> None:
        config = DistillationSFTConfig(
            output_dir=str(folder / "script"), use_distillation=True, teacher_model=str(folder / "teacher"),
            teacher_prompt_template="e {input}", completions="teacher", distill_max_teacher_length=4, max_steps=1,
            use_cpu=True, bf16=False, report_to="none", save_strategy="no", dataloader_pin_memory=False,
        )  # fmt: skip
        DistillationSFTTrainer(str(folder / "student"), config, train_dataset=rows).train()

    run = Run(folder, script, encoding="ascii")
    run.ends_with(0)
    expect("\\u2603" in run.said(), run.said())


def at_random(folder: Path, count: int, seed: int) -> int:
    """Return how many SIGTERMs runs have got that were resumed until they had finished."""
    moments, sent, code = random.Random(seed), 0, 143
    while sent < count:
        if code == 0:
            finishes(folder, "random")
            shutil.rmtree(folder / "random")
        run = Run(folder, command("random"))
        time.sleep(moments.uniform(0, 4))
        run.send(signal.SIGTERM)
        sent += 1
        code = run.ended()
        expect(code in (0, 143), f"exit code {code}\n{run.said()}")
        expect(code == 0 or len(errors(run.said())) == 1, run.said())
    finishes(folder, "random")
    return sent


if __name__ == "__main__":
    given = arguments(__doc__)
    for name, hidden in (("student", 32), ("teacher", 48)):
        make_model(given.folder / name, hidden=hidden)
    letters = random.Random(1)
    texts = [f"p l a y {letters.choice('ab')} {letters.choice('abcd')} {letters.choice('xyz')}" for _ in range(ROWS)]
    marks = [f"{'ab'[i % 2]} {'cdefg'[i // 2 % 5]} {'hijk'[i // 10]}" for i in range(ROWS)]  # no two rows are equal
    lines = [json.dumps({"text": f"{text} {mark}"}) for text, mark in zip(texts, marks, strict=True)]
    (given.folder / "data.jsonl").write_text("\n".join(lines))
    whole = Run(given.folder, command("whole"))
    expect(whole.ended() == 0, whole.said())
    cases = (
        *(in_training, in_stages, second_signal, while_generating, while_asking, while_teaching),
        *(one_of_two_processes, in_a_script, closed_pipe, ascii_terminal),
    )
    for case in cases:
        began = time.monotonic()
        case(given.folder)
        print(f"{case.__name__}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    counted = {"cases": len(cases), "random": at_random(given.folder, 60, given.seed) if given.long else 0}
    print(json.dumps(counted))
