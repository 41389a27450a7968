"""How a teacher samples inputs, and which of them are held out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..data.input_collection import WrittenInput, split_inputs
from ..errors import DistillError
from ..models.generation import GenerationSettings
from ..teachers.completions.engines.selection import check_engine
from .query_checks import KIND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..config.queries_settings import QueriesSettings
    from ..config.training_params import LLMTrainingParams
    from ..data.row_faults import Cells
    from ..teachers.base import TextTeacher
    from .query_writer import WrittenInputs


def generation_of(settings: QueriesSettings, params: LLMTrainingParams, teacher: TextTeacher) -> GenerationSettings:
    """Return how a teacher writes inputs: it samples, whatever else it does in a run.

    Raises:
        TeacherError: The engine that is named cannot write for this teacher.
    """
    check_engine(teacher, params.teacher_engine)
    return GenerationSettings(
        max_new_tokens=settings.max_new_tokens,
        do_sample=True,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=params.seed,
        batch_size=params.teacher_batch_size,
        stop=tuple(params.teacher_stop or ()),
        engine=params.teacher_engine,
    )


def rows_of(inputs: Sequence[WrittenInput], *, column: str, chats: bool) -> list[Cells]:
    """Return inputs as rows of a run: a column of text, or chats of one user message."""
    if chats:
        return [{"messages": [{"role": "user", "content": one.text}], KIND: one.kind} for one in inputs]
    return [{column: one.text, KIND: one.kind} for one in inputs]


def split(written: WrittenInputs, share: float, by: str, *, seed: int) -> tuple[list[WrittenInput], list[WrittenInput]]:
    """Return the inputs to train on and those held out, see `split_inputs`.

    Raises:
        DistillError: Nothing is left to train on.
    """
    train, held_out = split_inputs(written.inputs, share, by_kind=by == "kinds", seed=seed)
    count = len(written.inputs)
    if by == "kinds" and share > 0 and not held_out:
        raise DistillError(
            f"holdout_by is {by!r}, and all {count:,} inputs are of the same kind; give --holdout-by rows, more "
            "inputs, or --holdout 0."
        )
    if not train:
        raise DistillError(f"holdout is {share:g}, which leaves none of {count:,} inputs to train on; lower --holdout.")
    return train, held_out
