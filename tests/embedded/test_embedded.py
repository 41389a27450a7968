"""The shipped model: loads by the usual classes, is small, follows instructions on inputs it has not seen."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.embedded_model.measure import complete, exact_match, held_out_examples
from tools.embedded_model.tasks import KINDS, is_held_out
from tools.embedded_model.train import IGNORED, Settings, batches, encode, main, train_tokenizer
from trl_distill.embedded import embedded_path

AT_LEAST = {"lookup": 0.85, "route": 0.55, "translate": 0.8, "edit": 0.75, "form": 0.9, "extract": 0.9}
SAMPLE = 48
TINY = ["--steps", "3", "--batch-tokens", "512", "--hidden", "64", "--inner", "64", "--layers", "2", "--heads", "4"]
TINY += ["--vocabulary", "600", "--measure", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def shipped():
    path = embedded_path()
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)


def load_demo():
    spec = importlib.util.spec_from_file_location("demo", Path(__file__).parents[2] / "examples" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_embedded_folder_is_small_and_complete():
    folder = Path(embedded_path())
    assert (folder / "model.safetensors").stat().st_size <= 12 * 2**20
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"):
        assert (folder / name).is_file(), name


def test_the_embedded_model_has_a_few_million_parameters(shipped):
    assert 1e6 < shipped[0].num_parameters() < 8e6


@pytest.mark.parametrize("kind", KINDS)
def test_the_embedded_model_follows_each_kind_of_instruction_on_unseen_inputs(shipped, kind):
    examples = held_out_examples(kind, SAMPLE, seed=7)
    assert all(is_held_out(text) for example in examples for text in example.inputs)
    rate = exact_match(*shipped, [e.prompt for e in examples], [e.completion for e in examples])
    assert rate >= AT_LEAST[kind], f"{kind}: {rate:.0%}"


def test_the_embedded_model_cannot_answer_without_the_instruction(shipped):
    examples = held_out_examples("route", SAMPLE, seed=7)
    prompts = [f"{e.inputs[0]}\nAnswer:" for e in examples]
    assert exact_match(*shipped, prompts, [e.completion for e in examples]) <= 0.1


def test_the_embedded_model_follows_the_demos_long_prompt_only(shipped):
    demo = load_demo()
    messages = demo.make_messages(SAMPLE, held_out=True, seed=5)
    rates = {}
    for name, template in {"long": demo.LONG_PROMPT, "short": demo.SHORT_PROMPT}.items():
        prompts = [template.replace("{input}", text) for text in messages]
        rates[name] = exact_match(*shipped, prompts, list(messages.values()))
    assert rates["long"] >= 0.9, rates
    assert rates["short"] <= 0.2, rates
    assert 100 <= len(shipped[1](demo.LONG_PROMPT)["input_ids"]) <= 250


def test_the_embedded_model_follows_a_conversation_by_its_chat_template(shipped):
    model, tokenizer = shipped
    policy = "Decide which team should answer the message.\n- refund: Sales\n- parcel: Legal\nWrite only the team."
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "system", "content": policy}, {"role": "user", "content": f"Hello, where is my {topic}?"}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for topic in ("refund", "parcel")
    ]
    assert [text.strip() for text in complete(model, tokenizer, prompts)] == ["Sales", "Legal"]


def test_the_tokenizer_encodes_any_text_and_gives_it_back(shipped):
    tokenizer = shipped[1]
    for text in ("refund", "Grüße, 東京 — 1234!\n\tx = {'a': [1, 2]}", "[Billing] refund"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer("Billing")["input_ids"] == tokenizer(" Billing")["input_ids"]
    model = shipped[0]
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_completions_carry_the_labels_and_end_in_end_of_sequence():
    settings = Settings(vocabulary=600)
    tokenizer = train_tokenizer(settings)
    example = held_out_examples("route", 1)[0]
    ((ids, labels),) = encode(tokenizer, [example])
    prompt = tokenizer(example.prompt)["input_ids"]
    completion = [*tokenizer(example.completion)["input_ids"], tokenizer.eos_token_id]
    assert ids == prompt + completion
    assert labels == [IGNORED] * len(prompt) + completion
    for batch_ids, batch_labels in batches(Settings(steps=4, batch_tokens=2048, vocabulary=600), tokenizer):
        assert batch_ids.shape == batch_labels.shape
        assert batch_ids.numel() <= 2048
        assert (batch_labels != IGNORED).any()


def test_training_runs_and_the_seed_decides_the_result(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
            main(["--output", str(tmp_path / name), "--seed", seed, *TINY])
    finally:
        torch.set_num_threads(threads)
    assert "tokens/s" in capsys.readouterr().out
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
    assert json.loads((tmp_path / "a" / "config.json").read_text())["hidden_size"] == 64
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]  # nothing partial is left behind
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert complete(model, AutoTokenizer.from_pretrained(tmp_path / "a"), ["x"], max_new_tokens=2)


def test_asking_for_the_path_loads_no_torch():
    code = "import sys, trl_distill.embedded as e; e.embedded_path(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_weights_are_named(monkeypatch):
    import trl_distill.models.embedded as embedded

    monkeypatch.setattr(embedded, "__file__", "/nowhere/__init__.py")
    with pytest.raises(FileNotFoundError, match=r"tools\.embedded_model\.train"):
        embedded_path()
