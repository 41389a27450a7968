"""One evaluation, from its settings to its result and output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.evaluation_settings import ROWS, EvaluationSettings
from ..config.setting_names import name_settings
from ..config.training_params import LLMTrainingParams
from ..errors import DistillError, ParamsError, printable
from ..evaluation.advice import of_evaluation
from ..evaluation.judge import judge_pairs, load_judge
from ..evaluation.metrics import metrics_for
from ..evaluation.page.write import write_report
from ..evaluation.questions import QuestionReader, references_of
from ..evaluation.run import Judge, Measures, evaluate_sides
from ..evaluation.sides import Sides, Stores
from ..evaluation.table import judged, savings_of, table_of
from ..models.generation import GenerationSettings
from ..teachers.completions.engines.selection import VLLM_ALONE
from ..teachers.completions.engines.vllm import VLLM
from ..teachers.completions.store import CompletionStore
from ..teachers.local.teacher import LocalTeacher
from ..teachers.remote.request_pool import RemoteSettings
from ..trainer.recipe_setup import STORE
from .early_checks import prices_of
from .evaluated_models import find_models
from .evaluation_inputs import KnownRun
from .report import versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset

    from ..evaluation.models import EvaluatedModels
    from ..evaluation.page.content import Advice
    from ..evaluation.result import Evaluation, Judgement, Side

STUDENTS, JUDGED = "student_completions.jsonl", "judge_answers.jsonl"


def run_evaluation(
    params: LLMTrainingParams,
    settings: EvaluationSettings,
    *,
    student: Any,
    before: Any,
    rows: Dataset,
    source: str,
    run: KnownRun | None,
    progress: bool = True,
) -> Evaluation:
    """Evaluate a student and print the table and the verdict.

    Args:
        params: What `evaluated_params` returned; `project_name` is the folder that keeps what is written.
        settings: How it is evaluated.
        student: The trained student: a folder, a Hub name, or a loaded model.
        before: The student before training, if it was named.
        rows: The rows to evaluate on.
        source: Where they are from.
        run: The student's run, if it is known.
        progress: Whether to show progress bars.

    Raises:
        UsageError: Something that cannot be found or evaluated; raised before a model loads.
        DistillError: The judge fails; raised when everything else is printed and written.
    """
    prices = prices_of(params, settings)
    models = find_models(params, student=student, before=before)
    if settings.max_rows is not None:
        rows = rows.select(range(min(settings.max_rows, len(rows))))
    read_rows, report = models.recipe.read(rows, name=ROWS)
    references = references_of(read_rows, column=settings.reference_column)
    metrics = metrics_for(settings.metric or (), references if any(references) else None)
    writing = _writing(params, settings)
    reader = QuestionReader(models.recipe, {} if run is None else run.opening, writing.max_new_tokens)
    questions = reader.questions(read_rows, references)
    if settings.use_vllm:
        _check_vllm(models)
    print(printable(f"Evaluating on {source}: {report.summary()}."))
    folder = Path(params.project_name)
    stores = Stores(CompletionStore(folder / STORE), CompletionStore(folder / STUDENTS))
    sides = Sides(models, reader, questions, writing, stores=stores, progress=progress)
    failures: list[DistillError] = []
    measures = Measures(
        metrics,
        with_teacher_prompt=settings.with_teacher_prompt,
        timed_queries=min(settings.timed_queries, len(questions)),
        teacher_prices=prices["teacher"],
        student_prices=prices["student"],
        run_cost=settings.run_cost,
        judge=_judge(params, settings, models, failures, progress=progress),
        seed=params.seed,
    )
    evaluation = evaluate_sides(sides, measures, settings=_settings_of(params, source, writing), versions=versions())
    print(printable(f"\n{table_of(evaluation)}\n"))
    for line in (savings_of(evaluation), *judged(evaluation)):
        print(printable(line))
    if sides.times_the_student_twice and measures.timed_queries:
        print("The teacher's times are the student's under the teacher's prompt, since a server is not timed.")
    advice = list(of_evaluation(evaluation))
    for entry in advice:
        print(printable(f"  warning       {name_settings(entry.text)}"))
    _report(evaluation, advice, settings, run)
    print(printable(evaluation.verdict.sentence))
    if failures:
        raise failures[0]
    return evaluation


def _check_vllm(models: EvaluatedModels) -> None:
    """Refuse vLLM for models that it cannot load."""
    for side in (models.teacher, models.before, models.after):
        if not isinstance(side, LocalTeacher):
            continue
        why = VLLM(side).why_not
        if why is not None:
            raise ParamsError(f"use_vllm cannot be used for {side.name!r}: {why}; drop --use-vllm.")


def _report(
    evaluation: Evaluation, advice: Sequence[Advice], settings: EvaluationSettings, run: KnownRun | None
) -> None:
    """Write the page, if there is a folder for it."""
    project = None if run is None else run.folder
    folder = project if settings.output is None else Path(settings.output).expanduser()
    if folder is not None:
        name = (project or folder).resolve().name
        try:
            paths = write_report(folder, name=name, evaluation=evaluation, advice=advice, project=project)
            print(printable(f"The report page is {paths['page']}.\n"))
        except Exception as error:  # what was found is worth more than its page
            print(printable(f"The page could not be made ({type(error).__name__}: {error}).\n"))


def _judge(
    params: LLMTrainingParams,
    settings: EvaluationSettings,
    models: EvaluatedModels,
    failures: list[DistillError],
    *,
    progress: bool,
) -> Judge | None:
    """Return a function that asks a judge to compare sides and stores its answers; None without a judge.

    What fails there is added to `failures`: the other figures are worth more than the judge.
    """
    if settings.judge is None:
        return None
    remote = RemoteSettings(
        concurrency=params.teacher_concurrency,
        timeout=params.teacher_timeout,
        max_requests=params.teacher_max_requests,
        max_tokens=params.teacher_max_tokens,
        key_env=settings.judge_key_env,
    )
    judge = load_judge(settings.judge, tokenizer=models.after.tokenizer, settings=remote)
    judge.server.check_can_ask()  # refuses a missing key before a model loads
    store = CompletionStore(Path(params.project_name) / JUDGED)

    def asked(
        pairs: Sequence[tuple[Side, Side]], requests: Sequence[str], references: Sequence[str] | None
    ) -> Judgement | None:
        try:
            return judge_pairs(
                judge, pairs, requests=requests, references=references, store=store, progress=progress, seed=params.seed
            )
        except DistillError as error:
            failures.append(error)
            return None

    return asked


def _writing(params: LLMTrainingParams, settings: EvaluationSettings) -> GenerationSettings:
    """Return the generation settings of all sides; stop strings are only for the teacher."""
    return GenerationSettings(
        max_new_tokens=settings.max_new_tokens or params.distill_max_teacher_length,
        seed=params.seed,
        batch_size=params.teacher_batch_size,
        stop=tuple(params.teacher_stop or ()),
        engine=VLLM_ALONE if settings.use_vllm else "transformers",
    )


def _settings_of(params: LLMTrainingParams, source: str, writing: GenerationSettings) -> dict[str, object]:
    """Return the settings of the evaluation, for readers of the result."""
    values = params.to_dict()
    names = ("teacher_model", "teacher_prompt_template", "student_prompt_template", "teacher_system", "student_system")
    shown = {name: values[name] for name in names}
    return {
        "data": source,
        **shown,
        "max_new_tokens": writing.max_new_tokens,
        "seed": params.seed,
        "dtype": params.dtype,
    }
