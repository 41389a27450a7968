"""From `data_path` to prepared rows and batches; `trl_distill.data.load_data` is imported lazily."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loading import load_data as load_data

__all__ = ["load_data"]


def __getattr__(name: str) -> Any:
    """Import `load_data` on first use: a run's folder is checked without the libraries that data need."""
    if name != "load_data":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .loading import load_data

    return load_data
