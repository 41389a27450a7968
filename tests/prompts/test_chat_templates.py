"""The student's chat template: the names that are taken, files, other models', and what is refused."""

from __future__ import annotations

import datetime
import json

import pytest
from datasets import Dataset
from every_template import ALL_TURNS, FORMS, NAMES, ONE_TURN, USER, ours, row_of, tokenizer_of, trls
from forms import assistant, learned_texts, settings, user
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, run
from trl_distill.data.preparation import Recipe
from trl_distill.data.recipe import PromptSide
from trl_distill.data.rows import Columns
from trl_distill.errors import ParamsError, ProjectError, TemplateError
from trl_distill.prompts.chat_template import ChatTemplate
from trl_distill.prompts.chat_template_choice import set_chat_template
from trl_distill.prompts.template import parse_template
from trl_distill.prompts.tokenization import tokenize_completion, tokenize_prompt
from trl_distill.runs.api import teach

TURNS = [{"role": "user", "content": "a b"}]
SAID = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


@pytest.fixture
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.mark.parametrize("source", [None, "tokenizer", "none"])
def test_without_the_flag_the_models_chat_template_stays(source, tokenizer, chat_model_dir):
    set_chat_template(tokenizer, source)
    assert tokenizer.chat_template is None
    chat = AutoTokenizer.from_pretrained(chat_model_dir)
    before = chat.chat_template
    set_chat_template(chat, source)
    assert chat.chat_template == before


@pytest.mark.parametrize(
    ("source", "prompt", "end"),
    [
        ("chatml", "<|im_start|>user\na b<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
        ("zephyr", "<|user|>\na b<|end|>\n<|assistant|>\n", "<|end|>"),
    ],
)
def test_built_in_chat_templates_render_and_end_a_turn(source, prompt, end, tokenizer):
    set_chat_template(tokenizer, source)
    assert tokenizer.decode(tokenize_prompt(tokenizer, TURNS)) == prompt
    assert tokenizer.decode(tokenize_completion(tokenizer, "c", chat=True)) == "c" + end


def test_a_file_with_and_without_the_sign_and_another_model(tokenizer, chat_model_dir, tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text(SAID)
    for source in (str(path), f"@{path}"):
        set_chat_template(tokenizer, source)
        assert tokenizer.chat_template == SAID
    set_chat_template(tokenizer, str(chat_model_dir))
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(chat_model_dir).chat_template


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% for m in messages %}\n{{ m['content'] }\n{% endfor %}", r"broken.jinja' is not Jinja: line 2: .*'}'"),
        ("{% if messages %}{{ messages }}", r"is not Jinja: line 1: .*endif"),
        ("Hello there.", "is not a chat template: it leaves out the messages of the user"),
        ("", "is not a chat template: it leaves out the messages of the user"),
        (SAID.replace("%}<", "%}{% if m['role'] == 'user' %}<", 1) .replace("{% endfor", "{% endif %}{% endfor"),
         "it leaves out the messages of the assistant"),
        (SAID + "{{ raise_exception('no such thing') }}", "does not take messages of user, assistant: no such thing"),
        (SAID + "{{ messages[7]['content'] }}", "does not take messages of user, assistant"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_chat_template_is_refused_and_changes_nothing(text, said, tokenizer, tmp_path):
    path = tmp_path / "broken.jinja"
    path.write_text(text)
    with pytest.raises(TemplateError, match=said) as caught:
        set_chat_template(tokenizer, str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert tokenizer.chat_template is None


def test_an_unknown_chat_template_lists_what_is_accepted(tokenizer, tiny_model_dir, tmp_path):
    for source, said in (
        ("alpaca", "is not a template"),
        ("./none.jinja", "is not a"),
        (str(tiny_model_dir), "without a"),
    ):
        with pytest.raises(TemplateError, match=rf"{said}.*'tokenizer'.*'chatml', 'zephyr', a Jinja file"):
            set_chat_template(tokenizer, source)
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(TemplateError, match="cannot be read: it is not UTF-8 text"):
        set_chat_template(tokenizer, str(tmp_path / "latin"))


def test_a_run_checks_chat_template_before_a_model_loads(chat_model_dir, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([{"messages": [*TURNS, {"role": "assistant", "content": "c"}]}]))
    settings = {
        "model": str(chat_model_dir), "teacher_model": str(chat_model_dir), "data_path": str(tmp_path / "data.json"),
        "dry_run": True, "project_name": str(tmp_path / "run"),
    }  # fmt: skip
    result = run(LLMTrainingParams(**settings, chat_template="zephyr"))
    assert "<|assistant|>" in result.tokenizer.chat_template
    with pytest.raises(TemplateError, match="chat_template 'alpaca'"):
        run(LLMTrainingParams(**settings, chat_template="alpaca"))


BLOCK = "<think>\n\n</think>\n\n"
FOUR_IT_IS = {  # what is learned of {"role": "assistant", "content": "four it is"}
    "gptoss": "<|channel|>final<|message|>four it is<|return|>",
    "qwen3": "<think>\n\n</think>\n\nfour it is<|im_end|>\n",
    "qwen3_5_think": "\n</think>\n\nfour it is<|im_end|>\n",
    "glm4moe": "\n<think></think>\nfour it is<|user|>",
    "deepseek_r1_distill": "four it is<｜end▁of▁sentence｜>",
    "nemotron_3_nano": "four it is<|im_end|>\n",
    "qwen2_5": "four it is<|im_end|>\n",
}
PICTURES = ("idefics3", "llava_next", "smolvlm")  # they want content in parts
NO_TOOLS = ("cohere", "cohere2", "gemma", "gemma3")
NO_CALLS = (*NO_TOOLS, "deepseek_r1_distill", "deepseekv3", "lfm2", "llama3", "phi3", "phi3_5", "qwen2_5_vl")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_learned_of_a_conversation_is_what_sfttrainer_learns(name):
    """By every template that TRL ships; an end is added behind a turn that the template writes none behind."""
    tokenizer = tokenizer_of(name)
    refused = set()
    for form in FORMS:
        mine = ours(tokenizer, form)
        if mine.refused:
            refused.add(form)
            assert name in mine.refused
            continue
        row = row_of(form)
        if (name, form) == ("qwen3_8", "thinking in the content"):  # SFTTrainer opens a second block
            row = row_of("reasoning_content")
        theirs = trls(tokenizer, form, {k: v for k, v in mine.opening.items() if k != "left_out"}, row)
        if form in ALL_TURNS and theirs.refused:  # it has no training template; each turn is what is rendered of it
            assert "The chat template is not training-compatible" in theirs.refused
            continue
        end = len(mine.ids) - (name == "glm4moe" and form in ONE_TURN)
        assert (mine.prompt, mine.ids[:end]) == (theirs.prompt, theirs.ids), form
    expected = {form for form in FORMS if name in PICTURES}
    expected |= {"a call of a tool"} if name in NO_CALLS else set()
    expected |= {"a tool's result", "all turns, tools"} if name in NO_TOOLS else set()
    expected |= {"a tool's result"} if name == "deepseekv3" else set()
    assert refused == expected


@pytest.mark.parametrize(("name", "learned"), FOUR_IT_IS.items())
def test_a_turn_is_learned_as_its_template_writes_it(name, learned):
    tokenizer = tokenizer_of(name)
    assert tokenizer.decode(ours(tokenizer, "one turn").ids) == learned


def trainer_on(name, rows, folder, model=None, **more):
    """Return a trainer whose student has one of TRL's chat templates, and which is its own teacher's copy."""
    tokenizer = tokenizer_of(name)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    student, teacher = (LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size)) for _ in range(2))
    config = DistillationSFTConfig(**settings(folder, max_length=None), use_distillation=True, **more)
    return DistillationSFTTrainer(
        student, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, teacher_model=teacher
    )


SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{input}"}]


@pytest.mark.parametrize("name", FOUR_IT_IS)
def test_teacher_and_student_learn_a_turn_after_their_own_prompts(name, tmp_path):
    trainer = trainer_on(name, [row_of("one turn")], tmp_path, teacher_prompt_template=SYSTEM)
    (student, mine), (teacher, theirs) = (
        learned_texts(trainer, trainer.train_dataset[0], side) for side in ("", "teacher_")
    )
    assert mine == theirs == [FOUR_IT_IS[name]]
    assert ("Be brief." in teacher, "Be brief." in student) == (True, False)


def test_reasoning_is_learned_by_the_trainer_and_in_plain_sft_through_the_command(tmp_path, tiny_model_dir):
    row = row_of("reasoning_content")
    trainer = trainer_on("qwen3", [row], tmp_path, teacher_prompt_template=SYSTEM)
    thought = "<think>\nhmm\n</think>\n\nfour it is<|im_end|>\n"
    assert learned_texts(trainer, trainer.train_dataset[0])[1] == [thought]
    jinja = tmp_path / "qwen3.jinja"
    jinja.write_text(tokenizer_of("qwen3").chat_template)
    done = run(LLMTrainingParams(
        model=str(tiny_model_dir), trainer="sft", data_path=Dataset.from_list([row]), max_steps=1,
        chat_template=str(jinja), project_name=str(tmp_path / "run"), gradient_accumulation=1,
    ))  # fmt: skip
    (batch,) = list(done.trainer.get_train_dataloader())
    assert thought in done.tokenizer.decode(batch["input_ids"][0])


def test_reasoning_alone_is_set_aside_if_the_template_does_not_write_it(tmp_path, capsys):
    alone = {"messages": [user("what"), {**assistant(""), "reasoning_content": "hmm"}]}
    for name, rows, said in (
        ("qwen2_5", 1, "1 set aside: 1 because the completion is only reasoning"),
        ("qwen3", 2, ""),
    ):
        trainer = trainer_on(name, [alone, row_of("one turn")], tmp_path, teacher_prompt_template=SYSTEM)
        assert len(trainer.train_dataset) == rows
        assert said in capsys.readouterr().out


def test_keywords_of_the_template_reach_plain_sft_through_the_command(tmp_path, tiny_model_dir):
    jinja = tmp_path / "toned.jinja"
    jinja.write_text("{{ tone }}{% for m in messages %}|{{ m.content }}{% endfor %}")
    done = run(LLMTrainingParams(
        model=str(tiny_model_dir), trainer="sft", data_path=Dataset.from_list([row_of("one turn")]), max_steps=1,
        chat_template=str(jinja), chat_template_kwargs='{"tone": "calm"}', project_name=str(tmp_path / "run"),
        gradient_accumulation=1,
    ))  # fmt: skip
    (batch,) = list(done.trainer.get_train_dataloader())
    assert done.tokenizer.decode(batch["input_ids"][0]).startswith("calm|")


def test_keywords_of_the_template_reach_both_sides_and_a_rows_own_take_their_place(tmp_path):
    rows = [{**row_of("one turn"), "chat_template_kwargs": own} for own in ({"enable_thinking": True}, None)]
    for given in ('{"enable_thinking": false}', {"enable_thinking": False}):
        how = {"teacher_prompt_template": SYSTEM, "chat_template_kwargs": given}
        trainer = trainer_on("qwen3_5_think", rows, tmp_path, **how)
        for side in ("", "teacher_"):
            on, off = (learned_texts(trainer, row, side) for row in trainer.train_dataset)
            assert off[0].endswith("<think>\n\n</think>\n\n")
            assert off[1] == ["four it is<|im_end|>\n"]
            assert on[1] == ["\n</think>\n\nfour it is<|im_end|>\n"]
    for wrong in ("thinking", "[1]"):
        with pytest.raises(ParamsError, match=r"chat_template_kwargs is .*; expected a JSON object"):
            DistillationSFTConfig(**settings(tmp_path), chat_template_kwargs=wrong)


def test_one_line_says_that_a_turn_does_not_begin_with_the_generation_prompt(tmp_path, capsys):
    trainer_on("nemotron_3_nano", [row_of("one turn")], tmp_path, teacher_prompt_template=SYSTEM)
    said = capsys.readouterr().out
    assert "1 row rendered with enable_thinking=false: its turns do not begin with" in said
    assert """if the student is not to reason, give chat_template_kwargs='{"enable_thinking": false}', else""" in said
    trainer_on("deepseek_r1_distill", [row_of("one turn")], tmp_path, teacher_prompt_template=SYSTEM)
    said = capsys.readouterr().out
    assert r"1 row without '<think>\n' at the end of the prompt: its turns do" in said
    assert "give rows whose turns begin with it, or another chat_template_path; or leave out" in said


def test_rows_with_reasoning_under_a_prompt_without_are_named_with_a_remedy(tmp_path, capsys):
    for given in ("false", "true"):
        how = {"teacher_prompt_template": SYSTEM, "chat_template_kwargs": f'{{"enable_thinking": {given}}}'}
        trainer_on("qwen3", [row_of("reasoning_content")], tmp_path, **how)
        said = capsys.readouterr().out
        remedy = (
            "generation prompt; remove their reasoning, or leave enable_thinking=false out of chat_template_kwargs\n"
        )
        assert (remedy in said) == (given == "false")


REWRITTEN = (
    "{% for m in messages %}{% if not loop.last and not add_generation_prompt %}old {% endif %}{{ m['content'] }}|"
    "{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


def test_a_template_that_rewrites_the_question_is_refused_with_both_endings(tokenizer, tmp_path):
    tokenizer.chat_template = REWRITTEN
    side = PromptSide(tokenizer, parse_template("{input}", name="template"), None)
    rows = Dataset.from_list([{"messages": [*TURNS, {"role": "assistant", "content": "c"}]}])
    with pytest.raises(TemplateError, match=r"row 1: .* the prompt has 'a b\|>', and .* 'old a b\|c\|' in its place"):
        Recipe(side, side, columns=Columns(), write=lambda prompts: []).prepare(rows)


def test_the_teacher_may_have_its_own_template(tmp_path):
    jinja = tmp_path / "teacher.jinja"
    jinja.write_text(tokenizer_of("qwen3_5_nothink").chat_template)
    trainer = trainer_on("qwen3", [row_of("one turn")], tmp_path, teacher_chat_template=str(jinja))
    student, mine = learned_texts(trainer, trainer.train_dataset[0])
    teacher, theirs = learned_texts(trainer, trainer.train_dataset[0], "teacher_")
    # the block that one template learns stands in the other's generation prompt
    assert mine == theirs == ["<think>\n\n</think>\n\nfour it is<|im_end|>\n"]
    assert (student, teacher) == ("<|im_start|>user\nwhat is two and two<|im_end|>\n<|im_start|>assistant\n",) * 2
    assert trainer.processing_class.chat_template != trainer.teacher.tokenizer.chat_template
    with pytest.raises(TemplateError, match=r"teacher_chat_template 'no-such\.jinja' is not a template, a file"):
        trainer_on("qwen3", [row_of("one turn")], tmp_path, teacher_chat_template="no-such.jinja")


def test_a_message_of_weight_0_is_not_learned(tmp_path):
    talk = [*row_of("two turns")["messages"]]
    talk[1] = {**talk[1], "weight": 0}
    for name in ("qwen2_5", "gemma4"):  # with a training template and without
        trainer = trainer_on(
            name, [{"messages": talk}], tmp_path, teacher_prompt_template=SYSTEM, assistant_only_loss=True
        )
        prompt, pieces = learned_texts(trainer, trainer.train_dataset[0])
        assert "no<" in prompt
        assert [piece.split("<")[0].strip() for piece in pieces] == ["four it is"]


def test_several_turns_are_learned_by_trls_training_template(tmp_path):
    trainer = trainer_on(
        "qwen3", [row_of("two turns")], tmp_path, teacher_prompt_template=SYSTEM, assistant_only_loss=True
    )
    for side in ("", "teacher_"):
        pieces = learned_texts(trainer, trainer.train_dataset[0], side)[1]
        assert [piece.strip() for piece in pieces] == [BLOCK + "no<|im_end|>", BLOCK + "four it is<|im_end|>"]


def test_one_date_is_kept_for_a_project(tmp_path, monkeypatch):
    rows = [row_of("one turn")]
    monkeypatch.chdir(tmp_path)
    first = trainer_on("llama3_2", rows, tmp_path / "run", teacher_prompt_template=SYSTEM)
    kept = tmp_path / "run" / "chat_template_date.txt"
    today = datetime.date.today()
    assert kept.read_text() == f"{today.isoformat()}\n"
    assert f"Today Date: {today:%d %b %Y}" in learned_texts(first, first.train_dataset[0])[0]
    kept.write_text("2026-01-31\n")  # as if the run had begun on another day
    again = trainer_on("llama3_2", rows, tmp_path / "run", teacher_prompt_template=SYSTEM)
    for side in ("", "teacher_"):
        assert "Today Date: 31 Jan 2026" in learned_texts(again, again.train_dataset[0], side)[0]
    given = trainer_on(
        "llama3_2", rows, tmp_path / "run", chat_template_date="2025-02-01", teacher_prompt_template=SYSTEM
    )
    assert "Today Date: 01 Feb 2025" in learned_texts(given, given.train_dataset[0])[0]
    with pytest.raises(ParamsError, match="chat_template_date is 'today'; expected a date such as 2026-01-31"):
        DistillationSFTConfig(**settings(tmp_path), chat_template_date="today")
    kept.write_text("2026-0")
    with pytest.raises(ProjectError, match=r"chat_template_date\.txt' is damaged: it holds no date"):
        trainer_on("llama3_2", rows, tmp_path / "run", teacher_prompt_template=SYSTEM)
    trainer_on("qwen3", rows, tmp_path / "other", teacher_prompt_template=SYSTEM)
    assert not (tmp_path / "other" / "chat_template_date.txt").exists()


@pytest.mark.parametrize("call", ["strftime_now('%d %B %Y')", "strftime_now(form)"])
def test_a_date_is_fixed_whether_its_format_is_written_in_the_call_or_kept_in_a_variable(call, tokenizer):
    template = "{% set form = '%d %B %Y' %}{{ " + call + " }}" + SAID
    tokenizer.chat_template = template
    written = ChatTemplate(tokenizer).render(TURNS, {"strftime_now": "2026-01-31"})
    fixed = template.replace(call, "'31 January 2026'")
    assert written == tokenizer.apply_chat_template(TURNS, chat_template=fixed, tokenize=False)


@pytest.mark.parametrize("name", [*FOUR_IT_IS, "llama3_2"])
def test_the_saved_template_opens_a_turn_as_it_was_trained(name, tmp_path):
    trainer = trainer_on(name, [row_of("one turn")], tmp_path, teacher_prompt_template=SYSTEM)
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    asked = row_of("one turn")["messages"][:1]
    ids = saved.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert ids == trainer.train_dataset[0]["student_prompt"]


def test_a_store_written_on_one_day_is_trained_from_on_the_next(
    tiny_model_dir, tiny_teacher_dir, tmp_path, monkeypatch
):
    jinja = tmp_path / "llama.jinja"
    jinja.write_text(tokenizer_of("llama3_2").chat_template.replace("{{- bos_token }}", ""))
    rows = [row_of("one turn"), {"messages": [USER]}]  # the teacher writes one of the two
    params = LLMTrainingParams(
        model=str(tiny_model_dir), teacher_model=str(tiny_teacher_dir), data_path=Dataset.from_list(rows),
        chat_template=str(jinja), teacher_chat_template=str(jinja), teacher_store=str(tmp_path / "store"), max_steps=1,
        project_name=str(tmp_path / "run"), distill_max_teacher_length=4, gradient_accumulation=1,
    )  # fmt: skip
    assert teach(params) > 0

    class Tomorrow(datetime.date):
        @classmethod
        def today(cls):
            return datetime.date.today() + datetime.timedelta(days=1)

    monkeypatch.setattr("trl_distill.teachers.target_store.chat_template_date.date", Tomorrow)
    trainer = run(params).trainer
    shown = trainer.processing_class.decode(trainer.train_dataset[0]["student_prompt"])
    assert f"Today Date: {datetime.date.today():%d %b %Y}" in shown
