"""`generate_with_teacher`, and runs on what it returned: no teacher is named, the rows say who wrote."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from conftest import make_model, make_model_that_writes
from datasets import Dataset
from teachers.writers import make_t5
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, BertConfig

from trl_distill import (
    DataError,
    DistillationSFTConfig,
    DistillationSFTTrainer,
    LLMTrainingParams,
    ParamsError,
    TeacherError,
    TemplateError,
    generate_with_teacher,
    load_teacher,
    run,
    train,
)
from trl_distill.cli import main
from trl_distill.prompts.chat_template import ChatTemplate
from trl_distill.teachers.local.teacher import LocalTeacher
from trl_distill.teachers.target_store.reader import StoredTeacher

QUERIES = ["why is the sky blue", "a red cat", "2+2"]


def short(*given, **more):
    """Return what a teacher writes in six tokens at most."""
    return generate_with_teacher(*given, max_new_tokens=6, progress=False, **more)


@pytest.fixture(scope="module")
def t5_dir(tmp_path_factory):
    return make_t5(tmp_path_factory.mktemp("models") / "t5")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory in which the names of the guide's fourth example are folders."""
    for name, width in (("gpt2", 32), ("gpt2-xl", 48)):
        make_model(tmp_path / name, hidden=width)
    make_t5(tmp_path / "t5-large")
    BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path / "bert-large")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_guides_example_of_several_teachers(place, capsys):
    teachers = [
        ("gpt2-xl", "You write poems. {input}"),
        ("bert-large", "Look at this closely: {input}"),
        ("t5-large", "Make it short: {input}"),
    ]
    combined = []
    for model, prompt in teachers:
        if model == "bert-large":
            with pytest.raises(
                TeacherError, match=r"bert-large' \(bert\) is not a causal language model but an encoder"
            ):
                generate_with_teacher(model, prompt, QUERIES)
        else:
            combined.extend(generate_with_teacher(model, prompt, QUERIES))
    assert [row["teacher"] for row in combined] == ["gpt2-xl"] * 3 + ["t5-large"] * 3
    assert [row["text"] for row in combined] == QUERIES * 2
    (place / "combined_teacher_outputs.json").write_text(json.dumps(combined))
    config = LLMTrainingParams(
        model="gpt2", trainer="sft", use_distillation=True, data_path="./combined_teacher_outputs.json",
        project_name="multi-teacher-distilled",
    )  # fmt: skip
    before = AutoModelForCausalLM.from_pretrained("gpt2").lm_head.weight
    assert not torch.equal(train(config).lm_head.weight, before)
    said = "Teacher: none loaded; gpt2-xl, t5-large wrote the data's completions, which are learned by cross-entropy"
    assert said in capsys.readouterr().out
    figures = json.loads((place / "multi-teacher-distilled" / "metrics.json").read_text())["metrics"]
    assert figures["train_loss"] == pytest.approx(figures["train_ce"])
    card = (place / "multi-teacher-distilled" / "README.md").read_text()
    assert "`gpt2`, trained on the completions of teachers that its data names." in card
    assert "NoneType" not in card


def test_generate_returns_the_teachers_completions_under_its_prompt(tiny_teacher_dir):
    model, tokenizer = (kind.from_pretrained(tiny_teacher_dir) for kind in (AutoModelForCausalLM, AutoTokenizer))
    for row in short(str(tiny_teacher_dir), "Tell me: {input}\n", QUERIES):
        ids = tokenizer(f"Tell me: {row['text']}\n", return_tensors="pt", return_token_type_ids=False)
        never = list(range(len(tokenizer), model.config.vocab_size))
        whole = model.generate(**ids, do_sample=False, max_new_tokens=6, suppress_tokens=never)[0]
        assert row["completion"] == tokenizer.decode(whole[ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert set(row) == {"text", "completion", "teacher", "finished"}


def test_query_columns_are_template_fields_and_are_returned(tiny_model_dir):
    rows = [
        {"question": q, "tone": tone, "input": tone} for q, tone in zip(QUERIES, ("kind", "dry", "loud"), strict=True)
    ]
    by_list, by_dataset, by_frame, by_name = (
        short(str(tiny_model_dir), template, given, text_column="question")
        for template, given in (
            ("Be {tone}: {input}", rows),
            ("Be {tone}: {input}", Dataset.from_list(rows)),
            ("Be {tone}: {input}", pd.DataFrame(rows)),
            ("Be {input_column}: {input}", rows),
        )
    )
    assert by_list == by_dataset == by_frame == by_name
    assert [(row["text"], row["tone"], row["input"]) for row in by_list] == [
        (row["question"], row["tone"], row["tone"]) for row in rows
    ]
    alone = short(str(tiny_model_dir), "Be dry: {input}", QUERIES[1:2])
    assert alone[0]["completion"] == by_list[1]["completion"]


def test_a_chat_is_answered_without_the_token_that_ends_its_turn(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(make_model(tmp_path / "names", chat=True))
    end = ChatTemplate(tokenizer).end.token
    ends = make_model_that_writes(tmp_path / "ends", end, chat=True)
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "{input}"}]
    (row,) = short(str(ends), turns, QUERIES[:1])
    assert (row["completion"], row["finished"]) == ("", True)
    goes_on = make_model_that_writes(tmp_path / "goes-on", tokenizer("a")["input_ids"][0], chat=True)
    conversation = [{"messages": [{"role": "user", "content": "b"}]}]
    (row,) = short(str(goes_on), "{input}", conversation)
    assert row == {
        "messages": [{"role": "user", "content": "b"}], "completion": "a" * 6, "teacher": str(goes_on),
        "finished": False,
    }  # fmt: skip


def test_a_loaded_model_writes_with_the_tokenizer_given(tiny_teacher_dir, t5_dir):
    for folder, kind in ((tiny_teacher_dir, AutoModelForCausalLM), (t5_dir, AutoModelForSeq2SeqLM)):
        model, tokenizer = kind.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        model.config._name_or_path = ""
        named = short(str(folder), "{input}", QUERIES)
        loaded = short(model, "{input}", QUERIES, tokenizer=tokenizer)
        assert [row["completion"] for row in loaded] == [row["completion"] for row in named]
        assert loaded[0]["teacher"] == type(model).__name__
        with pytest.raises(TeacherError, match="tokenizer"):
            short(model, "{input}", QUERIES)


def test_generate_accepts_a_teacher_a_name_and_a_server(server, tiny_model_dir):
    assert short(load_teacher(str(tiny_model_dir)), "{input}", QUERIES)[0]["teacher"] == str(tiny_model_dir)
    prompt = "Write the words in reverse order.\n{input}\n"
    here, there = (short(model, prompt, ["red cat", "blue dog"]) for model in ("embedded", server.teacher))
    assert [row["teacher"] for row in (*here, *there)] == ["embedded"] * 2 + [server.teacher] * 2
    assert all(row["completion"] for row in (*here, *there))


def test_stored_completions_are_not_generated_again(tiny_model_dir, tmp_path, monkeypatch):
    store = tmp_path / "kept.jsonl"
    first = short(str(tiny_model_dir), "{input}", QUERIES, store=store)
    monkeypatch.setattr(LocalTeacher, "generate", lambda *_: pytest.fail("asked again"))
    assert short(str(tiny_model_dir), "{input}", QUERIES, store=store) == first


def test_samples_differ_and_are_reproducible(tiny_model_dir):
    one, two = (short(str(tiny_model_dir), "{input}", ["a"] * 8, do_sample=True, seed=3) for _ in range(2))
    assert one == two
    assert len({row["completion"] for row in one}) > 1


@pytest.mark.parametrize(
    ("template", "queries", "error", "said"),
    [
        ("no field", QUERIES, TemplateError, r"template has no \{input\}"),
        ("{tone} {input}", QUERIES, TemplateError, r"the field \{tone\}"),
        ("{input}", "a red cat", DataError, "queries is a str; give a list of texts, a datasets"),
        ("{input}", 5, DataError, "queries is an int; give a list of texts, a datasets"),
        ("{input}", [], DataError, "queries has no (rows|column)"),
        ("{input}", ["a", None], DataError, "queries: 1 bad row, more than"),
        ("{input}", ["a", " "], DataError, "queries, row 2: 'text' is empty"),
        ("{input}", ["a", 3], DataError, "queries: 1 bad row, .* row 2 .'text' is a number"),
        ("{input}", [{"txet": "a"}], DataError, "no column 'text'"),
    ],
)
def test_invalid_queries_are_reported_before_a_model_loads(template, queries, error, said, tiny_model_dir, monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded"))
    with pytest.raises(error, match=said):
        short(str(tiny_model_dir), template, queries)


ROWS = [
    {"text": "a", "completion": " b c", "teacher": "t", "finished": True},
    {"text": "b", "completion": " c d", "teacher": "u", "finished": False},
]


def settings(model, data, folder, **more):
    """Return parameters of a short run without a teacher."""
    (folder / "data.json").write_text(json.dumps(data))
    return LLMTrainingParams(
        model=str(model), data_path=str(folder / "data.json"), project_name=str(folder / "run"), epochs=1, **more
    )


@pytest.mark.parametrize("more", [{}, {"trainer": "sft", "use_distillation": True}])
def test_rows_that_name_their_teacher_need_none_and_cut_completions_have_no_end(more, tiny_model_dir, tmp_path):
    result = run(settings(tiny_model_dir, ROWS, tmp_path, **more))
    whole, cut = result.trainer.train_dataset["completion"][:]
    tokenizer = result.tokenizer
    assert whole == [*tokenizer(" b c")["input_ids"], tokenizer.eos_token_id]
    assert cut == list(tokenizer(" c d")["input_ids"])
    assert result.metrics["train_loss"] == pytest.approx(result.metrics["train_ce"])


def test_a_trained_model_generates_and_a_store_of_targets_cannot(tiny_model_dir, tiny_teacher_dir, tmp_path):
    store = tmp_path / "store"
    more = {"teacher_model": str(tiny_teacher_dir), "teacher_store": str(store), "teacher_top_k": 4}
    result = run(settings(tiny_model_dir, ROWS, tmp_path, **more))
    by_name = short(str(tmp_path / "run"), "{input}", QUERIES)
    assert [r["completion"] for r in short(result.model, "{input}", QUERIES)] == [r["completion"] for r in by_name]
    with pytest.raises(TeacherError, match="is a store of targets, which cannot generate"):
        short(StoredTeacher(store), "{input}", QUERIES)


def test_a_users_own_column_finished_is_ignored(tiny_model_dir, tiny_teacher_dir, tmp_path):
    data = [{"text": "a", "completion": " b", "finished": False}]
    result = run(settings(tiny_model_dir, data, tmp_path, teacher_model=str(tiny_teacher_dir)))
    assert result.trainer.train_dataset["completion"][0][-1] == result.tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("data", "more", "said"),
    [
        ([{"text": "a", "completion": "b"}], {}, "teacher_model is missing"),
        ([*ROWS, {"text": "c", "completion": "d", "teacher": None}], {}, "teacher_model is missing"),
        ([*ROWS, {"text": "c", "completion": "d", "teacher": " "}], {}, "teacher_model is missing"),
        (ROWS, {"completions": "teacher"}, "teacher_model is missing"),
        ([*ROWS, {"text": "c", "completion": None, "teacher": "t"}], {}, "1 row without a completion, and no teacher"),
    ],
)
def test_rows_that_do_not_name_their_teacher_need_one(data, more, said, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded"))
    with pytest.raises((ParamsError, DataError), match=said):
        run(settings(tiny_model_dir, data, tmp_path, **more))


def test_the_command_trains_on_rows_that_name_their_teacher(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = CliRunner().invoke(main, ["llm", "--model", str(tiny_model_dir), "--data-path", "nowhere.json"])
    assert missing.exit_code == 2
    assert "--teacher-model is missing" in missing.stderr
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    done = CliRunner().invoke(main, ["llm", "--model", str(tiny_model_dir), "--data-path", "rows.jsonl"])
    assert done.exit_code == 0, done.output
    assert "Teacher: none loaded; t, u wrote the data's completions" in done.stdout


def test_the_trainer_trains_on_rows_that_name_their_teacher(tiny_model_dir, tmp_path, capsys):
    args = DistillationSFTConfig(
        output_dir=str(tmp_path), use_distillation=True, use_cpu=True, report_to="none", max_steps=1
    )
    trainer = DistillationSFTTrainer(str(tiny_model_dir), args, train_dataset=Dataset.from_list(ROWS))
    assert "none loaded; t, u wrote" in capsys.readouterr().out
    trainer.train()
    assert trainer.setup.schedule.start.alpha == 0
    with pytest.raises(ParamsError, match="teacher_model is missing"):  # before the model, which is none, is looked for
        DistillationSFTTrainer("./nowhere", args, train_dataset=Dataset.from_list([{"text": "a", "completion": "b"}]))
