"""ollama's Modelfile: the student's prompt around a user's message, and every end that it learned."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ...prompts.serving_template import INPUT
from ...prompts.tokenization import tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .student import TrainedStudent

MESSAGE = "{{ .Prompt }}"


def modelfile(file: str, student: TrainedStudent) -> str:
    """Return a Modelfile for prompts of one turn, without a system message.

    Args:
        file: Name of the GGUF file beside it.
        student: The student.
    """
    lines = [
        f"# ollama create {student.name} -f Modelfile && ollama run {student.name}",
        f"FROM ./{file}",
        f'TEMPLATE """{go_template(student.tokenizer)}"""',
    ]
    ends = [str(student.tokenizer.decode([stop])) for stop in student.stops]
    lines += [f"PARAMETER stop {json.dumps(end, ensure_ascii=False)}" for end in ends]
    if student.is_greedy:  # as transformers generates
        lines.append("PARAMETER temperature 0")
    return "\n".join(lines) + "\n"


def go_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return Go's template of what the tokenizer's chat template makes of a user's message alone.

    A token that llama.cpp puts in front of every text by itself is left out.
    """
    text = INPUT
    if tokenizer.chat_template is not None:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": INPUT}], add_generation_prompt=True, tokenize=False
        )
        assert isinstance(rendered, str)
        text = rendered
    begin = tokenizer.bos_token
    if begin and text.startswith(begin) and tokenize_prompt(tokenizer, "a")[:1] == [tokenizer.bos_token_id]:
        text = text.removeprefix(begin)
    return MESSAGE.join(_literal(part) for part in text.split(INPUT))


def _literal(text: str) -> str:
    """Return text as Go's template writes it, in which braces begin an action and three quotes end a Modelfile's."""
    if "{{" not in text and '"""' not in text and not text.endswith('"'):
        return text
    return f"{{{{ {json.dumps(text, ensure_ascii=False).replace(chr(34) * 3, chr(34) * 2 + chr(92) + chr(34))} }}}}"
