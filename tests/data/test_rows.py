"""Rows of every accepted form, and what is said of those that cannot be used."""

from __future__ import annotations

import json
import math
import time

import pytest
from datasets import Dataset

from trl_distill.data.loading import RowReport, load_data, read_rows
from trl_distill.data.rows import Columns, rows_of
from trl_distill.errors import DataError

SYSTEM = {"role": "system", "content": "s"}
USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}
SHARE = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def read(*rows, source="data", **settings):
    return read_rows(Dataset.from_list(list(rows)), Columns(**settings), source=source)


def only(row, **settings):
    return next(rows_of(read(row, **settings)[0]))


def loaded(data):
    return list(rows_of(read_rows(load_data(data)[0])[0]))


@pytest.mark.parametrize(
    ("row", "settings", "expected"),
    [
        ({"text": "q"}, {}, ("q", None)),
        ({"question": "q"}, {"text_column": "question"}, ("q", None)),
        ({"prompt": "q", "completion": "a"}, {}, ("q", "a")),
        ({"prompt": "q", "response": "a"}, {}, ("q", "a")),
        ({"prompt": "q"}, {}, ("q", None)),
        ({"text": "q", "completion": "a"}, {}, ("q", "a")),
        ({"text": "q", "response": "a"}, {}, ("q", "a")),
        ({"text": "q", "out": "a"}, {"completion_column": "out"}, ("q", "a")),
        ({"text": "q", "completion": "b", "out": "a"}, {"completion_column": "out"}, ("q", "a")),
        ({"text": "a", "ask": "q"}, {"prompt_text_column": "ask"}, ("q", "a")),
        ({"text": "b", "ask": "q", "completion": "a"}, {"prompt_text_column": "ask"}, ("q", "a")),
        ({"text": "q"}, {"prompt_text_column": "text"}, ("q", None)),
        ({"text": "q a", "prompt": "q", "completion": "a"}, {}, ("q", "a")),
        ({"mine": "q", "prompt": "x", "completion": "a"}, {"text_column": "mine"}, ("q", "a")),
        ({"text": "q", "prompt": "x"}, {}, ("q", None)),
    ],
)
def test_text_rows_and_the_choice_of_columns(row, settings, expected):
    read = only(row, **settings)
    assert (read.input, read.completion) == expected
    assert read.history is None


@pytest.mark.parametrize(
    ("row", "settings", "history", "completion"),
    [
        ({"messages": [SYSTEM, USER, ASSISTANT]}, {}, [SYSTEM, USER], "a"),
        ({"messages": [USER, ASSISTANT, USER]}, {}, [USER, ASSISTANT, USER], None),
        ({"conversations": SHARE}, {}, [SYSTEM, USER], "a"),
        ({"conversations": json.dumps(SHARE)}, {}, [SYSTEM, USER], "a"),
        ({"prompt": [USER], "completion": [ASSISTANT]}, {}, [USER], "a"),
        ({"prompt": [SYSTEM, USER], "completion": "a"}, {}, [SYSTEM, USER], "a"),
        ({"prompt": [USER, ASSISTANT]}, {}, [USER], "a"),
        ({"chat": [USER, ASSISTANT]}, {"text_column": "chat"}, [USER], "a"),
        ({"messages": [USER, ASSISTANT], "response": "b"}, {}, [USER], "a"),
        ({"messages": [USER], "response": "b"}, {}, [USER], "b"),
        ({"messages": [USER], "gold": "b"}, {"completion_column": "gold"}, [USER], "b"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}, {}, [USER], None),
    ],
)
def test_a_conversation_becomes_history_input_and_completion(row, settings, history, completion):
    read = only(row, **settings)
    assert read.history == history
    assert read.input == "q"
    assert read.completion == completion


CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}
TOOL = {"role": "tool", "content": "t"}


@pytest.mark.parametrize(
    ("row", "every", "history", "start"),
    [
        ({"messages": [USER, CALL, TOOL, ASSISTANT]}, False, 3, None),
        ({"messages": [USER, CALL, TOOL, ASSISTANT]}, True, 3, 0),
        ({"messages": [USER, CALL]}, False, 1, 1),
        ({"messages": [USER, ASSISTANT]}, True, 1, None),
        ({"messages": [SYSTEM, ASSISTANT, USER, ASSISTANT]}, True, 3, None),  # a greeting answers nobody
        ({"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT, USER, ASSISTANT]}, True, 5, 3),
        ({"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}, True, 3, None),
    ],
)
def test_completions_that_are_more_than_a_text(row, every, history, start):
    read = only(row, assistant_turns=every)
    assert len(read.history) == history
    assert read.input == "q"
    assert (None if read.turns is None else read.turns.start) == start


SUN = {"type": "function", "function": {"name": "sun", "arguments": {"city": "Oslo", "day": None}}}
FOG = {"type": "function", "function": {"name": "fog", "arguments": {}}}
SAID = json.dumps(SUN["function"])
NO_DAY = {**SUN, "function": {"name": "sun", "arguments": {"city": "Oslo"}}}


@pytest.mark.parametrize(
    ("messages", "calls"),
    [
        ([{"from": "function_call", "value": SAID}], [SUN]),
        ([{"role": "tool_call", "content": SAID}], [SUN]),
        ([{"role": "tool_call", "content": SAID}, {"role": "tool_call", "content": '{"name": "fog"}'}], [SUN, FOG]),
        ([{"role": "tool_call", "content": f"[{SAID}, {json.dumps(FOG)}]"}], [SUN, FOG]),
        ([{"role": "tool_call", "content": f"<tool_call>\n{SAID}\n</tool_call>"}], [SUN]),
        ([{"role": "tool_call", "content": '{"name": "sun", "parameters": "{\\"city\\": \\"Oslo\\"}"}'}], [NO_DAY]),
        ([{"role": "assistant", "content": None, "function_call": {"name": "fog", "arguments": "{}"}}], [FOG]),
    ],
)
@pytest.mark.parametrize("thought", ["", "Let me look."])
def test_calls_of_tools_in_other_words_are_tool_calls(messages, calls, thought):
    before = [{"role": "assistant", "content": thought}] if thought and messages[0].get("role") == "tool_call" else []
    answer = {"from": "tool_response", "value": "rain"}
    history = loaded([{"messages": [USER, *before, *messages, answer, ASSISTANT]}])[0].history
    said = thought if before else ""
    assert history == [USER, {"role": "assistant", "content": said, "tool_calls": calls}, {**TOOL, "content": "rain"}]
    assert loaded([{"messages": [USER, *messages]}])[0].turns.last["tool_calls"] == calls


@pytest.mark.parametrize("content", ["sun(Oslo)", '{"city": "Oslo"}', "3", None])
def test_a_call_that_is_no_json_is_named(content):
    with pytest.raises(DataError, match="message 2 calls a tool, but is not JSON with 'name' and 'arguments'"):
        read({"messages": [USER, {"role": "tool_call", "content": content}]})


def test_an_unknown_role_lists_the_known_ones_once():
    rows = [{"messages": [{"role": "poet", "content": "q"}]}] * 2
    with pytest.raises(
        DataError, match=r"row 2 \('messages': message 1 has .* Known roles are system, user,"
    ) as caught:
        read(*rows)
    assert str(caught.value).count("tool_response") == 1


def test_null_inside_arguments_is_kept_where_the_file_says_it(tmp_path):
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [SUN]}]
    other = [{**USER, "name": "Ann"}, {"role": "assistant", "tool_calls": [FOG]}]
    tools = [{"type": "function", "function": {"name": "sun", "parameters": {"enum": [None], "default": None}}}]
    given = [{"messages": messages, "tools": tools}, {"messages": other}]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    for data in (given, path):
        rows = loaded(data)
        first, second = (row.turns.last for row in rows)
        assert first == {"role": "assistant", "content": "", "tool_calls": [SUN]}
        assert second == {"role": "assistant", "content": "", "tool_calls": [FOG]}
        assert json.loads(rows[0].values["tools"]) == tools
    first, _ = rows_of(read(*given)[0])  # Arrow's empty keys cannot be told from those of the data
    assert first.turns.last["tool_calls"] == [NO_DAY]


def test_numbers_inside_objects_keep_all_their_digits():
    numbers = [52.52, 0.1 + 0.2, 2**70, -1e-300, 86.12345678901234]
    messages = [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"n": numbers}}}]}]
    turns = loaded([{"messages": messages}])[0].turns
    assert turns.last["tool_calls"][0]["function"]["arguments"]["n"] == numbers


UNLEARNED = {**ASSISTANT, "weight": 0}
NOTHING = {"role": "assistant", "content": " \n"}


@pytest.mark.parametrize(
    ("row", "every", "reason"),
    [
        ({"messages": [USER, UNLEARNED]}, False, "'messages': the completion has the weight 0"),
        ({"messages": [USER, UNLEARNED]}, True, "'messages': the completion has the weight 0"),
        ({"prompt": [USER], "completion": [UNLEARNED]}, False, "'completion': the completion has the weight 0"),
        ({"prompt": "q", "completion": [UNLEARNED]}, False, "'completion': the completion has the weight 0"),
        ({"messages": [USER, ASSISTANT, USER, UNLEARNED]}, False, "the completion has the weight 0"),
        ({"messages": [USER, UNLEARNED, USER, UNLEARNED]}, True, "the completion has the weight 0"),
        ({"messages": [USER, NOTHING]}, False, "'messages': the completion is empty"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, False, "the completion is empty"),
        ({"messages": [USER, {"role": "assistant", "content": "", "tool_calls": []}]}, False, "is empty"),
        ({"messages": [USER, ASSISTANT, USER, NOTHING]}, False, "the completion is empty"),
        ({"prompt": "q", "completion": [NOTHING]}, False, "'completion': the completion is empty"),
    ],
)
def test_a_completion_that_is_not_to_be_learned_is_set_aside(row, every, reason):
    column = "messages" if "messages" in row else "prompt"
    data, _ = load_data([{"prompt": "r", "completion": "s", "messages": [USER, ASSISTANT]}, row])
    rows, report = read_rows(data, Columns(column, assistant_turns=every))
    assert rows["row"] == [1]
    (aside,) = report.set_aside
    assert aside[0] == "row 2"
    assert reason in aside[1]


def test_turns_that_are_not_to_be_learned_have_the_weight_0():
    messages = [USER, UNLEARNED, USER, NOTHING, USER, {**ASSISTANT, "weight": 1}]
    read = only({"messages": messages}, assistant_turns=True)
    assert read.turns is None  # the last turn alone is learned
    assert read.history == [USER, ASSISTANT, USER, NOTHING, USER]
    read = only({"messages": [USER, ASSISTANT, *messages[:4]]}, assistant_turns=True)
    whole = [*read.history, read.turns.last]
    assert [m.get("weight", 1) for m in whole if m["role"] == "assistant"] == [1, 0, 0]


def test_a_message_weight_other_than_0_or_1_is_refused():
    with pytest.raises(DataError, match=r"'messages': message 2 has the weight 0.5; known are 0 and 1"):
        read({"messages": [USER, {**ASSISTANT, "weight": 0.5}]})


def test_reasoning_alone_is_a_completion():
    last = {"role": "assistant", "content": "", "reasoning_content": "hm"}
    assert only({"messages": [USER, last]}).turns.last == last


def test_alpaca_columns_are_read():
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    read = only(row, text_column="instruction")
    assert (read.input, read.completion) == ("Add.", "3")
    assert read.values == {"input_column": "1 2"}
    read = only(row, text_column="input")
    assert (read.input, read.completion) == ("1 2", None)
    assert read.values == {"instruction": "Add.", "output": "3"}
    assert only({**row, "completion": "4"}, text_column="instruction").completion == "4"


def test_other_keys_of_the_last_message_are_kept():
    thought = {**ASSISTANT, "reasoning_content": "r"}
    assert only({"messages": [USER, thought]}).turns.last == thought
    assert only({"messages": [USER, ASSISTANT]}).turns is None


def test_what_else_a_message_says_is_kept_and_what_arrow_adds_is_not():
    named = {"role": "user", "content": "q", "name": "Ann"}
    read = only({"messages": [SYSTEM, named, ASSISTANT]})
    assert read.history == [SYSTEM, named]


def test_other_columns_are_the_fields_of_templates():
    row = {"text": "q", "completion": "a", "role": "cook", "n": 3, "x": 0.5, "yes": True, "tags": ["u"], "none": None}
    row["nan"] = math.nan  # of pandas
    values = only(row).values
    assert values == {"role": "cook", "n": 3, "x": 0.5, "yes": "true", "tags": '["u"]', "none": "", "nan": ""}


def test_a_row_without_a_completion_of_its_own_is_a_row():
    rows, report = read({"text": "q", "completion": "a"}, {"text": "r", "completion": None})
    assert rows["completion"] == ["a", None]
    assert report.set_aside == ()
    assert report.summary() == "2 of 2 used"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_column": "quest"}, "data has no column 'quest'; there are 'question', 'n'. Did you mean 'question'"),
        ({}, r"no column 'text'; .*Name it with --text-column"),
        ({"prompt_text_column": "p"}, r"no column 'p'; .*--prompt-text-column"),
        ({"text_column": "question", "completion_column": "c"}, r"no column 'c'; .*--completion-column"),
    ],
)
def test_a_missing_column_is_an_error(settings, message):
    with pytest.raises(DataError, match=message):
        read({"question": "q", "n": 1}, **settings)


def test_a_column_that_was_named_is_not_replaced_by_another():
    with pytest.raises(DataError, match="no column 'question'"):
        read({"prompt": "q", "completion": "a"}, text_column="question")


def test_missing_and_non_text_values_are_an_error_that_lists_the_first_ten():
    rows = [{"text": "q"}, *[{"text": None}] * 12]
    with pytest.raises(DataError) as caught:
        read(*rows, source="train")
    message = str(caught.value)
    assert message.startswith("train: 12 bad rows, more than --max-bad-rows 0: row 2 (")
    assert "row 11 ('text' is missing), and 2 more; " in message
    assert "row 12" not in message


def test_max_bad_rows_skips_bad_rows_and_reports_them():
    rows, report = read({"text": "q"}, {"text": None}, {"text": "r"}, max_bad_rows=1)
    assert rows["row"] == [1, 3]
    assert report == RowReport(3, 2, (("row 2", "'text' is missing"),))
    assert report.summary() == "2 of 3 used; 1 set aside: 1 because 'text' is missing (row 2)"


def test_empty_rows_are_set_aside_counted_and_not_limited():
    given = [{"text": "q", "completion": "a"}, {"text": " \n", "completion": "a"}, {"text": "r", "completion": ""}]
    rows, report = read(*given)
    assert rows["input"] == ["q"]
    assert [place for place, _ in report.set_aside] == ["row 2", "row 3"]
    assert "'text' is empty" in report.summary()
    assert "the completion is empty" in report.summary()


def test_the_summary_names_the_first_three_of_each_reason():
    _, report = read({"text": "q"}, *[{"text": ""}] * 5)
    assert report.summary() == "1 of 6 used; 5 set aside: 5 because 'text' is empty (row 2, row 3, row 4, ...)"
    assert "\n" not in report.summary()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": 3}, "'text' is a number, not text"),
        ({"text": True}, "'text' is true or false, not text"),
        ({"text": {"k": 1}}, "'text' is an object, not text"),
        ({"text": ["q"]}, "'text' is a list, not text and not messages"),
        ({"text": "q", "completion": 3}, "'completion' is a number, not text"),
        ({"text": "q", "completion": [USER]}, "'completion' is not one assistant message"),
        ({"messages": None}, "'messages' is missing"),
        ({"messages": "q"}, "'messages' is text, not a list of messages"),
        ({"messages": [ASSISTANT]}, "no message is in the place of the user's last one"),
        ({"messages": [USER, ASSISTANT, ASSISTANT]}, "the assistant's message is in the place of"),
        ({"messages": [{"role": "poet", "content": "q"}]}, "'messages': message 1 has the unknown role 'poet'"),
        ({"messages": [{"role": "user", "content": None}]}, "'messages': the content of message 1 is missing"),
        ({"prompt": [USER, ASSISTANT], "completion": [ASSISTANT]}, "the assistant's message is in the place of"),
        ({"messages": [TOOL, ASSISTANT]}, "the tool's message is in the place of"),
        (
            {"prompt": [USER], "completion": [ASSISTANT, USER, ASSISTANT]},
            "several are learned with assistant_",
        ),
    ],
)
def test_rows_that_cannot_be_used_say_why(row, reason):
    with pytest.raises(DataError) as caught:
        read(row)
    assert reason in str(caught.value)
    assert "row 1 (" in str(caught.value)


def test_data_without_a_usable_row_is_an_error():
    with pytest.raises(DataError, match=r"none of 2 rows can be used: row 1 \('text' is empty\)"):
        read({"text": ""}, {"text": " "})
    with pytest.raises(DataError, match="none of 1 rows"):
        read({"text": None}, max_bad_rows=5)
    with pytest.raises(DataError, match="train has no rows"):
        read_rows(Dataset.from_dict({"text": []}), source="train")
    with pytest.raises(DataError, match=r"is a IterableDataset; give a datasets\.Dataset"):
        read_rows(Dataset.from_dict({"text": ["q"]}).to_iterable_dataset())


def test_the_dataset_given_is_left_as_it_is():
    data = Dataset.from_list([{"text": "q", "completion": "a"}]).with_format("numpy")
    rows, _ = read_rows(data)
    assert rows[0] == {"row": 1, "input": "q", "history": None, "completion": "a", "turns": None, "values": "{}"}
    assert data.column_names == ["text", "completion"]
    assert data.format["type"] == "numpy"


def test_a_hundred_thousand_rows_take_seconds():
    data = Dataset.from_dict({"text": ["a question " * 10] * 100_000, "n": list(range(100_000))})
    start = time.process_time()
    rows, report = read_rows(data)
    assert report.used == len(rows) == 100_000
    assert time.process_time() - start < 20
