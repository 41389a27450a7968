"""What to change when memory runs out, by the sizes of the models and of the device's memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..config.setting_names import name_settings
from ..models.adapters import is_peft_model
from ..models.out_of_memory import doing, done_at, is_out_of_memory, memory_for_this_process
from ..teachers.local.teacher import LocalTeacher
from ..teachers.target_store.reader import StoredTeacher
from .batch_finder import NONE_FITS, smaller_batch

if TYPE_CHECKING:
    from ..config.distillation_arguments import DistillationArguments
    from ..config.sft_config import DistillationSFTConfig
    from .base import DistillingTrainer

GIB = 2**30
ADVICE = "memory_advice"  # attribute of an error of memory that a trainer has explained
COMPARING = "comparing the models"  # what `aitraining evaluate` does
LEARNING = ("loading the student", "training", "running")  # when gradients are there, or will be
WORTH = 0.05  # of the memory, which a setting has to save to be named
MOST = 4  # settings named in a sentence
INT4 = 0.5  # bytes of a weight
STATES = {"adafactor": 0.0, "sgd": 0.0}  # bytes of an optimizer's state per trained weight's byte; AdamW has two
EIGHT_BITS = 0.5


@dataclass(frozen=True)
class Weights:
    """The weights of a model as it is loaded.

    Attributes:
        size: Bytes.
        saved_by_int4: Bytes that linear layers of four bits a weight would save; 0 if they have no more.
    """

    size: int
    saved_by_int4: int

    @classmethod
    def of(cls, model: torch.nn.Module, *, each: float | None = None, linear_each: float | None = None) -> Weights:
        """Return those of a model, with or without its weights in memory.

        Args:
            model: The model.
            each: Bytes of a weight; default: as the model has them.
            linear_each: Bytes of a linear layer's weight, without the LM head's, which are never quantized; default:
                `each`.
        """
        head = getattr(model, "get_output_embeddings", lambda: None)()
        layers = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
        in_layers = {id(weight) for weight in layers}
        rest = sum(_bytes(p, each) for p in model.parameters() if id(p) not in in_layers)
        linear = sum(_bytes(weight, each if linear_each is None else linear_each) for weight in layers)
        is_int4 = linear_each == INT4 or getattr(model, "is_loaded_in_4bit", False)
        now = linear_each or each or max((weight.element_size() for weight in layers), default=1)
        return cls(round(rest + linear), 0 if is_int4 else round(linear * (1 - INT4 / now)))


def _bytes(weight: torch.Tensor, each: float | None) -> float:
    return weight.numel() * (weight.element_size() if each is None else each)


@dataclass(frozen=True)
class Footprint:
    """The models of a run in memory; None is a model that is not known, or not there.

    Attributes:
        student: Its weights.
        trained: Bytes of the weights that are trained.
        teacher: The weights of a teacher with a model of its own.
        adapter: Whether an adapter is trained.
        student_teaches: Whether the teacher is another copy of the student's model.
        storable: Whether a store of targets could take the teacher's place.
    """

    student: Weights | None = None
    trained: int = 0
    teacher: Weights | None = None
    adapter: bool = False
    student_teaches: bool = False
    storable: bool = False

    def optimized(self, args: DistillationSFTConfig) -> int:
        """Return the bytes of gradients and of the optimizer's states."""
        name = str(getattr(args.optim, "value", args.optim))
        states = next((share for part, share in STATES.items() if part in name), 2.0)
        if "8bit" in name:
            states = EIGHT_BITS
        return round(self.trained * (1 + states))


@dataclass(frozen=True)
class Remedy:
    """A setting that needs less memory, and the bytes that it saves of the models; None if of activations alone."""

    setting: str
    saves: int | None = None

    def __str__(self) -> str:
        return self.setting if self.saves is None else f"{self.setting} (about {size_text(self.saves)} less)"


@contextmanager
def memory_noted(trainer: DistillingTrainer, what: str) -> Iterator[None]:
    """Add a note with what would need less to an error of memory, which stays the error that it is.

    Args:
        trainer: The trainer; without a teacher nothing is added.
        what: What is done; see `doing`.
    """
    try:
        with doing(what):
            yield
    except Exception as error:
        if trainer.distilling and is_out_of_memory(error) and not hasattr(error, ADVICE):
            try:
                footprint = footprint_of_trainer(trainer)
            except Exception:  # the sentence is worth more than its figures
                footprint = Footprint()
            sentence = memory_sentence(error, trainer.args, footprint)
            setattr(error, ADVICE, sentence)
            error.add_note(name_settings(sentence[0].upper() + sentence[1:]))
        raise


def footprint_of_trainer(trainer: DistillingTrainer) -> Footprint:
    """Return the sizes of a trainer's models."""
    student, teacher, args = trainer.model, trainer.teacher, trainer.args
    trained = sum(_bytes(p, None) for p in student.parameters() if p.requires_grad)
    own = None
    if isinstance(teacher, LocalTeacher) and teacher.loaded and not teacher.weights.shares_student:
        own = Weights.of(teacher.model)
    names = {
        str(getattr(config, "_name_or_path", ""))
        for config in (trainer.base_student.config, getattr(teacher, "config", None))
    }
    return Footprint(
        Weights.of(student),
        round(trained),
        own,
        adapter=is_peft_model(student),
        student_teaches=own is not None and len(names) == 1 and names != {""},
        storable=own is not None and not isinstance(teacher, StoredTeacher) and is_storable(args),
    )


def is_storable(args: DistillationArguments) -> bool:
    """Whether a store could keep the targets: all completions are known before training."""
    return args.teacher_store is None and not args.distill_online and args.distill_on_policy_fraction == 0


def memory_sentence(error: BaseException, args: DistillationSFTConfig, footprint: Footprint) -> str:
    """Return what an error of memory means and what would need less, with settings by their flags.

    Args:
        error: The error; see `doing`.
        args: The configuration.
        footprint: The run's models.
    """
    done = done_at(error) or "running"
    needs = _needs(args, footprint, done)
    room, needed = memory_for_this_process(args.device), sum(needs.values())
    rows = " with one row per batch" if NONE_FITS in str(error) else ""
    text = f"out of memory while {done}{rows}{memory_there(args.device)}"
    if needs:
        text += f"; about {_listed([f'{size_text(size)} are for {name}' for name, size in needs.items()], 'and')}"
    remedies = list(_remedies(args, footprint, done))
    if room is not None:
        worth = [one for one in remedies if one.saves is None or one.saves > WORTH * room]
        remedies = worth or remedies
        if needed > room:
            saving = [one for one in remedies if one.saves]
            enough = [one for one in saving if needed - (one.saves or 0) < room]
            if saving and not enough:
                return f"{text}, which is more than there is; combine {_listed(saving, 'and')}."
            remedies = enough or remedies
    if not remedies:
        return f"{text}; give a smaller --block-size, or smaller models."
    return f"{text}; this needs less: {_listed(remedies, 'or')}."


def _needs(args: DistillationSFTConfig, footprint: Footprint, done: str) -> dict[str, int]:
    """Return the bytes of each model that is in memory, by name."""
    found = {}
    if footprint.teacher is not None:
        found["the teacher's weights"] = footprint.teacher.size
    if footprint.student is not None and not _before_the_student(done):
        found["the student's weights"] = footprint.student.size
        if done in LEARNING and footprint.trained:
            found["gradients and optimizer states"] = footprint.optimized(args)
    return found


def _before_the_student(done: str) -> bool:
    return done in ("loading the teacher", "generating completions", "scoring completions")


def _remedies(args: DistillationSFTConfig, footprint: Footprint, done: str) -> Iterator[Remedy]:
    """Return the settings that would need less and are not set, those that change least first."""
    if done in ("training", "running"):
        smaller = smaller_batch(args.per_device_train_batch_size, args.gradient_accumulation_steps)
        if smaller is not None:
            yield Remedy(f"--batch-size {smaller[0]} with --gradient-accumulation {smaller[1]}")
            if not args.auto_find_batch_size and args.world_size == 1:
                yield Remedy("--auto-find-batch-size")
        if not args.gradient_checkpointing:
            yield Remedy("--gradient-checkpointing")
    if done == "evaluating" and args.per_device_eval_batch_size > 1:
        yield Remedy(f"--eval-batch-size {args.per_device_eval_batch_size // 2}")
    if done in ("generating completions", "scoring completions", COMPARING) and args.teacher_batch_size > 1:
        yield Remedy(f"--teacher-batch-size {args.teacher_batch_size // 2}")
    teacher, student = footprint.teacher, footprint.student
    if teacher is not None:
        if footprint.storable and not _before_the_student(done) and done != COMPARING:
            yield Remedy("--teacher-store FOLDER, which `aitraining teach` writes first", teacher.size)
        if teacher.saved_by_int4:
            yield Remedy("--teacher-quantization int4", teacher.saved_by_int4)
        if footprint.student_teaches and not _before_the_student(done) and done != COMPARING:
            yield Remedy(
                "--teacher-model self with --peft" if not footprint.adapter else "--teacher-model self", teacher.size
            )
    if student is not None and done in ("training", "evaluating", "loading the student", "running"):
        if not footprint.adapter and footprint.trained:
            yield Remedy("--peft", footprint.optimized(args))
        elif footprint.adapter and student.saved_by_int4:
            yield Remedy("--quantization int4", student.saved_by_int4)


def _listed(parts: Sequence[object], word: str) -> str:
    *front, last = [str(part) for part in parts[:MOST]]
    return f"{', '.join(front)} {word} {last}" if front else last


def memory_there(device: torch.device) -> str:
    """Return " on cuda:0, with 79.1 GiB for this process", or as much as is known of it."""
    where = " on the CPU" if device.type == "cpu" else f" on {device}"
    room = memory_for_this_process(device)
    return where if room is None else f"{where}, with {size_text(room)} for this process"


def size_text(count: int) -> str:
    """Return bytes in GiB or MiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"
