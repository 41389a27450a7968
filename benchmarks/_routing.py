"""The demo's routing policy as a task for whole runs: rows, a run through the public door, and the gap it closes."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from trl_distill import LLMTrainingParams, evaluate, generate_with_teacher, train
from trl_distill.evaluation.result import Interval

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from demo import LONG_PROMPT, SHORT_PROMPT, make_messages

POLICY, MESSAGE = LONG_PROMPT.split("Message: {input}")
MESSAGE = "Message: {input}" + MESSAGE
COLUMN = "privileged_context"  # with the policy, as sdft reads it
Prompt = str | list[dict[str, str]]  # text, or messages
ROWS, UNSEEN = "rows.jsonl", "unseen.jsonl"
__all__ = [
    "COLUMN",
    "LONG_PROMPT",
    "MESSAGE",
    "ROWS",
    "SHORT_PROMPT",
    "UNSEEN",
    "Outcome",
    "Prompt",
    "outcome_of",
    "with_completions",
    "write_rows",
]


@dataclass(frozen=True)
class Outcome:
    """What a run has reached on unseen messages.

    Attributes:
        right: Exactly right answers in percent, or chrF against the teacher's completions: the student before, after,
            and the teacher.
        gap: The share of the gap that it closed, with its interval; None if there is no gap.
        divergence: The student's mean divergence from the teacher before and after, in nats per token, at T = 1.
        seconds: Of processor time that the run used, without the evaluation.
    """

    right: tuple[float, float, float]
    gap: Interval | None
    divergence: tuple[float, float]
    seconds: float

    @property
    def closed(self) -> float:
        """The share of the gap that was closed; NaN without one."""
        return float("nan") if self.gap is None else self.gap.estimate

    @property
    def removed(self) -> float:
        """The share of the divergence that the run has removed."""
        return 1 - self.divergence[1] / self.divergence[0]

    @property
    def shown(self) -> str:
        """The same with its interval, in percent."""
        return "-" if self.gap is None else f"{self.gap.estimate:.0%} ({self.gap.low:.0%} to {self.gap.high:.0%})"


def with_completions(folder: Path, *, teacher: str, prompt: Prompt, tokens: int) -> None:
    """Add the teacher's completions to the rows to train on, so that several runs share them."""
    rows = [json.loads(line) for line in (folder / ROWS).read_text(encoding="utf-8").splitlines()]
    said = generate_with_teacher(teacher, prompt, rows, max_new_tokens=tokens, batch_size=16, progress=False)
    lines = [
        json.dumps({"text": row["text"], "completion": one["completion"]}) for row, one in zip(rows, said, strict=True)
    ]
    (folder / ROWS).write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_rows(folder: Path, *, count: int, unseen: int, seed: int = 1) -> None:
    """Write messages to train on, and others with the right answers to evaluate on."""
    for name, number, held_out, drawn in ((ROWS, count, False, seed), (UNSEEN, unseen, True, 2)):
        rows = make_messages(number, held_out=held_out, seed=drawn).items()
        lines = [{"text": text, COLUMN: POLICY, **({"answer": answer} if held_out else {})} for text, answer in rows]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def outcome_of(
    params: LLMTrainingParams, *, teacher: str, unseen: Path, teacher_prompt: Prompt = LONG_PROMPT, answers: bool = True
) -> Outcome:
    """Run and evaluate; nothing is printed.

    Args:
        params: The run.
        teacher: The teacher in the evaluation.
        unseen: The rows to evaluate on.
        teacher_prompt: What the teacher reads in the evaluation.
        answers: Whether the rows' answers are the references, else the teacher's completions are.
    """
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        started = time.process_time()
        model = train(params)
        seconds = time.process_time() - started
        score = evaluate(
            model, str(unseen), reference_column="answer" if answers else None, teacher_model=teacher,
            teacher_prompt=teacher_prompt, max_new_tokens=params.distill_max_teacher_length,
        )  # fmt: skip
    sides = score.figures["sides"]
    right = [sides[name]["scores"][score.figures["metric"]] for name in ("before", "after", "teacher")]
    divergence = [sides[name]["divergence"] for name in ("before", "after")]
    return Outcome((right[0], right[1], right[2]), score.figures["gap_closed"], (divergence[0], divergence[1]), seconds)
