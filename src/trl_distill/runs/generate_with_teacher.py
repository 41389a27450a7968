"""`generate_with_teacher`: a teacher's completions for queries, as training rows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..config.fields import check_value
from ..config.setting_names import in_python, settings_named_as
from ..config.training_params import FIELDS
from ..data.loading import read_rows
from ..data.memory import KNOWN_TYPES, as_dataset, is_frame
from ..data.rows import COLUMNS, INPUT, INPUT_COLUMN, Columns, rows_of
from ..errors import DataError
from ..models.generation import Completion, GenerationSettings
from ..prompts.messages import with_reasoning
from ..prompts.rendering import own_prompt, render
from ..prompts.row import Row
from ..prompts.template import parse_template
from ..teachers.base import Teacher
from ..teachers.completions.engines.selection import check_engine
from ..teachers.completions.store import CompletionStore
from ..teachers.remote.request_pool import RemoteSettings
from .library_output import without_library_bars
from .writing_teacher import writing_teacher

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# what `generate_with_teacher` calls a parameter of a run
NAMES = {
    "distill_max_teacher_length": "max_new_tokens",
    "teacher_model": "model",
    **{f"teacher_{name}": name for name in ("revision", "dtype", "quantization", "device_map", "top_p", "do_sample")},
    "teacher_engine": "engine",
}


@without_library_bars()
@settings_named_as(in_python(FIELDS, NAMES))
def generate_with_teacher(
    model: str | PreTrainedModel | Teacher,
    template: Any,
    queries: Sequence[str | Mapping[str, Any]] | Dataset,
    *,
    text_column: str = "text",
    max_new_tokens: int = 512,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 42,
    batch_size: int = 16,
    stop: str | Sequence[str] = (),
    engine: str = "auto",
    store: str | os.PathLike[str] | CompletionStore | None = None,
    progress: bool = True,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    quantization: str | None = None,
    device_map: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
    remote: RemoteSettings | None = None,
) -> list[dict[str, Any]]:
    """Generate one completion by a teacher for each query, in the order given.

    Example:
        >>> rows = generate_with_teacher("t5-large", "Summarize: {input}", ["A long text."])  # doctest: +SKIP
        >>> json.dump(rows, open("summaries.json", "w"))  # doctest: +SKIP

    A run with such rows as its `data_path` needs no other teacher. Rows of several teachers can be joined.

    Args:
        model: A folder, a Hub name, "embedded", `openai:MODEL`, a server's URL with `#MODEL`, a loaded model, or a
            teacher; a causal model or an encoder-decoder.
        template: The prompt that it reads: text with `{input}` and other columns, `@file`, or chat messages.
        queries: Texts, dicts with a text column, a pandas DataFrame, or a dataset of rows.
        text_column: Column with the query, if rows are given.
        max_new_tokens: Maximum number of tokens of a completion.
        do_sample: Sample instead of taking the likeliest token.
        temperature: Sampling temperature.
        top_p: Nucleus probability of sampling.
        seed: Seed of sampling.
        batch_size: Prompts per batch.
        stop: One text, or several, that end a completion: what a base model continues with after its answer.
        engine: What a local model generates with: "vllm", "transformers", or "auto", which is vLLM on a CUDA device if
            it is installed and there are many queries.
        store: JSON-lines file for completions as they arrive, so that the same call resumes after an interruption;
            None keeps them in memory.
        progress: Whether to show a progress bar.
        tokenizer: The tokenizer of a loaded model.
        revision: Revision of a Hub model.
        dtype: "auto" (as saved), "float32", "bfloat16" or "float16".
        quantization: "int4" or "int8" by bitsandbytes, else None.
        device_map: As in transformers; None puts the model on `device`.
        trust_remote_code: Allow a model that brings its own code.
        device: Where the model goes without a device map (default: this machine's accelerator).
        remote: Settings of requests to a server.

    Returns:
        A row for each query: its own columns, `text` (or `messages`, for a conversation), `completion`, `teacher` (the
        name given) and `finished`, false if the completion was cut.

    Raises:
        TemplateError: A template that does not parse, or names a column that is not there.
        DataError: A query that is no text or empty, or a prompt that is longer than the model reads.
        TeacherError: See `load_teacher`; a store of targets, which cannot generate.
        ProjectError: Another process adds to the store.
        ParamsError: An unknown engine, or an empty stop text.
    """
    check_value("engine", engine, FIELDS["teacher_engine"])
    stops = tuple(check_value("stop", stop, FIELDS["teacher_stop"]) or ())
    parsed = parse_template(template, name="template")
    read = _rows_of_queries(queries, text_column)
    parsed.check_columns(read[0].values, read=COLUMNS)
    teacher = writing_teacher(
        model,
        tokenizer,
        revision=revision,
        dtype=dtype,
        quantization=quantization,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        device=device,
        remote=remote,
    )
    check_engine(teacher, engine)
    written = teacher.write(
        [render(parsed, row, own_prompt(row.values, parsed, where=f"queries, row {row.number}")) for row in read],
        GenerationSettings(max_new_tokens, do_sample, temperature, top_p, seed, batch_size, stops, engine),
        store=store if isinstance(store, CompletionStore) else CompletionStore(store),
        progress=progress,
    )
    name = model if isinstance(model, str) else teacher.name
    return [
        {**_query(row), "completion": _learnable_text(completion), "teacher": name, "finished": completion.finished}
        for row, completion in zip(read, written, strict=True)
    ]


def _learnable_text(completion: Completion) -> str:
    """Return the text to learn from a completion; "" if it is unusable."""
    if completion.unusable or not completion.text:
        return ""
    return with_reasoning(completion.text, completion.reasoning) if completion.reasoning else completion.text


def _rows_of_queries(queries: Any, text_column: str) -> list[Row]:
    """Return all queries as `read_rows` does; one that cannot be used is an error."""
    from datasets import Dataset

    if isinstance(queries, (str, bytes, Mapping)):
        raise DataError(f"queries is a {type(queries).__name__}; give a list of texts, {KNOWN_TYPES}.")
    if hasattr(queries, "__iter__") and not (isinstance(queries, Dataset) or is_frame(queries)):
        queries = [query if isinstance(query, Mapping) else {text_column: query} for query in queries]
    queries = as_dataset(queries, name="queries", accepted=f"a list of texts, {KNOWN_TYPES}")
    read, report = read_rows(queries, Columns(text_column), source="queries")
    if report.set_aside:
        place, reason = report.set_aside[0]
        raise DataError(f"queries, {place}: {reason}; every query needs a completion, so remove this one.")
    return list(rows_of(read))


def _query(row: Row) -> dict[str, Any]:
    """Return a query's columns as a run reads them."""
    values: dict[str, Any] = dict(row.values)
    if INPUT_COLUMN in values:
        values[INPUT] = values.pop(INPUT_COLUMN)
    if row.history is not None:
        return {**values, "messages": row.history}
    return {**values, "text": row.input}
