"""Kills training at random steps, goes on from its last checkpoint, and compares the student with an uninterrupted one.

    python tests/faults/kill_train.py --folder /tmp/faults [--long] [--cases command self] [--kills 2]

Each attempt is a process of its own, forked from one that has the libraries loaded, that ends by SIGKILL a moment after
a step that was drawn: within the next step, or while a checkpoint is written. The last attempt runs to the end. Weights
are compared byte by byte; a difference ends the script with exit code 1. Both models and the adapter have dropout.
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
from datasets import load_dataset

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer
from trl_distill.cli import main
from trl_distill.errors import ParamsError
from trl_distill.runs.progress import show_lines

ROWS, STEPS = 24, 14
SHORT, LONG = 2, 10  # kills of each case
PROMPT = "t h e s e a r e t h e r u l e s o f t h e g a m e {input}"
# what `aitraining llm` is given in addition to the data: teacher and student
CASES = {
    "command": ["--teacher-model", "{teacher}"],
    "self": ["--teacher-model", "self", "--peft", "--lora-dropout", "0.2", "--target-modules", "all-linear"],
    "store": ["--teacher-model", "{teacher}", "--teacher-store", "{project}-store", "--teacher-top-k", "8"],
    "stages": ["--teacher-model", "{teacher}", "--stages", "{folder}/stages.yaml"],
    "script": [],
}  # fmt: skip
FIRST = 5  # steps of the first of two stages


def command(case: str, folder: Path, project: Path) -> None:
    """Train by the command; `--resume` starts over if there is no checkpoint yet."""
    places = {"folder": folder, "project": project, "teacher": folder / "teacher"}
    main([
        *("llm", "--model", str(folder / "student"), "--data-path", str(folder / "data.jsonl"), "--resume"),
        *("--teacher-prompt-template", PROMPT, "--project-name", str(project), "--max-steps", str(STEPS)),
        *("--batch-size", "2", "--gradient-accumulation", "2", "--lr", "1e-2", "--logging-steps", "1"),
        *("--save-strategy", "steps", "--save-steps", "3", "--distill-max-teacher-length", "8"),
        *(part.format(**places) for part in CASES[case]),
    ])  # fmt: skip


def script(folder: Path, project: Path) -> None:
    """Train by the trainer, as a TRL script does."""
    config = DistillationSFTConfig(
        output_dir=str(project), use_distillation=True, teacher_model=str(folder / "teacher"), max_steps=STEPS,
        teacher_prompt_template=PROMPT, completions="teacher", distill_max_teacher_length=8, learning_rate=1e-2,
        per_device_train_batch_size=2, gradient_accumulation_steps=2, logging_steps=1, save_steps=3, save_total_limit=1,
        bf16=False, use_cpu=True, dataloader_pin_memory=False, gradient_checkpointing=False, report_to="none",
    )  # fmt: skip
    data = load_dataset("json", data_files=str(folder / "data.jsonl"), split="train", cache_dir=str(folder / "cache"))
    trainer = show_lines(DistillationSFTTrainer(str(folder / "student"), config, train_dataset=data))
    try:
        trainer.train(resume_from_checkpoint=True)
    except ParamsError:  # there is no complete checkpoint yet
        trainer.train()
    trainer.save_model(str(project))


def killed(child: int, step: int, delay: float, log: Path) -> bool:
    """Kill a process `delay` seconds after it has logged a step; False if it came to its end before."""
    while True:
        steps = re.findall(r"^\S+ +step +(\d+)/", log.read_text(), re.MULTILINE)
        if steps and int(steps[-1]) >= step:
            break
        if ended(child, log, wait=False):
            return False
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def weights(project: Path) -> bytes:
    """Return the bytes of what was trained."""
    names = ("adapter_model.safetensors", "model.safetensors")
    return next((project / name).read_bytes() for name in names if (project / name).is_file())


def kill_loop(case: str, folder: Path, kills: int, seed: int) -> int:
    """Return how many kills were made, each at a later step than the one before."""
    moments = random.Random(seed)
    work = partial(script, folder) if case == "script" else partial(command, case, folder)
    whole, broken, log = folder / f"{case}-whole", folder / f"{case}-broken", folder / "log"
    began = time.monotonic()
    ended(start(partial(work, whole), log), log, wait=True)
    a_step = (time.monotonic() - began) / STEPS
    steps = sorted(moments.sample(range(1, STEPS - 2), kills))
    done = 0
    while done < kills:
        if killed(start(partial(work, broken), log), steps[done], moments.uniform(0, a_step), log):
            done += 1
        else:  # it came to its end: the next attempt begins anew
            shutil.rmtree(broken)
    ended(start(partial(work, broken), log), log, wait=True)
    if weights(whole) != weights(broken):
        sys.exit(f"the student is another one after {done} kills (case {case}, seed {seed})")
    return done


if __name__ == "__main__":
    given = arguments(__doc__, cases=CASES, counts="kills", short=SHORT, long=LONG)
    for name, hidden in (("student", 32), ("teacher", 48)):
        config = make_model(given.folder / name, hidden=hidden) / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "attention_dropout": 0.1}))
    letters = random.Random(1)  # some prompts have more in common than the template
    texts = [f"p l a y {letters.choice('ab')} {letters.choice('abcd')} {letters.choice('xyz')}" for _ in range(ROWS)]
    (given.folder / "stages.yaml").write_text(f"- max_steps: {FIRST}\n- teacher_prompt_template: 'f g {{input}}'\n")
    (given.folder / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    print(json.dumps({case: kill_loop(case, given.folder, given.count, given.seed) for case in given.cases}))
