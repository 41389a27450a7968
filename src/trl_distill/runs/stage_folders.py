"""The folders of a run in stages: which have finished, and from which result each has started.

The last stage's project is the project itself, so that it is used as that of any run; those before it are its folders
`stage-1`, `stage-2`, ... `stages.json` has the number of stages and, of each that has begun, the checksum of the
manifest of the one before: a stage has finished if its own manifest is there and the one before is still the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from ..config.yaml_file import read_yaml
from ..data.atomic_file import write_text
from ..data.checksum import file_checksum
from ..data.json_object import read_object
from ..errors import ProjectError
from .project_folder import CONFIG, MANIFEST, Project

RECORD = "stages.json"
NAME = "stage-{}"
OUT_OF_DATE = "out of date"  # in the place of a checksum
_NAME = re.compile(NAME.format("[1-9][0-9]*"))


class StageFolders:
    """The folders of a project's stages.

    Args:
        project: The project.
        count: How many stages there are.
    """

    def __init__(self, project: Project, count: int) -> None:
        self.project, self.count = project, count

    def of(self, number: int) -> Path:
        """Return the folder of a stage, counted from 1."""
        folder = self.project.folder
        return folder if number == self.count else folder / NAME.format(number)

    def finished(self) -> int:
        """Return how many stages have finished, one after another from the first."""
        begun = self._begun()
        for number in range(1, self.count + 1):
            is_there = Project(str(self.of(number))).is_finished and number in begun
            if not (is_there and begun[number] == self._start(number)):
                return number - 1
        return self.count

    def is_resumable(self, number: int) -> bool:
        """Whether a stage has begun from what the one before it holds now, and has checkpoints but no result."""
        begun, project = self._begun(), Project(str(self.of(number)))
        found = project.find_checkpoints()
        unfinished = not project.is_finished and (found.usable is not None or bool(found.damaged))
        return unfinished and number in begun and begun[number] == self._start(number)

    def has_begun(self, number: int) -> bool:
        """Whether what a stage's folder holds is of this run."""
        project = Project(str(self.of(number)))
        return number in self._begun() or project.is_finished or project.last_checkpoint() is not None

    def check(self, *, resume: bool) -> None:
        """Refuse a project of other stages, and one that has begun without `resume`.

        Raises:
            ProjectError: Saying how far it is, or how many stages it has.
        """
        name, known = f"project_name {str(self.project.folder)!r}", self._read()
        count = known.get("stages")
        holds = f"{name} holds a run"
        if not self._holds_work():
            return
        if not known:
            raise ProjectError(
                f"{holds} without stages; give another --project-name, or add --overwrite to start over."
            )
        if count != self.count:
            raise ProjectError(
                f"{holds} of {count} stages, and this one has {self.count}; give the same and add --resume, give "
                "--model its folder and another --project-name to train its student further, or add --overwrite to "
                "start over."
            )
        if not resume and self.finished() < self.count:
            raise ProjectError(
                f"{holds} of {count} stages, {self.finished()} of them finished; give --resume to continue it, or add "
                "--overwrite to start over."
            )

    def begin(self, number: int) -> None:
        """Write from which result a stage starts; earlier results of it and of later ones are out of date then."""
        begun = {n: start for n, start in self._begun().items() if n < number}
        self.project.folder.mkdir(parents=True, exist_ok=True)
        if number < self.count and self.of(number).is_symlink() and not self.is_resumable(number):
            self.of(number).unlink()  # what it leads to stays
        if number > 1 and not self.is_resumable(number):  # the first is replaced only once nothing can refuse it
            self._write({**begun, number: OUT_OF_DATE})  # a kill leaves nothing that looks finished
            Project(str(self.of(number))).discard()
        self._write({**begun, number: self._start(number)})

    def _write(self, begun: Mapping[int, str | None]) -> None:
        known = {"stages": self.count, "begun": dict(begun)}
        write_text(self.project.folder / RECORD, json.dumps(known, indent=1) + "\n")

    def _start(self, number: int) -> str | None:
        """Return the checksum of the manifest of the stage before; None for the first, and if there is none."""
        manifest = self.of(number - 1) / MANIFEST
        return file_checksum(manifest) if number > 1 and manifest.is_file() else None

    def _holds_work(self) -> bool:
        projects = [Project(str(self.project.folder))]
        projects += [Project(str(path)) for path in sorted(self.project.folder.glob(NAME.format("*")))]
        return any(project.is_finished or project.last_checkpoint() is not None for project in projects)

    def _read(self) -> dict[str, object]:
        return read_object(self.project.folder / RECORD) or {}

    def _begun(self) -> dict[int, str | None]:
        known = self._read()
        begun = known.get("begun")
        if known.get("stages") != self.count or not isinstance(begun, dict):
            return {}
        return {int(number): start for number, start in begun.items() if number.isdecimal()}


def before_stages(folder: Path, model: object) -> object:
    """Return the model that the first stage of a project started from; of a run without stages, its own.

    Args:
        folder: The project.
        model: The model that its configuration names; of a run in stages, the folder of the last stage but one.
    """
    config = folder / NAME.format(1) / CONFIG
    if not isinstance(model, str) or _NAME.fullmatch(Path(model).name) is None or not config.is_file():
        return model
    values = read_yaml(config, name=CONFIG)
    return values.get("model") if isinstance(values, dict) else None
