"""Parse a server's response: the text, whether it is complete, its reasoning, and why it may be unusable.

Servers of the same protocol give many reasons to finish. Only those of `CUT` mean that a completion stopped at a limit;
any other reason, a missing one included, means that the model ended it. `FAILED` and `FILTERED` are neither.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from ...models.generation import EMPTY, Completion
from ...prompts.messages import CLOSED, OPENED, REASONING
from ..completions.stop_strings import cut_text
from ..completions.store import JsonObject
from .answer_values import checked_count, checked_text
from .request_pool import Answer

CUT = {  # OpenAI, vLLM, TGI, Ollama; Anthropic, Gemini; Mistral; watsonx
    *("length", "max_tokens", "max_length", "max_new_tokens", "max_output_tokens", "max_completion_tokens"),
    *("model_length", "context_length", "model_context_window_exceeded", "time_limit"),
}
FILTERED = {  # OpenAI, Azure; Bedrock; Gemini; Anthropic; Zhipu; Cohere
    *("content_filter", "content_filtered", "guardrail_intervened", "safety", "recitation", "prohibited_content"),
    *("blocklist", "spii", "refusal", "sensitive", "error_toxic"),
}
FAILED = {  # OpenRouter, watsonx; SGLang, vLLM; DeepSeek; Zhipu
    *("error", "abort", "aborted", "cancelled", "insufficient_system_resource", "network_error"),
}
TEXTS = ("text", "output_text", "input_text")  # kinds of parts; others are reasoning, refusals, images
BLOCK = re.compile(rf"\s*(?:{OPENED})?(.*?){CLOSED}(.*)", re.DOTALL)  # the chat template may have opened it


def read_answer(content: JsonObject, *, chat: bool) -> Answer:
    """Read the body of a response of `/chat/completions`, or of `/completions` if it is no chat.

    Raises:
        RetryableError: A value in it that cannot be kept, see `answer_values`.
        KeyError, IndexError, ValueError, TypeError, AttributeError: It has another form.
    """
    choice, used = content["choices"][0], content.get("usage") or {}
    details = used.get("completion_tokens_details") or {}
    prompt_tokens, tokens = (checked_count(used.get(name), name) for name in ("prompt_tokens", "completion_tokens"))
    hidden = checked_count(details.get("reasoning_tokens"), "reasoning_tokens")
    message = choice["message"] if chat else {"content": choice["text"]}
    reason = reason_of(choice)
    text, thought = _text_and_reasoning(message.get("content"))
    if chat:
        thought = thought or next((found for found in map(message.get, REASONING) if found), "")
        thought = thought if isinstance(thought, str) else "".join(_text_and_reasoning(thought))
        text, thought = (text, thought) if thought else _split(text)
        text = text.lstrip("\n") if thought else text  # the newlines that close the reasoning
    text, thought = checked_text(text, "its text"), checked_text(thought, "its reasoning")
    unusable = _unusable(message, text, bool(thought or hidden), reason)
    return Answer(Completion((), reason not in CUT, text, thought, unusable), prompt_tokens, tokens)


def reason_of(choice: JsonObject) -> str:
    """Return why a choice ended, in lower case; empty if it does not say."""
    return str(choice.get("finish_reason") or "").lower()


def _text_and_reasoning(content: object) -> tuple[str, str]:
    """Return the text and the reasoning of a message's content: a text, nothing, or a list of parts."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else "", ""
    text, thought = [], []
    for part in content:
        piece = part if isinstance(part, str) else part.get("text")
        if isinstance(piece, str) and (isinstance(part, str) or part.get("type", "text") in TEXTS):
            text.append(piece)
        elif not isinstance(part, str):  # Mistral's thinking is a list of parts itself
            inner = next((part[name] for name in ("thinking", "reasoning", "text") if part.get(name)), "")
            thought.append(inner if isinstance(inner, str) else _text_and_reasoning(inner)[0])
    return "".join(text), "".join(thought)


def _split(text: str) -> tuple[str, str]:
    """Return a text without the think block that it begins with, and what is in the block."""
    block = BLOCK.fullmatch(text) if CLOSED in text else None  # without it, a long run of spaces takes forever
    if block is not None and OPENED not in block[1]:
        return block[2], block[1].strip()
    opened = text.lstrip().startswith(OPENED)
    return ("", text.strip().removeprefix(OPENED).strip()) if opened else (text, "")


def _unusable(message: JsonObject, text: str, reasons: bool, reason: str) -> str:
    """Return why an answer is unusable, or an empty text."""
    if reason in FILTERED:
        return filtered(reason)
    if text.strip():
        return ""
    if message.get("refusal"):
        return "the teacher refused to answer"
    if message.get("tool_calls") or message.get("function_call"):
        return "the teacher called a tool instead of answering"
    if reasons and reason in CUT:
        return "the teacher was still reasoning when its answer was cut; raise --distill-max-teacher-length"
    if reasons:
        return "the teacher answered with reasoning only; have its server switch reasoning off, or correct its parser"
    return EMPTY


def filtered(reason: str) -> str:
    return f"the server filtered the teacher's answer ({reason})"


def failure_of(content: object) -> object:
    """Return the error in the body of a response; None if there is none.

    Gemini wraps the body in a list, vLLM has the error at its top.
    """
    if isinstance(content, list):
        content = next((one for one in content if isinstance(one, dict) and one.get("error")), None)
    if not isinstance(content, dict):
        return None
    choices = content.get("choices")
    if content.get("error") and not choices:
        return content["error"]
    if content.get("object") == "error":
        return content
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    reason = reason_of(choice)
    failed = {"message": f"the answer ended with finish_reason {reason!r}"} if reason in FAILED else None
    return choice.get("error") or failed


def cut_at_stop_string(answer: Answer, stop: Sequence[str]) -> Answer:
    """Return an answer up to the first stop string in it, finished there; as it is if there is none.

    Log-probabilities stay for the tokens of the text that is left. A server may have ended the answer at some of the
    stop strings, at all, or at none.
    """
    whole = answer.completion.text or ""
    text, found = cut_text(whole, stop)
    if not found or answer.completion.unusable:
        return answer
    logprobs = answer.logprobs
    if logprobs:
        kept, over = len(logprobs["tokens"]), len(whole.encode()) - len(text.encode())
        while kept and over > 0:
            kept -= 1
            over -= len(logprobs["tokens"][kept] or "")
        logprobs = {name: values[:kept] for name, values in logprobs.items()}
    cut = replace(answer.completion, text=text, finished=True, unusable="" if text.strip() else EMPTY)
    return replace(answer, completion=cut, logprobs=logprobs)
