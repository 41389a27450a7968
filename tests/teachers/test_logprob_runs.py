"""Runs that learn from the log-probabilities of a server, through the command, the library and a TRL script."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from conftest import KEY
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, ParamsError, run
from trl_distill.cli import main
from trl_distill.embedded import embedded_path
from trl_distill.teachers.remote import request_pool

WORDS = ["red cat", "blue dog", "tall tree", "old house"]
TEMPLATE = "Write the words in reverse order.\n{input}\n"
K = 12


@pytest.fixture
def settings(server, student_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(request_pool, "BACKOFF", 0.02)
    data = [{"text": words, "completion": " ".join(reversed(words.split()))} for words in WORDS]
    (tmp_path / "data.json").write_text(json.dumps(data))
    return {
        "model": str(student_dir), "teacher_model": server.teacher, "data_path": str(tmp_path / "data.json"),
        "teacher_prompt_template": TEMPLATE, "distill_alpha": 0.7, "distill_temperature": 1, "teacher_top_k": K,
        "distill_max_teacher_length": 12, "teacher_endpoint": "completions", "teacher_concurrency": 1,
        "project_name": str(tmp_path / "run"), "epochs": 2, "gradient_accumulation": 1, "logging_steps": 1, "lr": 1e-3,
        "warmup_ratio": 0,
    }  # fmt: skip


@pytest.fixture
def command(settings):
    """Return a function that runs the command with the settings and others."""

    def go(*more, **changed):
        flags = [word for k, v in {**settings, **changed}.items() for word in (f"--{k.replace('_', '-')}", str(v))]
        return CliRunner().invoke(main, ["llm", *flags, *more])

    return go


def losses(folder, name="loss"):
    return [line[name] for line in json.loads((folder / "metrics.json").read_text())["history"] if name in line]


def test_a_server_gives_the_losses_of_a_store_of_the_same_teacher(settings, server, tmp_path):
    server.give("prompt")
    result = run(LLMTrainingParams(**settings))
    stored = {
        **settings, "teacher_model": "embedded", "teacher_dtype": "float32", "teacher_endpoint": "chat",
        "teacher_store": str(tmp_path / "store"), "project_name": str(tmp_path / "stored"),
    }  # fmt: skip
    expected = run(LLMTrainingParams(**stored))
    for name in ("loss", "kl", "ce"):
        assert losses(tmp_path / "run", name) == pytest.approx(losses(tmp_path / "stored", name), rel=1e-3), name
    for mine, theirs in zip(result.model.parameters(), expected.model.parameters(), strict=True):
        assert (mine - theirs).norm() <= 1e-2 * theirs.norm()
    assert result.metrics["train_teacher_coverage"] == 1
    assert "train_teacher_coverage" not in expected.metrics
    kinds = {r["path"] for r in server.requests()}
    assert kinds == {"/v1/completions"}


def test_a_server_in_a_list_of_teachers_has_the_losses_of_a_run_alone(settings, server, tmp_path):
    server.give("prompt")
    run(LLMTrainingParams(**settings))
    listed = {**settings, "teacher_model": None, "project_name": str(tmp_path / "listed")}
    template = listed.pop("teacher_prompt_template")
    listed["teacher_config"] = [{"model": server.teacher, "template": template}]
    run(LLMTrainingParams(**listed))
    for name in ("loss", "kl"):
        assert losses(tmp_path / "listed", name) == pytest.approx(losses(tmp_path / "run", name), rel=1e-6), name


@pytest.mark.parametrize("name", ["packing", "padding_free"])
def test_a_server_gives_the_same_losses_for_packed_rows(name, settings, server, tmp_path):
    server.give("prompt")
    settings["batch_size"] = len(WORDS)
    run(LLMTrainingParams(**settings))
    run(LLMTrainingParams(**{**settings, "project_name": str(tmp_path / "packed"), name: True}))
    for figure in ("loss", "kl", "teacher_coverage", "num_tokens"):
        expected = pytest.approx(losses(tmp_path / "run", figure), rel=1e-5)
        assert losses(tmp_path / "packed", figure) == expected, figure


def test_a_chat_is_scored_as_the_chat_template_writes_it(settings, server, tmp_path):
    server.give("prompt")
    chat = [{"role": "user", "content": TEMPLATE}]
    one = {**settings, "teacher_endpoint": "chat", "project_name": str(tmp_path / "text")}
    two = {**one, "teacher_prompt_template": chat, "project_name": str(tmp_path / "chat")}
    run(LLMTrainingParams(**one))
    tokenizer = AutoTokenizer.from_pretrained(embedded_path())
    said = tokenizer.decode(server.requests()[-1]["prompt"])
    assert said.startswith("User: Write the words")
    server.fail()
    server.give("prompt")
    run(LLMTrainingParams(**two))
    assert losses(tmp_path / "text") == losses(tmp_path / "chat")  # text is what a user says


def test_the_command_says_what_was_found_and_asks_nothing_twice(command, server, tmp_path):
    server.give("prompt", "top")
    result = command()
    assert result.exit_code == 0, result.output
    found = f"it gives the {K} likeliest tokens at each token of a given completion (prompt_logprobs)"
    assert f"Teacher: embedded at {server.url}; {found}\n" in result.stdout
    assert "100.0% of completion tokens have the teacher's log-probabilities" in result.stdout
    assert "estimated" not in result.stdout  # its prompts are counted with its own tokenizer
    assert "covered 100%" in result.stdout
    assert "| distill_alpha | 0.7 |" in (tmp_path / "run" / "README.md").read_text()
    assert len(server.requests()) == 1 + len(WORDS)
    again = command("--overwrite")
    assert again.exit_code == 0, again.output
    assert len(server.requests()) == 1 + len(WORDS)


def test_completions_in_the_students_tokens_are_learned_with_log_probabilities(
    command, server, tmp_path, tiny_model_dir
):
    server.give("top")
    result = command(model=tiny_model_dir, completions="teacher", teacher_endpoint="chat", distill_alpha=1)
    assert result.exit_code == 0, result.output
    assert "likeliest tokens at each token that it writes (top_logprobs)" in result.stdout
    share = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]["train_teacher_coverage"]
    assert 0 < share < 1
    assert f"{share:.1%} of completion tokens have the teacher's log-probabilities" in result.stdout
    # with alpha 1 a position with targets has the divergence alone, any other the cross-entropy alone
    for loss, kl, ce in zip(*(losses(tmp_path / "run", name) for name in ("loss", "kl", "ce")), strict=True):
        assert kl < loss < kl + ce
    sent = len(server.requests())
    assert command("--overwrite", model=tiny_model_dir, completions="teacher", teacher_endpoint="chat").exit_code == 0
    assert len(server.requests()) == sent


def test_a_server_without_targets_for_the_datas_completions_is_refused(command, server, tmp_path):
    server.give("top")
    result = command()
    assert result.exit_code == 2
    assert "none of the" in result.stderr
    assert "--completions teacher, or --distill-alpha 0" in result.stderr
    assert {r["request"]["max_tokens"] for r in server.requests()} == {1, 8}  # nothing costly was asked
    allowed = command("--allow-text-only-teacher")
    assert allowed.exit_code == 0, allowed.output
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "run", "ce"))


def test_log_probabilities_that_a_server_cannot_give_are_refused(command, server):
    server.give("top")
    result = command(teacher_logprobs="prompt")
    assert result.exit_code == 2
    assert "gives text only (asked for prompt_logprobs it gave none)" in result.stderr
    assert len(server.requests()) == 1


def test_a_refused_key_is_reported_as_such(command, server):
    server.give("prompt")
    server.fail({"kind": "401", "said": "no KEY here"})
    result = command("--allow-text-only-teacher", "--debug")
    assert result.exit_code == 2
    assert "refuses the request with status 401" in result.stderr
    assert KEY not in result.output


def test_with_alpha_0_no_log_probabilities_are_requested(command, server):
    server.give("prompt", "top")
    result = command(distill_alpha=0, completions="teacher", distill_temperature=3)
    assert result.exit_code == 0, result.output
    assert not any({"prompt_logprobs", "logprobs"} & set(r["request"]) for r in server.requests())
    assert len(server.requests()) == len(WORDS)


def test_a_server_that_dies_half_way_loses_nothing_and_the_key_is_nowhere(command, server, tmp_path):
    server.give("prompt")
    server.fail(None, {"kind": "500", "said": "broken for KEY"}, None, None, {"kind": "die"})
    server.give("prompt")
    result = command("--debug")
    assert result.exit_code == 1
    assert "2 of 4 scored completions are kept in" in result.output
    assert KEY not in result.output
    server.revive()
    result = command("--debug")
    assert result.exit_code == 0, result.output
    answered = [json.dumps(prompt) for prompt in server.answered()]
    assert len(answered) == len(set(answered)) == 1 + len(WORDS)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "teacher_logprobs.jsonl" for path in written)
    assert not [path for path in written if KEY.encode() in path.read_bytes()]


def test_a_budget_of_money_ends_cleanly_and_the_same_command_resumes(command, server):
    server.give("prompt")
    prices = ["--teacher-price-input", "1000000", "--teacher-price-output", "0", "--teacher-max-cost"]
    first = command(*prices, "40")
    assert first.exit_code == 1
    assert "reach --teacher-max-cost 40" in first.stderr
    assert "of 4 scored completions are kept in" in first.stderr
    some = len(server.requests())
    assert 0 < some < 1 + len(WORDS)
    second = command(*prices, "100000")
    assert second.exit_code == 0, second.output
    assert ", cost " in second.stderr
    assert len(server.requests()) == 1 + len(WORDS)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"teacher_max_cost": 3.0}, "teacher_max_cost is 3.*teacher_price_input and teacher_price_output"),
        ({"teacher_max_cost": 3.0, "teacher_price_input": 1.0}, "give teacher_price_output, the cost"),
        ({"teacher_price_output": 1.0}, "teacher_price_output is 1.*give teacher_price_input, the cost"),
        ({"teacher_max_cost": 0.0}, "teacher_max_cost is 0.0; expected a number above 0"),
    ],
)
def test_a_budget_of_money_needs_both_prices(given, missing, settings, server, tmp_path):
    with pytest.raises(ParamsError, match=missing):
        run(LLMTrainingParams(**settings, **given))
    with pytest.raises(ParamsError, match=missing):
        DistillationSFTConfig(output_dir=str(tmp_path), **given)
    assert server.requests() == []


def test_a_script_learns_from_them_and_evaluates_on_new_rows(server, student_dir, tmp_path):
    server.give("prompt")
    args = DistillationSFTConfig(
        output_dir=str(tmp_path), use_distillation=True, teacher_model=server.teacher, distill_alpha=1.0,
        distill_temperature=1.0, teacher_prompt_template=TEMPLATE, teacher_endpoint="completions", teacher_top_k=K,
        use_cpu=True, report_to="none", max_steps=2, logging_steps=1, save_strategy="no", bf16=False,
        gradient_checkpointing=False, dataloader_pin_memory=False, disable_tqdm=True,
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": w, "completion": w[::-1]} for w in WORDS])
    trainer = DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(student_dir), args, train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(student_dir),
    )  # fmt: skip
    trainer.train()
    lines = [line for line in trainer.state.log_history if "kl" in line]
    assert [line["teacher_coverage"] for line in lines] == [1.0, 1.0]
    assert [line["loss"] for line in lines] == pytest.approx([line["kl"] for line in lines], rel=1e-3)
    sent = len(server.requests())
    figures = trainer.evaluate(Dataset.from_list([{"prompt": "sun", "completion": "nus"}]))
    assert figures["eval_teacher_coverage"] == 1
    assert figures["eval_kl"] > 0
    assert len(server.requests()) == sent + 1


def test_a_teacher_that_was_asked_for_them_can_teach_without(server, student_dir, tmp_path):
    server.give("prompt")
    settings = {
        "output_dir": str(tmp_path), "use_distillation": True, "teacher_prompt_template": TEMPLATE, "use_cpu": True,
        "teacher_endpoint": "completions", "teacher_top_k": K, "report_to": "none", "max_steps": 1,
        "save_strategy": "no", "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(student_dir)
    teacher: object = server.teacher
    data = [Dataset.from_list([{"prompt": w, "completion": w[::-1]} for w in WORDS[:2]])]
    data += [Dataset.from_list([{"prompt": w, "completion": w} for w in WORDS[:2]])]
    none = {"distill_divergence": "jsd", "allow_text_only_teacher": True}
    for rows, alpha, more in ((0, 0.5, {}), (1, 0.5, none), (1, 0.0, {})):
        args = DistillationSFTConfig(distill_alpha=alpha, distill_temperature=1.0, **more, **settings)
        trainer = DistillationSFTTrainer(
            AutoModelForCausalLM.from_pretrained(student_dir), args, train_dataset=data[rows],
            processing_class=tokenizer, teacher_model=teacher,
        )  # fmt: skip
        trainer.train()
        teacher = trainer.teacher
        assert len(server.requests()) == 1 + len(data[0])  # the second and the third ask nothing
