"""Rows to aligned token ids: render both prompts, find or write the completion, fit it into both models.

`Recipe.prepare` returns a Dataset with `row`, `student_prompt`, `teacher_prompt` and `completion` (token ids), which
`DistillationCollator` reads, and a `Preflight` with the figures.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from datasets import Features, List, Value

from ..errors import DataError, ParamsError, TemplateError, counted
from ..models.generation import Completion
from ..prompts import multi_turn as turns
from ..prompts.chat_template import NOW
from ..prompts.fitting import check_ids, fit
from ..prompts.messages import Prompt
from ..prompts.rendering import KWARGS, OWN, TOOLS, options_of, own_prompt, render
from ..prompts.row import Row
from ..prompts.serving_template import Frame, Serving, marked, serving_of
from ..prompts.template import SYSTEM_ROLES
from .aligned_row import AlignedRow
from .arrow_values import array_of, column_of, highest_of, lengths_of
from .cross_tokenizer.tokenizer_pair import COLUMNS as PAIR_COLUMNS
from .example import Example, Placeholder
from .file_readers import Batch
from .preflight import Preflight, prompts_differ
from .pretokenized import check_tokenized, is_tokenized, read_tokenized
from .recipe import RowRecipe
from .row_faults import Cells
from .row_report import NoUsableRows, RowReport
from .row_tokens import WITH_TOOLS, RowTokens, fit_row, source_of, tokenize_row
from .rows import check_conversations, read_rows, rows_of
from .split import Split

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


COLUMNS = ("row", "student_prompt", "teacher_prompt", "completion")
IDS = List(Value("int64"))
KINDS = {"int": Value("int64"), "bool": Value("bool"), "str": Value("string"), "Source": Value("string")}
ALIGNED = Features({column.name: KINDS.get(str(column.type), IDS) for column in fields(AlignedRow)})
SHOWN_IDS = 8  # of a row that is token ids without a prompt


def is_prepared(dataset: object) -> bool:
    """Whether a dataset came out of `prepare`: its prompts are token ids, not a user's column of that name."""
    features = getattr(dataset, "features", None) or {}
    ids = [getattr(features.get(column), "feature", None) for column in COLUMNS[1:]]
    return "row" in features and all(getattr(kind, "dtype", "").startswith(("int", "null")) for kind in ids)


class Recipe(RowRecipe):
    """How the rows of a dataset become token ids for one teacher."""

    def read(self, dataset: Dataset, *, name: str = "train") -> tuple[Dataset, RowReport]:
        """Read a dataset's rows and check the templates against its columns; needs no model.

        Raises:
            DataError: See `rows.read_rows`.
            TemplateError: A template field that is no column.
        """
        templates = (self.student.template, self.teacher.template)
        if is_tokenized(dataset):
            needs = "cross_tokenizer is on" if self.tokenizer_pair is not None else None
            needs = "completions is 'teacher'" if self.completions == "teacher" else needs
            check_tokenized(dataset, templates, needs=needs, source=name)
            return read_tokenized(dataset, source=name)
        rows, report = read_rows(dataset, self.columns, fields=self.fields, num_proc=self.num_proc, source=name)
        values = Row.from_columns(rows[0]).values
        for template in templates:
            template.check_columns(values, read=dataset.column_names)
        if not values.keys().isdisjoint({*OWN, TOOLS, KWARGS}):
            for row in rows_of(rows):
                where = f"{name}, row {row.number}"
                own_prompt(row.values, self.teacher.template, where=where)
                if row.history is not None:
                    options_of(row.values, where=where)
        if self.columns.assistant_turns:
            check_conversations(rows, name)
        return rows, report

    def prepare(
        self,
        dataset: Dataset | tuple[Dataset, RowReport],
        *,
        split: Split = Split.TRAIN,
        name: str = "train",
        rows_at_most: int | None = None,
        whole: bool = True,
        streamed: bool = False,
    ) -> tuple[Dataset, Preflight]:
        """Turn a dataset of any accepted form into aligned token ids.

        Args:
            dataset: The rows, or what `read` made of them.
            split: The role of the dataset.
            name: The dataset in messages.
            rows_at_most: Rows to prepare after all have been read and checked (a dry run's sample).
            whole: Whether these are all rows of the dataset, or the first ones of a stream; not a later block.
            streamed: Whether they are a block of a stream, whose rows all have masks if any row may have gaps.

        Raises:
            DataError: Bad rows, a prompt that is too long, or completions asked of data that has none.
            ParamsError: Teacher and student are the same weights and read the same tokens in every row.
            TemplateError: A template field that is no column.
        """
        masked = streamed and self.in_one_piece is None and (self.columns.assistant_turns or is_tokenized(dataset))
        rows, report = dataset if isinstance(dataset, tuple) else self.read(dataset, name=name)
        if rows_at_most is not None and len(rows) > rows_at_most:
            rows, whole = rows.select(range(rows_at_most)), False
        required = whole and split is Split.TRAIN
        aligned = self.align(rows, split=split, name=name, whole=whole)
        columns: tuple[str, ...] = COLUMNS if self.tokenizer_pair is None else (*COLUMNS, *PAIR_COLUMNS)
        if masked or lengths_of(aligned, "completion_mask").any():
            aligned, columns = mapped(aligned, turns.with_masks, f"Marking {name}"), (*COLUMNS, *turns.COLUMNS)
        return self.finish(aligned, rows, report, name=name, columns=columns, required=required, serves=required)

    def align(self, rows: Dataset, *, split: Split, name: str, whole: bool = True) -> Dataset:
        """Return rows that were read with their ids, completions and figures: the fields of `AlignedRow`."""
        if split is not Split.TRAIN and self.prompt_dropout:  # evaluation is of the student under its own prompt
            return replace(self, prompt_dropout=0.0).align(rows, split=split, name=name, whole=whole)
        self._check_sources(rows, name)
        # other processes get a copy, which must not hold the teacher; what is asked in text is asked here
        alone = (
            self if self.reads_text else replace(self, write=_refuse_to_write, fetch_targets=None, teaches_nothing=None)
        )
        tokens = (
            rows.with_format("arrow")  # values go from Arrow to Arrow, without what datasets does with each
            .map(
                partial(_align_batch, recipe=alone, name=name),
                batched=True,
                remove_columns=rows.column_names,
                features=ALIGNED,
                num_proc=None if self.reads_text else self.num_proc,
                load_from_cache_file=False,
                new_fingerprint=uuid.uuid4().hex,
                desc=f"Tokenizing {name}",
            )
            .with_format(None)
        )
        self._check_in_one_piece(tokens, name)
        self._check_ids(tokens, name)
        if whole and split is Split.TRAIN and self.teaches_nothing is not None:
            check_differs(rows, tokens, self, self.teaches_nothing, name=name)
        return self._write_missing(tokens, rows, name)

    def finish(
        self,
        aligned: Dataset,
        rows: Dataset,
        report: RowReport,
        *,
        name: str,
        columns: tuple[str, ...],
        required: bool = False,
        serves: bool = False,
    ) -> tuple[Dataset, Preflight]:
        """Return the aligned rows that have a token to learn, and the pre-flight.

        Args:
            aligned: `rows` after `align`.
            rows: The data after `read`.
            report: On them.
            name: The dataset in messages.
            columns: Those to return.
            required: Whether a server must have log-probabilities for at least one token.
            serves: Whether these are the rows whose prompts the student is served with.

        Raises:
            NoUsableRows: No row has a completion token.
        """
        learns = array_of(aligned, "kept") > 0
        usable = aligned if learns.all() else aligned.select(learns.nonzero()[0])
        lost = aligned.select((~learns).nonzero()[0]).select_columns(["row", "unusable"])
        learned = set(array_of(usable, "row").tolist()) if len(lost) else set()
        reasons = {row["row"]: row["unusable"] for row in lost}
        empty = tuple((f"row {n}", why or "no completion token") for n, why in reasons.items() if n not in learned)
        report = replace(report, used=report.used - len(empty), set_aside=(*report.set_aside, *empty))
        if len(usable) == 0:
            todo = "add completions, or let the teacher generate them with --completions teacher."
            if "teacher" in column_of(aligned, "source").to_pylist() and any(reasons.values()):
                todo = f"{report.summary()}; change the teacher's prompt, or choose another teacher."
            raise NoUsableRows(f"{name}: no row has a completion token to learn; {todo}")
        coverage = None if self.fetch_targets is None else self.fetch_targets(usable, required)
        example, placeholder = self._examples(usable, rows)
        preflight = Preflight.of(usable, report, self, name, example=example, placeholder=placeholder)
        serving = self._serving(usable, rows) if serves and self.serves else None
        return usable.select_columns(list(columns)), replace(preflight, coverage=coverage, serving=serving)

    def _check_sources(self, rows: Dataset, name: str) -> None:
        if self.completions != "data":
            return
        lacking = [row.number for row in rows_of(rows) if source_of(row, self) == "teacher"]
        if lacking:
            raise DataError(
                f"{name}: {counted(len(lacking), 'row')} without a completion (row "
                f"{', '.join(map(str, lacking[:10]))}), which --completions data needs; name the column with "
                "--completion-column, or let the teacher generate with --completions teacher."
            )

    def _check_in_one_piece(self, tokens: Dataset, name: str) -> None:
        gaps = lengths_of(tokens, "completion_mask") > 0
        if self.in_one_piece is not None and gaps.any():
            raise DataError(
                f"{name}, row {tokens[int(gaps.argmax())]['row']}: the tokens to learn are in several places of the "
                f"conversation, and {self.in_one_piece}; give one local teacher, or have one turn learned (no "
                "assistant_only_loss, no mask with gaps)."
            )

    def _check_ids(self, tokens: Dataset, name: str) -> None:
        checks = (
            ("student_prompt", self.student.rows, "the student's prompt", "the student has"),
            ("teacher_prompt", self.teacher.rows, "the teacher's prompt", "the teacher has"),
            ("completion", self.vocabulary, "the completion", "teacher and student share")
            if self.tokenizer_pair is None
            else ("completion", self.student.rows, "the completion", "the student has"),
        )
        for column, rows, what, whose in checks:
            if rows is None or highest_of(tokens, column) < rows:
                continue
            for number, ids in zip(tokens["row"], tokens[column], strict=True):
                check_ids(ids, rows, what=what, whose=whose, where=f"{name}, row {number}")

    def _write_missing(self, tokens: Dataset, rows: Dataset, name: str) -> Dataset:
        places = (array_of(tokens, "source") == "teacher").nonzero()[0].tolist()
        if not places:
            return tokens
        if self.overflow == "error":
            self._check_lengths(tokens, name)
        asked = tokens.select(places)
        prompts: list[Prompt] | list[list[int]] = (
            [json.loads(prompt) for prompt in asked["prompt_json"]]
            if self.reads_text
            else [self._with_room(prompt) for prompt in asked["teacher_prompt"]]
        )
        written = dict(zip(places, self.write(prompts), strict=True))

        def put(columns: Cells, i: int) -> Cells:
            if i not in written:
                return columns
            row = AlignedRow(**columns)
            RowTokens(Row.from_columns(rows[i]), self, name=name, out=row).put_written(written[i])
            return vars(fit_row(row, self, name=name))

        return mapped(tokens, put, "Adding completions", with_indices=True)

    def _check_lengths(self, tokens: Dataset, name: str) -> None:
        """Refuse prompts that leave no room for a completion, before the teacher writes for any row."""
        for row in tokens.select_columns(["row", "source", "student_prompt", "teacher_prompt", "completion"]):
            if row["source"] == "teacher" or row["completion"]:
                fit(row["student_prompt"], row["teacher_prompt"], [0], self.limits(f"{name}, row {row['row']}"))

    def _with_room(self, prompt: list[int]) -> list[int]:
        """Cut the start of a teacher's prompt that would leave it no room to write."""
        limit = self.teacher.limit
        return prompt if limit is None or len(prompt) < limit else prompt[-(limit // 2) :]

    def _examples(self, usable: Dataset, rows: Dataset) -> tuple[Example, Placeholder]:
        """Return the first row's prompt as the student reads it, whole and without the teacher's; and placeholders."""
        shown = usable[int(array_of(usable, "dropped").argmin())]  # the first row if the student's prompt is in none
        row = _row_of(rows, shown["row"])
        tokenizer, template = self.student.tokenizer, self.student.template
        if row.ids is not None:
            ids = usable[0]["student_prompt"] or usable[0]["completion"][:SHOWN_IDS]
            example = Example(marked(row, template).input, {"input": tokenizer.decode(ids)}, {}, ids)
            return example, Placeholder.of(row, template, tokenizer, {}, {})
        options = {} if row.history is None else options_of(row.values, where="")
        options = {**{name: value for name, value in self.options.items() if name != NOW}, **options}
        opening = json.loads(shown["opening"] or "{}")
        frame = Frame(render(template, marked(row, template)), options).opened(opening)
        try:
            ids = replace(frame, prompt=render(template, row)).prompt_ids(tokenizer)
        except TemplateError:  # one that only the training template takes
            ids = shown["student_prompt"]
        example = Example(frame.prompt, row.fields, frame.options, ids)
        return example, Placeholder.of(row, template, tokenizer, options, opening)

    def _serving(self, usable: Dataset, rows: Dataset) -> Serving | None:
        """Return how the student is served; None for its own chat template, or if no prompt was trained."""
        frames: list[Frame | None] = [None for key in usable.unique("frame") if key == WITH_TOOLS]
        columns = usable.select_columns(["row", "frame", "opening"]).with_format("arrow")[:]
        kinds = columns.group_by(["frame", "opening"], use_threads=False).aggregate([("row", "min")]).to_pylist()
        for kind in [kind for kind in kinds if kind["frame"] not in ("", WITH_TOOLS)][:2]:
            tokens = RowTokens(_row_of(rows, kind["row_min"]), self, name="")
            frames.append(tokens.frame(json.loads(kind["opening"] or "{}")))
        return serving_of(self.student.tokenizer, self.student.template, frames) if frames else None


def _align_batch(table: pa.Table, *, recipe: RowRecipe, name: str) -> pa.Table:
    import pyarrow as pa

    read = map(Row.from_columns, table.to_pylist())
    aligned = [vars(fit_row(tokenize_row(row, recipe, name=name), recipe, name=name)) for row in read]
    return pa.Table.from_pylist(aligned, schema=ALIGNED.arrow_schema)


def _refuse_to_write(prompts: list[Prompt] | list[list[int]]) -> list[Completion]:
    """Replace `write` in worker processes, which must not call the teacher."""
    raise AssertionError(f"{len(prompts)} prompts, and no teacher to ask")


def _row_of(rows: Dataset, number: int) -> Row:
    return Row.from_columns(rows[int((array_of(rows, "row") == number).argmax())])


def mapped(dataset: Dataset, function: Callable[..., Cells], what: str, *, with_indices: bool = False) -> Dataset:
    """Map a dataset; the fingerprint is made up, since the usual one would pickle the teacher that a recipe holds."""
    return dataset.map(
        partial(_by_row, function=function),
        batched=True,
        with_indices=with_indices,
        load_from_cache_file=False,
        new_fingerprint=uuid.uuid4().hex,
        desc=what,
    )


def _by_row(batch: Batch, *indices: list[int], function: Callable[..., Cells]) -> Batch:
    """Apply a function of a row, and of its place if places are given, to the rows of a batch."""
    cells = zip(*batch.values(), strict=True)
    rows = [function(dict(zip(batch, values, strict=True)), *i) for values, *i in zip(cells, *indices, strict=True)]
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(chain.from_iterable(rows))}


def check_differs(
    rows: Dataset,
    tokens: Iterable[Cells],
    recipe: RowRecipe,
    teaches_nothing: Callable[[], bool],
    *,
    name: str,
) -> None:
    """Refuse the same weights that read the same tokens in every row.

    `tokens` are the rows with both prompts' ids, read up to the first that differs.
    """
    if any(prompts_differ(row) for row in tokens) or not teaches_nothing():
        return
    with_system = any(message["role"] in SYSTEM_ROLES for row in rows_of(rows) for message in row.history or ())
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
