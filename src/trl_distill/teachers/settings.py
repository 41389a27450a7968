"""A run's teacher settings, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from ..losses.schedule import LossSchedule
    from ..models.generation import GenerationSettings
    from .remote.request_pool import RemoteSettings


@dataclass(frozen=True)
class StoreSettings:
    """A store of targets.

    Attributes:
        folder: Folder of the store.
        kind: "topk", "sample" or "hidden"; None is "topk" for a new one, and any for one that is there.
        top_k: Tokens of each distribution, or samples.
        temperatures: Those that it is written for.
    """

    folder: str
    kind: str | None
    top_k: int
    temperatures: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """A run's teacher settings, for every kind of teacher.

    Attributes:
        loss: The loss that it gives targets for, as the run requests it.
        generation: Generation settings.
        remote: Settings of requests to a server.
        folder: Folder of its stored completions and log-probabilities.
        progress: Whether bars are shown.
        store: The store of its targets, if they are stored.
        fresh_completions: The setting, with its value, that has completions written while training.

    The others are the settings of the same names in `DistillationArguments`.
    """

    loss: LossSchedule
    generation: GenerationSettings
    remote: RemoteSettings
    folder: Path
    progress: bool
    store: StoreSettings | None
    fresh_completions: str | None
    logprobs: str
    strict: bool
    allow_text_only: bool
    cross_tokenizer: bool
    chat_template: str | None
    revision: str | None
    dtype: str
    quantization: str | None
    device_map: str | None
    trust_remote_code: bool
    ema_decay: float
