"""Hide library messages that a user cannot act on; `--debug` and `verbose=True` show them.

Messages are hidden with the standard library alone, before the libraries are imported: the command must be able to
reject its arguments without loading torch.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ..config.deprecations import DEPRECATED

# a faster kernel for 4-bit weights on a CPU, which a run without such weights does not need
KERNEL = ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward")
# logger, and the start of the messages to drop
MESSAGES = (
    # logged at every matrix product of an int8 model, thousands of times; it is how int8 works
    ("bitsandbytes.autograd._functions", "MatMul8bitLt: inputs will be cast"),
    # transformers sorts checkpoints by modification time; it falls back to another way, and logs which
    ("transformers.trainer_utils", "mtime may not be reliable"),
    # an installed DeepSpeed logs it even if the run does not use it
    ("DeepSpeed", "Setting accelerator to CPU"),
    # rows are cut to the model's context, or rejected with an error of our own
    ("transformers.tokenization_utils_base", "Token indices sequence length is longer"),
    # the model's own configuration is given the tokenizer's end of sequence, as it should be
    ("transformers.trainer_utils", "The tokenizer has new PAD/BOS/EOS tokens"),
    # the same in earlier versions of transformers
    ("transformers.trainer", "The tokenizer has new PAD/BOS/EOS tokens"),
    # --torch-compile was asked for
    ("transformers.training_args", "The speedups for torchdynamo"),
)
TQDM = "TQDM_DISABLE"
# category and the start of the text
WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    *DEPRECATED,
    # a notebook without ipywidgets has bars of text
    (Warning, "IProgress not found"),
)


class _Dropped(logging.Filter):
    """Drops messages with one beginning."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.start = start

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self.start)


@contextmanager
def quiet(*, four_bits: bool = False, own_process: bool = False) -> Iterator[None]:
    """Hide the known library messages.

    Args:
        four_bits: Whether a model is quantized to int4, so that a missing kernel for it is worth a message.
        own_process: Whether nothing else runs in this process. tqdm is then imported such that it shows a bar only to
            code that asks for one explicitly: generation by the teacher, training and downloads do; loading weights,
            writing shards and mapping rows do not.
    """
    messages = MESSAGES if four_bits else (KERNEL, *MESSAGES)
    filters = [(name, _Dropped(start)) for name, start in messages]
    for name, dropped in filters:
        logging.getLogger(name).addFilter(dropped)
    before = os.environ.get(TQDM)
    if own_process:
        os.environ.setdefault(TQDM, "1")  # tqdm reads it when it is imported; an explicit disable= wins
    try:
        with warnings.catch_warnings():
            for category, start in WARNINGS:
                warnings.filterwarnings("ignore", start, category)
            yield
    finally:
        for name, dropped in filters:
            logging.getLogger(name).removeFilter(dropped)
        if before is None:
            os.environ.pop(TQDM, None)


@contextmanager
def without_library_bars() -> Iterator[None]:
    """Hide the bars of datasets and transformers, which appear below those of a run; downloads keep theirs."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as bars

    from ..data.streaming import without_dataset_bars

    shown, downloads = bars.is_progress_bar_enabled(), not are_progress_bars_disabled()
    bars.disable_progress_bar()  # which disables those of downloads too
    if downloads:
        enable_progress_bars()
    try:
        with without_dataset_bars():
            yield
    finally:
        if shown:
            bars.enable_progress_bar()
