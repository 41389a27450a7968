"""The items of lists as models write them."""

from __future__ import annotations

import time

import pytest

from trl_distill.prompts.listed_items import items_in

THREE = ["red cat", "blue dog", "tall tree"]
FORMS = {
    "numbers": "1. red cat\n2. blue dog\n3. tall tree",
    "numbers and chatter": "Here are 3:\n\n1) red cat\n\n2) blue dog\n\n3) tall tree\n\nTell me if you need more.",
    "bold numbers": "**1.** red cat\n**2.** **blue dog**\n**3.** tall tree",
    "bullets": "Inputs:\n- red cat\n* blue dog\n• tall tree",
    "JSON": '["red cat", "blue dog", "tall tree"]',
    "JSON in a fence": '```json\n["red cat",\n "blue dog", "tall tree"]\n```\nThese are inputs.',
    "JSON after a line": 'Here you are:\n[\n  "red cat", "blue dog", "tall tree"\n]',
    "JSON of objects": '{"inputs": [{"input": "red cat"}, {"text": "blue dog"}, {"input": "tall tree"}]}',
    "an object a line": '{"input": "red cat"}\n{"input": "blue dog"}\n{"input": "tall tree"}',
    "quotes and labels": "1. Input 1: \"red cat\"\n2. User: “blue dog”\n3. **Query:** 'tall tree'",
    "numbers twice": "1. 1. red cat\n2. 2) blue dog\n3. 3. tall tree",
    "lines": "Here they are:\nred cat\n\nblue dog\ntall tree\n",
    "one line": "1. red cat 2. blue dog 3. tall tree",
    "a list that goes on": "1. red cat\n2. blue dog\n3. tall tree\n4. ...",
}


@pytest.mark.parametrize("form", FORMS)
def test_lists_are_read_in_every_form(form):
    assert items_in(FORMS[form]) == THREE


@pytest.mark.parametrize("form", ["numbers", "bullets", "JSON", "lines"])
def test_an_item_that_may_be_cut_is_left_out(form):
    cut = FORMS[form].rstrip().rstrip(']"')[:-4]
    assert items_in(cut, finished=False) == THREE[:2]


def test_an_item_may_have_several_lines_and_quotes_inside():
    text = '1. Fix this:\n   x = [1, 2]\n   print("a")\n2. "a" or "b"\n'
    assert items_in(text) == ['Fix this:\n   x = [1, 2]\n   print("a")', '"a" or "b"']


@pytest.mark.parametrize("text", ["", "...", "\n\n", "1.\n2.\n", "[]", "[", "{", '["', "```"])
def test_nothing_is_read_from_nothing(text):
    assert items_in(text) == []


def test_a_placeholder_is_no_item():
    text = "1. {input1}\n2. [insert input]\n3. - [Input #2]\n4. <your message>\n5. Fill in {input} for me\n6. [Billing]"
    assert items_in(text) == ["Fill in {input} for me", "[Billing]"]


HALF = 200_000
HOSTILE = {
    "escaped quotes without end": '["' + '\\"' * HALF,
    "blank lines": "\n" * HALF + "a word",
    "one line with a gap": "1. red cat 2. blue dog" + " " * HALF + "x",
    "a label without a colon": "1. input" + " " * HALF + "x",
    "emphasis on emphasis": "1. " + "*" * HALF + "red cat" + "*" * HALF,
    "lists in lists": "[" * HALF,
    "a placeholder that does not end": "1. [input" + "]" * HALF + "x",
}


@pytest.mark.parametrize("form", HOSTILE)
def test_an_answer_of_any_form_is_read_in_a_time_that_grows_with_its_length(form):
    start = time.process_time()
    assert len(items_in(HOSTILE[form])) <= 2
    assert time.process_time() - start < 10  # a fraction of a second; reading it again from each place takes hours
