"""Where completions come from, what both models read, and what is said about it before training."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from conftest import make_model
from datasets import Dataset
from forms import distilling
from transformers import AutoTokenizer

from trl_distill.data.preparation import Recipe
from trl_distill.data.recipe import PromptSide
from trl_distill.data.rows import Columns
from trl_distill.errors import DataError, TemplateError
from trl_distill.models.generation import Completion
from trl_distill.prompts.fitting import Limit
from trl_distill.prompts.template import parse_template

WROTE = Completion((7, 8), False)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def recipe(tokenizer, *, student="{input}", teacher="{input}", asked=None, limit=64, **settings):
    asked = [] if asked is None else asked

    def write(prompts):
        asked.extend(prompts)
        return [WROTE] * len(prompts)

    return Recipe(
        student=PromptSide(tokenizer, parse_template(student, name="student_prompt_template"), limit),
        teacher=PromptSide(tokenizer, parse_template(teacher, name="teacher_prompt_template"), limit),
        columns=settings.pop("columns", Columns()),
        write=write,
        **settings,
    )


OWN = Dataset.from_dict({"prompt": ["a b", "c"], "completion": ["d", "e f"]})
TEXT = Dataset.from_dict({"text": ["a b", "c"]})
MIXED = Dataset.from_dict({"text": ["a b", "c"], "completion": ["d", None]})


@pytest.mark.parametrize(
    ("data", "settings", "expected"),
    [
        (OWN, {}, {"data": 2}),
        (OWN, {"teacher": "e {input}"}, {"data": 2}),
        (OWN, {"completions": "data"}, {"data": 2}),
        (OWN, {"completions": "teacher"}, {"teacher": 2}),
        (TEXT, {}, {"text": 2}),
        (TEXT, {"plain_text": False}, {"teacher": 2}),
        (TEXT, {"teacher": "e {input}"}, {"teacher": 2}),
        (TEXT, {"student": "e {input}"}, {"teacher": 2}),
        (TEXT, {"completions": "data"}, {"text": 2}),
        (TEXT, {"completions": "teacher"}, {"teacher": 2}),
        (MIXED, {"teacher": "e {input}"}, {"data": 1, "teacher": 1}),
    ],
)
def test_completions_auto_decides_row_by_row(data, settings, expected, tokenizer):
    _, preflight = recipe(tokenizer, **settings).prepare(data)
    assert preflight.sources == expected


def test_completions_data_needs_a_completion_in_every_row(tokenizer):
    said = r"2 rows without a completion \(row 1, 2\), which --completions data needs; .*--completion-column"
    with pytest.raises(DataError, match=said):
        recipe(tokenizer, completions="data", teacher="e {input}").prepare(TEXT)


@pytest.mark.parametrize("column", ["prompt", "completion"])
def test_the_input_column_is_no_template_field(column, tokenizer):
    with pytest.raises(TemplateError, match=rf"\{{{column}\}}, but that column is read as the input or the completion"):
        recipe(tokenizer, teacher=f"{{input}} {{{column}}}").prepare(OWN)


def test_each_side_reads_its_own_prompt_and_the_same_completion(tokenizer):
    rows, _ = recipe(tokenizer, teacher="e f {input} g").prepare(OWN)
    assert tokenizer.decode(rows[0]["student_prompt"]) == "a b"
    assert tokenizer.decode(rows[0]["teacher_prompt"]) == "e f a b g"
    assert rows[0]["completion"][-1] == tokenizer.eos_token_id


def test_the_teacher_is_asked_under_its_own_prompt(tokenizer):
    asked = []
    rows, preflight = recipe(tokenizer, teacher="e {input}", asked=asked).prepare(TEXT)
    assert [tokenizer.decode(p) for p in asked] == ["e a b", "e c"]
    assert rows[0]["completion"] == [7, 8]
    assert preflight.completions_cut == 2


def test_a_completion_that_the_teacher_did_not_finish_is_taught_no_end(tokenizer):
    rows, _ = recipe(tokenizer, teacher="e {input}").prepare(TEXT)
    assert tokenizer.eos_token_id not in rows[0]["completion"]


def test_plain_text_is_learned_as_a_whole(tokenizer):
    rows, _ = recipe(tokenizer).prepare(TEXT)
    assert rows[0]["student_prompt"] == rows[0]["teacher_prompt"]
    assert tokenizer.decode(rows[0]["completion"], skip_special_tokens=True) == "a b"


def test_other_columns_are_template_fields(tokenizer):
    data = Dataset.from_dict({"text": ["a"], "role": ["g"], "completion": ["b"]})
    rows, _ = recipe(tokenizer, teacher="{role} {input}").prepare(data)
    assert tokenizer.decode(rows[0]["teacher_prompt"]) == "g a"


def test_an_unknown_field_is_refused_before_anything_is_written(tokenizer):
    asked = []
    data = Dataset.from_dict({"text": ["a"], "role": ["g"]})
    with pytest.raises(TemplateError, match=r"\{rule\}.*there are 'input', 'role'.*Did you mean 'role'"):
        recipe(tokenizer, teacher="{rule} {input}", asked=asked).prepare(data)
    assert not asked


def test_the_preflight_says_what_is_saved_and_shows_the_first_row(tokenizer):
    _, preflight = recipe(tokenizer, teacher="e f g {input}", vocabulary=400).prepare(OWN)
    assert preflight.saved == 3
    text = preflight.text()
    for part in ("2", "3.0 saved per query", "2 from the data", "400 rows shared", "| e f g a b", "first row, student"):
        assert part in text


def test_rows_set_aside_are_counted_and_named(tokenizer):
    data = Dataset.from_dict({"prompt": ["a", "  ", "c"], "completion": ["b", "b", "d"]})
    rows, preflight = recipe(tokenizer).prepare(data)
    assert len(rows) == 2
    assert preflight.rows.total == 3
    assert "2" in preflight.text()
    assert preflight.rows.set_aside[0][0].endswith("2")


def test_a_prompt_that_is_too_long_names_its_row(tokenizer):
    data = Dataset.from_dict({"prompt": ["a", "a b c d e f g a b c"], "completion": ["b", "c"]})
    with pytest.raises(DataError, match=r"row 2: the student's prompt has 10 tokens, .*: the limit is 8"):
        recipe(tokenizer, limit=8).prepare(data)
    rows, preflight = recipe(tokenizer, limit=8, overflow="left").prepare(data)
    assert preflight.prompts_cut == 1
    assert tokenizer.decode(rows[1]["student_prompt"]).endswith("a b c")


@pytest.mark.parametrize(
    ("longest", "settings", "said"),
    [
        ("teacher", {"max_length": None}, "the teacher's prompt has 12 tokens, which leaves no room for a completion: "
         "the teacher's own context length is 12; shorten the template or the input, or cut"),
        ("student", {"max_length": None}, "the student's prompt has 12 tokens, which leaves no room for a completion: "
         "the student's own context length is 12; shorten the template or the input, or cut"),
        ("student", {"max_length": 5}, "the student's prompt has 12 tokens, which leaves no room for a completion: "
         "max_length is 5; shorten the template or the input, raise max_length, or cut"),
        ("student", {"max_length": 12}, "the student's own context length is 12"),  # to raise the other would not help
    ],
)  # fmt: skip
@pytest.mark.parametrize("completions", ["data", "teacher"])
def test_the_limit_that_was_exceeded_is_named(longest, settings, said, completions, tmp_path):
    folders = [make_model(tmp_path / name, hidden=hidden) for name, hidden in (("student", 32), ("teacher", 48))]
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 12}))
    template = {f"{longest}_prompt_template": "a b c d e f g a b c d {input}"}
    rows = [{"prompt": "e", "completion": "f"}]
    with pytest.raises(DataError) as caught:
        distilling(*folders, tmp_path / "run", rows, completions=completions, **template, **settings)
    assert str(caught.value).startswith("train, row 1: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "limit", [Limit(6, "--block-size", "raise --block-size"), Limit(6, "the student's own length")]
)
def test_cut_completions_are_fitted_by_a_longer_block_only_if_the_model_allows_it(limit, tokenizer):
    data = Dataset.from_dict({"prompt": ["a", "b"], "completion": ["b c d e f g a b", "c"]})
    _, preflight = recipe(tokenizer, teacher="e {input}", limit=limit).prepare(data)
    line = next(line for line in preflight.text().splitlines() if "did not fit into a sequence" in line)
    assert line.startswith("  cut           1 did not fit")
    assert line.endswith("; raise --block-size") is bool(limit.remedy)


def test_nothing_is_written_if_a_prompt_of_either_side_is_too_long(tokenizer):
    asked = []
    data = Dataset.from_dict({"prompt": ["a", "a b c d e f g a b c"], "completion": [None, "c"]})
    with pytest.raises(DataError, match="row 2: the student's prompt has 10 tokens"):
        recipe(tokenizer, teacher="e {input}", limit=8, asked=asked).prepare(data)
    assert asked == []


def test_a_dry_run_generates_for_its_sample_only(tokenizer):
    asked = []
    data = Dataset.from_dict({"text": [f"a {w}" for w in "bcdefg"]})
    rows, _ = recipe(tokenizer, teacher="e {input}", asked=asked).prepare(data, rows_at_most=2)
    assert len(rows) == len(asked) == 2


CONVERSATION = Dataset.from_dict(
    {
        "messages": [
            [
                {"role": "system", "content": "f"},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
                {"role": "assistant", "content": "d"},
            ]
        ]
    }
)


def test_a_template_renders_the_last_user_message_of_a_conversation(chat_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(chat_model_dir)
    rows, _ = recipe(tokenizer, teacher="e {input}").prepare(CONVERSATION)
    expected = [
        {"role": "system", "content": "f"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "e c"},
    ]
    shown = tokenizer.apply_chat_template(expected, add_generation_prompt=True, return_dict=False)
    assert rows[0]["teacher_prompt"] == shown
    expected[-1]["content"] = "c"
    assert rows[0]["student_prompt"] == tokenizer.apply_chat_template(
        expected, add_generation_prompt=True, return_dict=False
    )


def test_a_chat_templates_system_message_takes_the_conversations_place(chat_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(chat_model_dir)
    chat = [{"role": "system", "content": "g g"}, {"role": "user", "content": "{input}"}]
    rows, _ = recipe(tokenizer, teacher=chat).prepare(CONVERSATION)
    text = tokenizer.decode(rows[0]["teacher_prompt"])
    assert "g g" in text
    assert "f" not in text.replace("g g", "")


def test_a_chat_template_makes_a_chat_of_plain_rows(chat_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(chat_model_dir)
    chat = [{"role": "system", "content": "g"}, {"role": "user", "content": "{input}"}]
    rows, _ = recipe(tokenizer, teacher=chat).prepare(OWN)
    messages = [{"role": "system", "content": "g"}, {"role": "user", "content": "a b"}]
    shown = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert rows[0]["teacher_prompt"] == shown
    assert tokenizer.decode(rows[0]["student_prompt"]) == "a b"


def test_the_teacher_is_not_pickled_for_the_sake_of_a_cache(tokenizer):
    """`datasets` pickles a mapped function with all it holds to name its cache; a teacher has gigabytes."""

    class Write:
        pickled = 0

        def __reduce__(self):
            Write.pickled += 1
            return (Write, ())

        def __call__(self, prompts):
            return [WROTE] * len(prompts)

    rows, _ = replace(recipe(tokenizer, teacher="e {input}"), write=Write()).prepare(TEXT)
    assert len(rows) == 2
    assert Write.pickled == 0


def test_a_long_first_row_is_shown_by_its_start_and_its_end(tokenizer):
    text = "a " * 150 + "b " * 150
    _, preflight = recipe(tokenizer, limit=None).prepare(Dataset.from_dict({"prompt": [text], "completion": ["c"]}))
    (shown,) = [line for line in preflight.text().splitlines() if "| a a" in line][:1]
    assert " tokens ...] b b" in shown.replace("  ", " ")
    assert 200 < len(shown) < 300


def test_a_completion_with_a_token_that_only_the_student_has_names_its_row(tokenizer):
    data = Dataset.from_dict({"prompt": ["a", "b"], "completion": ["c", "d <x>"]})
    student = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    student.add_tokens(["<x>"])
    rows = len(tokenizer)
    with pytest.raises(DataError, match=f"train, row 2: the completion holds token {rows}.*share the tokens 0 to"):
        recipe(student, vocabulary=rows).prepare(data)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_prompt_with_a_token_that_its_model_does_not_have_is_refused_before_it_is_read(side, tokenizer):
    asked = []
    short = recipe(tokenizer, asked=asked, completions="teacher")
    short = replace(short, **{side: replace(getattr(short, side), rows=tokenizer("c")["input_ids"][0])})
    with pytest.raises(DataError, match=f"row 2: the {side}'s prompt holds token .*the {side} has the tokens"):
        short.prepare(Dataset.from_dict({"text": ["a", "c"]}))
    assert not asked
