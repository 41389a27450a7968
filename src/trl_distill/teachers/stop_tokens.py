"""The student's stop tokens: those that end its training completions, and its teacher's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import GenerationConfig, PreTrainedTokenizerBase

from ..prompts.chat_template import ChatTemplate, stops_of
from .base import Teacher, single_teachers
from .local.cross_tokenizer import CrossTokenizerTeacher

ENDING = 4  # tokens at the end of a completion among which its end is: templates write white space behind it


def add_stop_tokens(
    generation: GenerationConfig,
    completions: Iterable[Sequence[int]],
    *,
    teacher: Teacher,
    tokenizer: PreTrainedTokenizerBase,
    all_ends: bool = False,
) -> None:
    """Add the tokens that end the learned completions, or that the teacher stops at, to a student's stop tokens.

    Args:
        generation: The student's generation configuration, whose own stop tokens stay in front.
        completions: Token ids; one that was cut ends in no stop token and adds none.
        teacher: The teacher that scored them.
        tokenizer: The student's.
        all_ends: Whether the student learns all of the teacher's ends, whatever the completions end in: from its
            distribution, or because it writes while training.
    """
    theirs = _ends_of(teacher)
    ends = {*ChatTemplate(tokenizer).end_tokens, *theirs}
    learned = {token for ids in completions for token in ids[-ENDING:]} & ends
    taught = sorted(learned | {*(theirs if all_ends else ())})
    stops = list(dict.fromkeys([*stops_of(generation), *taught]))
    generation.eos_token_id = stops if len(stops) > 1 else stops[0] if stops else None


def _ends_of(teacher: Teacher) -> list[int]:
    """Return the ids of the student's vocabulary that end what a teacher writes."""
    if isinstance(teacher, CrossTokenizerTeacher):
        return teacher.student_stop_ids
    return [
        end
        for one in single_teachers(teacher)
        for end in one.stop_ids
        if one.vocabulary is None or end < one.vocabulary
    ]
