"""What a model card shows of a prompt: that of a row, or one with a placeholder for each thing that a row brings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from ..errors import TemplateError
from ..prompts.messages import Message, Prompt
from ..prompts.rendering import TOOLS, render
from ..prompts.row import Row
from ..prompts.serving_template import INPUT, MARK, Frame, marked
from ..prompts.template import SYSTEM_ROLES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..prompts.template import Template

YOURS = "Your {}"  # what stands for a field
SYSTEM = "system_message"  # the field that a row's system message is
FIELD = re.compile(MARK.format("(.*?)"))
ASKED: Message = {"role": "user", "content": INPUT}


@dataclass(frozen=True)
class Example:
    """A prompt as the student reads it.

    Attributes:
        prompt: Text or chat messages, with a `MARK` for each field of the student's template.
        values: The fields by name, `input` among them.
        options: Keywords of the chat template.
        ids: The prompt's ids in training.
    """

    prompt: Prompt
    values: Mapping[str, object]
    options: Mapping[str, object]
    ids: list[int]


@dataclass(frozen=True)
class Placeholder:
    """A row's prompt with placeholders for what the row brings; earlier turns and tools are left out.

    Attributes:
        served: With the row's system message and its keywords of the chat template, which a served model has in its own
            template; None if they cannot be rendered. Code that sends a user's message alone shows neither.
        shown: Without any text of the row.
    """

    served: Example | None
    shown: Example

    @classmethod
    def of(
        cls,
        row: Row,
        template: Template,
        tokenizer: PreTrainedTokenizerBase,
        options: Mapping[str, object],
        opening: Mapping[str, object],
    ) -> Placeholder:
        """Return a row's.

        Args:
            row: The row.
            template: The student's.
            tokenizer: The student's, as it is trained with.
            options: The row's keywords of the chat template, the run's among them.
            opening: How the row's prompt differs from the generation prompt, see `Turn.opening`.
        """
        served, *others = [_rendered(frame, template, tokenizer) for frame in _frames(row, template, options, opening)]
        return cls(served, next(example for example in others if example is not None))


def _rendered(frame: Frame, template: Template, tokenizer: PreTrainedTokenizerBase) -> Example | None:
    """Return a prompt with a placeholder for each mark; None for one that only the training template takes."""
    values = {name: YOURS.format(name.replace("_", " ")) for name in (*template.fields, "input", SYSTEM)}
    try:
        ids = replace(frame, prompt=filled(frame.prompt, values)).prompt_ids(tokenizer)
    except TemplateError:
        return None
    return Example(frame.prompt, values, frame.options, ids)


def filled(prompt: Prompt, values: Mapping[str, object]) -> Prompt:
    """Return a prompt with its marks replaced by the values of their fields."""
    return filled_text(prompt, values) if isinstance(prompt, str) else filled_messages(prompt, values)


def filled_text(text: str, values: Mapping[str, object]) -> str:
    """Return a text with its marks replaced."""
    return FIELD.sub(lambda found: str(values[found[1]]), text)


def filled_messages(messages: Sequence[Message], values: Mapping[str, object]) -> list[Message]:
    """Return chat messages with the marks in their texts replaced."""
    return [{key: filled_text(v, values) if isinstance(v, str) else v for key, v in m.items()} for m in messages]


def _frames(
    row: Row, template: Template, options: Mapping[str, object], opening: Mapping[str, object]
) -> Iterator[Frame]:
    """Yield the prompt of `Placeholder.served`, then those to try for the other; the last can always be rendered."""
    if row.ids is None:
        system = [] if row.history is None else list(takewhile(lambda m: m["role"] in SYSTEM_ROLES, row.history))
        marks = [{"role": message["role"], "content": MARK.format(SYSTEM)} for message in system]
        known = {name: value for name, value in options.items() if name != TOOLS}
        plain = {name: v for name, v in known.items() if v is None or isinstance(v, (bool, int, float))}
        for said, given in ((system, known), (marks, plain)):
            history = None if row.history is None else [*said, ASKED]
            prompt = render(template, marked(Row(0, INPUT, {}, history), template))
            yield Frame(prompt, given).opened(opening)
        yield Frame([ASKED], {})
    yield Frame(INPUT, {})
    yield Frame(INPUT, {})
