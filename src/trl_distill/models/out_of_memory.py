"""Errors that mean that memory ran out, what was done then, and how much memory a device has."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch

# of CUDA, ROCm, XPU and MPS; of torch's CPU allocator; of a mapped file; of cuBLAS and cuDNN; of accelerate's search
TEXTS = (
    *("out of memory", "out-of-memory", "can't allocate memory", "cannot allocate memory", "could not allocate memory"),
    *("_status_alloc_failed", "cublas_status_not_initialized", "no executable batch size found"),
)
UNCLEAR = ("could not create a primitive",)  # oneDNN says it of other things too
SCARCE = 1 / 20  # of a device's memory
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or the one that it was raised from, means that a device or this machine has no more memory.

    What a server says in an answer is about the server's memory, and does not count.
    """
    text = str(error).lower()
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, RuntimeError) or type(error).__name__ == "SafetensorError":
        if any(part in text for part in TEXTS):
            return True
        if any(part in text for part in UNCLEAR) and _is_scarce(torch.device("cpu")):
            return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Keep in an error of memory what was done, such as "loading the teacher"; the innermost wins."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) and done_at(error) is None:
            error.doing = what  # type: ignore[attr-defined]
        raise


def done_at(error: BaseException) -> str | None:
    """Return what `doing` kept in an error, or in the one that it was raised from."""
    found: str | None = getattr(error, "doing", None)
    return done_at(error.__cause__) if found is None and error.__cause__ is not None else found


def memory_for_this_process(device: torch.device) -> int | None:
    """Return how many bytes this process could use on a device, those that it uses included; None if not known."""
    if device.type == "cpu":
        used = psutil.Process().memory_info()
        room = psutil.virtual_memory().available + used.rss
        limits = [limit - (used.vms - used.rss) for limit in _limits_of_addresses()] + _limits_of_container()
        return min([room, *limits])
    module = torch.get_device_module(device)
    try:
        free, _ = module.mem_get_info(device)
        return int(free) + int(module.memory_reserved(device))
    except (AttributeError, RuntimeError, NotImplementedError):  # Apple's
        with suppress(AttributeError, RuntimeError):
            return int(module.recommended_max_memory())
    return None


def _is_scarce(device: torch.device) -> bool:
    room = memory_for_this_process(device)
    return room is not None and room - psutil.Process().memory_info().rss < SCARCE * room


def _limits_of_addresses() -> list[int]:
    """Return the limit of this process's addresses (`ulimit -v`), if there is one."""
    try:
        import resource
    except ImportError:  # on Windows
        return []
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return [] if soft == resource.RLIM_INFINITY else [soft]


def _limits_of_container() -> list[int]:
    """Return the memory that a container may use, if it has a limit."""
    found = []
    for path in CGROUPS:
        with suppress(OSError, ValueError):  # "max" is no limit
            found.append(int(Path(path).read_text(encoding="ascii")))
    return found
