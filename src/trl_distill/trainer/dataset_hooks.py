"""A distilling trainer's datasets: rows of any accepted form to those that its collator takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from ..data.file_readers import CONVERSATIONS
from ..data.memory import for_trainer
from ..data.packing import PackedRows
from ..data.preparation import is_prepared
from ..data.pretokenized import IDS
from ..data.rows import COMPLETIONS
from ..data.split import Split
from ..data.streaming import columns_of, is_stream, prepare_stream
from ..errors import ParamsError
from ..teachers.multi.preparation import prepare
from ..teachers.server_requirements import check_teaches
from ..teachers.target_store.reader import StoredTeacher
from .compatibility import with_lengths
from .compute import how_it_computes
from .distributed import read_whole
from .multi_teacher_setup import recipe_of
from .target_store_setup import from_store

if TYPE_CHECKING:
    from trl import SFTTrainer as _Base
else:
    _Base = object  # so that it can stand in front of any subclass of SFTTrainer


class DatasetsMixin(_Base):
    """Datasets as they are prepared, in the constructor and for an evaluation; a part of `DistillationMixin`."""

    args: Any
    teacher: Any
    recipe: Any
    base_student: Any
    tokenizer: Any
    _formatting: Any
    _saved_tokenizer: Any

    def prepare_dataset(self, dataset: Any, split: Split, name: str | None = None) -> Any:
        """Return a dataset as the collator takes it, and print its pre-flight.

        Args:
            dataset: Rows of any accepted form; one that is prepared already is returned as it is.
            split: What it is for.
            name: What to call it in messages (default: the split).
        """
        name = split.value if name is None else name
        if isinstance(dataset, PackedRows):
            return dataset
        dataset = for_trainer(dataset, name=f"{split.value}_dataset")
        if is_prepared(dataset):
            return with_lengths(dataset, self.args)
        dataset = self._formatted(dataset, name)
        if self.args.shuffle_dataset:
            dataset = dataset.shuffle(seed=self.args.seed)
        with read_whole(self.args), PartialState().main_process_first():  # the others find completions in the store
            if is_stream(dataset):
                apart = self.args.dataloader_num_workers > 0 or self.accelerator.num_processes > 1
                prepared, preflight = prepare_stream(dataset, self.recipe, prepare, split=split, name=name, apart=apart)
            else:
                prepared, preflight = prepare(dataset, self.recipe, split=split, name=name)
        computes = ""
        if split is Split.TRAIN:
            computes = how_it_computes(self.args, self.base_student, teacher=self.teacher, optimizer=self.optimizer)
        self.accelerator.print(preflight.text(computes=computes))
        if split is Split.TRAIN:
            check_teaches(self.args, self.teacher, preflight)
            if preflight.serving is not None:
                preflight.serving.put(self._saved_tokenizer)
        return with_lengths(prepared, self.args)

    def _formatted(self, dataset: Any, name: str) -> Any:
        """Return a dataset with the text that `formatting_func` makes of its rows, as SFTTrainer has it."""
        func, columns = self._formatting, [] if self._formatting is None else columns_of(dataset)
        if func is None or IDS in columns:
            if func is not None:
                self.accelerator.print(f"formatting_func is not used: {name} has token ids already.")
            return dataset
        read_instead = sorted(set(columns) & {*CONVERSATIONS, *COMPLETIONS, "prompt"})
        text = self.args.dataset_text_field  # the function is pickled, and must not hold the trainer
        return dataset.map(lambda row: {text: func(row)}, remove_columns=read_instead)

    def prepare_all(self, dataset: Any) -> Any:
        """Prepare a dataset to evaluate on, a dict of them, or nothing; a name is one of `eval_dataset`."""
        known = isinstance(dataset, str) and isinstance(self.eval_dataset, dict) and dataset in self.eval_dataset
        if known or dataset is None:
            return dataset
        if isinstance(dataset, dict):
            return {key: self.prepare_dataset(part, Split.EVAL, key) for key, part in dataset.items()}
        return self.prepare_dataset(dataset, Split.EVAL)

    def take_stored_targets(self) -> None:
        """Put the store in the teacher's place where one is asked for, so that the teacher is not held any more."""
        if self.args.teacher_store is None and not isinstance(self.teacher, StoredTeacher):
            return
        both = [("train", self.train_dataset), *_named(self.eval_dataset)]
        if any(is_stream(part) for _, part in both):
            raise ParamsError(f"{self.teacher.name} is a store of targets, and a dataset is a stream; give a Dataset.")
        self.teacher = from_store(self.args, self.teacher, both)
        # the recipe that made the rows would keep the teacher in memory
        self.recipe = recipe_of(self.args, self.teacher, tokenizer=self.tokenizer, student=self.base_student.config)


def _named(dataset: Any) -> list[tuple[str, Any]]:
    """Return evaluation's datasets, each with its name: there may be one, a dict of them, or none."""
    if dataset is None or isinstance(dataset, str):
        return []
    return list(dataset.items()) if isinstance(dataset, dict) else [("eval", dataset)]
