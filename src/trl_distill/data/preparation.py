"""Rows to aligned token ids: render both prompts, find or write the completion, fit it into both models.

The outcome is a Dataset with `row`, `student_prompt`, `teacher_prompt` and `completion` (token ids), which
`DistillationCollator` takes, and a `Preflight` that says what was done.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from datasets import Features, List, Value

from ..errors import DataError, ParamsError, TemplateError
from ..models.generation import EMPTY, Completion
from ..prompts import multi_turn as turns
from ..prompts.chat_template import NOW
from ..prompts.fitting import check_ids, fit
from ..prompts.rendering import KWARGS, OWN, TOOLS, check_prompts, options_of, render
from ..prompts.serving_template import Frame, Serving, marked, serving_of
from ..prompts.template import SYSTEM_ROLES
from .arrow_values import array_of, column_of, highest_of, lengths_of
from .cross_tokenizer.tokenizer_pair import COLUMNS as CROSSING_COLUMNS
from .loading import RowReport, read_rows
from .preflight import Example, Preflight, differ
from .pretokenized import check_tokenized, is_tokenized, read_tokenized
from .row_tokens import WITH_TOOLS, check_in_one_piece, completion_of_text, fit_row, row_frame, source_of, tokenize_row
from .rows import NoUsableRows
from .split import Split

if TYPE_CHECKING:
    from datasets import Dataset

    from .recipe import Recipe

COLUMNS = ("row", "student_prompt", "teacher_prompt", "completion")
IDS = List(Value("int64"))
ALIGNED = Features(  # of a row that is fitted; a column that is empty in the first rows has a type all the same
    {
        **{"row": Value("int64"), "source": Value("string"), "finished": Value("bool"), "unusable": Value("string")},
        **{"read": Value("string"), "asked": Value("string"), "chat": Value("bool"), "dropped": Value("bool")},
        **{"opening": Value("string"), "foreign": Value("bool"), "frame": Value("string"), "text": Value("string")},
        **dict.fromkeys(("student_prompt", "teacher_prompt", "completion", "whole"), IDS),
        **dict.fromkeys((*turns.COLUMNS, *CROSSING_COLUMNS), IDS),
        **dict.fromkeys(("prompt_cut", "completion_cut", "kept"), Value("int64")),
    }
)
SHOWN_IDS = 8  # of a row that is token ids without a prompt


def is_prepared(dataset: Any) -> bool:
    """Whether a dataset came out of `prepare`: its prompts are token ids, not a user's column of that name."""
    features = getattr(dataset, "features", None) or {}
    ids = [getattr(features.get(column), "feature", None) for column in COLUMNS[1:]]
    return "row" in features and all(getattr(kind, "dtype", "").startswith(("int", "null")) for kind in ids)


def read(dataset: Dataset, recipe: Recipe, *, name: str = "train") -> tuple[Dataset, RowReport]:
    """Read a dataset's rows and check the templates against its columns; needs no model.

    Raises:
        DataError: See `rows.read_rows`.
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
    texts = column_of(rows, "row").filter(column_of(rows, "history").is_null())
    if columns.assistant_turns and len(texts):
        raise DataError(
            f"{name}, row {texts[0]}, is text, and assistant_only_loss learns what the assistant says in "
            "conversations; give messages, or drop assistant_only_loss."
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
    if lengths_of(aligned, "completion_mask").any():
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
    # other processes get a copy, which must not hold the teacher; what is asked in text is asked here
    alone = recipe if recipe.reads_text else replace(recipe, write=_nobody, take=None, teaches_nothing=None)
    tokens = (
        rows.with_format("arrow")  # values go from Arrow to Arrow, without what datasets does with each
        .map(
            partial(_align_batch, recipe=alone, name=name),
            batched=True,
            remove_columns=rows.column_names,
            features=ALIGNED,
            num_proc=None if recipe.reads_text else recipe.num_proc,
            load_from_cache_file=False,
            new_fingerprint=uuid.uuid4().hex,
            desc=f"Tokenizing {name}",
        )
        .with_format(None)
    )
    check_in_one_piece(tokens, recipe.in_one_piece, name=name)
    _check_ids(tokens, recipe, name)
    if whole and split is Split.TRAIN and recipe.teaches_nothing is not None:
        check_differs(rows, tokens, recipe, recipe.teaches_nothing, name=name)
    return _write_missing(tokens, recipe, name)


def _align_batch(table: Any, *, recipe: Recipe, name: str) -> Any:
    """Return an Arrow table of rows that were read as one with the columns of `ALIGNED`."""
    import pyarrow as pa

    rows = [fit_row(tokenize_row(row, recipe, name=name), recipe, name=name) for row in table.to_pylist()]
    schema = ALIGNED.arrow_schema
    return pa.table({column: [row[column] for row in rows] for column in schema.names}, schema=schema)


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
    learns = array_of(fitted, "kept") > 0
    usable = fitted if learns.all() else fitted.select(learns.nonzero()[0])
    lost = fitted.select((~learns).nonzero()[0]).select_columns(["row", "unusable"])
    learnt = set(array_of(usable, "row").tolist()) if len(lost) else set()
    reasons = {row["row"]: row["unusable"] for row in lost}
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
    shown = usable[int(array_of(usable, "dropped").argmin())]  # the first row if the student's prompt is in none
    row = _row_of(rows, shown["row"])
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
    columns = usable.select_columns(["row", "frame", "opening"]).with_format("arrow")[:]
    kinds = columns.group_by(["frame", "opening"], use_threads=False).aggregate([("row", "min")]).to_pylist()
    for kind in [kind for kind in kinds if kind["frame"] not in ("", WITH_TOOLS)][:2]:
        row = _row_of(rows, kind["row_min"])
        frames.append(row_frame(row, recipe, json.loads(kind["opening"] or "{}")))
    return serving_of(recipe.student.tokenizer, recipe.student.template, frames) if frames else None


def _row_of(rows: Dataset, number: int) -> dict[str, Any]:
    """Return the row of a number."""
    return dict(rows[int((array_of(rows, "row") == number).argmax())])


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
    places = (array_of(tokens, "source") == "teacher").nonzero()[0].tolist()
    if not places:
        return tokens
    if recipe.overflow == "error":
        _check_lengths(tokens, recipe, name)
    asked = tokens.select(places).select_columns(["teacher_prompt", "read"])
    prompts = [json.loads(row["read"]) if recipe.reads_text else _cut(row["teacher_prompt"], recipe) for row in asked]
    written = dict(zip(places, recipe.write(prompts), strict=True))

    def put(row: dict[str, Any], i: int) -> dict[str, Any]:
        return fit_row({**row, **_taken(row, written[i], recipe)}, recipe, name=name) if i in written else row

    return mapped(tokens, put, "Taking completions", with_indices=True)


def _taken(row: dict[str, Any], written: Completion, recipe: Recipe) -> dict[str, Any]:
    """Return what changes in a row by a completion that the teacher wrote."""
    ids, finished, text = list(written.ids), written.finished, written.text
    if recipe.crossing is not None:
        return {**recipe.crossing.taken(ids, finished=finished, chat=row["chat"]), "finished": finished}
    if text is None:
        return {"completion": ids, "finished": finished}
    unusable = written.unusable or ("" if text.strip() else EMPTY)
    if unusable:
        return {"completion": [], "unusable": unusable}
    own = completion_of_text(row, text, recipe, reasoning=written.reasoning, finished=finished)
    return {**own, "finished": finished}


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
