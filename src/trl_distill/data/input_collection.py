"""Inputs that a teacher writes, one by one: distinct ones are kept, near-duplicates and leaks are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from .diversity import HeldOut
from .holdout import draw, sampled
from .near_duplicates import NearDuplicates, normalised


class Refusal(StrEnum):
    """Why an input is not kept."""

    NEAR_DUPLICATE = "near_duplicate"
    IN_PROMPT = "in_prompt"
    LEAK = "leak"


IN_WORDS = {
    Refusal.NEAR_DUPLICATE: "like an earlier input",
    Refusal.IN_PROMPT: "like a piece of the prompt or of the request",
    Refusal.LEAK: "like a held-out row",
}


@dataclass(frozen=True)
class WrittenInput:
    """An input and the kind that it was written for."""

    text: str
    kind: str


@dataclass(frozen=True)
class RefusedInput:
    """An input that is not kept.

    Attributes:
        text: The input.
        reason: Why not.
        of: What it is like: an earlier input, a piece of the prompt, or the place of a held-out row.
    """

    text: str
    reason: Refusal
    of: str

    def to_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        return {"input": self.text, "reason": str(self.reason), "of": self.of}


class InputCollection:
    """Distinct inputs, in the order in which they are offered.

    Args:
        examples: Pieces of the teacher's prompt, of which no input may be a near-duplicate.
        held_out: Rows of which no input may be a near-duplicate.
    """

    def __init__(self, *, examples: Iterable[str] = (), held_out: HeldOut | None = None) -> None:
        self.inputs: list[WrittenInput] = []
        self.refused: list[RefusedInput] = []
        self._kept = NearDuplicates()
        held_out = held_out or HeldOut()
        pieces = list(examples)
        self._apart = [
            (Refusal.IN_PROMPT, NearDuplicates(map(normalised, pieces)), pieces),
            (Refusal.LEAK, NearDuplicates(held_out.texts), [f"held-out {place}" for place in held_out.places]),
        ]

    def offer(self, text: str, kind: str) -> bool:
        """Keep an input if it is like none before it, like no piece of the prompt and like no held-out row."""
        sketch = self._kept.sketch(normalised(text))
        apart: Sequence[tuple[Refusal, NearDuplicates, Sequence[str]]] = self._apart
        for reason, index, names in apart:
            like = index.find(sketch)
            if like is not None:
                self.refused.append(RefusedInput(text, reason, names[like]))
                return False
        like = self._kept.find(sketch)
        if like is not None:
            self.refused.append(RefusedInput(text, Refusal.NEAR_DUPLICATE, self.inputs[like].text))
            return False
        self._kept.add(sketch)
        self.inputs.append(WrittenInput(text, kind))
        return True

    def counts(self) -> dict[Refusal, int]:
        """Return how many inputs were refused for each reason; of one without an input nothing."""
        found = Counter(one.reason for one in self.refused)
        return {reason: found[reason] for reason in Refusal if found[reason]}


def evenly(inputs: Sequence[WrittenInput], count: int) -> list[WrittenInput]:
    """Return `count` inputs, as many of each kind as there are; of each kind the first ones, in their order."""
    waiting: dict[str, int] = {}
    places: list[tuple[int, int]] = []
    for i, one in enumerate(inputs):
        places.append((waiting.setdefault(one.kind, 0), i))
        waiting[one.kind] += 1
    return [inputs[i] for i in sorted(i for _, i in sorted(places)[:count])]


def split_inputs(
    inputs: Sequence[WrittenInput], share: float, *, by_kind: bool, seed: int
) -> tuple[list[WrittenInput], list[WrittenInput]]:
    """Return the inputs to train on and those held out, both shuffled.

    Args:
        inputs: Distinct inputs.
        share: Share to hold out: of the inputs, or of the kinds; at least one, except with 0.
        by_kind: Whether all inputs of some kinds are held out.
        seed: Sampling seed; the sample depends on the texts alone.
    """
    held_out: set[int] = set()
    if share > 0 and by_kind:
        kinds = dict(enumerate(dict.fromkeys(one.kind for one in inputs)))
        chosen = {kinds[i] for i in sampled(kinds, share, seed=seed)} if len(kinds) > 1 else set()
        held_out = {i for i, one in enumerate(inputs) if one.kind in chosen}
    elif share > 0:
        held_out = sampled({i: normalised(one.text) for i, one in enumerate(inputs)}, share, seed=seed)
    order = sorted(range(len(inputs)), key=lambda i: draw(f"{seed} order", inputs[i].text, i))
    return [inputs[i] for i in order if i not in held_out], [inputs[i] for i in order if i in held_out]
