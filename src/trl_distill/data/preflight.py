"""The pre-flight: what a run is about to learn, in a few lines. A dry run shows only this."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config.setting_names import name_settings
from ..errors import counted, printable
from ..prompts.fitting import Limit
from .arrow_values import array_of, column_of, counts_of, lengths_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..losses.schedule import LossSchedule
    from ..prompts.serving_template import Serving
    from .example import Example, Placeholder
    from .recipe import RowRecipe
    from .row_faults import Cells
    from .row_report import RowReport


SOURCES = {
    "data": "the data",
    "text": "the text itself, as SFT would train on it",
    "teacher": "the teacher, under its prompt",
}
SAME = "teacher and student are the same weights and read the same tokens, which teaches nothing"
COMPUTES = "training      "  # the label of how a run computes
SHOWN_TOKENS = 120  # of a prompt in the first row: a screen holds both sides


@dataclass(frozen=True)
class Preflight:
    """Figures of a prepared dataset; lengths are in tokens.

    Attributes:
        name: The dataset.
        rows: How many rows are used and set aside.
        sources: Rows by where their completion comes from.
        student_prompt: Mean length of the student's prompts.
        teacher_prompt: Mean length of the teacher's prompts.
        completion: Smallest, mean and largest length of the completions.
        completions_cut: Completions cut at a length limit or unfinished by the teacher: they are taught no end.
        unfinished: Those of them that the teacher wrote to the length it may write, and did not end.
        empty: Completions by the teacher that have nothing before their end.
        limit: The student's length limit and its source; None without a limit.
        prompts_cut: Rows whose prompt lost its start.
        vocabulary: Rows of the vocabulary that both models share.
        first: The first row as the student and the teacher see it, and the completion.
        example: The prompt of the first row.
        placeholder: The same with placeholders for what the row brings.
        matched: Tokens that a teacher with another tokenizer has too; None if it has the student's.
        compared: Share of the completion tokens at which such a teacher is compared with the student.
        teachers: With several teachers, the name, number of rows and first prompt of each.
        text_only: Whether the teacher gives text only.
        schedule: The loss, with the settings that were changed; None if not known.
        estimated: Whether the teacher's prompts are counted with the student's, different, tokenizer.
        dropped: Rows in which the student reads the teacher's prompt.
        retained: The number of rows to retain, their source and their own pre-flight.
        notes: Sentences about settings that the user may not have intended.
        warning: Why the run teaches nothing or saves no prompt tokens; empty if neither is the case.
        openings: Rows by how their prompt differs from the student's own generation prompt: `Turn.opening` as JSON.
        foreign: Rows in which the teacher's chat template would write the assistant's turn in other words.
        coverage: Share of the completion tokens for which a server gave log-probabilities; None if none was asked.
        serving: How the student is served; None for its own chat template, or no template.
    """

    name: str
    rows: RowReport
    sources: dict[str, int]
    student_prompt: float
    teacher_prompt: float
    completion: tuple[int, float, int]
    completions_cut: int
    prompts_cut: int
    vocabulary: int | None
    first: tuple[str, str, str]
    example: Example
    placeholder: Placeholder
    text_only: bool = False
    schedule: LossSchedule | None = None
    matched: int | None = None
    compared: float = 1.0
    teachers: tuple[tuple[str, int, str], ...] = ()
    estimated: bool = False
    coverage: float | None = None
    dropped: int = 0
    openings: dict[str, int] = field(default_factory=dict)
    foreign: int = 0
    retained: tuple[int, str, Preflight] | None = None
    notes: tuple[str, ...] = ()
    warning: str = ""
    serving: Serving | None = None
    unfinished: int = 0
    empty: int = 0
    limit: int | None = None

    @classmethod
    def of(
        cls,
        rows: Dataset,
        report: RowReport,
        recipe: RowRecipe,
        name: str,
        *,
        example: Example,
        placeholder: Placeholder,
    ) -> Preflight:
        """Measure a prepared dataset."""
        lengths = lengths_of(rows, "completion")
        if "completion_mask" in rows.column_names and lengths_of(rows, "completion_mask").any():
            lengths = np.array([sum(mask) for mask in column_of(rows, "completion_mask").to_pylist()])
        finished, sources = array_of(rows, "finished"), array_of(rows, "source")
        row = rows[0]
        pair = recipe.tokenizer_pair
        return cls(
            name=name,
            rows=report,
            sources=counts_of(rows, "source"),
            student_prompt=float(lengths_of(rows, "student_prompt").mean()),
            teacher_prompt=float(lengths_of(rows, "teacher_prompt").mean()),
            completion=(int(lengths.min()), float(lengths.mean()), int(lengths.max())),
            completions_cut=int(((array_of(rows, "completion_cut") > 0) | ~finished).sum()),
            prompts_cut=int((array_of(rows, "prompt_cut") > 0).sum()),
            vocabulary=recipe.vocabulary,
            first=(
                text_of(recipe.student.tokenizer, row["student_prompt"]),
                text_of(recipe.teacher.tokenizer, row["teacher_prompt"]),
                text_of(recipe.student.tokenizer, row["completion"]),
            ),
            example=example,
            placeholder=placeholder,
            matched=None if pair is None else pair.shared,
            compared=float(lengths_of(rows, "student_starts").sum() / lengths.sum()) if pair is not None else 1.0,
            text_only=recipe.gives_text_alone,
            schedule=recipe.schedule,
            estimated=recipe.estimates,
            dropped=int(array_of(rows, "dropped").sum()),
            notes=(*notes_of(recipe), *unread_systems(int(array_of(rows, "own_system").sum()), recipe)),
            warning=_warning(rows, recipe),
            unfinished=int((~finished & (sources == "teacher")).sum()),
            empty=int((finished & (sources == "teacher") & (lengths == 1)).sum()),
            limit=recipe.student.limit,
            openings=counts_of(rows, "opening"),
            foreign=int(array_of(rows, "foreign").sum()),
        )

    @property
    def saved(self) -> float:
        """Prompt tokens saved per query."""
        return self.teacher_prompt - self.student_prompt

    @property
    def changed(self) -> Mapping[str, tuple[str, str]]:
        """Settings of the loss that were changed: what was asked for, and why."""
        return {} if self.schedule is None else self.schedule.changed

    def text(self, *, computes: str = "") -> str:
        """Return the lines for the terminal; `computes` says how the run computes, if that is to be shown."""
        low, middle, high = self.completion
        sources = "; ".join(f"{n:,} from {SOURCES[s]}" for s, n in sorted(self.sources.items()))
        lines = [
            f"Pre-flight ({self.name})",
            f"  rows          {self.rows.summary()}",
            f"  completions   {sources}",
            f"  prompt        student {self.student_prompt:,.1f} tokens, teacher {self.teacher_prompt:,.1f}; "
            f"{self.saved:,.1f} saved per query"
            + (" (estimated with the student's tokenizer)" if self.estimated else ""),
            f"  completion    {low:,} to {high:,} tokens, mean {middle:,.1f}; {self.completions_cut:,} cut"
            + (" (trained without an end of sequence)" if self.completions_cut else ""),
        ]
        lines += self._cut()
        if self.prompts_cut:
            lines.append(f"  cut prompts   {self.prompts_cut:,} rows lost the start of a prompt")
        if self.dropped:
            lines.append(f"  dropout       {self.dropped:,} rows show the student the teacher's prompt")
        lines += self._rendered()
        if self.retained is not None:
            lines.append(f"  retained      {self._retained(*self.retained)}")
        if self.text_only:
            asked = f"; alpha {self.changed['distill_alpha'][0]} counts as 0" if "distill_alpha" in self.changed else ""
            lines.append(f"  loss          cross-entropy alone: the teacher gives text, no probabilities{asked}")
        elif self.matched is not None:
            lines.append(
                f"  tokenizers    {self.matched:,} tokens matched, compared at {self.compared:.1%} of the "
                "completion tokens"
            )
        elif self.coverage is not None:
            lines.append(
                f"  loss          {self.coverage:.1%} of completion tokens have the teacher's log-probabilities; "
                "cross-entropy alone at the others"
            )
        elif self.vocabulary is not None:
            lines.append(f"  vocabulary    {self.vocabulary:,} rows shared")
        if "distill_temperature" in self.changed:
            asked, why = self.changed["distill_temperature"]
            lines.append(f"  temperature   1 on both sides instead of {asked}: {why}")
        lines += [f"  {COMPUTES}{computes}"] if computes else []
        lines += [f"  warning       {self.warning}"] if self.warning else []
        lines += [f"  note          {note}" for note in self.notes]
        if self.serving is not None:
            lines.append(f"  chat template {self.serving.line}")
        lines += [
            f"  teacher {n}     {who}: {counted(rows, 'row')}" for n, (who, rows, _) in enumerate(self.teachers, 1)
        ]
        lines = [name_settings(line) for line in lines]
        for label, text in self._first_texts():
            lines += [f"  {label}:", *(f"    | {line}" for line in text.split("\n"))]
        return printable("\n".join(lines))

    def _cut(self) -> list[str]:
        lines, others = [], self.completions_cut - self.unfinished
        if others > 0:
            remedy = f"; {self.limit.remedy}" if isinstance(self.limit, Limit) and self.limit.remedy else ""
            lines.append(f"  cut           {others:,} did not fit into a sequence, or were already cut{remedy}")
        if self.unfinished:
            were = "was" if self.unfinished == 1 else "were"
            lines.append(
                f"  cut           {self.unfinished:,} {were} not ended by the teacher; raise "
                "--distill-max-teacher-length, or give --teacher-stop the text with which a base model continues"
            )
        if 2 * self.unfinished > self.sources.get("teacher", 0):
            lines.append(
                f"  warning       the teacher ends {self.sources['teacher'] - self.unfinished:,} of its "
                f"{counted(self.sources['teacher'], 'completion')}: the student does not learn to stop either"
            )
        if self.empty:
            lines.append(
                f"  warning       the teacher writes nothing in {self.empty:,} of its "
                f"{counted(self.sources['teacher'], 'completion')}, and the student learns to; check the teacher's "
                "prompt, or give another --teacher-model"
            )
        return [name_settings(line) for line in lines]

    @property
    def opening(self) -> dict[str, object]:
        """The common difference of the student's prompts from its generation prompt; see `Turn.opening`."""
        if len(self.openings) != 1:
            return {}
        return dict(json.loads(next(iter(self.openings)) or "{}"))

    def _rendered(self) -> list[str]:
        lines = []
        for text, rows in self.openings.items():
            if not text:
                continue
            opening = json.loads(text)
            left_out = opening.pop("left_out", None)
            how = ", ".join(f"{name}={json.dumps(value)}" for name, value in opening.items())
            what = f"rendered with {how}" if left_out is None else f"without {left_out!r} at the end of the prompt"
            own = "its" if rows == 1 else "their"
            lines.append(
                f"  template      {counted(rows, 'row')} {what}: {own} turns do not begin with the generation prompt; "
                f"{_remedy(opening, left_out)}"
            )
        if self.foreign:
            lines.append(
                f"  template      the teacher reads {self.foreign:,} turns as the student's chat template writes them; "
                "its own writes them otherwise"
            )
        return lines

    def _retained(self, count: int, source: str, own: Preflight) -> str:
        share = count / (count + sum(self.sources.values()))
        written = own.sources.get("teacher", 0)
        by = f", {counted(written, 'completion')} written by the initial student" if written else ""
        again = f", {own.rows.used:,} different ones" if own.rows.used < count else ""
        return f"{counted(count, 'more row')} ({share:.1%}) of {source}{again}{by}"

    def _first_texts(self) -> list[tuple[str, str]]:
        """Return the texts to show, with what they are: of several teachers each one's first prompt."""
        student, teacher, completion = self.first
        theirs = [("first row, teacher", teacher)]
        if self.teachers:
            theirs = [(f"first row of teacher {n}", text) for n, (_, rows, text) in enumerate(self.teachers, 1) if rows]
        return [("first row, student", student), *theirs, ("first row, completion", completion)]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data, for the run's report and the model card."""
        return {
            "rows": self.rows.used,
            "rows_set_aside": self.rows.total - self.rows.used,
            "completions_from": self.sources,
            "student_prompt_tokens": round(self.student_prompt, 1),
            "teacher_prompt_tokens": round(self.teacher_prompt, 1),
            "prompt_tokens_saved": round(self.saved, 1),
            "completion_tokens": round(self.completion[1], 1),
            "completions_cut": self.completions_cut,
            "vocabulary_rows_shared": self.vocabulary,
            **({} if self.matched is None else {"tokens_matched": self.matched, "compared": round(self.compared, 4)}),
            **({"rows_of_teachers": [rows for _, rows, _ in self.teachers]} if self.teachers else {}),
            **({"rows_with_the_teachers_prompt": self.dropped} if self.dropped else {}),
            **({} if self.retained is None else {"rows_retained": self.retained[0]}),
            **({"used_instead": self.schedule.used} if self.schedule is not None and self.changed else {}),
            **({} if self.coverage is None else {"teacher_coverage": round(self.coverage, 4)}),
        }


def prompts_differ(row: Cells) -> bool:
    """Whether teacher and student read different tokens in a row."""
    between = bool(row.get("completion_mask")) and row["completion"] != row["teacher_completion"]
    return bool(row["student_prompt"] != row["teacher_prompt"]) or between


def _remedy(opening: Mapping[str, object], left_out: str | None) -> str:
    """Return what to do about turns that do not begin with the generation prompt; see `Turn.opening`."""
    if left_out is not None and "</think>" in left_out:  # the prompt has an empty block where the row has reasoning
        return "remove their reasoning, or leave enable_thinking=false out of --chat-template-kwargs"
    if left_out is not None:
        return (
            "give rows whose turns begin with it, or another --chat-template; or leave out enable_thinking, if you "
            "have given it"
        )
    thinks = bool(opening["enable_thinking"])
    asked, given = ("", "without") if thinks else ("not ", "with")
    return (
        f"if the student is {asked}to reason, give --chat-template-kwargs "
        f"'{json.dumps(dict(opening))}', else give rows {given} reasoning"
    )


def _warning(rows: Dataset, recipe: RowRecipe) -> str:
    """Return a warning if the teacher's prompt is not longer than the student's; see `Preflight.warning`."""
    student, teacher = (lengths_of(rows, f"{side}_prompt").sum() for side in ("student", "teacher"))
    if teacher > student:
        return ""
    same = recipe.teaches_nothing is not None and recipe.teaches_nothing()
    if not any(prompts_differ(row) for row in rows):
        return SAME if same else ""
    mine, theirs = (
        ([(role, text.pieces) for role, text in template.messages], template.system)
        for template in (recipe.student.template, recipe.teacher.template)
    )
    if mine == theirs and not same:
        return ""  # a larger teacher under the same prompt: nothing was to be saved
    system = recipe.student.template.system
    drop = " or --student-system drop" if system.keep or system.text is not None else ""
    return (
        "no prompt token is saved: the teacher's prompt is not longer than the student's; lengthen it with "
        f"--teacher-system or --teacher-prompt-template, or shorten the student's with --student-prompt-template{drop}"
    )


def unread_systems(count: int, recipe: RowRecipe) -> tuple[str, ...]:
    """Return a note if `teacher_system` replaces the system messages that `count` rows have."""
    student, teacher = recipe.student.template.system, recipe.teacher.template.system
    if not count or teacher.keep:
        return ()
    rows = f"{count:,} rows have system messages of their own"
    rows = "1 row has a system message of its own" if count == 1 else rows
    if student.keep:
        return (f"{rows}, which only the student reads: --teacher-system replaces them for the teacher",)
    keep = "; --student-system keep leaves them to the student" if student.text is None else ""
    return (f"{rows}, which neither model reads: --teacher-system replaces them{keep}",)


def notes_of(*recipes: RowRecipe) -> tuple[str, ...]:
    """Return notes on the templates of one or several teachers."""
    found = [note for r in recipes for side in (r.student, r.teacher) for note in side.template.notes()]
    return tuple(dict.fromkeys(found))


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return the text of token ids, with the middle omitted if it is long."""
    if len(ids) <= SHOWN_TOKENS:
        return str(tokenizer.decode(ids))
    half = SHOWN_TOKENS // 2
    gap = f" [... {len(ids) - SHOWN_TOKENS:,} tokens ...] "
    return f"{tokenizer.decode(ids[:half])}{gap}{tokenizer.decode(ids[-half:])}"
