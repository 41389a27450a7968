"""`export(project, to=...)` and `aitraining export`: check, write, verify."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config.export_settings import EXPORT_FIELDS, ExportSettings
from ...config.fields import is_model
from ...config.setting_names import in_python, settings_named_as
from ...config.user_files import user_path
from ...errors import ParamsError, ProjectError, printable
from ...trainer.standard_streams import unbreakable_streams
from ..evaluation_inputs import KnownRun, read_project, run_of
from ..full_disk import explaining_full_disk
from ..library_output import quiet, without_library_bars
from ..memory import memory_explained
from ..project_folder import MANIFEST
from ..result_files import check_result
from .folder import ExportFolder
from .memory import sentence_of_export

if TYPE_CHECKING:
    from .form import Form
    from .student import TrainedStudent
    from .verify import Verification

PYTHON = in_python(EXPORT_FIELDS, {})
EXPORTS = "exports"  # folder in a project


@dataclass(frozen=True)
class Exported:
    """A student that was handed over.

    Attributes:
        folder: Where it is.
        form: In which form.
        command: The command that runs or asks it.
        verification: How many greedy completions equal the trained student's; None if it was not verified.
    """

    folder: Path
    form: str
    command: str
    verification: Verification | None = None


@settings_named_as(PYTHON)
def export(project: Any, to: str, *, verbose: bool = False, **settings: Any) -> Exported:
    """Write a trained student in the form in which it is served.

    Example:
        >>> export("runs/first", to="vllm", verify=20).verification.equal  # doctest: +SKIP

    Args:
        project: The project folder of a finished run, or a model that `train` returned.
        to: "merged" (one model for transformers), "vllm" (a folder with `serve.sh`), "gguf" (a file for llama.cpp with
            a Modelfile), "ollama" (the same, given to ollama) or "mlx".
        verbose: Show all messages of the libraries too.
        **settings: `output`, `verify`, `data_path`, `overwrite`, `name`, `dtype`, `merge`, `converter` and
            `gguf_type`, see `aitraining export --help`.

    Raises:
        UsageError: Something that cannot be exported so; raised before a model loads.
        DistillError: A converter or a server fails.
    """
    given = ExportSettings()
    for name, value in {"to": to, **settings}.items():
        given.set(name, value)
    return export_project(project, given, verbose=verbose)


def export_project(project: Any, settings: ExportSettings, *, verbose: bool = False) -> Exported:
    """Export the student of a project; see `export`."""
    if settings.to is None:
        raise ParamsError(f"to is missing; give --to {', '.join(EXPORT_FIELDS['to'].metadata['choices'])}.")
    with ExitStack() as shown:
        shown.enter_context(unbreakable_streams())
        if not verbose:
            shown.enter_context(quiet())
        student, folder = _checked(_run_of(project), settings, settings.to, shown)
        if not verbose:
            shown.enter_context(without_library_bars())  # which loads the libraries
        with memory_explained(lambda error: sentence_of_export(error, student)):
            return _export(student, folder, settings, settings.to)


def _run_of(project: Any) -> KnownRun:
    """Return the finished run of a project folder, or of a model in memory."""
    if isinstance(project, (str, Path)):
        folder = user_path(project, name="project", error=ProjectError)
        if not (folder / MANIFEST).is_file():
            raise ProjectError(
                f"{str(folder)!r} holds no finished run ({MANIFEST} is missing); give the project of one."
            )
        run = read_project(folder)
        check_result(folder)
        return run
    known = run_of(project) if is_model(project) else None
    if known is None:
        raise ParamsError(
            "project is neither a folder nor a model that a run returned; give the project of a finished run."
        )
    return known


def _checked(run: KnownRun, settings: ExportSettings, to: str, locks: ExitStack) -> tuple[TrainedStudent, ExportFolder]:
    """Return the student of a run and the folder of its export, which is held, after all checks without torch."""
    from ...data.loading import check_there
    from .programs import check_programs
    from .student import TrainedStudent

    student = TrainedStudent.of(run, name=settings.name, dtype=settings.dtype)
    folder = ExportFolder(Path(settings.output).expanduser() if settings.output else run.folder / EXPORTS / to)
    read = {"the project": run.folder}
    if student.source.adapter is not None and Path(student.source.base.path).is_dir():
        read["the folder of its base"] = Path(student.source.base.path)
    folder.check_place(read)
    locks.enter_context(folder.locked())
    folder.check(overwrite=settings.overwrite)
    check_programs(to, student, settings)
    if settings.data_path is not None:
        if settings.verify == 0:
            raise ParamsError("data_path has rows to verify on; give --verify the number of rows too.")
        check_there(settings.data_path)
    return student, folder


def _export(student: TrainedStudent, folder: ExportFolder, settings: ExportSettings, to: str) -> Exported:
    form = _forms()[to](student, settings)
    notes = form.check()
    student.check_finite()
    requests, source = _requests(student, settings)
    for note in notes:
        print(printable(note))
    content: dict[str, object] = {"form": to, "project": str(student.folder), "name": student.name, "dtype": form.dtype}
    with explaining_full_disk(folder.path, again="run the same again"), folder.writing() as temporary:
        with student.unchanged():
            form.write(temporary)
        folder.write_manifest({**content, "verification": None}, temporary)
    print(printable(f"The student is in {folder.path}."))
    verification = _verified(form, student, folder.path, requests, source) if requests else None
    if verification is not None:
        folder.write_manifest({**content, "verification": verification.to_dict()})
    form.finish(folder.path)
    command = form.next_command(folder.path)
    print(printable(f"Next:\n  {command}"))
    return Exported(folder.path, to, command, verification)


def _forms() -> Mapping[str, type[Form]]:
    from .gguf import GGUF
    from .merged import Merged
    from .mlx import MLX
    from .ollama import Ollama
    from .vllm import VLLMServer

    return {"merged": Merged, "vllm": VLLMServer, "gguf": GGUF, "ollama": Ollama, "mlx": MLX}


def _requests(student: TrainedStudent, settings: ExportSettings) -> tuple[list[Any], str]:
    """Return the rows to verify on, and their source."""
    if settings.verify == 0:
        return [], ""
    from .rows import requests_of

    return requests_of(student, settings.data_path, settings.verify)


def _verified(
    form: Form, student: TrainedStudent, folder: Path, requests: list[Any], source: str
) -> Verification | None:
    """Ask the form and print the result; None if it cannot be run here."""
    from .verify import expected_of, verify

    reason = form.why_not_run()
    if reason is not None:
        print(printable(f"Not verified: {reason}."))
        return None
    print(printable(f"Verifying {len(requests)} rows by {form.runtime} ..."))
    expected = expected_of(student, requests)
    running = form.running(folder, expected.length)
    found = verify(student, requests, running, expected=expected, source=source, dtype=form.dtype)
    print(printable(found.sentence))
    if found.first_difference is not None:
        first = found.first_difference
        print(printable(f"  first difference\n    asked    {first.asked!r}\n    student  {first.student!r}"))
        print(printable(f"    exported {first.exported!r}"))
    return found
