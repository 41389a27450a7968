"""The snippet of the model card: how to put an input into the student, written from its template and run."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from .prompts import Template, TextTemplate

# a larger model is not loaded a second time just to run the snippet
LOADED_TWICE_AT_MOST = 1_000_000_000

LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder!r})
model = AutoModelForCausalLM.from_pretrained({folder!r})
"""
TEXT = """\
prompt = {prompt}
inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
"""
CHAT = """\
messages = {prompt}
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
).to(model.device)
"""
GENERATE = """\
completion = model.generate(**inputs, max_new_tokens={new_tokens}, do_sample=False)[0, inputs["input_ids"].shape[1]:]
print(tokenizer.decode(completion, skip_special_tokens=True))
"""


def snippet(template: Template, values: dict[str, Any], *, chat: bool = False, new_tokens: int = 64) -> str:
    """Return the lines that make a prompt of the example's values and print the completion.

    Args:
        template: The student's.
        values: The fields of an example row, `input` among them.
        chat: Whether a text template renders a user's message (the data are conversations).
        new_tokens: Tokens at most.
    """
    names = dict.fromkeys(template.fields)
    lines = [f"{_variable(name)} = {str(values[name])!r}" for name in names]
    if template.is_chat or chat:
        pairs = template.messages if template.is_chat else (("user", template.messages[0][1]),)
        messages = ", ".join(f'{{"role": "{role}", "content": {_expression(text)}}}' for role, text in pairs)
        lines.append(CHAT.format(prompt=f"[{messages}]"))
    else:
        lines.append(TEXT.format(prompt=_expression(template.messages[0][1])))
    return "\n".join(lines) + GENERATE.format(new_tokens=new_tokens)


def loading(folder: Path | str) -> str:
    """Return the lines that load the model from a folder."""
    return LOAD.format(folder=str(folder))


def run_snippet(code: str, folder: Path, model: Any, tokenizer: Any) -> str:
    """Run the snippet on the saved model and return what it prints.

    A model above `LOADED_TWICE_AT_MOST` parameters is not loaded anew: the lines run on the one in memory.
    """
    names: dict[str, Any] = {"model": model, "tokenizer": tokenizer}
    if sum(p.numel() for p in model.parameters()) <= LOADED_TWICE_AT_MOST:
        code = loading(folder) + code
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<model card>", "exec"), names)
    return printed.getvalue()


def _variable(field: str) -> str:
    """Return a Python name for a field."""
    return "".join(c if c.isalnum() else "_" for c in field) if not field.isidentifier() else f"{field}_"


def _expression(text: TextTemplate) -> str:
    """Return a Python expression for a text template, its fields as variables."""
    parts = [repr(piece) if i % 2 == 0 else _variable(piece) for i, piece in enumerate(text.pieces)]
    return " + ".join(part for part in parts if part != "''")
