"""The made examples: deterministic, right by their own rules, held-out inputs apart from training inputs."""

from __future__ import annotations

import json
import random
from random import Random

import pytest

from tools.embedded_model.tasks import KINDS, Example, is_held_out, make_example, make_message
from tools.embedded_model.words import CITIES, NAMES, TEAMS, TOPICS, WORDS


def draw(count: int, seed: int = 0, **options) -> list[Example]:
    rng = Random(seed)
    return [make_example(rng, **options) for _ in range(count)]


def test_the_same_seed_makes_the_same_examples_and_another_seed_others():
    assert draw(200, seed=3, turns=2) == draw(200, seed=3, turns=2)
    assert draw(200, seed=3) != draw(200, seed=4)


def test_the_module_wide_random_state_is_not_touched():
    before = random.getstate()
    draw(50)
    assert random.getstate() == before


def test_held_out_inputs_are_in_no_training_example():
    training = {text for example in draw(3000, turns=3) for text in example.inputs}
    held_out = {text for example in draw(1000, seed=1, held_out=True) for text in example.inputs}
    assert not training & held_out
    assert len(held_out) > 500
    assert all(is_held_out(text) for text in held_out)
    assert not any(is_held_out(text) for text in training)


def test_every_kind_is_sampled_and_an_unknown_one_refused():
    assert {example.kind for example in draw(300)} == set(KINDS)
    with pytest.raises(KeyError):
        make_example(Random(0), kind="poetry")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lookup"])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_prompt_holds_instruction_and_input_and_the_later_turns_the_input_alone(kind, level):
    for example in draw(100, kind=kind, turns=3, level=level):
        assert len(example.turns) == len(example.inputs) == 3
        assert example.prompt.endswith(":")
        for (prompt, completion), text in zip(example.turns, example.inputs, strict=True):
            assert completion
            assert text in prompt
        bare = [prompt.replace(text, "") for (prompt, _), text in zip(example.turns, example.inputs, strict=True)]
        assert len(bare[0]) > len(bare[1]) == len(bare[2])


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_lookup_repeats_the_start_of_a_listed_pair(level):
    for example in draw(100, kind="lookup", turns=3, level=level):
        listed = example.prompt.rpartition("\n")[0]
        for prompt, completion in example.turns:
            assert f"{prompt.rpartition(chr(10))[2]} {completion}" in listed


def test_the_level_makes_instructions_longer():
    short, long = (draw(300, kind="route", level=level) for level in (0.0, 1.0))
    assert sum(len(e.prompt) for e in short) * 1.5 < sum(len(e.prompt) for e in long)


def test_a_listed_topic_is_routed_as_the_policy_says():
    found = 0
    for example in draw(300, kind="route"):
        for line in example.prompt.splitlines():
            if line.startswith("- ") and line.count(":") == 1 and "," not in line:
                left, right = line[2:].split(": ")
                if left.islower() and left in example.inputs[0].replace(".", "").replace("?", "").split():
                    assert right in example.completion
                    found += 1
    assert found > 20


def test_words_are_translated_by_the_table():
    found = 0
    for example in draw(300, kind="translate"):
        table = dict(line.split(" -> ") for line in example.prompt.splitlines() if " -> " in line)
        if table:
            assert " ".join(table[word] for word in example.inputs[0].split()) in example.completion
            found += 1
    assert found > 20


def test_json_that_is_asked_for_parses():
    asked = [e for e in draw(600, kind="route") if "JSON" in e.prompt]
    assert len(asked) > 50
    for example in asked:
        assert set(json.loads(example.completion)) in ({"team"}, {"team", "topic"})


def test_a_message_names_its_topic_and_leaves_no_field_open():
    rng = Random(0)
    for _ in range(500):
        message = make_message(rng, "refund")
        assert message.count("refund") == 1
        assert "{" not in message


@pytest.mark.parametrize("words", [TOPICS, TEAMS, NAMES, CITIES, WORDS])
def test_word_lists_hold_single_words_once(words):
    assert len(set(words)) == len(words)
    assert all(word.isalpha() for word in words)
