"""Rows to retain: who teaches them, what is learned from them, what is logged, and what they are good for."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from ranks import run_in
from small_runs import no_model, on_device
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, PromptDistillationTrainer, run
from trl_distill.cli import main
from trl_distill.config.devices import accelerator
from trl_distill.errors import DataError, ParamsError
from trl_distill.losses import distillation_loss_from_logits

pytestmark = pytest.mark.usefixtures("device")

ROWS = {
    "prompt": ["a b", "c", "d e f", "g", "b a", "c d", "e", "f g", "a a"],
    "completion": [" c d", " e f g a", " b", " d c b", " e", " f", " g a b c", " d", " e e"],
}
RETAIN = {"prompt": ["x y z", "z", "y y"], "completion": [" u v", " w", " v u w"]}
LONG = "g f e d c b a g f e d c b a g f e d c b a {input} d"
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def make(student, folder, *, data=ROWS, retain=RETAIN, peft=None, kind=DistillationSFTTrainer, **settings):
    """Return a trainer with rows to retain; `student` is a folder or a loaded model."""
    given = {} if retain is None else {"retain_data": Dataset.from_dict(retain)}
    config = DistillationSFTConfig(
        output_dir=str(folder), use_cpu=accelerator() is None, bf16=False, report_to="none", logging_steps=1,
        save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, dataloader_pin_memory=False,
        use_distillation=True, **given,
        **{"max_steps": 3, "per_device_train_batch_size": 12, "teacher_prompt_template": LONG,
           "student_prompt_template": "s {input}", "learning_rate": 1e-2, **settings},
    )  # fmt: skip
    loaded = student if isinstance(student, torch.nn.Module) else AutoModelForCausalLM.from_pretrained(student)
    folder = loaded.config._name_or_path
    return kind(
        loaded, config, train_dataset=Dataset.from_dict(data), peft_config=peft,
        processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip


def logged(trainer, name):
    trainer.train()
    return [line[name] for line in trainer.state.log_history if name in line]


def retained_rows(trainer):
    last = len(trainer.teacher.teachers) - 1
    return [row for row in trainer.train_dataset if row["teachers"] == [last]]


def whole_batch(trainer):
    return on_device(trainer, trainer.data_collator(list(trainer.train_dataset)))


def by_hand(trainer, student, teacher, *, alpha, temperature, retain=RETAIN):
    """Return the loss of all rows and both divergences, of full logits: sums over tokens, and the tokens of each."""
    tokenizer, found = trainer.tokenizer, []

    def logits(model, prompt, ids, rows):
        whole = [*tokenizer(prompt)["input_ids"], *ids]
        return model(torch.tensor([whole], device=device)).logits[0, -len(ids) - 1 : -1, :rows]

    rows, start = student.config.vocab_size, AutoModelForCausalLM.from_pretrained(student.config._name_or_path)
    device = trainer.args.device
    student, teacher, start = (model.to(device) for model in (student, teacher, start))
    parts = [(ROWS, "s {input}", LONG, teacher, alpha), (retain, "{input}", "{input}", start, 1.0)]
    for data, mine, theirs, model, weight in parts:
        both, labels = [], []
        for prompt, completion in zip(data["prompt"], data["completion"], strict=True):
            ids = [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id]
            both.append(
                [logits(m, t.replace("{input}", prompt), ids, rows) for m, t in ((student, mine), (model, theirs))]
            )
            labels += ids
        one, other = (torch.cat(side) for side in zip(*both, strict=True))
        out = distillation_loss_from_logits(
            one, other.detach(), torch.tensor(labels, device=device), alpha=weight, temperature=temperature
        )
        found.append((out.loss, out.kl.sum(), len(labels)))
    return found


def moved(model):
    """Return a model whose weights are a little off."""
    with torch.no_grad():
        for parameter in model.parameters():
            off = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))  # the same on all devices
            parameter.add_(0.05 * off.to(parameter.device))


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_the_loss_is_the_formula_with_the_divergence_alone_on_retained_rows(
    alpha, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    """The student has moved; its starting point has not."""
    settings = {"teacher_model": str(tiny_teacher_dir), "distill_alpha": alpha, "distill_temperature": 2.0}
    trainer = make(tiny_model_dir, tmp_path, **settings)
    moved(trainer.model)
    loss, output = trainer.compute_loss(trainer.model, whole_batch(trainer), return_outputs=True)
    student = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    moved(student)
    teacher = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    (main, kl, tokens), (own, retain_kl, retained) = by_hand(trainer, student, teacher, alpha=alpha, temperature=2.0)
    torch.testing.assert_close(loss, (main + own) / (tokens + retained), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.retain_kl, retain_kl, rtol=1e-4, atol=1e-5)
    assert int(output.retain_tokens) == retained
    if alpha:
        torch.testing.assert_close(output.kl, kl, rtol=1e-4, atol=1e-5)
    else:
        assert output.kl is None
    loss.backward()
    ((main + own) / (tokens + retained)).backward()
    for (name, mine), other in zip(trainer.model.named_parameters(), student.parameters(), strict=True):
        assert (mine.grad - other.grad).norm() <= 1e-4 * other.grad.norm() + 1e-8, name


def test_each_divergence_is_logged_over_its_own_tokens(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make(tiny_model_dir, tmp_path, teacher_model=str(tiny_teacher_dir), distill_temperature=2.0)
    found = logged(trainer, "retain_kl")
    assert found[0] == pytest.approx(0, abs=1e-6)  # the student is where it starts
    assert found[1] > 1e-5
    alone = make(tiny_model_dir, tmp_path, retain=None, teacher_model=str(tiny_teacher_dir), distill_temperature=2.0)
    without = logged(alone, "kl")
    assert trainer.state.log_history[0]["kl"] == pytest.approx(without[0], rel=1e-5)
    assert "retain_kl" not in alone.state.log_history[0]


@pytest.mark.cpu
def test_an_adapter_is_switched_off_and_nothing_is_copied(tiny_model_dir, tiny_teacher_dir, tmp_path, capsys):
    trainer = make(tiny_model_dir, tmp_path, teacher_model=str(tiny_teacher_dir), peft=LORA)
    start = trainer.teacher.teachers[-1]
    assert [p.data_ptr() for p in start.model.parameters()] == [p.data_ptr() for p in trainer.base_student.parameters()]
    assert "frozen copy" not in capsys.readouterr().out
    found = logged(trainer, "retain_kl")
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[-1] > 1e-6
    weights = AutoModelForCausalLM.from_pretrained(tiny_model_dir).state_dict()
    for name, parameter in trainer.model.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if "lora" not in name:
            assert torch.equal(parameter, weights[plain])


def test_an_adapter_that_was_trained_before_is_part_of_the_starting_point(tiny_model_dir, tiny_teacher_dir, tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir), LORA)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model.config._name_or_path = str(tiny_model_dir)
    trainer = make(model, tmp_path, teacher_model=str(tiny_teacher_dir))
    assert trainer.teacher.teachers[-1].weights.is_copy
    found = logged(trainer, "retain_kl")
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[-1] > 1e-6


@pytest.mark.cpu
def test_without_an_adapter_the_weights_are_copied_and_a_line_says_so(
    tiny_model_dir, tiny_teacher_dir, tmp_path, capsys
):
    trainer = make(tiny_model_dir, tmp_path, teacher_model=str(tiny_teacher_dir))
    assert "frozen copy of the weights that the student starts from takes" in capsys.readouterr().out
    start = trainer.teacher.teachers[-1]
    trainer.train()
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    for (name, one), other in zip(start.model.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, other), name
        assert not one.requires_grad
    assert not all(map(torch.equal, trainer.model.parameters(), fresh.parameters()))
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert len(saved.state_dict()) == len(fresh.state_dict())


def test_a_teacher_that_is_the_student_serves_as_its_starting_point(tiny_model_dir, tmp_path, capsys):
    trainer = make(tiny_model_dir, tmp_path / "a", teacher_model=str(tiny_model_dir))
    first, start = trainer.teacher.teachers
    assert first is start
    assert "frozen copy" not in capsys.readouterr().out
    shared = logged(trainer, "retain_kl")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    moved(model)  # another student of the same name
    other = make(model, tmp_path / "b", teacher_model=str(tiny_model_dir))
    assert other.teacher.teachers[0] is not other.teacher.teachers[1]
    assert logged(other, "retain_kl")[0] == pytest.approx(shared[0], abs=1e-6)


def test_retain_fraction_is_the_share_of_rows(tiny_model_dir, tiny_teacher_dir, tmp_path, capsys):
    for fraction, expected in ((0.25, 3), (0.1, 1), (0.5, 9)):
        trainer = make(tiny_model_dir, tmp_path, teacher_model=str(tiny_teacher_dir), retain_fraction=fraction)
        rows = retained_rows(trainer)
        assert len(rows) == expected
        assert len(trainer.train_dataset) == 9 + expected
        share = expected / (9 + expected)
        count = "1 more row" if expected == 1 else f"{expected} more rows"
        assert f"retained      {count} ({share:.1%}) of a Dataset in memory" in capsys.readouterr().out
        numbers = [row["row"] for row in rows]
        assert max(map(numbers.count, numbers)) - min(map(numbers.count, set(numbers))) <= 1  # repeated evenly
        for row in rows:
            assert row["student_prompt"] == row["teacher_prompts"][0]
            assert trainer.tokenizer.decode(row["student_prompt"]) == RETAIN["prompt"][row["row"] - 1]


def test_retained_rows_are_sampled_by_the_seed(tiny_model_dir, tiny_teacher_dir, tmp_path):
    retain = {"prompt": [" ".join("xyz"[i // 9 % 3] + "uvw"[i % 3]) for i in range(20)], "completion": [" a"] * 20}

    def drawn(seed):
        trainer = make(tiny_model_dir, tmp_path, retain=retain, teacher_model=str(tiny_teacher_dir), seed=seed)
        return [row["row"] for row in retained_rows(trainer)]

    first = drawn(1)
    assert first == drawn(1)
    assert len(set(first)) == 3
    assert any(drawn(seed) != first for seed in (2, 3))


def test_completions_that_are_missing_are_written_by_the_starting_point(
    tiny_model_dir, tiny_teacher_dir, tmp_path, capsys
):
    retain = {"prompt": RETAIN["prompt"]}
    trainer = make(
        tiny_model_dir, tmp_path, retain=retain, teacher_model=str(tiny_teacher_dir), distill_max_teacher_length=4,
        completions="teacher", dataset_text_field="prompt",
    )  # fmt: skip
    assert "3 completions written by the initial student" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    for row in retained_rows(trainer):
        prompt = torch.tensor([row["student_prompt"]])
        written = model.generate(prompt, max_new_tokens=4, do_sample=False, attention_mask=torch.ones_like(prompt))
        assert row["completion"] == written[0, prompt.shape[1] :].tolist()


def test_a_mixture_of_teachers_retains_too(tiny_model_dir, tiny_teacher_dir, tmp_path):
    """The rows' own loss is that of the mixture without retention; batches may hold either kind alone."""
    listed = {"combine": "mixture", "teachers": [
        {"model": str(tiny_teacher_dir), "template": t, "weight": w} for t, w in ((LONG, 1), ("a {input}", 2))
    ]}  # fmt: skip
    settings = {"teacher_config": listed, "teacher_prompt_template": "{input}"}
    trainer = make(tiny_model_dir, tmp_path, **settings)
    alone = make(tiny_model_dir, tmp_path, retain=None, **settings)
    expected = alone.compute_loss(alone.model, whole_batch(alone), return_outputs=True)[1]
    output = trainer.compute_loss(trainer.model, whole_batch(trainer), return_outputs=True)[1]
    assert output.kl.item() == pytest.approx(expected.kl.item(), rel=1e-5)
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)  # retention costs nothing yet
    only = on_device(trainer, trainer.data_collator(retained_rows(trainer)))
    assert trainer.compute_loss(trainer.model, only).item() == pytest.approx(0, abs=1e-6)


RANKS = """
from teachers.test_retention import RETAIN, logged, make
trainer = make({student!r}, {folder!r}, teacher_model={teacher!r}, per_device_train_batch_size=12 // {ranks})
logged(trainer, "loss")
result = [[line["loss"], line["kl"], line["retain_kl"]] for line in trainer.state.log_history if "kl" in line]
"""


def test_two_processes_with_retained_rows_have_the_losses_of_one(tiny_model_dir, tiny_teacher_dir, tmp_path):
    found = []
    for ranks in (1, 2):
        names = {"student": str(tiny_model_dir), "teacher": str(tiny_teacher_dir), "folder": str(tmp_path / "out")}
        found.append(run_in(ranks, RANKS.format(**names, ranks=ranks), tmp_path))
    for one, other in zip(*found, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6)


@pytest.fixture
def settings(tiny_model_dir, tiny_teacher_dir, tmp_path):
    """Settings of the command with rows to retain in a file."""
    for name, rows in (("rows.jsonl", ROWS), ("general.jsonl", RETAIN)):
        lines = [dict(zip(rows, cells, strict=True)) for cells in zip(*rows.values(), strict=True)]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "model": str(tiny_model_dir), "teacher_model": str(tiny_teacher_dir), "teacher_prompt_template": LONG,
        "data_path": str(tmp_path / "rows.jsonl"), "retain_data": str(tmp_path / "general.jsonl"),
        "project_name": str(tmp_path / "run"), "gradient_accumulation": 1, "logging_steps": 1, "max_steps": 4,
        "save_strategy": "steps", "save_steps": 2,
    }  # fmt: skip


def command(settings, *more):
    flags = [word for k, v in settings.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    return CliRunner().invoke(main, ["llm", *flags, *more])


def test_the_command_retains_rows_reports_them_and_resumes(settings, tmp_path):
    result = command({**settings, "lr": 1e-2})
    assert result.exit_code == 0, result.output
    assert f"retained      3 more rows (25.0%) of {settings['retain_data']}" in result.stdout
    assert re.search(r"  retain 0\.\d", result.stdout)
    folder = tmp_path / "run"
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert metrics["train_retain_kl"] > 0
    assert metrics["preflight_train"]["rows_retained"] == 3
    assert yaml.safe_load((folder / "config.yaml").read_text())["retain_data"] == settings["retain_data"]
    assert "| retain_data |" in (folder / "README.md").read_text()
    again = command({**settings, "project_name": str(tmp_path / "half"), "max_steps": 2})
    assert again.exit_code == 0, again.output
    (tmp_path / "half" / "run.json").unlink()  # as a run that was killed leaves it
    refused = command({**settings, "project_name": str(tmp_path / "half"), "retain_fraction": 0.5}, "--resume")
    assert refused.exit_code == 2
    assert "with --retain-fraction 0.25" in refused.output


@pytest.mark.cpu
def test_a_run_that_is_resumed_ends_with_the_same_weights(settings, tmp_path):
    params = {**settings, "scheduler": "constant", "warmup_ratio": 0.0, "lr": 1e-2}
    whole = run(LLMTrainingParams(**params)).model.state_dict()
    half = {**params, "project_name": str(tmp_path / "half")}
    run(LLMTrainingParams(**{**half, "max_steps": 2}))
    (tmp_path / "half" / "run.json").unlink()
    resumed = run(LLMTrainingParams(**half, resume=True))
    later = [line for line in resumed.trainer.state.log_history if "retain_kl" in line and line["step"] > 2]
    assert later[0]["retain_kl"] > 1e-4  # still measured from where the first half started
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def test_a_dataset_in_memory_is_saved_by_its_class(settings, tmp_path):
    result = run(LLMTrainingParams(**{**settings, "retain_data": Dataset.from_dict(RETAIN)}))
    assert result.metrics["train_retain_kl"] > 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["retain_data"] == "<Dataset>"
    assert result.trainer.args.retain_data == "<Dataset>"
    again = CliRunner().invoke(main, ["llm", "--config", str(tmp_path / "run" / "config.yaml"), "--overwrite"])
    assert again.exit_code == 2
    assert "--retain-data was a Dataset in memory, not a file; give its path" in again.output


WRONG = [
    ({"retain_data": "nowhere.json"}, DataError, "retain_data 'nowhere.json': no such file"),
    ({"retain_data": Dataset.from_dict({"body": ["a"]})}, DataError, "retain_data has no column 'text'"),
    ({"retain_data": Dataset.from_dict({"text": ["", None]})}, DataError, "retain_data: 1 bad row"),
    ({"retain_data": None, "retain_fraction": 0.5}, ParamsError, "retain_fraction is 0.5, .* give retain_data"),
    ({"retain_fraction": 1.0}, ParamsError, "retain_fraction is 1.0; expected a number above 0 and at most 0.95"),
    ({"teacher_store": "store"}, ParamsError, "retain_data cannot be used with teacher_store"),
    ({"cross_tokenizer": True}, ParamsError, "retain_data cannot be used with cross_tokenizer"),
    ({"trainer": "sft", "teacher_model": None, "teacher_prompt_template": "{input}"}, ParamsError, "does not distil"),
]


@pytest.mark.parametrize(("changed", "error", "sentence"), WRONG, ids=[w[2][-24:] for w in WRONG])
def test_invalid_retention_settings_are_refused_before_a_model_loads(changed, error, sentence, settings, monkeypatch):
    monkeypatch.setattr("trl_distill.models.loading.ModelSource.load_model", no_model)
    with pytest.raises(error, match=sentence):
        run(LLMTrainingParams(**{**settings, **changed}))


def test_a_trainer_that_writes_every_batch_refuses_rows_to_retain(tiny_model_dir, tiny_teacher_dir, tmp_path):
    class Online(PromptDistillationTrainer):
        def generate_teacher_outputs(self, batch):
            return super().generate_teacher_outputs(batch)

    with pytest.raises(ParamsError, match="retain_data makes several teachers, but generate_teacher_outputs"):
        make(tiny_model_dir, tmp_path, teacher_model=str(tiny_teacher_dir), kind=Online)


@pytest.mark.cpu
def test_retained_rows_lower_the_divergence_on_other_tasks(monkeypatch):
    """The embedded model learns the demo's policy; the divergence is on held-out examples of its other tasks."""
    pytest.importorskip("tools.embedded_model", reason="the folder tools/ is not here")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    benchmark = importlib.import_module("retention")
    others = ("lookup", "edit", "form", "extract")
    retain = benchmark.other_tasks(others, 8, held_out=False, seed=3)
    held_out = benchmark.other_tasks(others, 6, held_out=True, seed=4)
    without, kept = (
        benchmark.drift(benchmark.baked(8, retain=rows, fraction=0.5), held_out) for rows in (None, retain)
    )
    assert kept < 0.6 * without, (without, kept)
