"""The inputs of an evaluation from a run: its settings, and its held-out rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..config.fields import model_in_memory
from ..config.training_params import FIELDS, LLMTrainingParams
from ..config.user_files import read_small_text, user_path
from ..config.yaml_file import read_yaml
from ..errors import DataError, ParamsError, ProjectError, first_line, quoted
from .project_folder import HELD_OUT, MANIFEST, OPENING
from .stage_folders import before_stages

if TYPE_CHECKING:
    from datasets import Dataset

# settings of a run that an evaluation reads, in addition to the groups Data and Teacher
READ = frozenset(
    (
        *("model", "teacher_model", "teacher_prompt_template", "student_prompt_template", "teacher_system"),
        *("student_system", "distill_alpha", "distill_max_teacher_length", "seed", "project_name"),
        *("dtype", "attn_implementation", "quantization", "trust_remote_code"),
    )
)
# settings of those groups that belong to training alone; the student's tokenizer has its chat template
OF_TRAINING = frozenset(
    (
        *("assistant_only_loss", "completions", "teacher_prompt_dropout", "retain_data", "retain_fraction", "strict"),
        *("teacher_do_sample", "teacher_sampling_temperature", "teacher_top_p", "teacher_ema_decay"),
        *("teacher_store", "teacher_store_kind", "teacher_temperatures", "keep_chat_template", "chat_template"),
        *("holdout", "train_split", "valid_split", "queries_from_prompt"),
    )
)
IN_MEMORY = ("model", "teacher_model", "retain_data")
SPLITS = ("test", "validation", "train")  # tried in this order
KEPT = "the rows that the run held out"
TRAINED = "which the student was trained on"
NO_ROWS = (
    "there are no rows to evaluate on; give --data-path rows that the student was not trained on, or train with "
    "--holdout 0.1, which holds some out."
)


@dataclass(frozen=True)
class KnownRun:
    """The run that trained a student.

    Attributes:
        params: Its parameters; a model that was in memory is None, unless it is there still.
        folder: Its project.
        opening: How the student's prompts differed from its own generation prompt, see `Preflight.opening`.
        held_out: Its validation rows, if they are in memory.
    """

    params: LLMTrainingParams
    folder: Path
    opening: Mapping[str, object] = field(default_factory=dict)
    held_out: Dataset | None = None


_RUNS: WeakKeyDictionary[Any, KnownRun] = WeakKeyDictionary()  # of trained models in memory


def remember_run(model: object, params: LLMTrainingParams, folder: Path, held_out: Dataset | None) -> None:
    """Remember a trained model's finished run for the lifetime of the model.

    Args:
        model: The model.
        params: The run's parameters.
        folder: Its project, whose configuration has the content of the files that the parameters name.
        held_out: Its validation rows.
    """
    run = read_project(folder)
    for name in IN_MEMORY:
        given = getattr(params, name)
        if not isinstance(given, str) and given is not model:  # which would live for ever
            run.params.set(name, given)
    _RUNS[model] = replace(run, held_out=held_out)


def run_of(student: object) -> KnownRun | None:
    """Return the run of a model that `train` returned, or of a project folder; None if it is unknown."""
    if isinstance(student, (str, Path)):
        folder = user_path(student, name="student")
        return read_project(folder) if (folder / MANIFEST).is_file() else None
    return _RUNS.get(student)


def read_project(folder: Path) -> KnownRun:
    """Return the run of a project folder.

    Of a run in stages, the model is the one that the first stage started from; everything else is the last stage's.

    Raises:
        ProjectError: It holds no finished run, or its settings cannot be read.
    """
    if not (folder / MANIFEST).is_file():
        raise ProjectError(
            f"{str(folder)!r} holds no finished run ({MANIFEST} is missing); give the project of one, or --student "
            "with the folder of a model."
        )
    try:
        values = read_yaml(folder / "config.yaml", name="config.yaml")
        if not isinstance(values, dict):
            raise ProjectError("config.yaml holds no settings")
        params = LLMTrainingParams()
        values = {**values, "model": before_stages(folder, values.get("model"))}
        for name in FIELDS.keys() & values.keys():  # one of an earlier version has fewer
            params.set(name, _there(name, values[name]))
        figures = json.loads(read_small_text(folder / "metrics.json"))["metrics"]
        opening = figures.get(OPENING, {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = first_line(error)
        raise ProjectError(f"the settings of the run in {str(folder)!r} cannot be read: {reason}.") from error
    params.project_name = str(folder)
    return KnownRun(params, folder, opening)


def _there(name: str, value: object) -> object:
    """Return a setting of a saved configuration; None for an object that was in memory. Raises TypeError: no name."""
    if name in (*IN_MEMORY, "data_path") and not isinstance(value, (str, type(None))):
        raise TypeError(f"{name} is {quoted(value)}, not a name")
    return None if name in IN_MEMORY and model_in_memory(value) else value


def evaluated_fields() -> list[Field]:
    """Return the settings of a run that an evaluation reads."""
    groups = ("Data", "Teacher")
    wanted = {spec.name for spec in FIELDS.values() if spec.metadata["help"].group in groups} | READ
    return [spec for spec in FIELDS.values() if spec.name in wanted - OF_TRAINING]


def evaluated_params(params: LLMTrainingParams) -> LLMTrainingParams:
    """Return the settings of a run that define the teacher and the prompts, all others at their defaults."""
    read = LLMTrainingParams(completions="teacher", allow_text_only_teacher=True, distill_temperature=1.0)
    for name in {spec.name for spec in evaluated_fields()} - {"allow_text_only_teacher"}:
        read.set(name, getattr(params, name))
    return read


def teacher_from_store(params: LLMTrainingParams) -> str | None:
    """Return the teacher of a run that trained from stored targets without naming it."""
    if params.teacher_store is None or params.teacher_model is not None:
        return None
    from ..teachers.target_store.folder import TargetFolder

    return str(TargetFolder(params.teacher_store).manifest()["name"])


def settings_of_teacher(params: LLMTrainingParams, given: Mapping[str, object]) -> dict[str, object]:
    """Return the prompt, revision and key of a teacher that a run's list has, without those that are given.

    Raises:
        ParamsError: The list has the teacher with several prompts, and none is given.
    """
    if params.teacher_config is None:
        return {}
    from ..teachers.multi.entries import read_teachers, template_source

    listed = read_teachers(params.teacher_config).teachers
    entries = [entry for entry in listed if entry.model == given["teacher_model"] and entry.retained is None]
    if not entries:
        return {}
    own: dict[str, object] = {"teacher_revision": entries[0].revision, "teacher_key_env": entries[0].key_env}
    if not {"teacher_prompt_template", "teacher_system"} & given.keys():
        if any(entry.template != entries[0].template for entry in entries):
            raise ParamsError(
                f"teacher_config has the teacher {quoted(entries[0].name)} with several prompts, but an evaluation "
                "compares with one; give it with --teacher-prompt-template."
            )
        own["teacher_prompt_template"] = template_source(entries[0].template)
    return {name: value for name, value in own.items() if name not in given}


def rows_to_evaluate(
    run: KnownRun | None, data: Any = None, *, split: str | None = None, config_name: str | None = None
) -> tuple[Dataset, str]:
    """Return the rows to evaluate on, and where they are from.

    Args:
        run: The student's, whose held-out rows are evaluated on if no others are given.
        data: Rows in any form that `load_data` reads.
        split: Which of their splits (default: the first of test, validation and train that is there).
        config_name: Configuration of a Hub dataset.

    Raises:
        DataError: There are none, or see `load_data`.
    """
    from ..data.loading import load_data

    if data is not None:
        name = str(data) if isinstance(data, (str, Path)) else f"a {type(data).__name__} in memory"
        rows, chosen = _split_of(data, split, config_name)
        return rows, f"{name}, {TRAINED}" if _is_training_data(run, data, chosen) else name
    if split is not None:
        raise DataError(f"split {split!r} is one of --data-path, which is not given; give both.")
    if run is not None and run.held_out is not None:
        return run.held_out, KEPT
    if run is not None and (run.folder / HELD_OUT).is_file():
        return load_data(run.folder / HELD_OUT)[0], KEPT
    params = None if run is None else run.params
    if params is None or params.queries_from_prompt is not None or model_in_memory(params.data_path):
        raise DataError(NO_ROWS)
    _, valid = load_data(
        params.data_path,
        train_split=params.train_split,
        valid_split=params.valid_split,
        config_name=params.data_config,
    )
    if valid is None:
        raise DataError(NO_ROWS)
    return valid, f"the validation rows of {params.data_path}"


def _is_training_data(run: KnownRun | None, data: object, split: str) -> bool:
    """Return whether data are the file, folder or Hub dataset whose split a run trained on."""
    if run is None or run.params.queries_from_prompt is not None:
        return False
    given = [data, run.params.data_path]
    names = [str(Path(name).expanduser().resolve()) for name in given if isinstance(name, (str, Path))]
    return len(names) == 2 and names[0] == names[1] and split == run.params.train_split


def _split_of(data: Any, split: str | None, config_name: str | None) -> tuple[Dataset, str]:
    """Return the rows of a split, and which it is."""
    from ..data.loading import NoSplit, load_data

    for name in SPLITS if split is None else (split,):
        try:
            return load_data(data, train_split=name, config_name=config_name)[0], name
        except NoSplit as error:
            if split is not None or name == SPLITS[-1]:
                raise DataError(
                    str(error).replace("train_split", "split").replace("--train-split", "--split")
                ) from None
    raise AssertionError("no split was tried")
