"""The learned part of a conversation: the text that the chat template renders after the prompt.

Whatever the template writes between the generation prompt and the content (an empty thinking block, a channel) is
learned with it, as in SFTTrainer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from ..errors import DataError, TemplateError
from .chat_template import ANOTHER, ChatTemplate, Options
from .messages import CLOSED, OPENED, REASONING, Message
from .multi_turn import MaskedSequence
from .tokenization import common_length, tokenize_after

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLOCK = re.compile(rf"\s*{OPENED}\n*(.*?)\n*{CLOSED}\n*", re.DOTALL)
THINKING = "enable_thinking"  # the keyword by which templates open an empty thinking block, or none


@dataclass(frozen=True)
class Turn:
    """The last turn of a conversation, as text.

    Attributes:
        prompt: What the model reads.
        learned: The learned text after that, with the end of the turn.
        options: Keywords with which the template was rendered.
        opening: How the prompt differs from the template's own generation prompt: empty, `enable_thinking` with the
            value that was needed, or `left_out` with the end of the generation prompt that is not in the prompt.
        body: `learned` without the end.
    """

    prompt: str
    learned: str
    options: Options
    opening: Mapping[str, object] = field(default_factory=dict)
    body: str = ""


class ChatTurns:
    """The assistant's turns of conversations, as one tokenizer's chat template renders them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer)

    @cached_property
    def mark(self) -> str:
        """The text of the token that ends a turn; empty if there is none."""
        end = self.template.end.token
        return "" if end is None else str(self.tokenizer.decode([end]))

    def last(self, messages: Sequence[Message], options: Options, *, finished: bool = True, where: str) -> Turn:
        """Return the last turn of a conversation and the prompt before it.

        If the rendered turn does not begin with the generation prompt, other values of `enable_thinking` are tried. If
        none helps, the prompt is what the two renderings have in common, as in SFTTrainer. A turn that is not
        `finished` was cut and has no end. Messages call the row `where`.

        Raises:
            TemplateError: There is no chat template, it does not take these messages, or it rewrites the messages
                before the turn.
        """
        given = [*messages[:-1], self._with_one_block(messages, options)]
        turn = self._rendered(given, options, where)
        learned, end = self._ended(turn, given, finished), self.template.end
        return replace(turn, learned=learned, body=learned.removesuffix(end.text if end.own else self.mark))

    def _rendered(self, messages: Sequence[Message], options: Options, where: str) -> Turn:
        asked = messages[:-1]
        parted: tuple[str, str] | None = None
        for how in self._tries(options):
            before, _ = self.template.render_prompt(list(asked), how)
            after = self.template.render(messages, how)
            if after.startswith(before):
                opening = {THINKING: how[THINKING]} if how.get(THINKING) != options.get(THINKING) else {}
                return self._checked(Turn(before, after[len(before) :], how, opening), messages[-1])
            parted = parted or (before, after)
        assert parted is not None
        before, after = parted
        prompt = before[: self._common(before, after)]
        if not self._is_whole(prompt, before, asked, options):
            k = max(len(prompt) - 20, 0)
            raise TemplateError(
                f"{where}: {self.template.name} renders the conversation differently once it is answered: the prompt "
                f"has "
                f"{before[k:][:80]!r}, and the answered conversation {after[k:][:80]!r} in its place; {ANOTHER}."
            )
        left_out = {"left_out": before[len(prompt) :]}
        return self._checked(Turn(prompt, after[len(prompt) :], dict(options), left_out), messages[-1])

    def before(self, messages: Sequence[Message], other: Turn, *, where: str) -> tuple[str, bool]:
        """Return the prompt after which this side reads a turn that the other side's template has written.

        What this template writes before the other's words, such as an empty thinking block, is part of the prompt. The
        second value says whether this template writes these words too.
        """
        turn = self.last(messages, other.options, where=where)
        if turn.learned == other.learned:
            return turn.prompt, True
        whole = turn.prompt + turn.body
        for words in (other.body, other.body.strip()):
            if words and whole.endswith(words):
                return whole.removesuffix(words), True
        return turn.prompt, False

    def tokenize_turns(
        self,
        messages: Sequence[Message],
        places: Sequence[int],
        options: Options,
        *,
        finished: bool = True,
        where: str,
    ) -> MaskedSequence:
        """Return the ids of a conversation of which several turns are learned.

        The ids are those that SFTTrainer learns by the marks of its training template. If a template has no marks and
        TRL does not know it, each turn is what the template adds to the conversation before it. `places` are those of
        the messages that are learned; see also `last`.

        Raises:
            DataError: A template without marks changes earlier turns once others follow.
            TemplateError: There is no chat template, or it does not take these messages.
        """
        given = [self._once_ended(m) if m["role"] == "assistant" else dict(m) for m in messages]
        if self.template.training_source is None or not self.tokenizer.is_fast:
            return self._one_by_one(given, places, options, finished=finished, where=where)
        how = {**options, "chat_template": self.template.training_source}
        ids, mask = self.template.ids_with_mask(given, how)
        for i, message in enumerate(given):
            if message["role"] == "assistant" and i not in places:
                before, after = (self.template.ids_with_mask(given[:k], how)[0] if k else [] for k in (i, i + 1))
                edges = common_length(before, ids), common_length(after, ids)
                mask[edges[0] : edges[1]] = [0] * (edges[1] - edges[0])
        for k in range(1, len(ids)):  # marks that leave out the end of a turn would teach no end
            if mask[k - 1] and ids[k] == self.template.end.token:
                mask[k] = 1
        if not finished:
            self._drop_end(ids, mask)
        return MaskedSequence.from_ids(ids, mask)

    def _drop_end(self, ids: Sequence[int], mask: list[int]) -> None:
        """Clear the mask on the end of the last turn and on white space around it."""
        for k in range(len(mask) - 1, -1, -1):
            ends = ids[k] == self.template.end.token or not str(self.tokenizer.decode([ids[k]])).strip()
            if mask[k] and not ends:
                return
            mask[k] = 0

    def _one_by_one(
        self,
        messages: Sequence[Message],
        places: Sequence[int],
        options: Options,
        *,
        finished: bool,
        where: str,
    ) -> MaskedSequence:
        """Return the ids of a conversation, each learned turn rendered with the messages before it."""
        prompt: list[int] | None = None
        rest: list[int] = []
        mask: list[int] = []
        done = ""
        for i in places:
            turn = self._rendered(messages[: i + 1], options, where)
            if not turn.prompt.startswith(done) or turn.opening:
                raise DataError(
                    f"{where}: {self.template.name} renders earlier messages differently once message {i + 1} "
                    f"follows, so that its tokens cannot be found; {ANOTHER}."
                )
            gap = list(self.tokenizer(turn.prompt[len(done) :], add_special_tokens=False)["input_ids"])
            own = self._ended(turn, messages[: i + 1], finished) if i == places[-1] else turn.learned
            own = own.rstrip() if self.template.end.own else own  # a gap begins after the end
            ids = tokenize_after(self.tokenizer, own, prompt=turn.prompt)
            if prompt is None:
                prompt, gap = gap, []
            rest, mask = [*rest, *gap, *ids], [*mask, *[0] * len(gap), *[1] * len(ids)]
            done = turn.prompt + own
        return MaskedSequence(prompt or [], rest, mask)

    def _tries(self, options: Options) -> list[dict[str, object]]:
        """Return the options to try: those given, then both values of `enable_thinking` if it is not among them."""
        tries = [dict(options)]
        if THINKING not in options and THINKING in str(self.tokenizer.chat_template):
            tries += [{**options, THINKING: value} for value in (False, True)]
        return tries

    def _once_ended(self, message: Message) -> Message:
        """Return a message without the end of a turn in its content, which the template writes."""
        content = message.get("content")
        if self.template.end.own and self.mark and isinstance(content, str) and content.rstrip().endswith(self.mark):
            content = content.rstrip().removesuffix(self.mark)
        return {**message, "content": content}

    def _with_one_block(self, messages: Sequence[Message], options: Options) -> Message:
        """Return the last message, its thinking block split off if the template would open another before it."""
        last = self._once_ended(messages[-1])
        block = BLOCK.match(last["content"] or "")
        if block is None or any(last.get(key) for key in REASONING):
            return last
        apart = {**last, "reasoning_content": block[1], "content": last["content"][block.end() :]}
        whole, split = (self.template.render([*messages[:-1], m], options) for m in (last, apart))
        return apart if 0 < split.count(OPENED) < whole.count(OPENED) and block[1] in split else last

    def _ended(self, turn: Turn, messages: Sequence[Message], finished: bool) -> str:
        """Return a turn's learned text: with an end, even if the template writes none, or without if it was cut."""
        learned, end = turn.learned, self.template.end
        if not finished:
            return learned.removesuffix(end.text)
        if end.own:
            return learned
        if end.trained:
            longer = self.template.render(messages, {**turn.options, "chat_template": self.template.training_source})
            if longer.startswith(turn.prompt + learned.rstrip()):
                return longer[len(turn.prompt) :]
        eos = str(self.tokenizer.eos_token or "")
        return learned if learned.rstrip().endswith(eos) else learned + eos

    def _is_whole(self, prompt: str, before: str, asked: Sequence[Message], options: Options) -> bool:
        """Whether a prompt, which is the beginning of `before`, holds the last user message to its end."""
        last = [str(message.get("content") or "").strip() for message in asked if message["role"] == "user"][-1:]
        if last and before.count(last[0]) == 1:
            return last[0] in prompt
        closed = self.template.render(asked, options)  # without the generation prompt
        return len(prompt) >= common_length(closed.rstrip(), before)

    def _common(self, before: str, after: str) -> int:
        """Return how many characters two renderings have in common, without a part of a token."""
        length = common_length(before, after)
        if self.tokenizer.is_fast:
            for text in (before, after):
                found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
                starts = (start for start, stop in found["offset_mapping"] if start < length < stop)
                length = min(next(starts, length), length)
        return length

    def _checked(self, turn: Turn, last: Message) -> Turn:
        """Return a turn, and refuse a template that leaves out the tools that it calls."""
        for call in last.get("tool_calls") or ():
            name = str(call.get("function", call).get("name"))
            if name not in turn.learned:
                raise TemplateError(
                    f"{self.template.name} leaves out the tools that the assistant calls ({name}); {ANOTHER}."
                )
        return turn
