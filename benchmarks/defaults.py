"""How much of the divergence from the teacher runs remove, by job, rows, temperature and learning rate.

In prompt baking the teacher is the model itself, which reads the demo's routing policy. In knowledge distillation it is
another model, which was trained on the policy first and reads the student's prompt. All runs make the same number of
optimizer steps, and those of a job and a number of rows have the same completions. `--system` has a chat model bake in
that system prompt instead of the policy; its score is chrF against the teacher's completions.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import math
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from _measure import machine, print_json, table, table_row
from _routing import (
    LONG_PROMPT,
    ROWS,
    SHORT_PROMPT,
    UNSEEN,
    Outcome,
    Prompt,
    outcome_of,
    with_completions,
    write_rows,
)

from trl_distill import LLMTrainingParams, train

USER = {"role": "user", "content": "{input}"}
JOBS = ("prompt baking", "knowledge distillation")
Setting = tuple[str, int, float, float]  # job, rows, learning rate, temperature
COMBINATION = ("job", "rows", "lr", "temperature")
HEAD = (*COMBINATION, "divergence before", "removed", "score", "gap closed", "CPU seconds")


@dataclass(frozen=True)
class Job:
    """What is compared with what.

    Attributes:
        name: One of `JOBS`.
        teacher: The teacher, a folder or a name.
        prompt: The teacher's prompt.
    """

    name: str
    teacher: str
    prompt: Prompt


def params_of(
    job: Job, folder: Path, options: argparse.Namespace, *, lr: float, temperature: float, project: str = "run"
) -> LLMTrainingParams:
    """Return the parameters of a run."""
    return LLMTrainingParams(
        model=options.model, teacher_model=job.teacher, teacher_prompt_template=job.prompt,
        student_prompt_template=[USER] if options.system else SHORT_PROMPT, data_path=str(folder / ROWS),
        project_name=str(folder / project), overwrite=True, max_steps=options.steps, batch_size=options.batch_size,
        gradient_accumulation=1, save_strategy="no", distill_temperature=temperature, distill_alpha=options.alpha,
        lr=lr, distill_max_teacher_length=options.tokens, peft=options.peft,
    )  # fmt: skip


def job_named(name: str, folder: Path, options: argparse.Namespace) -> Job:
    """Return a job; the teacher of the second is trained here."""
    system = {"role": "system", "content": options.system}
    baking = Job(JOBS[0], options.model, [system, USER] if options.system else LONG_PROMPT)
    if name == baking.name:
        return baking
    write_rows(folder, count=max(options.rows), unseen=options.unseen, seed=99)
    params = params_of(baking, folder, options, lr=options.teacher_lr, temperature=1.0, project="teacher")
    params.max_steps = 3 * options.steps
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(params)
    return Job(name, str(folder / "teacher"), SHORT_PROMPT)


def outcomes(job: Job, folder: Path, options: argparse.Namespace, *, count: int, seed: int) -> dict[Setting, Outcome]:
    """Run each learning rate and temperature on some rows, and print a line for each."""
    write_rows(folder, count=count, unseen=options.unseen, seed=10 + seed)
    with_completions(folder, teacher=job.teacher, prompt=job.prompt, tokens=options.tokens)
    found = {}
    for lr, temperature in itertools.product(options.lrs, options.temperatures):
        params = params_of(job, folder, options, lr=lr, temperature=temperature)
        params.seed = 42 + seed
        one = outcome_of(
            params, teacher=job.teacher, teacher_prompt=job.prompt, unseen=folder / UNSEEN, answers=not options.system
        )
        print(table_row((*cells_of((job.name, count, lr, temperature)), *figures_of(one))), flush=True)
        found[job.name, count, lr, temperature] = one
    return found


def cells_of(setting: Setting) -> tuple[str, ...]:
    """Return a combination's cells."""
    job, count, lr, temperature = setting
    return job, f"{count:,}", f"{lr:g}", f"{temperature:g}"


def figures_of(one: Outcome) -> tuple[str, ...]:
    """Return a run's cells."""
    before, after, teacher = one.right
    score = f"{before:.0f} to {after:.0f} of {teacher:.0f}"
    return f"{one.divergence[0]:.3f}", f"{one.removed:.0%}", score, f"{one.closed:.0%}", f"{one.seconds:.0f}"


def mean_shown(values: list[float]) -> str:
    """Return a mean share with its standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.0%} ± {error:.0%}"


def main() -> None:
    """Print a line for each combination as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--system", help="system prompt of a chat model, which answers each message")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--rows", type=int, nargs="+", default=[60, 240])
    parser.add_argument("--lrs", type=float, nargs="+", default=[5e-5, 2e-4, 1e-3])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--alpha", type=float, default=0.7)
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16, help="at most, of a completion")
    parser.add_argument("--teacher-lr", type=float, default=1e-3, help="for the teacher of knowledge distillation")
    parser.add_argument("--peft", action="store_true")
    parser.add_argument("--unseen", type=int, default=36)
    parser.add_argument("--seeds", type=int, default=1, help="of the rows and of training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the figures as one last line too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine("torch", "transformers", "trl"))
    print(f"{options.model}: {options.steps} steps of {options.batch_size} rows, alpha {options.alpha:g}\n")
    print(table(HEAD, []), flush=True)
    found: dict[Setting, list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as place:
        for name in options.jobs:
            job = job_named(name, Path(place), options)
            for count, seed in itertools.product(options.rows, range(options.seeds)):
                for setting, one in outcomes(job, Path(place), options, count=count, seed=seed).items():
                    found.setdefault(setting, []).append(one)
    if options.seeds > 1:
        print(f"\nMeans over {options.seeds} seeds and their standard errors\n")
        print(table((*COMBINATION, "divergence removed", "gap closed"), []))
    for setting, several in found.items() if options.seeds > 1 else ():
        means = mean_shown([one.removed for one in several]), mean_shown([one.closed for one in several])
        print(table_row((*cells_of(setting), *means)))
    if options.json:
        print_json(
            {", ".join(cells_of(s)): statistics.fmean(o.closed for o in several) for s, several in found.items()}
        )


if __name__ == "__main__":
    main()
