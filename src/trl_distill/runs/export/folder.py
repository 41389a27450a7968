"""The folder of an export: complete or not there, and replaced only if it is one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from ...data.atomic_file import flush, flush_all, fresh_folder, obstacle, remove, write_text
from ...data.folder_lock import file_lock
from ...errors import ProjectError

MANIFEST = "export.json"


class ExportFolder:
    """The folder of an export.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder for one export; see `folder_lock`."""
        return file_lock(self.path, what=self._name, instead="another --output")

    @property
    def _name(self) -> str:
        return f"output {str(self.path)!r}"

    def check_place(self, read: Mapping[str, Path]) -> None:
        """Refuse a folder that cannot be written.

        Args:
            read: Folders that are read or must stay, by what they are.

        Raises:
            ProjectError: Naming the folder.
        """
        name = self._name
        for what, folder in read.items():
            if self.path.resolve() == folder.resolve() or self.path.resolve() in folder.resolve().parents:
                raise ProjectError(f"{name} is {what}, or holds it; give another --output.")
        if self.path.exists() and not self.path.is_dir():
            raise ProjectError(f"{name} is a file; give --output a folder.")
        above = obstacle(self.path)
        if above is not None:
            raise ProjectError(f"{name} cannot be created: {str(above)!r} is not a writable folder.")

    def check(self, *, overwrite: bool) -> None:
        """Refuse a folder whose files would be lost; with `overwrite` an earlier export may be replaced.

        Raises:
            ProjectError: Naming the folder.
        """
        name = self._name
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if not (self.path / MANIFEST).is_file():
            raise ProjectError(f"{name} holds files that are not from an export; give another --output.")
        if not overwrite:
            raise ProjectError(f"{name} holds an export; give --overwrite to replace it, or another --output.")

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield a temporary folder, which takes the place of an earlier export when it is complete."""
        target = self.path.resolve()  # a link to another disk stays
        temporary, earlier = (target.with_name(f".{target.name[:50]}.{what}") for what in ("writing", "replaced"))
        fresh_folder(temporary)
        try:
            yield temporary
            flush_all(temporary)
            remove(earlier)
            if target.exists():  # it goes as a whole: deleting it takes time, in which a kill would leave half of it
                os.replace(target, earlier)
            os.replace(temporary, target)
            flush(target.parent)
            remove(earlier)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def write_manifest(self, content: Mapping[str, object], folder: Path | None = None) -> None:
        """Write what the export is; with `folder`, into the temporary one."""
        write_text((folder or self.path) / MANIFEST, json.dumps(content, indent=2) + "\n")
