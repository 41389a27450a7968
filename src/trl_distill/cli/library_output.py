"""Keeps what a user of the command can do nothing about off the terminal; `--debug` shows it.

Set before the libraries are imported, with the standard library alone: the command must be able to refuse its
arguments without loading torch. Nothing here touches a program that uses the package from Python.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# a faster kernel for 4-bit weights on a CPU, which a run without such weights does not need
KERNEL = ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward")
# logger, and how the messages begin that are dropped
MESSAGES = (
    # said for every matrix product of an int8 model, thousands of times; it is how int8 works
    ("bitsandbytes.autograd._functions", "MatMul8bitLt: inputs will be cast"),
    # how transformers sorts checkpoints for deleting the oldest; it has another way, and says which
    ("transformers.trainer_utils", "mtime may not be reliable"),
    # said by an installed DeepSpeed, also to a run that does not use it
    ("DeepSpeed", "Setting accelerator to CPU"),
    # rows are cut to the model's context, or refused in a sentence of our own
    ("transformers.tokenization_utils_base", "Token indices sequence length is longer"),
    # --torch-compile was asked for
    ("transformers.training_args", "The speedups for torchdynamo"),
)
# category and the start of the text
WARNINGS = (
    # TRL 1.16 and PEFT 0.21 use these names, which transformers 5.23 has given up
    (FutureWarning, r"`(is_)?gradient_checkpointing` is deprecated"),
)


class _Dropped(logging.Filter):
    """Drops messages that begin in one way."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.start = start

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show the message."""
        return not str(record.msg).startswith(self.start)


@contextmanager
def quiet(*, four_bits: bool = False) -> Iterator[None]:
    """Drop the libraries' asides while a command runs.

    Bars of tqdm are shown only by code that asks for one, as the teacher's writing, training and downloads do;
    loading weights, writing shards and mapping rows do not ask.

    Args:
        four_bits: Whether a model is quantized to int4; that a kernel for it is missing is then shown.
    """
    messages = MESSAGES if four_bits else (KERNEL, *MESSAGES)
    asides = [(name, _Dropped(start)) for name, start in messages]
    for name, dropped in asides:
        logging.getLogger(name).addFilter(dropped)
    before = os.environ.get("TQDM_DISABLE")
    os.environ.setdefault("TQDM_DISABLE", "1")  # tqdm reads it when it is imported; an explicit disable= wins
    try:
        with warnings.catch_warnings():
            for category, start in WARNINGS:
                warnings.filterwarnings("ignore", start, category)
            yield
    finally:
        for name, dropped in asides:
            logging.getLogger(name).removeFilter(dropped)
        if before is None:
            os.environ.pop("TQDM_DISABLE", None)
