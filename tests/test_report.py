"""The model card and its snippet."""

from __future__ import annotations

import pytest

from trl_distill.prompts import parse_template
from trl_distill.usage import loading, run_snippet, snippet


@pytest.fixture(scope="module")
def loaded(tiny_model_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny_model_dir), AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.mark.parametrize(
    ("template", "values", "prompt"),
    [
        ("Q: {input}\nA:", {"input": "a 'b' \"c\""}, "Q: a 'b' \"c\"\nA:"),
        ("{input}", {"input": "a"}, "a"),
        ("{{{role}}} {input}{input}", {"input": "a", "role": "g"}, "{g} aa"),
        ("{my column} {input}", {"input": "a", "my column": "b"}, "b a"),
    ],
)
def test_the_snippet_renders_as_the_template_does(template, values, prompt, loaded, tiny_model_dir):
    parsed = parse_template(template, name="student_prompt_template")
    code = snippet(parsed, values, new_tokens=3)
    names = {"model": loaded[0], "tokenizer": loaded[1]}
    exec(loading(tiny_model_dir) + code, names)
    assert names["prompt"] == prompt == parsed.render(values)


def test_the_snippet_prints_what_the_model_completes(loaded, tiny_model_dir):
    model, tokenizer = loaded
    code = snippet(parse_template("{input}", name="t"), {"input": "a b"}, new_tokens=4)
    printed = run_snippet(code, tiny_model_dir, model, tokenizer)
    inputs = tokenizer("a b", return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, 2:]
    assert printed == tokenizer.decode(expected, skip_special_tokens=True) + "\n"


def test_a_chat_snippet_uses_the_chat_template(chat_model_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(chat_model_dir),
        AutoTokenizer.from_pretrained(chat_model_dir),
    )
    chat = [{"role": "system", "content": "g"}, {"role": "user", "content": "{input}"}]
    code = snippet(parse_template(chat, name="t"), {"input": "a"}, new_tokens=3)
    assert "apply_chat_template" in code
    run_snippet(code, chat_model_dir, model, tokenizer)


def test_a_large_model_is_not_loaded_twice(loaded, tiny_model_dir, monkeypatch):
    monkeypatch.setattr("trl_distill.usage.LOADED_TWICE_AT_MOST", 1)
    code = snippet(parse_template("{input}", name="t"), {"input": "a"}, new_tokens=2)
    monkeypatch.setattr("trl_distill.usage.LOAD", "raise AssertionError('loaded')\n")
    run_snippet(code, tiny_model_dir, *loaded)
