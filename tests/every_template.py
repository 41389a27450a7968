"""What is learned of conversations by each chat template that TRL ships, beside what SFTTrainer learns of them."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trl
from conftest import make_tokenizer
from datasets import Dataset, Features, Json, List
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from trl_distill.data.preparation import Recipe
from trl_distill.data.recipe import PromptSide
from trl_distill.data.rows import Columns
from trl_distill.errors import UsageError
from trl_distill.prompts.template import parse_template

IGNORE = -100
FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training"))
# tokens of the templates: one of these is an end that a model can write
SPECIAL = re.compile(
    r"<[|｜][^<>'\"\s{}]+[|｜]>|<(?:start|end)_of_turn>|<\|?turn\|?>|<\|?channel\|?>|<end_of_utterance>|\[/?INST\]"
    r"|</?think>|</?tool_call>|\[gMASK\]|<sop>"
)

USER = {"role": "user", "content": "what is two and two"}
FOUR = {"role": "assistant", "content": "four it is"}
THOUGHT = {"role": "assistant", "content": "<think>\nhmm\n</think>\n\nfour it is"}
FUNCTION = {"name": "add", "description": "Add.", "parameters": {"type": "object", "properties": {}, "required": []}}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "add", "content": "4"}
EARLIER = [USER, {"role": "assistant", "content": "no"}, {"role": "user", "content": "are you sure"}]

ONE_TURN: dict[str, list[dict[str, Any]]] = {
    "one turn": [USER, FOUR],
    "thinking in the content": [USER, THOUGHT],
    "reasoning_content": [USER, {**FOUR, "reasoning_content": "hmm"}],
    "a later turn": [*EARLIER, FOUR],
    "a call of a tool": [USER, CALLS],
    "a tool's result": [USER, CALLS, RESULT, FOUR],
}
ALL_TURNS = {"two turns": [*EARLIER, FOUR], "all turns, tools": [USER, CALLS, RESULT, FOUR]}
FORMS = [*ONE_TURN, *ALL_TURNS]


@dataclass
class Learned:
    """What one side makes of a conversation.

    Attributes:
        prompt: Token ids before the first that is learned.
        ids: Those that are learned.
        opening: Ours; see `assistant_turn.Turn`.
        refused: Why it is not learned, else empty.
    """

    prompt: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    opening: dict[str, Any] = field(default_factory=dict)
    refused: str = ""


def tokenizer_of(name: str) -> Any:
    """Return a tokenizer with one of TRL's chat templates, whose special tokens it has."""
    tokenizer = make_tokenizer()
    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer.add_tokens(sorted(set(SPECIAL.findall(template)) - set(tokenizer.get_vocab())))
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})  # a template may write it
    tokenizer.chat_template, tokenizer.name_or_path = template, name
    return tokenizer


def row_of(form: str) -> dict[str, Any]:
    """Return a form of conversation as a row of data."""
    messages = {**ONE_TURN, **ALL_TURNS}[form]
    return {"messages": messages, **({"tools": TOOLS} if "tool" in form else {})}


def ours(tokenizer: Any, form: str) -> Learned:
    """Return what a student learns of a form, its teacher reading the same."""
    template = parse_template("{input}", name="template")
    side, columns = PromptSide(tokenizer, template, None), Columns(assistant_turns=form in ALL_TURNS)
    recipe = Recipe(side, side, columns=columns, write=lambda prompts: [], completions="data")
    try:
        rows, preflight = recipe.prepare(Dataset.from_list([row_of(form)]))
    except UsageError as error:
        return Learned(refused=str(error))
    row = rows[0]
    assert row["teacher_prompt"] == row["student_prompt"]
    mask = row.get("completion_mask") or [1] * len(row["completion"])
    ids = [token for token, bit in zip(row["completion"], mask, strict=True) if bit]
    return Learned(row["student_prompt"], ids, preflight.opening)


def trls(tokenizer: Any, form: str, options: dict[str, Any], row: dict[str, Any]) -> Learned:
    """Return what SFTTrainer learns of a row of a form under keywords of the chat template."""
    if form in ONE_TURN:
        *asked, last = row.pop("messages")
        row |= {"prompt": asked, "completion": [last]}
    if options:
        row["chat_template_kwargs"] = options
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    with tempfile.TemporaryDirectory() as folder:
        how = {"use_cpu": True, "bf16": False, "report_to": "none", "max_length": None, "disable_tqdm": True}
        config = SFTConfig(folder, **how, assistant_only_loss=form in ALL_TURNS)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
        # as columns of JSON, for a message to get no key that it lacks; transformers 5.17 does not take its None away
        columns = {name: List(Json()) for name in row if name in ("messages", "prompt", "completion")}
        data = Dataset.from_list([row])
        data = Dataset.from_list([row], features=Features({**data.features, **columns}))
        try:
            trainer = SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer)
        except ValueError as error:
            return Learned(refused=str(error))
    ids, labels = trainer.train_dataset[0]["input_ids"], trainer.train_dataset[0]["labels"]
    first = next(k for k, label in enumerate(labels) if label != IGNORE)
    return Learned(ids[:first], [label for label in labels if label != IGNORE])
