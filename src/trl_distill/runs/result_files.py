"""The files of a finished run, compared with the checksums in its manifest."""

from __future__ import annotations

from pathlib import Path

from ..data.checksum import file_checksum
from ..data.folder_names import is_inside
from ..data.json_object import read_object
from ..errors import ProjectError, printable
from .adapter_base import BASE, base_of_adapter
from .project_folder import CONFIG, CRC32, MANIFEST


def check_result(folder: Path, *, again: str = "train again with --overwrite") -> None:
    """Refuse a finished run with damaged weights, and print if its settings, or an adapter's base, have changed.

    Other files are meant to be edited: an adapter's configuration, for example, if its base has moved. Runs of earlier
    versions have no checksums.

    Args:
        folder: The project.
        again: What to do if the file cannot be restored, for the error.

    Raises:
        ProjectError: Naming the file.
    """
    sums = _checksums(folder)
    for name in sorted(sums):
        path = folder / name
        if not is_inside(name) or path.suffix != ".safetensors" or (path.is_file() and _is_intact(path, sums[name])):
            continue
        what = "is damaged: its checksum differs from that" if path.is_file() else "is missing, which is"
        raise ProjectError(
            f"{str(folder)!r} holds a finished run whose {name} {what} in {MANIFEST}; restore it, or {again}."
        )
    if CONFIG in sums and (folder / CONFIG).is_file() and not _is_intact(folder / CONFIG, sums[CONFIG]):
        print(printable(f"{folder / CONFIG} has changed since the run finished: it was edited, or it is damaged."))
    trained_on, base = (read_object(folder / MANIFEST) or {}).get(BASE), base_of_adapter(folder)
    if trained_on is not None and base is not None and trained_on != base[1]:
        text = f"the weights in {base[0]!r}, the base of the adapter in {str(folder)!r}, have changed since the run"
        print(printable(f"  warning       {text} finished: restore them, or {again}."))


def has_checksum(folder: Path, name: str) -> bool:
    """Whether the manifest of a run has a checksum of a file; those of earlier versions have none."""
    return name in _checksums(folder)


def _is_intact(path: Path, expected: object) -> bool:
    return file_checksum(path) == expected


def _checksums(folder: Path) -> dict[str, object]:
    """Return the checksums by file; none if the manifest has none or is damaged."""
    listed = (read_object(folder / MANIFEST) or {}).get(CRC32)
    return listed if isinstance(listed, dict) else {}
