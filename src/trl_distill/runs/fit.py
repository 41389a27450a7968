"""The second step of a run: load and train the student."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from transformers import EarlyStoppingCallback

from ..data.split import Split
from ..errors import DistillError, RunInterrupted, printable
from ..models.adapters import is_peft_model, lora_config
from ..models.generation_config import make_saveable
from ..models.out_of_memory import doing
from ..models.quantization import keep_differentiable
from ..teachers.local.model import FLOAT16
from ..trainer.batch_finder import with_global_batch
from ..trainer.checkpoints import kept
from ..trainer.extra_step import without_extra_step
from ..trainer.finite import evaluation_fault
from ..trainer.mixin import DistillationMixin
from .callbacks import SealCallback, StopCallback, WatchCallback
from .eval_samples import EvalSamples
from .full_disk import RESUME
from .metrics_file import MetricsFile
from .prepare import PreparedRun
from .progress import FirstSteps, show_lines
from .project_folder import SAMPLES, Project
from .stop_signals import exit_code_of, listening_for_stop
from .unpickled import without_pickled_arguments

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback


@dataclass(frozen=True)
class Trained:
    """A run whose training has ended.

    Attributes:
        prepared: What was trained on.
        trainer: The trainer, with the trained model.
        tokenizer: The one to save: its chat template renders the student's prompt.
        metrics: The trainer's figures by name.
    """

    prepared: PreparedRun
    trainer: Trainer
    tokenizer: PreTrainedTokenizerBase
    metrics: Mapping[str, float]


def fit(prepared: PreparedRun, callbacks: Sequence[TrainerCallback] = ()) -> Trained:
    """Train; Ctrl-C or SIGTERM ends at the next step with a checkpoint, a loss that is not finite without one.

    Args:
        prepared: The run.
        callbacks: Called after the run's own.

    Raises:
        RunInterrupted: Ctrl-C, SIGTERM or SIGHUP.
        DistillError: A loss is not finite.
    """
    params, project, state = prepared.checked.params, prepared.checked.project, prepared.state
    tokenizer = copy(prepared.student.tokenizer)
    stop, watch = StopCallback(), WatchCallback()
    shown: list[TrainerCallback] = [FirstSteps(), MetricsFile(project.log_file)]
    if params.early_stopping_patience is not None:
        shown.append(EarlyStoppingCallback(params.early_stopping_patience, params.early_stopping_threshold))
    with doing("loading the student"):
        made = _make_trainer(prepared, tokenizer, [stop, watch, *shown, *callbacks])
    trainer = without_pickled_arguments(show_lines(made))
    watch.trainer = trainer
    if not (isinstance(trainer, DistillationMixin) and trainer.distilling):  # which seals its own
        trainer.add_callback(SealCallback())
        without_extra_step(trainer)
    if prepared.samples:
        longest = max(len(row["completion"]) for row in prepared.samples)  # of a teacher with another tokenizer too
        most = max(params.distill_max_teacher_length, longest)
        samples = EvalSamples(prepared.samples, project.folder / SAMPLES, max_new_tokens=most)
        samples.attach(trainer)
        trainer.add_callback(samples)  # after the line of the evaluation
    if state.is_main_process:
        project.begin(params)  # only after everything that can be refused
        if prepared.data is not None:
            prepared.data.keep(project.folder)
        if prepared.setup is not None:
            prepared.setup.date.keep()
    state.wait_for_everyone()
    last = _checkpoint_to_resume_from(prepared) if params.resume else None
    with listening_for_stop(stop.request):  # the next signal stops at once, without a checkpoint
        outcome = trainer.train(resume_from_checkpoint=str(last) if last else None)
    if watch.diverged is not None:
        raise DistillError(evaluation_fault(trainer) or _diverged(*watch.diverged, prepared))
    if stop.number:
        raise RunInterrupted(
            f"stopped on request at step {trainer.state.global_step}; a checkpoint is in "
            f"{project.last_checkpoint()}; {RESUME}.",
            exit_code=exit_code_of(stop.number),
        )
    best = trainer.state.best_global_step
    if prepared.args.load_best_model_at_end and best:
        figure = f"{trainer.args.metric_for_best_model} {trainer.state.best_metric:.4g}"
        state.print(printable(f"The best evaluation was at step {best} ({figure}); its weights are saved."))
    return Trained(prepared, trainer, tokenizer, outcome.metrics)


def _checkpoint_to_resume_from(prepared: PreparedRun) -> Path | None:
    """Return the checkpoint that the main process finds, and print which newer ones are damaged."""
    project, state = prepared.checked.project, prepared.state
    found = [project.find_checkpoints() if state.is_main_process else None]
    broadcast_object_list(found)
    assert found[0] is not None
    if found[0].note:
        state.print(printable(found[0].note))
    return found[0].usable


@contextmanager
def telling_checkpoint(project: Project) -> Iterator[None]:
    """Add to a signal that comes after training which checkpoint the result can be made from."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        checkpoint = project.last_checkpoint()
        if checkpoint is not None:
            interrupt.args = (
                f"interrupted before the result was complete; a checkpoint is in {checkpoint}; {RESUME}.",
            )
        raise


def _diverged(step: int, name: str, prepared: PreparedRun) -> str:
    """Return the error for a figure that is not finite."""
    half = f"{FLOAT16}give --mixed-precision bf16 or no, or " if prepared.args.fp16 else ""
    left = kept(prepared.args.output_dir)
    return (
        f"training diverged: {name} is not a finite number at step {step}; {half}lower --lr (it is "
        f"{prepared.checked.params.lr:g}); {left}."
    )


def _make_trainer(
    prepared: PreparedRun, tokenizer: PreTrainedTokenizerBase, callbacks: list[TrainerCallback]
) -> Trainer:
    params, args, setup = prepared.checked.params, prepared.args, prepared.setup
    model = prepared.student.weights.load()
    make_saveable(model, prepared.state.print)
    keep_differentiable(model)
    args.output_dir = str(prepared.checked.project.checkpoints)
    more: dict[str, Any] = {}
    if setup is not None:
        ours = issubclass(prepared.checked.trainer_class, DistillationMixin)
        more = {"setup": setup} if ours else {"teacher_model": setup.teacher}
    kind = prepared.checked.trainer_class
    trainer: Trainer = (with_global_batch(kind) if args.auto_find_batch_size else kind)(
        model,
        args,
        train_dataset=prepared.datasets[Split.TRAIN],
        eval_dataset=prepared.datasets.get(Split.EVAL),
        processing_class=tokenizer,
        # a model that has an adapter, from an earlier stage for example, keeps that one
        peft_config=lora_config(params) if params.peft and not is_peft_model(model) else None,
        callbacks=callbacks,
        **more,
    )
    preflight = prepared.preflights.get(Split.TRAIN)
    if preflight is not None and preflight.serving is not None:  # the trainer does not learn it from prepared rows
        preflight.serving.put(tokenizer)
    return trainer
