"""What is trained is what is served: the saved chat template, by plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import trl
from conftest import make_tokenizer
from forms import MARKED, assistant, user
from tokenizers.processors import TemplateProcessing
from tokenizing import byte_level, llama, pieces
from transformers import AutoTokenizer

from trl_distill.errors import TemplateError
from trl_distill.models.own_chat_template import own_template
from trl_distill.prompts.rendering import render
from trl_distill.prompts.row import Row
from trl_distill.prompts.serving_template import Serving, frame_of, serving_of
from trl_distill.prompts.template import parse_template
from trl_distill.prompts.tokenization import tokenize_prompt

SHIPPED = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
MESSAGES = ["What is 2 + 2?", " {a} {{ b }} {% c %}\n\n'd' \"e\" \\n\n", "déjà vu 東京\t<x>"]
ODD = 'Q: {{% "{input}" %}} {{#\\n\n'  # braces, quotes and a newline at the end, in our notation
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
TALK = [user("a"), assistant("b"), user("c d")]


def row(message, history=None):
    """Return a row as `read_rows` has it."""
    return Row(1, message, {}, None if history is None else [*history, user(message)])


def trained(tokenizer, template, message, history=None, options=None):
    """Return the ids that training reads."""
    return tokenize_prompt(tokenizer, render(template, row(message, history)), options or {})


def saved(tokenizer, template, folder, history=None, options=None):
    """Save a tokenizer to be served, and return what plain transformers loads, or the line that it cannot be."""
    frame = frame_of(row("x", history), template, options or {})
    serving = serving_of(tokenizer, template, [frame])
    if isinstance(serving, Serving):
        if serving.source is None:
            return serving.line
        serving.put(tokenizer)
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def ids_of(tokenizer, messages, **more):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **more)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_each_chat_template_serves_the_ids_of_training(path, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|end|>"
    options = {"enable_thinking": False}
    templates = {
        "text": (parse_template(ODD, name="t"), []),
        "shots": (parse_template([user("a"), assistant("b"), user(ODD)], name="t"), []),
        "system": (parse_template("{input}", name="t"), [{"role": "system", "content": "Be brief.\n"}]),
    }
    for name, (template, history) in templates.items():
        tokenizer.chat_template = path.read_text()
        try:
            expected = [trained(tokenizer, template, message, history, options) for message in MESSAGES]
        except TemplateError:  # such as a system message, which Gemma's does not take
            continue
        if MESSAGES[0] not in tokenizer.decode(expected[0]):
            assert path.stem.startswith(
                ("idefics3", "llava_next", "smolvlm")
            )  # they read parts of images and text alone
            continue
        own = ids_of(tokenizer, TALK, **options)
        loaded = saved(tokenizer, template, tmp_path / name, history, options)
        assert [ids_of(loaded, [user(message)]) for message in MESSAGES] == expected
        assert [ids_of(loaded, [user([{"type": "text", "text": m}])]) for m in MESSAGES] == expected
        assert ids_of(loaded, TALK) == own
        if isinstance(loaded.chat_template, dict):
            assert loaded.chat_template["original"] == own_template(loaded.chat_template) == path.read_text()


def with_tokens(tokenizer, front, back):
    """Return a tokenizer that puts its bos in front of a text, and its eos behind it."""
    if front and tokenizer.bos_token is None:
        tokenizer.add_special_tokens({"bos_token": "<s>"})
    special = [token for token in (tokenizer.bos_token, tokenizer.eos_token) if token]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{f'{tokenizer.bos_token} ' if front else ''}$A{f' {tokenizer.eos_token}' if back else ''}",
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in special],
    )
    return tokenizer


KINDS = {
    "letters": make_tokenizer,
    "gpt2": byte_level,
    "gpt2 with a space": lambda: byte_level(prefix=True),
    "llama2": llama,
    **{f"pieces {scheme}": lambda scheme=scheme: pieces(scheme=scheme) for scheme in ("never", "first", "always")},
}


@pytest.mark.parametrize("own", [None, MARKED], ids=["base", "chat"])
@pytest.mark.parametrize("ends", ["", "bos", "eos", "bos eos"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_template_serves_the_ids_of_training(kind, ends, own, tmp_path):
    for number, source in enumerate(["{input}", "Q: {input}\nA:", " {input} and {input}", ODD]):
        tokenizer, template = KINDS[kind](), parse_template(source, name="t")
        if ends:
            with_tokens(tokenizer, "bos" in ends, "eos" in ends)
        tokenizer.chat_template = own
        expected = [trained(tokenizer, template, message) for message in MESSAGES]
        assert all(ids[-1] != tokenizer.eos_token_id for ids in expected)
        loaded = saved(tokenizer, template, tmp_path / str(number))
        assert [ids_of(loaded, [user(message)]) for message in MESSAGES] == expected
        if own is None:
            with pytest.raises(Exception, match=r"trained on one user message .* send that message alone"):
                ids_of(loaded, TALK)
        else:
            assert ids_of(loaded, TALK) == ids_of(loaded, TALK, chat_template="original")
            assert ids_of(loaded, [user("a")], tools=TOOLS) == ids_of(
                loaded, [user("a")], tools=TOOLS, chat_template="original"
            )


def test_an_answer_follows_the_trained_prompt(tmp_path):
    tokenizer = make_tokenizer()
    loaded = saved(tokenizer, parse_template("Q: {input}\nA:", name="t"), tmp_path)
    text = loaded.apply_chat_template([user("a"), assistant(" b")], tokenize=False)
    assert text == "Q: a\nA: b<|end|>"
