"""Several teachers in one run: rows shared out among them, their distributions mixed, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from click.testing import CliRunner
from conftest import make_model
from datasets import Dataset
from peft import LoraConfig
from ranks import run_in
from small_runs import no_model, on_device
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, PromptDistillationTrainer, run
from trl_distill.cli import main
from trl_distill.config.devices import accelerator
from trl_distill.errors import DataError, ParamsError, TeacherError, TemplateError, UsageError
from trl_distill.losses import distillation_loss_from_logits
from trl_distill.losses.signals import DenseSignal, LossSettings, PerRowSignal
from trl_distill.teachers.multi.entries import assign_rows, read_teachers

pytestmark = pytest.mark.usefixtures("device")

ROWS = {
    "prompt": ["a b", "c", "d e f", "g", "b a", "c d", "e", "f g"],
    "completion": [" c d", " e f g a", " b", " d c b", " e", " f", " g a b c", " d"],
    "team": ["x", "y", "x", "y", "y", "x", "y", "x"],
    "level": [1, 2, 3, 1, 2, 3, 1, 2],
}
LONG = "g f e d c b a g f e d c b a g f e d c b a {input} d"
SHORT = "a {input}"


@pytest.fixture(scope="module")
def other_teacher_dir(tmp_path_factory):
    """A second teacher: another width, as many vocabulary rows as tokens."""
    return make_model(tmp_path_factory.mktemp("models") / "other", hidden=40)


def make(student, teachers, folder, *, data=ROWS, peft=None, **settings):
    """Return a trainer with a list of teachers, or with settings of a single one."""
    given = {"teacher_config": teachers} if teachers is not None else {}
    config = DistillationSFTConfig(
        output_dir=str(folder), learning_rate=1e-3, use_cpu=accelerator() is None, bf16=False, report_to="none",
        logging_steps=1,
        save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, dataloader_pin_memory=False,
        use_distillation=True, **given, **{"max_steps": 3, "per_device_train_batch_size": 8, **settings},
    )  # fmt: skip
    return DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(student), config, train_dataset=Dataset.from_dict(data),
        processing_class=AutoTokenizer.from_pretrained(student), peft_config=peft,
    )  # fmt: skip


def losses(trainer):
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def whole_batch(trainer):
    """Return all rows of a trainer as one batch, in their order."""
    return on_device(trainer, trainer.data_collator(list(trainer.train_dataset)))


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_two_copies_of_a_teacher_mixed_are_that_teacher(divergence, tiny_model_dir, tiny_teacher_dir, tmp_path):
    copy = shutil.copytree(tiny_teacher_dir, tmp_path / "copy")
    both = [{"model": str(m), "template": LONG, "weight": w} for m, w in ((tiny_teacher_dir, 1), (copy, 3))]
    settings = {"distill_divergence": divergence}
    mixed = losses(make(tiny_model_dir, {"combine": "mixture", "teachers": both}, tmp_path, **settings))
    settings |= {"teacher_model": str(tiny_teacher_dir), "teacher_prompt_template": LONG}
    alone = losses(make(tiny_model_dir, None, tmp_path, **settings))
    assert mixed == pytest.approx(alone, rel=1e-6)
    assert mixed[-1] < mixed[0]


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("impl", ["fused", "plain"])
def test_a_mixture_is_the_formula_on_full_logits(
    kind, impl, tiny_model_dir, tiny_teacher_dir, other_teacher_dir, tmp_path
):
    """Three teachers of two models and widths; the second takes half of the rows."""
    listed = [
        (tiny_teacher_dir, LONG, 1.0, "all"),
        (other_teacher_dir, SHORT, 2.5, "team=x"),
        (tiny_teacher_dir, SHORT, 0.5, "all"),
    ]
    teachers = [{"model": str(m), "template": t, "weight": w, "rows": r} for m, t, w, r in listed]
    trainer = make(
        tiny_model_dir, {"combine": "mixture", "teachers": teachers}, tmp_path, distill_alpha=0.6,
        distill_temperature=2.0, distill_divergence=kind, distill_loss_impl=impl,
    )  # fmt: skip
    loss = trainer.compute_loss(trainer.model, whole_batch(trainer))
    device = trainer.args.device
    student = AutoModelForCausalLM.from_pretrained(tiny_model_dir).to(device)
    models = [AutoModelForCausalLM.from_pretrained(folder).to(device) for folder, *_ in listed]
    tokenizer, vocabulary = trainer.tokenizer, student.config.vocab_size
    mine, theirs, labels = [], [], []
    for prompt, completion, team in zip(ROWS["prompt"], ROWS["completion"], ROWS["team"], strict=True):
        ids = [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id]

        def logits(model, text, ids=ids):
            whole = [*tokenizer(text)["input_ids"], *ids]
            return model(torch.tensor([whole], device=device)).logits[0, -len(ids) - 1 : -1, :vocabulary]

        p, total = 0, 0
        for model, (_, template, weight, rows) in zip(models, listed, strict=True):
            if rows == "all" or team == "x":
                softened = logits(model, template.replace("{input}", prompt)).detach().double() / 2
                p, total = p + weight * softened.softmax(-1), total + weight
        mine.append(logits(student, prompt))
        theirs.append(2 * (p / total).log())
        labels += ids
    out = distillation_loss_from_logits(
        torch.cat(mine), torch.cat(theirs).float(), torch.tensor(labels, device=device), alpha=0.6, temperature=2.0,
        divergence=kind,
    )  # fmt: skip
    expected = out.loss / len(labels)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    for (name, own), other in zip(trainer.model.named_parameters(), student.parameters(), strict=True):
        assert (own.grad - other.grad).norm() <= 1e-5 * other.grad.norm() + 1e-8, name


def test_rows_by_column_have_the_losses_of_runs_with_one_teacher_each(
    tiny_model_dir, tiny_teacher_dir, other_teacher_dir, tmp_path
):
    listed = [(tiny_teacher_dir, LONG, "x"), (other_teacher_dir, SHORT, "y")]
    teachers = [{"model": str(m), "template": t, "rows": f"team={v}"} for m, t, v in listed]
    both = make(tiny_model_dir, teachers, tmp_path)
    batch = whole_batch(both)
    tokens = int((batch["labels"] != -100).sum())
    assert both.train_dataset["teachers"] == [[0 if team == "x" else 1] for team in ROWS["team"]]
    parts, total = [], [torch.zeros_like(p) for p in both.model.parameters()]
    for model, template, value in listed:
        rows = [i for i, team in enumerate(ROWS["team"]) if team == value]
        data = {name: [column[i] for i in rows] for name, column in ROWS.items()}
        one = make(
            tiny_model_dir, None, tmp_path, data=data, teacher_model=str(model), teacher_prompt_template=template
        )
        parts.append(one.compute_loss(one.model, whole_batch(one), num_items_in_batch=tokens))
        parts[-1].backward()
        total = [t + p.grad for t, p in zip(total, one.model.parameters(), strict=True)]
    loss = both.compute_loss(both.model, batch)
    assert loss.item() == pytest.approx(sum(part.item() for part in parts), rel=1e-6)
    loss.backward()
    for own, expected in zip(both.model.parameters(), total, strict=True):
        assert (own.grad - expected).norm() <= 1e-5 * expected.norm() + 1e-8


def test_each_teacher_of_a_row_makes_its_own_row(tiny_model_dir, tiny_teacher_dir, tmp_path):
    """One model under two templates is in memory once, and each template has a beginning of its own."""
    teachers = [{"model": str(tiny_teacher_dir), "template": t} for t in (LONG, LONG.replace("g", "b"))]
    trainer = make(tiny_model_dir, teachers, tmp_path)
    first, second = trainer.teacher.teachers
    assert first is second
    assert len(trainer.train_dataset) == 16
    assert trainer.train_dataset["teachers"] == [[0], [1]] * 8
    prompts = trainer.train_dataset["teacher_prompt"]
    batch = whole_batch(trainer)
    found = trainer.compute_loss(trainer.model, batch).item()
    assert found == pytest.approx(trainer.compute_loss(trainer.model, batch).item(), rel=1e-6)  # now from the caches
    prefixes = [*trainer.teacher.prefixes.values()]
    assert [p.ids.tolist() for p in prefixes] == [prompts[i][: len(p.ids)] for i, p in enumerate(prefixes)]
    assert all(len(p.ids) > 16 for p in prefixes)
    for prefix in prefixes:
        prefix.off = "to compare"
    assert found == pytest.approx(trainer.compute_loss(trainer.model, batch).item(), rel=1e-5)


def test_tokens_grouped_by_teacher_have_the_same_loss():
    from trl_distill.losses import LMHead, ModelSide

    generator = torch.Generator().manual_seed(0)
    hidden, states = torch.randn(2, 7, 6, generator=generator, dtype=torch.float64).unbind()
    mine, theirs = (LMHead(torch.randn(11, 6, generator=generator, dtype=torch.float64)) for _ in range(2))
    labels = torch.arange(7)
    settings = LossSettings(alpha=0.7, temperature=2.0)
    places = torch.tensor([5, 0, 3]), torch.tensor([1, 2, 4, 6])
    whole = DenseSignal(states, theirs)
    parts = PerRowSignal([(index, DenseSignal(states[index], theirs)) for index in places])
    assert parts.tokens == whole.tokens == 7
    student = ModelSide(hidden, mine)
    for one, other in zip(parts.loss(student, labels, settings), whole.loss(student, labels, settings), strict=True):
        torch.testing.assert_close(one, other)
    silent = PerRowSignal([(places[0], DenseSignal(states[places[0]], theirs)), (places[1], None)])
    out = silent.loss(student, labels, settings)
    kl, ce = out.kl[places[0]], out.ce
    assert (out.kl[places[1]] == 0).all()
    torch.testing.assert_close(out.loss, (0.7 * 4 * kl + 0.3 * ce[places[0]]).sum() + ce[places[1]].sum())


def test_shares_are_consecutive_parts_of_one_seeded_order(tiny_model_dir, tiny_teacher_dir, tmp_path):
    def taken(*shares, **settings):
        teachers = [{"model": str(tiny_teacher_dir), "template": f"{n} {{input}}", "rows": share}
                    for n, share in zip("abc", shares, strict=False)]  # fmt: skip
        data = make(tiny_model_dir, teachers, tmp_path, **settings).train_dataset
        return [sorted(row["row"] for row in data if row["teachers"] == [i]) for i in range(len(shares))]

    first, second = taken(0.25, 0.75)
    assert len(first) == 2
    assert sorted(first + second) == list(range(1, 9))  # none twice, none left out
    assert taken(0.25, 0.75) == [first, second]
    assert any(taken(0.25, 0.75, seed=seed)[0] != first for seed in (1, 2, 3))
    assert taken(0.25, "all")[1] == list(range(1, 9))
    three = taken(0.5, 0.5, 0.5)
    assert three[0] == three[2]  # beyond the end it goes on from the start


def test_a_teacher_may_select_rows_by_number_and_unselected_rows_are_skipped(
    tiny_model_dir, tiny_teacher_dir, tmp_path, capsys
):
    teachers = [{"model": str(tiny_teacher_dir), "template": SHORT, "rows": f"level={n}"} for n in ("1", "2.0")]
    trainer = make(tiny_model_dir, teachers, tmp_path)
    assert sorted(trainer.train_dataset["row"]) == [1, 2, 4, 5, 7, 8]
    assert "6 of 8 used; 2 set aside: 2 because no teacher takes it (row 3, row 6)" in capsys.readouterr().out


def test_a_row_without_a_value_is_no_teachers():
    listed = read_teachers([{"model": name, "rows": f"level={name}"} for name in "12"])
    values = [{"level": 1}, {"level": None}, {"level": "2"}, {"level": [1]}]
    assert assign_rows(listed, values, seed=0, name="train", required=True) == [[0], [], [1], []]


def test_evaluation_may_have_rows_of_some_teachers_only(tiny_model_dir, tiny_teacher_dir, other_teacher_dir, tmp_path):
    teachers = [
        {"model": str(m), "template": SHORT, "rows": f"team={team}"}
        for m, team in ((tiny_teacher_dir, "x"), (other_teacher_dir, "y"))
    ]
    trainer = make(tiny_model_dir, teachers, tmp_path, per_device_eval_batch_size=2)
    of_x = [i for i, team in enumerate(ROWS["team"]) if team == "x"]
    found = trainer.evaluate(Dataset.from_dict(ROWS).select(of_x))["eval_loss"]
    batch = on_device(trainer, trainer.data_collator([trainer.train_dataset[i] for i in of_x]))
    assert found == pytest.approx(trainer.compute_loss(trainer.model, batch).item(), rel=1e-6)


def test_a_mixture_without_completions_has_them_of_the_first_teacher_that_takes_the_row(
    tiny_model_dir, tiny_teacher_dir, other_teacher_dir, tmp_path
):
    listed = [(tiny_teacher_dir, "team=x"), (other_teacher_dir, "all")]
    teachers = [{"model": str(m), "template": SHORT, "rows": rows} for m, rows in listed]
    data = {name: ROWS[name] for name in ("prompt", "team")}
    common = {"dataset_text_field": "prompt", "distill_max_teacher_length": 5, "completions": "teacher"}
    mixed = make(tiny_model_dir, {"combine": "mixture", "teachers": teachers}, tmp_path / "m", data=data, **common)
    for i, (model, _) in enumerate(listed):
        one = make(
            tiny_model_dir, None, tmp_path / str(i), data=data, teacher_model=str(model), teacher_prompt_template=SHORT,
            **common,
        )  # fmt: skip
        for row, expected in zip(mixed.train_dataset, one.train_dataset, strict=True):
            if (ROWS["team"][row["row"] - 1] == "x") == (i == 0):
                assert row["completion"] == expected["completion"]
                assert row["teachers"] == ([0, 1] if i == 0 else [1])


def test_the_longest_prompt_of_a_mixture_says_how_much_of_a_completion_fits(tiny_model_dir, tiny_teacher_dir, tmp_path):
    long = " ".join(["a"] * 505) + " {input}"  # the models read 512 tokens
    teachers = [{"model": str(tiny_teacher_dir), "template": t} for t in (SHORT, long)]
    data = {"prompt": ["b"], "completion": [" c" * 20]}
    trainer = make(tiny_model_dir, {"combine": "mixture", "teachers": teachers}, tmp_path, data=data)
    row = trainer.train_dataset[0]
    assert len(row["completion"]) == 6
    assert [len(p) for p in row["teacher_prompts"]] == [2, 506]
    assert torch.isfinite(trainer.compute_loss(trainer.model, whole_batch(trainer)))
    teachers[1]["template"] = long.replace("{input}", "a a a a a a a {input}")
    with pytest.raises(DataError, match="train, row 1: the teacher's prompt has 513 tokens"):
        make(tiny_model_dir, {"combine": "mixture", "teachers": teachers}, tmp_path, data=data)


def test_an_empty_prompt_leaves_the_first_token_to_no_teacher(tiny_model_dir, tiny_teacher_dir, tmp_path):
    teachers = [{"model": str(tiny_teacher_dir)}, {"model": str(tiny_teacher_dir)}]
    data = {"text": ["a b c", "d"]}
    trainer = make(tiny_model_dir, {"combine": "mixture", "teachers": teachers}, tmp_path, data=data)
    batch = whole_batch(trainer)
    assert (batch["labels"] != -100).sum() == (batch["teacher1_labels"] != -100).sum() == 2 + 1 + 0 + 1
    assert torch.isfinite(trainer.compute_loss(trainer.model, batch))
    teachers[1]["template"] = SHORT
    with pytest.raises(DataError, match="teacher 2 has a template of its own"):
        make(tiny_model_dir, {"combine": "mixture", "teachers": teachers}, tmp_path, data=data, completions="data")


def test_the_student_may_be_one_of_several_teachers(tiny_model_dir, other_teacher_dir, tmp_path):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    found = []
    for own in ("self", str(tiny_model_dir)):
        teachers = [{"model": own, "template": LONG}, {"model": str(other_teacher_dir), "template": SHORT}]
        torch.manual_seed(0)
        trainer = make(tiny_model_dir, {"combine": "mixture", "teachers": teachers}, tmp_path, peft=lora)
        found.append(losses(trainer))
        shared = trainer.teacher.teachers[0].model.lm_head.weight is trainer.base_student.lm_head.weight
        assert shared == (own == "self")
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_alpha_0_learns_each_completion_once_a_teacher(tiny_model_dir, tiny_teacher_dir, tmp_path):
    model, settings = str(tiny_teacher_dir), {"distill_alpha": 0}
    teachers = [{"model": model, "template": SHORT, "rows": f"team={team}"} for team in "xy"]
    found = losses(make(tiny_model_dir, teachers, tmp_path, **settings))
    alone = make(tiny_model_dir, None, tmp_path, teacher_model=model, teacher_prompt_template=SHORT, **settings)
    assert found == pytest.approx(losses(alone), rel=1e-6)


def test_a_teacher_of_text_has_no_say_on_the_others_rows(server, tiny_model_dir, tiny_teacher_dir, tmp_path):
    teachers = [
        {"model": str(tiny_teacher_dir), "template": SHORT, "rows": "team=x"},
        {"model": server.teacher, "template": SHORT, "rows": "team=y"},
    ]
    trainer = make(tiny_model_dir, teachers, tmp_path, allow_text_only_teacher=True)
    loss = trainer.compute_loss(trainer.model, whole_batch(trainer))
    tokens = int((whole_batch(trainer)["labels"] != -100).sum())
    model, parts = str(tiny_teacher_dir), []
    for team, alpha in (("x", 0.7), ("y", 0.0)):
        rows = [i for i, name in enumerate(ROWS["team"]) if name == team]
        one = make(
            tiny_model_dir, None, tmp_path, data={name: [column[i] for i in rows] for name, column in ROWS.items()},
            teacher_model=model, teacher_prompt_template=SHORT, distill_alpha=alpha,
        )  # fmt: skip
        parts.append(one.compute_loss(one.model, whole_batch(one), num_items_in_batch=tokens).item())
    assert loss.item() == pytest.approx(sum(parts), rel=1e-6)
    assert {r["request"]["max_tokens"] for r in server.requests()} == {1, 8}  # what it can do; the data has the rest


@pytest.fixture
def files(tiny_model_dir, tiny_teacher_dir, other_teacher_dir, tmp_path):
    """Return a function that writes teachers.yaml and queries, and returns the command's flags."""
    teachers = [
        {"model": str(tiny_teacher_dir), "template": LONG, "rows": "team=x"},
        {"model": str(other_teacher_dir), "template": [{"role": "user", "content": SHORT}], "rows": "all"},
    ]
    (tmp_path / "rows.json").write_text(
        json.dumps([{"text": t, "team": v} for t, v in zip(ROWS["prompt"], ROWS["team"], strict=True)])
    )

    def write(**changed):
        content = {"combine": "completions", "teachers": teachers, **changed}
        (tmp_path / "teachers.yaml").write_text(yaml.safe_dump(content))
        return {
            "model": str(tiny_model_dir), "teacher_config": str(tmp_path / "teachers.yaml"), "epochs": 1,
            "data_path": str(tmp_path / "rows.json"), "distill_max_teacher_length": 6,
            "project_name": str(tmp_path / "run"), "gradient_accumulation": 1,
        }  # fmt: skip

    return write


def command(settings, *more):
    flags = [word for k, v in settings.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    return CliRunner().invoke(main, ["llm", *flags, *more])


@pytest.mark.parametrize("combine", ["completions", "mixture"])
def test_the_command_learns_from_several_teachers(
    combine, files, chat_model_dir, tiny_teacher_dir, other_teacher_dir, tmp_path
):
    settings = {**files(combine=combine), "model": str(chat_model_dir)}
    result = command(settings)
    assert result.exit_code == 0, result.output
    assert f"teacher 1     {tiny_teacher_dir}: 4 rows" in result.stdout
    assert f"teacher 2     {other_teacher_dir}: 8 rows" in result.stdout
    assert "first row of teacher 2:\n    | <|im_start|>user\n    | a a b<|im_end|>" in result.stdout
    folder = tmp_path / "run"
    store = (folder / "teacher_completions.jsonl").read_text()
    assert len(store.splitlines()) == (12 if combine == "completions" else 8)
    card = (folder / "README.md").read_text()
    assert all(f"`{t.name}`" in card for t in (tiny_teacher_dir, other_teacher_dir))
    assert "rows whose team is x. Its template" in card
    figures = json.loads((folder / "metrics.json").read_text())["metrics"]["preflight_train"]
    assert figures["rows_of_teachers"] == [4, 8]
    kept = yaml.safe_load((folder / "config.yaml").read_text())["teacher_config"]
    assert kept == read_teachers(settings["teacher_config"]).to_dict()
    again = CliRunner().invoke(main, ["llm", "--config", str(folder / "config.yaml"), "--overwrite"])
    assert again.exit_code == 0, again.output
    assert (folder / "teacher_completions.jsonl").read_text() == store  # paid for once
    assert yaml.safe_load((folder / "config.yaml").read_text())["teacher_config"] == kept


def test_a_file_deleted_during_a_run_changes_nothing(files, tmp_path, monkeypatch):
    teachers = read_teachers(files()["teacher_config"]).to_dict()["teachers"][:1]
    settings = files(teachers=teachers)
    trained = DistillationSFTTrainer.train

    def train(self, **more):
        (tmp_path / "teachers.yaml").unlink()
        return trained(self, **more)

    monkeypatch.setattr(DistillationSFTTrainer, "train", train)
    run(LLMTrainingParams(**settings))
    assert not (tmp_path / "teachers.yaml").exists()
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["teacher_config"]["teachers"] == teachers
    assert (tmp_path / "run" / "run.json").is_file()


def test_a_dry_run_shows_several_teachers_and_trains_nothing(files, chat_model_dir, tmp_path):
    result = command({**files(), "model": str(chat_model_dir)}, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "first row of teacher 1" in result.stdout
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_run_is_resumed_with_the_same_teachers_only(files, chat_model_dir, tmp_path):
    settings = {**files(), "model": str(chat_model_dir), "save_steps": 1, "save_strategy": "steps", "max_steps": 2}
    assert command(settings).exit_code == 0
    (tmp_path / "run" / "run.json").unlink()  # as a run that was killed leaves it
    files(combine="mixture")
    refused = command({**settings, "max_steps": 3}, "--resume")
    assert refused.exit_code == 2
    assert "holds an unfinished run with --teacher-config" in refused.output
    files()
    assert command({**settings, "max_steps": 3}, "--resume").exit_code == 0


def test_loaded_models_teach_and_are_saved_by_name(files, tiny_model_dir, other_teacher_dir, tmp_path):
    loaded = AutoModelForCausalLM.from_pretrained(other_teacher_dir)
    before = {name: p.clone() for name, p in loaded.named_parameters()}
    teachers = [{"model": loaded, "template": SHORT}, {"model": loaded, "template": LONG}]
    result = run(LLMTrainingParams(**{**files(), "teacher_config": teachers, "distill_alpha": 1.0}))
    folder = tmp_path / "run"
    kept = yaml.safe_load((folder / "config.yaml").read_text())["teacher_config"]["teachers"]
    assert [t["model"] for t in kept] == ["<LlamaForCausalLM>"] * 2
    assert f"`{other_teacher_dir.name}`" in (folder / "README.md").read_text()
    assert result.trainer.args.teacher_config["teachers"] == kept
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter.cpu(), before[name])
    again = CliRunner().invoke(main, ["llm", "--config", str(folder / "config.yaml"), "--overwrite"])
    assert again.exit_code == 2
    assert "teacher 1: model was a LlamaForCausalLM in memory" in again.output


def test_a_teacher_of_text_writes_its_rows_unless_strict_refuses_it(files, server, tiny_teacher_dir, capsys):
    teachers = [
        {"model": str(tiny_teacher_dir), "template": SHORT, "rows": "team=x"},
        {"model": server.teacher, "template": "Write the letters in reverse order.\n{input}\n", "rows": "team=y"},
    ]
    settings = files(teachers=teachers)
    with pytest.raises(TeacherError, match="gives text only, which has nothing for the divergence"):
        run(LLMTrainingParams(**settings, teacher_logprobs="none", strict=True))
    assert server.requests() == []
    with pytest.raises(TeacherError, match=r"teachers.yaml, teacher 2: .* cannot be mixed"):
        run(LLMTrainingParams(**files(teachers=teachers, combine="mixture"), allow_text_only_teacher=True))
    files(teachers=teachers)
    run(LLMTrainingParams(**settings, teacher_logprobs="none"))
    assert len([prompt for prompt in server.answered() if str(prompt).startswith("Write")]) == 4
    assert "(cross-entropy alone: it gives text): 4 rows" in capsys.readouterr().out


RANK = """
import json
from teachers.test_several import losses, make
trainer = make({student!r}, json.loads({teachers!r}), {folder!r}, per_device_train_batch_size={batch})
result = losses(trainer)
"""


@pytest.mark.parametrize("combine", ["completions", "mixture"])
def test_two_processes_with_several_teachers_have_the_losses_of_one(
    combine, tiny_model_dir, tiny_teacher_dir, other_teacher_dir, tmp_path
):
    teachers = json.dumps({"combine": combine, "teachers": [
        {"model": str(tiny_teacher_dir), "template": LONG, "rows": "team=x"},
        {"model": str(other_teacher_dir), "template": SHORT, "rows": "team=y" if combine == "completions" else "all"},
    ]})  # fmt: skip
    one, two = (
        run_in(
            ranks,
            RANK.format(student=str(tiny_model_dir), folder=str(tmp_path / "out"), teachers=teachers, batch=8 // ranks),
            tmp_path,
        )
        for ranks in (1, 2)
    )
    assert two == pytest.approx(one, rel=1e-5)


def test_rows_that_were_prepared_for_one_teacher_are_refused(tiny_model_dir, tiny_teacher_dir, tmp_path):
    one = make(tiny_model_dir, None, tmp_path, teacher_model=str(tiny_teacher_dir), teacher_prompt_template=SHORT)
    several = make(tiny_model_dir, [{"model": str(tiny_teacher_dir)}], tmp_path)
    with pytest.raises(DataError, match="prepared for one teacher, but teacher_config names several"):
        several.evaluate(one.train_dataset)


def test_a_trainer_that_writes_every_batch_accepts_one_teacher_only(tiny_model_dir, tiny_teacher_dir, tmp_path):
    class Online(PromptDistillationTrainer):
        def generate_teacher_outputs(self, batch):
            return super().generate_teacher_outputs(batch)

    config = DistillationSFTConfig(output_dir=str(tmp_path), use_cpu=accelerator() is None, bf16=False,
                                   use_distillation=True,
                                   report_to="none", teacher_config=[{"model": str(tiny_teacher_dir)}])  # fmt: skip
    with pytest.raises(ParamsError, match="several teachers, but generate_teacher_outputs generates with one"):
        Online(str(tiny_model_dir), config, train_dataset=Dataset.from_dict(ROWS))


WRONG = [
    ({"combine": "mix"}, ParamsError, "teachers.yaml: combine is 'mix'; expected one of 'completions', 'mixture'"),
    ({"teacher": []}, ParamsError, "unknown key 'teacher'; .* Did you mean 'teachers'"),
    ({"teachers": []}, ParamsError, "'teachers' is a list; give a list of teachers"),
    ({"teachers": None}, ParamsError, "'teachers' is missing"),
    ({"teachers": ["gpt2"]}, ParamsError, "teachers.yaml, teacher 1 is 'gpt2'; write a mapping with its 'model'"),
    ([{}], ParamsError, "teacher 1: model is missing"),
    ([{"model": 3}], ParamsError, "teacher 1: model is 3; give a name"),
    ([{"model": "m"}, {"models": "m"}], ParamsError, "teacher 2: unknown key 'models'; .* Did you mean 'model'"),
    ([{"model": "m", "weight": 2}], ParamsError, "teacher 1: weight is 2, .* say with 'rows' how many"),
    ([{"model": "m", "weight": "much"}], ParamsError, "weight is 'much'; expected a number above 0"),
    ([{"model": "m", "rows": 1.5}], ParamsError, "rows are 1.5; expected one of all, a share above 0 and at most 1"),
    ([{"model": "m", "rows": True}], ParamsError, "rows are True"),
    ([{"model": "m", "rows": "some"}], ParamsError, "rows are 'some'"),
    ([{"model": "m", "revision": 1}], ParamsError, "revision is 1"),
    ([{"model": "m", "template": "no field"}], TemplateError, r"teacher 1: template has no \{input\}"),
    ([{"model": "http://u:p@h/v1#m"}], TeacherError, "credentials"),
    ([{"model": "EMBEDDED", "template": "{x} {input}"}], TemplateError, r"teacher 1: template has the field \{x\}"),
    ([{"model": "EMBEDDED", "rows": "taem=x"}], ParamsError, "the column 'taem', .* Did you mean 'team'"),
    ([{"model": "EMBEDDED", "rows": "team=z"}], DataError, "takes none of the 8 rows of train: its rows are team=z"),
    ([{"model": "EMBEDDED", "rows": 0.01}], DataError, "takes none of the 8 rows of train: its rows are 0.01"),
    ([{"model": "self"}], ParamsError, "model is 'self', .* add peft=True"),
    ([{"model": "./nowhere/at/all"}], UsageError, "nowhere"),
]


@pytest.mark.parametrize(("content", "error", "sentence"), WRONG, ids=[w[2][-30:] for w in WRONG])
def test_an_invalid_list_of_teachers_is_refused_before_a_model_loads(
    content, error, sentence, files, tiny_teacher_dir, monkeypatch
):
    monkeypatch.setattr("trl_distill.models.loading.ModelSource.load_model", no_model)
    settings, text = files(), yaml.safe_dump(content).replace("EMBEDDED", str(tiny_teacher_dir))
    with open(settings["teacher_config"], "w") as file:
        file.write(text)
    with pytest.raises(error, match=sentence):
        run(LLMTrainingParams(**settings))


def test_a_file_that_cannot_be_read_and_settings_of_one_teacher_are_refused(files, tmp_path):
    settings = files()
    (tmp_path / "teachers.yaml").write_text("- model: [")
    with pytest.raises(ParamsError, match=r"teachers.yaml' is not YAML: .* in line 1"):
        run(LLMTrainingParams(**settings))
    with pytest.raises(ParamsError, match="cannot be read: No such file"):
        run(LLMTrainingParams(**{**settings, "teacher_config": "nowhere.yaml"}))
    for name, value in (
        ("teacher_model", "gpt2"), ("teacher_prompt_template", SHORT), ("teacher_store", "store"),
        ("teacher_revision", "main"),
    ):  # fmt: skip
        with pytest.raises(ParamsError, match=f"{name} is '.*cannot be used with teacher_config"):
            LLMTrainingParams(**settings, **{name: value}).validate()
        with pytest.raises(ParamsError, match=f"{name} is"):
            DistillationSFTConfig(
                output_dir=str(tmp_path), teacher_config="x.yaml", use_cpu=accelerator() is None, **{name: value}
            )


def test_the_project_is_no_teachers_folder(files, tiny_teacher_dir):
    with pytest.raises(UsageError, match=r"is also the folder of teachers.yaml, teacher 1"):
        run(LLMTrainingParams(**{**files(), "project_name": str(tiny_teacher_dir)}))


def test_the_saved_list_of_teachers_can_be_read_again():
    given = {"combine": "mixture", "teachers": [
        {"model": "a", "template": r"one\ntwo {{x}} \\n {input}", "weight": 2, "rows": 0.25, "revision": "r"},
        {"model": "b", "template": [{"role": "system", "content": r"\n {input}"}], "rows": "team = x=y"},
    ]}  # fmt: skip
    listed = read_teachers(given)
    again = read_teachers(yaml.safe_load(yaml.safe_dump(listed.to_dict())))
    assert again.to_dict() == listed.to_dict()
    for one, other in zip(listed.teachers, again.teachers, strict=True):
        assert [t.pieces for _, t in one.template.messages] == [t.pieces for _, t in other.template.messages]
        assert (one.share, one.column, one.value, one.weight, one.revision) == (
            other.share, other.column, other.value, other.weight, other.revision,
        )  # fmt: skip
    assert listed.teachers[1].value == "x=y"
