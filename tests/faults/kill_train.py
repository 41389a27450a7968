"""Kills training at random steps, goes on from its last checkpoint, and compares the student with an uninterrupted one.

    python tests/faults/kill_train.py --folder /tmp/faults [--long] [--cases command self] [--kills 2]

Each attempt is a process of its own, forked from one that has the libraries loaded, that ends by SIGKILL a moment after
a step that was drawn: within the next step, or while a checkpoint is written. The last attempt runs to the end. Weights
are compared byte by byte; a difference ends the script with exit code 1. Both models and the adapter have dropout.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from conftest import make_model
from datasets import load_dataset
from tqdm import tqdm
from transformers import AutoModelForCausalLM  # noqa: F401 - loaded before the forks

import trl_distill.runs.api  # noqa: F401
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
    "script": [],
}  # fmt: skip


def command(case: str, folder: Path, project: Path) -> None:
    """Train by the command; `--resume` starts over if there is no checkpoint yet."""
    places = {"project": project, "teacher": folder / "teacher"}
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


def start(work: Callable[[], None], log: Path) -> int:
    """Start the work in a forked process that writes to a log, and return its id."""
    log.write_text("")
    with warnings.catch_warnings():  # since Python 3.12, of the libraries' threads
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    faulthandler.dump_traceback_later(240, exit=True)  # whatever waits that long is stuck
    written = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    sys.stdout.reconfigure(line_buffering=True)
    try:
        work()
    except SystemExit as end:
        os._exit(int(end.code or 0))
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(9)
    os._exit(0)


def ended(child: int, log: Path, *, wait: bool) -> bool:
    """Whether a process has ended well; one that failed by itself ends the script."""
    found, status = os.waitpid(child, 0 if wait else os.WNOHANG)
    if found and not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        sys.exit(f"exit code {os.WEXITSTATUS(status)}:\n{log.read_text()[-3000:]}")
    return bool(found)


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--kills", type=int, help=f"of each case; default: {SHORT}, with --long {LONG}")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # a fork killed while it holds the default one stops the rest
    for name, hidden in (("student", 32), ("teacher", 48)):
        config = make_model(given.folder / name, hidden=hidden) / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "attention_dropout": 0.1}))
    letters = random.Random(1)  # some prompts have more in common than the template
    texts = [f"p l a y {letters.choice('ab')} {letters.choice('abcd')} {letters.choice('xyz')}" for _ in range(ROWS)]
    (given.folder / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    kills = given.kills or (LONG if given.long else SHORT)
    print(json.dumps({case: kill_loop(case, given.folder, kills, given.seed) for case in given.cases}))
