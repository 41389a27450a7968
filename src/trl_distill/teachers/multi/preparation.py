"""Rows for several teachers: the teachers of each row, their prompts, and who generates its completion.

The outcome has the columns of `Recipe.prepare`, `teachers` (places in the list) and `teacher_prompts` (the token
ids of each), as `MultiTeacherCollator` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset, Features, List, concatenate_datasets

from ...data.arrow_values import array_of
from ...data.preflight import Preflight, notes_of, text_of, unread_systems
from ...data.preparation import ALIGNED, COLUMNS, IDS, Recipe, check_differs, mapped
from ...data.pretokenized import check_tokenized, is_tokenized
from ...data.retention import Retained, mixed_in
from ...data.row_report import NoUsableRows, RowReport
from ...data.row_tokens import tokenize_row
from ...data.rows import rows_of
from ...data.split import Split
from ...errors import DataError
from ...prompts.fitting import check_ids, fit
from ...prompts.row import Row
from ...prompts.tokenization import tokenize_prompt
from .entries import TeacherList, assign_rows, check_rows

UNASSIGNED = "no teacher takes it"
RETURNED = (*COLUMNS, "teachers", "teacher_prompts")
FEATURES = Features({**ALIGNED, "teachers": IDS, "teacher_prompts": List(IDS)})


@dataclass(frozen=True)
class MultiTeacherRecipe:
    """How rows become token ids for several teachers.

    Attributes:
        recipes: One for each teacher, each as if it were the only one; the first is one of the data's rows.
        teachers: The list.
        seed: Seed of the shares.
    """

    recipes: tuple[Recipe, ...]
    teachers: TeacherList
    seed: int

    @property
    def fields(self) -> None:
        """None: any column may select the teachers of a row."""

    def read(self, dataset: Dataset, *, name: str = "train") -> tuple[Dataset, RowReport]:
        """Read a dataset's rows and check templates and the teachers' rows against its columns.

        Raises:
            DataError: See `rows.read_rows`.
            TemplateError: A template field that is no column.
            ParamsError: A column of `rows` that is not in the data.
        """
        rows, report = self.recipes[0].read(dataset, name=name)
        columns = Row.from_columns(rows[0]).values
        for other in self.recipes[1:]:
            if is_tokenized(dataset):
                check_tokenized(dataset, [other.teacher.template], source=name)
            other.teacher.template.check_columns(columns, read=dataset.column_names)
        check_rows(self.teachers, list(columns))
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
        """Turn a dataset of any accepted form into aligned token ids; see `Recipe.prepare`.

        A completion is in one piece here, so that rows of a stream (`streamed`) need no masks.

        Raises:
            DataError: A teacher without a row, or no row with a teacher; see also `Recipe.prepare`.
        """
        rows, report = dataset if isinstance(dataset, tuple) else self.read(dataset, name=name)
        values = [row.values for row in rows_of(rows)]
        required = whole and split is Split.TRAIN
        assigned = assign_rows(self.teachers, values, seed=self.seed, name=name, required=required)
        taught = [n for n, teachers in enumerate(assigned) if teachers]
        if not taught:
            raise NoUsableRows(f"{name}: no teacher takes any of {len(rows):,} rows; change 'rows' in teacher_config.")
        left = tuple((f"row {rows[n]['row']}", UNASSIGNED) for n, teachers in enumerate(assigned) if not teachers)
        report = replace(report, used=len(taught), set_aside=(*report.set_aside, *left))
        sampled = rows_at_most is not None and len(taught) > rows_at_most
        taught = taught[:rows_at_most]
        rows, assigned = rows.select(taught), [assigned[n] for n in taught]
        if required and not sampled:
            self._check_differ(rows, assigned, name)
        aligned = self._align(rows, assigned, split=split, name=name, required=required)
        # lengths and examples are of each row's first teacher, the vocabulary is what all have
        of_data = self.recipes[: len(self.teachers.of_data)]
        vocabularies = [r.vocabulary for r in of_data if r.vocabulary is not None]
        shown = replace(
            of_data[0],
            vocabulary=min(vocabularies, default=None),
            reads_text=all(r.reads_text for r in of_data),
        )
        prepared, preflight = shown.finish(aligned, rows, report, name=name, columns=RETURNED, serves=required)
        systems = set(array_of(aligned, "row")[array_of(aligned, "own_system")])  # several teachers: a row counts once
        preflight = replace(preflight, notes=(*notes_of(*of_data), *unread_systems(len(systems), of_data[0])))
        retained = self.teachers.teachers[-1].retained
        if len(of_data) > 1 or retained is None:
            preflight = replace(preflight, teachers=self._first_prompts(prepared))
        if retained is None or split is not Split.TRAIN:
            return prepared, preflight
        return self._with_retained(prepared, preflight, retained)

    def _check_differ(self, rows: Dataset, assigned: list[list[int]], name: str) -> None:
        """Refuse several prompts or teachers none of which differs from the student, see `check_differs`."""
        checks = [one.teaches_nothing for one in self.recipes[: len(self.teachers.of_data)]]
        given = [check for check in checks if check is not None]
        if len(given) < len(checks):
            return
        tokens = (
            vars(tokenize_row(row, self.recipes[i], name=name))
            for row, teachers in zip(rows_of(rows), assigned, strict=True)
            for i in teachers
        )
        check_differs(rows, tokens, self.recipes[0], lambda: all(check() for check in given), name=name)

    def _with_retained(self, prepared: Dataset, preflight: Preflight, retained: Retained) -> tuple[Dataset, Preflight]:
        """Return prepared rows with rows to retain among them, which the last teacher of the list teaches."""
        name, last = "retain_data", len(self.recipes) - 1
        count = retained.count(len(prepared))
        rows = retained.sample(count, seed=self.seed)
        aligned = self._align(rows, [[last]] * len(rows), split=Split.TRAIN, name=name, required=False)
        report = RowReport(len(rows), len(rows), ())
        own, flight = self.recipes[last].finish(aligned, rows, report, name=name, columns=RETURNED)
        return mixed_in(prepared, own, count), replace(preflight, retained=(count, retained.source, flight))

    def _align(self, rows: Dataset, assigned: list[list[int]], *, split: Split, name: str, required: bool) -> Dataset:
        """Return the rows with their teachers, aligned by each teacher, in their order.

        In a mixture a row stands there once, aligned by its first teacher, who writes a missing completion; else once
        for each of its teachers, who writes its own.
        """
        mixed, parts = self.teachers.mixed, []
        for i, one in enumerate(self.recipes):
            own = [n for n, teachers in enumerate(assigned) if i in (teachers[:1] if mixed else teachers)]
            if not own:
                continue
            part = one.align(rows.select(own), split=split, name=name, whole=False)
            if one.fetch_targets is not None:
                one.fetch_targets(part.filter(lambda row: row["kept"] > 0, load_from_cache_file=False), required)
            given = {rows[n]["row"]: (Row.from_columns(rows[n]), assigned[n]) for n in own} if mixed else {}

            def put(row: dict[str, Any], i: int = i, given: Mapping[int, Any] = given) -> dict[str, Any]:
                alone = {"teachers": [i], "teacher_prompts": [row["teacher_prompt"]]}
                return self._mixed(row, *given[row["row"]], name=name) if mixed else alone

            parts.append(mapped(part, put, f"Aligning {name}").select_columns(list(FEATURES)).cast(FEATURES))
        whole = concatenate_datasets(parts)
        place = {row: n for n, row in enumerate(rows["row"])}
        return whole.select(sorted(range(len(whole)), key=[place[row] for row in whole["row"]].__getitem__))

    def _mixed(self, row: dict[str, Any], given: Row, teachers: Sequence[int], *, name: str) -> dict[str, Any]:
        """Return an aligned row with the prompts of all its teachers, fitted into all of them."""
        out = {**row, "teachers": list(teachers), "teacher_prompts": [row["teacher_prompt"]]}
        for i in teachers[1:]:
            one, where = self.recipes[i], f"{name}, row {row['row']}"
            if row["source"] == "text":
                if not one.teacher.template.is_identity:
                    raise DataError(
                        f"{where}: there is no completion, and {self.teachers.teachers[i].place} has a template of its "
                        "own; name the column with --completion-column, or let a teacher generate with --completions "
                        "teacher."
                    )
                prompt = tokenize_prompt(one.teacher.tokenizer, "")
            else:
                prompt = tokenize_row(given, one, name=name).teacher_prompt
            check_ids(prompt, one.teacher.rows, what="the teacher's prompt", whose="the teacher has", where=where)
            if not out["completion"]:
                out["teacher_prompts"].append(prompt)
                continue
            fitted = fit(out["student_prompt"], prompt, out["completion"], one.limits(where))
            out["student_prompt"], out["completion"] = fitted.student_prompt, fitted.completion
            out["teacher_prompts"].append(fitted.teacher_prompt)
            out["prompt_cut"] += fitted.prompt_cut
            out["completion_cut"] += fitted.completion_cut
        unpredictable = not out["student_prompt"] or not all(out["teacher_prompts"])
        return {**out, "kept": max(len(out["completion"]) - unpredictable, 0)}

    def _first_prompts(self, prepared: Dataset) -> tuple[tuple[str, int, str], ...]:
        """Return each teacher's name, how many rows it teaches, and its first prompt."""
        found: dict[int, tuple[int, list[int]]] = {}
        for teachers, prompts in zip(prepared["teachers"], prepared["teacher_prompts"], strict=True):
            for i, prompt in zip(teachers, prompts, strict=True):
                count, first = found.get(i, (0, prompt))
                found[i] = count + 1, first
        shown = []
        for i, entry in enumerate(self.teachers.of_data):
            count, first = found.get(i, (0, []))
            one = self.recipes[i]
            alone = " (cross-entropy alone: it gives text)" if one.gives_text_alone else ""
            shown.append((entry.name + entry.note + alone, count, text_of(one.teacher.tokenizer, first)))
        return tuple(shown)
