"""How much of the gap a student closes, trained on given inputs or on those that its teacher wrote for its prompt.

For each seed two students are trained, on given inputs and on as many that a model wrote for its prompt. Both
are evaluated on given inputs that neither was trained on. The difference is printed with its interval over the seeds.
The embedded model has the prompt of examples/demo.py; another model, which needs a chat template, one of a pirate.
`_small_model.py` writes a small real model.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from _measure import machine, print_json, table

sys.path.insert(0, str(Path(__file__).parents[1]))  # tools/ is beside this folder
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from demo import LONG_PROMPT, SHORT_PROMPT, make_messages

from trl_distill import DistillError, LLMTrainingParams, evaluate_distillation, queries_from_prompt, train

PIRATE = (
    "You are an old pirate. Whatever the message is, answer it in one short sentence of pirate talk that begins with "
    "'Arr, matey!'"
)
FORMS = (
    "How do I {}?", "I want to {}.", "Can you help me to {}?", "Is it hard to {}?", "Why do people {}?",
    "What do I need to {}?", "Tell me how you would {}.", "Give me one tip to {}.",
)  # fmt: skip
ACTS = (
    "boil an egg", "learn the guitar", "paint a fence", "fix a bicycle", "write a poem", "sleep better",
    "catch a fish", "save money",
)  # fmt: skip
Result = dict[str, Any]  # one seed's


@dataclass(frozen=True)
class Job:
    """What is distilled.

    Attributes:
        prompt: The prompt that inputs are written for.
        teacher: The teacher's template.
        student: The student's.
        given: Inputs to train on.
        held_out: Inputs to evaluate on.
    """

    prompt: str
    teacher: str | list[dict[str, str]]
    student: str | list[dict[str, str]]
    given: list[str]
    held_out: list[str]


def job_of(model: str, held_out: int) -> Job:
    """Return the job of a model."""
    if model == "embedded":
        apart = [*make_messages(held_out, held_out=True, seed=1)]
        return Job(LONG_PROMPT, LONG_PROMPT, SHORT_PROMPT, [*make_messages(200, held_out=False, seed=0)], apart)
    pool = [form.format(act) for form in FORMS for act in ACTS]
    Random(0).shuffle(pool)
    asks = {"role": "user", "content": "{input}"}
    return Job(PIRATE, [{"role": "system", "content": PIRATE}, asks], [asks], pool[held_out:], pool[:held_out])


def gap_closed(texts: list[str], job: Job, folder: str, *, seed: int, options: argparse.Namespace) -> float:
    """Train a student on inputs and return the share of the gap that it closes on the held-out ones.

    All runs have one folder, so that no completion of the teacher is written twice.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        trained = train(
            LLMTrainingParams(
                model=options.model, teacher_model=options.model, teacher_prompt_template=job.teacher,
                student_prompt_template=job.student, data_path=[{"text": text} for text in texts],
                project_name=folder, overwrite=True, seed=seed, peft=True, lora_r=8, lr=options.lr,
                epochs=options.epochs * options.rows / len(texts), batch_size=4, gradient_accumulation=1,
                distill_temperature=1.0, distill_alpha=1.0, distill_max_teacher_length=options.tokens,
                save_strategy="no", logging_steps=1000, warmup_ratio=0.0,
            )
        )  # fmt: skip
        found = evaluate_distillation(trained, test_data=job.held_out, metrics="chrf", timed_queries=0)
    assert found.evaluation.gap_closed is not None, "the teacher scores as the student does"
    return float(found.evaluation.gap_closed.estimate)


def measured(seed: int, job: Job, folder: str, options: argparse.Namespace) -> Result:
    """Return one seed's figures, or the error if the model writes too few inputs."""
    started = time.perf_counter()
    try:
        texts = queries_from_prompt(
            options.writer or options.model, job.prompt, options.written or options.rows, holdout=0,
            most_kinds=options.kinds, lengths=["one short sentence"], max_new_tokens=options.answer_tokens, seed=seed,
            progress=False, temperature=options.temperature,
        )  # fmt: skip
    except DistillError as error:
        return {"seed": seed, "error": str(error)}
    sides = {"given": Random(seed).sample(job.given, options.rows), "written": list(texts)}
    gaps = {name: gap_closed(some, job, folder, seed=seed, options=options) for name, some in sides.items()}
    seconds = time.perf_counter() - started
    return {"seed": seed, **gaps, "inputs": sides["written"], "report": texts.report, "seconds": seconds}


def print_table(found: list[Result], *, json_too: bool) -> None:
    """Print the seeds and the difference with its interval, of Student's t."""
    differences = [one["given"] - one["written"] for one in found]
    rows = [
        [str(one["seed"]), f"{one['given']:.2f}", f"{one['written']:.2f}", f"{difference:+.2f}"]
        for one, difference in zip(found, differences, strict=True)
    ]
    print(machine("torch", "transformers", "trl", "peft"))
    print(table(["seed", "gap closed, given inputs", "written inputs", "difference"], rows))
    if len(differences) > 1:
        from scipy.stats import t as student_t

        mean, spread = statistics.mean(differences), statistics.stdev(differences)
        half = float(student_t.ppf(0.975, len(differences) - 1)) * spread / len(differences) ** 0.5
        print(f"\ndifference {mean:+.2f}, 95 % interval {mean - half:+.2f} to {mean + half:+.2f}, {len(rows)} seeds")
        if json_too:
            print_json({"difference": mean, "low": mean - half, "high": mean + half})


def main() -> None:
    """Measure each seed that is not in the log, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded", help="embedded, a folder or a Hub name")
    parser.add_argument("--writer", help="another model that writes the inputs, in the same forms")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--rows", type=int, default=12, help="inputs to train on")
    parser.add_argument("--written", type=int, help="inputs that are written (default: as many), for as many steps")
    parser.add_argument("--held-out", type=int, default=24)
    parser.add_argument("--epochs", type=float, default=20, help="over the given inputs")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--tokens", type=int, default=16, help="of a completion")
    parser.add_argument("--answer-tokens", type=int, default=100)
    parser.add_argument("--kinds", type=int, default=12)
    parser.add_argument("--temperature", type=float, default=1.5, help="at which inputs are sampled")
    parser.add_argument("--log", type=Path, help="JSON lines of figures and inputs; seeds in it are not run again")
    parser.add_argument("--json", action="store_true", help="print the figures as one last line too")
    options = parser.parse_args()
    there = options.log is not None and options.log.exists()
    found: list[Result] = [json.loads(line) for line in options.log.read_text().splitlines()] if there else []
    with tempfile.TemporaryDirectory() as folder:
        job = job_of(options.model, options.held_out)
        for seed in sorted(set(options.seeds) - {one["seed"] for one in found}):
            found.append(measured(seed, job, folder, options))
            print(found[-1].get("error", f"seed {seed}: {found[-1].get('seconds', 0):.0f} s"), flush=True)
            if options.log is not None:
                with options.log.open("a") as file:
                    file.write(json.dumps(found[-1]) + "\n")
    print_table([one for one in found if "error" not in one], json_too=options.json)


if __name__ == "__main__":
    main()
