"""Render a row's prompt: a template alone, in a conversation, or the row's own prompt for the teacher."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import DataError
from .messages import Prompt, parsed, users_places
from .row import Row
from .template import SYSTEM_ROLES, System, Template

TOOLS, KWARGS = "tools", "chat_template_kwargs"  # columns with keywords of a chat template, as TRL names them
TEXT, MESSAGES = OWN = "teacher_prompt", "teacher_messages"  # columns with the teacher's prompt of a row


def render(template: Template, row: Row, own: Prompt | None = None) -> Prompt:
    """Return a row's prompt under a template: text, or chat messages if template or row are a chat.

    In a conversation the template renders the last user message; the turns around it stay, and the template's own
    system message replaces the conversation's. Then the template's `system` decides what is done with that. A prompt
    that the row brings (`own`, see `own_prompt`) replaces the rendered template.
    """
    return with_system(_without_system(template, row, own), template.system)


def with_system(prompt: Prompt, system: System) -> Prompt:
    """Return a prompt with the system message that its side reads; see `System`."""
    if system.keep and system.as_message:
        return prompt
    text = system.text
    if isinstance(prompt, str):
        if text is None:
            return prompt
        if system.opens_chat:
            return [{"role": "system", "content": text}, {"role": "user", "content": prompt}]
        return f"{text}\n\n{prompt}"
    if system.keep:
        text = "\n\n".join(m["content"] for m in prompt if m["role"] in SYSTEM_ROLES) or None
    others = [message for message in prompt if message["role"] not in SYSTEM_ROLES]
    if text is None:
        return others
    asked = users_places(others)
    if system.as_message or not asked:
        return [{"role": "system", "content": text}, *others]
    first = others[asked[0]]
    others[asked[0]] = {**first, "content": f"{text}\n\n{first['content']}"}
    return others


def _without_system(template: Template, row: Row, own: Prompt | None) -> Prompt:
    """Return the prompt with the system messages of row and template."""
    if isinstance(own, list):
        return own
    rendered = template.render(row.fields) if own is None else own
    history = row.history
    if history is None:
        return rendered
    at = users_places(history)[-1]
    after = history[at + 1 :]
    if isinstance(rendered, str):
        return [*history[:at], {**history[at], "content": rendered}, *after]
    leads = rendered and rendered[0]["role"] in SYSTEM_ROLES
    earlier = [m for m in history[:at] if not (leads and m["role"] in SYSTEM_ROLES)]
    return [*rendered[:1], *earlier, *rendered[1:], *after] if leads else [*earlier, *rendered, *after]


def own_prompt(values: Mapping[str, object], template: Template, *, where: str) -> Prompt | None:
    """Return the teacher's prompt that a row brings in its column `teacher_prompt` or `teacher_messages`.

    A column that the teacher's template names is a field of it alone; if the column is empty, the template renders the
    row. Messages call the row `where`.

    Raises:
        DataError: Another kind of value, or both columns at once.
    """
    text, messages = (None if name in template.fields else values.get(name, "") for name in OWN)
    if text not in (None, "") and messages not in (None, "", "[]"):
        raise DataError(f"{where} has a {TEXT!r} and {MESSAGES!r}; give one of them.")
    if text not in (None, ""):
        if not isinstance(text, str):
            raise DataError(f"{where}: {TEXT!r} is {text!r}, not text; write it as text, or leave it empty.")
        return text
    if messages in (None, "", "[]"):
        return None
    found = parsed(messages)
    if not isinstance(found, list) or not all(_is_message(message) for message in found):
        raise DataError(
            f"{where}: {MESSAGES!r} is not a list of messages; give objects with 'role' and 'content', or leave it "
            "empty."
        )
    if found[-1]["role"] == "assistant":
        raise DataError(
            f"{where}: {MESSAGES!r} ends with the assistant's message, which would be the completion; end it with a "
            f"user message."
        )
    return found


def options_of(values: Mapping[str, object], *, where: str) -> dict[str, object]:
    """Return a row's keywords of the chat template: its columns `tools` and `chat_template_kwargs`.

    Raises:
        DataError: No list of tools, or no object.
    """
    options: dict[str, object] = {}
    tools, more = values.get(TOOLS, ""), values.get(KWARGS, "")
    if tools not in ("", "[]"):
        found = parsed(tools)
        if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
            raise DataError(f"{where}: {TOOLS!r} is not a list of tools; give objects with a name and its parameters.")
        options["tools"] = found
    if more not in ("", "{}"):
        found = parsed(more)
        if not isinstance(found, dict):
            raise DataError(f"{where}: {KWARGS!r} is not an object; give names and values for the chat template.")
        options |= found
    return options


def _is_message(message: object) -> bool:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return False
    return isinstance(message.get("content"), str) or bool(message.get("tool_calls"))
