"""One completion under two prompts: token ids, lengths, and the vocabulary both models share.

A completion is tokenized once and appended to each prompt's tokens, so that both sequences end in the same
ids and position k of one is position k of the other, whatever the prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from ._trl import has_marks
from .errors import DataError, TeacherError, TemplateError
from .text_ids import special_texts, text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# text that tells apart tokenizers with equal vocabularies but other merges or normalisation
PROBE = "The quick brown fox, 1234 + 5 = 1239!\n\tdéjà vu — naïve 東京 def f(x): return x  # ok"

NOW = "strftime_now"  # the function by which a chat template writes today's date
CALL = re.compile(NOW + r"\(\s*(['\"])(.*?)\1\s*\)")
TAIL = 64  # characters at the end of a prompt that its last tokens stand in
OTHERWISE = "add --cross-tokenizer, or learn from its completions alone with --distill-alpha 0"  # for other tokenizers


def tokenize_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Mapping[str, Any]],
    options: Mapping[str, Any] | None = None,
) -> list[int]:
    """Return the ids of a prompt, ready for a completion to be appended.

    Args:
        tokenizer: The tokenizer of the model that reads the prompt.
        prompt: Text, tokenized with the special tokens the tokenizer adds in front (a closing end-of-sequence
            is taken off again); or chat messages, rendered by the chat template with the generation prompt.
        options: What the chat template is handed besides the messages, such as `tools`.

    Raises:
        TemplateError: Chat messages, but the tokenizer has no chat template, or one that does not take them.
    """
    return prompt_ids(tokenizer, *rendered_prompt(tokenizer, prompt, options))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> list[int]:
    """Return the ids of a prompt's text; see `tokenize_prompt`.

    Args:
        tokenizer: The tokenizer of the model that reads the prompt.
        text: The prompt.
        special: Whether the tokenizer adds its special tokens; a beginning of sequence that the text has is not
            written twice.
    """
    ids = text_ids(tokenizer, text, special=special)
    if not special:
        return ids
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos] and text.startswith(str(tokenizer.bos_token)):
        ids = ids[1:]
    return without_closing(tokenizer, ids, text)


def rendered_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Mapping[str, Any]],
    options: Mapping[str, Any] | None = None,
) -> tuple[str, bool]:
    """Return the text of a prompt, and whether the tokenizer adds its special tokens to it; see `tokenize_prompt`.

    Raises:
        TemplateError: See `tokenize_prompt`.
    """
    if isinstance(prompt, str):
        return prompt, True
    if tokenizer.chat_template is None:
        raise TemplateError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no chat template for a prompt of chat "
            "messages; give --chat-template or a text template."
        )
    return rendered(tokenizer, prompt, opening=True, options=options), False  # the template writes those it wants


def without_closing(tokenizer: PreTrainedTokenizerBase, ids: list[int], prompt: str) -> list[int]:
    """Return a text prompt's ids without the end-of-sequence tokens that the tokenizer closes any text with."""
    while ids and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(str(tokenizer.eos_token)):
        if ids[-1] == tokenizer.bos_token_id and len(ids) == 1:
            break  # GPT-2's bos is its eos; as the only token it opens the sequence
        ids.pop()
    return ids


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    opening: bool = False,
    options: Mapping[str, Any] | None = None,
    name: str = "",
) -> str:
    """Return a conversation as the tokenizer's chat template writes it.

    Args:
        tokenizer: One with a chat template.
        messages: The conversation.
        opening: Whether to add what opens an assistant's turn.
        options: What the template is handed besides the messages; `chat_template` is another template, and
            `strftime_now` the date (YYYY-MM-DD) that it writes as today's.
        name: What to call the template in messages (default: by its tokenizer).

    Raises:
        TemplateError: It is not Jinja (with its line), or does not take these messages.
    """
    how = {**(options or {}), "tokenize": False, "add_generation_prompt": opening}
    return str(_applied(tokenizer, messages, how, name))


def rendered_with_marks(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> tuple[list[int], list[int]]:
    """Return a conversation's ids, and a mask that is 1 on what the chat template marks as the assistant's.

    Args:
        tokenizer: One with a chat template.
        messages: The conversation.
        options: As in `rendered`.

    Raises:
        TemplateError: See `rendered`.
    """
    how = {**options, "tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    found = _applied(tokenizer, messages, how, "")
    return list(found["input_ids"]), list(found["assistant_masks"])


def _applied(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], how: Mapping[str, Any], name: str
) -> Any:
    """Call `apply_chat_template`, its errors as one sentence."""
    from jinja2 import TemplateError as JinjaError
    from jinja2 import TemplateSyntaxError

    name = name or f"the chat template of {tokenizer.name_or_path or 'the model'}"
    how = dict(how)
    day = how.pop(NOW, None)
    if day is not None:  # transformers hands a template no function
        how["chat_template"] = dated(how.get("chat_template") or tokenizer.chat_template, day)
    try:
        return tokenizer.apply_chat_template([dict(message) for message in messages], **how)
    except TemplateSyntaxError as error:
        raise TemplateError(f"{name} is not Jinja: line {error.lineno}: {error.message}.") from error
    except (JinjaError, TypeError, KeyError, ValueError) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise TemplateError(
            f"{name} does not take messages of {roles}: {' '.join(str(error).split()).rstrip('.')}; change the "
            "messages, or give another with --chat-template."
        ) from error


def dated(template: Any, day: str) -> str:
    """Return a chat template that writes a date (YYYY-MM-DD) where it would write today's."""
    source = template.get("default", "") if isinstance(template, Mapping) else template
    return CALL.sub(lambda call: json.dumps(f"{date.fromisoformat(day):{call[2]}}"), str(source))


def tokenize_completion(
    tokenizer: PreTrainedTokenizerBase,
    completion: str,
    *,
    chat: bool = False,
    finished: bool = True,
    behind: str | None = None,
) -> list[int]:
    """Return the ids of a completion, the token that ends it included; one that the text ends in is not written twice.

    Args:
        tokenizer: The student's tokenizer (the teacher's agrees, see `shared_vocabulary`).
        completion: The text.
        chat: Whether it is an assistant's turn: it then ends in the token that the chat template puts after
            a turn, which need not be the end-of-sequence token.
        finished: Whether it ends there; one that was cut gets no token that ends it.
        behind: The prompt's text; None is no prompt.
    """
    ids = tokenize_behind(tokenizer, completion, prompt=behind)
    end = turn_end(tokenizer) if chat else tokenizer.eos_token_id
    if finished and end is not None and ids[-1:] != [end] and not _has_end(tokenizer, completion):
        ids.append(end)
    return ids


def _has_end(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether a text ends in a token that ends a sequence or a turn, white space behind it left out."""
    text = text.rstrip()
    if not text.endswith(special_texts(tokenizer)):
        return False
    ends = {tokenizer.eos_token_id, stop_of_turn(tokenizer)} - {None}
    return text.endswith(tuple(str(tokenizer.decode([end])) for end in ends))


def with_reasoning(text: str, reasoning: str) -> str:
    """Return a completion with the reasoning before it, in a thinking block."""
    return f"<think>\n{reasoning}\n</think>\n\n{text}"


def tokenize_behind(tokenizer: PreTrainedTokenizerBase, text: str, *, prompt: str | None) -> list[int]:
    """Return the ids of a text as it stands behind a prompt; no special tokens are added.

    SentencePiece writes a space in front of any text, which does not stand behind the prompt. A token that holds the
    end of the prompt and the beginning of the text is split at the text, since the prompt is served as it is.

    Args:
        tokenizer: Of the model that reads both.
        text: What follows the prompt.
        prompt: The prompt's text, of which the end is looked at; None is no prompt.
    """
    for before in (_tail(tokenizer, prompt), "\n") if prompt and text else ():
        start, both = (text_ids(tokenizer, t) for t in (before, before + text))
        if both[: len(start)] == start:
            return both[len(start) :]
    return text_ids(tokenizer, text)


def _tail(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """Return the end of a prompt, from its last special token or its last line on: no token reaches back further."""
    tail = prompt[-TAIL:]
    places = [tail.rfind(token) for token in special_texts(tokenizer)]
    return tail[max([*places, tail.rstrip("\n").rfind("\n"), 0]) :]


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how many items (characters, token ids) two sequences begin with in common."""
    different = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(different, min(len(one), len(other)))


@dataclass(frozen=True)
class TurnEnd:
    """How an assistant's turn ends.

    Attributes:
        text: What the chat template writes behind the content of the last turn.
        token: The token that ends the turn; None if there is none.
        own: Whether the chat template writes it.
        trained: Whether it is TRL's training template that does.
    """

    text: str
    token: int | None
    own: bool = False
    trained: bool = False


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> TurnEnd:
    """Return how a turn ends: by the chat template's token, else by its training template's, else by end-of-sequence.

    Raises:
        TemplateError: The template leaves out what the assistant says.
    """
    if tokenizer.chat_template is None:
        return TurnEnd("", tokenizer.eos_token_id)
    text = _behind_content(tokenizer, None)
    if text is None:
        raise TemplateError(
            f"the chat template of {tokenizer.name_or_path or 'the model'} leaves out what the assistant says; give "
            "another with --chat-template."
        )
    token = _first_special(tokenizer, text)
    if token is not None:
        return TurnEnd(text, token, own=True)
    longer = _behind_content(tokenizer, training_template(tokenizer))
    token = None if longer is None else _first_special(tokenizer, longer)
    return TurnEnd(text, tokenizer.eos_token_id if token is None else token, trained=token is not None)


def _behind_content(tokenizer: PreTrainedTokenizerBase, template: str | None) -> str | None:
    """Return what a chat template (default: the tokenizer's) writes behind the last content; None if it has none."""
    said = "COMPLETION"
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": said}]
    text = rendered(tokenizer, turn, options={"chat_template": template})
    return text[text.rindex(said) + len(said) :] if said in text else None


def _first_special(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """Return the first special or added token of a text."""
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return next((token for token in ids if token in special), None)


def training_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the chat template with marks by which SFTTrainer learns several turns: the tokenizer's own, or TRL's.

    None if the tokenizer's has no marks and TRL has none for it.
    """
    template = tokenizer.chat_template
    if template is None:
        return None
    if has_marks(template):
        return str(template)
    from trl import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer)
    except (ValueError, TypeError):
        return None


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that ends an assistant's turn; see `end_of_turn`.

    Raises:
        TemplateError: The template leaves out what the assistant says.
    """
    return end_of_turn(tokenizer).token


def stop_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return `turn_end`, or end-of-sequence where the chat template is one for other conversations."""
    try:
        return turn_end(tokenizer)
    except TemplateError:  # say one that wants a system message, or tools
        return tokenizer.eos_token_id


def ends_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that a tokenizer ends a text or an assistant's turn with."""
    ends = (tokenizer.eos_token_id, stop_of_turn(tokenizer))
    return list(dict.fromkeys(end for end in ends if end is not None))


class Limit(int):
    """Tokens that a sequence may have.

    Args:
        tokens: How many.
        whose: What sets the limit, in messages.
        remedy: What to do about it, if something can be done.
    """

    whose: str
    remedy: str

    def __new__(cls, tokens: int, whose: str, remedy: str = "") -> Limit:
        """Make the number with its source."""
        limit = super().__new__(cls, tokens)
        limit.whose, limit.remedy = whose, remedy
        return limit

    def __getnewargs__(self) -> tuple[int, str, str]:  # type: ignore[override]
        """Say how a copy is made, in another process too."""
        return int(self), self.whose, self.remedy


@dataclass(frozen=True)
class Fitted:
    """The three pieces of a row as they fit both models.

    Attributes:
        student_prompt: Ids the student reads before the completion.
        teacher_prompt: Ids the teacher reads before it.
        completion: The shared ids.
        prompt_cut: Tokens cut from the start of a prompt, both sides together.
        completion_cut: Tokens cut from the end of the completion.
    """

    student_prompt: list[int]
    teacher_prompt: list[int]
    completion: list[int]
    prompt_cut: int = 0
    completion_cut: int = 0


def fit(
    student_prompt: list[int],
    teacher_prompt: list[int],
    completion: list[int],
    *,
    student_limit: int | None,
    teacher_limit: int | None,
    overflow: str = "error",
    where: str = "a row",
) -> Fitted:
    """Fit prompts and completion into both models' limits, each prompt by its own model's.

    Args:
        student_prompt: Token ids.
        teacher_prompt: Token ids.
        completion: Token ids, at least one.
        student_limit: Tokens the student's sequence may have; None is no limit.
        teacher_limit: Tokens the teacher's sequence may have; None is no limit.
        overflow: "error", or "left" to cut a prompt's start so that the completion fits.
        where: The row's name in messages.

    Raises:
        DataError: A prompt that leaves no room for a completion token, under `overflow="error"`.
    """
    room, cut, prompts = len(completion), 0, []
    sides = (("student", student_prompt, student_limit), ("teacher", teacher_prompt, teacher_limit))
    for side, prompt, limit in sides:
        if limit is None:
            prompts.append(prompt)
            continue
        keep = len(prompt)
        if overflow == "left":
            keep = min(keep, max(limit - len(completion), 1))
        elif keep >= limit:
            whose, remedy = (limit.whose, limit.remedy) if isinstance(limit, Limit) else ("the limit", "")
            raise DataError(
                f"{where}: the {side}'s prompt has {keep} tokens, which leaves no room for a completion: {whose} is "
                f"{limit}; shorten the template or the input, {f'{remedy}, ' if remedy else ''}or cut the prompt's "
                "start with --prompt-overflow left."
            )
        prompts.append(prompt[len(prompt) - keep :])
        cut += len(prompt) - keep
        room = min(room, limit - keep)
    return Fitted(prompts[0], prompts[1], completion[:room], cut, len(completion) - room)


def check_ids(ids: Sequence[int], rows: int | None, *, what: str, whose: str, where: str) -> None:
    """Refuse token ids that a vocabulary does not have: a model would fail on them, or read a row that means nothing.

    Args:
        ids: Token ids.
        rows: Rows of the vocabulary; None is not known.
        what: What the ids are, in messages.
        whose: Who has the vocabulary, with a verb, in messages.
        where: The row's name in messages.

    Raises:
        DataError: An id outside of it.
    """
    highest = max(ids, default=-1)
    if rows is not None and highest >= rows:
        raise DataError(
            f"{where}: {what} holds token {highest}, and {whose} the tokens 0 to {rows - 1}; leave it out of the data, "
            "or choose models that have it."
        )


def skipped_tokens(student_prompt: Sequence[int], teacher_prompt: Sequence[int]) -> int:
    """Return how many completion tokens have no token before them to be predicted from: 1 under an empty prompt."""
    return int(not student_prompt or not teacher_prompt)


def shared_vocabulary(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    *,
    student_rows: int,
    teacher_rows: int,
    teacher_name: str = "the teacher",
) -> int:
    """Check that two tokenizers agree and return how many vocabulary rows both models share.

    Models of one family pad their embeddings differently (Qwen2.5 has 151,936 rows and 152,064); the rows
    `[0, min(student_rows, teacher_rows))` mean the same token in both. Tokens that were added for the student alone
    are not shared.

    Raises:
        TeacherError: A token with two ids, or a text that the two split differently.
    """
    shared = min(student_rows, teacher_rows)
    mine, theirs = student.get_vocab(), teacher.get_vocab()
    by_id = {index: token for token, index in theirs.items() if index < shared}
    for token, index in mine.items():
        other = theirs.get(token, index)
        if other != index or (index in by_id and by_id[index] != token):
            raise TeacherError(
                f"teacher_model {teacher_name!r} has another tokenizer than the student: token {token!r} is {index} "
                f"for the student, and {index} is {by_id.get(index)!r} for the teacher; choose a teacher of the "
                f"student's family, {OTHERWISE}."
            )
    known = max(theirs.values())
    shared = min([shared, *(index for index in mine.values() if index > known)])
    both = sorted(set(mine.values()) & set(by_id))
    text = PROBE + str(student.decode(both[:512], skip_special_tokens=True))
    mine_split, their_split = (list(t(text, add_special_tokens=False)["input_ids"]) for t in (student, teacher))
    if mine_split != their_split or max(mine_split) >= shared:
        raise TeacherError(
            f"teacher_model {teacher_name!r} has the student's tokens but splits text differently; choose a teacher "
            f"with the student's tokenizer, {OTHERWISE}."
        )
    return shared
