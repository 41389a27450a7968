"""A GGUF file and its Modelfile, given to ollama if it is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...config.user_files import shell_path
from ...errors import DistillError
from .gguf import GGUF, MODELFILE, last_line
from .server import Server, asking
from .verify import Runtime

URL = "http://127.0.0.1:11434/v1"


class Ollama(GGUF):
    """The student as a model of ollama; arguments are those of `GGUF`."""

    runtime = "ollama"
    _created = False

    def finish(self, folder: Path) -> None:
        """Give it to ollama, if that is installed."""
        if shutil.which("ollama") is not None and not self._created:
            self._create(folder)

    def next_command(self, folder: Path) -> str:
        run = f"ollama run {self.student.name}"
        if shutil.which("ollama") is not None:
            return run
        return f"cd {shell_path(folder)} && ollama create {self.student.name} -f {MODELFILE} && {run}"

    def why_not_run(self) -> str | None:
        """Why it cannot be verified here."""
        return None if shutil.which("ollama") is not None else "ollama is not installed here"

    @contextmanager
    def running(self, folder: Path, length: int) -> Iterator[Runtime]:
        """Ask ollama's own server."""
        self._create(folder)
        with asking(URL) as client:
            yield Server("ollama", client, self.student.name, reads_ids=False)

    def _create(self, folder: Path) -> None:
        self._created = True
        done = subprocess.run(  # nosec B603 B607  # no shell, and the ollama of the PATH
            ["ollama", "create", self.student.name, "-f", MODELFILE],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise DistillError(f"ollama create failed: {last_line(done)}.")
