"""The teacher capabilities that each feature needs, as one table, checked before weights are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..errors import ParamsError, TeacherError, UsageError
from .base import Capabilities, Teacher


class Requirement(NamedTuple):
    """A capability that a feature needs, and the error message if it is missing.

    Attributes:
        feature: Its name in this table.
        needs: Whether a teacher's capabilities are enough.
        sentence: The error message; {name} is the teacher's name, {setting} the setting that needs the feature.
        error: The class of the error.
    """

    feature: str
    needs: Callable[[Capabilities], bool]
    sentence: str
    error: type[UsageError] = TeacherError


UNSEEN, GAPS, SHARDED = "completions written while training", "completions with gaps", "sharded weights"
TARGET_STORE, CHAT_TEMPLATE, CROSS_TOKENIZER = "teacher_store", "teacher_chat_template", "cross_tokenizer"
LIST, MIXTURE, OWN_WRITER, WRITING = "a list", "a mixture", "generate_teacher_outputs", "generate_with_teacher"
FRESH = "{setting} cannot be used with teacher_model {name!r}, "
INSTEAD = "; give a local model of the student's tokenizer."
STORED_GAPS = "a teacher_store keeps targets of completions in one piece"
REQUIREMENTS = (
    Requirement(
        UNSEEN,
        lambda can: can.scores_unseen or can.writes or can.reads == "text",
        f"{FRESH}a store, which has targets only for completions that are known before training{INSTEAD}",
    ),
    Requirement(
        UNSEEN,
        lambda can: can.same_tokenizer or can.reads == "text",
        f"{FRESH}of another tokenizer, to which fresh completions are not matched{INSTEAD}",
    ),
    Requirement(UNSEEN, lambda can: can.single, f"{FRESH}a list of teachers{INSTEAD}"),
    Requirement(UNSEEN, lambda can: can.reads == "ids", f"{FRESH}one that is asked for text before training{INSTEAD}"),
    Requirement(GAPS, lambda can: can.scores_gaps or can.writes, STORED_GAPS),
    Requirement(
        GAPS,
        lambda can: can.scores_gaps or can.reads == "text",
        "cross_tokenizer compares completions in one piece",
    ),
    Requirement(GAPS, lambda can: can.scores_gaps, "a server gives log-probabilities of completions in one piece"),
    Requirement(
        SHARDED,
        lambda can: can.single,
        "several teachers, rows to retain included, cannot be used if weights are sharded (FSDP, ZeRO-3): all "
        "processes would have to ask the same ones in each batch; use DDP, or one teacher.",
    ),
    Requirement(
        SHARDED,
        lambda can: can.shardable,
        "teacher_model {name!r} cannot be used if weights are sharded (FSDP, ZeRO-3); give the model's own name "
        "for a teacher that is a copy, which is sharded too, or train with DDP or ZeRO-2.",
    ),
    Requirement(
        TARGET_STORE,
        lambda can: can.reads == "ids",
        "teacher_store keeps a teacher's probabilities, but {name!r} gives text only; drop --teacher-store.",
        ParamsError,
    ),
    Requirement(
        CHAT_TEMPLATE,
        lambda can: can.renders,
        "teacher_chat_template is {setting!r}, but teacher_model {name!r} is sent messages and renders them itself; "
        "drop --teacher-chat-template.",
        ParamsError,
    ),
    Requirement(
        CROSS_TOKENIZER,
        lambda can: can.dense and can.writes and not can.of_student,
        "cross_tokenizer compares a student with a local causal model that has weights of its own, which teacher_model "
        "{name!r} is not; give a folder or a name of the Hub, or drop --cross-tokenizer.",
    ),
    Requirement(
        LIST,
        lambda can: can.writes,
        "{setting}: a store of targets cannot be one of several teachers; give the model that it came from.",
    ),
    Requirement(
        MIXTURE,
        lambda can: can.reads == "ids",
        "{setting}: {name!r} gives only text, which cannot be mixed; write combine: completions, or leave it out.",
    ),
    Requirement(
        OWN_WRITER,
        lambda can: can.same_tokenizer or can.reads == "text",
        "cross_tokenizer cannot be used with a generate_teacher_outputs of your own: it generates the teacher's "
        "tokens; remove the method, and the teacher generates before training.",
        ParamsError,
    ),
    Requirement(
        OWN_WRITER,
        lambda can: can.single,
        "{setting} makes several teachers, but generate_teacher_outputs generates with one.",
        ParamsError,
    ),
    Requirement(
        WRITING,
        lambda can: can.writes,
        "teacher_model {name!r} is a store of targets, which cannot generate; give a model.",
    ),
)


def unmet(feature: str, teacher: Teacher) -> Requirement | None:
    """Return the first requirement of a feature that a teacher does not meet."""
    can = teacher.capabilities
    return next((one for one in REQUIREMENTS if one.feature == feature and not one.needs(can)), None)


def require(feature: str, teacher: Teacher, *, setting: str = "") -> None:
    """Raise the error of a feature's first requirement that a teacher, one or several as one, does not meet."""
    found = unmet(feature, teacher)
    if found is not None:
        raise found.error(found.sentence.format(name=teacher.name, setting=setting))
