"""Checks that the models, data, columns and packages that settings name are there, before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..config.endpoints import endpoint_of, judge_endpoint
from ..config.evaluation_settings import EvaluationSettings
from ..config.fields import model_in_memory
from ..config.server_keys import key_in
from ..config.training_params import OWN_TEACHERS, LLMTrainingParams
from ..config.validation import EMA, NO_TEACHER
from ..data.file_readers import PLACE
from ..data.loading import check_there
from ..data.pretokenized import is_tokenized
from ..data.row_report import NoUsableRows
from ..data.rows import Columns, packed_columns, read_rows, rows_of, writers_of
from ..errors import DataError, ParamsError, nearest, there_are
from ..evaluation.cost import Prices
from ..evaluation.metrics import metric_named
from ..models.loading import check_found
from ..prompts.chat_template_choice import check_template_found
from ..prompts.template import Template
from ..teachers.multi.entries import read_teachers
from .trackers import check_tracker_packages

if TYPE_CHECKING:
    from datasets import Dataset


def check_named(params: LLMTrainingParams) -> None:
    """Refuse models, chat templates, data and trackers that are not there; what is in memory passes.

    Raises:
        ModelError, TeacherError: See `models.loading.check_found`.
        TemplateError: A chat template that is neither a file nor a model.
        DataError: See `check_there`.
        ParamsError: See `check_tracker_packages`.
    """
    _check_student(params.model, "model")
    check_teachers(params)
    for name in ("chat_template", "teacher_chat_template"):
        check_template_found(getattr(params, name), role=name)
    for name in ("data_path", "retain_data"):
        if name == "data_path" and params.queries_from_prompt is not None:
            continue
        if model_in_memory(getattr(params, name)) is None:  # a saved configuration's; refused when rows are read
            check_there(getattr(params, name), setting=name)
    check_tracker_packages(params)


def _check_student(given: object, role: str) -> None:
    if isinstance(given, str):
        check_found(given, role=role)


def check_teachers(params: LLMTrainingParams) -> None:
    """Refuse teachers that are not there, and environment variables without a key; what is in memory passes."""
    named: list[tuple[object, str | None, str | None]] = [
        (params.teacher_model, params.teacher_revision, params.teacher_key_env)
    ]
    if params.teacher_config is not None:
        listed = read_teachers(params.teacher_config).teachers
        named = [(entry.model, entry.revision, entry.key_env) for entry in listed]
    for given, revision, key_env in named:
        if not isinstance(given, str) or given in OWN_TEACHERS:
            continue
        if endpoint_of(given) is None:
            check_found(given, role="teacher_model", revision=revision)
        elif key_env is not None:
            key_in(key_env, setting="teacher_key_env" if params.teacher_config is None else "key_env")


def check_teacher_given(params: LLMTrainingParams, data: Dataset) -> None:
    """Refuse a run that distils without a teacher, a complete store, or data that names who wrote its completions.

    Raises:
        ParamsError: There is none of these.
    """
    if not params.distills or params.teacher_model is not None or params.teacher_config is not None:
        return
    if params.teacher_store is not None:
        from ..teachers.target_store.folder import TargetFolder

        store = TargetFolder(params.teacher_store)
        found = store.complete
        if not found:
            raise ParamsError(
                f"{store} is no complete store, and there is no teacher_model to write it with; give the folder of "
                "one, or --teacher-model."
            )
    else:
        found = params.completions != "teacher" and bool(writers_of(data))
    if not found:
        raise ParamsError(NO_TEACHER)


def check_columns(data: Dataset, params: LLMTrainingParams, templates: Sequence[Template]) -> None:
    """Refuse a column that the data does not have, by its first row; reading all rows comes later.

    Args:
        data: The rows to train on.
        params: The run's parameters.
        templates: The student's and the teacher's.

    Raises:
        DataError: A setting names a column that is not there.
        TemplateError: A field of a template is no column.
    """
    if is_tokenized(data) or len(data) == 0:
        return
    from ..data.streaming import without_dataset_bars

    try:
        with without_dataset_bars():
            read, _ = read_rows(data.select([0]), replace(Columns.of(params), max_bad_rows=1), source="train")
    except NoUsableRows:
        return
    fields = {name for template in templates for name in template.fields}
    columns = [*next(rows_of(read)).values, *packed_columns(data, fields)]
    several = params.teacher_config is not None or params.teacher_prompt_mixture is not None
    for template in templates[:1] if several else templates:
        template.check_columns(columns, read=data.column_names)


def check_evaluation(
    params: LLMTrainingParams, settings: EvaluationSettings, *, student: object, before: object
) -> None:
    """Refuse what an evaluation cannot find or use.

    Args:
        params: What `evaluated_params` returned.
        settings: How it is evaluated.
        student: The trained student.
        before: The student before training, if it was named.

    Raises:
        UsageError: Naming the setting.
    """
    check_one_teacher(params)
    prices_of(params, settings)
    for name in settings.metric or ():
        metric_named(name)
    if settings.judge is not None:
        judge_endpoint(settings.judge)
    if settings.judge_key_env is not None:
        key_in(settings.judge_key_env, setting="judge_key_env")
    _check_student(student, "student")
    _check_student(before, "before")
    check_teachers(params)


def check_reference_column(name: str | None, columns: Sequence[str], *, source: str) -> None:
    """Refuse a column of references that the rows do not have.

    Raises:
        DataError: Naming the columns that there are.
    """
    there = [column for column in columns if column != PLACE]
    if name is not None and name not in there:
        raise DataError(
            f"{source} has no column {name!r}; {there_are(there)}.{nearest(name, there)} Name it with "
            "--reference-column."
        )


def check_one_teacher(params: LLMTrainingParams) -> None:
    """Refuse runs with several teachers or prompts, and a teacher that is not saved.

    Raises:
        ParamsError: Naming the setting.
    """
    if params.teacher_config is not None:
        raise ParamsError(
            "teacher_config lists several teachers, but an evaluation compares with one; name it with --teacher-model, "
            "and its prompt with --teacher-prompt-template."
        )
    if params.teacher_prompt_mixture is not None:
        raise ParamsError(
            "teacher_prompt_mixture lists several prompts, but an evaluation compares with one; give it with "
            "--teacher-prompt-template."
        )
    if params.teacher_model == EMA:
        raise ParamsError(
            "teacher_model is 'ema', an average of the student that is not saved with the run; give --teacher-model "
            "self, or the name of a model."
        )


def prices_of(params: LLMTrainingParams, settings: EvaluationSettings) -> dict[str, Prices | None]:
    """Return the prices of both sides' tokens in an evaluation.

    Args:
        params: What `evaluated_params` returned.
        settings: How it is evaluated.

    Raises:
        ParamsError: One of two prices that belong together is missing.
    """
    found: dict[str, Prices | None] = {}
    for side, source in (("teacher", params), ("student", settings)):
        names = [f"{side}_price_input", f"{side}_price_output"]
        given = [getattr(source, name) for name in names]
        if None in given and given != [None, None]:
            flags = " and ".join("--" + name.replace("_", "-") for name in names)
            raise ParamsError(f"{names[given.index(None)]} is missing; give {flags}, the cost of a million tokens.")
        cached = settings.teacher_price_cached_input if side == "teacher" else None
        found[side] = None if None in given else Prices(given[0], given[1], cached)
    for name in ("teacher_price_cached_input", "student_price_input", "run_cost"):
        if getattr(settings, name) is not None and found["teacher"] is None:
            raise ParamsError(
                f"{name} is {getattr(settings, name):g}, but what the teacher costs is not known; give "
                "--teacher-price-input and --teacher-price-output, the cost of a million tokens."
            )
    return found
