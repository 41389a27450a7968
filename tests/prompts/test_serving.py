"""A student that was saved by the command, the library and the trainer, as plain transformers loads and asks it."""

from __future__ import annotations

import contextlib
import io
import re
import shutil

import pytest
from datasets import Dataset
from forms import MARKED, assistant, distilling, user
from forms import settings as short
from prompts.test_serving_template import with_tokens
from transformers import AutoModelForCausalLM, AutoTokenizer, ProcessorMixin, pipeline
from trl import SFTConfig, SFTTrainer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, generate_with_teacher, run
from trl_distill.errors import printable
from trl_distill.models.loading import ModelSource
from trl_distill.prompts.tokenization import tokenize_prompt

ROWS = [
    {"text": "a b", "completion": " c d", "topic": "e"},
    {"text": "c", "completion": " e f g a", "topic": "f"},
]
TALKS = [{"messages": [user(row["text"]), assistant(row["completion"])]} for row in ROWS]
SYSTEM = {"role": "system", "content": "g f"}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
THINKING = MARKED.replace(
    "{% if add_generation_prompt %}<|im_start|>assistant\n",
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}<t></t>\n{% endif %}",
).replace("{% generation %}", "{% if enable_thinking is false %}<t></t>\n{% endif %}{% generation %}")


def ids_of(folder, message="a b"):
    """Return what plain transformers makes of a user's message by a folder's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template([user(message)], add_generation_prompt=True, return_dict=False)


def sent_by_pipeline(folder, message="a b"):
    """Return the ids that a pipeline hands to the model for a user's message."""
    pipe = pipeline("text-generation", model=str(folder), device="cpu")
    found, generate = [], pipe.model.generate
    pipe.model.generate = lambda *args, **more: found.append(more["input_ids"]) or generate(*args, **more)
    pipe([user(message)], max_new_tokens=1, do_sample=False)
    return found[0][0].tolist()


@pytest.fixture
def settings(tiny_model_dir, tiny_teacher_dir, tmp_path):
    return {
        "model": str(tiny_model_dir), "teacher_model": str(tiny_teacher_dir), "data_path": Dataset.from_list(ROWS),
        "teacher_prompt_template": "g f e d {input}", "student_prompt_template": "Q: {input}\nA:", "max_steps": 1,
        "project_name": str(tmp_path / "run"), "log": "none", "save_strategy": "steps", "save_steps": 1,
    }  # fmt: skip


def read_in_training(trainer):
    """Return the student's ids before the completion of the first row, as its collator has them."""
    batch = trainer.data_collator([trainer.train_dataset[0]])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    return ids[: next(k for k, label in enumerate(labels) if label != -100)]


def test_the_command_saves_the_trained_prompt(settings, capsys):
    result = run(LLMTrainingParams(**settings))
    folder, expected = result.paths["project"], read_in_training(result.trainer)
    assert result.tokenizer.decode(expected) == "Q: a b\nA:"
    assert ids_of(folder) == sent_by_pipeline(folder) == expected
    assert ids_of(folder / "checkpoints" / "checkpoint-1") == expected
    assert result.tokenizer.apply_chat_template([user("a b")], return_dict=False) == expected
    said = "chat template saved with the student: a user's message renders this prompt; several turns and tools are"
    assert f"{said} refused" in capsys.readouterr().out


def test_the_trainer_saves_the_trained_prompt_with_each_checkpoint(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = distilling(
        tiny_model_dir, tiny_teacher_dir, tmp_path, ROWS, chat_template=MARKED, save_strategy="steps", save_steps=1,
        student_prompt_template="Q: {input}\nA:",
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    expected = read_in_training(trainer)
    trainer.processing_class.save_pretrained(tmp_path / "own")  # as scripts do at their end
    for folder in ("saved", "checkpoint-1", "own"):
        loaded = AutoTokenizer.from_pretrained(tmp_path / folder)
        assert ids_of(tmp_path / folder) == expected
        assert loaded.chat_template["original"] == trainer.tokenizer.chat_template == MARKED


class TextProcessor(ProcessorMixin):
    """The processor of a multimodal model, which saves a chat template of its own over its tokenizer's."""

    def __init__(self, tokenizer, chat_template=None):
        super().__init__(tokenizer, chat_template=chat_template)


def test_a_processor_saves_the_trained_prompt(tiny_model_dir, tiny_teacher_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.chat_template = MARKED
    trainer = DistillationSFTTrainer(
        str(tiny_model_dir),
        DistillationSFTConfig(
            **short(tmp_path, student_prompt_template="Q: {input}\nA:"), use_distillation=True,
            teacher_model=str(tiny_teacher_dir),
        ),
        train_dataset=Dataset.from_list(ROWS), processing_class=TextProcessor(tokenizer, chat_template=MARKED),
    )  # fmt: skip
    trainer.save_model(str(tmp_path / "saved"))
    assert ids_of(tmp_path / "saved") == read_in_training(trainer)
    assert (tmp_path / "saved" / "additional_chat_templates" / "original.jinja").read_text(encoding="utf-8") == MARKED


def test_a_conversations_system_message_is_served_if_it_is_the_same_in_all_rows(settings, chat_model_dir, capsys):
    chat = {**settings, "model": str(chat_model_dir), "student_prompt_template": "{input}"}
    same = [{"messages": [SYSTEM, *row["messages"]]} for row in TALKS]
    result = run(LLMTrainingParams(**{**chat, "data_path": Dataset.from_list(same)}))
    expected = read_in_training(result.trainer)
    assert "g f" in result.tokenizer.decode(expected)
    assert ids_of(result.paths["project"]) == expected
    assert "several turns and tools stay the model's own" in capsys.readouterr().out
    others = [same[0], TALKS[1]]
    more = {"data_path": Dataset.from_list(others), "overwrite": True}
    result = run(LLMTrainingParams(**{**chat, **more}))  # each conversation brings its own, which its template renders
    assert "  chat template" not in capsys.readouterr().out
    loaded = AutoTokenizer.from_pretrained(result.paths["project"])
    assert loaded.chat_template == ModelSource(str(chat_model_dir)).load_tokenizer().chat_template
    assert not (result.paths["project"] / "additional_chat_templates").exists()


@pytest.mark.parametrize("rows", [ROWS, TALKS, [{"messages": [SYSTEM, *talk["messages"]]} for talk in TALKS]])
@pytest.mark.parametrize("more", [{"student_system": "e d"}, {"student_system": "drop"}, {"teacher_system": "e d"}])
def test_the_students_system_message_is_served(more, rows, settings, chat_model_dir):
    chat = {**settings, "model": str(chat_model_dir), "data_path": Dataset.from_list(rows)}
    result = run(LLMTrainingParams(**{**chat, "student_prompt_template": "{input}?", **more}))
    expected = read_in_training(result.trainer)
    assert ("e d" in result.tokenizer.decode(expected)) is (
        "student_system" in more and more["student_system"] == "e d"
    )
    assert "g f" not in result.tokenizer.decode(expected)
    assert ids_of(result.paths["project"]) == expected


def test_chat_template_kwargs_are_kept_in_the_served_template(tiny_model_dir, tiny_teacher_dir, tmp_path):
    rows = [{**row, "chat_template_kwargs": {"enable_thinking": False}} for row in TALKS]
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, rows, chat_template=THINKING)
    trainer.save_model(str(tmp_path / "saved"))
    expected = read_in_training(trainer)
    assert trainer.processing_class.decode(expected).endswith("<t></t>\n")
    assert ids_of(tmp_path / "saved") == expected
    thinking = AutoTokenizer.from_pretrained(tmp_path / "saved").apply_chat_template(
        [user("a b")], add_generation_prompt=True, enable_thinking=True, tokenize=False
    )
    assert not thinking.endswith("<t></t>\n")  # a request may still ask for it


@pytest.mark.parametrize(
    ("more", "rows", "said"),
    [
        ({"student_prompt_template": "{topic}: {input}"}, ROWS, "the student's template has the field {topic}"),
        ({}, [{**row, "tools": TOOLS} for row in TALKS], "the rows bring tools"),
        ({}, [{"messages": [SYSTEM, *TALKS[0]["messages"]]}, TALKS[1]], "what surrounds the user's message differs"),
        ({"keep_chat_template": True}, ROWS, None),
        ({"student_prompt_template": "{input}"}, TALKS, None),
    ],
)  # fmt: skip
def test_the_models_chat_template_stays_with_a_printed_reason(
    more, rows, said, settings, chat_model_dir, capsys
):  # fmt: skip
    chat = {**settings, "model": str(chat_model_dir), "data_path": Dataset.from_list(rows), "dry_run": True}
    result = run(LLMTrainingParams(**{**chat, **more}))
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  chat template")]
    assert [said in line and "stays the model's own: " in line for line in shown] == ([] if said is None else [True])
    assert isinstance(result.tokenizer.chat_template, str)


def test_later_runs_read_the_original_chat_template(settings, chat_model_dir, tmp_path):
    chat = {**settings, "model": str(chat_model_dir)}
    first = run(LLMTrainingParams(**chat))
    folder, own = first.paths["project"], ModelSource(str(chat_model_dir)).load_tokenizer().chat_template
    assert ModelSource(str(folder)).load_tokenizer().chat_template == own
    later = {**settings, "data_path": Dataset.from_list(TALKS), "student_prompt_template": "{input}"}
    expected = ids_of(chat_model_dir)
    for number, model in enumerate((str(folder), first.model)):
        second = run(LLMTrainingParams(**{**later, "model": model, "project_name": str(tmp_path / f"later{number}")}))
        assert read_in_training(second.trainer) == ids_of(second.paths["project"]) == expected
    loaded = AutoTokenizer.from_pretrained(folder)
    trainer = DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder), second.trainer.args, processing_class=loaded,
        train_dataset=Dataset.from_list(TALKS), teacher_model=settings["teacher_model"],
    )  # fmt: skip
    assert read_in_training(trainer) == expected
    assert trainer.processing_class.chat_template == own


@pytest.mark.parametrize("template", ["Q: {input}\nA:", [user("Q: {input}")]])
def test_trls_own_trainers_go_on_from_the_trained_prompt(template, settings, chat_model_dir, tmp_path):
    first = run(LLMTrainingParams(**{**settings, "model": str(chat_model_dir), "student_prompt_template": template}))
    folder = first.paths["project"]
    rows = [{"prompt": [user("a b")], "completion": [assistant(" c d")]}] * 2
    config = SFTConfig(**short(tmp_path / "sft"))
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder), config, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip
    row = trainer.train_dataset[0]
    start = next(k for k, label in enumerate(row["labels"]) if label != -100)
    assert row["input_ids"][:start] == read_in_training(first.trainer)
    assert first.tokenizer.decode(row["input_ids"][start:]).startswith(" c d<|")


def test_a_trained_model_teaches_with_its_original_chat_template(settings, chat_model_dir, tmp_path):
    first = run(LLMTrainingParams(**{**settings, "model": str(chat_model_dir)}))
    folder = first.paths["project"]
    chat = [user("g {input}")]
    more = {"model": str(chat_model_dir), "teacher_model": str(folder), "teacher_prompt_template": chat}
    second = run(LLMTrainingParams(**{**settings, **more, "project_name": str(tmp_path / "taught")}))
    text = second.tokenizer.decode(second.trainer.train_dataset[0]["teacher_prompt"])
    assert text == "<|im_start|>user\ng a b<|im_end|>\n<|im_start|>assistant\n"
    base = AutoModelForCausalLM.from_pretrained(folder)
    own = AutoTokenizer.from_pretrained(chat_model_dir)
    written = [
        generate_with_teacher(model, chat, ["a b"], max_new_tokens=4, tokenizer=tokenizer)[0]["completion"]
        for model, tokenizer in ((str(folder), None), (first.model, None), (base, own), (base, first.tokenizer))
    ]
    assert len(set(written)) == 1


def test_without_distillation_the_chat_template_is_saved_unchanged(settings, chat_model_dir):
    plain = {k: v for k, v in settings.items() if not k.startswith(("teacher", "student"))}
    result = run(LLMTrainingParams(**{**plain, "model": str(chat_model_dir), "trainer": "sft"}))
    own = AutoTokenizer.from_pretrained(chat_model_dir).chat_template
    assert result.tokenizer.chat_template == own
    assert AutoTokenizer.from_pretrained(result.paths["project"]).chat_template == own


def test_resumed_runs_and_streams_save_the_same_served_template(tiny_model_dir, tiny_teacher_dir, tmp_path):
    more = {"student_prompt_template": "Q: {input}\nA:", "save_strategy": "steps", "save_steps": 1}
    first = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path / "run", ROWS, **more, max_steps=1)
    first.train()
    checkpoint, expected = tmp_path / "run" / "checkpoint-1", read_in_training(first)
    again = distilling(checkpoint, tiny_teacher_dir, tmp_path / "run", ROWS, **more, max_steps=2)
    again.train(resume_from_checkpoint=True)
    assert read_in_training(again) == ids_of(checkpoint) == ids_of(tmp_path / "run" / "checkpoint-2") == expected
    data = Dataset.from_list(ROWS).to_iterable_dataset()
    streamed = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path / "stream", data, **more)
    streamed.save_model(str(tmp_path / "saved"))
    assert ids_of(tmp_path / "saved") == expected


CARDS = {
    "text": ({"student_prompt_template": "{{Q}}: {input} '\"\n"}, ROWS),
    "text kept": ({"student_prompt_template": "Q: {input}\n", "keep_chat_template": True}, ROWS),
    "a field": ({"student_prompt_template": "{topic}: {input}"}, ROWS),
    "chat": ({"student_prompt_template": [SYSTEM, user("Q {input}")]}, ROWS),
    "a chat's field": ({"student_prompt_template": [SYSTEM, user("{topic} {input}")]}, ROWS),
    "system": ({}, [{"messages": [SYSTEM, *talk["messages"]]} for talk in TALKS]),
    "other systems": ({}, [{"messages": [SYSTEM, *TALKS[0]["messages"]]}, TALKS[1]]),
    "tools": ({}, [{**talk, "tools": TOOLS} for talk in TALKS]),
    "words": ({}, [{**talk, "chat_template_kwargs": {"enable_thinking": False}} for talk in TALKS]),
    "other words": ({}, [{**TALKS[0], "chat_template_kwargs": {"enable_thinking": False}}, TALKS[1]]),
    "turns": ({}, [{"messages": [user("g"), assistant("f"), *talk["messages"]]} for talk in TALKS]),
    "turns of a template": ({"student_prompt_template": "Q {input}"},
                            [{"messages": [user("g"), assistant("f"), *talk["messages"]]} for talk in TALKS]),
    "token ids": ({}, [{"input_ids": [30, 31, 32, 33], "labels": [-100, -100, 32, 33]}]),
    "text itself": ({"trainer": "sft", "use_distillation": True}, [{"text": "a b c"}]),
}  # fmt: skip


@pytest.mark.parametrize("ends", ["", "bos eos"])
@pytest.mark.parametrize("kind", CARDS)
def test_the_cards_snippet_gives_the_ids_of_training(kind, ends, settings, tiny_model_dir, tmp_path):
    more, rows = CARDS[kind]
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model_dir), tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    tokenizer.chat_template = THINKING
    if ends:
        tokenizer.bos_token = "<|im_start|>"
        with_tokens(tokenizer, front=True, back=True)
    tokenizer.save_pretrained(model)
    here = {"model": str(model), "teacher_model": str(model), "data_path": Dataset.from_list(rows)}
    here |= {"teacher_prompt_template": "{input}", "student_prompt_template": "{input}", "distill_alpha": 0}
    here["card_example"] = True
    result = run(LLMTrainingParams(**{**settings, **here, **more}))
    card = result.paths["card"].read_text()
    code, shown = re.search(r"```python\n(.*?)```.*?```text\n(.*?)\n```", card, re.DOTALL).groups()
    names, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code.replace(repr(result.paths["project"].name), repr(str(result.paths["project"]))), names)
    expected = read_in_training(result.trainer)
    if kind == "text itself":
        expected = tokenize_prompt(ModelSource(str(model)).load_tokenizer(), "a b c")
    assert names["inputs"]["input_ids"][0].tolist() == expected
    assert printable(printed.getvalue()) == shown + "\n"


def asked(content, system=""):
    """Return the text of a conversation as `THINKING` renders it, up to the assistant's turn."""
    before = f"<|im_start|>system\n{system}<|im_end|>" if system else ""
    return f"{before}<|im_start|>user\n{content}<|im_end|><|im_start|>assistant\n"


PLACEHOLDERS = {  # what the snippet of a kind of rows sends
    "a field": "Your topic: Your input",
    "chat": asked("Q Your input", "g f"),
    "system": asked("Your input", "g f"),  # by the saved chat template
    "other systems": asked("Your input", "Your system message"),
    "tools": asked("Your input"),
    "other words": asked("Your input") + "<t></t>\n",
    "turns of a template": asked("Q Your input"),
    "token ids": "Your input",
}


@pytest.mark.parametrize("kind", PLACEHOLDERS)
def test_the_cards_snippet_has_a_placeholder_for_what_a_row_brings(kind, settings, tiny_model_dir, tmp_path):
    more, rows = CARDS[kind]
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model_dir), tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    tokenizer.chat_template = THINKING
    tokenizer.save_pretrained(model)
    here = {"model": str(model), "teacher_model": str(model), "data_path": Dataset.from_list(rows)}
    here |= {"teacher_prompt_template": "{input}", "student_prompt_template": "{input}", "distill_alpha": 0}
    result = run(LLMTrainingParams(**{**settings, **here, **more}))
    card = result.paths["card"].read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    names, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code.replace(repr(result.paths["project"].name), repr(str(result.paths["project"]))), names)
    assert printed.getvalue()
    assert tokenizer.decode(names["inputs"]["input_ids"][0]) == PLACEHOLDERS[kind]
    assert "printed:" not in card
    for secret in ("g f", "a b", "parameters", "30, 31"):
        assert secret not in code
