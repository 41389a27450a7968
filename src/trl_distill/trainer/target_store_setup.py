"""From a configuration to the store of targets that takes its teacher's place, and to the shards that it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate import PartialState

from ..config.choices import STORE_KINDS
from ..config.validation import temperatures_of
from ..teachers.base import Teacher
from ..teachers.target_store.folder import TargetFolder
from ..teachers.target_store.reader import StoredTeacher
from ..teachers.target_store.writer import TargetSettings, write_targets
from .distributed import read_whole
from .setup import prompts_and_writing, template_date

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset

    from ..config.sft_config import DistillationSFTConfig


def from_store(args: DistillationSFTConfig, teacher: Teacher, datasets: Sequence[tuple[str, Dataset]]) -> Teacher:
    """Return the store of a configuration as its teacher, written by `teacher` where it is not there.

    Args:
        args: The configuration; without a `teacher_store` the teacher is returned as it is.
        teacher: Who scores, or the store itself.
        datasets: Prepared rows, each with its name; two may have the same.

    Raises:
        TeacherError: See `write_targets` and `StoredTeacher`; a row that the store has no targets for.
    """
    if not isinstance(teacher, StoredTeacher):
        if args.teacher_store is None:
            return teacher
        state = PartialState()
        if state.is_main_process:
            write_store(args, teacher, datasets)
        state.wait_for_everyone()
        name, teacher = teacher.name, StoredTeacher(args.teacher_store)
        teacher.check_loss(args.distill_temperature, args.distill_divergence)
        teacher.name = name
    for name, rows in datasets:
        teacher.check_rows(rows, name=name)
    return teacher


def write_store(args: DistillationSFTConfig, teacher: Teacher, datasets: Sequence[tuple[str, Dataset]]) -> int:
    """Write what is missing of a configuration's store and return how many shards were made; one process calls it.

    Args:
        args: The configuration.
        teacher: Who scores.
        datasets: Prepared rows, each with its name; two may have the same.

    Raises:
        TeacherError: See `write_targets`.
    """
    settings = TargetSettings(
        k=args.teacher_top_k,
        temperatures=temperatures_of(args),
        **prompts_and_writing(args),
        batch_size=args.teacher_batch_size,
        kind=args.teacher_store_kind or STORE_KINDS[0],
        engine=args.teacher_engine,
    )
    rows = (row for _, dataset in datasets for row in dataset)
    folder, progress = TargetFolder(str(args.teacher_store)), not args.disable_tqdm
    template_date(args, teacher, teacher.tokenizer).keep()
    with read_whole(args):
        return write_targets(teacher, rows, folder, settings, progress=progress)
