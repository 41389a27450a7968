"""The shared vocabulary of two models, whose tokenizers have to agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import TeacherError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# a text that tokenizers with equal vocabularies but other merges or normalisation split differently
PROBE = "The quick brown fox, 1234 + 5 = 1239!\n\tdéjà vu — naïve 東京 def f(x): return x  # ok"
# what else is there for a teacher with another tokenizer, and for one whose targets are stored
OTHERWISE = "add --cross-tokenizer, or learn from its completions alone with --distill-alpha 0"
OTHERWISE_STORED = "or train without a store, with --cross-tokenizer"


def shared_vocabulary(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    *,
    student_rows: int,
    teacher_rows: int,
    teacher_name: str = "the teacher",
    stored: bool = False,
) -> int:
    """Check that two tokenizers agree and return how many vocabulary rows both models share.

    Models of one family pad their embeddings differently (Qwen2.5 has 151,936 rows and 152,064); the rows
    `[0, min(student_rows, teacher_rows))` mean the same token in both. Tokens that were added for the student alone
    are not shared. The errors say what else there is for a teacher whose targets are to be `stored`, or are already.

    Raises:
        TeacherError: A token with two ids, or a text that the two split differently.
    """
    shared = min(student_rows, teacher_rows)
    otherwise = OTHERWISE_STORED if stored else OTHERWISE
    mine, theirs = student.get_vocab(), teacher.get_vocab()
    by_id = {index: token for token, index in theirs.items() if index < shared}
    for token, index in mine.items():
        other = theirs.get(token, index)
        if other != index or (index in by_id and by_id[index] != token):
            raise TeacherError(
                f"teacher_model {teacher_name!r} has another tokenizer than the student: token {token!r} is {index} "
                f"for the student, and {index} is {by_id.get(index)!r} for the teacher; choose a teacher of the "
                f"student's family, {otherwise}."
            )
    known = max(theirs.values())
    shared = min([shared, *(index for index in mine.values() if index > known)])
    both = sorted(set(mine.values()) & set(by_id))
    text = PROBE + str(student.decode(both[:512], skip_special_tokens=True))
    mine_split, their_split = (list(t(text, add_special_tokens=False)["input_ids"]) for t in (student, teacher))
    if mine_split != their_split or max(mine_split) >= shared:
        raise TeacherError(
            f"teacher_model {teacher_name!r} has the student's tokens but splits text differently; choose a teacher "
            f"with the student's tokenizer, {otherwise}."
        )
    return shared
