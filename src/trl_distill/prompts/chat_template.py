"""A tokenizer's chat template: how it renders conversations and ends assistant turns, with one-sentence errors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .._trl import has_marks
from ..errors import TemplateError
from ..models.template_trial import TookTooLong, at_most, fault_of
from .messages import Message, Prompt

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

NOW = "strftime_now"  # the function by which a chat template writes today's date
CALL = re.compile(NOW + r"\(\s*(['\"])(.*?)\1\s*\)")
PARTS = [f"%{letter}" for letter in ("-d", "-m", *"aAbBdejmyY")]  # of the formats of dates
ANOTHER = "give another with --chat-template"
SECONDS = 30  # for one conversation, which takes some milliseconds
Options = Mapping[str, object]  # keywords of a chat template, such as `tools`


def stops_of(config: GenerationConfig | None) -> list[int]:
    """Return the ids at which a generation configuration stops: it holds one, several, or none."""
    stops = getattr(config, "eos_token_id", None)
    return [stop for stop in (stops if isinstance(stops, (list, tuple)) else [stops]) if stop is not None]


@dataclass(frozen=True)
class TurnEnd:
    """How an assistant's turn ends.

    Attributes:
        text: The text that the chat template adds after the content of the last turn.
        token: The token that ends the turn; None if there is none.
        own: Whether the chat template writes it.
        trained: Whether it is TRL's training template that does.
    """

    text: str
    token: int | None
    own: bool = False
    trained: bool = False


class ChatTemplate:
    """How one tokenizer renders conversations.

    Options of its methods are keywords of the template: `chat_template` is another template, and `strftime_now` the
    date (YYYY-MM-DD) that it writes as today's.

    Args:
        tokenizer: One with a chat template; without one it ends a turn by end-of-sequence.
        name: What to call the template in messages (default: by its tokenizer).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str = "") -> None:
        self.tokenizer = tokenizer
        self.name = name or f"the chat template of {tokenizer.name_or_path or 'the model'}"

    @property
    def source(self) -> str | None:
        """The template of conversations without tools; None if there is none."""
        templates = self.tokenizer.chat_template
        return templates.get("default") if isinstance(templates, dict) else templates

    @cached_property
    def training_source(self) -> str | None:
        """The template with marks by which SFTTrainer learns several turns: its own, or TRL's; None if TRL has none."""
        if self.source is None or has_marks(self.source):
            return self.source
        from trl import get_training_chat_template

        try:
            return get_training_chat_template(self.tokenizer)
        except (ValueError, TypeError):
            return None

    @cached_property
    def end(self) -> TurnEnd:
        """How a turn ends: by the template's token, else its training template's, else end-of-sequence.

        Raises:
            TemplateError: The template leaves out the assistant's messages.
        """
        eos = self.tokenizer.eos_token_id
        if self.tokenizer.chat_template is None:
            return TurnEnd("", eos)
        text = self._after_content(None)
        if text is None:
            raise TemplateError(f"{self.name} leaves out the assistant's messages; {ANOTHER}.")
        token = self._first_special(text)
        if token is not None:
            return TurnEnd(text, token, own=True)
        longer = self._after_content(self.training_source)
        token = None if longer is None else self._first_special(longer)
        return TurnEnd(text, eos if token is None else token, trained=token is not None)

    @property
    def end_token(self) -> int | None:
        """The token that ends a turn, or end-of-sequence if the template is one for other conversations."""
        try:
            return self.end.token
        except TemplateError:  # say one that wants a system message, or tools
            return self.tokenizer.eos_token_id

    @property
    def end_tokens(self) -> list[int]:
        """The ids that end a text or a turn."""
        ends = (self.tokenizer.eos_token_id, self.end_token)
        return list(dict.fromkeys(end for end in ends if end is not None))

    def stop_ids(self, config: GenerationConfig | None) -> list[int]:
        """Return every id that ends a completion: those of a model's generation configuration, and `end_tokens`."""
        return list(dict.fromkeys([*stops_of(config), *self.end_tokens]))

    def render(self, messages: Sequence[Message], options: Options | None = None, *, opening: bool = False) -> str:
        """Return a conversation as text, with what opens an assistant's turn if `opening` is set.

        Raises:
            TemplateError: The template is not Jinja (with its line), or does not take these messages.
        """
        return str(self._apply(messages, {**(options or {}), "tokenize": False, "add_generation_prompt": opening}))

    def render_prompt(self, prompt: Prompt, options: Options | None = None) -> tuple[str, bool]:
        """Return the text of a prompt, and whether the tokenizer adds its special tokens to it.

        Chat messages are rendered with the generation prompt.

        Raises:
            TemplateError: See `render`; there is no chat template for messages.
        """
        if isinstance(prompt, str):
            return prompt, True
        if self.tokenizer.chat_template is None:
            raise TemplateError(
                f"the tokenizer of {self.tokenizer.name_or_path or 'the model'} has no chat template for a prompt of "
                "chat messages; give --chat-template or a text template."
            )
        return self.render(prompt, options, opening=True), False  # the template writes those it wants

    def prompt_ids(self, messages: Sequence[Message], options: Options) -> list[int] | None:
        """Return the ids that a chat endpoint sends; None if the template does not take these messages."""
        try:
            return list(self._apply(messages, {**options, "add_generation_prompt": True, "return_dict": False}))
        except TemplateError:
            return None

    def ids_with_mask(self, messages: Sequence[Message], options: Options) -> tuple[list[int], list[int]]:
        """Return a conversation's ids, and a mask that is 1 on what the template marks as the assistant's."""
        how = {**options, "tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        found = self._apply(messages, how)
        return list(found["input_ids"]), list(found["assistant_masks"])

    def _apply(self, messages: Sequence[Message], how: dict[str, Any]) -> Any:
        """Call `apply_chat_template`, its errors as one sentence."""
        from jinja2 import TemplateSyntaxError

        day = how.pop(NOW, None)
        if day is not None:  # transformers hands a template no function
            template = self.tokenizer.get_chat_template(how.get("chat_template"), how.get("tools"))
            how["chat_template"] = dated(template, day)
        source = how.get("chat_template") or self.source
        fault = None if source is None else fault_of(source)
        if fault is not None:
            raise TemplateError(f"{self.name} {fault}; {ANOTHER}.")
        try:
            with at_most(SECONDS):
                return self.tokenizer.apply_chat_template([dict(message) for message in messages], **how)
        except TemplateSyntaxError as error:
            raise TemplateError(f"{self.name} is not Jinja: line {error.lineno}: {error.message}.") from error
        except TookTooLong:
            raise TemplateError(f"{self.name} does not end within {SECONDS} seconds; {ANOTHER}.") from None
        except RecursionError:
            raise TemplateError(f"{self.name} calls itself, or is nested, without end; {ANOTHER}.") from None
        except Exception as error:  # a template is a program, which may raise anything
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise TemplateError(
                f"{self.name} does not take messages of {roles}: {_reason(error)}; change the messages, or {ANOTHER}."
            ) from error

    def _after_content(self, template: str | None) -> str | None:
        """Return the text that a template (default: its own) adds after the last content; None if it omits that."""
        said = "COMPLETION"
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": said}]
        text = self.render(turn, {"chat_template": template})
        return text[text.rindex(said) + len(said) :] if said in text else None

    def _first_special(self, text: str) -> int | None:
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return next((token for token in ids if token in special), None)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def dated(template: str, day: str) -> str:
    """Return a chat template that writes a date (YYYY-MM-DD) where it would write today's."""
    then = date.fromisoformat(day)
    written = CALL.sub(lambda call: json.dumps(f"{then:{call[2]}}"), template)
    if f"{NOW}(" not in written:
        return written
    # a format that the template keeps in a variable is written by a macro of the function's name
    parts = "".join(f" | replace({json.dumps(part)}, {json.dumps(f'{then:{part}}')})" for part in PARTS)
    return f"{{%- macro {NOW}(form) -%}}{{{{- form{parts} -}}}}{{%- endmacro %}}{{{{ '' }}}}{written}"
