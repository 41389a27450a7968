"""The same weights reading the same tokens teach nothing: such a run is refused before anything is written or paid."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from conftest import make_model
from datasets import Dataset, IterableDataset
from forms import settings as short
from forms import user
from peft import LoraConfig, get_peft_model
from small_runs import no_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, run
from trl_distill.cli import main
from trl_distill.errors import ParamsError
from trl_distill.models.loading import ModelSource
from trl_distill.runs.api import teach
from trl_distill.teachers.loading import load_teacher
from trl_distill.teachers.same_weights import Student, shares_weights

SYSTEM = {"role": "system", "content": "a b"}
ROWS = [{"prompt": "a b", "completion": "c"}, {"prompt": "d", "completion": "e"}]
DATA = Dataset.from_list(ROWS)
CHATS = [{"messages": [SYSTEM, user("c"), {"role": "assistant", "content": "d"}]}]
REFUSED = "teacher and student are the same weights and read the same tokens in every row, which teaches nothing"


def trainer(student, teacher, folder, rows=ROWS, *, kind=DistillationSFTTrainer, tokenizer=None, peft=None, **more):
    """Return a trainer; the student is a folder or a model."""
    given = {"teacher_model": teacher} if isinstance(teacher, str) or teacher is None else {}
    config = DistillationSFTConfig(**short(folder, **more), use_distillation=True, **given)
    data = Dataset.from_list(rows) if isinstance(rows, list) else rows
    return kind(
        student, config, train_dataset=data, peft_config=peft, teacher_model=None if given else teacher,
        processing_class=AutoTokenizer.from_pretrained(student if tokenizer is None else tokenizer),
    )  # fmt: skip


@pytest.fixture
def command(tmp_path):
    """Return a function that runs `aitraining llm` on rows."""

    def go(student, teacher, *more, rows=ROWS):
        data = tmp_path / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        flags = ["--model", str(student), "--teacher-model", str(teacher), "--data-path", str(data)]
        fast = ["--max-steps", "1", "--batch-size", "1", "--gradient-accumulation", "1", "--block-size", "64"]
        return CliRunner().invoke(main, ["llm", *flags, "--project-name", str(tmp_path / "run"), *fast, *more])

    return go


def test_the_command_refuses_equal_prompts_before_a_model_loads(command, chat_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_distill.models.loading.ModelSource.load_model", no_model)
    result = command(chat_model_dir, chat_model_dir, rows=CHATS)
    assert result.exit_code == 2
    assert REFUSED in result.stderr
    assert "add --student-system drop" in result.stderr
    copied = shutil.copytree(chat_model_dir, tmp_path / "copy")
    for teacher, more in ((copied, []), ("self", ["--peft"])):  # a copy of a folder is the same
        for written in ([], ["--completions", "teacher"]):
            result = command(chat_model_dir, teacher, *more, *written, rows=CHATS)
            assert result.exit_code == 2
            assert REFUSED in result.stderr
    assert not (tmp_path / "run").exists()


def test_dropping_the_rows_system_message_is_what_was_missing(command, chat_model_dir):
    result = command(chat_model_dir, chat_model_dir, "--student-system", "drop", rows=CHATS)
    assert result.exit_code == 0, result.output
    assert "prompt of its own" not in result.stdout


@pytest.mark.parametrize(
    ("more", "rows", "said"),
    [
        ([], ROWS, "give the teacher a prompt of its own with --teacher-system or --teacher-prompt-template"),
        (["--student-system", "drop"], ROWS, "give the teacher a prompt of its own with --teacher-system"),
        (
            ["--teacher-prompt-template", "a {input}", "--teacher-prompt-dropout", "1"],
            ROWS,
            "lower --teacher-prompt-dr",
        ),
        ([], [{"input_ids": [5, 6, 7]}], "give rows of text or messages"),
        (["--retain-data", "data.jsonl"], ROWS, "give the teacher a prompt of its own"),
    ],
)
def test_equal_prompts_are_refused_with_the_flag_to_change(
    more, rows, said, command, tiny_model_dir, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = command(tiny_model_dir, tiny_model_dir, *more, rows=rows)
    assert result.exit_code == 2
    assert REFUSED in result.stderr
    assert said in result.stderr


@pytest.mark.parametrize(
    "more",
    [
        ["--distill-alpha", "0"],
        ["--teacher-prompt-template", "e {input}"],
        ["--teacher-prompt-template", "e {input}", "--teacher-prompt-dropout", "0.5", "--seed", "1"],
        ["--teacher-prompt-template", "e {input}", "--retain-data", "data.jsonl"],
    ],
)
def test_runs_that_teach_something_are_not_refused(more, command, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command(tiny_model_dir, tiny_model_dir, *more)
    assert result.exit_code == 0, result.output


def test_one_row_with_other_prompts_is_enough(command, chat_model_dir):
    rows = [*CHATS, {"messages": [user("c"), {"role": "assistant", "content": "d"}]}]
    assert command(chat_model_dir, chat_model_dir, "--student-system", "drop", rows=rows).exit_code == 0


def test_a_dry_run_of_a_sample_warns(command, tiny_model_dir):
    result = command(tiny_model_dir, tiny_model_dir, "--dry-run", rows=[ROWS[0]] * 17)
    assert result.exit_code == 0, result.output
    assert "warning       teacher and student are the same weights and read the same tokens" in result.stdout
    assert command(tiny_model_dir, tiny_model_dir, "--dry-run").exit_code == 2


def test_an_ema_teacher_with_equal_prompts_needs_alpha_below_1(command, tiny_model_dir):
    assert command(tiny_model_dir, "ema").exit_code == 0
    result = command(tiny_model_dir, "ema", "--overwrite", "--distill-alpha", "1")
    assert result.exit_code == 2
    assert REFUSED in result.stderr


def test_a_store_of_the_students_own_weights_is_known_by_its_files(tiny_model_dir, tmp_path):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = {
        "model": str(tiny_model_dir), "data_path": str(tmp_path / "data.jsonl"), "block_size": 64,
        "teacher_store": str(tmp_path / "store"), "teacher_prompt_template": "e {input}", "max_steps": 1,
    }  # fmt: skip
    same = {"teacher_prompt_template": "{input}"}
    with pytest.raises(ParamsError, match=REFUSED):
        teach(LLMTrainingParams(**{**settings, **same}, teacher_model=str(tiny_model_dir)))
    teach(LLMTrainingParams(**settings, teacher_model=str(tiny_model_dir)))
    alike = {"student_prompt_template": "e {input}", "project_name": str(tmp_path / "run")}
    with pytest.raises(ParamsError, match=REFUSED):
        run(LLMTrainingParams(**settings, **alike))


@pytest.mark.parametrize(("mine", "theirs"), [(None, "int4"), ("int4", None), ("int8", "int4"), ("int4", "int4")])
def test_a_quantized_model_is_another_one(mine, theirs, tiny_model_dir):
    teacher = load_teacher(str(tiny_model_dir), quantization=theirs)
    student = Student(no_model, ModelSource(str(tiny_model_dir), quantization=mine))
    assert shares_weights(teacher, student) == (mine == theirs)


def test_several_prompts_are_refused_if_all_are_the_students(command, tiny_model_dir, tmp_path):
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text("- '{input}'\n- '{input}'\n")
    result = command(tiny_model_dir, tiny_model_dir, "--teacher-prompt-mixture", str(mixture))
    assert (result.exit_code, REFUSED in result.stderr) == (2, True)
    mixture.write_text("- '{input}'\n- 'e {input}'\n")
    assert command(tiny_model_dir, tiny_model_dir, "--teacher-prompt-mixture", str(mixture)).exit_code == 0


class TestTrainer:
    """The trainer's door, where models may be in memory."""

    def test_folders_and_loaded_models_of_the_same_weights_are_refused(self, tiny_model_dir, tmp_path):
        name = str(tiny_model_dir)

        def load(**more):
            return AutoModelForCausalLM.from_pretrained(name, **more)

        half = load(dtype=torch.bfloat16)
        for student, teacher in ((name, name), (load(), name), (load(), load()), (half, load()), (load(), half)):
            with pytest.raises(ParamsError, match=REFUSED):
                trainer(student, teacher, tmp_path, tokenizer=name)
        for teacher in ("self", name):
            with pytest.raises(ParamsError, match=REFUSED):
                trainer(load(), teacher, tmp_path, tokenizer=name, peft=LoraConfig(r=2))

    def test_trained_weights_are_not_the_same_weights(self, tiny_model_dir, tmp_path):
        name = str(tiny_model_dir)
        student = AutoModelForCausalLM.from_pretrained(name)
        with torch.no_grad():
            student.lm_head.weight[0, 0] += 1
        assert trainer(student, name, tmp_path, tokenizer=name).evaluate(DATA)["eval_kl"] > 0
        trained = get_peft_model(AutoModelForCausalLM.from_pretrained(name), LoraConfig(r=2))
        with torch.no_grad():
            next(p for n, p in trained.named_parameters() if "lora_B" in n)[0, 0] = 1
        assert trainer(trained, "self", tmp_path, tokenizer=name).evaluate(DATA)["eval_kl"] > 0
        other = make_model(tmp_path / "other", hidden=40)
        assert trainer(name, str(other), tmp_path).evaluate(DATA)["eval_kl"] > 0

    def test_evaluation_rows_may_have_equal_prompts(self, tiny_model_dir, tmp_path):
        made = trainer(str(tiny_model_dir), str(tiny_model_dir), tmp_path, teacher_prompt_template="e {input}")
        found = made.evaluate(Dataset.from_list([{"prompt": "a", "completion": "b", "teacher_prompt": "a"}]))
        assert found["eval_kl"] == pytest.approx(0, abs=1e-6)

    def test_equal_prompts_of_a_stream_are_found_in_its_first_rows(self, tiny_model_dir, tmp_path):
        stream = IterableDataset.from_generator(lambda: iter(ROWS))
        with pytest.raises(ParamsError, match=REFUSED):
            trainer(str(tiny_model_dir), str(tiny_model_dir), tmp_path, stream)

    def test_a_loss_of_the_users_own_may_have_other_terms(self, tiny_model_dir, tmp_path):
        class Penalized(DistillationSFTTrainer):
            def compute_loss(self, model, inputs, *args, **kwargs):
                return super().compute_loss(model, inputs, *args, **kwargs)

        made = trainer(str(tiny_model_dir), str(tiny_model_dir), tmp_path, kind=Penalized)
        assert made.evaluate(DATA)["eval_kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("more", "warned"),
    [
        ({}, False),  # large to small
        ({"teacher_prompt_template": "e {input}"}, False),
        ({"teacher_prompt_template": "e {input}", "student_prompt_template": "f {input}"}, True),
        ({"student_prompt_template": "e {input}"}, True),
        ({"teacher_system": "e", "student_system": "e"}, False),  # the same for both
        ({"teacher_system": "e", "student_system": "f"}, True),
    ],
)
def test_no_saved_token_is_warned_of_where_one_was_to_be_saved(
    more, warned, tiny_model_dir, tiny_teacher_dir, tmp_path, capsys
):
    trainer(str(tiny_model_dir), str(tiny_teacher_dir), tmp_path, **more)
    said = "warning       no prompt token is saved: the teacher's prompt is not longer than the student's; lengthen it"
    assert (said in capsys.readouterr().out) == warned
