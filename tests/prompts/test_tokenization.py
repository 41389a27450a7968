"""One completion under two prompts: what is appended, what is cut, and which vocabularies go together."""

from __future__ import annotations

from copy import copy

import pytest
from datasets import Dataset
from tokenizing import byte_level, llama, pieces
from transformers import AutoTokenizer

from trl_distill.data.preparation import Recipe
from trl_distill.data.recipe import PromptSide
from trl_distill.data.rows import Columns
from trl_distill.errors import DataError, TeacherError, TemplateError
from trl_distill.prompts.chat_template import ChatTemplate
from trl_distill.prompts.fitting import Limits, fit, skipped_tokens
from trl_distill.prompts.shared_vocabulary import shared_vocabulary
from trl_distill.prompts.template import parse_template
from trl_distill.prompts.tokenization import tokenize_after, tokenize_completion, tokenize_prompt


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture(scope="module")
def chat_tokenizer(chat_model_dir):
    return AutoTokenizer.from_pretrained(chat_model_dir)


def test_completion_ends_in_one_eos(tokenizer):
    ids = tokenize_completion(tokenizer, "a b")
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenize_completion(tokenizer, "a b" + tokenizer.eos_token) == ids


def test_prompt_has_no_closing_eos(tokenizer):
    from tokenizers.processors import TemplateProcessing

    closing = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    eos = closing.eos_token
    closing.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, closing.eos_token_id)]
    )
    assert closing("a b")["input_ids"][-1] == closing.eos_token_id
    assert tokenize_prompt(closing, "a b") == tokenizer("a b", add_special_tokens=False)["input_ids"]


def test_chat_prompt_needs_a_chat_template(tokenizer):
    with pytest.raises(TemplateError, match="chat template"):
        tokenize_prompt(tokenizer, [{"role": "user", "content": "a"}])


def test_chat_prompt_and_completion_are_the_rendered_conversation(chat_tokenizer):
    turn = [{"role": "user", "content": "a b"}]
    whole = chat_tokenizer.apply_chat_template([*turn, {"role": "assistant", "content": "c"}], tokenize=False)
    ids = tokenize_prompt(chat_tokenizer, turn) + tokenize_completion(chat_tokenizer, "c", chat=True)
    assert whole.strip().startswith(chat_tokenizer.decode(ids).strip())
    assert ids[-1] == ChatTemplate(chat_tokenizer).end.token


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("no message at all", "leaves out the assistant's messages; give another with --chat-template"),
        ("{% if", r"is not Jinja: line 1"),
        (
            "{{ raise_exception('Roles must\n alternate.') }}",
            "does not take messages of user, .*: Roles must alternate;",
        ),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_a_sentence(template, said, chat_model_dir):
    broken = AutoTokenizer.from_pretrained(chat_model_dir)
    broken.chat_template = template
    with pytest.raises(TemplateError, match=said):
        tokenize_completion(broken, "c", chat=True)
    if "no message" not in template:
        with pytest.raises(TemplateError, match=said.replace("user, .*", "user")):
            tokenize_prompt(broken, [{"role": "user", "content": "a"}])


def test_each_prompt_is_fitted_by_its_own_limit():
    fitted = fit([1] * 3, [2] * 50, [3] * 4, Limits(8, 60))
    assert (len(fitted.student_prompt), len(fitted.teacher_prompt), len(fitted.completion)) == (3, 50, 4)
    assert fitted.prompt_cut == fitted.completion_cut == 0


def test_a_completion_that_does_not_fit_is_cut_and_counted():
    fitted = fit([1] * 5, [2] * 5, [3] * 10, Limits(8))
    assert len(fitted.completion) == 3
    assert fitted.completion_cut == 7


def test_a_prompt_without_room_is_an_error_that_names_the_row():
    with pytest.raises(DataError, match=r"train, row 7: the teacher's prompt has 9 tokens, .*: the limit is 9; sh"):
        fit([1], [2] * 9, [3], Limits(8, 9, where="train, row 7"))


def test_a_prompt_is_cut_from_the_left_on_request():
    fitted = fit(list(range(10)), [2], [3] * 4, Limits(8, overflow="left"))
    assert fitted.student_prompt == [6, 7, 8, 9]
    assert fitted.completion == [3] * 4
    assert fitted.prompt_cut == 6


@pytest.mark.parametrize(("student", "teacher", "skipped"), [([1], [1], 0), ([], [1], 1), ([1], [], 1), ([], [], 1)])
def test_the_first_token_under_an_empty_prompt_is_not_predicted(student, teacher, skipped):
    assert skipped_tokens(student, teacher) == skipped


def test_unequal_padding_shares_the_smaller_number_of_rows(tokenizer):
    assert shared_vocabulary(tokenizer, tokenizer, student_rows=151_936, teacher_rows=152_064) == 151_936


@pytest.mark.parametrize("padding", [0, 64])
def test_a_token_added_for_the_student_alone_is_not_shared(padding, tokenizer):
    more = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    more.add_tokens(["<x>"])
    rows = len(tokenizer)
    assert shared_vocabulary(more, tokenizer, student_rows=rows + 1, teacher_rows=rows + padding) == rows
    assert shared_vocabulary(tokenizer, more, student_rows=rows, teacher_rows=rows + 1) == rows


@pytest.mark.parametrize("template", ["{{ raise_exception('system first') }}", "{% for m in messages %}x{% endfor %}"])
def test_a_template_for_other_conversations_ends_in_end_of_sequence(template, tokenizer):
    other = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    other.chat_template = template
    assert ChatTemplate(other).end_token == tokenizer.eos_token_id


def test_the_marks_of_a_named_default_template_are_those_of_training(chat_tokenizer):
    tokenizer = copy(chat_tokenizer)
    marked = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    tokenizer.chat_template = {"default": marked, "tool_use": "{{ tools }}"}
    assert ChatTemplate(tokenizer).training_source == marked


def test_another_tokenizer_is_refused(tokenizer, tmp_path):
    other = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    swapped = other.backend_tokenizer.to_str()
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (a, i), (b, j) = [item for item in vocab if item[0].isalpha()][:2]
    import json

    model = json.loads(swapped)
    model["model"]["vocab"][a], model["model"]["vocab"][b] = j, i
    from tokenizers import Tokenizer

    other = type(other)(tokenizer_object=Tokenizer.from_str(json.dumps(model)), eos_token=tokenizer.eos_token)
    with pytest.raises(TeacherError, match="another tokenizer"):
        shared_vocabulary(tokenizer, other, student_rows=len(vocab), teacher_rows=len(vocab), teacher_name="other")


def test_the_same_tokens_split_differently_are_refused(tokenizer):
    from tokenizers import normalizers

    other = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    other.backend_tokenizer.normalizer = normalizers.Replace("b", "a")
    rows = len(tokenizer)
    with pytest.raises(TeacherError, match="splits text differently"):
        shared_vocabulary(tokenizer, other, student_rows=rows, teacher_rows=rows)


KINDS = [llama, pieces, lambda: pieces(scheme="always"), byte_level, lambda: byte_level(prefix=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["x = f(y)\n", "the lazy dog:", "<|im_start|>assistant\n", "the quick brown "])
def test_a_completion_is_tokenized_in_its_place(kind, prompt):
    """As SFTTrainer has it, which tokenizes both at once and learns what follows the prompt's tokens."""
    tokenizer = kind()
    tokenizer.add_tokens(["<|im_start|>"])
    for text in ("fox jumps", "\treturn 42", "東京"):
        ids = tokenize_after(tokenizer, text, prompt=prompt)
        before, whole = (list(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (prompt, prompt + text))
        if whole[: len(before)] == before:
            assert ids == whole[len(before) :]
        joined = str(tokenizer.decode([*before, *ids]))
        assert joined == str(tokenizer.decode(before)) + text or joined == str(tokenizer.decode(whole))


def test_sentencepiece_adds_no_space_after_a_newline():
    tokenizer = llama()
    plain = tokenizer("fox", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(plain)[0].startswith("▁")
    assert tokenizer.convert_ids_to_tokens(tokenize_after(tokenizer, "fox", prompt="a\n"))[0] == "f"
    assert tokenize_completion(tokenizer, "fox", prompt="a\n")[-1] == tokenizer.eos_token_id


def test_a_text_that_begins_with_the_bos_gets_no_second_one():
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_level()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    assert tokenizer("<s>the fox")["input_ids"][:2] == [bos, bos]
    assert tokenize_prompt(tokenizer, "<s>the fox") == tokenize_prompt(tokenizer, "the fox")
    template = parse_template("{input}", name="template")
    side = PromptSide(tokenizer, template, None)
    recipe = Recipe(side, side, columns=Columns(), write=lambda prompts: [])
    rows, _ = recipe.prepare(Dataset.from_list([{"text": "<s>the fox"}, {"text": "the fox"}]))
    first, second = ([*row["student_prompt"], *row["completion"]] for row in rows)
    assert (
        first == second == [bos, *tokenizer("the fox", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    )
