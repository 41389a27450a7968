"""The last step of a run: write model, tokenizer, metrics and card, and the manifest last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..data.split import Split
from ..errors import printable
from ..models.adapters import base_of, merged
from ..models.completion_forward import restore_forward
from ..models.generation_config import make_saveable
from ..models.loading import keep_tokenizer
from ..trainer.model_setup import is_sharded
from ..trainer.saveable import check_saveable
from .evaluation_inputs import remember_run
from .fit import Trained
from .hub import push
from .metrics_file import MetricsFile
from .model_card import RunCard
from .report import write_run_report
from .result import RunResult
from .summary import last_evaluation, training_means
from .trained_rows import TrainedRows, trained_rows

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def save(trained: Trained) -> RunResult:
    """Evaluate and write the project folder.

    Raises:
        DistillError: Training has broken the weights; nothing is written.
    """
    check_saveable(trained.trainer, together=True)
    checked, state = trained.prepared.checked, trained.prepared.state
    trainer, merges = trained.trainer, checked.params.merge_adapter
    evaluated = _evaluation(trained) if merges else None  # merging takes the adapter apart
    rows = _trained_rows(trained) if merges else None
    model = merged(cast("PeftModel", trainer.model)) if merges else cast("PreTrainedModel", trainer.model)
    with checked.project.writing(state) as folder:
        _save_model(trained, model, folder)
    evaluated = _evaluation(trained) if evaluated is None else evaluated
    trainer.remove_callback(MetricsFile)  # the file is complete
    rows = rows if merges else _trained_rows(trained)
    model = _ready_to_answer(trained, model)
    history = trainer.state.log_history
    metrics = {**trained.prepared.figures(), **trained.metrics, **training_means(history), **evaluated}
    paths: dict[str, Path] = {"project": checked.project.folder}
    if state.is_main_process:
        lines = [entry for entry in history if "loss" in entry or "eval_loss" in entry]
        paths |= checked.project.write_metrics(metrics, lines)
        card = RunCard(trained, None if is_sharded(trained.trainer) else model, metrics)
        paths["card"] = card.write()
        paths |= checked.project.finish()
        paths |= _write_page(trained, rows, metrics)
        if checked.params.push_to_hub:
            push(checked.project.folder, checked.params, files=checked.project.result, card=card.for_hub)
    state.wait_for_everyone()
    if base_of(model) is model:
        model.config._name_or_path = str(checked.project.folder)
    keep_tokenizer(model, trained.tokenizer)
    data = trained.prepared.data
    remember_run(model, checked.params, checked.project.folder, None if data is None else data.held_out)
    return RunResult(model, trained.tokenizer, metrics, paths, trainer)


def _evaluation(trained: Trained) -> dict[str, float]:
    """Return the evaluation of the saved weights, from the log if their step was evaluated, else measured now."""
    prepared, trainer = trained.prepared, trained.trainer
    if Split.EVAL not in prepared.datasets or prepared.args.eval_strategy == "no":
        return {}
    state, best = trainer.state, prepared.args.load_best_model_at_end and trainer.state.best_global_step
    known = last_evaluation(state.log_history, best or state.global_step)
    return known or trainer.evaluate()


def _trained_rows(trained: Trained) -> TrainedRows | None:
    """Return the student's completions of a few rows; None in another process, with sharded weights, or on failure."""
    if is_sharded(trained.trainer) or not trained.prepared.state.is_main_process:
        return None
    try:
        return trained_rows(trained)
    except Exception as error:  # a page without rows is better than a lost run
        print(printable(f"The page shows no rows: {type(error).__name__}: {error}"))
        return None


def _write_page(trained: Trained, rows: TrainedRows | None, metrics: dict[str, Any]) -> dict[str, Path]:
    """Write the page, and print the warnings."""
    try:
        paths, advice = write_run_report(trained, rows, metrics)
    except Exception as error:  # the run is finished
        print(printable(f"The page could not be written: {type(error).__name__}: {error}"))
        return {}
    for entry in advice:
        print(printable(f"  warning       {entry.text}"))
    return paths


def _save_model(trained: Trained, model: PreTrainedModel, folder: Path) -> None:
    """Write model and tokenizer into a folder; every process that holds a part calls this."""
    state, trainer = trained.prepared.state, trained.trainer
    make_saveable(model, state.print)  # a callback may have left one that cannot be saved
    if model is trainer.model:
        if state.is_main_process or is_sharded(trained.trainer):
            trainer.save_model(str(folder))
    elif state.is_main_process:
        model.save_pretrained(folder)
    if state.is_main_process:
        trained.tokenizer.save_pretrained(folder)


def _ready_to_answer(trained: Trained, model: PreTrainedModel) -> PreTrainedModel:
    model = trained.trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    restore_forward(base_of(model))
    return model.eval()
