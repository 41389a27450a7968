"""The demo's routing policy as a task for whole runs: rows, a run through the public door, and the gap it closes."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from trl_distill import LLMTrainingParams, evaluate, train
from trl_distill.evaluation.result import Interval

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from demo import LONG_PROMPT, SHORT_PROMPT, make_messages

POLICY, MESSAGE = LONG_PROMPT.split("Message: {input}")
MESSAGE = "Message: {input}" + MESSAGE
COLUMN = "privileged_context"  # with the policy, as sdft reads it
ROWS, UNSEEN = "rows.jsonl", "unseen.jsonl"
__all__ = [
    "COLUMN",
    "LONG_PROMPT",
    "MESSAGE",
    "ROWS",
    "SHORT_PROMPT",
    "UNSEEN",
    "Outcome",
    "outcome_of",
    "write_rows",
]


@dataclass(frozen=True)
class Outcome:
    """What a run has reached on unseen messages.

    Attributes:
        right: Exactly right answers in percent: the student before, after, and the teacher under the policy.
        gap: The share of the gap that it closed, with its interval; None if there is no gap.
        seconds: Of the run, without the evaluation.
    """

    right: tuple[float, float, float]
    gap: Interval | None
    seconds: float

    @property
    def closed(self) -> float:
        """The share of the gap that was closed; NaN without one."""
        return float("nan") if self.gap is None else self.gap.estimate

    @property
    def shown(self) -> str:
        """The same with its interval, in percent."""
        return "-" if self.gap is None else f"{self.gap.estimate:.0%} ({self.gap.low:.0%} to {self.gap.high:.0%})"


def write_rows(folder: Path, *, count: int, unseen: int, seed: int = 1) -> None:
    """Write messages to train on, and others with the right answers to evaluate on."""
    for name, number, held_out, drawn in ((ROWS, count, False, seed), (UNSEEN, unseen, True, 2)):
        rows = make_messages(number, held_out=held_out, seed=drawn).items()
        lines = [{"text": text, COLUMN: POLICY, **({"answer": answer} if held_out else {})} for text, answer in rows]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def outcome_of(params: LLMTrainingParams, *, teacher: str, unseen: Path) -> Outcome:
    """Run and evaluate; nothing is printed.

    Args:
        params: The run.
        teacher: Who reads the policy in the evaluation.
        unseen: The rows to evaluate on.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        started = time.perf_counter()
        model = train(params)
        seconds = time.perf_counter() - started
        score = evaluate(
            model, str(unseen), reference_column="answer", teacher_model=teacher, teacher_prompt=LONG_PROMPT
        )
    sides = {side: summary["scores"][score.figures["metric"]] for side, summary in score.figures["sides"].items()}
    return Outcome((sides["before"], sides["after"], sides["teacher"]), score.figures["gap_closed"], seconds)
