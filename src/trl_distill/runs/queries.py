"""`aitraining queries`: a teacher writes inputs for its own prompt, into files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..config.queries_settings import QueriesSettings
from ..config.training_params import LLMTrainingParams
from ..config.validation import chat_template_options
from ..errors import ParamsError, printable
from .data_output import DataOutput
from .full_disk import explaining_full_disk_of
from .library_output import without_library_bars
from .query_checks import KIND, check_writes, checked_prompt, held_out_inputs, share_held_out

if TYPE_CHECKING:
    from ..data.diversity import HeldOut


def write_queries(settings: QueriesSettings, params: LLMTrainingParams) -> None:
    """Have a teacher write inputs for its prompt, and write them to files; see `aitraining queries`.

    Args:
        settings: How many, and where to.
        params: The teacher, its prompt, and how it is asked.

    Raises:
        UsageError: Settings that cannot be used; raised before a model loads or a server is asked.
        DistillError: The teacher writes too few distinct inputs, or its server fails.
    """
    output = DataOutput.of(settings.output, example="queries.jsonl")
    share, prompt = share_held_out(settings), checked_prompt(params)
    check_writes(params)
    if params.text_column == KIND:
        raise ParamsError(f"text_column is {KIND!r}, the column of each input's kind; give another.")
    read = []
    if share is None:
        from ..data.loading import check_there

        check_there(settings.holdout, setting="holdout")
        read.append(settings.holdout)
    output.check(read, holds_out=bool(share), overwrite=settings.overwrite)
    with output.locked():
        output.check(read, holds_out=bool(share), overwrite=settings.overwrite)  # another may have just ended
        apart = held_out_inputs(settings.holdout, params) if share is None else None
        _write(settings, params, output, prompt=prompt, share=share or 0.0, apart=apart)


@without_library_bars()
def _write(
    settings: QueriesSettings,
    params: LLMTrainingParams,
    output: DataOutput,
    *,
    prompt: str,
    share: float,
    apart: HeldOut | None,
) -> None:
    from ..teachers.completions.store import CompletionStore
    from ..teachers.remote.teacher import RemoteTeacher
    from ..teachers.text.local_text import LocalTextTeacher
    from ..trainer.settings import remote_settings
    from .query_setup import generation_of, rows_of, split
    from .query_writer import QueryWriter, Wanted, lines_of, report_of
    from .writing_teacher import writing_teacher

    teacher = writing_teacher(
        str(params.teacher_model),
        None,
        revision=params.teacher_revision,
        dtype=params.teacher_dtype,
        quantization=params.teacher_quantization,
        device_map=params.teacher_device_map,
        trust_remote_code=params.trust_remote_code,
        device=None,
        remote=replace(remote_settings(params), reasoning="keep"),  # nothing is learned, so no warning about it
    )
    if isinstance(teacher, LocalTextTeacher):
        teacher.options = chat_template_options(params)
    generation = generation_of(settings, params, teacher)
    name = str(params.teacher_model)
    shown = teacher.describe() if isinstance(teacher, RemoteTeacher) else name
    print(printable(f"Asking {shown} for inputs of its prompt ({len(prompt):,} characters)."))
    writer = QueryWriter(
        teacher, Wanted.of(settings, prompt, apart), generation, CompletionStore(output.answers), name=name
    )
    with explaining_full_disk_of(output.answers):
        written = writer.write()
    train, held_out = split(written, share, settings.holdout_by, seed=params.seed)
    report = {
        "teacher": name, "seed": params.seed, "holdout": settings.holdout, "holdout_by": settings.holdout_by,
        "held_out": len(held_out), **report_of(written, teacher),
    }  # fmt: skip
    output.write(
        rows_of(train, column=params.text_column, chats=settings.chats),
        rows_of(held_out, column=params.text_column, chats=settings.chats) if share else None,
        report,
    )
    print(printable("\n".join(lines_of(written, teacher))))
    if share:
        print(printable(f"Held out: {len(held_out):,} of them, in {output.held_out}."))
    print(printable(f"To train on: {len(train):,}, in {output.rows}; {output.report.name} has the details."))
