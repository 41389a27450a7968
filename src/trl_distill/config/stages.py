"""Stages of one run, as in the guide's "Progressive Distillation": what each sets over the settings of all.

Nothing here imports torch, so that a wrong stage is refused at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy

from ..errors import DistillError, ParamsError, quoted
from .fields import model_in_memory
from .setting_names import by_field, flag_of
from .training_params import ALIASES, FIELDS, LLMTrainingParams
from .yaml_file import read_yaml

Stage = Mapping[str, object] | tuple[int, str]
MOST = 100  # stages
_OF_ALL = "it is a setting of all stages together"
_SAME_ROWS = "rows that one stage holds out could be trained on in another"
# settings that no stage has for itself, and why
FIXED = {
    "model": "each stage starts from the model of the one before",
    "project_name": "all stages are in one project",
    **dict.fromkeys(("overwrite", "resume", "dry_run", "push_to_hub", "username"), _OF_ALL),
    **dict.fromkeys(("holdout", "seed"), _SAME_ROWS),
}
ROWS = ("data_path", "data_config", "train_split", "valid_split", "text_column")  # which rows --holdout holds out


def read_stages(path: str | os.PathLike[str]) -> list[dict[str, object]]:
    """Return the stages that a YAML file lists.

    Args:
        path: A list with a mapping of settings for each stage; their names may have dashes or underscores.

    Raises:
        ParamsError: The file cannot be read, or holds something else.
    """
    name = f"--stages {os.fspath(path)}"
    return [dict(_settings(stage, n, name)) for n, stage in enumerate(_listed(read_yaml(path, name=name), name), 1)]


def params_of_stages(params: LLMTrainingParams, stages: Sequence[Stage]) -> list[LLMTrainingParams]:
    """Return the parameters of each stage: its own settings over those of all.

    The first starts from `params.model`; the model of any later one, and the folders, are set by `runs.stages`.

    Args:
        params: Settings of all stages.
        stages: For each stage a mapping of the settings that are its own, or, as in the guide, a pair of its number
            and its teacher's prompt.

    Raises:
        ParamsError: No list of stages, a setting that no stage has for itself, an unknown one or a wrong value; names
            the stage and the setting.
    """
    given = [_settings(stage, n, "stages") for n, stage in enumerate(_listed(stages, "stages"), 1)]
    return [_of_stage(n, own, params) for n, own in enumerate(given, 1)]


@contextmanager
def naming_stage(number: int) -> Iterator[None]:
    """Put the number of the stage before an error's sentence."""
    try:
        yield
    except DistillError as error:
        error.args = (f"stage {number}: {error}", *error.args[1:])
        raise


def own_settings(params: LLMTrainingParams, others: Sequence[LLMTrainingParams]) -> dict[str, object]:
    """Return the settings in which a stage differs from any other, as plain data."""
    values = [each.to_dict() for each in (params, *others)]
    names = [name for name in FIELDS if name not in FIXED and any(v[name] != values[0][name] for v in values)]
    return {name: values[0][name] for name in names}


def _listed(stages: object, name: str) -> list[object]:
    if isinstance(stages, (str, Mapping)) or not isinstance(stages, Sequence):
        raise ParamsError(
            f"{name} holds a {type(stages).__name__}; give a list with the settings of each stage, such as "
            "'- teacher_prompt_template: ...'."
        )
    if not 0 < len(stages) <= MOST:
        raise ParamsError(f"{name} has {len(stages):,} stages; give 1 to {MOST}.")
    return list(stages)


def _settings(stage: object, number: int, name: str) -> Mapping[str, object]:
    """Return the settings of a stage; of a pair (number, prompt) the teacher's prompt."""
    if isinstance(stage, (tuple, list)) and len(stage) == 2 and type(stage[0]) is int:
        if stage[0] != number:
            raise ParamsError(
                f"{name}: stage {number} has the number {stage[0]}; number the stages 1, 2, ... in the order in which "
                "they run."
            )
        return {"teacher_prompt_template": stage[1]}
    if isinstance(stage, Mapping) and all(isinstance(key, str) for key in stage):
        return stage
    raise ParamsError(
        f"{name}: stage {number} is {quoted(stage)}; give 'name: value' lines, or its number and the teacher's prompt."
    )


def _of_stage(number: int, own: Mapping[str, object], params: LLMTrainingParams) -> LLMTrainingParams:
    made = copy(params)
    with naming_stage(number):
        for name, value in by_field(own, ALIASES).items():
            if name in FIXED:
                raise ParamsError(f"{name} cannot differ: {FIXED[name]}; give it for all stages ({flag_of(name)}).")
            if name in ("teacher_model", "data_path") and model_in_memory(value):
                found = model_in_memory(value)
                raise ParamsError(f"{name} was a {found} in memory, not a file; give a name or a path.")
            made.set(name, value)
        if made.queries_from_prompt is not None:
            raise ParamsError(
                "queries_from_prompt would write inputs for each stage; write them once by aitraining queries, and "
                "give them as --data-path."
            )
        changed = next((name for name in ROWS if _differs(getattr(made, name), getattr(params, name))), None)
        if params.holdout > 0 and changed is not None:
            raise ParamsError(
                f"{changed} cannot differ with --holdout: {_SAME_ROWS}; drop --holdout, and give the rows to evaluate "
                "on to aitraining evaluate (--data-path)."
            )
    return made


def _differs(one: object, other: object) -> bool:
    """Whether two values differ; data in memory differs from any but itself."""
    return one is not other and not (isinstance(one, str) and one == other)
