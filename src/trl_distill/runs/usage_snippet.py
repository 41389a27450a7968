"""The snippet of the model card: how to put an input into the student, with the ids that it was trained on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.preflight import Example
from ..models.own_chat_template import ORIGINAL
from ..prompts.chat_template import ChatTemplate
from ..prompts.serving_template import INPUT, MARK, added_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIELD = re.compile(MARK.format("(.*?)"))
LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder!r})
model = AutoModelForCausalLM.from_pretrained({folder!r})
"""
TEXT = """\
prompt = {prompt}
inputs = tokenizer(prompt, {more}return_tensors="pt").to(model.device)
"""
SHORTER = """\
inputs = {{name: values[:, :-{count}] for name, values in inputs.items()}}  # without the tokens that close a text
"""
CHAT = """\
messages = {messages}
inputs = tokenizer.apply_chat_template(
    messages, {more}add_generation_prompt=True, return_dict=True, return_tensors="pt"
).to(model.device)
"""
TOKENS = """\
import torch

ids = torch.tensor([{ids}], device=model.device)  # the first row's; no text gives this tokenizer these
inputs = {{"input_ids": ids, "attention_mask": torch.ones_like(ids)}}
"""
GENERATE = """\
completion = model.generate(**inputs, max_new_tokens={new_tokens}, do_sample=False)[0, inputs["input_ids"].shape[1]:]
print(tokenizer.decode(completion, skip_special_tokens=True))
"""
NEW_TOKENS = 64


def snippet(example: Example, tokenizer: PreTrainedTokenizerBase, *, new_tokens: int = NEW_TOKENS) -> str:
    """Return the lines that make a prompt of the example's values and print the completion.

    The first way of several that gives the ids of training is written; the last is these ids themselves.

    Args:
        example: The row.
        tokenizer: As it is saved.
        new_tokens: Tokens at most.
    """
    lines = next(lines for lines, ids in _ways(example, tokenizer) if ids() == example.ids)
    used = [name for name in example.values if re.search(rf"\b{_variable(name)}\b", lines)]
    variables = [f"{_variable(name)} = {str(example.values[name])!r}\n" for name in used]
    return "".join(variables) + lines + GENERATE.format(new_tokens=new_tokens)


def loading(folder: Path | str) -> str:
    """Return the lines that load the model from a folder."""
    return LOAD.format(folder=str(folder))


def printed(example: Example, model: Any, tokenizer: PreTrainedTokenizerBase, *, new_tokens: int = NEW_TOKENS) -> str:
    """Return what the snippet prints for a model in memory that can generate by itself."""
    import torch

    ids = torch.tensor([example.ids], device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    written = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)[0, ids.shape[1] :]
    return str(tokenizer.decode(written, skip_special_tokens=True))


def _ways(example: Example, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, Callable[[], list[int] | None]]]:
    """Return ways to make the prompt, the simplest first: the lines of each, and a function for its ids."""
    asked = [{"role": "user", "content": INPUT}]
    if tokenizer.chat_template is not None and all(name.isidentifier() for name in example.options):
        yield _chat(asked, {}, example, tokenizer)
        if not isinstance(example.prompt, str):
            yield _chat(example.prompt, example.options, example, tokenizer)
            if isinstance(tokenizer.chat_template, dict):
                yield _chat(example.prompt, {**example.options, "chat_template": ORIGINAL}, example, tokenizer)
    if isinstance(example.prompt, str):
        yield from _text(example, tokenizer)
    yield TOKENS.format(ids=example.ids), lambda: example.ids


def _chat(
    prompt: Any, options: Mapping[str, Any], example: Example, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, Callable[[], list[int] | None]]:
    """Return the way by a chat template."""
    more = "".join(f"{name}={value!r}, " for name, value in options.items())
    return CHAT.format(messages=_expression(prompt), more=more), lambda: ChatTemplate(tokenizer).prompt_ids(
        _filled(prompt, example.values), options
    )


def _text(example: Example, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, Callable[[], list[int] | None]]]:
    """Return the ways by the prompt's text."""
    assert isinstance(example.prompt, str)
    text = _filled(example.prompt, example.values)
    whole = list(tokenizer(text)["input_ids"])
    closed = len(whole) - len(example.ids)
    front, _ = added_tokens(tokenizer, text)
    opened = _expression(front + example.prompt)
    lines = TEXT.format(prompt=_expression(example.prompt), more="")
    yield lines, lambda: whole
    bare = TEXT.format(prompt=opened, more="add_special_tokens=False, ")
    yield bare, lambda: list(tokenizer(front + text, add_special_tokens=False)["input_ids"])
    if closed > 0:
        yield lines + SHORTER.format(count=closed), lambda: whole[:-closed]


def _filled(prompt: Any, values: Mapping[str, Any]) -> Any:
    """Return a prompt with its fields' values."""
    if isinstance(prompt, str):
        return FIELD.sub(lambda found: str(values[found[1]]), prompt)
    return [{key: _filled(v, values) if isinstance(v, str) else v for key, v in m.items()} for m in prompt]


def _variable(field: str) -> str:
    """Return a Python name for a field that no keyword has, and none of the snippet's own names."""
    return f"{field}_"


def _expression(value: Any) -> str:
    """Return a Python expression of plain data, fields in its texts as variables."""
    if isinstance(value, str):
        parts = [repr(piece) if i % 2 == 0 else _variable(piece) for i, piece in enumerate(FIELD.split(value))]
        return " + ".join(part for part in parts if part != "''") or "''"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_expression(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list):
        items = [_expression(item) for item in value]
        return f"[{items[0]}]" if len(items) == 1 else "[\n    " + ",\n    ".join(items) + ",\n]" if items else "[]"
    return repr(value)
