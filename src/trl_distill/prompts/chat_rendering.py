"""Conversations as a tokenizer's chat template writes them, its errors as one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from ..errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOW = "strftime_now"  # the function by which a chat template writes today's date
CALL = re.compile(NOW + r"\(\s*(['\"])(.*?)\1\s*\)")
PARTS = [f"%{letter}" for letter in ("-d", "-m", *"aAbBdejmyY")]  # of the formats of dates


def rendered_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Mapping[str, Any]],
    options: Mapping[str, Any] | None = None,
) -> tuple[str, bool]:
    """Return the text of a prompt, and whether the tokenizer adds its special tokens to it.

    Args:
        tokenizer: The tokenizer of the model that reads the prompt.
        prompt: Text, or chat messages, which are rendered with the generation prompt.
        options: As in `rendered`.

    Raises:
        TemplateError: See `tokenization.tokenize_prompt`.
    """
    if isinstance(prompt, str):
        return prompt, True
    if tokenizer.chat_template is None:
        raise TemplateError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no chat template for a prompt of chat "
            "messages; give --chat-template or a text template."
        )
    return rendered(tokenizer, prompt, opening=True, options=options), False  # the template writes those it wants


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
        how["chat_template"] = dated(tokenizer.get_chat_template(how.get("chat_template"), how.get("tools")), day)
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


def dated(template: str, day: str) -> str:
    """Return a chat template that writes a date (YYYY-MM-DD) where it would write today's."""
    then = date.fromisoformat(day)
    written = CALL.sub(lambda call: json.dumps(f"{then:{call[2]}}"), template)
    if f"{NOW}(" not in written:
        return written
    # a format that the template keeps in a variable is written by a macro of the function's name
    parts = "".join(f" | replace({json.dumps(part)}, {json.dumps(f'{then:{part}}')})" for part in PARTS)
    return f"{{%- macro {NOW}(form) -%}}{{{{- form{parts} -}}}}{{%- endmacro %}}{{{{ '' }}}}{written}"


def own_source(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the chat template that a tokenizer uses for conversations without tools; None if it has none."""
    if isinstance(tokenizer.chat_template, dict):
        return tokenizer.chat_template.get("default")
    return tokenizer.chat_template
