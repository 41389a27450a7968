"""TRL's private names, as of TRL 1.16.0.

`tests/test_trl.py` fails when one of them moves.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def gathered(*parameters: torch.Tensor | None) -> AbstractContextManager[object]:
    """Gather head parameters that DeepSpeed ZeRO-3 has sharded; without it, do nothing."""
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    return maybe_gather_lm_head_ctx(*(p for p in parameters if p is not None))  # type: ignore[arg-type]


def has_marks(chat_template: str) -> bool:
    """Whether a chat template marks assistant turns, so that SFTTrainer can train on several turns."""
    from trl.chat_template_utils import has_generation_markers

    return bool(has_generation_markers(chat_template))
