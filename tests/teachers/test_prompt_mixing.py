"""Several templates of one teacher in a run, and rows in which the student reads the teacher's own prompt."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from click.testing import CliRunner
from data.test_cross_tokenizer import make_other
from datasets import Dataset
from small_runs import no_model, on_device
from tokenizing import byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, run
from trl_distill.cli import main
from trl_distill.config.devices import accelerator
from trl_distill.errors import DataError, ParamsError, TemplateError

pytestmark = pytest.mark.usefixtures("device")

ROWS = {
    "prompt": ["a b", "c", "d e f", "g", "b a", "c d", "e", "f g", "a a", "b b", "c c", "d d"],
    "completion": [" c d", " e f g a", " b", " d c b", " e", " f", " g a b c", " d", " e", " f", " g", " a"],
}
LONG = "g f e d c b a g f e d c b a {input} d"
MIXTURE = [{"template": LONG, "weight": 3}, "x {input}"]


def make(student, folder, *, data=ROWS, **settings):
    config = DistillationSFTConfig(
        output_dir=str(folder), learning_rate=1e-3, use_cpu=accelerator() is None, bf16=False, report_to="none",
        logging_steps=1,
        save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, dataloader_pin_memory=False,
        use_distillation=True, **{"max_steps": 3, "per_device_train_batch_size": 12, **settings},
    )  # fmt: skip
    return DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(student), config, train_dataset=Dataset.from_dict(data),
        processing_class=AutoTokenizer.from_pretrained(student),
    )  # fmt: skip


def logged(trainer):
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


def losses(trainer):
    return [line["loss"] for line in logged(trainer)]


def prompts(trainer, side="teacher"):
    return [trainer.tokenizer.decode(ids) for ids in trainer.train_dataset[f"{side}_prompt"]]


@pytest.fixture
def settings(tiny_model_dir, tiny_teacher_dir, tmp_path):
    """Settings of the command with a mixture in a file."""
    lines = [dict(zip(ROWS, cells, strict=True)) for cells in zip(*ROWS.values(), strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "long.txt").write_text(LONG)
    mixture = [{"template": f"@{tmp_path / 'long.txt'}", "weight": 3}, {"template": "x {input}"}]
    (tmp_path / "prompts.yaml").write_text(yaml.safe_dump(mixture))
    return {
        "model": str(tiny_model_dir), "teacher_model": str(tiny_teacher_dir), "data_path": str(tmp_path / "rows.jsonl"),
        "project_name": str(tmp_path / "run"), "teacher_prompt_mixture": str(tmp_path / "prompts.yaml"),
        "gradient_accumulation": 1, "max_steps": 2,
    }  # fmt: skip


def command(settings, *more):
    flags = [word for k, v in settings.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    return CliRunner().invoke(main, ["llm", *flags, *more])


def test_each_row_has_one_template_in_proportion_to_the_weights(tiny_model_dir, tiny_teacher_dir, tmp_path):
    given = {"teacher_model": str(tiny_teacher_dir), "teacher_prompt_mixture": MIXTURE}
    trainer = make(tiny_model_dir, tmp_path, **given)
    first, second = trainer.teacher.teachers
    assert first is second  # one model in memory
    found = prompts(trainer)
    assert len(found) == 12
    assert sum(text.startswith("x ") for text in found) == 3
    for text, row in zip(found, ROWS["prompt"], strict=True):
        assert text in (LONG.replace("{input}", row), f"x {row}")
    assert prompts(make(tiny_model_dir, tmp_path, **given)) == found
    assert any(prompts(make(tiny_model_dir, tmp_path, seed=seed, **given)) != found for seed in (1, 2))


@pytest.mark.cpu
def test_a_prompt_mixture_equals_the_list_of_teachers_it_means(tiny_model_dir, tiny_teacher_dir, tmp_path):
    model = str(tiny_teacher_dir)
    mixed = make(tiny_model_dir, tmp_path, teacher_model=model, teacher_prompt_mixture=MIXTURE)
    listed = [{"model": model, "template": t, "rows": r} for t, r in ((LONG, 0.75), ("x {input}", 0.25))]
    assert losses(mixed) == losses(make(tiny_model_dir, tmp_path, teacher_config=listed))


def test_a_loaded_model_reads_several_prompts(tiny_model_dir, tiny_teacher_dir, tmp_path):
    loaded = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    config = DistillationSFTConfig(
        output_dir=str(tmp_path), use_cpu=accelerator() is None, bf16=False, report_to="none", save_strategy="no",
        max_steps=1,
        use_distillation=True, teacher_prompt_mixture=MIXTURE,
    )  # fmt: skip
    trainer = DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir), config, train_dataset=Dataset.from_dict(ROWS),
        processing_class=tokenizer, teacher_model=loaded,
    )  # fmt: skip
    named = make(tiny_model_dir, tmp_path, teacher_model=str(tiny_teacher_dir), teacher_prompt_mixture=MIXTURE)
    batches = [on_device(t, t.data_collator(list(t.train_dataset))) for t in (trainer, named)]
    found = [t.compute_loss(t.model, b).item() for t, b in zip((trainer, named), batches, strict=True)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_the_command_takes_a_file_and_keeps_what_it_says(settings, tmp_path):
    result = command(settings)
    assert result.exit_code == 0, result.output
    model = settings["teacher_model"]
    assert f"teacher 1     {model}, template 1: 9 rows" in result.stdout
    assert f"teacher 2     {model}, template 2: 3 rows" in result.stdout
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["teacher_prompt_mixture"]
    assert kept == [{"template": LONG, "weight": 0.75}, {"template": "x {input}", "weight": 0.25}]
    assert "In 75% of the rows:" in (tmp_path / "run" / "README.md").read_text()
    (tmp_path / "prompts.yaml").unlink()
    again = CliRunner().invoke(main, ["llm", "--config", str(tmp_path / "run" / "config.yaml"), "--overwrite"])
    assert again.exit_code == 0, again.output


def test_the_teacher_writes_under_the_template_of_the_row(settings, tiny_teacher_dir, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ROWS["prompt"]))
    trainer = run(LLMTrainingParams(**settings, distill_max_teacher_length=4)).trainer
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    for row in list(trainer.train_dataset)[:4]:
        prompt = torch.tensor([row["teacher_prompt"]])
        written = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False,
            suppress_tokens=trainer.teacher.teachers[0].suppressed,
        )  # fmt: skip
        assert row["completion"] == written[0, prompt.shape[1] :].tolist()


WRONG = [
    ({"teacher_prompt_mixture": []}, ParamsError, "teacher_prompt_mixture: the templates are empty"),
    ({"teacher_prompt_mixture": {"a": 1}}, ParamsError, "the templates are a dict; give a list"),
    ({"teacher_prompt_mixture": [{"role": "user", "content": "{input}"}]}, ParamsError, "is a list of chat messages"),
    ({"teacher_prompt_mixture": [{"template": "{input}", "weights": 1}]}, ParamsError, "Did you mean 'weight'"),
    ({"teacher_prompt_mixture": [{"weight": 1}]}, ParamsError, "template 1: template is missing"),
    ({"teacher_prompt_mixture": [{"template": "{input}", "weight": 0}]}, ParamsError, "weight is 0; expected a"),
    ({"teacher_prompt_mixture": ["{input}", "none"]}, TemplateError, r"mixture, template 2 has no \{input\}"),
    ({"teacher_prompt_mixture": ["{input}", "{x} {input}"]}, TemplateError, r"template 2.* has the field \{x\}"),
    (
        {"teacher_prompt_mixture": [{"template": LONG, "weight": 999}, "{input}"]},
        DataError,
        "takes none of the 12 rows",
    ),
    ({"teacher_prompt_mixture": "nowhere.yaml"}, ParamsError, "teacher_prompt_mixture 'nowhere.yaml' cannot be read"),
    ({"teacher_prompt_template": LONG}, ParamsError, "teacher_prompt_template cannot be used with"),
    ({"teacher_model": None, "teacher_config": ["m"]}, ParamsError, "mixture cannot be used with teacher_config"),
    ({"teacher_store": "store"}, ParamsError, "teacher_prompt_mixture cannot be used with teacher_store"),
    ({"cross_tokenizer": True}, ParamsError, "teacher_prompt_mixture cannot be used with cross_tokenizer"),
    ({"teacher_model": None}, ParamsError, "teacher_model is missing"),
    ({"teacher_prompt_dropout": 2}, ParamsError, "teacher_prompt_dropout is 2.0; expected a number from 0 to 1"),
]


@pytest.mark.parametrize(("changed", "error", "sentence"), WRONG, ids=[w[2][-24:] for w in WRONG])
def test_an_invalid_prompt_mixture_is_refused_before_a_model_loads(changed, error, sentence, settings, monkeypatch):
    monkeypatch.setattr("trl_distill.models.loading.ModelSource.load_model", no_model)
    with pytest.raises(error, match=sentence):
        run(LLMTrainingParams(**{**settings, **changed}))


def test_a_share_of_rows_shows_the_student_the_teachers_prompt(tiny_model_dir, tiny_teacher_dir, tmp_path, capsys):
    given = {
        "teacher_model": str(tiny_teacher_dir),
        "teacher_prompt_template": LONG,
        "student_prompt_template": "s {input}",
    }
    data = {name: column * 10 for name, column in ROWS.items()}

    def shown(**changed):
        trainer = make(tiny_model_dir, tmp_path, data=data, **given, **changed)
        rows = zip(prompts(trainer, "student"), prompts(trainer), data["prompt"], strict=True)
        for mine, theirs, text in rows:
            assert theirs == LONG.replace("{input}", text)
            assert mine in (theirs, f"s {text}")
        return [mine.startswith("g") for mine in prompts(trainer, "student")]

    some = shown(teacher_prompt_dropout=0.3)
    assert 0.15 < sum(some) / len(some) < 0.45
    assert f"dropout       {sum(some)} rows show the student the teacher's prompt" in capsys.readouterr().out
    assert shown(teacher_prompt_dropout=0.3) == some
    assert shown(teacher_prompt_dropout=0.3, seed=7) != some
    assert not any(shown())
    assert all(shown(teacher_prompt_dropout=1))


def test_a_student_that_reads_what_its_teacher_reads_loses_nothing(tiny_model_dir, tmp_path):
    settings = {"teacher_model": str(tiny_model_dir), "teacher_prompt_template": LONG, "distill_alpha": 1.0}
    trainer = make(tiny_model_dir, tmp_path, teacher_prompt_dropout=0.5, **settings)
    alike = [row for row in trainer.train_dataset if row["student_prompt"] == row["teacher_prompt"]]
    assert 0 < len(alike) < len(trainer.train_dataset)
    batch = on_device(trainer, trainer.data_collator(alike))
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(0, abs=1e-6)
    # evaluation is of the student under its own prompt
    alone = make(tiny_model_dir, tmp_path, **settings)
    rows = Dataset.from_dict(ROWS)
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(alone.evaluate(rows)["eval_loss"], rel=1e-6)
    assert alone.evaluate(rows)["eval_loss"] > 1e-3


def test_dropout_takes_the_template_that_the_row_has(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make(
        tiny_model_dir, tmp_path, teacher_model=str(tiny_teacher_dir), teacher_prompt_mixture=MIXTURE,
        teacher_prompt_dropout=1,
    )  # fmt: skip
    assert prompts(trainer, "student") == prompts(trainer)
    assert len({text[0] for text in prompts(trainer)}) == 2


def test_dropout_with_a_teacher_of_text(server, tiny_model_dir, tmp_path):
    given = {"teacher_model": server.teacher, "teacher_prompt_template": LONG, "allow_text_only_teacher": True}
    trainer = make(tiny_model_dir, tmp_path, teacher_prompt_dropout=1, **given)
    assert prompts(trainer, "student") == [LONG.replace("{input}", text) for text in ROWS["prompt"]]
    assert all(map(torch.isfinite, map(torch.tensor, losses(trainer))))


def test_dropout_with_a_teacher_of_another_tokenizer(tiny_model_dir, tmp_path):
    """The student reads the teacher's prompt in its own tokens; evaluation has it read its own prompt."""
    other = make_other(tmp_path / "other", byte_level())
    given = {"teacher_model": str(other), "teacher_prompt_template": LONG, "cross_tokenizer": True}
    trainer = make(tiny_model_dir, tmp_path, teacher_prompt_dropout=1, **given)
    assert prompts(trainer, "student") == [LONG.replace("{input}", text) for text in ROWS["prompt"]]
    assert all(line["kl"] > 0 for line in logged(trainer))


def test_dropout_with_a_store_asks_for_no_other_targets(settings, tiny_model_dir, tiny_teacher_dir, tmp_path):
    """A teacher's targets do not depend on what the student reads."""
    given = {**settings, "teacher_prompt_mixture": None, "teacher_prompt_template": LONG}
    store = str(tmp_path / "store")
    run(LLMTrainingParams(**given, teacher_store=store))
    result = run(
        LLMTrainingParams(
            **{**given, "teacher_model": None, "project_name": str(tmp_path / "again")}, teacher_store=store,
            teacher_prompt_dropout=0.5,
        )
    )  # fmt: skip
    assert result.metrics["preflight_train"]["rows_with_the_teachers_prompt"] > 0
    assert result.metrics["train_kl"] > 0


def test_the_command_prints_rows_per_template(settings):
    given = {k: v for k, v in settings.items() if k != "teacher_prompt_mixture"}
    result = command({**given, "teacher_prompt_template": LONG, "teacher_prompt_dropout": 0.5}, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "rows show the student the teacher's prompt" in result.stdout
