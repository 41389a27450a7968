"""A distilling trainer's datasets: rows of any accepted form to the collator's form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from ..data.file_readers import CONVERSATIONS
from ..data.memory import for_trainer
from ..data.packing import PackedRows, packed
from ..data.preparation import is_prepared
from ..data.pretokenized import IDS
from ..data.rows import COMPLETIONS
from ..data.split import Split
from ..data.streaming import columns_of, is_stream, prepare_stream
from ..errors import ParamsError, printable
from ..teachers.server_requirements import check_teaches
from ..teachers.target_store.reader import StoredTeacher
from .compatibility import with_lengths
from .compute_summary import describe_compute, describe_trained
from .distributed import read_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset

    from .base import DistillingTrainer

    Formatting = Callable[[dict[str, Any]], str]


class TrainerDatasets:
    """Prepares a trainer's training and evaluation datasets.

    Args:
        trainer: The trainer.
        formatting: Its `formatting_func`.
    """

    def __init__(self, trainer: DistillingTrainer, formatting: Formatting | None) -> None:
        self.trainer, self.args, self.formatting = trainer, trainer.args, formatting

    def prepare_own(self) -> None:
        """Prepare the trainer's own datasets; a store of targets replaces the teacher in its set-up."""
        trainer, setup = self.trainer, self.trainer.setup
        if setup.settings.chat_template_date is None and self.args.should_save:
            setup.date.keep()
        trainer.train_dataset = self.prepare(trainer.train_dataset, Split.TRAIN)
        trainer.eval_dataset = self.prepare_for_evaluation(trainer.eval_dataset)
        if setup.settings.teacher.store is None and not isinstance(setup.teacher, StoredTeacher):
            return
        both = [("train", trainer.train_dataset), *_named(trainer.eval_dataset)]
        if any(is_stream(part) for _, part in both):
            raise ParamsError(f"{setup.teacher.name} is a store of targets, and a dataset is a stream; give a Dataset.")
        with read_whole(self.args):
            trainer.setup = setup.with_stored_targets(both)

    def prepare(self, dataset: object, split: Split, name: str | None = None) -> Any:
        """Return a dataset as the collator takes it, and print its pre-flight.

        Args:
            dataset: Rows of any accepted form; one that is prepared already is returned as it is.
            split: Its role.
            name: What to call it in messages (default: the split).
        """
        setup = self.trainer.setup
        name = split.value if name is None else name
        if isinstance(dataset, PackedRows):
            return dataset
        rows = for_trainer(dataset, name=f"{split.value}_dataset")
        if is_prepared(rows):
            return with_lengths(rows, self.args)
        rows = self._formatted(rows, name)
        if self.args.shuffle_dataset:
            rows = rows.shuffle(seed=self.args.seed)
        with read_whole(self.args), PartialState().main_process_first():  # the others find completions in the store
            if is_stream(rows):
                apart = self.args.dataloader_num_workers > 0 or self.trainer.accelerator.num_processes > 1
                prepared, preflight = prepare_stream(rows, setup.recipe, split=split, name=name, apart=apart)
            else:
                prepared, preflight = setup.recipe.prepare(rows, split=split, name=name)
        computes = ""
        if split is Split.TRAIN:
            student, optimizer = self.trainer.base_student, self.trainer.optimizer
            trained = describe_trained(self.trainer.model)
            computes = describe_compute(self.args, student, trained=trained, teacher=setup.teacher, optimizer=optimizer)
        self.trainer.accelerator.print(printable(preflight.text(computes=computes)))
        if split is Split.TRAIN:
            check_teaches(setup.settings.teacher, setup.teacher, preflight)
            if preflight.serving is not None:
                self.trainer.put_chat_template(preflight.serving)
        return with_lengths(prepared, self.args)

    def prepare_for_evaluation(self, dataset: object) -> Any:
        """Prepare a dataset to evaluate on, a dict of them, or nothing; a name is one of `eval_dataset`."""
        there = self.trainer.eval_dataset
        if dataset is None or (isinstance(dataset, str) and isinstance(there, dict) and dataset in there):
            return dataset
        if isinstance(dataset, dict):
            return {key: self.prepare(part, Split.EVAL, key) for key, part in dataset.items()}
        return self.prepare(dataset, Split.EVAL)

    def pack(self) -> None:
        """Put the rows of the trainer's own datasets that share a sequence together, if the settings ask for it."""
        self.trainer.train_dataset = packed(self.trainer.train_dataset, self.args, Split.TRAIN)
        self.trainer.eval_dataset = packed(self.trainer.eval_dataset, self.args, Split.EVAL)

    def _formatted(self, dataset: Any, name: str) -> Any:
        """Return a dataset with the text that `formatting_func` makes of its rows, as SFTTrainer has it."""
        func, columns = self.formatting, [] if self.formatting is None else columns_of(dataset)
        if func is None or IDS in columns:
            if func is not None:
                self.trainer.accelerator.print(printable(f"formatting_func is not used: {name} has token ids already."))
            return dataset
        read_instead = sorted(set(columns) & {*CONVERSATIONS, *COMPLETIONS, "prompt"})
        text = self.args.dataset_text_field  # the function is pickled, and must not hold the trainer
        return dataset.map(lambda row: {text: func(row)}, remove_columns=read_instead)


def _named(dataset: Any) -> list[tuple[str, Dataset]]:
    """Return evaluation's datasets, each with its name: there may be one, a dict of them, or none."""
    if dataset is None or isinstance(dataset, str):
        return []
    return list(dataset.items()) if isinstance(dataset, dict) else [("eval", dataset)]
