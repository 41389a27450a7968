"""A run's project folder: its files, protection against overwriting and against a second run, and atomic writes.

project/
  model.safetensors, tokenizer, ...   the result
  README.md                           model card
  config.yaml                         the effective parameters, without secrets
  metrics.jsonl                       each log of training, as it is made
  metrics.json                        figures
  report.html, report.json            the page, and what it shows as data
  teacher_completions.jsonl           the teacher's completions
  eval_samples.jsonl                  what the student wrote for a few rows at each evaluation
  student_completions.jsonl           the student's, written in evaluations
  held_out.jsonl                      rows that were held out for evaluations
  teacher_logprobs.jsonl              a server's log-probabilities of them
  checkpoints/                        to resume from
  stage-1/, stage-2/, ...             the projects of all stages but the last, with `--stages`
  stages.json                         the stages, and from which result each has started
  tensorboard/                        files of TensorBoard, with `--log tensorboard`
  .unfinished                         a run has started here and not finished, and its rows
  .lock                               a run is in progress, and in which process
  run.json                            the manifest, written last: the run is finished
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from ..config.setting_names import flag_of
from ..config.training_params import FIELDS, LLMTrainingParams
from ..config.user_files import is_same_file, shell_path
from ..config.yaml_file import read_yaml
from ..data.atomic_file import flush, flush_all, fresh_folder, make_readable, obstacle, remove, write_text
from ..data.checksum import file_checksum
from ..data.data_fingerprint import difference
from ..data.folder_lock import folder_lock
from ..data.folder_names import is_inside
from ..data.json_object import read_object
from ..errors import ParamsError, ProjectError
from ..prompts.template import text_of_file
from ..teachers.multi.entries import read_teachers
from ..trainer.checkpoints import Checkpoints, find_checkpoints
from .adapter_base import BASE, base_of_adapter, base_of_run, check_base
from .trackers import TENSORBOARD

if TYPE_CHECKING:
    from accelerate import PartialState

MANIFEST, MARKER = "run.json", ".unfinished"
SEARCH = "tuning.json"  # of a search, whose runs are in folders of its own
CRC32 = "crc32"  # in the manifest: the checksum of each file
OPENING = "prompt_opening"  # in the figures: how the student's prompts differ from its own generation prompt
HELD_OUT, SAMPLES = "held_out.jsonl", "eval_samples.jsonl"
WEIGHTS = ("*.safetensors", "*.bin", "*.index.json", "adapter_config.json", "config.json", "generation_config.json")
CONFIG, LOG = "config.yaml", "metrics.jsonl"
OURS = ("README.md", CONFIG, "metrics.json", LOG)

# what may differ when a run is resumed: how long it trains, what it logs and keeps, but not what it learns
FREE_ON_RESUME = frozenset(
    (
        *("epochs", "max_steps", "logging_steps", "eval_strategy", "eval_steps", "eval_batch_size"),
        *("log", "run_name", "log_project", "push_to_hub", "card_example", "username", "merge_adapter"),
        *("save_strategy", "save_steps", "save_total_limit"),
        *("project_name", "dataset_num_proc", "auto_find_batch_size", "torch_compile"),
        *("teacher_batch_size", "teacher_engine"),
        *("teacher_concurrency", "teacher_timeout", "teacher_key_env"),
        *("teacher_max_requests", "teacher_max_tokens", "teacher_max_cost"),
        *("teacher_price_input", "teacher_price_output"),
        *("early_stopping_patience", "early_stopping_threshold", "load_best_model_at_end", "metric_for_best_model"),
        *("eval_on_start", "eval_samples", "recipe"),
    )
)
HOW_LONG = ("epochs", "max_steps")
# defaults of an earlier version, which a run that was started with them keeps
EARLIER_DEFAULTS = {"optimizer": "adamw_torch", "mixed_precision": None}
PROMPTS = ("teacher_prompt_template", "student_prompt_template", "teacher_system", "student_system")
NOT_KEPT = frozenset(("overwrite", "resume", "dry_run", "train"))


class Project:
    """The folder of one run.

    Args:
        name: Any path; dots and dashes are part of it.
    """

    def __init__(self, name: str) -> None:
        self.folder = Path(name).expanduser()
        self.checkpoints = self.folder / "checkpoints"
        self.log_file = self.folder / LOG
        self._rows = ""
        self._recipe: str | None = None
        self._written: set[str] = set()

    @property
    def _name(self) -> str:
        return f"project_name {str(self.folder)!r}"

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder for one run; see `folder_lock`."""
        return folder_lock(self.folder, what=self._name, instead="another --project-name")

    def check(self, params: LLMTrainingParams) -> None:
        """Refuse to overwrite earlier work; `overwrite` allows it, `resume` continues an unfinished run.

        Raises:
            ProjectError: The folder holds a finished run, an unfinished one without `resume`, one that learns something
                else or whose settings cannot be read, or files that are not ours.
        """
        name = self._name
        if params.overwrite:
            return
        if self.is_finished:
            raise ProjectError(
                f"{name} holds a finished run; give --overwrite to replace it, or another --project-name."
            )
        found, begun = self.find_checkpoints(), (self.folder / MARKER).is_file()
        checkpoint = found.usable
        if checkpoint is None and found.damaged:
            raise ProjectError(
                f"{name} holds an unfinished run without an intact checkpoint ({found.faults}); restore one and give "
                "--resume, or add --overwrite to start over."
            )
        if checkpoint is not None and not params.resume:
            raise ProjectError(
                f"{name} holds an unfinished run ({checkpoint.name}); give --resume to continue it, or add "
                "--overwrite to start over."
            )
        if checkpoint is not None:
            self._check_same(name, params)
            check_base(name, (self._read(MARKER) or {}).get(BASE), params)
        elif not begun:
            foreign = next((p.name for pattern in (*WEIGHTS, *OURS) for p in sorted(self.folder.glob(pattern))), None)
            if foreign is not None:
                raise ProjectError(
                    f"{name} holds {foreign!r}, which is not from a run of this command; give another --project-name, "
                    "or add --overwrite to replace it."
                )

    @property
    def is_finished(self) -> bool:
        """Whether a run has finished here."""
        return (self.folder / MANIFEST).is_file()

    def check_finished_same(self, params: LLMTrainingParams) -> None:
        """Refuse to resume a finished run with settings that change what it learns, or how long.

        Raises:
            ProjectError: Naming the setting.
        """
        name = self._name
        self._check_same(name, params, state="a finished")
        before = self._begun_with() or {}
        for key in HOW_LONG:
            given = getattr(params, key)
            if before.get(key, given) != given:
                raise ProjectError(
                    f"{name} holds a finished run with {flag_of(key)} {before[key]!r}, and this one has {given!r}; a "
                    f"finished run is not continued: give --model {shell_path(self.folder)} and another "
                    "--project-name to train its student further, or --overwrite to start over."
                )

    def check_place(self, params: LLMTrainingParams) -> None:
        """Refuse a path that cannot be a folder, the project of a search, and one that the run reads from.

        Raises:
            ProjectError: Naming it.
        """
        name = self._name
        if self.folder.exists() and not self.folder.is_dir():
            raise ProjectError(f"{name} is a file; give --project-name a folder.")
        if (self.folder / SEARCH).is_file():
            raise ProjectError(f"{name} holds a search by aitraining tune; give another --project-name.")
        places = [
            (setting, getattr(params, setting)) for setting in ("model", "teacher_model", "data_path", "retain_data")
        ]
        if params.teacher_config is not None:
            places += [(entry.place, entry.model) for entry in read_teachers(params.teacher_config).teachers]
        for setting, value in places:
            path = Path(value).expanduser() if isinstance(value, (str, os.PathLike)) else None
            if path is not None and path.is_dir() and path.resolve() == self.folder.resolve():
                raise ProjectError(f"{name} is also the folder of {setting}; give another --project-name.")
        above = obstacle(self.folder)
        if above is not None:
            raise ProjectError(f"{name} cannot be created: {str(above)!r} is not a writable folder.")

    def as_begun(self, params: LLMTrainingParams) -> LLMTrainingParams:
        """Return parameters with the defaults of an earlier version, if the run to resume was started with them."""
        if not params.resume or self.last_checkpoint() is None:
            return params
        before = self._begun_with() or {}
        earlier = {
            name: value
            for name, value in EARLIER_DEFAULTS.items()
            if getattr(params, name) == FIELDS[name].default and name in before and before[name] == value
        }
        if not earlier:
            return params
        params = copy(params)
        for name, value in earlier.items():
            setattr(params, name, value)
        return params

    def _begun_with(self) -> dict[str, Any] | None:
        """Return the parameters of the unfinished run: none if there is no file, None if it is damaged."""
        path = self.folder / CONFIG
        if not path.is_file():
            return {}
        try:
            read = read_yaml(path, name=CONFIG)
        except ParamsError:
            return None
        return read if isinstance(read, dict) else None

    def _check_same(self, name: str, params: LLMTrainingParams, *, state: str = "an unfinished") -> None:
        """Refuse to resume a run with settings that change what it learns, or that are not known."""
        before, named = self._begun_with(), params.to_dict()
        for file, read in ((CONFIG, before), (MARKER, self._read(MARKER))):
            if read is None:
                raise ProjectError(
                    f"{name} holds {state} run whose {file} is damaged, so that nobody knows whether this run is "
                    f"the same; add --overwrite to start over, or delete {file} and add --resume to resume anyway."
                )
        assert before is not None
        for key, value in params_to_keep(params).items():
            # an earlier version kept the name of a prompt's file
            same = before.get(key, value) in (value, named[key]) or is_same_file(before[key], value)
            if key not in FREE_ON_RESUME and not same:
                raise ProjectError(
                    f"{name} holds {state} run with {flag_of(key)} {before[key]!r}, and this one has {value!r}; give "
                    "the same and add --resume, or add --overwrite to start over."
                )

    def check_rows(self, rows: str, numbers: Sequence[int], params: LLMTrainingParams) -> None:
        """Refuse to resume a run on other rows, and keep their fingerprint for `begin`.

        Args:
            rows: The fingerprint of the rows.
            numbers: Their numbers in messages.
            params: The run's parameters.

        Raises:
            ProjectError: Naming what changed.
        """
        self._rows = rows
        if not params.resume or self.last_checkpoint() is None:
            return
        before = (self._read(MARKER) or {}).get("rows", rows)
        changed = difference(before, rows, numbers)
        if changed is not None:
            raise ProjectError(
                f"project_name {str(self.folder)!r} holds an unfinished run whose training data has changed: "
                f"{changed}; give the same data and add --resume, or add --overwrite to start over."
            )

    def _read(self, name: str) -> dict[str, Any] | None:
        """Return what a JSON file says: nothing if it is not there, None if it is damaged."""
        path = self.folder / name
        return read_object(path) if path.is_file() else {}

    def begin(self, params: LLMTrainingParams) -> Path:
        """Create the folder and write the effective parameters.

        With `overwrite` the manifest, the checkpoints and the curves of an earlier run are deleted. Its model stays
        until it is replaced, and the teacher's completions are kept.

        Raises:
            ProjectError: The folder cannot be created.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"project_name {str(self.folder)!r} cannot be created ({error.strerror})"
            raise ProjectError(f"{reason}; give another --project-name.") from error
        self._recipe = params.recipe
        replaces = sorted(self._replaced(params.overwrite))
        marked = {"replaces": replaces, "rows": self._rows, BASE: base_of_run(params)}
        write_text(self.folder / MARKER, json.dumps(marked) + "\n")
        if params.overwrite:
            self.discard()
        text = yaml.safe_dump(params_to_keep(params), sort_keys=False, allow_unicode=True)
        return self._write(CONFIG, "# aitraining llm --config config.yaml\n" + text)

    def discard(self) -> None:
        """Delete the manifest, the checkpoints and the curves of an earlier run; its model stays."""
        (self.folder / MANIFEST).unlink(missing_ok=True)
        for begun in (self.checkpoints, self.folder / TENSORBOARD):
            if begun.is_symlink():  # what it leads to is not ours to delete
                begun.unlink()
            shutil.rmtree(begun, ignore_errors=True)

    def _replaced(self, overwrite: bool) -> set[str]:
        """Return the names in the folder of an earlier result, which must not stay beside the new one."""
        marker, manifest = self._read(MARKER), self._read(MANIFEST)
        files = _names(manifest, "files")
        listed = [*_names(marker, "replaces"), *files]
        names = {PurePosixPath(name).parts[0] for name in listed if is_inside(name)}  # any others are not ours
        if overwrite and (not files or marker is None):
            names |= {p.name for pattern in WEIGHTS for p in self.folder.glob(pattern)}
        return names - {*OURS, MANIFEST}

    def discard_model(self) -> None:
        """Delete the model and the checkpoints; settings, figures and the page stay."""
        for name in self._replaced(overwrite=False):
            remove(self.folder / name)
        remove(self.checkpoints)
        remove(self.folder / MANIFEST)

    @property
    def result(self) -> list[str]:
        """The names of the files and folders that this run has written as its result, the log among them."""
        return sorted({*self._written, "README.md", LOG})

    def find_checkpoints(self) -> Checkpoints:
        return find_checkpoints(self.checkpoints)

    def last_checkpoint(self) -> Path | None:
        return self.find_checkpoints().usable

    @contextmanager
    def writing(self, ranks: PartialState) -> Iterator[Path]:
        """Yield one temporary folder to all processes; the main one then moves its files into the project.

        Files of an earlier result that the new one does not have are deleted.
        """
        temporary = self.folder / ".writing"
        if ranks.is_main_process:
            fresh_folder(temporary)
        ranks.wait_for_everyone()
        yield temporary
        ranks.wait_for_everyone()
        if ranks.is_main_process:
            self._publish(temporary)
        ranks.wait_for_everyone()

    def _publish(self, temporary: Path) -> None:
        old = self._replaced(overwrite=False)
        make_readable(temporary)
        flush_all(temporary)
        for path in sorted(temporary.iterdir()):
            target = self.folder / path.name
            if target.is_dir():
                remove(target)
            os.replace(path, target)
            self._written.add(path.name)
        temporary.rmdir()
        for name in old - self._written:
            remove(self.folder / name)
        flush(self.folder)

    def write_metrics(self, metrics: dict[str, Any], history: Sequence[dict[str, Any]]) -> dict[str, Path]:
        """Write the figures and the log lines."""
        text = json.dumps({"metrics": metrics, "history": list(history)}, indent=2, default=float)
        return {"metrics": self._write("metrics.json", text + "\n"), "config": self.folder / CONFIG}

    def finish(self) -> dict[str, Path]:
        """Write the manifest, which marks the run as finished."""
        from importlib.metadata import version

        named = [self.folder / name for name in self.result]
        written = [path for parent in named for path in (parent, *sorted(parent.glob("*")))]
        there = {p.relative_to(self.folder).as_posix(): p for p in written if p.is_file()}
        base = base_of_adapter(self.folder)
        content = {
            "trl_distill": version("trl-distill"),
            **({} if self._recipe is None else {"recipe": self._recipe}),
            "files": {name: p.stat().st_size for name, p in there.items()},
            CRC32: {name: file_checksum(p) for name, p in there.items()},
            **({} if base is None else {BASE: base[1]}),
        }
        text = json.dumps(content, indent=2)
        path = write_text(self.folder / MANIFEST, text + "\n")
        (self.folder / MARKER).unlink(missing_ok=True)
        return {"manifest": path}

    def _write(self, name: str, text: str) -> Path:
        self._written.add(name)
        return write_text(self.folder / name, text)


def _names(read: dict[str, Any] | None, key: str) -> list[object]:
    """Return the names that a file of ours lists; none if it is damaged."""
    listed = (read or {}).get(key, ())
    return list(listed) if isinstance(listed, (list, dict)) else []


def params_to_keep(params: LLMTrainingParams) -> dict[str, Any]:
    """Return the parameters for config.yaml, with the content of files: prompts, and a list of teachers."""
    values = {k: v for k, v in params.to_dict().items() if k not in NOT_KEPT}
    values |= {name: text_of_file(values[name], name) for name in PROMPTS}
    listed = params.teacher_config
    return values if listed is None else {**values, "teacher_config": read_teachers(listed).to_dict()}
