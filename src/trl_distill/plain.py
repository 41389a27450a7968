"""Rows for plain SFT: read and checked as for distillation, then in the forms that TRL's SFTTrainer takes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .conversation import KWARGS, TOOLS
from .errors import DataError, ParamsError
from .params import LLMTrainingParams
from .rows import RowReport, read_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def plain_rows(dataset: Dataset, params: LLMTrainingParams, *, name: str) -> tuple[Dataset, RowReport]:
    """Return rows as TRL's SFTTrainer takes them: text, prompt and completion, or messages.

    Args:
        dataset: Rows of any form that `read_rows` takes.
        params: Which columns hold what, and how many bad rows are allowed.
        name: What to call the dataset in messages.

    Raises:
        DataError: See `read_rows`; or only some rows have a completion.
    """
    rows, report = read_rows(
        dataset,
        text_column=params.text_column,
        prompt_text_column=params.prompt_text_column,
        completion_column=params.completion_column,
        max_bad_rows=params.max_bad_rows,
        assistant_turns=params.assistant_only_loss,
        source=name,
    )
    lacking = [n for n, completion in zip(rows["row"], rows["completion"], strict=True) if completion is None]
    pairs, chat = len(lacking) < len(rows), any(history is not None for history in rows["history"])
    if params.assistant_only_loss and not chat:
        raise DataError(
            f"{name}, row {rows[0]['row']}, is text, and assistant_only_loss learns what the assistant says in "
            "conversations; give messages, or drop assistant_only_loss."
        )
    if pairs and lacking and not chat:
        raise DataError(
            f"{name}: {len(lacking)} rows have no completion (row {', '.join(map(str, lacking[:10]))}) where others "
            "have one; complete them, or take them out."
        )
    text_column = params.text_column  # the closure must not hold the parameters: they may hold a model

    def shaped(row: dict[str, Any]) -> dict[str, Any]:
        said = row["completion"]
        if chat:
            messages = json.loads(row["history"] or json.dumps([{"role": "user", "content": row["input"]}]))
            last = {"role": "assistant", "content": said} if row["turns"] is None else json.loads(row["turns"])["last"]
            return {"messages": messages + ([last] if said is not None else [])} | _for_chat_template(row)
        return {"prompt": row["input"], "completion": said} if pairs else {text_column: row["input"]}

    return rows.map(shaped, remove_columns=rows.column_names, load_from_cache_file=False), report


def check_marks(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a chat template marks what the assistant says, or is one of those that TRL has marks for.

    Args:
        tokenizer: The student's, with its chat template.

    Raises:
        ParamsError: Neither.
    """
    from trl import get_training_chat_template
    from trl.chat_template_utils import has_generation_markers

    if tokenizer.chat_template is None or has_generation_markers(tokenizer.chat_template):
        return  # that there is none is said of the rows
    try:
        get_training_chat_template(tokenizer)
    except ValueError:
        raise ParamsError(
            "assistant_only_loss without a teacher needs a chat template that marks what the assistant says, and the "
            "student's has no {% generation %}; give one by --chat-template, or drop --assistant-only-loss."
        ) from None


def _for_chat_template(row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that TRL hands to a chat template, where the data has them."""
    values = json.loads(row["values"])
    more = {TOOLS: values[TOOLS] or None} if TOOLS in values else {}
    return more | ({KWARGS: json.loads(values[KWARGS] or "{}")} if KWARGS in values else {})
