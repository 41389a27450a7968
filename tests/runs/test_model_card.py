"""The snippet of the model card; that it gives the ids of training is in tests/prompts/test_serving.py."""

from __future__ import annotations

import pytest
from forms import user
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill.data.preflight import Example
from trl_distill.prompts.rendering import render
from trl_distill.prompts.row import Row
from trl_distill.prompts.serving_template import marked
from trl_distill.prompts.template import parse_template
from trl_distill.prompts.tokenization import tokenize_prompt
from trl_distill.runs.usage_snippet import loading, printed, snippet


@pytest.fixture(scope="module")
def loaded(tiny_model_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir), AutoTokenizer.from_pretrained(tiny_model_dir)


def example(tokenizer, source, values):
    """Return a row of text as the card shows it."""
    template = parse_template(source, name="student_prompt_template")
    row = Row(1, values["input"], values)
    return Example(
        render(template, marked(row, template)), values, {}, tokenize_prompt(tokenizer, render(template, row))
    )


@pytest.mark.parametrize(
    ("template", "values", "prompt"),
    [
        ("Q: {input}\nA:", {"input": "a 'b' \"c\""}, "Q: a 'b' \"c\"\nA:"),
        ("{input}", {"input": "a"}, "a"),
        ("{{{role}}} {input}{input}", {"input": "a", "role": "g"}, "{g} aa"),
        ("{class} {input}", {"input": "a", "class": "b", "unused": "c"}, "b a"),
        ('{"a": {"b": {input}}} {{input}}', {"input": "a"}, '{"a": {"b": a}} {input}'),
    ],
)
def test_the_snippet_renders_as_the_template_does(template, values, prompt, loaded, tiny_model_dir):
    code = snippet(example(loaded[1], template, values), loaded[1], new_tokens=3)
    names = {"model": loaded[0], "tokenizer": loaded[1]}
    exec(loading(tiny_model_dir) + code, names)
    assert names["prompt"] == prompt
    assert "unused" not in code


def test_the_card_shows_the_models_output(loaded):
    model, tokenizer = loaded
    text = printed(example(tokenizer, "{input}", {"input": "a b"}), model, tokenizer, new_tokens=4)
    inputs = tokenizer("a b", return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, 2:]
    assert text == tokenizer.decode(expected, skip_special_tokens=True)


def test_the_snippet_shows_the_ids_if_no_text_gives_them(loaded, tiny_model_dir):
    model, tokenizer = loaded
    odd = Example("a b", {"input": "a b"}, {}, [*tokenizer("a b")["input_ids"], tokenizer.pad_token_id])
    names: dict = {}
    exec(loading(tiny_model_dir) + snippet(odd, tokenizer, new_tokens=1), names)
    assert names["inputs"]["input_ids"].tolist() == [odd.ids]
    assert printed(odd, model, tokenizer, new_tokens=1) is not None


def test_a_chat_snippet_uses_the_chat_template(chat_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(chat_model_dir)
    chat = [{"role": "system", "content": "g"}, user("{input}")]
    code = snippet(example(tokenizer, chat, {"input": "a"}), tokenizer, new_tokens=3)
    assert "apply_chat_template" in code
    assert "tokenizer(prompt" not in code
