"""Rows to aligned token ids: render both prompts, find or write the completion, fit it into both models.

The outcome is a Dataset with `row`, `student_prompt`, `teacher_prompt` and `completion` (token ids), which
`DistillationCollator` takes, and a `Preflight` that says what was done.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from random import Random
from typing import TYPE_CHECKING, Any

from datasets import Features, List, Value

from . import turns
from .arrow_values import column_of, highest_of, lengths_of
from .assistant_turn import ChatTurns
from .chat_rendering import NOW
from .conversation import KWARGS, OWN, TOOLS, check_prompts, options_of, render
from .crossing import COLUMNS as CROSSING_COLUMNS
from .data import RowReport, read_rows
from .errors import DataError, ParamsError, TemplateError
from .fitting import check_ids, fit
from .preflight import Preflight, differ
from .prompt_tokens import PromptTokens
from .prompts import SYSTEM_ROLES, Template
from .row_tokens import WITH_TOOLS, completion_of_text, row_frame, source_of, tokenize_row
from .rows import NoUsableRows
from .serving_template import Frame, Serving, marked, serving_of
from .split import Split
from .teachers.answers import EMPTY
from .teachers.base import Completion
from .tokenized import check_tokenized, is_tokenized, read_tokenized
from .turns import fit_stretches
from .usage import Example

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from .crossing import Crossing
    from .schedules import Weighing

COLUMNS = ("row", "student_prompt", "teacher_prompt", "completion")
IDS = List(Value("int64"))
TOKENS = Features(  # of a row once it is tokenized; a column that is empty in the first rows has a type all the same
    {
        **{"row": Value("int64"), "source": Value("string"), "finished": Value("bool"), "unusable": Value("string")},
        **{"read": Value("string"), "asked": Value("string"), "chat": Value("bool"), "dropped": Value("bool")},
        **{"opening": Value("string"), "foreign": Value("bool"), "frame": Value("string"), "text": Value("string")},
        **dict.fromkeys(("student_prompt", "teacher_prompt", "completion", "whole", *turns.COLUMNS), IDS),
    }
)
Write = Callable[[list[Any]], list[Completion]]
SHOWN_IDS = 8  # of a row that is token ids without a prompt


@dataclass(frozen=True)
class Reading:
    """One model's side: what it reads and how much of it.

    Attributes:
        tokenizer: Of the prompts.
        template: Renders a row's prompt.
        limit: Tokens a sequence may have; None is no limit.
        rows: Rows of the model's vocabulary, for a check of the ids it reads; None is no check.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    limit: int | None
    rows: int | None = None

    @cached_property
    def turns(self) -> ChatTurns:
        """Renders the assistant's turns of conversations."""
        return ChatTurns(self.tokenizer)

    @cached_property
    def prompt_tokens(self) -> PromptTokens:
        """Turns rendered prompts into token ids, what they begin with once."""
        return PromptTokens(self.tokenizer)


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; see `data.read_rows`."""

    text: str = "text"
    prompt: str | None = None
    completion: str | None = None
    max_bad_rows: int = 0
    assistant_turns: bool = False


@dataclass(frozen=True)
class Recipe:
    """How rows become token ids.

    Attributes:
        student: The student's side.
        teacher: The teacher's side.
        columns: Where to look in the data.
        completions: "auto", "data" or "teacher", see DESIGN and `sources_of`.
        plain_text: Under "auto", a row of text alone and two templates `{input}` is learnt as SFT would.
        overflow: "error" or "left", see `fitting.fit`.
        write: Has the teacher write completions for its prompts: token ids, or text and messages (`reads_text`).
        vocabulary: Rows that both models share: a completion's ids are among them.
        reads_text: The teacher is handed prompts as text or chat messages.
        as_read: What of such a prompt its ids are made from; None takes its text alone.
        estimates: Whether these ids only estimate the prompt's length.
        take: Fetches what a server says of prepared rows, and returns the share of completion tokens with targets;
            called with the rows and with whether at least one token must have any.
        weighing: How the loss is weighed, with what is another than asked for; None is not known.
        crossing: How the completion becomes tokens of a teacher with another tokenizer; None where it is the student's.
        in_one_piece: Why a completion may have no gaps, as the end of a sentence; None where it may.
        prompt_dropout: Share of the training rows in which the student reads the teacher's prompt.
        teaches_nothing: Returns whether the teacher has nothing to teach where both read the same tokens, see
            `same_weights`; None is no check.
        seed: Of the draw of those rows.
        num_proc: Processes that read and tokenize; None is this one.
        serves: Whether the saved chat template renders the student's prompt, see `serving_template`.
        options: Keywords of both chat templates; a row's own take their place.
    """

    student: Reading
    teacher: Reading
    columns: Columns
    write: Write
    completions: str = "auto"
    plain_text: bool = True
    overflow: str = "error"
    vocabulary: int | None = None
    reads_text: bool = False
    as_read: Callable[[Any], Any] | None = None
    estimates: bool = False
    take: Callable[[Dataset, bool], float] | None = None
    weighing: Weighing | None = None
    crossing: Crossing | None = None
    in_one_piece: str | None = None
    prompt_dropout: float = 0.0
    teaches_nothing: Callable[[], bool] | None = None
    seed: int = 0
    serves: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    num_proc: int | None = None

    @cached_property
    def dropped_tokens(self) -> PromptTokens:
        """Turns the teacher's prompts into the student's token ids."""
        return PromptTokens(self.student.tokenizer)

    def drops(self, row: Mapping[str, Any]) -> bool:
        """Whether the student reads the teacher's prompt in a row, drawn by the seed, the row's number and its text."""
        if self.prompt_dropout == 0:
            return False
        return Random(f"{self.seed} {row['row']} {row['input']}").random() < self.prompt_dropout


def is_prepared(dataset: Any) -> bool:
    """Whether a dataset came out of `prepare`: its prompts are token ids, not a user's column of that name."""
    features = getattr(dataset, "features", None) or {}
    ids = [getattr(features.get(column), "feature", None) for column in COLUMNS[1:]]
    return "row" in features and all(getattr(kind, "dtype", "").startswith(("int", "null")) for kind in ids)


def read(dataset: Dataset, recipe: Recipe, *, name: str = "train") -> tuple[Dataset, RowReport]:
    """Read a dataset's rows and check the templates against its columns; needs no model.

    Raises:
        DataError: See `data.read_rows`.
        TemplateError: A template field that is no column.
    """
    columns, templates = recipe.columns, (recipe.student.template, recipe.teacher.template)
    if is_tokenized(dataset):
        needs = "cross_tokenizer is on" if recipe.crossing is not None else None
        needs = "completions is 'teacher'" if recipe.completions == "teacher" else needs
        check_tokenized(dataset, templates, needs=needs, source=name)
        return read_tokenized(dataset, source=name)
    rows, report = read_rows(
        dataset,
        text_column=columns.text,
        prompt_text_column=columns.prompt,
        completion_column=columns.completion,
        max_bad_rows=columns.max_bad_rows,
        assistant_turns=columns.assistant_turns,
        fields={field for template in templates for field in template.fields} | {*OWN, TOOLS, KWARGS},
        num_proc=recipe.num_proc,
        source=name,
    )
    for template in templates:
        template.check_columns(json.loads(rows[0]["values"]), read=dataset.column_names)
    check_prompts(rows, recipe.teacher.template, name=name)
    text = next((row["row"] for row in rows if row["history"] is None), None) if columns.assistant_turns else None
    if text is not None:
        raise DataError(
            f"{name}, row {text}, is text, and assistant_only_loss learns what the assistant says in conversations; "
            "give messages, or drop assistant_only_loss."
        )
    return rows, report


def prepare(
    dataset: Dataset | tuple[Dataset, RowReport],
    recipe: Recipe,
    *,
    split: Split = Split.TRAIN,
    name: str = "train",
    rows_at_most: int | None = None,
    whole: bool = True,
) -> tuple[Dataset, Preflight]:
    """Turn a dataset of any accepted form into aligned token ids.

    Args:
        dataset: The rows, or what `read` made of them.
        recipe: How.
        split: What the dataset is for.
        name: What to call the dataset in messages.
        rows_at_most: Rows to go on with after all have been read and checked (a dry run's sample).
        whole: Whether these are all rows of the dataset, not a block of a stream.

    Raises:
        DataError: Bad rows, a prompt that is too long, or completions asked of data that has none.
        ParamsError: Teacher and student are the same weights and read the same tokens in every row.
        TemplateError: A template field that is no column.
    """
    rows, report = dataset if isinstance(dataset, tuple) else read(dataset, recipe, name=name)
    if rows_at_most is not None and len(rows) > rows_at_most:
        rows, whole = rows.select(range(rows_at_most)), False
    aligned = align(rows, recipe, split=split, name=name, whole=whole)
    columns: tuple[str, ...] = COLUMNS if recipe.crossing is None else (*COLUMNS, *CROSSING_COLUMNS)
    if any(lengths_of(aligned, "completion_mask")):
        aligned, columns = mapped(aligned, turns.with_masks, f"Marking {name}"), (*COLUMNS, *turns.COLUMNS)
    required = whole and split is Split.TRAIN
    return conclude(aligned, rows, report, recipe, name=name, columns=columns, required=required, serves=required)


def align(rows: Dataset, recipe: Recipe, *, split: Split, name: str, whole: bool = True) -> Dataset:
    """Return rows that were read with their ids, completions and figures; `kept` counts the tokens to learn.

    Raises:
        DataError, ParamsError: See `prepare`.
    """
    if split is not Split.TRAIN:
        recipe = replace(recipe, prompt_dropout=0.0)  # evaluation is of the student under its own prompt
    _check_sources(rows, recipe, name)
    how: dict[str, Any] = {"remove_columns": rows.column_names, "features": TOKENS}
    # other processes get a copy, which must not hold the teacher; what is asked in text is asked here
    alone = recipe if recipe.reads_text else replace(recipe, write=_nobody, take=None, teaches_nothing=None)
    processes = {"num_proc": None if recipe.reads_text else recipe.num_proc}
    tokens = mapped(rows, partial(tokenize_row, recipe=alone, name=name), f"Tokenizing {name}", **how, **processes)
    turns.check_in_one_piece(tokens, recipe.in_one_piece, name=name)
    _check_ids(tokens, recipe, name)
    if whole and split is Split.TRAIN and recipe.teaches_nothing is not None:
        check_differs(rows, tokens, recipe, recipe.teaches_nothing, name=name)
    tokens = _write_missing(tokens, recipe, name)
    return mapped(tokens, partial(_fit, recipe=alone, name=name), f"Aligning {name}", **processes)


def _nobody(prompts: list[Any]) -> list[Completion]:
    """Stand for a teacher where none is asked."""
    raise AssertionError(f"{len(prompts)} prompts for nobody")


def conclude(
    fitted: Dataset,
    rows: Dataset,
    report: RowReport,
    recipe: Recipe,
    *,
    name: str,
    columns: tuple[str, ...] = COLUMNS,
    required: bool = False,
    serves: bool = False,
) -> tuple[Dataset, Preflight]:
    """Return what can be learnt of aligned rows, and the pre-flight.

    Args:
        fitted: What `align` returned.
        rows: What it was given.
        report: On the rows read.
        recipe: How.
        name: What to call the dataset in messages.
        columns: Those to return.
        required: Whether a server must have log-probabilities for at least one token.
        serves: Whether these are the rows whose prompts the student is served with.

    Raises:
        NoUsableRows: No row has a completion token.
    """
    kept = column_of(fitted, "kept").to_pylist()
    usable = fitted if all(kept) else fitted.select([i for i, tokens in enumerate(kept) if tokens > 0])
    learnt = set(column_of(usable, "row").to_pylist())
    reasons = dict(zip(*(column_of(fitted, column).to_pylist() for column in ("row", "unusable")), strict=True))
    empty = tuple((f"row {n}", why or "no completion token") for n, why in reasons.items() if n not in learnt)
    report = replace(report, used=report.used - len(empty), set_aside=(*report.set_aside, *empty))
    if len(usable) == 0:
        todo = "add completions, or let the teacher write them with --completions teacher."
        if "teacher" in column_of(fitted, "source").to_pylist() and any(reasons.values()):
            todo = f"{report.summary()}; change the teacher's prompt, or choose another teacher."
        raise NoUsableRows(f"{name}: no row has a completion token to learn; {todo}")
    coverage = None if recipe.take is None else recipe.take(usable, required)
    preflight = Preflight.of(usable, report, recipe, name, example=_example(usable, rows, recipe))
    serving = _serving(usable, rows, recipe) if serves and recipe.serves else None
    preflight = replace(preflight, coverage=coverage, serving=serving)
    return usable.select_columns(list(columns)), preflight


def _example(usable: Dataset, rows: Dataset, recipe: Recipe) -> Example:
    """Return the first row's prompt as the student reads it, whole and without the teacher's."""
    shown = next(
        (row for row in usable.select_columns(["row", "dropped", "opening", "student_prompt"]) if not row["dropped"]),
        usable[0],
    )
    row = next(row for row in rows if row["row"] == shown["row"])
    tokenizer, template, values = recipe.student.tokenizer, recipe.student.template, json.loads(row["values"])
    if row.get("ids") is not None:
        ids = usable[0]["student_prompt"] or usable[0]["completion"][:SHOWN_IDS]
        return Example(marked(row, template)["input"], {"input": tokenizer.decode(ids)}, {}, ids)
    options = {} if row["history"] is None else options_of(values, where="")
    options = {**{name: value for name, value in recipe.options.items() if name != NOW}, **options}
    frame = Frame(render(template, marked(row, template)), options).opened(json.loads(shown["opening"] or "{}"))
    try:
        ids = replace(frame, prompt=render(template, row)).prompt_ids(tokenizer)
    except TemplateError:  # one that only the training template takes
        ids = shown["student_prompt"]
    return Example(frame.prompt, {**values, "input": row["input"]}, frame.options, ids)


def _serving(usable: Dataset, rows: Dataset, recipe: Recipe) -> Serving | None:
    """Return how the student is served, None as its own chat template does or if no prompt was trained."""
    frames: list[Frame | None] = [None for key in usable.unique("frame") if key == WITH_TOOLS]
    found = {(row["frame"], row["opening"]): row["row"] for row in usable.select_columns(["row", "frame", "opening"])}
    for number, opening in [(n, o) for (key, o), n in found.items() if key not in ("", WITH_TOOLS)][:2]:
        row = next(row for row in rows if row["row"] == number)
        frames.append(row_frame(row, recipe, json.loads(opening or "{}")))
    return serving_of(recipe.student.tokenizer, recipe.student.template, frames) if frames else None


def mapped(dataset: Dataset, function: Callable[..., Any], what: str, **more: Any) -> Dataset:
    """Map a dataset; the fingerprint is made up, since the usual one would pickle the teacher that a recipe holds."""
    how: dict[str, Any] = {"load_from_cache_file": False, "new_fingerprint": uuid.uuid4().hex, **more}
    return dataset.map(partial(_by_row, function=function), batched=True, desc=what, **how)


def _by_row(batch: Mapping[str, list[Any]], *indices: list[int], function: Callable[..., Any]) -> dict[str, list[Any]]:
    """Apply a function of a row, and of its place if places are given, to the rows of a batch."""
    cells = zip(*batch.values(), strict=True)
    rows = [function(dict(zip(batch, values, strict=True)), *i) for values, *i in zip(cells, *indices, strict=True)]
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(chain.from_iterable(rows))}


def _check_sources(rows: Dataset, recipe: Recipe, name: str) -> None:
    """Refuse `completions="data"` where the data has none."""
    if recipe.completions != "data":
        return
    lacking = [row["row"] for row in rows if source_of(row, recipe) == "teacher"]
    if lacking:
        raise DataError(
            f"{name}: {len(lacking)} rows have no completion (row {', '.join(map(str, lacking[:10]))}) and completions "
            "is 'data'; name the column with --completion-column, or let the teacher write with --completions teacher."
        )


def _check_ids(tokens: Dataset, recipe: Recipe, name: str) -> None:
    """Refuse ids that a model which reads them does not have."""
    checks = (
        ("student_prompt", recipe.student.rows, "the student's prompt", "the student has"),
        ("teacher_prompt", recipe.teacher.rows, "the teacher's prompt", "the teacher has"),
        ("completion", recipe.vocabulary, "the completion", "teacher and student share")
        if recipe.crossing is None
        else ("completion", recipe.student.rows, "the completion", "the student has"),
    )
    for column, rows, what, whose in checks:
        if rows is None or highest_of(tokens, column) < rows:
            continue
        for number, ids in zip(tokens["row"], tokens[column], strict=True):
            check_ids(ids, rows, what=what, whose=whose, where=f"{name}, row {number}")


def check_differs(
    rows: Dataset,
    tokens: Iterable[Mapping[str, Any]],
    recipe: Recipe,
    teaches_nothing: Callable[[], bool],
    *,
    name: str,
) -> None:
    """Refuse the same weights that read the same tokens in every row.

    Args:
        rows: What `read_rows` made of the data.
        tokens: The same rows with both prompts' ids; read up to the first that differs.
        recipe: How they became so.
        teaches_nothing: Whether the teacher then has nothing to teach.
        name: What to call the dataset in messages.

    Raises:
        ParamsError: Saying which flag to change.
    """
    if any(differ(row) for row in tokens) or not teaches_nothing():
        return
    histories = [json.loads(history) for history in rows["history"] if history is not None]
    with_system = any(message["role"] in SYSTEM_ROLES for history in histories for message in history)
    if "ids" in rows.column_names:
        do = "give rows of text or messages, and the teacher a prompt of its own"
    elif recipe.prompt_dropout == 1:
        do = "lower --teacher-prompt-dropout, under which the student reads the teacher's prompt"
    elif with_system and recipe.student.template.system.keep:
        do = "add student_system='drop', so that the student learns to do without the rows' system message"
    else:
        do = "give the teacher a prompt of its own with --teacher-system or --teacher-prompt-template"
    raise ParamsError(
        f"{name}: teacher and student are the same weights and read the same tokens in every row, which teaches "
        f"nothing; {do}, or another --teacher-model (--distill-alpha 0 learns from the completions alone)."
    )


def _write_missing(tokens: Dataset, recipe: Recipe, name: str) -> Dataset:
    """Have the teacher write the completions that are missing."""
    places = [i for i, source in enumerate(column_of(tokens, "source").to_pylist()) if source == "teacher"]
    if not places:
        return tokens
    if recipe.overflow == "error":
        _check_lengths(tokens, recipe, name)
    prompts: list[Any] = [_cut(tokens[i]["teacher_prompt"], recipe) for i in places]
    if recipe.reads_text:
        prompts = [json.loads(tokens[i]["read"]) for i in places]
    written = dict(zip(places, recipe.write(prompts), strict=True))

    def put(row: dict[str, Any], i: int) -> dict[str, Any]:
        if i not in written:
            return row
        ids, finished, text = list(written[i].ids), written[i].finished, written[i].text
        if recipe.crossing is not None:
            return {**row, **recipe.crossing.taken(ids, finished=finished, chat=row["chat"]), "finished": finished}
        if text is not None:
            unusable = written[i].unusable or ("" if text.strip() else EMPTY)
            if unusable:
                return {**row, "completion": [], "unusable": unusable}
            own = completion_of_text(row, text, recipe, reasoning=written[i].reasoning, finished=finished)
            return {**row, **own, "finished": finished}
        return {**row, "completion": ids, "finished": finished}

    return mapped(tokens, put, "Taking completions", with_indices=True)


def _check_lengths(tokens: Dataset, recipe: Recipe, name: str) -> None:
    """Refuse prompts that leave no room for a completion, before the teacher writes for any row."""
    limits: Any = {"student_limit": recipe.student.limit, "teacher_limit": recipe.teacher.limit}
    for row in tokens.select_columns(["row", "source", "student_prompt", "teacher_prompt", "completion"]):
        if row["source"] == "teacher" or row["completion"]:
            fit(row["student_prompt"], row["teacher_prompt"], [0], where=f"{name}, row {row['row']}", **limits)


def _cut(prompt: list[int], recipe: Recipe) -> list[int]:
    """Cut the start of a teacher's prompt that would leave it no room to write."""
    limit = recipe.teacher.limit
    return prompt if limit is None or len(prompt) < limit else prompt[-(limit // 2) :]


def _fit(row: dict[str, Any], recipe: Recipe, name: str) -> dict[str, Any]:
    """Fit a row into both models."""
    if not row["completion"]:
        empty: dict[str, Any] = {key: [] for key in CROSSING_COLUMNS if recipe.crossing is not None}
        return {**row, **empty, "prompt_cut": 0, "completion_cut": 0, "kept": 0}
    limits = {"student_limit": recipe.student.limit, "teacher_limit": recipe.teacher.limit}
    how: Any = {**limits, "overflow": recipe.overflow, "where": f"{name}, row {row['row']}"}
    if row["completion_mask"]:
        return {**row, **fit_stretches(row, **how)}
    if recipe.crossing is not None:
        pieces = recipe.crossing.fit(row, **how)
        unpredictable = not pieces["student_prompt"] or not pieces["teacher_prompt"]
        return {**row, **pieces, "kept": len(pieces["completion"]) - unpredictable}
    fitted = fit(
        row["student_prompt"],
        row["teacher_prompt"],
        row["completion"],
        **how,
    )
    unpredictable = not fitted.student_prompt or not fitted.teacher_prompt
    return {
        **row,
        "student_prompt": fitted.student_prompt,
        "teacher_prompt": fitted.teacher_prompt,
        "completion": fitted.completion,
        "prompt_cut": fitted.prompt_cut,
        "completion_cut": fitted.completion_cut,
        "kept": len(fitted.completion) - unpredictable,
    }
