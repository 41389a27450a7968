"""Programs and packages that a form needs on this machine; they are looked for before torch is imported."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ...config.user_files import shell_path
from ...errors import ParamsError

if TYPE_CHECKING:
    from ...config.export_settings import ExportSettings
    from .student import TrainedStudent

SCRIPT, PACKAGED, HOME = "convert_hf_to_gguf.py", "convert-hf-to-gguf", "LLAMA_CPP"


def check_programs(to: str, student: TrainedStudent, settings: ExportSettings) -> None:
    """Refuse a form whose converter is missing.

    Raises:
        ParamsError: What to install, or the commands that do the same on another machine.
    """
    if to in ("gguf", "ollama"):
        find_converter(settings.converter)
    elif to == "mlx" and find_spec("mlx_lm") is None:
        folder = shell_path(student.folder)
        raise ParamsError(
            f"mlx_lm is not installed here (`pip install mlx-lm`); or export {folder} with --to merged, and on a "
            f"machine that has it run `mlx_lm.convert --hf-path FOLDER --mlx-path {student.name}-mlx`."
        )


def find_converter(given: str | None) -> list[str]:
    """Return the command of llama.cpp's converter.

    Args:
        given: Its script or program, or llama.cpp's folder (default: that of $LLAMA_CPP, else what is on the PATH).

    Raises:
        ParamsError: There is none.
    """
    named = given or os.environ.get(HOME)
    if named is not None:
        path = Path(named).expanduser()
        path = path / SCRIPT if path.is_dir() else path
        if not path.is_file():
            setting = "converter" if given else f"${HOME}"
            raise ParamsError(f"{setting} is {named!r}, where {SCRIPT} is not; give the folder of llama.cpp.")
        return [sys.executable, str(path)] if path.suffix == ".py" else [str(path)]
    beside = Path(sys.executable).parent / PACKAGED
    for found in (shutil.which(SCRIPT), shutil.which(PACKAGED), str(beside) if beside.is_file() else None):
        if found is not None:
            return [sys.executable, found] if found.endswith(".py") else [found]
    raise ParamsError(
        f"llama.cpp's converter ({SCRIPT}) is not found; give --converter the folder of llama.cpp "
        f"(https://github.com/ggml-org/llama.cpp), or set {HOME} to it."
    )
