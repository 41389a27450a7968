"""Training from a store of targets, through the trainer and the command: the loss of the local teacher without it."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from datasets import Dataset
from ranks import run_in
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, run
from trl_distill.cli import main
from trl_distill.config.devices import accelerator
from trl_distill.errors import ParamsError, TeacherError
from trl_distill.teachers.local.teacher import LocalTeacher
from trl_distill.teachers.target_store.folder import TargetFolder
from trl_distill.teachers.target_store.reader import StoredTeacher

pytestmark = pytest.mark.usefixtures("device")

PAIRS = {
    "prompt": ["a b", "c", "d e f", "g", "b a", "c d", "e", "f g"],
    "completion": [" c d", " e f g a", " b", " d c b", " e", " f", " g a b c", " d"],
}
TEMPLATE = "g f e {input} d"


def make_trainer(student, folder, data=PAIRS, **settings):
    config = DistillationSFTConfig(
        output_dir=str(folder / "out"), max_steps=4, learning_rate=1e-3, bf16=False,
        use_cpu=accelerator() is None, report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True,
        max_length=64,
        gradient_checkpointing=False, dataloader_pin_memory=False, use_distillation=True,
        **{"teacher_prompt_template": TEMPLATE, "per_device_train_batch_size": 4, **settings},
    )  # fmt: skip
    return DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(student), config, train_dataset=Dataset.from_dict(data),
        eval_dataset=Dataset.from_dict(data), processing_class=AutoTokenizer.from_pretrained(student),
    )  # fmt: skip


def figures(trainer, name="loss"):
    trainer.train()
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.fixture
def no_teacher_loads(monkeypatch):
    def refuse(self):
        raise AssertionError("the teacher was loaded")

    def forbid():
        monkeypatch.setattr(LocalTeacher, "model", property(refuse))

    return forbid


@pytest.mark.parametrize(("temperature", "divergence"), [(1.0, "forward_kl"), (3.0, "reverse_kl"), (2.0, "jsd")])
def test_from_hidden_states_it_trains_as_from_the_local_teacher(
    temperature, divergence, tiny_model_dir, tiny_teacher_dir, tmp_path, no_teacher_loads
):
    loss = {"distill_temperature": temperature, "distill_divergence": divergence}
    expected = figures(make_trainer(tiny_model_dir, tmp_path, teacher_model=str(tiny_teacher_dir), **loss))
    store = str(tmp_path / "store")
    writing = {"teacher_model": str(tiny_teacher_dir), "teacher_store": store, "teacher_store_kind": "hidden"}
    make_trainer(tiny_model_dir, tmp_path, **writing)
    no_teacher_loads()
    assert figures(make_trainer(tiny_model_dir, tmp_path, teacher_store=store, **loss)) == pytest.approx(
        expected, rel=1e-5
    )


def test_training_from_many_samples_is_close_to_the_local_teacher(
    tiny_model_dir, tiny_teacher_dir, tmp_path, no_teacher_loads
):
    expected = figures(make_trainer(tiny_model_dir, tmp_path, teacher_model=str(tiny_teacher_dir)), "kl")
    store = str(tmp_path / "store")
    writing = {"teacher_model": str(tiny_teacher_dir), "teacher_store": store, "teacher_store_kind": "sample"}
    make_trainer(tiny_model_dir, tmp_path, teacher_top_k=20_000, **writing)
    no_teacher_loads()
    assert figures(make_trainer(tiny_model_dir, tmp_path, teacher_store=store), "kl") == pytest.approx(
        expected, rel=0.1
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_with_the_whole_vocabulary_it_trains_as_from_the_local_teacher(
    temperature, tiny_model_dir, tiny_teacher_dir, tmp_path, no_teacher_loads
):
    settings = {"teacher_model": str(tiny_teacher_dir), "distill_temperature": temperature}
    local = make_trainer(tiny_model_dir, tmp_path, **settings)
    expected = figures(local)
    store = str(tmp_path / "store")
    make_trainer(tiny_model_dir, tmp_path, teacher_store=store, teacher_top_k=10_000, **settings)
    no_teacher_loads()
    trainer = make_trainer(tiny_model_dir, tmp_path, teacher_store=store, distill_temperature=temperature)
    assert isinstance(trainer.teacher, StoredTeacher)
    assert figures(trainer) == pytest.approx(expected, rel=1e-3)
    for name in ("kl", "ce", "top1_agreement"):
        both = [[line[name] for line in t.state.log_history if name in line] for t in (trainer, local)]
        assert both[0] == pytest.approx(both[1], rel=1e-3, abs=1e-4), name
    for mine, theirs in zip(trainer.model.parameters(), local.model.parameters(), strict=True):
        assert (mine - theirs).norm() <= 1e-2 * theirs.norm()


def test_fewer_stored_tokens_give_a_smaller_divergence(tiny_model_dir, tiny_teacher_dir, tmp_path):
    def first_kl(**settings):
        return make_trainer(tiny_model_dir, tmp_path, teacher_model=str(tiny_teacher_dir), **settings).evaluate()

    full = first_kl()["eval_kl"]
    some, more = (first_kl(teacher_store=str(tmp_path / str(k)), teacher_top_k=k)["eval_kl"] for k in (8, 64))
    assert 0 < some < more < full


def test_an_existing_store_is_checked_against_the_run(tiny_model_dir, tiny_teacher_dir, tmp_path):
    settings = {"teacher_store": str(tmp_path / "store"), "teacher_model": str(tiny_teacher_dir)}
    make_trainer(tiny_model_dir, tmp_path, **settings)
    for change, error, sentence in (
        ({"teacher_model": str(tiny_model_dir)}, TeacherError, "another teacher's config"),
        ({"teacher_prompt_template": "f {input}"}, TeacherError, "another teacher_prompt_template"),
        ({"teacher_prompt_template": "{input}", "teacher_model": None}, TeacherError, "another teacher_prompt_templ"),
        ({"distill_temperature": 2.0}, TeacherError, "was written for the temperatures 3, and distill_temperature"),
        ({"teacher_store_kind": "hidden"}, TeacherError, "another teacher_store_kind: 'topk', and this run has"),
        ({"distill_divergence": "jsd"}, TeacherError, "distill_divergence 'jsd' needs the teacher's probability"),
        ({"data": {"prompt": ["a b"], "completion": [" g"]}}, TeacherError, "no targets for train, row 1"),
    ):
        with pytest.raises(error, match=sentence):
            make_trainer(tiny_model_dir, tmp_path, **{**settings, **change})


def test_without_a_store_there_must_be_a_teacher(tiny_model_dir, tmp_path):
    with pytest.raises(ParamsError, match="a teacher_store that is complete"):
        make_trainer(tiny_model_dir, tmp_path, teacher_store=str(tmp_path / "nowhere"))
    with pytest.raises(ParamsError, match="teacher_temperatures is '3,x'"):
        LLMTrainingParams(model="m", teacher_model="t", teacher_temperatures="3,x").validate()


@pytest.fixture
def command(tiny_model_dir, tiny_teacher_dir, tmp_path):
    data = tmp_path / "queries.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in PAIRS["prompt"]))
    common = ["--model", str(tiny_model_dir), "--data-path", str(data), "--teacher-prompt-template", TEMPLATE]
    common += ["--distill-max-teacher-length", "6"]
    teacher = ["--teacher-model", str(tiny_teacher_dir)]

    def call(name, *arguments, with_teacher=True):
        return CliRunner().invoke(main, [name, *common, *(teacher if with_teacher else []), *arguments])

    return call


def trained(folder):
    return [line["loss"] for line in json.loads((folder / "metrics.json").read_text())["history"]]


TRAINING = ["--epochs", "2", "--gradient-accumulation", "1", "--logging-steps", "1", "--lr", "1e-3"]


def test_teach_then_train_without_the_teacher(command, tmp_path, no_teacher_loads):
    local, again, store = tmp_path / "local", tmp_path / "again", tmp_path / "store"
    assert command("llm", *TRAINING, "--project-name", str(local)).exit_code == 0
    taught = command("teach", "--output", str(store), "--top-k", "9999", "--temperatures", "2,3")
    assert taught.exit_code == 0, taught.output
    assert taught.stdout.splitlines()[-1] == f"Done: 1 shard written; targets are in {store}."
    no_teacher_loads()
    done = command(
        "llm", *TRAINING, "--teacher-store", str(store), "--project-name", str(again), with_teacher=False
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert trained(again) == pytest.approx(trained(local), rel=1e-3)
    assert f"`{store.name}`" in (again / "README.md").read_text()
    assert not (again / "teacher_completions.jsonl").exists()


def test_a_store_that_is_not_there_is_named_if_there_is_no_teacher_to_write_it(command, tmp_path):
    done = command("llm", "--teacher-store", str(tmp_path / "absent"), "--project-name", "p", with_teacher=False)
    assert done.exit_code == 2
    assert "absent' is no complete store, and there is no --teacher-model to write it with" in done.output


def test_llm_writes_a_store_that_is_missing_and_trains_from_it(command, tmp_path, no_teacher_loads):
    store = tmp_path / "store"
    first, second = tmp_path / "first", tmp_path / "second"
    arguments = [*TRAINING, "--teacher-store", str(store), "--project-name"]
    done = command("llm", *arguments, str(first))
    assert done.exit_code == 0, done.output
    assert TargetFolder(store).complete
    no_teacher_loads()
    assert command("llm", *arguments, str(second)).exit_code == 0
    assert trained(first) == trained(second)


@pytest.mark.parametrize("name", ["shard-00000.parquet", "completions.jsonl", "manifest.json"])
def test_a_damaged_store_is_named_and_repaired(name, command, tmp_path):
    store = tmp_path / "store"
    assert command("teach", "--output", str(store)).exit_code == 0
    before = {p.name: p.read_bytes() for p in store.iterdir() if p.is_file()}
    damaged = bytearray(before[name])
    damaged[len(damaged) // 2] ^= 1
    (store / name).write_bytes(damaged)
    for command_name, more in (("llm", ["--teacher-store"]), ("teach", ["--output"])):
        done = command(command_name, *more, str(store))
        assert done.exit_code == 2, done.output
        assert f"{name} is damaged" in done.output
        assert "--repair" in done.output
    done = command("teach", "--output", str(store), "--repair")
    assert done.exit_code == 0, done.output
    assert {p.name: p.read_bytes() for p in store.iterdir() if p.is_file()} == before


def test_a_store_that_was_made_otherwise_is_left_as_it_is_and_no_completion_is_written(command, tmp_path, monkeypatch):
    store, other = tmp_path / "store", tmp_path / "other.jsonl"
    assert command("teach", "--output", str(store)).exit_code == 0
    before = {p.name: p.read_bytes() for p in store.iterdir() if p.is_file()}
    monkeypatch.setattr("trl_distill.teachers.completions.generate.generate_all", None)
    other.write_text('{"text": "g g g"}\n')
    for more, sentence in (
        (["--distill-max-teacher-length", "5"], "another --distill-max-teacher-length: 6, and this run has 5"),
        (["--teacher-prompt-template", "h {input}"], f"-template: '{TEMPLATE}', and this run has 'h {{input}}'; give"),
        (["--temperatures", "2"], "another --teacher-temperatures: [3.0], and this run has [2.0]"),
        (["--data-path", str(other)], "is complete, without a completion for 1 of these prompts; give the rows"),
    ):
        done = command("teach", "--output", str(store), *more)
        assert done.exit_code == 2, done.output
        assert sentence in done.output
        assert {p.name: p.read_bytes() for p in store.iterdir() if p.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "with_teacher", "sentence"),
    [
        ([], True, "there is no store to write; give --output a folder"),
        (["--output", "store"], False, "--teacher-model is missing"),
        (["--output", "store", "--top-k", "0"], True, "--top-k is"),
        (["--output", "store", "--temperatures", "hot"], True, "--teacher-temperatures is 'hot'"),
        (["--output", "store", "--lr", "3"], True, "No such option"),
    ],
)
def test_teach_refuses_invalid_settings_in_one_sentence(
    arguments, with_teacher, sentence, command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    done = command("teach", *arguments, with_teacher=with_teacher)
    assert done.exit_code == 2
    assert sentence in done.output
    assert not (tmp_path / "store").exists()


@pytest.mark.cpu
def test_a_store_serves_a_loaded_teacher_too(tiny_model_dir, tiny_teacher_dir, tmp_path):
    params = {
        "model": str(tiny_model_dir), "data_path": Dataset.from_dict(PAIRS), "epochs": 1,
        "teacher_model": AutoModelForCausalLM.from_pretrained(tiny_teacher_dir),
        "teacher_store": str(tmp_path / "store"), "gradient_accumulation": 1,
    }  # fmt: skip
    results = [run(LLMTrainingParams(**params, project_name=str(tmp_path / name))) for name in ("one", "two")]
    for mine, theirs in zip(*(result.model.parameters() for result in results), strict=True):
        assert torch.equal(mine, theirs)


def test_a_dry_run_writes_no_targets(command, tmp_path):
    store = tmp_path / "store"
    done = command("llm", "--dry-run", "--teacher-store", str(store), "--project-name", str(tmp_path / "run"))
    assert done.exit_code == 0, done.output
    assert not TargetFolder(store).begun


def test_evaluation_on_rows_that_are_not_stored_is_refused(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make_trainer(
        tiny_model_dir, tmp_path, teacher_model=str(tiny_teacher_dir), teacher_store=str(tmp_path / "store")
    )  # fmt: skip
    with pytest.raises(TeacherError, match="no targets for the sequence"):
        trainer.evaluate(Dataset.from_dict({"prompt": ["a"], "completion": [" g g"]}))


RANK = """
from pathlib import Path
from teachers.test_stored_targets import figures, make_trainer
trainer = make_trainer({student!r}, Path({folder!r}), per_device_train_batch_size={batch}, teacher_model={teacher!r},
                       teacher_store={store!r}, teacher_store_kind={kind!r}, per_device_eval_batch_size=3)
result = figures(trainer) + [trainer.evaluate()["eval_kl"]]
"""


@pytest.mark.cpu
@pytest.mark.parametrize("kind", ["topk", "hidden"])
def test_two_processes_write_one_store_and_have_the_losses_of_one(kind, tiny_model_dir, tiny_teacher_dir, tmp_path):
    found = []
    for ranks in (1, 2):
        code = RANK.format(student=str(tiny_model_dir), teacher=str(tiny_teacher_dir), kind=kind, batch=4 // ranks,
                           folder=str(tmp_path), store=str(tmp_path / f"store-{ranks}"))  # fmt: skip
        found.append(run_in(ranks, code, tmp_path))
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / f"store-{n}").iterdir() if p.is_file()} for n in (1, 2))
    assert one == two
