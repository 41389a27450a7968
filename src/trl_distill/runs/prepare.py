"""The first step of a run: load and check the teacher and the rows, before the student's weights are loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from transformers import set_seed

from ..config.recipes import recipe_lines
from ..config.sft_config import DistillationSFTConfig, from_params
from ..config.training_params import LLMTrainingParams
from ..data.data_fingerprint import fingerprint
from ..data.preflight import COMPUTES, Preflight
from ..data.preparation import Recipe
from ..data.rows import RowReport
from ..data.sft_rows import check_marks, first_row_lines, plain_rows
from ..data.split import Split
from ..errors import printable
from ..evaluation.advice import few_steps, optimizer_steps
from ..models.adapters import is_peft_model, lora_parameters
from ..teachers.server_requirements import check_teaches
from ..trainer.batch_finder import check_batch_finder
from ..trainer.compatibility import check_compiler, check_optimizer, check_vllm
from ..trainer.compute_summary import describe_adapter, describe_compute, describe_trained
from ..trainer.distributed import check_merging, read_whole
from ..trainer.plan import StudentModel, plan_setup
from ..trainer.settings import settings_of
from ..trainer.setup import DistillationSetup, build_setup, name_objects
from .checks import CheckedRun, check_target_modules
from .disk_estimate import Planned, check_space, planned_of_run, planned_of_teacher
from .project_folder import OPENING
from .result import RunResult
from .run_data import RunData, unread_input
from .run_queries import DRY_RUN_ROWS, write_run_data
from .settings_advice import advise
from .student import find_student, model_without_weights
from .trackers import check_trackers

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset
    from transformers import PreTrainedModel

    from ..teachers.base import Teacher

NAMES = {Split.TRAIN: "train", Split.EVAL: "validation"}  # in messages and in the figures


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to train.

    Attributes:
        checked: What was asked for.
        args: The trainer's configuration.
        state: The other processes.
        student: Its weights are loaded when they are first needed.
        datasets: The prepared rows; of a run without a validation split those to train on alone.
        computes: How the run computes, see `describe_compute`.
        preflights: Figures of the rows, if there is a teacher.
        setup: The teacher, or the store of its targets, and what goes with it; None for plain SFT.
        data: The rows as they were loaded.
        samples: Prepared rows that the student writes for at each evaluation, with the teacher's completions.
    """

    checked: CheckedRun
    args: DistillationSFTConfig
    state: PartialState
    student: StudentModel
    datasets: dict[Split, Dataset]
    computes: str
    preflights: dict[Split, Preflight] = field(default_factory=dict)
    setup: DistillationSetup | None = None
    data: RunData | None = None
    samples: Sequence[Mapping[str, Any]] = ()

    @property
    def named_datasets(self) -> list[tuple[str, Dataset]]:
        """The datasets, each with its name."""
        return [(NAMES[split], data) for split, data in self.datasets.items()]

    def figures(self) -> dict[str, object]:
        """Return the pre-flight's figures by name, and how prompts differ from the generation prompt, if they do."""
        figures = {f"preflight_{NAMES[split]}": flight.to_dict() for split, flight in self.preflights.items()}
        learned = self.preflights.get(Split.TRAIN)
        opening = {} if learned is None else learned.opening
        return {**figures, **({OPENING: opening} if opening else {})}

    def dry_result(self) -> RunResult:
        """Return what a dry run leaves."""
        return RunResult(None, self.student.tokenizer, self.figures(), {"project": self.checked.project.folder})


def prepare(checked: CheckedRun, *, writes_store: bool = False) -> PreparedRun:
    """Load the data and the teacher, generate missing completions, and show the pre-flight.

    Args:
        checked: What was asked for.
        writes_store: Whether a store of targets is to be written instead of training.

    Raises:
        UsageError: A request that cannot be fulfilled; raised before a model loads.
    """
    params, data = checked.params, checked.data
    start = _started(checked)
    for line in (*recipe_lines(params), *([data.note] if data.note else []), *unread_input(params, data.train)):
        start.state.print(printable(line))
    if not writes_store and not params.dry_run:
        check_space(_planned(checked, start), start.state.print)
    if params.distills:
        return _for_teacher(checked, start, data, writes_store=writes_store)
    return _for_plain_sft(checked, start, data)


def rehearse(checked: CheckedRun) -> list[Planned]:
    """Check what `prepare` finds before it reads weights or asks a teacher; return what training will write.

    Args:
        checked: What was asked for.

    Raises:
        UsageError: A request that cannot be fulfilled.
    """
    start = _started(checked)
    if checked.params.distills:
        _setup_of(checked, start.args, start.student, writes_store=False)
    return _planned(checked, start)


@dataclass(frozen=True)
class _Start:
    """What a run has before it reads weights and rows.

    Attributes:
        args: The trainer's configuration.
        state: The other processes.
        student: Its weights are loaded when they are first needed.
        outline: The student without weights.
        adapter: Parameters of the LoRA adapter that the run puts on the student; None if it makes none.
    """

    args: DistillationSFTConfig
    state: PartialState
    student: StudentModel
    outline: PreTrainedModel
    adapter: int | None


def _started(checked: CheckedRun) -> _Start:
    params = checked.params
    args = trainer_config(params)
    if checked.data.held_out is None:
        args.eval_strategy = "no"  # nothing to evaluate on
    set_seed(params.seed)
    state = PartialState(cpu=args.use_cpu)
    device = "cpu" if args.use_cpu else state.device
    student = find_student(params, device=device, trainer_class=checked.trainer_class)
    check_trackers(params)
    with read_whole(args):  # a model is made of the configuration, without weights
        outline = model_without_weights(student, params)
    if params.peft:
        check_target_modules(params.target_modules, outline)
    adapter = lora_parameters(outline, params) if params.peft and not is_peft_model(outline) else None
    return _Start(args, state, student, outline, adapter)


def _planned(checked: CheckedRun, start: _Start) -> list[Planned]:
    return planned_of_run(
        checked.project.folder,
        checked.params,
        start.outline,
        adapter=start.adapter,
        rows=len(checked.data.train),
        processes=start.state.num_processes,
    )


def trainer_config(params: LLMTrainingParams) -> DistillationSFTConfig:
    """Return the trainer's configuration, checked against this machine."""
    args = from_params(params)
    if params.merge_adapter:
        check_merging(args)
    check_optimizer(args)
    check_compiler(args)
    check_batch_finder(args)
    if params.use_vllm:
        check_vllm(params.model)
    return args


def _computes(params: LLMTrainingParams, start: _Start, *, teacher: Teacher | None = None) -> str:
    if start.adapter is None:
        trained = describe_trained(start.outline)
    else:
        trained = describe_adapter(start.adapter, rank=params.lora_r)
    return describe_compute(
        start.args, start.outline, trained=trained, teacher=teacher, quantization=params.quantization
    )


def _for_plain_sft(checked: CheckedRun, start: _Start, data: RunData) -> PreparedRun:
    """Return the run with rows in SFTTrainer's forms."""
    params, args, state, student = checked.params, start.args, start.state, start.student
    computes = _computes(params, start)
    if params.assistant_only_loss:
        check_marks(student.tokenizer)
    prepared = {}
    for split, rows in data.datasets.items():
        prepared[split], report = plain_rows(rows, params, name=NAMES[split])
        report = data.counted(report, split)
        line = f"\n  {COMPUTES}{computes}" if split is Split.TRAIN else ""
        state.print(printable(f"Pre-flight ({NAMES[split]})\n  rows          {report.summary()}{line}"))
        if split is Split.TRAIN:
            state.print(printable("\n".join(first_row_lines(prepared[split][0]))))
            _check_rows(checked, prepared[split], fields=None)
            _warn_of_few_steps(len(prepared[split]), params, state)
    if params.dry_run:
        state.print("Dry run: nothing was trained.")
    return PreparedRun(checked, args, state, student, prepared, computes, data=data)


def _for_teacher(checked: CheckedRun, start: _Start, data: RunData, *, writes_store: bool) -> PreparedRun:
    """Return the run with rows for a teacher; all are read before the teacher generates."""
    params, args, state, student = checked.params, start.args, start.state, start.student
    setup = _setup_of(checked, args, student, writes_store=writes_store)
    name_objects(args, setup.teacher)
    if setup.note:
        state.print(printable(setup.note))
    if params.queries_from_prompt is not None:
        with read_whole(args), state.main_process_first():  # the others find the answers in the store
            data = write_run_data(checked, setup, state.print)
        checked = replace(checked, data=data)
    settings, recipe, teacher = setup.settings, setup.recipe, setup.teacher
    computes = _computes(params, start, teacher=teacher)
    sample = DRY_RUN_ROWS if params.dry_run and not writes_store else None
    rows_read = {split: recipe.read(rows, name=NAMES[split]) for split, rows in data.datasets.items()}
    rows_read = {split: (rows, data.counted(report, split)) for split, (rows, report) in rows_read.items()}
    _check_rows(checked, rows_read[Split.TRAIN][0], fields=recipe.fields)
    if not params.dry_run:
        _check_space(settings.teacher.folder, params, teacher, [rows for rows, _ in rows_read.values()], state)
    prepared, preflights = {}, {}
    for split, rows in rows_read.items():
        with read_whole(args), state.main_process_first():  # the others find the completions in the store
            prepared[split], preflights[split] = recipe.prepare(
                rows, split=split, name=NAMES[split], rows_at_most=sample
            )
        shows_computing = split is Split.TRAIN and not writes_store
        said = [note for other, flight in preflights.items() if other is not split for note in flight.notes]
        shown = replace(preflights[split], notes=tuple(n for n in preflights[split].notes if n not in said))
        state.print(printable(shown.text(computes=computes if shows_computing else "")))
        if split is Split.TRAIN:
            check_teaches(settings.teacher, teacher, preflights[split])
            if not writes_store:
                _warn_of_few_steps(len(rows_read[split][0]), params, state)
                _advise(len(rows_read[split][0]), params, state, teacher, start.outline)
    run = PreparedRun(checked, args, state, student, prepared, computes, preflights, setup, data)
    if params.eval_samples and not writes_store:
        with read_whole(args), state.main_process_first():
            run = replace(run, samples=_samples(setup, rows_read[Split.EVAL], prepared[Split.EVAL], params))
    if sample is not None:
        state.print(f"Dry run: figures are of the first {sample} rows at most; nothing was trained.")
    if sample is not None or writes_store:
        return run
    with read_whole(args):
        return replace(run, setup=setup.with_stored_targets(run.named_datasets))


def _setup_of(
    checked: CheckedRun, args: DistillationSFTConfig, student: StudentModel, *, writes_store: bool
) -> DistillationSetup:
    """Return the teacher, and what goes with it."""
    params = checked.params
    plan = plan_setup(params, student=params.model, data=checked.data.train, templates=checked.templates)
    # under "sft" a row of text alone is learned as SFT would, else it is the prompt of a completion
    settings = settings_of(args, plain_text=params.trainer == "sft")
    return build_setup(settings, student, plan, writing=writes_store)


def _check_space(
    folder: Path, params: LLMTrainingParams, teacher: Teacher, read: Iterable[Dataset], state: PartialState
) -> None:
    """Refuse a disk without room for what the teacher gives, before it is asked."""
    given = [text for rows in read for text in rows["completion"]]
    width = getattr(getattr(teacher, "config", None), "hidden_size", 0)
    planned = planned_of_teacher(folder, params, given, vocabulary=teacher.vocabulary_rows, hidden=width)
    check_space(planned, state.print)


def _samples(
    setup: DistillationSetup,
    read: tuple[Dataset, RowReport],
    prepared: Dataset,
    params: LLMTrainingParams,
) -> list[Mapping[str, Any]]:
    """Return a few validation rows with the teacher's completions.

    If it cannot generate, or there are several teachers, the rows have the learned completions.
    """
    (rows, report), recipe = read, setup.recipe
    count = min(params.eval_samples, len(rows))
    if isinstance(recipe, Recipe) and setup.teacher.capabilities.writes and "ids" not in rows.column_names:
        asking = replace(recipe, completions="teacher", fetch_targets=None)
        prepared, _ = asking.prepare((rows.select(range(count)), report), split=Split.EVAL, name="samples")
    return [row for row in prepared.select(range(min(count, len(prepared)))) if row["student_prompt"]]


def _warn_of_few_steps(rows: int, params: LLMTrainingParams, state: PartialState) -> None:
    """Print a warning if there are too few optimizer steps; for packed rows their number is not known yet."""
    if params.packing:
        return
    steps, warmup = optimizer_steps(rows, params, processes=state.num_processes)
    for entry in few_steps(rows, steps, warmup, params):
        state.print(printable(f"  warning       {entry.text}"))


def _advise(
    rows: int, params: LLMTrainingParams, state: PartialState, teacher: Teacher, outline: PreTrainedModel
) -> None:
    """Print what runs like this one have shown; for packed rows the number of steps is not known yet."""
    steps, _ = optimizer_steps(rows, params, processes=state.num_processes)
    text = (
        "" if params.packing else advise(params, teacher, parameters=outline.num_parameters(), rows=rows, steps=steps)
    )
    if text:
        state.print(printable(f"  advice        {text}"))


def _check_rows(checked: CheckedRun, rows: Dataset, *, fields: Collection[str] | None) -> None:
    """Refuse to resume on different rows, before the teacher generates."""
    numbers = rows["row"] if "row" in rows.column_names else range(1, len(rows) + 1)
    checked.project.check_rows(fingerprint(rows, fields=fields), numbers, checked.params)
