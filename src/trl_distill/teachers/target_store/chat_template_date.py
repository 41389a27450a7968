"""A fixed date for chat templates that insert today's, so that the tokens are the same on every day.

The date is stored with the completions or targets that were made with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ...data.atomic_file import write_text
from ...errors import ProjectError
from ...prompts.chat_template import NOW
from .folder import DATE


@dataclass(frozen=True)
class TemplateDate:
    """The date that chat templates are given, None if none writes one, and the folder where it is kept."""

    day: date | None
    folder: Path

    @classmethod
    def of(cls, templates: Iterable[Any], given: str | None, folder: Path) -> TemplateDate:
        """Return the date given (`YYYY-MM-DD`), else the one kept in a folder, else today.

        `templates` are the chat templates of both sides; the folder is the project's, or its store's.

        Raises:
            ProjectError: The file that keeps it is damaged.
        """
        if not any(NOW in str(template) for template in templates):
            return cls(None, folder)
        kept = folder / DATE
        if given or not kept.is_file():
            return cls(date.fromisoformat(given) if given else date.today(), folder)
        try:
            return cls(date.fromisoformat(kept.read_text(encoding="utf-8").strip()), folder)
        except ValueError:
            raise ProjectError(
                f"{str(kept)!r} is damaged: it holds no date; give --chat-template-date the day on which the "
                "completions beside it were made, or delete it to use today's."
            ) from None

    def options(self) -> dict[str, str]:
        """Return the keyword that gives the date to a chat template; see `ChatTemplate`."""
        return {} if self.day is None else {NOW: self.day.isoformat()}

    def keep(self) -> None:
        """Write the date into its folder, for the next run with the same completions."""
        if self.day is not None and not (self.folder / DATE).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / DATE, f"{self.day.isoformat()}\n")
