"""Evaluate a student without its teacher's prompt: `evaluate_distillation`, `evaluate`, `aitraining evaluate`."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.evaluation_settings import EVALUATION_FIELDS, ROWS, EvaluationSettings
from ..config.setting_names import in_python, settings_named_as
from ..config.training_params import FIELDS, LLMTrainingParams
from ..config.user_files import user_path
from ..data.atomic_file import copy_file, obstacle
from ..data.folder_lock import folder_lock, processes
from ..data.json_object import read_object
from ..errors import ParamsError, ProjectError
from ..evaluation.page import DATA, PAGE
from ..trainer.standard_streams import unbreakable_streams
from .evaluation_inputs import (
    KnownRun,
    evaluated_params,
    read_project,
    rows_to_evaluate,
    run_of,
    settings_of_teacher,
    teacher_from_store,
)
from .full_disk import explaining_full_disk
from .library_output import quiet, without_library_bars
from .memory import memory_explained, sentence_of_run
from .project_folder import MANIFEST, MARKER, SEARCH
from .result_files import check_result

if TYPE_CHECKING:
    from ..evaluation.result import Evaluation

# what the functions call a setting of a run
NAMES = {
    "teacher_prompt_template": "teacher_prompt",
    "student_prompt_template": "student_prompt",
    "data_path": "test_data",
    "metric": "metrics",
    "student": "student_model",
}
PYTHON = in_python({**FIELDS, **EVALUATION_FIELDS}, NAMES)
OUTPUT = "evaluation"  # of the command, without a project


class EvaluationFigures(dict[str, Any]):
    """Metrics by name, as the guide calls them, and the whole `evaluation`."""

    def __init__(self, figures: Mapping[str, Any], evaluation: Evaluation) -> None:
        super().__init__(figures)
        self.evaluation = evaluation


class Score(float):
    """A student's mean score, from 0 to 100, with all `figures` on it."""

    figures: EvaluationFigures


@settings_named_as(PYTHON)
def evaluate_distillation(
    student_model: Any,
    teacher_model: Any = None,
    test_data: Any = None,
    *,
    teacher_prompt: Any = None,
    student_prompt: Any = None,
    before: Any = None,
    reference_column: str | None = None,
    metrics: str | Sequence[str] = (),
    output: str | os.PathLike[str] | None = None,
    verbose: bool = False,
    **settings: Any,
) -> EvaluationFigures:
    """Compare a student before and after training with its teacher, on rows that it was not trained on.

    Example:
        >>> figures = evaluate_distillation(model, test_data=["What is 2 + 2?"])  # doctest: +SKIP
        >>> figures["output_similarity"], figures["speedup"], figures["prompt_compression"]  # doctest: +SKIP

    A model that `train` returned, or the project folder of a run, knows its teacher, its prompts and the rows that its
    run held out; whatever is given here takes their place.

    Args:
        student_model: The trained student: a model, a folder, or a Hub name.
        teacher_model: The teacher, in the forms of a run (default: the run's).
        test_data: Texts, or rows in the forms of a run (default: those that the run held out).
        teacher_prompt: The template that the teacher reads (default: the run's, else `{input}`).
        student_prompt: The template that the student reads (default: the run's, else `{input}`).
        before: The student before training (default: an adapter's base, else the model that the run started from).
        reference_column: Column with what the completion should be (default: the data's completions).
        metrics: One name or several, see `aitraining evaluate --help`; the first one decides.
        output: Folder for the report and for what was written (default: the run's project; without a run, none).
        verbose: Show all messages and bars of the libraries too.
        **settings: Other settings of `aitraining evaluate`, such as `teacher_system` or `max_new_tokens`.

    Returns:
        `output_similarity` (chrF of the student's completions against the teacher's, 0 to 100), `speedup` (the
        teacher's seconds per query divided by the student's), `prompt_compression` (characters of the teacher's prompt
        divided by the student's), and all else that was found, see docs/evaluation.md.

    Raises:
        UsageError: Something that cannot be found or evaluated; raised before a model loads.
    """
    given = {"teacher_prompt_template": teacher_prompt, "student_prompt_template": student_prompt}
    given |= {"teacher_model": teacher_model, **settings}
    own = {"reference_column": reference_column, "metric": metrics or None, "output": output}
    for name in list(given):
        if name in EVALUATION_FIELDS:
            own[name] = given.pop(name)
    evaluation = _evaluate(
        student_model,
        _set(EvaluationSettings(), own),
        {name: value for name, value in given.items() if value is not None},
        run=run_of(student_model),
        data=_as_rows(test_data, settings.get("text_column", "text")),
        before=before,
        verbose=verbose,
    )
    from ..evaluation.figures import figures_of

    return EvaluationFigures(figures_of(evaluation), evaluation)


def evaluate(model: Any, data: Any = None, **settings: Any) -> Score:
    """Return one number that says how good a student is, for `max(results, key=results.get)`.

    It is the student's mean score against the references, or against the teacher's completions if there are none, from
    0 to 100; see `evaluate_distillation`, whose arguments it has and whose mapping is in its `figures`.

    Args:
        model: The trained student: a model, or the project folder of a run.
        data: Rows (default: those that the run held out, see `holdout`).
        **settings: Other arguments of `evaluate_distillation`.

    Raises:
        DataError: There are no rows.
        UsageError: See `evaluate_distillation`.
    """
    figures = evaluate_distillation(model, test_data=data, **{"timed_queries": 0, **settings})
    score = Score(figures["score"])
    score.figures = figures
    return score


def evaluate_project(
    project: str | None, settings: EvaluationSettings, overrides: Mapping[str, Any], *, verbose: bool = False
) -> Evaluation:
    """Evaluate the student of a project, or one that is named by hand; see `aitraining evaluate`.

    Args:
        project: The folder of a run; None if everything is named.
        settings: How it is evaluated.
        overrides: Settings of a run that take the place of the project's.
        verbose: Show all messages and bars of the libraries too.
    """
    if processes() > 1:
        raise ParamsError("an evaluation runs in one process; start the command without a launcher.")
    student = settings.student or project
    if student is None:
        raise ParamsError("there is nothing to evaluate; give the folder of a run, or --student with a model.")
    run = run_of(student) if project is None else read_project(user_path(project, name="project", error=ProjectError))
    if run is None and settings.output is None:
        settings.output = OUTPUT
    given = dict(overrides)
    named = {"data": given.pop("data_path", None), "before": given.pop("model", None)}
    return _evaluate(student, settings, given, run=run, **named, verbose=verbose)


def _evaluate(
    student: Any,
    settings: EvaluationSettings,
    overrides: dict[str, Any],
    *,
    run: KnownRun | None,
    data: Any,
    before: Any,
    verbose: bool,
) -> Evaluation:
    from ..data.loading import check_there
    from .early_checks import check_evaluation, check_reference_column

    params = _params(run, overrides)
    with ExitStack() as stack:
        stack.enter_context(unbreakable_streams())
        if not verbose:
            stack.enter_context(quiet(four_bits="int4" in (params.quantization, params.teacher_quantization)))
        if run is not None and isinstance(student, (str, Path)):
            check_result(run.folder)
        check_evaluation(params, settings, student=student, before=before)
        check_there(data)
        params.project_name = str(stack.enter_context(_folder(run, settings)))
        stack.enter_context(explaining_full_disk(Path(params.project_name)))
        from ..data.streaming import without_dataset_bars

        with without_dataset_bars():
            rows, source = rows_to_evaluate(run, data, split=settings.split, config_name=params.data_config)
        check_reference_column(settings.reference_column, rows.column_names, source=ROWS)
        if not verbose:
            stack.enter_context(without_library_bars())  # which loads the libraries
        from ..models.out_of_memory import doing
        from ..trainer.memory_advice import COMPARING
        from .evaluation_run import run_evaluation

        with memory_explained(lambda error: sentence_of_run(error, params)), doing(COMPARING):
            return run_evaluation(
                params,
                settings,
                student=os.fspath(student) if isinstance(student, os.PathLike) else student,
                before=before,
                rows=rows,
                source=source,
                run=run,
            )


def _set(settings: EvaluationSettings, given: Mapping[str, object]) -> EvaluationSettings:
    for name, value in given.items():
        if value is not None:
            settings.set(name, value)
    return settings


def _params(run: KnownRun | None, overrides: Mapping[str, Any]) -> LLMTrainingParams:
    """Return the settings of a run, with what was given in their place."""
    params = LLMTrainingParams(dtype="auto") if run is None else copy.copy(run.params)
    if run is not None and "teacher_model" not in overrides:
        params.teacher_model = params.teacher_model or teacher_from_store(params)
    for name, value in overrides.items():
        params.set(name, value)
    if "teacher_model" in overrides:
        for name, value in settings_of_teacher(params, overrides).items():
            params.set(name, value)
        params.teacher_config = None
    if "teacher_prompt_template" in overrides:
        params.teacher_prompt_mixture = None
    params = evaluated_params(params)
    if params.teacher_model is None and params.teacher_config is None:
        raise ParamsError(
            "teacher_model is missing; give --teacher-model the model that the student learned from, with "
            "--teacher-prompt-template or --teacher-system."
        )
    return params


@contextmanager
def _folder(run: KnownRun | None, settings: EvaluationSettings) -> Iterator[Path]:
    """Yield the folder that keeps what is written: the run's project, else the output, else one that is deleted.

    The output also takes the place of a project that cannot be written or is in use, whose completions are copied. No
    other process writes into either as long as this lasts.

    Raises:
        ProjectError: The folder cannot be written, or is in use.
    """
    output = None if settings.output is None else Path(settings.output).expanduser()
    if output is not None:
        _check_output(output, run)
    with ExitStack() as locks:
        if output is not None:
            locks.enter_context(folder_lock(output, what=f"output {str(output)!r}", instead="another --output"))
        if run is not None and _is_free(run.folder, locks, needed=output is None):
            yield run.folder
        elif output is not None:
            if run is not None:
                copy_stores(run.folder, output)
            yield output
        else:
            yield Path(locks.enter_context(tempfile.TemporaryDirectory(prefix="trl-distill-evaluation-")))


def _check_output(output: Path, run: KnownRun | None) -> None:
    """Refuse an output that cannot be written, or whose report would be lost: that of another run, or not ours."""
    name = f"output {str(output)!r}"
    above = obstacle(output)
    if above is not None:
        raise ProjectError(f"{name} cannot be written: {str(above)!r} is not a writable folder.")
    if run is not None and output.resolve() == run.folder.resolve():
        return
    if any((output / file).exists() for file in (MANIFEST, MARKER, SEARCH)):
        raise ProjectError(f"{name} is the project of another run, whose report would be replaced; give another one.")
    there = [file for file in (PAGE, DATA) if (output / file).exists()]
    is_ours = (output / DATA).is_file() and "format" in (read_object(output / DATA) or {})
    if there and not is_ours:
        raise ProjectError(f"{name} holds {there[0]!r}, which is not from an evaluation; give another one.")


def _is_free(project: Path, locks: ExitStack, *, needed: bool) -> bool:
    """Hold a project, if it can be written and is not in use; raise ProjectError if it is needed and cannot be."""
    if obstacle(project) is not None:
        if needed:
            raise ProjectError(f"{str(project)!r} cannot be written; give --output a folder for what is found.")
        return False
    try:
        instead = "--output a folder for what is found"
        locks.enter_context(folder_lock(project, what=f"project {str(project)!r}", instead=instead))
    except ProjectError:
        if needed:
            raise
        return False
    return True


def copy_stores(project: Path, output: Path) -> None:
    """Copy what was written for a run to a folder that does not have it, so that nobody is asked again."""
    from ..teachers.server_requirements import LOGPROBS
    from ..trainer.recipe_setup import STORE
    from .evaluation_run import JUDGED, STUDENTS

    for name in (STORE, LOGPROBS, STUDENTS, JUDGED):
        if (project / name).is_file() and not (output / name).exists():
            output.mkdir(parents=True, exist_ok=True)
            copy_file(project / name, output / name)


def _as_rows(data: Any, text_column: str) -> Any:
    """Return texts as rows, and anything else as it is."""
    if isinstance(data, (list, tuple)) and data and all(isinstance(text, str) for text in data):
        return [{text_column: text} for text in data]
    return data
