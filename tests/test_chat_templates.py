"""The student's chat template: the names that are taken, files, other models', and what is refused."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from trl_distill import LLMTrainingParams, run
from trl_distill.alignment import tokenize_completion, tokenize_prompt
from trl_distill.chat_templates import take_chat_template
from trl_distill.errors import TemplateError

TURNS = [{"role": "user", "content": "a b"}]
SAID = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


@pytest.fixture
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.mark.parametrize("source", [None, "tokenizer", "none"])
def test_the_models_own_is_left_as_it_is(source, tokenizer, chat_model_dir):
    take_chat_template(tokenizer, source)
    assert tokenizer.chat_template is None
    chat = AutoTokenizer.from_pretrained(chat_model_dir)
    before = chat.chat_template
    take_chat_template(chat, source)
    assert chat.chat_template == before


@pytest.mark.parametrize(
    ("source", "prompt", "end"),
    [
        ("chatml", "<|im_start|>user\na b<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
        ("zephyr", "<|user|>\na b<|end|>\n<|assistant|>\n", "<|end|>"),
    ],
)
def test_the_built_in_ones_render_and_end_a_turn(source, prompt, end, tokenizer):
    take_chat_template(tokenizer, source)
    assert tokenizer.decode(tokenize_prompt(tokenizer, TURNS)) == prompt
    assert tokenizer.decode(tokenize_completion(tokenizer, "c", chat=True)) == "c" + end


def test_a_file_with_and_without_the_sign_and_another_model(tokenizer, chat_model_dir, tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text(SAID)
    for source in (str(path), f"@{path}"):
        take_chat_template(tokenizer, source)
        assert tokenizer.chat_template == SAID
    take_chat_template(tokenizer, str(chat_model_dir))
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(chat_model_dir).chat_template


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% for m in messages %}\n{{ m['content'] }\n{% endfor %}", r"broken.jinja' is not Jinja: line 2: .*'}'"),
        ("{% if messages %}{{ messages }}", r"is not Jinja: line 1: .*endif"),
        ("Hello there.", "is no chat template: it leaves out what the user says"),
        ("", "is no chat template: it leaves out what the user says"),
        (SAID.replace("%}<", "%}{% if m['role'] == 'user' %}<", 1) .replace("{% endfor", "{% endif %}{% endfor"),
         "it leaves out what the assistant says"),
        (SAID + "{{ raise_exception('no such thing') }}", "does not take messages of user, assistant: no such thing"),
        (SAID + "{{ messages[7]['content'] }}", "does not take messages of user, assistant"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_chat_template_is_refused_and_changes_nothing(text, said, tokenizer, tmp_path):
    path = tmp_path / "broken.jinja"
    path.write_text(text)
    with pytest.raises(TemplateError, match=said) as caught:
        take_chat_template(tokenizer, str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert tokenizer.chat_template is None


def test_what_cannot_be_found_or_read_lists_what_is_accepted(tokenizer, tiny_model_dir, tmp_path):
    for source, said in (("alpaca", "is no template"), ("./none.jinja", "is no"), (str(tiny_model_dir), "without a")):
        with pytest.raises(TemplateError, match=rf"{said}.*'tokenizer'.*'chatml', 'zephyr', a Jinja file"):
            take_chat_template(tokenizer, source)
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(TemplateError, match="cannot be read: it is not UTF-8 text"):
        take_chat_template(tokenizer, str(tmp_path / "latin"))


def test_a_run_takes_and_refuses_it_before_a_model_loads(chat_model_dir, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([{"messages": [*TURNS, {"role": "assistant", "content": "c"}]}]))
    settings = {
        "model": str(chat_model_dir), "teacher_model": str(chat_model_dir), "data_path": str(tmp_path / "data.json"),
        "dry_run": True, "project_name": str(tmp_path / "run"),
    }  # fmt: skip
    result = run(LLMTrainingParams(**settings, chat_template="zephyr"))
    assert "<|assistant|>" in result.tokenizer.chat_template
    with pytest.raises(TemplateError, match="chat_template 'alpaca'"):
        run(LLMTrainingParams(**settings, chat_template="alpaca"))
