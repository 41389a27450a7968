"""Convert messages from the formats of datasets to that of chat templates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

ROLES = {  # ShareGPT's names beside the usual ones
    **{role: role for role in ("system", "user", "assistant", "developer", "tool")},
    **{"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"},
    **{"function": "tool", "observation": "tool", "tool_response": "tool"},
    **{"function_call": "assistant", "tool_call": "assistant"},
}
CALLS = ("function_call", "tool_call")  # roles, and a key of OpenAI's older form, whose content is a call as JSON
REASONING = ("reasoning_content", "reasoning", "thinking")  # DeepSeek and others; vLLM, Ollama, OpenRouter; gpt-oss
OPENED, CLOSED = "<think>", "</think>"  # around reasoning in a text
WEIGHT = "weight"
MOST_CHARACTERS = 10_000_000  # of a text: no model reads more, and tokenizing it takes gigabytes
UNKNOWN_ROLE = "the unknown role"
KEYS = ("role", "from", "content", "value")
Message = dict[str, Any]  # `role`, `content`, and what else a chat template reads
Prompt = str | list[Message]
KINDS = {bool: "true or false", int: "a number", float: "a number", dict: "an object", list: "a list", bytes: "bytes"}
_TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class Unusable(Exception):
    """A row that cannot be used: `bad` counts against the limit, an empty one does not."""

    def __init__(self, reason: str, *, bad: bool = True) -> None:
        super().__init__(reason)
        self.bad = bad


def text_of(value: object, what: str) -> str:
    """Return a text; the error describes the value found instead, for example in "'text'".

    Raises:
        Unusable: Anything but text.
    """
    if isinstance(value, str):
        if len(value) > MOST_CHARACTERS:
            raise Unusable(f"{what} has {len(value):,} characters, more than {MOST_CHARACTERS:,}")
        return value
    if value is None:
        raise Unusable(f"{what} is missing")
    kind = next((word for kind, word in KINDS.items() if isinstance(value, kind)), f"a {type(value).__name__}")
    raise Unusable(f"{what} is {kind}, not text")


def messages_of(value: Sequence[object], column: str) -> list[Message]:
    """Return messages with `role`, `content` and their other keys.

    ShareGPT's names are translated. A tool call that is a message of its own becomes `tool_calls` of the assistant's
    message before it, or of a new one. An assistant message without text, calls and reasoning has the weight 0.

    Raises:
        Unusable: Anything but messages, or a role, a weight or a call that is not known.
    """
    messages: list[Message] = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping):
            raise Unusable(f"{column!r} is a list, not text and not messages")
        try:
            one = _message(message, f"message {number}")
        except Unusable as problem:
            raise Unusable(f"{column!r}: {problem}") from None
        if one.pop("joins", False) and messages and messages[-1]["role"] == "assistant":
            before = messages.pop()
            one = {**before, **one, "content": before["content"]}
            one["tool_calls"] = [*before.get("tool_calls", ()), *one["tool_calls"]]
        messages.append(one)
    for message in messages:
        if message["role"] != "assistant":
            message.pop(WEIGHT, None)
        elif not says_something(message):
            message[WEIGHT] = 0
    return messages


def users_places(messages: Sequence[Message]) -> list[int]:
    """Return the places of the user's messages in a conversation."""
    return [i for i, message in enumerate(messages) if message["role"] == "user"]


def says_something(message: Message) -> bool:
    """Whether an assistant message has text, calls of tools or reasoning."""
    texts = (message.get(key) for key in ("content", *REASONING))
    return bool(message.get("tool_calls")) or any(isinstance(t, str) and t.strip() for t in texts)


def is_learned(message: Message) -> bool:
    """Whether a message of `messages_of` may be learned: the assistant's, with a weight other than 0."""
    return message["role"] == "assistant" and message.get(WEIGHT, 1) != 0


def without_weight(message: Message) -> Message:
    """Return a message without its weight, which no chat template reads."""
    return {key: value for key, value in message.items() if key != WEIGHT}


def parsed(value: object) -> object:
    """Return the value of a text that is JSON; anything else as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):  # the latter is nested without end
        return value


def with_reasoning(text: str, reasoning: str) -> str:
    """Return a completion with the reasoning before it, in a thinking block."""
    return f"{OPENED}\n{reasoning}\n{CLOSED}\n\n{text}"


def _message(message: Mapping[str, Any], where: str) -> Message:
    """Return one message; `joins` marks a tool call, which belongs to the assistant's message before it."""
    rest = {key: value for key, value in message.items() if value is not None and key not in KEYS}
    named = message.get("role") or message.get("from")
    content = message["content"] if message.get("content") is not None else message.get("value")
    if not isinstance(named, str) or named not in ROLES:
        raise Unusable(f"{where} has {UNKNOWN_ROLE} {named!r}")
    role = ROLES[named]
    weight = rest.get(WEIGHT, 1)
    if weight not in (0, 1):
        raise Unusable(f"{where} has the weight {weight!r}; known are 0 and 1")
    if named in CALLS:
        return {"role": role, "content": "", **rest, "tool_calls": _calls(content, where), "joins": True}
    older = rest.pop(CALLS[0], None) if role == "assistant" else None
    if older is not None and "tool_calls" not in rest:
        rest["tool_calls"] = _calls(older, where)
    if content is None and role == "assistant":
        content = ""  # a call of a tool, reasoning alone, or nothing
    return {"role": role, "content": _content(content, where), **rest}


def _content(value: object, where: str) -> str:
    """Return a message's text, joined if it is a list of parts of text."""
    if isinstance(value, list) and value and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
        value = "".join(text_of(part.get("text"), f"a part of {where}") for part in value)
    return text_of(value, f"the content of {where}")


def _calls(value: object, where: str) -> list[dict[str, object]]:
    """Return the calls that a message writes as JSON: an object, a list of them, or some in `<tool_call>` tags."""
    texts = (_TAGGED.findall(value) or [value]) if isinstance(value, str) else [value]
    found: list[object] = []
    for text in texts:
        read = parsed(text)
        found += read if isinstance(read, list) else [read]
    return [_call(call, where) for call in found]


def _call(call: object, where: str) -> dict[str, object]:
    """Return one call in the form of chat templates."""
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(name, str):
        raise Unusable(f"{where} calls a tool, but is not JSON with 'name' and 'arguments'")
    arguments = inner.get("arguments", inner.get("parameters"))
    read = parsed(arguments)
    return {"type": "function", "function": {"name": name, "arguments": {} if read is None else read}}
