"""`train(params)`: prepare, fit, save - the one engine behind the command and the library.

Everything that can be wrong in what the user typed is found before a model loads, and before torch does if possible.
"""

from __future__ import annotations

from typing import Any

from ..config.setting_names import settings_named_as
from ..config.training_params import LIBRARY, LLMTrainingParams
from .checks import check_run
from .result import RunResult


def train(params: LLMTrainingParams) -> Any:
    """Train and return the model, as in the guide. See `run` for the whole result.

    Args:
        params: The run's parameters.

    Returns:
        The trained model; None after a dry run.

    Raises:
        UsageError: Something that was asked for cannot be done; raised before a model loads.
        RunInterrupted: Ctrl-C; a checkpoint is written.
    """
    return run(params).model


@settings_named_as(LIBRARY)
def run(params: LLMTrainingParams) -> RunResult:
    """Train and return model, tokenizer, metrics, paths and trainer.

    The project folder then holds the model (safetensors), its tokenizer, the configuration, the metrics and a
    model card. With `dry_run` it stops after the pre-flight and writes nothing but completions paid for.

    Raises:
        UsageError: Something that was asked for cannot be done; raised before a model loads.
        RunInterrupted: Ctrl-C; a checkpoint is written.
    """
    checked = check_run(params)
    from .fit import fit
    from .prepare import prepare
    from .save import save

    prepared = prepare(checked)
    if params.dry_run:
        return prepared.dry_result()
    return save(fit(prepared))


@settings_named_as(LIBRARY)
def teach(params: LLMTrainingParams, *, repair: bool = False) -> int:
    """Write the targets of a run into its `teacher_store`, and return how many shards were made.

    Targets that are there already are kept, so the same call resumes after a kill. `run` with the same parameters then
    trains from the store and loads no teacher.

    Args:
        params: The run's parameters; those of training are ignored.
        repair: Make damaged files of the store again instead of refusing them.

    Raises:
        ParamsError: No store or no teacher is named.
        UsageError: Something that was asked for cannot be done; raised before a model loads.
    """
    checked = check_run(params, writes_store=True)
    from ..teachers.target_store.folder import TargetFolder
    from .prepare import prepare

    folder = TargetFolder(str(params.teacher_store))
    if repair:
        folder.discard_damaged()
    elif folder.begun:
        folder.check(folder.manifest())
    prepared = prepare(checked, writes_store=True)
    if not prepared.state.is_main_process:
        return 0
    assert prepared.setup is not None
    return prepared.setup.write_store(prepared.args, prepared.named_datasets)
