"""Rows for plain SFT: read and checked as for distillation, then in the forms that TRL's SFTTrainer reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..config.training_params import LLMTrainingParams
from ..config.validation import chat_template_options
from ..errors import DataError, ParamsError, counted, shortened
from ..prompts.chat_template import ChatTemplate
from ..prompts.messages import WEIGHT, is_learned
from ..prompts.rendering import KWARGS, TOOLS
from ..prompts.row import Row
from .file_readers import CONVERSATIONS
from .row_faults import Cells
from .row_report import RowReport
from .rows import Columns, check_conversations, read_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def plain_rows(dataset: Dataset, params: LLMTrainingParams, *, name: str) -> tuple[Dataset, RowReport]:
    """Return rows as TRL's SFTTrainer reads them: text, prompt and completion, or messages.

    Raises:
        DataError: See `read_rows`; only some rows have a completion; or a turn among those learned is not to be.
    """
    rows, report = read_rows(dataset, Columns.of(params), num_proc=params.dataset_num_proc, source=name)
    lacking = [n for n, completion in zip(rows["row"], rows["completion"], strict=True) if completion is None]
    pairs, chat = len(lacking) < len(rows), any(history is not None for history in rows["history"])
    if params.assistant_only_loss and not chat:
        check_conversations(rows, name)
    if pairs and lacking and not chat:
        raise DataError(
            f"{name}: {counted(len(lacking), 'row')} without a completion (row "
            f"{', '.join(map(str, lacking[:10]))}) where others have one; give each a completion, or remove it."
        )
    options = chat_template_options(params)
    apart = params.completion_column is not None or not {*CONVERSATIONS} & {*dataset.column_names}
    text_column = params.text_column  # the closure must not hold the parameters: they may hold a model

    def shaped(columns: Cells) -> Cells:
        row = Row.from_columns(columns)
        said = row.completion
        if chat:
            messages = row.history or [{"role": "user", "content": row.input}]
            last = {"role": "assistant", "content": said} if row.turns is None else row.turns.last
            if any(WEIGHT in message and not is_learned(message) for message in (*messages, last)):
                raise DataError(
                    f"{name}, row {row.number}, has an assistant message of weight 0, or an empty one, which TRL's "
                    "SFTTrainer would train on too; leave it out, or drop assistant_only_loss."
                )
            more = _for_chat_template(row.values, options)
            if said is not None and apart:
                return {"prompt": messages, "completion": [last], **more}
            return {"messages": messages + ([last] if said is not None else []), **more}
        return {"prompt": row.input, "completion": said} if pairs else {text_column: row.input}

    return rows.map(shaped, remove_columns=rows.column_names, load_from_cache_file=False), report


def first_row_lines(row: Cells) -> list[str]:
    """Return the lines that show a row of `plain_rows`: its text, its prompt and completion, or its messages."""
    lines = ["  first row:"]
    for name, value in sorted(row.items(), key=lambda item: item[0] == "completion"):
        if name in (TOOLS, KWARGS):
            continue
        turns = value if isinstance(value, list) else [{"role": name, "content": value}]
        for turn in turns:
            lines += [f"    | {line}" for line in f"{turn['role']}: {shortened(str(turn['content']))}".split("\n")]
    return lines


def check_marks(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ParamsError if neither a chat template nor TRL marks what the assistant says."""
    if tokenizer.chat_template is not None and ChatTemplate(tokenizer).training_source is None:
        raise ParamsError(
            "assistant_only_loss without a teacher needs a chat template that marks assistant turns, and the "
            "student's has no {% generation %}; give one by --chat-template, or drop --assistant-only-loss."
        )


def _for_chat_template(values: Mapping[str, str | int | float], options: dict[str, object]) -> dict[str, object]:
    more = {TOOLS: values[TOOLS] or None} if TOOLS in values else {}
    own = {**options, **json.loads(str(values.get(KWARGS) or "{}"))}
    return more | ({KWARGS: own} if own or KWARGS in values else {})
