"""`aitraining evaluate`, `evaluate_distillation` and `evaluate`: one small run of the embedded model, evaluated."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from importlib.util import find_spec

import pytest
import torch
import yaml
from click.testing import CliRunner
from holding import another_process
from peft import PromptTuningConfig, get_peft_model
from small_runs import no_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import LLMTrainingParams, evaluate, evaluate_distillation, run
from trl_distill.cli import main
from trl_distill.embedded import embedded_path
from trl_distill.errors import DataError, ParamsError, TeacherError
from trl_distill.evaluation.result import AFTER, BEFORE, PROMPTED, TEACHER
from trl_distill.models.loading import ModelSource
from trl_distill.teachers.local.teacher import LocalTeacher

pytest.importorskip("sacrebleu", reason="every evaluation has chrF")

TOPICS = {"invoice": "Billing", "parcel": "Shipping", "password": "Security", "screen": "Repair"}
PROMPT = (
    "Read each message and send it to the right team.\n"
    + "".join(f"- {topic}: {team}\n" for topic, team in TOPICS.items())
    + "Write the team in square brackets, then the topic.\n\nMessage: {input}\nAnswer:"
)
SHORT = "{input}\nAnswer:"
FRAMES = ("The {} is wrong.", "My {} does not work.", "I have a question about the {}.", "Where is my {}?", "{} please")
MESSAGES = [(frame.format(topic), f"[{team}] {topic}") for frame in FRAMES for topic, team in TOPICS.items()]
SETTINGS = {
    "model": "embedded", "teacher_model": "embedded", "student_prompt_template": SHORT, "gradient_accumulation": 1,
    "distill_max_teacher_length": 8, "lr": 1e-3, "logging_steps": 100, "save_strategy": "no", "batch_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run that kept rows aside, with its prompt in a file that is gone afterwards."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "prompt.txt").write_text(PROMPT)
    result = run(
        LLMTrainingParams(
            **SETTINGS, project_name=str(folder / "project"), teacher_prompt_template=f"@{folder / 'prompt.txt'}",
            data_path=[{"text": text, "answer": answer} for text, answer in MESSAGES], holdout=0.3, max_steps=8,
        )
    )  # fmt: skip
    (folder / "prompt.txt").unlink()
    return result


@pytest.fixture(scope="module")
def project(trained):
    return trained.paths["project"]


@pytest.fixture(scope="module")
def found(project):
    """What evaluating the project finds."""
    figures = evaluate_distillation(project, reference_column="answer", metrics=["contains"], with_teacher_prompt=True)
    return figures.evaluation


def command(*arguments):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def no_more_writing(monkeypatch):
    def generate(*_, **__):
        raise AssertionError("something was written again")

    monkeypatch.setattr(LocalTeacher, "generate", generate)


def test_the_command_needs_the_project_alone(project, found):
    done = command(project, "--timed-queries", "0")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert lines[0] == "Evaluating on the rows that the run held out: 6 of 6 used."
    assert lines[2].split("  ")[-1].strip() == "teacher"
    assert any(line.strip().startswith("chrF (decides)") for line in lines)
    assert "verdict" in lines[-1] or "works" in lines[-1] or "does not work" in lines[-1]


def test_damaged_weights_of_a_run_are_neither_evaluated_nor_exported(project, monkeypatch, tmp_path):
    damaged = shutil.copytree(project, tmp_path / "damaged")
    weights = bytearray((damaged / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (damaged / "model.safetensors").write_bytes(weights)
    monkeypatch.setattr(ModelSource, "load_model", no_model)
    for arguments in (["evaluate", str(damaged)], ["export", str(damaged), "--to", "merged"]):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 2, done.stderr
        assert done.stderr == (
            f"aitraining: error: {str(damaged)!r} holds a finished run whose model.safetensors is damaged: its "
            "checksum differs from that in run.json; restore it, or train again with --overwrite.\n"
        )


def test_changed_settings_of_a_run_are_pointed_out(project, found, tmp_path):
    changed = shutil.copytree(project, tmp_path / "changed")
    with (changed / "config.yaml").open("a") as file:
        file.write("# mine\n")
    said = f"{changed / 'config.yaml'} has changed since the run finished: it was edited, or it is damaged."
    done = command(changed, "--timed-queries", "0")
    assert done.exit_code == 0, done.stderr
    assert said in done.stdout
    assert "has changed" not in command(project, "--timed-queries", "0").stdout
    manifest = json.loads((changed / "run.json").read_text())
    del manifest["crc32"]  # as an earlier version left it
    (changed / "run.json").write_text(json.dumps(manifest))
    assert "has changed" not in command(changed, "--timed-queries", "0").stdout


@pytest.mark.parametrize(("file", "text"), [("metrics.json", '{"metrics": []}'), ("config.yaml", "model: [1]")])
def test_a_file_of_a_run_that_is_another_table_is_one_sentence(file, text, project, tmp_path):
    changed = shutil.copytree(project, tmp_path / "changed")
    kept = re.sub("(?m)^model:.*$", text, (changed / file).read_text()) if file == "config.yaml" else text
    (changed / file).write_text(kept)
    done = command(changed)
    assert done.exit_code == 2
    assert "the settings of the run in" in done.stderr


@pytest.mark.parametrize("file", ["metrics.json", "config.yaml"])
def test_a_pipe_in_the_place_of_a_file_of_a_run_is_not_read(file, project, tmp_path):
    changed = shutil.copytree(project, tmp_path / "changed")
    (changed / file).unlink()
    os.mkfifo(changed / file)
    done = command(changed)
    assert done.exit_code == 2
    assert "it is a pipe or a device, not a file" in done.stderr


def test_the_rows_are_those_that_the_run_held_out(project, found):
    kept = [json.loads(line) for line in (project / "held_out.jsonl").read_text().splitlines()]
    assert found.inputs == tuple(row["text"] for row in kept)
    assert found.references == tuple(row["answer"] for row in kept)
    assert len(kept) == 6


def test_each_side_reads_its_own_prompt(found):
    for name in (BEFORE, AFTER):
        side = found.side(name)
        assert side.prompts == tuple(SHORT.replace("{input}", text) for text in found.inputs)
    for name in (TEACHER, PROMPTED):
        side = found.side(name)
        assert side.prompts == tuple(PROMPT.replace("{input}", text) for text in found.inputs)
    assert found.side(TEACHER).prompt_tokens == found.side(PROMPTED).prompt_tokens


@pytest.mark.parametrize(("name", "source"), [(BEFORE, "embedded"), (AFTER, "project"), (PROMPTED, "project")])
def test_a_side_writes_what_plain_transformers_writes(name, source, project, found):
    folder = project if source == "project" else embedded_path()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    side = found.side(name)
    for prompt, completion, tokens, finished in zip(
        side.prompts, side.completions, side.tokens, side.finished, strict=True
    ):
        ids = tokenizer(prompt, return_tensors="pt")
        new = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(new, skip_special_tokens=True).strip() == completion.strip()
        assert len(new) == tokens
        assert finished == (int(new[-1]) == tokenizer.eos_token_id)


def test_the_divergence_is_that_of_the_models_own_logits(project, found):
    tokenizer = AutoTokenizer.from_pretrained(project)
    teacher = AutoModelForCausalLM.from_pretrained(embedded_path(), dtype="auto").double()
    sides = {BEFORE: embedded_path(), AFTER: project}
    for name, folder in sides.items():
        student = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).double()
        side, theirs = found.side(name), found.side(TEACHER)
        for i in range(len(found.inputs)):
            written = tokenizer(theirs.completions[i], add_special_tokens=False)["input_ids"]
            written = [*written, tokenizer.eos_token_id] if theirs.finished[i] else written
            rows = []
            for model, prompt in ((student, side.prompts[i]), (teacher, theirs.prompts[i])):
                ids = torch.tensor([[*tokenizer(prompt)["input_ids"], *written]])
                with torch.no_grad():
                    rows.append(model(ids).logits[0, -len(written) - 1 : -1])
            mine, other = (logits.log_softmax(-1) for logits in rows)
            divergence = (other.exp() * (other - mine)).sum(-1)
            assert len(written) == side.fidelity.tokens[i] == theirs.tokens[i]
            # the teacher is read in bfloat16, in which it is saved
            assert side.fidelity.divergence[i] == pytest.approx(float(divergence.mean()), rel=0.05, abs=0.01)
            agreed = float((mine.argmax(-1) == other.argmax(-1)).double().mean())
            assert side.fidelity.agreement[i] == pytest.approx(agreed, abs=1 / len(written) + 1e-9)
    assert found.side(TEACHER).fidelity is None


@torch.no_grad()
def test_in_float64_the_divergence_is_that_of_the_models_own_logits(tiny_model_dir, tiny_teacher_dir, device):
    """Two loaded models, which are compared on the device at hand."""
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        for folder in (tiny_model_dir, tiny_teacher_dir)
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    evaluation = evaluate_distillation(
        student, teacher, ["a b", "c d e f g", "b"], teacher_prompt="g f e d c b a g f e {input}", max_new_tokens=6,
        timed_queries=0,
    ).evaluation  # fmt: skip
    side, theirs = evaluation.side(AFTER), evaluation.side(TEACHER)
    assert student.device.type == teacher.device.type == device.type
    shared = len(tokenizer)
    extra = list(range(shared, teacher.config.vocab_size))  # rows that the student does not have
    for i in range(3):
        ids = tokenizer(theirs.prompts[i], return_tensors="pt").to(device)
        written = teacher.generate(**ids, max_new_tokens=6, do_sample=False, suppress_tokens=extra)
        written = written[0, ids["input_ids"].shape[1] :].tolist()
        mine, other = (
            model(torch.tensor([[*tokenizer(prompt)["input_ids"], *written]], device=device))
            .logits[0, -len(written) - 1 : -1, :shared].log_softmax(-1)
            for model, prompt in ((student, side.prompts[i]), (teacher, theirs.prompts[i]))
        )  # fmt: skip
        divergence = (other.exp() * (other - mine)).sum(-1).mean()
        assert side.fidelity.divergence[i] == pytest.approx(float(divergence), rel=1e-9)
        assert side.fidelity.agreement[i] == float((mine.argmax(-1) == other.argmax(-1)).double().mean())
        assert side.fidelity.tokens[i] == len(written)


def test_token_rows_show_the_teachers_completion_piece_by_piece(found):
    assert found.token_rows
    for row in found.token_rows:
        assert "".join(row.pieces).removesuffix("<|end|>").strip() == found.side(TEACHER).completions[row.row].strip()
        assert len(row.pieces) == len(row.before) == len(row.after)
        assert sum(row.after) / len(row.after) == pytest.approx(found.side(AFTER).fidelity.divergence[row.row])


def test_a_second_evaluation_writes_nothing_again(project, found, monkeypatch):
    no_more_writing(monkeypatch)
    again = evaluate_distillation(project, reference_column="answer", metrics="contains", timed_queries=0).evaluation
    for name in (BEFORE, AFTER, TEACHER):
        assert again.side(name).completions == found.side(name).completions


def test_what_the_run_had_its_teacher_write_is_not_written_again(project, trained, monkeypatch, tmp_path):
    shutil.copytree(project, tmp_path / "copy")
    (tmp_path / "copy" / "student_completions.jsonl").unlink(missing_ok=True)
    asked = []
    generate = LocalTeacher.generate
    monkeypatch.setattr(LocalTeacher, "generate", lambda self, *a: asked.append(self.name) or generate(self, *a))
    evaluate_distillation(tmp_path / "copy", timed_queries=0)
    assert len(asked) == 2  # a batch of the student before, and one of the student after


def test_queries_are_timed_in_turn_after_a_warm_up(project, found, monkeypatch):
    calls = []
    generate = LocalTeacher.generate
    monkeypatch.setattr(
        LocalTeacher, "generate", lambda self, p, s: calls.append((self.name, s.max_new_tokens)) or generate(self, p, s)
    )
    evaluate_distillation(project, timed_queries=3)
    assert [tokens for _, tokens in calls] == [1, 8] * 8  # of both sides, the warm-up and three queries
    names = [name for name, tokens in calls if tokens == 8]
    assert [names[i : i + 2] for i in (0, 4)] == [names[2:4][::-1], names[6:8][::-1]]
    assert len(set(names)) == 2


def test_the_teacher_is_timed_until_its_stop_strings_as_it_writes(project, monkeypatch):
    lengths, generate = {}, LocalTeacher.generate

    def counting(self, prompts, settings):
        written = generate(self, prompts, settings)
        if settings.max_new_tokens > 1:
            lengths.setdefault(self.name, []).extend(len(completion.ids) for completion in written)
        return written

    evaluate_distillation(project, teacher_stop=["]"], timed_queries=0)  # which keeps what all sides write
    monkeypatch.setattr(LocalTeacher, "generate", counting)
    found = evaluate_distillation(project, teacher_stop=["]"], timed_queries=3).evaluation
    teacher = found.side(TEACHER)
    timed = lengths[teacher.model]
    assert sorted(timed[1:]) == sorted(teacher.tokens[:3])  # the first is the warm-up


def test_by_hand_it_finds_the_same(project, found, tmp_path):
    rows = tmp_path / "rows.jsonl"
    shutil.copy(project / "held_out.jsonl", rows)
    done = command(
        "--student", project / ".", "--before", "embedded", "--teacher-model", "embedded", "--dtype", "float32",
        "--teacher-prompt-template", PROMPT, "--student-prompt-template", SHORT, "--data-path", rows,
        "--reference-column", "answer", "--metric", "contains", "--max-new-tokens", "8", "--timed-queries", "0",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert found.verdict.sentence in done.stdout


def test_a_trained_model_knows_its_run(trained, found, monkeypatch):
    score = evaluate(trained.model)
    assert float(score) == pytest.approx(score.figures["score"])
    assert score.figures.evaluation.side(AFTER).completions == found.side(AFTER).completions
    results = {2.0: score, 3.0: evaluate(trained.model, ["The invoice is wrong."])}
    assert max(results, key=results.get) in results


def test_the_mapping_has_the_guides_names(found, project):
    figures = evaluate_distillation(project, timed_queries=1)
    assert 0 <= figures["output_similarity"] <= 100
    assert figures["sides"]["teacher"]["scores"]["chrf"] == 100
    assert {"speedup", "prompt_compression", "gap_closed", "gain", "teacher_gain", "verdict"} <= figures.keys()


def test_an_adapter_is_compared_with_its_base(tmp_path, found):
    settings = {**SETTINGS, "max_steps": 2, "peft": True, "teacher_model": "self", "warmup_ratio": 0.0}
    data = [{"text": text, "answer": answer} for text, answer in MESSAGES[:8]]
    result = run(
        LLMTrainingParams(
            **settings, project_name=str(tmp_path / "lora"), teacher_prompt_template=PROMPT, data_path=data
        )
    )
    rows = [{"text": text} for text in found.inputs]
    saved = evaluate_distillation(tmp_path / "lora", test_data=rows, timed_queries=0).evaluation
    kept = evaluate_distillation(result.model, test_data=rows, timed_queries=0).evaluation
    for evaluation in (saved, kept):
        assert evaluation.side(BEFORE).completions == found.side(BEFORE).completions
        assert evaluation.side(AFTER).fidelity.mean_divergence != evaluation.side(BEFORE).fidelity.mean_divergence
    assert saved.side(AFTER).completions == kept.side(AFTER).completions
    assert saved.side(AFTER).fidelity.mean_divergence == pytest.approx(kept.side(AFTER).fidelity.mean_divergence)
    assert saved.side(BEFORE).model == embedded_path()


def test_a_server_teaches_and_is_asked_once(project, server, found, capsys):
    rows = [{"text": text} for text in found.inputs]
    how = {"teacher_model": server.teacher, "teacher_logprobs": "none", "timed_queries": 2}
    first = evaluate_distillation(project, test_data=rows, **how)
    assert "The teacher's times are the student's under the teacher's prompt" in capsys.readouterr().out
    assert len(server.requests()) == len(rows)
    assert first.evaluation.side(AFTER).fidelity is None
    server.fail()
    again = evaluate_distillation(project, test_data=rows, **how)
    assert server.requests() == []
    assert again.evaluation.side(TEACHER).completions == first.evaluation.side(TEACHER).completions


@pytest.mark.parametrize("kind", ["top", "prompt"])
def test_a_server_that_gives_log_probabilities_is_compared_token_by_token(kind, project, server, found, tmp_path):
    shutil.copytree(project, tmp_path / "project")
    project = tmp_path / "project"
    server.give(kind)
    rows = [{"text": text} for text in found.inputs]
    how = {"teacher_model": server.teacher, "timed_queries": 0, "teacher_endpoint": "completions"}
    first = evaluate_distillation(project, test_data=rows, **how).evaluation.side(AFTER).fidelity
    assert len(server.requests()) > len(rows)  # it is also asked what it can do
    assert all(0 < tokens <= 8 for tokens in first.tokens)
    assert first.mean_divergence > 0
    server.fail()
    server.give(kind)
    again = evaluate_distillation(project, test_data=rows, **how).evaluation.side(AFTER).fidelity
    assert server.requests() == []
    assert again == first


def test_chat_rows_are_read_as_in_training(chat_model_dir, tiny_teacher_dir):
    messages = [
        {"role": "system", "content": "g f e d c b a"}, {"role": "user", "content": "a b"},
        {"role": "assistant", "content": "c d"},
    ]  # fmt: skip
    figures = evaluate_distillation(
        str(chat_model_dir), str(chat_model_dir), [{"messages": messages}] * 2, student_system="drop",
        before=str(chat_model_dir), max_new_tokens=4, timed_queries=0,
    )  # fmt: skip
    evaluation = figures.evaluation
    assert evaluation.references == ("c d", "c d")
    assert "g f e d c b a" in evaluation.side(TEACHER).prompts[0]
    assert evaluation.side(AFTER).prompts[0] == "<|im_start|>user\na b<|im_end|>\n<|im_start|>assistant\n"
    assert evaluation.side(AFTER).completions == evaluation.side(BEFORE).completions


def test_prompts_are_those_of_training_also_if_they_do_not_end_in_the_generation_prompt(chat_model_dir, tmp_path):
    shutil.copytree(chat_model_dir, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(chat_model_dir)
    template = tokenizer.chat_template
    tokenizer.chat_template = template.replace("assistant\n{% endif %}", "assistant\nthink{% endif %}")
    assert tokenizer.chat_template != template
    tokenizer.save_pretrained(tmp_path / "model")
    model = str(tmp_path / "model")
    rows = [[{"role": "user", "content": text}, {"role": "assistant", "content": "a b"}] for text in "abcd"]
    result = run(
        LLMTrainingParams(
            model=model, teacher_model=model, teacher_system="g f", max_steps=1, save_strategy="no", holdout=0.5,
            data_path=[{"messages": messages} for messages in rows], project_name=str(tmp_path / "run"),
        )
    )  # fmt: skip
    learned = result.tokenizer.decode(result.trainer.train_dataset[0]["student_prompt"])
    assert learned.endswith("assistant\n")
    side = evaluate_distillation(tmp_path / "run", timed_queries=0, max_new_tokens=2).evaluation.side(AFTER)
    assert all(prompt.endswith("assistant\n") for prompt in side.prompts)
    assert len(result.tokenizer(side.prompts[0])["input_ids"]) == side.prompt_tokens[0]


def test_a_judge_compares_the_student_with_the_teacher_and_with_what_it_was(project, server, found, monkeypatch):
    monkeypatch.setenv("JUDGES_KEY", "key-of-the-judge")
    judge = ("--judge", server.teacher, "--judge-key-env", "JUDGES_KEY")
    done = command(project, "--timed-queries", "0", *judge, "--max-rows", "2")
    assert done.exit_code == 0, done.stderr
    pairs = [(AFTER, TEACHER), (AFTER, BEFORE)]
    differ = sum(a != b for one, other in pairs for a, b in _first_two(found, one, other))
    assert len(server.requests()) == 2 * differ > 0  # each pair in both orders
    assert f"Judge {server.teacher.split('#')[1]}" in done.stdout
    assert {request["key"] for request in server.requests()} == {"key-of-the-judge"}
    judged = json.loads((project / "report.json").read_text())["evaluation"]["judgement"]
    assert [(c["first"], c["second"]) for c in judged["comparisons"]] == pairs


def test_a_judge_that_fails_takes_no_other_figure_with_it(project, server, found, tmp_path):
    copied = shutil.copytree(project, tmp_path / "judged", ignore=shutil.ignore_patterns("judge_answers.jsonl"))
    done = command(copied, "--timed-queries", "0", "--judge", server.teacher, "--teacher-max-requests", "1")
    assert done.exit_code == 1, done.stderr
    assert "the judge's budget is spent (1 request and" in done.stderr
    evaluation = json.loads((copied / "report.json").read_text())["evaluation"]
    assert evaluation["verdict"]["sentence"] in done.stdout
    assert evaluation["judgement"] is None
    assert len(evaluation["inputs"]) == len(found.inputs)


def _first_two(found, one, other):
    return list(zip(found.side(one).completions, found.side(other).completions, strict=True))[:2]


def test_prices_give_the_money_for_a_million_queries(project, found, capsys):
    prices = {"teacher_price_input": 2.0, "teacher_price_output": 8.0, "teacher_price_cached_input": 0.5}
    cost = evaluate_distillation(project, timed_queries=0, run_cost=3.0, **prices)["cost"]
    theirs, mine = found.side(TEACHER), found.side(AFTER)
    assert (
        f"a million queries cost {cost.money.student:,.2f} instead of {cost.money.teacher:,.2f}"
        in capsys.readouterr().out
    )
    for money, side in ((cost.money.teacher, theirs), (cost.money.student, mine)):
        assert money == pytest.approx((2 * sum(side.prompt_tokens) + 8 * sum(side.tokens)) / len(side.tokens))
    ids = [AutoTokenizer.from_pretrained(project)(prompt)["input_ids"] for prompt in theirs.prompts]
    shared = next(k for k, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1)
    assert cost.money.teacher_cached == pytest.approx(cost.money.teacher - 1.5 * shared)
    assert cost.money.break_even == -(-3.0 // ((cost.money.teacher - cost.money.student) / 1e6))
    with pytest.raises(ParamsError, match="teacher_price_output is missing; give teacher_price_input and"):
        evaluate_distillation(project, teacher_price_input=1.0)
    with pytest.raises(ParamsError, match="run_cost is 3, but what the teacher costs is not known"):
        evaluate_distillation(project, run_cost=3.0)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_is_refused_if_it_is_not_there(project):
    with pytest.raises(ParamsError, match=r"use_vllm cannot be used for .*vLLM is not installed.*drop use_vllm"):
        evaluate_distillation(project, use_vllm=True)


def test_a_learned_prompt_writes_as_peft_does(tiny_model_dir, tmp_path):
    torch.manual_seed(0)
    how = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir), how)
    torch.nn.init.normal_(model.prompt_encoder["default"].embedding.weight)
    model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.save_pretrained(tmp_path)
    expected = []
    for text in ("a b", "c"):
        ids = tokenizer(text, return_tensors="pt")
        with warnings.catch_warnings(action="ignore"):
            new = model.generate(**ids, max_new_tokens=4, do_sample=False)[0, ids["input_ids"].shape[1] :]
        expected.append(tokenizer.decode(new, skip_special_tokens=True))
    for student in (str(tmp_path), model):
        evaluation = evaluate_distillation(
            student, str(tiny_model_dir), ["a b", "c"], teacher_prompt="g f {input}", max_new_tokens=4, timed_queries=0
        ).evaluation
        assert list(evaluation.side(AFTER).completions) == expected
        assert list(evaluation.side(BEFORE).completions) != expected


def test_the_test_split_is_evaluated_on_or_the_one_that_is_named(project, found, tmp_path):
    for name, text in (("train", "a b"), ("validation", "c d"), ("test", "The invoice is lost.")):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"{text} {i}"}) + "\n" for i in range(3)))
    figures = evaluate_distillation(project, test_data=tmp_path, timed_queries=0, max_rows=2)
    assert figures.evaluation.inputs == ("The invoice is lost. 0", "The invoice is lost. 1")
    named = evaluate_distillation(project, test_data=tmp_path, timed_queries=0, max_rows=2, split="validation")
    assert named.evaluation.inputs == ("c d 0", "c d 1")
    with pytest.raises(DataError, match=r"split is 'dev2', but .* has 'test', 'train', 'validation'\. Name"):
        evaluate_distillation(project, test_data=tmp_path, split="dev2")


def test_rows_that_a_run_was_trained_on_are_called_so(project, found, tmp_path, monkeypatch):
    known = shutil.copytree(project, tmp_path / "project")
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": "The invoice is lost."}) + "\n")
    (known / "config.yaml").write_text(
        re.sub(
            "^data_path:.*(\n[ -].*)*",
            f"data_path: {tmp_path / 'train.jsonl'}",
            (known / "config.yaml").read_text(),
            flags=re.M,
        )
    )
    monkeypatch.chdir(tmp_path)
    said = "Evaluating on train.jsonl, which the student was trained on: 1 of 1 used."
    assert said in command(known, "--data-path", "train.jsonl", "--timed-queries", "0").stdout
    assert (
        "Evaluating on test.jsonl: 1 of 1" in command(known, "--data-path", "test.jsonl", "--timed-queries", "0").stdout
    )


def test_a_teacher_of_a_list_is_named_alone_and_reads_its_own_prompt(project, found, tmp_path):
    known = shutil.copytree(project, tmp_path / "project")
    settings = yaml.safe_load((known / "config.yaml").read_text())
    listed = [{"model": "embedded", "template": PROMPT}, {"model": "other", "template": "{input}"}]
    settings |= {"teacher_model": None, "teacher_prompt_template": "{input}", "teacher_config": {"teachers": listed}}
    (known / "config.yaml").write_text(yaml.safe_dump(settings))
    evaluated = evaluate_distillation(known, "embedded", timed_queries=0).evaluation
    assert evaluated.side(TEACHER).prompts == found.side(TEACHER).prompts
    listed[1]["model"] = "embedded"
    (known / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ParamsError, match="has the teacher 'embedded' with several prompts"):
        evaluate_distillation(known, "embedded", timed_queries=0)
    prompted = evaluate_distillation(known, "embedded", teacher_prompt="Say: {input}", timed_queries=0, max_rows=1)
    assert prompted.evaluation.side(TEACHER).prompts[0].startswith("Say: ")


def test_a_place_that_cannot_be_written_is_refused_before_a_model_loads(project, monkeypatch, tmp_path):
    monkeypatch.setattr("trl_distill.models.loading.ModelSource.load_model", no_model)
    (tmp_path / "file").write_text("")
    assert "/file' is not a writable folder" in command(project, "--output", tmp_path / "file").stderr
    monkeypatch.setattr(os, "access", lambda path, mode: project not in (path, *path.parents))
    done = command(project)
    assert done.exit_code == 2
    assert "cannot be written; give --output a folder" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run.json", "{}", "is the project of another run, whose report would be replaced"),
        (".unfinished", "{}", "is the project of another run"),
        ("tuning.json", "{}", "is the project of another run"),
        ("report.html", "my own", "holds 'report.html', which is not from an evaluation"),
        ("report.json", "[1]", "holds 'report.json', which is not from an evaluation"),
    ],
)
def test_the_report_of_another_run_is_not_replaced(name, content, said, project, monkeypatch, tmp_path):
    monkeypatch.setattr("trl_distill.models.loading.ModelSource.load_model", no_model)
    (tmp_path / name).write_text(content)
    done = command(project, "--output", tmp_path)
    assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_output_takes_the_place_of_a_project_that_cannot_be_written(project, found, monkeypatch, tmp_path):
    evaluate_distillation(project, timed_queries=0)
    before = {path.name: path.read_bytes() for path in project.glob("*.json*")}
    monkeypatch.setattr(os, "access", lambda path, mode: project not in (path, *path.parents))
    done = command(
        project, "--output", tmp_path / "out", "--timed-queries", "0", "--max-new-tokens", "2", "--max-rows", "1"
    )
    assert done.exit_code == 0, done.stderr
    assert {path.name: path.read_bytes() for path in project.glob("*.json*")} == before
    kept = (tmp_path / "out" / "student_completions.jsonl").read_bytes()
    assert kept.startswith(before["student_completions.jsonl"])
    assert len(kept) > len(before["student_completions.jsonl"])


def test_the_output_takes_the_place_of_a_project_in_use(project, found, tmp_path):
    with another_process(project) as (holder, _):
        refused = command(project)
        short = ("--timed-queries", "0", "--max-new-tokens", "2", "--max-rows", "1")
        done = command(project, "--output", tmp_path / "out", *short)
    assert refused.exit_code == 2
    assert f"in use by process {holder.pid} on this machine" in refused.stderr
    assert "or give --output a folder for what is found." in refused.stderr
    assert done.exit_code == 0, done.stderr
    assert {"report.html", "student_completions.jsonl"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert command(project, *short).exit_code == 0


def test_a_student_with_another_tokenizer_may_write_as_much_text_as_its_teacher(tiny_model_dir):
    how = {"teacher_prompt": PROMPT, "student_prompt": SHORT, "max_new_tokens": 8, "timed_queries": 0}
    evaluation = evaluate_distillation(str(tiny_model_dir), "embedded", ["The invoice is wrong."], **how).evaluation
    side, theirs = evaluation.side(AFTER), evaluation.side(TEACHER)
    for one, folder in ((side, tiny_model_dir), (theirs, embedded_path())):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert one.prompt_tokens[0] == len(tokenizer(one.prompts[0])["input_ids"])
    assert theirs.tokens[0] == len(tokenizer(theirs.completions[0], add_special_tokens=False)["input_ids"]) + 1 <= 8
    assert not side.finished[0]
    own = AutoTokenizer.from_pretrained(tiny_model_dir)
    assert side.tokens[0] == len(own(theirs.completions[0])["input_ids"]) + 1 > 8


def test_several_processes_are_refused(project, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "an evaluation runs in one process" in command(project).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "'nowhere' holds no finished run (run.json is missing)"),
        ([], "give the folder of a run, or --student with a model"),
        (["--student", "embedded"], "--teacher-model is missing"),
        (["--student", "./nowhere", "--teacher-model", "embedded", "--data-path", "x"], "--student './nowhere' is not"),
        (
            ["--student", "embedded", "--before", "./nowhere", "--teacher-model", "embedded"],
            "--before './nowhere' is n",
        ),
        (["--student", "embedded", "--teacher-model", "embedded"], "train with --holdout 0.1"),
    ],
)
def test_what_is_missing_is_said_before_a_model_loads(arguments, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert done.exit_code == 2
    assert words in done.stderr


def test_bad_input_is_refused_before_a_model_loads(project, monkeypatch):
    def load(self):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("trl_distill.models.loading.ModelSource.load_model", load)
    with pytest.raises(DataError, match=r"test has no column 'answr'; there are 'text', 'answer'\. Did you"):
        evaluate_distillation(project, reference_column="answr")
    with pytest.raises(DataError, match="the column 'answer' is empty in all rows"):
        evaluate_distillation(project, test_data=[{"text": "a", "answer": ""}], reference_column="answer")
    with pytest.raises(ParamsError, match="teacher_model is 'ema', an average of the student that is not saved"):
        evaluate_distillation(project, "ema")
    with pytest.raises(TeacherError, match="is not a folder"):
        evaluate_distillation(project, "./nowhere")
    with pytest.raises(DataError, match="split 'test' is one of test_data, which is not given"):
        evaluate_distillation(project, split="test")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(TeacherError, match="judge 'gpt-4o' needs a key"):
        evaluate_distillation(project, judge="openai:gpt-4o")
    with pytest.raises(ParamsError, match="unknown parameter 'teacher_sistem'"):
        evaluate_distillation(project, teacher_sistem="x")
