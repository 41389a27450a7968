"""The role of a dataset. Its name is only for messages: an evaluation set may be called "train"."""

from __future__ import annotations

from enum import Enum


class Split(Enum):
    """The role of a dataset in a run."""

    TRAIN = "train"
    EVAL = "eval"
