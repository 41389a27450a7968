"""Runs with a teacher behind a server, through the command, the library and a TRL script; and where the key is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import KEY
from datasets import Dataset
from transformers import AutoTokenizer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, TeacherError, run
from trl_distill.cli import main
from trl_distill.prompts.chat_template import ChatTemplate
from trl_distill.teachers.remote import request_pool

WORDS = ["red cat", "blue dog", "tall tree", "old house"]
TEMPLATE = "Write the words in reverse order.\n{input}\n"


@pytest.fixture
def settings(server, tiny_model_dir, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([{"text": words} for words in WORDS]))
    return {
        "model": str(tiny_model_dir), "teacher_model": server.teacher, "data_path": str(tmp_path / "data.json"),
        "teacher_prompt_template": TEMPLATE, "distill_alpha": 0, "distill_max_teacher_length": 12,
        "project_name": str(tmp_path / "run"), "epochs": 1, "gradient_accumulation": 1,
    }  # fmt: skip


@pytest.fixture
def command(settings, monkeypatch):
    """Return a function that runs the command with the settings and others."""
    monkeypatch.setattr(request_pool, "BACKOFF", 0.02)

    def go(*more, **changed):
        flags = [word for k, v in {**settings, **changed}.items() for word in (f"--{k.replace('_', '-')}", str(v))]
        return CliRunner().invoke(main, ["llm", *flags, *more])

    return go


def files_with(text: str, folder: Path) -> list[Path]:
    """Return the files below a folder that hold a text."""
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_the_command_learns_from_a_server(command, server, tmp_path, tiny_model_dir):
    result = command()
    assert result.exit_code == 0, result.output
    assert f"Teacher: embedded at {server.url}" in result.stdout
    assert "(estimated with the student's tokenizer)" in result.stdout
    assert "cross-entropy alone" in result.stdout
    assert sorted(server.answered()) == sorted(TEMPLATE.replace("\\n", "\n").format(input=w) for w in WORDS)
    lines = [json.loads(line) for line in (tmp_path / "run" / "teacher_completions.jsonl").read_text().splitlines()]
    assert len(lines) == len(WORDS)
    assert all(line["text"] and line["finished"] and not line["ids"] for line in lines)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "`embedded (on a server)`" in card
    assert server.url not in card
    again = command("--overwrite")
    assert again.exit_code == 0, again.output
    assert len(server.requests()) == len(WORDS)  # nothing is asked twice


def test_the_key_is_in_no_output_and_no_file(command, server, tmp_path, monkeypatch):
    server.fail({"kind": "500", "said": "broken for KEY"})
    result = command("--debug")
    assert result.exit_code == 0, result.output
    assert KEY not in result.output
    said = {"401": "no KEY here", "400": "bad: KEY", "500": "KEY"}
    for status, text in said.items():
        server.fail(*[{"kind": status, "said": text}] * 100)
        result = command("--debug", "--overwrite", distill_max_teacher_length=5)
        assert result.exit_code == (1 if status == "500" else 2)
        assert "Traceback" in result.output
        assert "***" in result.output
        assert KEY not in result.output
    server.fail({"kind": "500", "said": "broken for KEY"})
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    monkeypatch.setenv("SERVERS_KEY", KEY)
    result = command("--debug", "--overwrite", distill_max_teacher_length=6, teacher_key_env="SERVERS_KEY")
    assert result.exit_code == 0, result.output
    assert files_with("SERVERS_KEY", tmp_path)
    assert KEY not in result.output
    (tmp_path / "stages.yaml").write_text("- epochs: 1\n- max_steps: 1\n  teacher_key_env: SERVERS_KEY\n")
    result = command("--stages", str(tmp_path / "stages.yaml"), "--overwrite")
    assert result.exit_code == 0, result.output
    assert KEY not in result.output
    assert any(files_with("embedded", tmp_path))
    assert files_with(KEY, tmp_path) == []


def test_each_server_of_a_list_gets_its_own_key(settings, server, tmp_path, monkeypatch):
    keys = {"ONE": "key-of-one", "TWO": "key-of-two"}
    teachers = [{"model": f"{server.url}#{name}", "key_env": name, "rows": 0.5} for name in keys]
    for name, key in keys.items():
        monkeypatch.setenv(name, key)
    del settings["teacher_model"], settings["teacher_prompt_template"]
    run(LLMTrainingParams(**{**settings, "max_steps": 1, "log": "none"}, teacher_config=teachers))
    assert {(r["request"]["model"], r["key"]) for r in server.requests()} == set(keys.items())
    assert "key_env: TWO" in (tmp_path / "run" / "config.yaml").read_text()
    assert files_with("key-of-", tmp_path) == []


def test_a_url_with_a_password_is_refused_before_anything_is_written(command, tmp_path):
    result = command("--debug", teacher_model="http://me:s3cret@127.0.0.1:9/v1#m")
    assert result.exit_code == 2
    assert "credentials" in result.output
    assert "s3cret" not in result.output
    assert files_with("s3cret", tmp_path) == []


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"teacher_logprobs": "none"}, "--teacher-model 'embedded' gives text only, which has nothing"),
        (
            {"distill_temperature": 2},
            "--distill-temperature is 2, and a server's log-probabilities are at temperature 1",
        ),
        ({"distill_temperature": 1, "distill_divergence": "jsd"}, "--distill-divergence 'jsd' needs"),
    ],
)
def test_a_divergence_that_a_server_cannot_serve_is_refused_before_anything_is_asked(
    changed, sentence, command, server, tmp_path
):
    result = command("--strict", distill_alpha=0.7, **changed)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"aitraining: error: {sentence}")
    assert server.requests() == []
    assert not (tmp_path / "run").exists()


def test_a_text_only_server_is_detected_and_refused_with_strict(command, server, tmp_path):
    result = command("--strict", distill_alpha=0.7, distill_temperature=1)
    assert result.exit_code == 2
    assert "asked for prompt_logprobs it gave none; asked for top_logprobs it gave none" in result.stderr
    assert "--distill-alpha 0, or drop --strict" in result.stderr
    assert [r["request"]["max_tokens"] for r in server.requests()] == [1, 8]
    assert not (tmp_path / "run").exists()


def test_a_text_teacher_is_learned_from_by_cross_entropy_only(settings, server, tmp_path, capsys):
    zero = run(LLMTrainingParams(**settings))
    more = ({}, {"allow_text_only_teacher": True, "strict": True, "distill_temperature": 1}, {"distill_alpha_end": 0.2})
    for changed in more:
        result = run(LLMTrainingParams(**{**settings, "distill_alpha": 0.7, "overwrite": True, **changed}))
        assert result.metrics["train_loss"] == pytest.approx(zero.metrics["train_loss"])
        assert result.metrics["train_loss"] == pytest.approx(result.metrics["train_ce"])
        given = "0.7 to 0.2" if "distill_alpha_end" in changed else "0.7"
        row = f"| distill_alpha | 0 (the teacher gives text only; {given} was given) |"
        assert row in (tmp_path / "run" / "README.md").read_text()
        assert f"no probabilities; alpha {given} counts as 0" in capsys.readouterr().out
        assert result.metrics["preflight_train"]["used_instead"] == {"distill_alpha": 0}
        assert not any("distill_alpha" in line for line in result.trainer.state.log_history)
    written = [r for r in server.requests() if r["request"]["max_tokens"] == 12]
    assert len(written) == len(WORDS)  # the others ask what it can do


def test_a_run_out_of_budget_resumes_from_stored_completions(command, server):
    result = command("--teacher-max-requests", "3", "--teacher-concurrency", "1")
    assert result.exit_code == 1
    assert "3 of 4 completions are kept in" in result.stderr
    result = command("--teacher-max-requests", "3")
    assert result.exit_code == 0, result.output
    assert len(server.answered()) == len(WORDS)


def test_a_bare_name_is_openais_and_the_run_says_so(command, server, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    result = command(teacher_model="gpt-4o-mini")
    assert result.exit_code == 0, result.output
    assert f"Teacher: gpt-4o-mini at {server.url}\n" in result.stdout
    assert {r["request"]["model"] for r in server.requests()} == {"gpt-4o-mini"}


def test_a_folder_of_openais_name_is_the_teacher_and_the_run_says_so(command, server, monkeypatch, tmp_path):
    import shutil

    from trl_distill.embedded import embedded_path

    monkeypatch.chdir(tmp_path)
    shutil.copytree(embedded_path(), tmp_path / "gpt-4o-mini", ignore=shutil.ignore_patterns("*.py*", "__pycache__"))
    result = command("--dry-run", teacher_model="gpt-4o-mini", model="embedded")
    assert result.exit_code == 0, result.output
    assert "Teacher: the folder gpt-4o-mini (openai:gpt-4o-mini is" in result.stdout
    assert server.requests() == []


def test_data_with_completions_asks_nothing(settings, server, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([{"text": w, "completion": w} for w in WORDS]))
    run(LLMTrainingParams(**settings))
    assert server.requests() == []


def test_a_script_learns_from_a_server_and_ends_as_its_student_does(server, chat_model_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(chat_model_dir)
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "{input}"}]
    args = DistillationSFTConfig(
        output_dir=str(tmp_path), use_distillation=True, teacher_model=server.teacher, distill_alpha=0.0,
        teacher_prompt_template=json.dumps(turns), student_prompt_template=json.dumps(turns[1:]),
        distill_max_teacher_length=12, completions="teacher", use_cpu=True, report_to="none", max_steps=1,
    )  # fmt: skip
    bodies = [{"message": {"content": "a b"}, "finish_reason": end} for end in ("stop", "length")]
    server.fail(*[{"kind": "body", "body": {"choices": [body]}} for body in bodies])
    args.teacher_concurrency = 1
    data = Dataset.from_list([{"text": w} for w in WORDS[:2]])
    trainer = DistillationSFTTrainer(str(chat_model_dir), args, train_dataset=data)
    ids = list(tokenizer("a b")["input_ids"])
    ends = [ChatTemplate(tokenizer).end.token, *tokenizer("\n")["input_ids"]]  # the chat template writes both
    assert trainer.train_dataset["completion"][:] == [[*ids, *ends], ids]
    assert server.requests()[0]["request"]["messages"] == [turns[0], {"role": "user", "content": WORDS[0]}]
    trainer.train()
    args.distill_alpha, args.distill_temperature, args.strict = 0.5, 1.0, True
    with pytest.raises(TeacherError, match=r"gives text only .*distill_alpha=0, or drop strict"):
        DistillationSFTTrainer(str(chat_model_dir), args, train_dataset=data)


def said(content, end="stop", **more):
    """Return a fault: an answer of these words."""
    return {"kind": "body", "body": {"choices": [{"message": {"content": content, **more}, "finish_reason": end}]}}


def test_answers_of_which_nothing_can_be_learned_are_counted_and_paid_once(command, server):
    server.fail(said("half", "content_filter"), said("", "length", reasoning="hm"), said(""))
    one = {"teacher_concurrency": 1, "distill_max_teacher_length": 12}
    for _ in range(2):
        result = command("--dry-run", **one)
        assert result.exit_code == 0, result.output
        assert (
            "1 of 4 used; 3 set aside: 1 because the server filtered the teacher's answer (content_filter) (row 1); "
            "1 because the teacher was still reasoning when its answer was cut; raise --distill-max-teacher-length "
            "(row 2); "
            "1 because the teacher's answer is empty (row 3)" in result.stdout
        )
    assert len(server.requests()) == len(WORDS)


def test_a_run_of_which_all_answers_are_filtered_ends_with_a_sentence(command, server, tmp_path):
    server.fail(*[said("", "content_filter")] * len(WORDS))
    result = command()
    assert result.exit_code == 2
    assert (
        "no row has a completion token to learn; 0 of 4 used; 4 set aside: 4 because the server filter" in result.stderr
    )
    assert "choose another teacher" in result.stderr
    assert not (tmp_path / "run" / "README.md").exists()
    assert len(server.requests()) == len(WORDS)


def test_reasoning_is_learned_where_the_chat_template_has_it(chat_model_dir, server, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(chat_model_dir)
    thinks = "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.reasoning_content %}"
    thinks += "[{{ message.reasoning_content }}] {% endif %}{{ message.content }}<|im_end|>\n{% endfor %}"
    thinks += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    forms = {"[hm] a b": thinks, "<think>\nhm\n</think>\n\na b": tokenizer.chat_template}
    turns = [{"role": "user", "content": "{input}"}]
    for place, (text, template) in enumerate(forms.items()):
        tokenizer.chat_template = template
        args = DistillationSFTConfig(
            output_dir=str(tmp_path / str(place)), use_distillation=True, teacher_model=server.teacher,
            distill_alpha=0.0, student_prompt_template=json.dumps(turns), completions="teacher", use_cpu=True,
            report_to="none", teacher_reasoning="keep",
        )  # fmt: skip
        server.fail(said("a b", reasoning_content="hm"))
        data = Dataset.from_list([{"text": "red cat"}])
        trainer = DistillationSFTTrainer(str(chat_model_dir), args, train_dataset=data, processing_class=tokenizer)
        expected = [*tokenizer(text)["input_ids"], ChatTemplate(tokenizer).end.token, *tokenizer("\n")["input_ids"]]
        assert trainer.train_dataset["completion"][:] == [expected]
