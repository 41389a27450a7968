"""The system messages that teacher and student read: the row's, another, or none."""

from __future__ import annotations

from pathlib import Path

import pytest
import trl
from conftest import make_tokenizer
from datasets import Dataset
from forms import distilling, learned_texts
from small_runs import losses

from trl_distill import LLMTrainingParams
from trl_distill.errors import DataError, ParamsError, TeacherError, TemplateError
from trl_distill.prompts.system_message import takes_system, templates_of
from trl_distill.runs.api import run

SHIPPED = Path(trl.__file__).parent / "chat_templates"
WITHOUT_ROLE = ("gemma.jinja", "gemma_training.jinja")
IGNORES = (
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + IGNORES
ROW = [
    {"role": "system", "content": "a b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d e"},
]
TWO = [*ROW, {"role": "user", "content": "f"}, {"role": "assistant", "content": "g"}]


def turn(role, text):
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


OPEN = "<|im_start|>assistant\n"
ASKED = turn("user", "c") + OPEN


def read(student, teacher, tmp_path, messages=ROW, **settings):
    """Return what student and teacher read of a row before its completion."""
    trainer = distilling(student, teacher, tmp_path, [{"messages": messages}], **settings)
    row = trainer.train_dataset[0]
    tokenizer = trainer.tokenizer
    return tokenizer.decode(row["student_prompt"]), tokenizer.decode(row["teacher_prompt"])


@pytest.mark.parametrize("messages", [ROW, ROW[1:]], ids=["row-with", "row-without"])
@pytest.mark.parametrize(
    ("settings", "student", "teacher"),
    [
        ({}, None, None),
        ({"teacher_system": "e f"}, "", "e f"),
        ({"teacher_system": "{x} \\n"}, "", "{x} \\n"),
        ({"student_system": "drop"}, "", None),
        ({"student_system": "g"}, "g", None),
        ({"student_system": "keep", "teacher_system": "e"}, None, "e"),
        ({"student_system": "g", "teacher_system": "e"}, "g", "e"),
    ],
)
def test_each_side_reads_its_own_system_message(
    messages, settings, student, teacher, chat_model_dir, tiny_teacher_dir, tmp_path
):
    own = "a b" if messages is ROW else ""
    expected = [turn("system", text) if text else "" for text in (own if s is None else s for s in (student, teacher))]
    found = read(chat_model_dir, tiny_teacher_dir, tmp_path, messages, **settings)
    assert found == tuple(text + ASKED for text in expected)


def test_teacher_system_is_read_from_a_file_unchanged(chat_model_dir, tiny_teacher_dir, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbfa \\n {input} {{x}}\nb\n")
    for given in (f"@{file}", file):
        _, teacher = read(chat_model_dir, tiny_teacher_dir, tmp_path, teacher_system=given)
        assert teacher == turn("system", "a \\n {input} {{x}}\nb") + ASKED
    for name in ("teacher_system", "student_system"):  # not what it says, and nobody would notice
        params = LLMTrainingParams(model="m", teacher_model="t", **{name: str(file)})
        with pytest.raises(ParamsError, match=rf"{name} is the name of a file, .*prompt.txt'; give '@.*' to read it"):
            templates_of(params)


def test_teacher_system_applies_to_all_turns_of_a_conversation(chat_model_dir, tiny_teacher_dir, tmp_path):
    data = [{"messages": TWO}]
    trainer = distilling(
        chat_model_dir, tiny_teacher_dir, tmp_path, data, teacher_system="e", assistant_only_loss=True
    )  # fmt: skip
    row = trainer.train_dataset[0]
    assert learned_texts(trainer, row)[0] == ASKED
    assert learned_texts(trainer, row, "teacher_")[0] == turn("system", "e") + ASKED
    assert learned_texts(trainer, row)[1] == learned_texts(trainer, row, "teacher_")[1]


def test_teacher_system_is_put_before_a_text_prompt(tiny_model_dir, tiny_teacher_dir, tmp_path):
    data = [{"prompt": "c", "completion": "d"}]
    settings = {"teacher_system": "a b", "teacher_prompt_template": "e {input}", "student_prompt_template": "g {input}"}
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, data, **settings)
    row = trainer.train_dataset[0]
    assert trainer.tokenizer.decode(row["teacher_prompt"]) == "a b\n\ne c"
    assert trainer.tokenizer.decode(row["student_prompt"]) == "g c"


@pytest.mark.parametrize("template", [IGNORES, REFUSES])
def test_a_model_without_the_role_reads_it_before_the_first_user_message(
    template, chat_model_dir, tiny_teacher_dir, tmp_path
):
    more = {"chat_template": template, "teacher_system": "e f"}
    messages = [*ROW[1:], *TWO[3:]]
    student, teacher = read(chat_model_dir, tiny_teacher_dir, tmp_path, messages, **more)
    history = turn("assistant", "d e") + turn("user", "f") + OPEN
    assert student == turn("user", "c") + history
    assert teacher == turn("user", "e f\n\nc") + history


@pytest.mark.parametrize("template", [IGNORES, REFUSES], ids=["ignores", "refuses"])
def test_a_model_without_system_role_reads_a_rows_system_message_in_the_user_message(
    template, chat_model_dir, tiny_teacher_dir, tmp_path
):
    more = {"chat_template": template, "student_system": "drop"}
    assert read(chat_model_dir, tiny_teacher_dir, tmp_path, **more) == (ASKED, turn("user", "a b\n\nc") + OPEN)
    student, teacher = read(chat_model_dir, tiny_teacher_dir, tmp_path, ROW[1:], **more)
    assert student == teacher == ASKED
    trainer = distilling(
        chat_model_dir, tiny_teacher_dir, tmp_path, [{"messages": TWO}], assistant_only_loss=True, **more
    )
    row = trainer.train_dataset[0]
    assert trainer.tokenizer.decode(row["teacher_prompt"]) == turn("user", "a b\n\nc") + OPEN


@pytest.mark.parametrize("name", sorted(p.name for p in SHIPPED.glob("*.jinja")))
def test_chat_templates_that_take_a_system_message_are_found_by_rendering(name):
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|end|>"
    tokenizer.chat_template = (SHIPPED / name).read_text(encoding="utf-8")
    assert takes_system(tokenizer) == (name not in WITHOUT_ROLE)


@pytest.mark.parametrize(("given", "said"), [("drop", True), ("keep", False)])
def test_the_card_says_that_only_the_teacher_reads_a_rows_system_message(
    given, said, chat_model_dir, tiny_teacher_dir, tmp_path
):
    params = LLMTrainingParams(
        model=str(chat_model_dir),
        teacher_model=str(tiny_teacher_dir),
        data_path=[{"messages": ROW}],
        project_name=str(tmp_path / "run"),
        student_system=given,
        max_steps=1,
        save_strategy="no",
    )
    run(params)
    card = (tmp_path / "run/README.md").read_text()
    assert ("If a row has a system message, only the teacher reads it." in card) == said


def test_a_default_system_message_of_the_chat_template_stays(chat_model_dir, tiny_teacher_dir, tmp_path, capsys):
    template = (SHIPPED / "qwen2_5.jinja").read_text(encoding="utf-8")
    more = {"chat_template": template, "student_system": "drop"}
    student, teacher = read(chat_model_dir, tiny_teacher_dir, tmp_path, **more)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    plain = tokenizer.apply_chat_template([ROW[1]], tokenize=False, add_generation_prompt=True)
    assert student == plain
    assert "You are Qwen" in plain
    assert teacher.startswith(turn("system", "a b"))
    said = capsys.readouterr().out
    assert "no prompt token is saved" in said
    assert "student_system" not in said  # is what was given


@pytest.mark.parametrize(
    ("messages", "settings", "said"),
    [
        (
            ROW,
            {"teacher_system": "e f"},
            "which neither model reads: teacher_system replaces them; student_system keep",
        ),
        (
            ROW,
            {"teacher_system": "e", "student_system": "keep"},
            "only the student reads: teacher_system replaces them",
        ),
        (ROW, {}, None),
        (ROW[1:], {"teacher_system": "e f"}, None),
    ],
    ids=["neither", "student", "kept", "row-without"],
)
def test_the_preflight_says_that_rows_lose_their_system_message(
    messages, settings, said, chat_model_dir, tiny_teacher_dir, tmp_path, capsys
):
    read(chat_model_dir, tiny_teacher_dir, tmp_path, messages, **settings)
    shown = capsys.readouterr().out
    assert "Pre-flight" in shown
    assert said in shown if said else "of its own" not in shown


CHAT = [{"role": "system", "content": "x"}, {"role": "user", "content": "{input}"}]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"teacher_system": "e", "teacher_prompt_template": CHAT},
            "teacher_system cannot be used with teach",
        ),
        ({"student_system": "drop", "student_prompt_template": CHAT}, "student_system cannot be used with stud"),
        ({"student_system": "e", "student_prompt_template": CHAT}, "student_system cannot be used with stud"),
        ({"teacher_system": " "}, "teacher_system is empty; give text or @file, or leave it out"),
        ({"student_system": "Drop"}, "student_system is 'Drop'; write 'drop'"),
        (
            {"teacher_system": "@nowhere.txt"},
            r"teacher_system names the file 'nowhere.txt', which cannot be read: No such file or directory; give",
        ),
        ({"teacher_system": ["e"]}, r"teacher_system is \['e'\]; expected text"),
    ],
)
def test_impossible_system_settings_are_refused_before_anything_loads(settings, said):
    with pytest.raises((ParamsError, TemplateError), match=said):
        run(LLMTrainingParams(model="nowhere", teacher_model="nowhere", data_path="nowhere", **settings))


def test_a_system_message_of_the_students_template_stays_with_teacher_system():
    params = LLMTrainingParams(student_prompt_template=CHAT, teacher_system="e")
    student, _ = templates_of(params)
    assert student.system.keep


def test_teacher_system_applies_to_every_teacher_and_every_prompt(chat_model_dir, tiny_teacher_dir, tmp_path, capsys):
    data = [{"messages": ROW}] * 4
    several = {"teacher_config": [{"model": str(tiny_teacher_dir), "template": f"{x} {{input}}"} for x in "ef"]}
    mixture = {"teacher_prompt_mixture": ["e {input}", "f {input}"]}
    for settings in (several, mixture):
        teacher = {"teacher": None} if settings is several else {"teacher": tiny_teacher_dir}
        trainer = listing(chat_model_dir, tmp_path, data, teacher_system="g", **teacher, **settings)
        prompts = {trainer.tokenizer.decode(p) for row in trainer.train_dataset["teacher_prompts"] for p in row}
        assert prompts == {turn("system", "g") + turn("user", f"{x} c") + OPEN for x in "ef"}
        assert {trainer.tokenizer.decode(p) for p in trainer.train_dataset["student_prompt"]} == {ASKED}
        assert "4 rows have system messages of their own, which neither model reads" in capsys.readouterr().out


def test_teacher_system_and_a_list_with_its_own_are_refused_together(chat_model_dir, tmp_path):
    listed = [{"model": str(chat_model_dir), "template": CHAT}]
    with pytest.raises(ParamsError, match=r"teacher_system cannot be used with teacher_config, teacher 1: template"):
        listing(chat_model_dir, tmp_path, [{"messages": ROW}], teacher=None, teacher_config=listed, teacher_system="g")


def test_retained_rows_keep_their_system_message(chat_model_dir, tiny_teacher_dir, tmp_path, capsys):
    more = {"retain_data": Dataset.from_list([{"messages": ROW}]), "retain_fraction": 0.5}
    trainer = listing(
        chat_model_dir, tmp_path, [{"messages": ROW}], teacher=tiny_teacher_dir, teacher_system="g", **more
    )  # fmt: skip
    both = [
        (trainer.tokenizer.decode(row["student_prompt"]), trainer.tokenizer.decode(row["teacher_prompts"][0]))
        for row in trainer.train_dataset
    ]
    own = turn("system", "a b") + ASKED
    assert sorted(both) == sorted([(ASKED, turn("system", "g") + ASKED), (own, own)])
    assert "1 row has a system message of its own, which neither model reads" in capsys.readouterr().out


def test_system_settings_are_refused_for_token_ids(chat_model_dir, tiny_teacher_dir, tmp_path):
    for settings in ({"teacher_system": "e"}, {"student_system": "drop"}):
        with pytest.raises(DataError, match="a system message is given or dropped, which needs text"):
            distilling(chat_model_dir, tiny_teacher_dir, tmp_path, [{"input_ids": [5, 6, 7]}], **settings)


def test_a_store_is_made_for_one_system_message(chat_model_dir, tiny_teacher_dir, tmp_path):
    data = [{"messages": ROW}]

    def storing(**settings):
        return distilling(chat_model_dir, tiny_teacher_dir, tmp_path, data, teacher_store=f"{tmp_path}/s", **settings)

    one = losses(storing(teacher_system="e"))
    assert losses(storing(teacher_system="e")) == one
    for other in ({"teacher_system": "f"}, {"student_system": "drop"}):
        with pytest.raises(TeacherError, match="was made with another teacher_system: 'e'"):
            storing(**other)


def test_teacher_system_applies_to_a_rows_own_teacher_prompt(
    chat_model_dir, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    rows = [{"messages": ROW, "teacher_messages": CHAT[:1] + ROW[1:2]}, {"prompt": "a", "teacher_prompt": "b"}]
    rows[1]["completion"] = "d"
    chat = distilling(chat_model_dir, tiny_teacher_dir, tmp_path, rows[:1], teacher_system="e").train_dataset[0]
    text = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, rows[1:], teacher_system="e").train_dataset[0]
    tokenizer = make_tokenizer()
    assert tokenizer.decode(chat["teacher_prompt"]) == turn("system", "e") + ASKED
    assert tokenizer.decode(text["teacher_prompt"]) == "e\n\nb"


@pytest.mark.parametrize("messages", [False, True])
def test_a_chat_server_is_sent_a_system_message(messages, server, chat_model_dir, tmp_path):
    rows = [{"messages": ROW[:2]}] if messages else [{"text": "c"}]
    settings = {"teacher_system": "Be brief.", "distill_alpha": 0.0, "distill_max_teacher_length": 4}
    trainer = distilling(chat_model_dir, server.teacher, tmp_path, rows, **settings)
    assert [sent["request"]["messages"] for sent in server.requests()] == [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "c"}]
    ]
    read = trainer.tokenizer.decode(trainer.train_dataset[0]["student_prompt"])
    assert read == (ASKED if messages else "c")


def test_a_completions_server_reads_teacher_system_before_the_prompt(server, tiny_model_dir, tmp_path):
    settings = {"teacher_system": "Be brief.", "distill_alpha": 0.0, "distill_max_teacher_length": 4}
    distilling(tiny_model_dir, server.teacher, tmp_path, [{"text": "c"}], **settings, teacher_endpoint="completions")
    assert server.requests()[0]["prompt"] == "Be brief.\n\nc"


def listing(student, folder, data, *, teacher, **settings):
    """Return a trainer whose teacher may be None."""
    from forms import settings as base
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_distill import DistillationSFTConfig, DistillationSFTTrainer

    named = None if teacher is None else str(teacher)
    config = DistillationSFTConfig(**base(folder, **settings), use_distillation=True, teacher_model=named)
    return DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(student), config, train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(student),
    )  # fmt: skip
