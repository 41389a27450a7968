"""The model card of a run: its snippet, the commands it ends with, and its place in the Hub's graph.

That the snippet gives the ids of training is in tests/prompts/test_serving.py.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from forms import user
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import LLMTrainingParams, run
from trl_distill.cli import main
from trl_distill.config.training_params import is_hub_data
from trl_distill.data.example import Example
from trl_distill.errors import printable
from trl_distill.models.loading import keep_tokenizer
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


@pytest.fixture
def project(tiny_model_dir, tiny_teacher_dir, tmp_path, monkeypatch):
    """Return a function that runs in a folder and returns the card, what was printed, and the result."""
    (tmp_path / "queries.jsonl").write_text("\n".join(json.dumps({"text": w, "completion": "a b"}) for w in "abcd"))
    monkeypatch.chdir(tmp_path)

    def make(capsys, **settings):
        base = {"model": str(tiny_model_dir), "teacher_model": str(tiny_teacher_dir), "data_path": "queries.jsonl"}
        result = run(LLMTrainingParams(**{**base, "max_steps": 1, **settings}))
        return ModelCard.load(result.paths["card"]), capsys.readouterr().out, result

    return make


def test_card_and_terminal_end_with_the_commands_that_ask_evaluate_and_serve(project, capsys):
    card, out, _ = project(capsys, project_name="my runs/a", student_prompt_template="c {input} d", card_example=True)
    shown = dict(re.findall(r"^  (ask it|evaluate it|serve it): +(.*)$", out, re.MULTILINE))
    assert list(shown) == ["ask it", "evaluate it", "serve it"]
    assert shown["evaluate it"] == "aitraining evaluate 'my runs/a' --data-path heldout.jsonl"
    assert shown["serve it"] == "aitraining export 'my runs/a' --to vllm"
    assert out.rstrip().endswith(shown["serve it"])
    for command in shown.values():
        assert command in card.text.partition("## Next")[2]
    program, flag, code = shlex.split(shown["ask it"])
    assert (program, flag) == ("python", "-c")
    exec(code, {})
    assert printable(capsys.readouterr().out).strip() in card.text.partition("it printed:")[2]


@pytest.mark.parametrize("kind", ["teacher_config", "teacher_prompt_mixture", "ema"])
def test_the_command_that_evaluates_names_one_teacher_if_the_run_had_several(kind, project, capsys, tiny_teacher_dir):
    pytest.importorskip("sacrebleu", reason="every evaluation has chrF")
    prompts = [{"template": template, "weight": 0.5} for template in ("c {input} d", "d {input}")]
    teachers = [{"model": str(tiny_teacher_dir), **prompt} for prompt in prompts]
    several = {
        "teacher_config": {"teacher_model": None, "teacher_config": {"combine": "mixture", "teachers": teachers}},
        "teacher_prompt_mixture": {"teacher_prompt_mixture": prompts},
        "ema": {"teacher_model": "ema", "teacher_prompt_template": "c {input} d"},
    }
    _, out, _ = project(capsys, project_name="a", holdout=0.3, save_strategy="no", **several[kind])
    command = re.search(r"^  evaluate it: +aitraining (.*)$", out, re.MULTILINE)[1]
    Path("prompt.txt").write_text("c {input} d")
    done = CliRunner().invoke(main, [*shlex.split(command), "--timed-queries", "0", "--max-new-tokens", "2"])
    assert done.exit_code == 0, done.stderr
    assert "student after" in done.stdout


def test_a_long_input_is_not_repeated_in_the_command(project, capsys):
    _, out, _ = project(capsys, project_name="a", data_path=[{"text": "a b " * 30, "completion": "c"}])
    assert '"content": "Hello"' in out
    assert "a b a b" not in out.partition("Next:")[2]


@pytest.mark.parametrize("chat", [False, True])
def test_without_a_teacher_there_is_nothing_to_compare_with(chat, project, capsys):
    row = {"messages": [user("a"), {"role": "assistant", "content": "b"}]} if chat else {"text": "a b"}
    template = {"chat_template": "chatml"} if chat else {}
    settings = {"teacher_model": None, "trainer": "sft", "data_path": [row] * 4, **template}
    card, out, _ = project(capsys, project_name="a", **settings)
    shown = dict(re.findall(r"^  (ask it|evaluate it|serve it): +(.*)$", out, re.MULTILINE))
    assert list(shown) == ["ask it", "serve it"]
    assert ('[{"role": "user", "content": "Hello"}]' if chat else '("Hello",') in shown["ask it"]
    assert "evaluate" not in card.text
    exec(shlex.split(shown["ask it"])[2], {})


def test_the_card_of_an_adapter_is_pefts_and_names_base_and_data(project, capsys, tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.config._name_or_path = "desk/small"
    keep_tokenizer(model, AutoTokenizer.from_pretrained(tiny_model_dir))
    card, _, result = project(capsys, project_name="a", model=model, peft=True)
    assert (card.data.library_name, card.data.base_model) == ("peft", "desk/small")
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert card.data.datasets is None
    whole, _, _ = project(capsys, project_name="b", model=str(result.paths["project"]))
    assert (whole.data.library_name, whole.data.base_model) == ("transformers", "desk/small")
    assert is_hub_data("desk/messages")
    assert not is_hub_data("queries.jsonl")
    assert not is_hub_data([{"text": "a"}])


def test_a_card_loads_the_model_from_where_the_command_ran(project, capsys, tmp_path):
    card, _, _ = project(capsys, project_name=str(tmp_path / "runs" / "a"))
    assert "from_pretrained('runs/a')" in card.text


def test_the_card_of_the_hub_loads_the_model_from_there(project, capsys, monkeypatch):
    uploaded = {}

    class Hub:
        def __init__(self, token):
            pass

        def create_repo(self, name, **_):
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, **_):
            pass

        def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id):
            uploaded[path_in_repo] = path_or_fileobj.decode()

    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("trl_distill.runs.hub.is_switched_off", lambda: False)
    card, out, _ = project(capsys, project_name="runs/a", push_to_hub=True, username="me")
    assert "Uploaded to me/a." in out
    assert "from_pretrained('me/a')" in uploaded["README.md"]
    assert "runs/a" not in uploaded["README.md"]
    assert "# ask it" in uploaded["README.md"]
    assert "aitraining" not in uploaded["README.md"].partition("## Next")[2]
    assert "from_pretrained('runs/a')" in card.text
