"""Rows of any accepted form to one form: the input, the history, the completion and the other columns.

A row that cannot be used is counted and named; nothing is dropped silently.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ..errors import DataError, nearest, there_are
from ..prompts.messages import (
    Message,
    Unusable,
    is_learned,
    messages_of,
    says_something,
    text_of,
    users_places,
    without_weight,
)
from ..prompts.row import AssistantTurns, Row
from .arrow_values import column_of, holds_bytes, plain_values
from .file_readers import CONVERSATIONS, PLACE, scratch_file
from .row_faults import FAULTS, INDEX, OURS, PACKED, Cells, UnreadableRow, check_ours
from .row_report import Problem, RowReport

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

    from ..config.distillation_arguments import DistillationArguments

COLUMNS = ("row", "input", "history", "completion", "turns", "values")
BATCH = 1000
WRITER, FINISHED = "teacher", "finished"  # columns of what `generate_with_teacher` returns
COMPLETIONS = ("completion", "response")
INSTRUCTION, OUTPUT = "instruction", "output"  # Alpaca's words; the latter is a completion beside the former alone
INPUT, INPUT_COLUMN = "input", "input_column"  # {input} is the text column; a column of that name is the latter
EMPTY = "the completion is empty"
NUMBERED = re.compile(r"(?:line|row) (\d+)")


def was_cut(values: Mapping[str, object]) -> bool:
    """Whether a row's columns say that its completion was cut, so that no end is learned."""
    return WRITER in values and str(values.get(FINISHED)).lower() == "false"


@dataclass(frozen=True)
class Columns:
    """Which columns of a dataset hold what.

    The input is `prompt_text_column` if it is given, else `text_column`, else `prompt`, `messages` or `conversations`;
    with `text_column` at its default, a dataset of `prompt` and `completion` is read as such. The completion is
    `completion_column`, else `completion` or `response` (or `output`, if the input is `instruction`), else the last
    assistant message of the conversation; with `prompt_text_column`, `text_column` is the completion if there is no
    other.

    Attributes:
        text_column: Column with the input.
        prompt_text_column: Column with the input, if it is not `text_column`.
        completion_column: Column with the completion.
        max_bad_rows: Rows with a missing or non-text value to set aside before it is an error.
        assistant_turns: Whether all assistant messages of a conversation are completions, not the last one alone.
    """

    text_column: str = "text"
    prompt_text_column: str | None = None
    completion_column: str | None = None
    max_bad_rows: int = 0
    assistant_turns: bool = False

    @classmethod
    def of(cls, settings: DistillationArguments) -> Columns:
        """Return the columns that a run's settings name; a trainer's call the text column `dataset_text_field`."""
        text = getattr(settings, "dataset_text_field" if hasattr(settings, "dataset_text_field") else "text_column")
        rest = settings.prompt_text_column, settings.completion_column, settings.max_bad_rows
        return cls(text, *rest, assistant_turns=bool(getattr(settings, "assistant_only_loss", False)))


def read_rows(
    dataset: Dataset,
    columns: Columns | None = None,
    *,
    fields: Collection[str] = (),
    num_proc: int | None = None,
    source: str = "data",
) -> tuple[Dataset, RowReport]:
    """Bring rows of any accepted form into one.

    Args:
        dataset: Text rows (str columns) or conversations (lists of messages, `role`/`content` or `from`/`value`).
        columns: Which columns hold what (default: `Columns()`).
        fields: Fields of templates and other columns that are read: a broken value there makes a row bad.
        num_proc: Processes that read; None is this one.
        source: The dataset in messages.

    Returns:
        A dataset with the columns of `Row.to_columns`, and the report. A column `input` that is not the input stands
        among a row's values as `input_column`; columns of bytes, images and sounds are left out, undecoded. A row whose
        input or completion is empty, or whose completion has the weight 0, is set aside and not counted against
        `max_bad_rows`.

    Raises:
        DataError: A column that is not there, more bad rows than allowed, or (`NoUsableRows`) no row left to use.
    """
    if not hasattr(dataset, "__len__"):
        raise DataError(f"{source} is a {type(dataset).__name__}; give a datasets.Dataset, whose rows can be counted.")
    columns = columns or Columns()
    read_too = frozenset(INPUT if name == INPUT_COLUMN else name for name in fields if name != INPUT)
    chosen = replace(
        _chosen(dataset.column_names, columns, source), fields=read_too, packed=packed_columns(dataset, read_too)
    )
    if len(dataset) == 0:
        raise DataError(f"{source} has no rows; give data with at least one.")
    read = _read_all(dataset, chosen, source, num_proc)
    unusable = column_of(read, "problem").is_valid()
    table = read.select_columns(list(Problem._fields)).with_format("arrow")[:]
    problems = [Problem(**row) for row in table.filter(unusable).to_pylist()]
    report = RowReport.of(problems, len(dataset), max_bad_rows=columns.max_bad_rows, source=source)
    if problems:
        read = read.select((~unusable.to_numpy()).nonzero()[0])
    return read.select_columns(list(COLUMNS)), report


def _read_all(dataset: Dataset, columns: _Chosen, source: str, num_proc: int | None) -> Dataset:
    """Read every row; `problem` says why a row cannot be used, `bad` whether that counts against the limit."""
    from datasets import Features, Value

    used = {columns.input, columns.completion}
    kinds = dataset.features  # a copy of all at each call
    kinds = {name: kind for name, kind in kinds.items() if name in used or not holds_bytes(kind)}
    readable = list(kinds)
    bytes_named = sorted(columns.fields & set(dataset.column_names) - set(readable))
    if bytes_named:
        raise DataError(f"{source}: the column {bytes_named[0]!r} holds bytes, which a template cannot write; drop it.")
    text, number, flag = Value("string"), Value("int64"), Value("bool")
    features = {"row": number} | dict.fromkeys(COLUMNS[1:], text)
    features |= {"place": text, "problem": text, "bad": flag}
    schema = Features(features).arrow_schema
    return (
        dataset.select_columns(readable)
        .with_format("arrow")  # values come as Arrow has them: nothing is decoded
        .map(
            partial(_read_batch, columns=columns, kinds=kinds),
            batched=True,
            with_indices=True,
            fn_kwargs={"schema": schema},
            remove_columns=readable,
            features=Features(features),
            num_proc=num_proc,
            # the default is beside the data, which may be the user's folder
            cache_file_name=scratch_file() if dataset.cache_files else None,
            load_from_cache_file=False,
            desc=f"Reading {source}",
        )
        .with_format(None)
    )


def _read_batch(
    table: pa.Table, indices: list[int], *, columns: _Chosen, kinds: Mapping[str, object], schema: pa.Schema
) -> pa.Table:
    import pyarrow as pa

    cells = {name: plain_values(table[name], kind) for name, kind in kinds.items()}
    places = cells.get(PLACE, [None] * len(indices))
    out = []
    for index, given, *values in zip(indices, places, *cells.values(), strict=True):
        place = str(given or f"row {index + 1}")
        known = NUMBERED.fullmatch(place)
        number = int(known[1]) if known else index + 1
        row = dict.fromkeys(columns.packed) | dict(zip(cells, values, strict=True))
        try:
            check_ours(row)
            row |= row.get(PACKED) or {}
            read = _read_row(row, columns, number).to_columns()
        except Unusable as problem:
            read = {"row": number, "problem": str(problem), "bad": problem.bad}
        except UnreadableRow as problem:
            read = {"row": number, "problem": f"it {problem}", "bad": True}
        out.append({**read, "place": place})
    return pa.Table.from_pylist(out, schema=schema)


def rows_of(dataset: Dataset) -> Iterator[Row]:
    """Yield what `read_rows` made of each row."""
    for table in dataset.with_format("arrow").iter(BATCH):
        yield from map(Row.from_columns, table.to_pylist())


def writers_of(dataset: Dataset | None) -> tuple[str, ...]:
    """Return the names of the teachers that wrote a dataset's completions, in the order of its rows.

    They are what its column `teacher` says; nothing if there is no such column, or a row of it is empty.
    """
    if WRITER not in (getattr(dataset, "column_names", None) or ()) or not hasattr(dataset, "unique"):
        return ()  # a stream is not read to its end for that
    assert dataset is not None
    names = dataset.unique(WRITER)
    return tuple(names) if all(isinstance(name, str) and name.strip() for name in names) else ()


def check_conversations(rows: Dataset, source: str) -> None:
    """Raise DataError for a row of text, if what the assistant says in conversations is to be learned."""
    texts = column_of(rows, "row").filter(column_of(rows, "history").is_null())
    if len(texts):
        raise DataError(
            f"{source}, row {texts[0]}, is text, but assistant_only_loss trains on assistant turns of conversations; "
            f"give messages, or drop assistant_only_loss."
        )


@dataclass(frozen=True)
class _Chosen:
    """The columns of the input and of the completion (None: there is none), and whether the user named the latter.

    `turns`: whether all assistant messages of a conversation are completions. `fields`: other columns that are read;
    `packed`: those of them that are in the column `PACKED`.
    """

    input: str
    completion: str | None
    is_named: bool
    turns: bool
    fields: frozenset[str] = frozenset()
    packed: frozenset[str] = frozenset()


def packed_columns(dataset: Dataset, fields: Collection[str]) -> frozenset[str]:
    """Return those of some fields that are columns of few rows, see `file_readers.read_texts`."""
    if PACKED not in dataset.column_names:
        return frozenset()
    objects = plain_values(column_of(dataset, PACKED), dataset.features[PACKED])
    return frozenset(name for row in objects for name in row or () if name in fields)


def _chosen(names: list[str], columns: Columns, source: str) -> _Chosen:
    text, prompt, completion = columns.text_column, columns.prompt_text_column, columns.completion_column
    there = [name for name in names if name not in (*OURS, INDEX)]
    for flag, name in (("--prompt-text-column", prompt), ("--completion-column", completion)):
        if name is not None and name not in there:
            raise DataError(_missing(name, there, flag, source))
    pair = text == "text" and "prompt" in there and any(name in there for name in COMPLETIONS)
    known = ["prompt" if pair else text]
    if text == "text":  # a column that the user named is not replaced by another
        known += ["prompt", *CONVERSATIONS]
    column = prompt or next((name for name in known if name in there), None)
    if column is None:
        raise DataError(_missing(text, there, "--text-column", source))
    found = completion or next((name for name in COMPLETIONS if name in there and name != column), None)
    if found is None and column == INSTRUCTION and OUTPUT in there:
        found = OUTPUT
    if found is None and prompt is not None and text in there and text != prompt:
        found, completion = text, text
    return _Chosen(column, found, completion is not None, columns.assistant_turns)


def _missing(name: str, there: list[str], flag: str, source: str) -> str:
    return f"{source} has no column {name!r}; {there_are(there)}.{nearest(name, there)} Name it with {flag}."


def _read_row(cells: Cells, columns: _Chosen, number: int) -> Row:
    for name, reason in json.loads(cells.get(FAULTS) or "{}").items():
        if name in (columns.input, columns.completion) or name in columns.fields:
            raise Unusable(f"{name!r}: {reason}")
    given = _decoded(cells.get(columns.input), columns.input)
    # a key of JSON may be empty text
    learned = None if columns.completion is None else cells.get(columns.completion)
    said = _completion_of(learned, columns.completion or "", columns.turns)
    history = turns = None
    if isinstance(given, list):
        history, said, turns = _conversation(messages_of(given, columns.input), said, columns)
        text = history[users_places(history)[-1]]["content"]
    else:
        text = text_of(given, repr(columns.input))
    if not text.strip():
        raise Unusable(f"{columns.input!r} is empty", bad=False)
    completion = _completion_text(said, columns.completion or "")
    if completion == "" and turns is None:
        raise Unusable(f"{columns.completion or columns.input!r}: {EMPTY}", bad=False)
    read = (columns.input, columns.completion, *OURS)
    values = {name: _value(value) for name, value in cells.items() if name not in read}
    if INPUT in values:
        values.setdefault(INPUT_COLUMN, values.pop(INPUT))
    return Row(number, text, values, history, completion, turns)


def _decoded(value: object, column: str) -> object:
    """Parse messages that a column holds as JSON text, as in csv files."""
    if isinstance(value, str) and column in CONVERSATIONS:
        try:
            return json.loads(value)
        except ValueError:
            raise Unusable(f"{column!r} is text, not a list of messages") from None
    return value


def _completion_of(value: object, column: str, turns: bool) -> str | list[Message] | None:
    """Return the completion of a row that has one: text, or messages, which are one of the assistant's or several."""
    if value is None:
        return None
    if isinstance(value, list) and value:
        messages = messages_of(value, column)
        ends = messages[0]["role"] == messages[-1]["role"] == "assistant"
        if not ends or (len(messages) > 1 and not turns):
            more = "; several are learned with assistant_only_loss" if ends else ""
            raise Unusable(f"{column!r} is not one assistant message{more}")
        return messages
    return text_of(value, repr(column))


def _completion_text(said: str | list[Message] | None, column: str) -> str | None:
    if isinstance(said, list):
        if len(said) > 1:
            raise Unusable(f"{column!r} is not one assistant message, as a prompt of text needs")
        _check_learned(said[0], column)
        return str(said[0]["content"])
    return said


def _conversation(
    messages: list[Message], said: str | list[Message] | None, columns: _Chosen
) -> tuple[list[Message], str | list[Message] | None, AssistantTurns | None]:
    """Return a conversation's messages before its completion, the completion, and what else is learned."""
    if not messages:
        raise Unusable(f"{columns.input!r} is empty", bad=False)
    whole, start, last = columns.input in CONVERSATIONS and not columns.is_named, 0, None
    if (said is None or whole) and messages[-1]["role"] == "assistant":
        messages, last = messages[:-1], messages[-1]
    elif isinstance(said, list):
        _check_asks(messages, columns.input)
        start, last = len(messages), said[-1]
        messages = [*messages, *said[:-1]]
    _check_asks(messages, columns.input)
    if last is None:
        return [without_weight(message) for message in messages], said, None
    several = columns.turns and any(is_learned(m) for m in messages[max(start, users_places(messages)[0]) :])
    if not several:
        _check_learned(last, columns.completion if isinstance(said, list) else columns.input)
        messages, last = [without_weight(message) for message in messages], without_weight(last)
    turns = AssistantTurns(last, start if columns.turns else len(messages))
    more = several or set(last) - {"role", "content"} or not str(last["content"]).strip()
    return messages, str(last["content"]), turns if more else None


def _check_learned(message: Message, column: str | None) -> None:
    """Skip a row whose completion is empty or has the weight 0."""
    if not says_something(message):
        raise Unusable(f"{column!r}: {EMPTY}", bad=False)
    if not is_learned(message):
        raise Unusable(f"{column!r}: the completion has the weight 0", bad=False)


def _check_asks(messages: list[Message], column: str) -> None:
    """Check that the last message is the user's, or a tool's after one of the user's."""
    asks = messages and messages[-1]["role"] in ("user", "tool")
    if not asks or not any(message["role"] == "user" for message in messages):
        last = f"the {messages[-1]['role']}'s" if messages else "no"
        raise Unusable(f"{column!r}: {last} message is in the place of the user's last one")


def _value(value: object) -> str | int | float:
    """Return a column's value for a template: text, numbers and times as they are, nothing as "", all else as JSON.

    NaN is nothing too: pandas has it in the place of a missing number.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return value
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (bool, dict, list)) else str(value)
