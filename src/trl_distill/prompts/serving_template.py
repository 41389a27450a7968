"""The chat template that is saved with a student, so that it is served with the trained prompt.

A user's message alone is rendered as the student read it in training; all else is left to the model's own template,
which is kept under the name `original`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING

from ..errors import TemplateError
from ..models.own_chat_template import HEAD, ORIGINAL
from .chat_template import NOW, ChatTemplate, Options
from .messages import Prompt
from .rendering import TOOLS, render
from .row import Row
from .template import SYSTEM_ROLES
from .tokenization import prompt_ids, tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .template import Template

MARK = "\ue0f0{}\ue0f1"  # where a field goes: in no text, and of no meaning to a chat template
INPUT = MARK.format("input")

# `served_prompt.text` is the message, if the conversation is one and perhaps its answer
PLAIN = """
{%- set served_prompt = namespace(text=none, given=none) -%}
{%- if messages and not tools and not documents and messages[0]['role'] == 'user' and (messages | length == 1 or \
(messages | length == 2 and messages[1]['role'] == 'assistant')) -%}
{%- set served_prompt.given = messages[0]['content'] -%}
{%- if served_prompt.given is string -%}{%- set served_prompt.text = served_prompt.given -%}
{%- elif served_prompt.given and served_prompt.given is iterable and served_prompt.given is not mapping and \
served_prompt.given | rejectattr('type', 'equalto', 'text') | list | length == 0 -%}
{%- set served_prompt.text = served_prompt.given | map(attribute='text') | join -%}
{%- endif -%}
{%- endif -%}
"""
# a tag that ends a line swallows the newline after it, and no white space of the model's own template
WRITES = "{%%- if served_prompt.text is not none and %s -%%}{{- %s -}}{%%- else %%}\n%s{{ '' }}{%% endif %%}"
REPLACES = (
    "{%%- if served_prompt.text is not none -%%}{%%- set messages = [%s] + messages[1:] -%%}{%%- endif -%%}"
    "{%%- set served_prompt.given = none %%}\n%s"
)
# the tag before the template swallows a newline that it begins with, hence the empty expression
WITHOUT = (
    "{%% set trained_prompt %%}{{ '' }}%s{%% endset %%}{%%- if add_generation_prompt and trained_prompt.endswith(%s) "
    "-%%}{{- trained_prompt[:-%d] -}}{%%- else -%%}{{- trained_prompt -}}{%%- endif -%%}"
)
DEFAULT = "{%%- if %s is not defined -%%}{%%- set %s = %s -%%}{%%- endif -%%}"
REFUSES = "{{- raise_exception('%s') -}}"
ALONE = (
    "this model was trained on one user message and has no chat template for conversations: send that message alone, "
    "without a system message, earlier turns or tools"
)
PROBES = (
    "What is 2 + 2?",
    "a",
    "  Two spaces, {braces}, {{ x }}, {% y %}, {# z #} and 'quotes' \"of\" both kinds \\n.\n\n",
    "\tdéjà vu — naïve 東京 <b>x</b>\r\n- item",
)


@dataclass(frozen=True)
class Frame:
    """The student's prompt around a user message.

    Attributes:
        prompt: Its prompt, `INPUT` standing for the message: text, or chat messages.
        options: Keywords of the chat template.
        left_out: The end of the template's generation prompt that is not in the prompt.
    """

    prompt: Prompt
    options: Options
    left_out: str = ""

    @cached_property
    def key(self) -> str:
        """A short text that differs for different frames."""
        return hashlib.sha256(json.dumps([self.prompt, self.options], default=str).encode()).hexdigest()[:16]

    def prompt_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        text, special = ChatTemplate(tokenizer).render_prompt(self.prompt, self.options)
        return prompt_ids(tokenizer, text.removesuffix(self.left_out), special)

    def opened(self, opening: Mapping[str, object]) -> Frame:
        """Return the frame of a row whose prompt differs from the generation prompt, see `Turn.opening`."""
        more = {name: value for name, value in opening.items() if name != "left_out"}
        return replace(self, options={**self.options, **more}, left_out=str(opening.get("left_out", "")))


@dataclass(frozen=True)
class Serving:
    """How a student is served.

    Attributes:
        source: The chat template to save; None keeps the model's own.
        line: A line for the user about it.
    """

    source: str | None
    line: str

    def put(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Set the chat templates to save on a tokenizer, replacing its own."""
        if self.source is not None:
            named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
            own = ChatTemplate(tokenizer).source or ""
            tokenizer.chat_template = {**named, "default": self.source, ORIGINAL: own}


def serving_of(
    tokenizer: PreTrainedTokenizerBase, template: Template, frames: Sequence[Frame | None]
) -> Serving | None:
    """Return how a student is served; None if its own chat template already renders the trained prompt.

    `frames` are those of the training rows, each once, and None for rows with tools.
    """
    own = ChatTemplate(tokenizer).source
    named = [frame for frame in frames if frame is not None]
    field = next((name for name in template.fields if name != "input"), None)
    if field is not None:
        reason = f"the student's template has the field {{{field}}}, which a message does not bring"
    elif len(named) != 1:
        if template.is_identity and template.system.keep and own is not None:
            return None  # it renders all that such rows bring
        reason = "the rows bring tools" if not named else "what surrounds the user's message differs between rows"
    else:
        source = serving_template(named[0], tokenizer)
        if source is not None and source == own:
            return None
        if source is not None:
            rest = "stay the model's own" if own is not None else "are refused"
            return Serving(
                source,
                f"saved with the student: a user's message renders this prompt; several turns and tools {rest}",
            )
        reason = "no chat template gives the tokenizer's ids of training"
    kept = "none is saved" if own is None else "stays the model's own"
    return Serving(None, f"{kept}: {reason}")


def frame_of(
    row: Row, template: Template, options: Options, opening: Mapping[str, object] | None = None
) -> Frame | None:
    """Return the student's prompt around a single user message; None if the row has tools.

    Leading system messages of the row are kept, and the template's fields other than `input` are left as marks.
    `opening` is how the prompt differs from the chat template's generation prompt.
    """
    if TOOLS in options:
        return None
    leading = None
    if row.history is not None:
        leading = json.dumps(list(takewhile(lambda m: m["role"] in SYSTEM_ROLES, row.history)))
    frame = _frame(template, leading, json.dumps(options, default=str))
    return frame.opened(opening) if opening else frame


@lru_cache(maxsize=64)
def _frame(template: Template, leading: str | None, options: str) -> Frame:
    """Return the frame of all rows whose conversations begin with the same system messages, made once for them."""
    history = None if leading is None else [*json.loads(leading), {"role": "user", "content": INPUT}]
    return Frame(render(template, marked(Row(0, INPUT, {}, history), template)), json.loads(options))


def marked(row: Row, template: Template) -> Row:
    """Return a row whose prompt has a `MARK` for each field of a template."""
    marks = {name: MARK.format(name) for name in template.fields}
    return replace(row, input=INPUT, values={**row.values, **marks})


def serving_template(frame: Frame, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the Jinja source of a chat template that gives a user's message the ids of training.

    It is the tokenizer's own if that does so already, and None if no template does, as with a tokenizer that splits the
    same text differently.
    """
    template = ChatTemplate(tokenizer)
    expected = [replace(frame, prompt=_filled(frame.prompt, probe)).prompt_ids(tokenizer) for probe in PROBES]
    for source in _candidates(frame, template):
        options = {"chat_template": source, NOW: frame.options.get(NOW)}  # it is served with the day's own date
        served = [template.prompt_ids([{"role": "user", "content": probe}], options) for probe in PROBES]
        if served == expected:
            return source
    return None


def _filled(prompt: Prompt, message: str) -> Prompt:
    if isinstance(prompt, str):
        return prompt.replace(INPUT, message)
    return [{**m, "content": m["content"].replace(INPUT, message)} for m in prompt]


def _candidates(frame: Frame, template: ChatTemplate) -> Iterator[str]:
    """Yield the templates to try, the likeliest first."""
    if isinstance(frame.prompt, str):
        yield from _of_text(frame.prompt, template)
        return
    assert template.source is not None
    own = _without_left_out(template.source, frame.left_out)
    yield own
    yield _of_messages(frame, own)
    try:
        text, _ = template.render_prompt(frame.prompt, frame.options)
    except TemplateError:
        return
    text, defaults = text.removesuffix(frame.left_out), _defaults(frame.options)
    for message in ("served_prompt.text", "(served_prompt.text | trim)"):
        expression = _written(text, message)
        yield _source(defaults + WRITES % ("messages | length == 1", expression, own.removesuffix("\n")))


def _of_text(prompt: str, template: ChatTemplate) -> Iterator[str]:
    """Yield templates that write a text with the special tokens that the tokenizer adds to one."""
    own, tokenizer = template.source, template.tokenizer
    front, back = added_tokens(tokenizer, prompt.replace(INPUT, PROBES[0]))
    spaced = not prompt.startswith(" ")
    opened = prompt.startswith(INPUT)
    # SentencePiece's space in front of a text is not written after a token
    space = "('' if served_prompt.text[:1] == ' ' else ' ')" if opened else "' '"
    rest = REFUSES % ALONE if own is None else own.removesuffix("\n")
    fits = "(messages | length == 1 or (messages[1]['content'] is string and not messages[1]['tool_calls']))"
    end = f"('' if messages | length == 1 else messages[1]['content'] ~ {_literal(tokenizer.eos_token)})"
    for gap in ("", space) if spaced else ("",):
        parts = [_literal(front) if front else "", gap, _written(prompt, "served_prompt.text"), _literal(back), end]
        yield _source(WRITES % (fits, " ~ ".join(part for part in parts if part not in ("", '""')), rest))


def _of_messages(frame: Frame, own: str) -> str:
    """Return a template that replaces the message by the student's messages and continues with the model's own."""
    messages = ", ".join(_literal(message) for message in frame.prompt)
    return _source(_defaults(frame.options) + REPLACES % (messages, own))


def _source(body: str) -> str:
    return HEAD + PLAIN + body


def _defaults(options: Options) -> str:
    """Return Jinja statements that set training's options if a request omits them."""
    return "".join(DEFAULT % (name, name, _literal(value)) for name, value in options.items() if name != NOW)


def _without_left_out(own: str, left_out: str) -> str:
    return own if not left_out else WITHOUT % (own.removesuffix("\n"), _literal(left_out), len(left_out))


def added_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, str]:
    """Return the special tokens that the tokenizer adds before a text prompt, and those after it."""
    plain, ids = list(tokenizer(text, add_special_tokens=False)["input_ids"]), tokenize_prompt(tokenizer, text)
    for k in range(len(ids) - len(plain) + 1):
        if ids[k : k + len(plain)] == plain:
            around = ids[:k], ids[k + len(plain) :]
            front, back = ("".join(tokenizer.convert_ids_to_tokens(part)) for part in around)
            return front, back
    return "", ""


def _written(text: str, message: str) -> str:
    """Return a Jinja expression of a text in which `INPUT` stands for a message."""
    parts = [_literal(part) for part in text.split(INPUT)]
    joined = f" ~ {message} ~ ".join(parts)
    return joined.removeprefix('"" ~ ').removesuffix(' ~ ""')


def _literal(value: object) -> str:
    """Return a value as Jinja writes it; texts are JSON's, whose escapes Jinja reads too, and may hold `INPUT`."""
    if isinstance(value, str):
        return _written(value, "served_prompt.text") if INPUT in value else json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(str(k))}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value)
