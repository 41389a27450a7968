"""The items of lists as models write them."""

from __future__ import annotations

import time

import pytest

from trl_distill.prompts.input_requests import examples_in
from trl_distill.prompts.listed_items import items_in, list_items

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
    "Chinese numbers": "1、red cat\n2、blue dog\n3、tall tree",
    "wide numbers": "１．red cat\n２．blue dog\n３．tall tree",
    "numbers and dashes": "1- red cat\n2- blue dog\n3- tall tree",
    "circled numbers": "①red cat\n② blue dog\n③ tall tree",
    "no spaces": "1.red cat\n2.blue dog\n3.tall tree",
    "all in bold": "**1. red cat**\n**2. blue dog**\n**3. tall tree**",
    "headings": "### 1. red cat\n\n### 2. blue dog\n\n### 3. tall tree",
    "bullets behind numbers": "1. - red cat\n2. - blue dog\n3. - tall tree",
    "all indented": "    1. red cat\n    2. blue dog\n    3. tall tree",
    "numbers in a fence": "Here you are:\n```\n1. red cat\n2. blue dog\n3. tall tree\n```\nDone.",
    "lines in a fence": "Here you are:\n~~~text\nred cat\nblue dog\ntall tree\n~~~\nDone.",
    "JSON with numbers for keys": '{"1": "red cat", "2": "blue dog", "input3": "tall tree"}',
    "Python": '```python\ninputs = [\n    "red cat",\n    "blue dog",\n    "tall tree",\n]\n```',
    "tags": "<inputs>\n<input>red cat</input>\n<input>blue dog</input>\n<input>tall tree</input>\n</inputs>",
    "other quotes": "1. „red cat“\n2. 「blue dog」\n3. « tall tree »",
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


def test_an_item_may_have_several_paragraphs():
    mails = ["Dear team,\n\nmy parcel:\n- late", "Hi,\n\nwhere is it?", "Dear shop,"]
    text = f"1. {mails[0]}\n\n---\n\n2. {mails[1]}\n\n## More\n\n3. {mails[2]}\n\nmy parcel is lost."
    assert items_in(text) == [mails[0], "Hi,"]  # a heading ends an item; nothing says where the last one ends


def test_a_date_is_no_second_number():
    assert items_in("1. 5. Mai?\n2. 3. Mai auch?") == ["5. Mai?", "3. Mai auch?"]


@pytest.mark.parametrize("text", ["I cannot help with that.", "I cannot help.\n\nPlease ask anything else.", "Billing"])
def test_a_refusal_is_no_list(text):
    assert items_in(text) == []
    assert items_in(text, least_lines=1)


PROMPT = """You route mail. Be brief.

Rules:
- Always answer in one word,
  and **never** in more than that,
even if asked.
* Refunds:
    - within 30 days: approve
    - later:
\t\t* with a receipt: ask a human
1) First ask for the
   order number.

   Then wait.
2.1 Look it up
b) Close it
•No space
3、请简短

```
- an example
```
| 1. a | - b |
---
- Stop there.
Message: {input}
"""


def test_items_of_a_prompt_are_read_as_people_write_them():
    assert list_items(PROMPT) == [
        "Always answer in one word, and never in more than that, even if asked.",
        "Refunds: within 30 days: approve",
        "Refunds: later: with a receipt: ask a human",
        "First ask for the order number.",
        "Look it up",
        "Close it",
        "No space",
        "请简短",
        "Stop there.",
    ]
    indented = "".join(f"    {line}\n" for line in PROMPT.splitlines())
    assert list_items(indented) == list_items(PROMPT)


def test_examples_are_found_in_any_language():
    prompt = "Beispiel: Meine Sendung\nkam nie an. Danke\n用户：我的包裹在哪里？谢谢。\n- „Wo bleibt alles?“: Post"
    found = set(examples_in(prompt))
    assert {"Beispiel: Meine Sendung kam nie an.", "Meine Sendung", "我的包裹在哪里？", "Wo bleibt alles?"} <= found


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
    "a fence without end": "```\n" + "\n " * HALF,
    "rules": "1. red cat\n" + "\n---" * HALF,
    "a placeholder that does not end": "1. [input" + "]" * HALF + "x",
}


def test_a_prompt_of_many_levels_is_read():
    deep = "\n".join(f"{' ' * level}- level {level}:" for level in range(2000))
    (item,) = list_items(deep)
    assert item.startswith("level 0: level 1: ")


@pytest.mark.parametrize("form", HOSTILE)
def test_an_answer_of_any_form_is_read_in_a_time_that_grows_with_its_length(form):
    start = time.process_time()
    assert len(items_in(HOSTILE[form])) <= 2
    assert time.process_time() - start < 10  # a fraction of a second; reading it again from each place takes hours
