"""Why a model's files cannot be loaded, in one sentence."""

from __future__ import annotations

import pickle  # nosec B403  # for its error alone
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DistillError, UsageError, first_line, model_error
from .file_formats import damaged_file

MISMATCH = "ignore_mismatched_sizes"  # the option that transformers recommends for weights of other shapes


@contextmanager
def clear_errors(what: str, *, path: str, role: str) -> Iterator[None]:
    """Turn loading errors into one sentence.

    Args:
        what: What is loaded.
        path: The model's folder or Hub name.
        role: The setting that named it: "model" or "teacher_model".

    Raises:
        ModelError, TeacherError: It cannot be loaded.
    """
    try:
        yield
    except (DistillError, MemoryError):
        raise
    except Exception as error:  # files of others may be wrong in any way
        reason = _reason(error, Path(path))
        if reason is None:
            raise  # a device without memory, or a fault of torch's own
        raise not_loaded(what, reason, path=path, role=role) from error


def not_loaded(what: str, reason: str, *, path: str, role: str) -> UsageError:
    """Return the error of a model that cannot be loaded, see `clear_errors`."""
    server = ""
    if role == "teacher_model" and not Path(path).exists():
        server = f" A model on a server is openai:{path} at OpenAI, or http://host:port/v1#{path} elsewhere."
    return model_error(role)(
        f"{role} {path!r}: no {what} could be loaded ({reason}); give a folder with a saved model, a Hub name that "
        f"this machine can reach, or 'embedded'.{server}"
    )


def _reason(error: Exception, folder: Path) -> str | None:
    """Return why a model's files cannot be loaded; None if that is not their fault.

    Of a pickle torch says how to load it nevertheless, which would run its code.
    """
    if isinstance(error, RecursionError):
        return first_line(error)
    if MISMATCH in str(error):
        return "their shapes are not those of its config.json"
    if "negative dimension" in str(error):  # which no device has a part in
        return "its config.json names a negative size"
    if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
        return None
    damaged = damaged_file(folder)
    if damaged is not None:
        return f"{damaged} is damaged"
    if isinstance(error, pickle.UnpicklingError):
        return "its weights are a pickle with more than tensors, which is never loaded; save them as safetensors"
    return first_line(error)
