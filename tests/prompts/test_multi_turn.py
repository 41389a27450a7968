"""Conversations of which all turns are learned, calls of tools, and who refuses them."""

from __future__ import annotations

import json
import re

import pytest
import torch
from conftest import make_model
from datasets import Dataset
from forms import IGNORE, MARKED, SYSTEM, assistant, distilling, learned_texts, losses, settings, user
from teachers.writers import make_t5
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, PromptDistillationTrainer, run
from trl_distill.cli.llm_command import params_from_command
from trl_distill.config.sft_config import from_params
from trl_distill.data import loading as data
from trl_distill.data.sft_rows import plain_rows
from trl_distill.errors import DataError, ParamsError, TemplateError
from trl_distill.losses import distillation_loss_from_logits

TALK = [user("a b"), assistant("c d"), user("e"), assistant("f g a"), user("b"), assistant("c")]
TALKS = [{"messages": TALK}, {"messages": [user("d e"), assistant("f"), user("g"), assistant("a b c d")]}]
TOOLS = [{"type": "function", "function": {"name": "count", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "count", "arguments": {"n": 1}}}]}
ANSWER = {"role": "tool", "name": "count", "content": "f"}


def test_assistant_only_loss_learns_what_trl_learns(tiny_model_dir, tiny_teacher_dir, tmp_path):
    """With alpha 0 a run has the losses of SFTTrainer, whose masks come from the marks of the chat template."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.chat_template = MARKED
    theirs = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir),
        SFTConfig(**settings(tmp_path, max_steps=4), assistant_only_loss=True),
        train_dataset=Dataset.from_list(TALKS * 2), processing_class=tokenizer,
    )  # fmt: skip
    more = {"chat_template": MARKED, "assistant_only_loss": True, "distill_alpha": 0.0, "max_steps": 4}
    ours = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, TALKS * 2, **more)
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-5)
    assert ours.args.assistant_only_loss


def test_all_turns_are_learned_and_the_system_message_is_rendered_once(chat_model_dir, tiny_teacher_dir, tmp_path):
    trainer = distilling(
        chat_model_dir, tiny_teacher_dir, tmp_path, TALKS, assistant_only_loss=True, teacher_prompt_template=SYSTEM
    )
    prompt, pieces = learned_texts(trainer, trainer.train_dataset[0])
    assert pieces == ["c d<|im_end|>", "f g a<|im_end|>", "c<|im_end|>"]
    assert "system" not in prompt
    prompt, theirs = learned_texts(trainer, trainer.train_dataset[0], "teacher_")
    assert theirs == pieces
    assert prompt.startswith("<|im_start|>system\ng f e d<|im_end|>")
    whole = trainer.data_collator([trainer.train_dataset[0]])
    written = trainer.processing_class.apply_chat_template(
        [{"role": "system", "content": "g f e d"}, *TALK], tokenize=False
    )
    assert trainer.processing_class.decode(whole["teacher_input_ids"][0]) == written.removesuffix("\n")


def test_turns_of_weight_0_and_empty_ones_are_read_and_not_learned(chat_model_dir, tiny_teacher_dir, tmp_path):
    talk = [user("a"), {**assistant("b"), "weight": 0}, user("c"), assistant("d"), user("e"), assistant(" "), user("f")]
    talks = [{"messages": [*talk, {**assistant("g"), "weight": weight}]} for weight in (1, 0)]
    trainer = distilling(chat_model_dir, tiny_teacher_dir, tmp_path, talks, assistant_only_loss=True)
    prompt, pieces = learned_texts(trainer, trainer.train_dataset[0])
    assert prompt.count("<|im_start|>") == 4
    assert prompt.startswith("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n")
    assert pieces == ["d<|im_end|>", "g<|im_end|>"]
    assert learned_texts(trainer, trainer.train_dataset[1])[1] == ["d<|im_end|>"]


def test_plain_sft_refuses_turns_that_are_not_to_be_learned_among_others(chat_model_dir, tmp_path):
    rows = [
        {"messages": [user("a"), {**assistant("b"), "weight": 0}, user("c"), assistant("d"), user("e"), assistant("f")]}
    ]
    params = LLMTrainingParams(
        model=str(chat_model_dir), trainer="sft", data_path=rows, project_name=str(tmp_path / "run")
    )
    prepared, _ = plain_rows(data.load_data(rows)[0], params, name="train")
    assert [set(message) for message in prepared[0]["messages"]] == [{"role", "content"}] * 6
    params.assistant_only_loss = True
    with pytest.raises(DataError, match="train, row 1, has an assistant message of weight 0"):
        plain_rows(data.load_data(rows)[0], params, name="train")


def test_a_text_template_renders_every_user_message(chat_model_dir, tiny_teacher_dir, tmp_path):
    trainer = distilling(
        chat_model_dir, tiny_teacher_dir, tmp_path, TALKS, assistant_only_loss=True,
        teacher_prompt_template="g f {input} d",
    )  # fmt: skip
    batch = trainer.data_collator([trainer.train_dataset[0]])
    text = trainer.processing_class.decode(batch["teacher_input_ids"][0])
    assert re.findall(r"user\n(.*?)<", text) == ["g f a b d", "g f e d", "g f b d"]
    text = trainer.processing_class.decode(batch["input_ids"][0])
    assert re.findall(r"user\n(.*?)<", text) == ["a b", "e", "b"]


def test_the_loss_of_several_turns_is_the_formula_on_full_logits(chat_model_dir, tiny_teacher_dir, tmp_path):
    trainer = distilling(
        chat_model_dir, tiny_teacher_dir, tmp_path, TALKS, assistant_only_loss=True, distill_alpha=0.6,
        distill_temperature=2.0, teacher_prompt_template="g f {input} d",
    )  # fmt: skip
    batch = trainer.data_collator(list(trainer.train_dataset))
    loss = trainer.compute_loss(trainer.model, batch)
    sides = []
    for folder, prefix in ((chat_model_dir, ""), (tiny_teacher_dir, "teacher_")):
        model, ids, labels = (
            AutoModelForCausalLM.from_pretrained(folder),
            *(batch[f"{prefix}{name}"] for name in ("input_ids", "labels")),
        )
        logits = [
            model(row[: int(m.sum())][None]).logits[0, :-1][label[1 : int(m.sum())] != IGNORE]
            for row, m, label in zip(ids, batch[f"{prefix}attention_mask"], labels, strict=True)
        ]
        sides.append((torch.cat(logits), labels[labels != IGNORE]))
    assert torch.equal(sides[0][1], sides[1][1])
    out = distillation_loss_from_logits(sides[0][0], sides[1][0], sides[0][1], alpha=0.6, temperature=2.0)
    torch.testing.assert_close(loss, out.loss / len(sides[0][1]), rtol=1e-5, atol=1e-6)
    assert losses(trainer)


def test_packed_conversations_give_the_losses_of_unpacked_ones(chat_model_dir, tiny_teacher_dir, tmp_path):
    how = {"assistant_only_loss": True, "teacher_prompt_template": "g f {input} d"}
    values = []
    for packing in ({}, {"padding_free": True}, {"packing": True}):
        trainer = distilling(chat_model_dir, tiny_teacher_dir, tmp_path, TALKS, **how, **packing)
        rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
        values.append(trainer.compute_loss(trainer.model, trainer.data_collator(rows)).item())
    assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-5)


def test_only_assistant_turns_of_the_completion_are_learned(chat_model_dir, tiny_teacher_dir, tmp_path):
    rows = [{"prompt": TALK[:3], "completion": TALK[3:]}]
    trainer = distilling(chat_model_dir, tiny_teacher_dir, tmp_path, rows, assistant_only_loss=True)
    assert learned_texts(trainer, trainer.train_dataset[0])[1] == ["f g a<|im_end|>", "c<|im_end|>"]
    with pytest.raises(DataError, match="'completion' is not one assistant message; several are learned with assist"):
        distilling(chat_model_dir, tiny_teacher_dir, tmp_path, rows)


def test_both_sides_are_cut_after_the_same_learned_token(chat_model_dir, tiny_teacher_dir, tmp_path):
    more = {"assistant_only_loss": True, "teacher_prompt_template": "g f {input} d"}
    whole = distilling(chat_model_dir, tiny_teacher_dir, tmp_path, TALKS[:1], **more)
    full = whole.train_dataset[0]
    short = len(full["student_prompt"]) + len(full["completion"]) - 3
    cut = distilling(chat_model_dir, tiny_teacher_dir, tmp_path, TALKS[:1], **more, max_length=short).train_dataset[0]
    assert sum(cut["completion_mask"]) == sum(cut["teacher_completion_mask"]) < sum(full["completion_mask"])
    for side in ("", "teacher_"):
        ids, mask = cut[f"{side}completion"], cut[f"{side}completion_mask"]
        assert mask[-1] == 1
        assert ids == full[f"{side}completion"][: len(ids)]


def test_tools_reach_both_chat_templates_and_calls_are_learned(tiny_model_dir, tiny_teacher_dir, tmp_path):
    talk = [user("a"), CALL, ANSWER, assistant("b c"), user("d"), CALL]
    rows = [{"messages": talk, "tools": json.dumps(TOOLS)}, {"messages": talk[:4], "tools": json.dumps(TOOLS)}]
    more = {"chat_template": MARKED, "teacher_prompt_template": SYSTEM}
    last = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, rows, **more)
    assert learned_texts(last, last.train_dataset[0])[1] == ["<call>count</call><|im_end|>"]
    prompt, pieces = learned_texts(last, last.train_dataset[1], "teacher_")
    assert pieces == ["b c<|im_end|>"]
    assert prompt.startswith("<|im_start|>tools\ncount <|im_end|>")
    assert "<call>count</call>" in prompt
    assert "tool\nf<|im_end|>" in prompt
    assert "tools\ncount" in learned_texts(last, last.train_dataset[1])[0]
    every = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, rows, assistant_only_loss=True, **more)
    call = "<call>count</call><|im_end|>"
    assert learned_texts(every, every.train_dataset[0], "teacher_")[1] == [call, "b c<|im_end|>", call]
    assert len(losses(every)) == 2


def test_tools_as_objects_and_other_words_for_the_chat_template(tiny_model_dir, tiny_teacher_dir, tmp_path):
    template = "{{ style }}" + MARKED
    rows = [{"messages": TALK, "tools": TOOLS, "chat_template_kwargs": {"style": "g g"}}]
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, rows, chat_template=template)
    for side in ("", "teacher_"):
        assert learned_texts(trainer, trainer.train_dataset[0], side)[0].startswith("g g<|im_start|>tools\ncount ")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": TALK, "tools": "count"}, "train, row 1: 'tools' is not a list of tools"),
        ({"messages": TALK, "chat_template_kwargs": "x"}, "train, row 1: 'chat_template_kwargs' is not an object"),
    ],
)
def test_tools_of_another_shape_name_their_row(row, message, chat_model_dir, tiny_teacher_dir, tmp_path):
    with pytest.raises(DataError, match=message):
        distilling(chat_model_dir, tiny_teacher_dir, tmp_path, [row])


REWRITES = (  # as templates do that drop the thoughts of earlier turns
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if loop.last %}x{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_chat_template_that_rewrites_earlier_turns_is_refused(tiny_model_dir, tiny_teacher_dir, tmp_path):
    with pytest.raises(
        TemplateError, match=r"train, row 1: the chat template of .* renders the conversation differently"
    ):
        distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, TALKS, chat_template=REWRITES, assistant_only_loss=True)


def test_assistant_only_loss_refuses_rows_of_text(chat_model_dir, tiny_teacher_dir, tmp_path):
    rows = [{"prompt": "a", "completion": "b"}]
    with pytest.raises(DataError, match="train, row 1, is text, but assistant_only_loss trains on assistant turns"):
        distilling(chat_model_dir, tiny_teacher_dir, tmp_path, rows, assistant_only_loss=True)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"teacher_store": "store"}, "a teacher_store keeps targets of completions in one piece"),
        ({"cross_tokenizer": True}, "cross_tokenizer compares completions in one piece"),
    ],
)
def test_assistant_only_loss_is_refused_by_what_supports_one_turn_only(
    more, why, chat_model_dir, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"row 1: the tokens to learn are in several places of the .* {why}"):
        distilling(chat_model_dir, chat_model_dir, tmp_path / "run", TALKS, assistant_only_loss=True, **more)


def test_several_teachers_take_one_turn_only(chat_model_dir, tmp_path):
    listed = [
        {"model": str(chat_model_dir), "template": "{input}"},
        {"model": str(chat_model_dir), "template": "a {input}"},
    ]
    config = DistillationSFTConfig(
        **settings(tmp_path), use_distillation=True, teacher_config=listed, assistant_only_loss=True
    )
    with pytest.raises(DataError, match="the teachers of teacher_config score completions in one piece"):
        DistillationSFTTrainer(str(chat_model_dir), config, train_dataset=Dataset.from_list(TALKS))


def test_a_trainer_that_writes_completions_refuses_all_turns_of_the_data(chat_model_dir, tmp_path):
    class Online(PromptDistillationTrainer):
        def generate_teacher_outputs(self, batch):
            return super().generate_teacher_outputs(batch)

    config = DistillationSFTConfig(
        **settings(tmp_path), use_distillation=True, teacher_model=str(chat_model_dir), assistant_only_loss=True,
        teacher_system="a b",
    )  # fmt: skip
    with pytest.raises(ParamsError, match="assistant_only_loss trains on turns of the data"):
        Online(str(chat_model_dir), config, train_dataset=Dataset.from_list(TALKS))


@pytest.mark.parametrize("trainer", ["distillation", "sft"])
def test_a_run_learns_all_assistant_turns(trainer, tiny_model_dir, tmp_path):
    jinja = tmp_path / "chat.jinja"
    jinja.write_text(MARKED)
    teacher = {"teacher_model": str(tiny_model_dir), "teacher_system": "a b"} if trainer == "distillation" else {}
    params = LLMTrainingParams(
        model=str(tiny_model_dir), trainer=trainer, data_path=Dataset.from_list(TALKS), max_steps=1, batch_size=2,
        gradient_accumulation=1, logging_steps=1, project_name=str(tmp_path / "run"), assistant_only_loss=True,
        chat_template=str(jinja), **teacher,
    )  # fmt: skip
    (batch,) = list(run(params).trainer.get_train_dataloader())
    assert sum(int((labels[1:] != IGNORE).sum()) for labels in batch["labels"]) == 16


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory):
    return make_t5(tmp_path_factory.mktemp("t5") / "t5")


def test_a_teacher_of_text_leaves_all_turns_to_cross_entropy(
    encoder_decoder, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    more = {"chat_template": MARKED, "assistant_only_loss": True, "distill_alpha": 0.0}
    text = distilling(tiny_model_dir, encoder_decoder, tmp_path / "text", TALKS, **more)
    local = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path / "local", TALKS, **more)
    assert losses(text) == pytest.approx(losses(local), rel=1e-6)


def test_tools_are_refused_with_a_text_teacher(encoder_decoder, tiny_model_dir, tmp_path):
    rows = [{"messages": [user("a")], "tools": TOOLS}]
    more = {"chat_template": MARKED, "distill_alpha": 0.0}
    with pytest.raises(
        DataError, match="train, row 1: there are tools for a chat template, but the teacher is sent only text"
    ):
        distilling(tiny_model_dir, encoder_decoder, tmp_path, rows, **more)
    rows = [{"messages": [user("a"), assistant("b")], "tools": TOOLS}]
    assert losses(distilling(tiny_model_dir, encoder_decoder, tmp_path, rows, **more))


def test_a_tool_call_is_learned_across_tokenizers(tiny_model_dir, tmp_path):
    other = make_model(tmp_path / "other", hidden=40)
    rows = [{"messages": [user("a"), CALL], "tools": TOOLS}, {"messages": [user("a"), assistant("b")], "tools": TOOLS}]
    trainer = distilling(tiny_model_dir, other, tmp_path / "run", rows, chat_template=MARKED, cross_tokenizer=True)
    tokenizer, row = trainer.teacher.tokenizer, trainer.train_dataset[0]
    assert tokenizer.decode(row["teacher_completion"]) == "<call>count</call><|im_end|>"
    assert "tools\ncount" in tokenizer.decode(row["teacher_prompt"])
    assert losses(trainer)


def test_assistant_only_loss_flag_reaches_the_config(tiny_model_dir, tmp_path):
    params = params_from_command(
        ["--model", str(tiny_model_dir), "--teacher-model", str(tiny_model_dir), "--assistant-only-loss"]
    )
    assert from_params(params).assistant_only_loss


def test_plain_sft_refuses_text_under_assistant_only_loss_too(tiny_model_dir, tmp_path):
    params = LLMTrainingParams(
        model=str(tiny_model_dir), trainer="sft", data_path=Dataset.from_dict({"text": ["a"]}),
        project_name=str(tmp_path / "run"), assistant_only_loss=True,
    )  # fmt: skip
    with pytest.raises(DataError, match="train, row 1, is text, but assistant_only_loss trains on assistant turns"):
        run(params)
