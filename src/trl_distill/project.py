"""A run's folder: what it holds, when it may be written to, and writing that a kill cannot spoil.

project/
  model.safetensors, tokenizer, ...   the result
  README.md                           model card
  config.yaml                         the effective parameters, without secrets
  metrics.json                        figures
  teacher_completions.jsonl           completions already paid for
  checkpoints/                        to resume from
  run.json                            the manifest, written last: the run is finished
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from .errors import ProjectError
from .params import LLMTrainingParams

MANIFEST = "run.json"


class Project:
    """The folder of one run.

    Args:
        name: Any path; dots and dashes are part of it.
    """

    def __init__(self, name: str) -> None:
        self.folder = Path(name).expanduser()
        self.checkpoints = self.folder / "checkpoints"

    def check(self, *, overwrite: bool, resume: bool) -> None:
        """Refuse to write over work that is there.

        Raises:
            ProjectError: A finished run without `overwrite`, an unfinished one without `resume` or `overwrite`, a
                model that is no run of ours, or a file in the folder's place.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise ProjectError(f"project_name {str(self.folder)!r} is a file; give --project-name a folder.")
        if overwrite:
            return
        if (self.folder / MANIFEST).is_file():
            raise ProjectError(
                f"project_name {str(self.folder)!r} holds a finished run; give --overwrite to replace it, or another "
                "--project-name."
            )
        checkpoint = self.last_checkpoint()
        if checkpoint is not None and not resume:
            raise ProjectError(
                f"project_name {str(self.folder)!r} holds an unfinished run ({checkpoint.name}); go on with --resume, "
                "or start anew with --overwrite."
            )
        if checkpoint is None and (self.folder / "config.json").is_file() and not resume:
            raise ProjectError(
                f"project_name {str(self.folder)!r} holds a model that is no run of this command; give another "
                "--project-name, or --overwrite to replace it."
            )

    def begin(self, params: LLMTrainingParams, *, overwrite: bool) -> Path:
        """Make the folder and write the effective parameters.

        With `overwrite` the manifest and the checkpoints of an earlier run go; completions paid for stay.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            (self.folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        values = {k: v for k, v in params.to_dict().items() if k not in ("overwrite", "resume", "dry_run", "train")}
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        return write_text(self.folder / "config.yaml", "# aitraining llm --config config.yaml\n" + text)

    def last_checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint; one whose state was not written any more is passed over."""
        found = [p for p in self.checkpoints.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
        return max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Give a temporary folder whose files are moved into the project when all are written."""
        temporary = self.folder / ".writing"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for path in sorted(temporary.iterdir()):
            target = self.folder / path.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)
        temporary.rmdir()

    def write_metrics(self, metrics: dict[str, Any], history: Sequence[dict[str, Any]]) -> dict[str, Path]:
        """Write the figures and the log lines."""
        text = json.dumps({"metrics": metrics, "history": list(history)}, indent=2, default=float)
        return {
            "metrics": write_text(self.folder / "metrics.json", text + "\n"),
            "config": self.folder / "config.yaml",
        }

    def finish(self) -> dict[str, Path]:
        """Write the manifest: from here on the run is finished."""
        from importlib.metadata import version

        files = {p.name: p.stat().st_size for p in sorted(self.folder.iterdir()) if p.is_file() and p.name != MANIFEST}
        text = json.dumps({"trl_distill": version("trl-distill"), "files": files}, indent=2)
        return {"manifest": write_text(self.folder / MANIFEST, text + "\n")}


def write_text(path: Path, text: str) -> Path:
    """Write a file under a temporary name and rename it."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path
