"""A GGUF file by llama.cpp's own converter, and a Modelfile with which ollama asks it as it was trained."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ...config.user_files import shell_path
from ...errors import DistillError, ModelError
from .form import Form
from .llama_cpp import InProcess, llama_server
from .merged import notes_on_merging
from .modelfile import modelfile
from .programs import find_converter
from .server import free_port, served
from .verify import Runtime

if TYPE_CHECKING:
    from ...config.export_settings import ExportSettings
    from .student import TrainedStudent

TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
MODELFILE = "Modelfile"


class GGUF(Form):
    """The student as one file for llama.cpp."""

    runtime = "llama.cpp"

    def __init__(self, student: TrainedStudent, settings: ExportSettings) -> None:
        super().__init__(student, settings)
        self.dtype = settings.gguf_type or TYPES.get(student.dtype, "f16")

    @property
    def file(self) -> str:
        return f"{self.student.name}-{self.dtype}.gguf"

    def check(self) -> list[str]:
        """Refuse what cannot be merged or converted, and return what the user should know.

        Raises:
            ModelError: The converter does not know the tokenizer or the architecture.
            ParamsError: There is no converter.
        """
        self.student.check_merges()
        self._check_converts(find_converter(self.settings.converter))
        return notes_on_merging(self.student)

    def write(self, folder: Path) -> None:
        """Write the merged model into a folder that is deleted, the file, and the Modelfile."""
        with tempfile.TemporaryDirectory(prefix=".merged-", dir=folder) as merged:
            self.student.write_merged(Path(merged))
            command = find_converter(self.settings.converter)
            done = _convert(command, Path(merged), folder / self.file, "--outtype", self.dtype)
        if done.returncode != 0 or not (folder / self.file).is_file():
            raise DistillError(f"llama.cpp's converter failed: {_reason(done)}.")
        text = modelfile(self.file, self.student)
        (folder / MODELFILE).write_text(text, encoding="utf-8")

    def next_command(self, folder: Path) -> str:
        greedy = " --temp 0" if self.student.is_greedy else ""
        return f"llama-server -m {shell_path(folder / self.file)} --jinja{greedy}"

    def why_not_run(self) -> str | None:
        """Why it cannot be verified here."""
        if llama_server(self.settings.converter) is None and find_spec("xllamacpp") is None:
            return "neither llama-server is on the PATH nor the package xllamacpp installed"
        return None

    @contextmanager
    def running(self, folder: Path, length: int) -> Iterator[Runtime]:
        """Run llama.cpp's server, or llama.cpp in this process."""
        program, file = llama_server(self.settings.converter), folder / self.file
        if program is None:
            yield InProcess(file, length)
            return
        port = free_port()
        command = [program, "-m", str(file), "--host", "127.0.0.1", "--port", str(port), "--jinja", "-np", "1"]
        command += ["-c", str(length)]
        with served(command, name="llama-server", port=port, model=self.student.name) as runtime:
            yield runtime

    def _check_converts(self, command: list[str]) -> None:
        """Let the converter read only configuration and tokenizer, no weights."""
        with tempfile.TemporaryDirectory(prefix="trl-distill-gguf-") as folder:
            self.student.source.config.save_pretrained(folder)
            self.student.tokenizer.save_pretrained(folder)
            done = _convert(command, Path(folder), Path(folder) / "vocabulary.gguf", "--vocab-only")
        if done.returncode != 0:
            raise ModelError(
                f"llama.cpp's converter does not convert the student in {str(self.student.folder)!r}: "
                f"{_reason(done)}; export it --to merged or --to vllm."
            )


def _convert(command: list[str], model: Path, file: Path, *more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    return subprocess.run(  # nosec B603  # no shell
        [*command, str(model), "--outfile", str(file), *more],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line of a program's output, in which it says why it failed."""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1].strip() if lines else f"status {done.returncode}"


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Return why a converter failed."""
    said = last_line(done)
    if "pre-tokenizer was not recognized" in said:
        return "it does not know the tokenizer (its pre-tokenizer is not among those of llama.cpp)"
    return said.rstrip(".")
