"""Forms of data that a TRL user has: conversations, token ids, teachers' prompts row by row, evaluation sets."""

from __future__ import annotations

import pytest
from conftest import make_model
from datasets import Dataset, DatasetDict
from forms import SYSTEM, assistant, distilling, learned_texts, losses, user

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, generate_with_teacher, run
from trl_distill.errors import DataError, ParamsError

TEACHER = {"teacher_prompt_template": "g f {input} d"}
FORMS = {
    "text": [{"text": "a b"}, {"text": "c d e"}],
    "chat": [{"messages": [user("a"), assistant("b")]}, {"messages": [user("c"), assistant("d e")]}],
    "prompt-completion": [{"prompt": "a", "completion": " b"}, {"prompt": "c", "completion": " d e"}],
    "prompt-completion chat": [
        {"prompt": [user("a")], "completion": [assistant("b")]},
        {"prompt": [user("e"), assistant("f"), user("c")], "completion": [assistant("d e")]},
    ],
}
IDS = {"input_ids": [[10, 11, 12, 13, 14], [20, 21, 22, 23]]}


@pytest.mark.parametrize("form", FORMS)
def test_the_four_dataset_formats_of_trl_are_trained_on(form, chat_model_dir, tiny_teacher_dir, tmp_path):
    more = {} if form == "text" else TEACHER
    trainer = distilling(chat_model_dir, tiny_teacher_dir, tmp_path, FORMS[form], **more)
    tokenizer, row = trainer.processing_class, trainer.train_dataset[1]
    assert tokenizer.decode(row["completion"], skip_special_tokens=True).strip() in ("d e", "c d e")
    asked = tokenizer.decode(row["teacher_prompt"])
    assert ("g f c d" in asked) is (form != "text")
    if form == "prompt-completion chat":
        assert "user\ne<|im_end|>" in asked
        assert "assistant\nf<|im_end|>" in tokenizer.decode(row["student_prompt"])
    assert len(losses(trainer)) == 2


@pytest.mark.parametrize(
    ("columns", "prompts", "completions"),
    [
        ({}, [[], []], IDS["input_ids"]),
        (
            {"labels": [[-100, -100, 12, 13, 14], [-100, 21, 22, -100]]},
            [[10, 11], [20]],
            [[12, 13, 14], [21, 22]],
        ),
        ({"completion_mask": [[0, 0, 0, 1, 1], [0, 1, 1, 1]]}, [[10, 11, 12], [20]], [[13, 14], [21, 22, 23]]),
        (
            {"completion_mask": [[0, 0, 0, 1, 1], [0, 1, 1, 1]], "assistant_masks": [[1, 1, 1, 1, 0], [1, 1, 1, 0]]},
            [[10, 11, 12], [20]],
            [[13], [21, 22]],
        ),
    ],
)
def test_token_ids_are_read_by_both_as_they_are(
    columns, prompts, completions, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, Dataset.from_dict({**IDS, **columns}))
    assert trainer.train_dataset["student_prompt"] == trainer.train_dataset["teacher_prompt"] == prompts
    assert trainer.train_dataset["completion"] == completions
    assert len(losses(trainer)) == 2


def test_token_ids_with_gaps_keep_them(tiny_model_dir, tiny_teacher_dir, tmp_path):
    data = Dataset.from_dict({**IDS, "assistant_masks": [[0, 1, 0, 1, 1], [0, 1, 1, 0]]})
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, data)
    batch = trainer.data_collator(list(trainer.train_dataset))
    for side in ("", "teacher_"):
        assert batch[f"{side}labels"].tolist() == [[-100, 11, -100, 13, 14], [-100, 21, 22, -100, -100]]
    assert len(losses(trainer)) == 2


def test_rows_that_were_tokenized_before_give_the_losses_of_their_text(tiny_model_dir, tiny_teacher_dir, tmp_path):
    rows = FORMS["text"] * 2
    first = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, rows)
    ids = Dataset.from_dict({"input_ids": first.train_dataset["completion"]})
    second = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, ids)
    assert losses(first) == losses(second)


def test_a_run_takes_token_ids(tiny_model_dir, tiny_teacher_dir, tmp_path):
    params = LLMTrainingParams(
        model=str(tiny_model_dir), teacher_model=str(tiny_teacher_dir), data_path=Dataset.from_dict(IDS), max_steps=1,
        batch_size=2, project_name=str(tmp_path / "run"),
    )  # fmt: skip
    assert run(params).trainer.train_dataset["completion"] == IDS["input_ids"]


@pytest.mark.parametrize(
    ("columns", "more", "message"),
    [
        ({}, TEACHER, "token ids .* but teacher_prompt_template is not {input}, which needs text"),
        ({"teacher_prompt": ["a", "b"]}, {}, "but there is a column 'teacher_prompt', which needs text"),
        ({}, {"cross_tokenizer": True}, "but cross_tokenizer is on, which needs text"),
        ({}, {"completions": "teacher"}, "but completions is 'teacher', which needs text"),
        ({"labels": [[10], [20]]}, {}, "train, row 1: 'labels' has 1 entries and 'input_ids' 5"),
        (
            {"labels": [[10, 11, 12, 13, 14], [20, 99, 22, 23]]},
            {},
            "row 2: 'labels' has 99 where 'input_ids' has 21",
        ),
    ],
)
def test_settings_that_need_text_are_refused_for_token_ids(columns, more, message, tiny_model_dir, tmp_path):
    with pytest.raises(DataError, match=message):
        distilling(tiny_model_dir, tiny_model_dir, tmp_path, Dataset.from_dict({**IDS, **columns}), **more)


def test_several_teachers_with_a_template_take_no_token_ids(tiny_model_dir, tmp_path):
    listed = [{"model": str(tiny_model_dir), "template": template} for template in ("{input}", "a {input}")]
    config = DistillationSFTConfig(
        output_dir=str(tmp_path), use_distillation=True, teacher_config=listed, use_cpu=True, bf16=False
    )
    with pytest.raises(DataError, match=r"teacher_config.*\[2\].* is not {input}, which needs text|is not {input}"):
        DistillationSFTTrainer(str(tiny_model_dir), config, train_dataset=Dataset.from_dict(IDS))


def test_prepared_rows_are_used_unchanged(tiny_model_dir, tiny_teacher_dir, tmp_path):
    first = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, FORMS["prompt-completion"], **TEACHER)
    second = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, first.train_dataset)
    assert second.train_dataset is first.train_dataset


ROWS = [
    {"prompt": "a", "completion": " b", "teacher_prompt": "e e a"},
    {"prompt": "c", "completion": " d", "teacher_prompt": None},
    {"prompt": "f", "completion": " g", "teacher_prompt": ""},
]


def asked(trainer):
    return [trainer.processing_class.decode(ids) for ids in trainer.train_dataset["teacher_prompt"]]


def test_a_row_may_bring_the_teachers_prompt(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, ROWS, **TEACHER)
    assert asked(trainer) == ["e e a", "g f c d", "g f f d"]
    assert [trainer.processing_class.decode(ids) for ids in trainer.train_dataset["student_prompt"]] == ["a", "c", "f"]
    assert len(losses(trainer)) == 2


def test_columns_like_those_of_prepared_rows_are_the_users(tiny_model_dir, tiny_teacher_dir, tmp_path):
    rows = [{**row, "row": "x", "student_prompt": "y"} for row in ROWS]
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, rows, **TEACHER)
    assert asked(trainer)[0] == "e e a"


def test_a_template_that_names_the_column_has_it_as_a_field(tiny_model_dir, tiny_teacher_dir, tmp_path):
    more = {"teacher_prompt_template": "{teacher_prompt} g {input}"}
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, ROWS, **more)
    assert asked(trainer) == ["e e a g a", " g c", " g f"]


def test_a_row_may_bring_the_teachers_messages(chat_model_dir, tiny_teacher_dir, tmp_path):
    talk = [user("e"), assistant("f"), user("a"), assistant("b")]
    own = [{"role": "system", "content": "d d"}, user("c")]
    rows = [{"messages": talk, "teacher_messages": own}, {"messages": talk, "teacher_messages": None}]
    rows.append({"messages": talk, "teacher_messages": []})
    trainer = distilling(chat_model_dir, tiny_teacher_dir, tmp_path, rows, teacher_prompt_template=SYSTEM)
    first, second, third = asked(trainer)
    assert first == "<|im_start|>system\nd d<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    assert second.startswith("<|im_start|>system\ng f e d<|im_end|>\n<|im_start|>user\ne<|im_end|>")
    assert third == second


def test_in_a_conversation_the_rows_text_takes_the_last_user_messages_place(chat_model_dir, tiny_teacher_dir, tmp_path):
    talk = [user("e"), assistant("f"), user("a"), assistant("b"), user("c"), assistant("d")]
    rows = [{"messages": talk, "teacher_prompt": "g g"}]
    (prompt,) = asked(distilling(chat_model_dir, tiny_teacher_dir, tmp_path, rows))
    assert prompt.endswith("user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\ng g<|im_end|>\n"
                           "<|im_start|>assistant\n")  # fmt: skip
    every = distilling(chat_model_dir, tiny_teacher_dir, tmp_path, rows, assistant_only_loss=True, **TEACHER)
    batch = every.data_collator(list(every.train_dataset))
    text = every.processing_class.decode(batch["teacher_input_ids"][0])
    assert "user\ng g<" in text
    assert "user\ng f a d<" in text  # the turns behind are the template's
    assert "user\ng f c d<" in text


def test_the_teacher_writes_under_the_rows_own_prompt(tiny_model_dir, tiny_teacher_dir, tmp_path):
    rows = [{"text": "a", "teacher_prompt": "g g g"}, {"text": "a", "teacher_prompt": None}]
    more = {"distill_max_teacher_length": 4, "per_device_train_batch_size": 1}
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, rows, **more)
    assert asked(trainer)[0] == "g g g"
    # without a prompt of its own the row is text, which SFT would learn whole
    assert trainer.processing_class.decode(trainer.train_dataset[1]["completion"], skip_special_tokens=True) == "a"
    assert len(trainer.train_dataset[0]["completion"]) <= 4


def test_several_teachers_read_the_rows_own_prompt(tiny_model_dir, tiny_teacher_dir, tmp_path):
    listed = [{"model": str(model), "template": "g {input}"} for model in (tiny_model_dir, tiny_teacher_dir)]
    config = DistillationSFTConfig(
        output_dir=str(tmp_path), use_distillation=True, teacher_config={"combine": "mixture", "teachers": listed},
        use_cpu=True, bf16=False,
    )  # fmt: skip
    trainer = DistillationSFTTrainer(str(tiny_model_dir), config, train_dataset=Dataset.from_list(ROWS))
    shown = [[trainer.tokenizer.decode(p) for p in row] for row in trainer.train_dataset["teacher_prompts"]]
    assert shown == [["e e a"] * 2, ["g c"] * 2, ["g f"] * 2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"teacher_prompt": 3}, "train, row 1: 'teacher_prompt' is 3, not text"),
        ({"teacher_messages": "x"}, "train, row 1: 'teacher_messages' is not a list of messages"),
        ({"teacher_messages": [assistant("a")]}, "train, row 1: 'teacher_messages' ends with the assistant's message"),
        (
            {"teacher_messages": [user("a")], "teacher_prompt": "a"},
            "row 1 has a 'teacher_prompt' and 'teacher_m",
        ),
    ],
)
def test_a_teachers_prompt_of_another_kind_names_its_row(row, message, chat_model_dir, tmp_path):
    with pytest.raises(DataError, match=message):
        distilling(chat_model_dir, chat_model_dir, tmp_path, [{"prompt": "a", "completion": "b", **row}])


def test_evaluation_sets_have_their_names_in_their_figures(tiny_model_dir, tiny_teacher_dir, tmp_path):
    rows = FORMS["prompt-completion"]
    sets = DatasetDict({"near": Dataset.from_list(rows), "far": Dataset.from_list(rows[:1])})
    trainer = distilling(
        tiny_model_dir,
        tiny_teacher_dir,
        tmp_path,
        rows,
        evaluation=sets,
        eval_strategy="steps",
        eval_steps=1,
        **TEACHER,
    )
    trainer.train()
    names = {name for line in trainer.state.log_history for name in line}
    assert {f"eval_{s}_{name}" for s in sets for name in ("loss", "kl", "ce", "mean_token_accuracy")} <= names
    figures = trainer.evaluate()
    one = trainer.evaluate(sets["far"], metric_key_prefix="one")
    assert figures["eval_far_kl"] == pytest.approx(one["one_kl"], rel=1e-5)
    assert figures["eval_near_kl"] != pytest.approx(one["one_kl"], rel=1e-3)


@pytest.mark.parametrize(("given", "refused"), [(None, False), (True, False), (False, True)])
def test_prompts_are_not_learned_for_any_completion_only_loss(
    given, refused, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    rows = FORMS["prompt-completion"]
    if refused:
        with pytest.raises(ParamsError, match=r"completion_only_loss cannot be used .*: prompts are not learned"):
            distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, rows, completion_only_loss=given)
        return
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, rows, completion_only_loss=given)
    assert learned_texts(trainer, trainer.train_dataset[0]) == ("a", [" b<|end|>"])


def test_a_formatting_function_and_completions_contradict_each_other(tiny_model_dir, tiny_teacher_dir, tmp_path):
    more = {"formatting": lambda row: row["prompt"], "completion_only_loss": True}
    with pytest.raises(
        ParamsError, match=r"formatting_func cannot be used .*: it makes plain text, which has no completion"
    ):
        distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, FORMS["prompt-completion"], **more)


def test_a_formatting_function_is_not_used_on_token_ids(tiny_model_dir, tiny_teacher_dir, tmp_path, capsys):
    data = Dataset.from_dict(IDS)
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, data, formatting=lambda row: "a")
    assert trainer.train_dataset["completion"] == IDS["input_ids"]
    assert "formatting_func is not used: train has token ids already" in capsys.readouterr().out


def test_queries_may_bring_their_teachers_prompt(tmp_path):
    folder = make_model(tmp_path / "writer")
    rows = [{"text": "a", "teacher_prompt": "g g"}, {"text": "a"}]
    found = generate_with_teacher(str(folder), "g {input}", rows, max_new_tokens=6, progress=False)
    first = generate_with_teacher(str(folder), "{input}", ["g g"], max_new_tokens=6, progress=False)
    second = generate_with_teacher(str(folder), "{input}", ["g a"], max_new_tokens=6, progress=False)
    assert [row["completion"] for row in found] == [first[0]["completion"], second[0]["completion"]]
