"""The project of a search: its files, its lock, and the trials that are in it.

project/
  tuning.json                what all trials share, and what they are ranked by
  trials/001/                one trial: the project of a plain run
    trial.json               its settings, and its outcome when it has one
    output.txt               what its run and its evaluation printed
  teacher/                   completions and targets of the teacher, made once for all trials
  optuna.journal             with `--trials`: what optuna knows
  best.yaml                  the best settings, for `aitraining llm --config`
  report.html, report.json   the page
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...config.search_space import Settings
from ...config.setting_names import flag_of
from ...config.user_files import user_path
from ...data.atomic_file import obstacle, remove, write_text
from ...data.folder_lock import folder_lock
from ...data.json_object import read_object
from ...errors import ProjectError, quoted
from ...evaluation.result import Interval
from ..project_folder import MANIFEST, MARKER, SEARCH, WEIGHTS, Project
from ..stage_folders import RECORD as STAGES
from .plan import Plan, completed
from .result import Objective, Rows, Trial, objective_among

STATE, RECORD, OUTPUT, BEST, JOURNAL = SEARCH, "trial.json", "output.txt", "best.yaml", "optuna.journal"
TRIALS, TEACHER, AGAIN = "trials", "teacher", "final"
OF_RUN = (MANIFEST, MARKER, STAGES)  # files that a run writes into its project
DIGITS = 3  # of a trial's number in the name of its folder


class TuningFolder:
    """The files of a search.

    Args:
        name: The project, any path.
    """

    def __init__(self, name: str) -> None:
        self.path = user_path(name, name="project_name", error=ProjectError)
        self.trials, self.teacher = self.path / TRIALS, self.path / TEACHER

    @property
    def _name(self) -> str:
        return f"project_name {str(self.path)!r}"

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder for one search; see `folder_lock`."""
        return folder_lock(self.path, what=self._name, instead="another --project-name")

    def check_place(self) -> None:
        """Refuse a path that cannot be a folder, and the project of a run.

        Raises:
            ProjectError: Naming it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ProjectError(f"{self._name} is a file; give --project-name a folder.")
        above = obstacle(self.path)
        if above is not None:
            raise ProjectError(f"{self._name} cannot be created: {str(above)!r} is not a writable folder.")
        found = next((p.name for pattern in (*OF_RUN, *WEIGHTS) for p in sorted(self.path.glob(pattern))), None)
        if found is not None:
            raise ProjectError(
                f"{self._name} holds {found!r}, which is not from a search; give another --project-name."
            )

    def state(self) -> dict[str, Any] | None:
        """Return what `begin` wrote; None if no search has begun here.

        Raises:
            ProjectError: It is damaged.
        """
        if not (self.path / STATE).is_file():
            return None
        read = read_object(self.path / STATE)
        if read is None or not isinstance(read.get("shared"), dict) or not isinstance(read.get("names"), list):
            raise ProjectError(
                f"{self._name} holds a search whose {STATE} is damaged, so that nobody knows whether this one is the "
                "same; add --overwrite to start over, or give another --project-name."
            )
        return read

    def check_same(self, shared: Mapping[str, object], names: Sequence[str]) -> None:
        """Refuse to go on with a search whose trials cannot be compared with these.

        Args:
            shared: What all trials share, see `begin`.
            names: The settings that are tuned.

        Raises:
            ProjectError: Naming what differs.
        """
        state = self.state()
        if state is None:
            return
        before, tuned = state["shared"], {*state["names"], *names}
        for name in before.keys() & shared.keys() - tuned:
            if before[name] != shared[name]:
                was = "on other rows" if name == "rows" else f"with {flag_of(name)} {quoted(before[name])}"
                now = "" if name == "rows" else f", and this one has {quoted(shared[name])}"
                raise ProjectError(
                    f"{self._name} holds a search {was}{now}; give the same, give another --project-name, or add "
                    "--overwrite to start over."
                )

    def begin(self, shared: Mapping[str, object], names: Sequence[str], *, overwrite: bool = False) -> None:
        """Write what all trials share; with `overwrite` an earlier search is deleted.

        Args:
            shared: Parameters that decide a trial's result, the metric, and a fingerprint of the rows, by name.
            names: The settings that are tuned, those of an earlier search here are added.
            overwrite: Whether to start over.
        """
        if overwrite:
            for name in (STATE, TRIALS, TEACHER, JOURNAL, BEST, AGAIN):
                remove(self.path / name)
        self.path.mkdir(parents=True, exist_ok=True)
        state = self.state() or {"names": [], "objective": None}
        listed = list(dict.fromkeys([*state["names"], *names]))
        self._write({**state, "names": listed, "shared": dict(shared)})

    @property
    def objective(self) -> Objective | None:
        """What trials are ranked by; None before the first is finished."""
        state = self.state()
        if state is None or state["objective"] is None:
            return None
        with_references = bool(state.get("with_references", False))
        return objective_among(state["objective"], state["names"], with_references=with_references)

    def decide(self, measured: Objective, *, with_references: bool) -> None:
        """Write by what the first trial can be ranked, and whether it was scored by references of the rows."""
        self._write({**(self.state() or {}), "objective": measured, "with_references": with_references})

    def _write(self, state: Mapping[str, object]) -> None:
        write_text(self.path / STATE, json.dumps(state, indent=1) + "\n")

    def records(self) -> list[tuple[Trial | None, dict[str, object], Path]]:
        """Return the trials here in the order of their numbers: outcome (None: not finished), identity and folder."""
        names = (self.state() or {"names": []})["names"]
        found = []
        for folder in sorted(self.trials.glob("[0-9]*"), key=lambda path: (len(path.name), path.name)):
            read = read_object(folder / RECORD)
            is_ours = folder.name.isdecimal() and not folder.is_symlink()  # nothing is written through a link
            if is_ours and read is not None and isinstance(read.get("params"), dict):
                found.append((_trial(read, folder, names), completed(read["params"]), folder))
        return found

    def outcomes(self, plans: Sequence[Plan] = ()) -> list[Trial]:
        """Return the trials that have an outcome; those of `plans` have their settings as they were given."""
        named = {json.dumps(plan.identity, sort_keys=True): plan.settings for plan in plans}
        return [
            replace(trial, settings=trial.settings | named.get(json.dumps(identity, sort_keys=True), {}))
            for trial, identity, _ in self.records()
            if trial is not None
        ]

    def claim(self, plan: Plan) -> tuple[Trial | None, Path]:
        """Return a trial's outcome, None if it has none, and its folder, made if it is new."""
        highest = 0
        for trial, identity, folder in self.records():
            if identity == plan.identity:
                return None if trial is None else replace(trial, settings=trial.settings | plan.settings), folder
            highest = max(highest, int(folder.name))
        for folder in self.trials.glob("[0-9]*"):  # one without a record too
            highest = max(highest, int(folder.name) if folder.name.isdecimal() else 0)
        folder = self.trials / f"{highest + 1:0{DIGITS}}"
        folder.mkdir(parents=True)
        write_text(folder / RECORD, json.dumps({"params": plan.identity}, indent=1) + "\n")
        return None, folder

    def settings_of(self, plan: Plan) -> Settings:
        """Return a trial's values of all settings that were ever tuned here."""
        names = (self.state() or {"names": []})["names"]
        return {name: plan.identity.get(name) for name in names} | plan.settings

    def identity(self, trial: Trial) -> dict[str, object]:
        """Return the identity of a trial here."""
        return next(identity for _, identity, folder in self.records() if folder == trial.folder)

    def keep(self, trial: Trial, plan: Plan) -> None:
        """Write a trial's outcome: it is not run again."""
        values = asdict(replace(trial, folder=Path(), settings={}))
        del values["folder"], values["settings"]
        text = json.dumps({"params": plan.identity, **values}, indent=1)
        write_text(trial.folder / RECORD, text + "\n")

    def discard_unwanted(self, wanted: Sequence[Plan]) -> None:
        """Delete trials that have begun and are in no space any more."""
        identities = [plan.identity for plan in wanted]
        for trial, identity, folder in self.records():
            if trial is None and identity not in identities:
                shutil.rmtree(folder)

    def discard_models(self, *, except_of: Trial | None) -> None:
        """Delete the models of all trials with an outcome but one, and all checkpoints of those."""
        for trial, _, folder in self.records():
            if trial is not None and (except_of is None or folder != except_of.folder):
                Project(str(folder)).discard_model()


def _trial(read: Mapping[str, Any], folder: Path, names: Sequence[str]) -> Trial | None:
    """Return the outcome in a record; None if it has none, or is damaged."""
    settings: Settings = {name: read["params"].get(name) for name in names}
    try:
        gap, rows = read["gap_closed"], read["rows"]
        return Trial(
            number=int(folder.name),
            settings=settings,
            folder=folder,
            state=read["state"],
            reason=read["reason"],
            metric=read["metric"],
            score=float(read["score"]),
            gap_closed=None if gap is None else Interval(**gap),
            divergence=read["divergence"],
            rows=None if rows is None else Rows(**{name: tuple(values) for name, values in rows.items()}),
            seconds=read["seconds"],
            with_references=read.get("with_references", False),
        )
    except (KeyError, TypeError, ValueError):
        return None
