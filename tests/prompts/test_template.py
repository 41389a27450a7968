"""Templates: what is a field, what is a literal, and where the text may come from."""

from __future__ import annotations

import json
import re

import pytest

from trl_distill.errors import TemplateError
from trl_distill.prompts.template import parse_template
from trl_distill.teachers.multi.entries import template_source

CHAT = [{"role": "system", "content": "You are {role}."}, {"role": "user", "content": "{input}"}]


def parse(source):
    return parse_template(source, name="teacher_prompt_template")


def render(source, **values):
    return parse(source).render(values)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{input}", "q"),
        ("Q: {input}\nA:", "Q: q\nA:"),
        ("{role}: {input} {input}", "cook: q q"),
        ("{input} {n}", "q 3"),
        ('{{"q": "{input}"}}', '{"q": "q"}'),
        ("{{{input}}}", "{q}"),
        ("{{input}} {input}", "{input} q"),
        (r"\theta\n\\ {input}", r"\theta\n\\ q"),
        (r"\d+ {input}", r"\d+ q"),
        ("élan 🙂 {input}", "élan 🙂 q"),
    ],
)
def test_fields_are_filled_and_literal_braces_stay(source, expected):
    assert render(source, input="q", role="cook", n=3) == expected


def test_a_value_is_put_in_as_it_is():
    value = r"{role} {{x}} {0} %s \n"
    assert render("<{input}>", input=value, role="cook") == f"<{value}>"


@pytest.mark.parametrize(
    "source",  # of the user's guide
    [
        "### Role: Expert {role}\n### Context: {context}\n### Instructions: Provide detailed, thoughtful response\n"
        "### Input: {input}\n### Response:",
        "{input}:",
        "Q: {input}\nA:",
        "### System: You are a helpful, respectful assistant.\n### Human: {input}\n### Assistant:",
    ],
)
def test_the_guides_templates_work_as_typed(source):
    template = parse(source)
    template.check_columns(["role", "context"])
    assert template.notes() == []
    values = {"role": "cook", "context": "{a}", "input": "q"}
    assert template.render(values) == source.format(**values)


JSON = '{"input": "{input}", "out": {"label": {"a": [{}, {"b": "{role}"}]}}}'
LATEX = r"Prove \frac{1}{{2}} + \sqrt{{{x_1}}^2} for \text{the {role}}: {input}}"
JINJA = "{% for m in messages %}{{ m.content }}{{ '{' }}{% endfor %} Fill it in for {input}."


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (JSON, '{"input": "q", "out": {"label": {"a": [{}, {"b": "cook"}]}}}'),
        (LATEX, r"Prove \frac{1}{{2}} + \sqrt{{x_1}^2} for \text{the cook}: q}"),
        (JINJA, "{% for m in messages %}{{ m.content }}{{ '{' }}{% endfor %} Fill it in for q."),
        ("{{input}} { {input}", "{input} { q"),
        ("{{input}", "{q"),
        ("{input}}", "q}"),
        ("{input} {}", "q {}"),
        ("{input} {two words} {0} {a-b}", "q {two words} {0} {a-b}"),
        ("{input} {größe} {", "q 3 {"),
    ],
)
def test_a_template_with_a_brace_of_no_field_is_read_literally(source, expected):
    assert render(source, input="q", role="cook", größe=3) == expected
    template = parse(source)
    template.check_columns(["role", "größe", "0"])
    written = template_source(template)  # as config.yaml has it
    assert render(written, input="q", role="cook", größe=3) == expected


@pytest.mark.parametrize("word", ["input.x", "input[0]", "input!r", "input:>9", "input.__class__", " input "])
def test_what_looks_like_a_field_and_is_text_is_noted(word):
    template = parse(f"{{input}} {{{word}}}")
    assert template.render({"input": "q"}) == f"q {{{word}}}"
    template.check_columns(["role"])
    said = f"teacher_prompt_template: {{{word}}} is text; a field is a plain name, such as {{input}}"
    assert template.notes() == [said]
    with pytest.raises(TemplateError, match=rf"has no \{{input\}} but {re.escape('{' + word + '}')}; .* format code"):
        parse(f"{{{word}}}")


def test_a_column_whose_name_is_no_field_is_refused_in_braces():
    said = r"has \{two words\}, but a field is a name of letters, digits and underscores; rename the column 'two words'"
    with pytest.raises(TemplateError, match=said):
        parse("{input} {two words}").check_columns(["two words"])


INDENTED = """You are an expert.
    Think step by step.

    Question: {input}"""


@pytest.mark.parametrize("source", [INDENTED, [{"role": "user", "content": INDENTED}]])
def test_a_triple_quoted_text_that_is_indented_is_noted(source):
    assert parse(source).notes() == [
        "teacher_prompt_template: all lines but the first are indented by 4, and the model reads that too; "
        "textwrap.dedent removes it"
    ]


@pytest.mark.parametrize("source", ["A\n  b {input}", "  A\n  b\n  {input}", "A\n  b\n{input}\n  c", "{input}", JSON])
def test_texts_without_field_like_braces_are_not_noted(source):
    assert parse(source).notes() == []


@pytest.mark.parametrize(("source", "found"), [("{question}", "{question}"), ("{a} {b} {a}", "{a}, {b}")])
def test_fields_in_the_place_of_the_input_are_named(source, found):
    with pytest.raises(
        TemplateError, match=rf"has no \{{input\}}, only {re.escape(found)}; the text column is \{{input"
    ):
        parse(source)


def test_the_text_columns_own_name_suggests_input():
    said = r"\{question\}, but that column is read as the input or the completion; the text column is \{input\}"
    with pytest.raises(TemplateError, match=said):
        parse("{input} {question}").check_columns(["role"], read=["question", "role"])


def test_an_unknown_field_names_the_columns_and_the_nearest():
    with pytest.raises(TemplateError) as caught:
        parse("{input} {contxt}").check_columns(["context", "role"])
    message = str(caught.value)
    assert message.startswith("teacher_prompt_template has the field {contxt}")
    assert "there are 'input', 'context', 'role'. Did you mean 'context'?" in message
    assert message.endswith("Write {{contxt}} for the text {contxt}.")
    with pytest.raises(TemplateError, match=r"there are 'input', 'role'\. Write"):
        parse("{input} {x}").check_columns(["two words", "role"])  # one that would not work is not named


def test_input_is_always_a_field():
    for source, columns in (("{input} {role}", ["role"]), ("{input}", [])):
        template = parse(source)
        template.check_columns(columns)
        assert template.fields == ("input", *columns)


@pytest.mark.parametrize(
    "source", ["", "no field", "{role}", "{{input}}", "{ {{input}}", "{0}", [{"role": "user", "content": "hi"}]]
)
def test_a_template_without_input_is_an_error(source):
    with pytest.raises(TemplateError, match=r"teacher_prompt_template has no \{input\}"):
        parse(source)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Very detailed teacher prompt...", "Very detailed teacher prompt...\n\nq"),
        ('Answer in JSON: {"a": [{}]}\n', 'Answer in JSON: {"a": [{}]}\n\nq'),
        ("Summarize:", "Summarize:\n\nq"),
    ],
)
def test_an_instruction_without_input_gets_it_at_its_end_if_that_is_asked_for(source, expected):
    template = parse_template(source, name="teacher_prompt_template", adds_input=True)
    assert template.render({"input": "q"}) == expected
    said = "teacher_prompt_template has no {input}, so a blank line and {input} are added at its end"
    assert template.notes() == [said]


@pytest.mark.parametrize(
    "source",
    ["", " \n", "{role}", "{{input}}", "{input.x}", "Say {input", "prompt.txt", "my prompts/teacher.md",
     "prompts/teacher", [{"role": "user", "content": "hi"}]],
)  # fmt: skip
def test_no_input_is_added_to_what_is_more_likely_a_mistake(source):
    with pytest.raises(TemplateError, match=r"teacher_prompt_template has no \{input\}"):
        parse_template(source, name="teacher_prompt_template", adds_input=True)


def test_a_file_by_at_sign_by_path_and_by_name(tmp_path, monkeypatch):
    file = tmp_path / "prompt.txt"
    file.write_text("One \\n line\n{input}\n\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = "One \\n line\nq\n"  # a file is taken as it is, but for the newline at its end
    for source in (f"@{file}", "@prompt.txt", "@~/prompt.txt", file, "prompt.txt"):
        assert render(source, input="q") == expected


def test_a_byte_order_mark_is_not_read(tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbfOne\r\n{input}\r\n")
    assert render(file, input="q") == "One\nq"
    file.write_bytes(b'\xef\xbb\xbf[{"role": "user", "content": "{input}"}]')
    assert parse(file).is_chat


def test_text_with_a_field_is_never_a_file(tmp_path, monkeypatch):
    (tmp_path / "{input}").write_text("from a file {input}")
    monkeypatch.chdir(tmp_path)
    assert render("{input}", input="q") == "q"


def test_an_unreadable_template_file_is_an_error(tmp_path):
    with pytest.raises(
        TemplateError, match=r"teacher_prompt_template names the file '.*none\.txt', which cannot be read"
    ):
        parse(f"@{tmp_path}/none.txt")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe{input}")
    with pytest.raises(TemplateError, match="cannot be read"):
        parse(binary)


def test_the_escapes_of_chat_messages_as_json_are_jsons():
    messages = [{"role": "user", "content": 'Say "yes" or \\n.\n{input}\n'}]
    rendered = parse_template(json.dumps(messages), name="t").render({"input": "x"})
    assert rendered == [{"role": "user", "content": 'Say "yes" or \\n.\nx\n'}]
    typed = r'[{"role": "user", "content": "a\n{input}"}]'
    assert parse_template(typed, name="t").render({"input": "x"})[0]["content"] == "a\nx"


@pytest.mark.parametrize("form", ["list", "json", "file"])
def test_chat_messages_as_a_list_as_json_and_in_a_file(form, tmp_path):
    source = CHAT
    if form == "json":
        source = json.dumps(CHAT)
    elif form == "file":
        source = tmp_path / "chat.json"
        source.write_text(json.dumps(CHAT, indent=2))
    template = parse(source)
    assert template.is_chat
    assert template.fields == ("role", "input")
    assert template.render({"role": "a cook", "input": "q"}) == [
        {"role": "system", "content": "You are a cook."},
        {"role": "user", "content": "q"},
    ]


def test_text_that_begins_with_a_bracket_is_text():
    for source in ("[INST] {input} [/INST]", "[{input}]", "[1] {input}"):
        assert render(source, input="q") == source.replace("{input}", "q")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user"}], "message 1 is not of the form"),
        ([{"role": "user", "content": ["{input}"]}], "message 1 is not of the form"),
        (["{input}"], "message 1 is not of the form"),
        (
            [CHAT[0], {"role": "poet", "content": "{input}"}],
            "message 2 has the role 'poet'; expected one of system, user",
        ),
        ([], "is an empty list"),
    ],
)
def test_chat_messages_of_another_shape_are_refused(messages, message):
    with pytest.raises(TemplateError, match=message):
        parse(messages)


@pytest.mark.parametrize("source", [3, None, {"role": "user"}])
def test_values_that_are_no_template_are_refused(source):
    with pytest.raises(TemplateError, match="give text, a path or a list of messages"):
        parse(source)


def test_a_template_knows_whether_it_is_the_identity_and_its_prefix():
    assert parse("{input}").is_identity
    assert not parse("{input} ").is_identity
    assert not parse([{"role": "user", "content": "{input}"}]).is_identity
    assert parse("Before {{x}}: {role} {input}").messages[0][1].pieces[0] == "Before {x}: "
