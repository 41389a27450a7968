"""How an assistant's turn ends: by the chat template's token, its training template's, or end-of-sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._trl import has_marks
from ..errors import TemplateError
from .chat_rendering import own_source, rendered

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


def stop_ids(config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return every id that ends a completion.

    Args:
        config: A model's generation configuration.
        tokenizer: Its tokenizer; with a chat template, the token after a turn ends a completion too.
    """
    configured = getattr(config, "eos_token_id", None)
    ids = list(configured) if isinstance(configured, (list, tuple)) else [configured]
    return list(dict.fromkeys(i for i in (*ids, *ends_of(tokenizer)) if i is not None))


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


def training_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the chat template with marks by which SFTTrainer learns several turns: the tokenizer's own, or TRL's.

    None if the tokenizer's has no marks and TRL has none for it.
    """
    template = own_source(tokenizer)
    if template is None:
        return None
    if has_marks(template):
        return template
    from trl import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer)
    except (ValueError, TypeError):
        return None


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
