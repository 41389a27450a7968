"""Completions generated during training, by the student (on-policy) or the teacher (online), each under its own prompt.

On-policy batches are GKD's (arXiv:2306.13649); the teacher scores them under the teacher's prompt.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from ..data.collator import numbered_as, prompts_of
from ..errors import DataError
from ..models.generation import Completion, GenerationSettings, continuations, cut_at_stop, evaluating, seeded_sampling

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..data.preparation import Recipe


@dataclass(frozen=True)
class BatchRandom:
    """The randomness of one training batch: the same on all ranks, and the same again when a run is resumed.

    Attributes:
        seed: The run's.
        step: Optimizer steps that are done.
        place: Index of the batch in its step, from 0.
    """

    seed: int
    step: int
    place: int

    def is_on_policy(self, fraction: float) -> bool:
        """Whether the student generates the batch's completions, for a fraction of all batches, 0 to 1."""
        return self._random("share").random() < fraction

    def generation_seed(self, rank: int) -> int:
        """Return the seed with which a rank samples the batch's completions."""
        return self._random(f"rank {rank}").getrandbits(62)

    def _random(self, what: str) -> random.Random:
        """Return a generator of its own for each purpose; text seeds it alike in every process."""
        return random.Random(f"{self.seed} {self.step} {self.place} {what}")  # nosec B311  # no secret is drawn


@dataclass(frozen=True)
class Bounds:
    """The limits of the student's generation, for any engine.

    Attributes:
        stops: Token ids that end a completion.
        max_new_tokens: Tokens at most.
        known: Rows [0, known) may be written: tokens that the tokenizer and the teacher have too.
        rows: Rows of the student's LM head.
    """

    stops: list[int]
    max_new_tokens: int
    known: int
    rows: int


def written_by_student(
    model: Any,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    bounds: Bounds,
    *,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Completion]:
    """Write one completion per prompt with the student, in evaluation mode and without gradients.

    It stops at the tokens of its generation configuration, its tokenizer and the end of a turn; nothing else of its
    generation configuration is looked at. The program's random state is left alone.
    """
    draw = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    config = GenerationConfig(
        max_new_tokens=bounds.max_new_tokens,
        do_sample=settings.do_sample,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=bounds.stops,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=list(range(bounds.known, bounds.rows)) or None,
        **(draw if settings.do_sample else {}),
    )
    with evaluating(model), seeded_sampling(settings.seed, prompts, model.device):
        written = continuations(model, prompts, config)
    return [cut_at_stop(row, bounds.stops) for row in written]


def with_completions(
    batch: Mapping[str, torch.Tensor],
    completions: Sequence[Completion],
    *,
    recipe: Recipe,
    collate: Callable[[Any], Mapping[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """Return a batch with other completions after its prompts.

    A completion that does not fit after one of its two prompts is cut, and a cut one has no end.

    Args:
        batch: A batch of `DistillationCollator`.
        completions: One for each row.
        recipe: How many tokens each model may read.
        collate: Makes the batch; padding is on the right.
    """
    rows = []
    for mine, theirs, completion in zip(prompts_of(batch, ""), prompts_of(batch), completions, strict=True):
        limits = ((recipe.student.limit, mine), (recipe.teacher.limit, theirs))
        room = min((limit - len(prompt) for limit, prompt in limits if limit is not None), default=None)
        ids = list(completion.ids if room is None else completion.ids[: max(room, 1)])
        rows.append({"student_prompt": mine, "teacher_prompt": theirs, "completion": ids})
    device = batch["input_ids"].device
    return {name: tensor.to(device) for name, tensor in collate(numbered_as(batch, rows)).items()}


def check_prompts(rows: Dataset, fresh: str) -> None:
    """Refuse rows without a prompt, which nothing can complete.

    Raises:
        DataError: Naming the first such row.
    """
    for row in rows:
        if not row["student_prompt"] or not row["teacher_prompt"]:
            raise DataError(
                f"{fresh} needs prompts to complete, but row {row['row']} has none: its text is learned "
                "as a whole; give a template other than {input}, or leave out --completions data."
            )
