"""The values of a search, as they are typed and as Python gives them."""

from __future__ import annotations

import pytest

from trl_distill.config.search_space import Range, check_space, grid, grid_size, read_space, values_of
from trl_distill.errors import ParamsError


@pytest.mark.parametrize(
    ("name", "texts", "expected"),
    [
        ("distill_temperature", ["1,2,3"], (1.0, 2.0, 3.0)),
        ("distill_temperature", ["1", "2, 3"], (1.0, 2.0, 3.0)),
        ("lr", ["1e-4,0.0001,1e-3"], (1e-4, 1e-3)),
        ("lora_r", ["8,16"], (8, 16)),
        ("distill_divergence", ["forward_kl,jsd"], ("forward_kl", "jsd")),
        ("peft", ["true,false"], (True, False)),
        ("scheduler", ["linear,cosine"], ("linear", "cosine")),
        ("target_modules", ["q_proj,v_proj"], ("q_proj,v_proj",)),
        ("target_modules", ["q_proj,v_proj", "all-linear"], ("q_proj,v_proj", "all-linear")),
        ("teacher_prompt_template", ["One, two: {input}"], ("One, two: {input}",)),
        ("teacher_prompt_template", ["@a.txt,@b.txt"], ("@a.txt", "@b.txt")),
        ("teacher_stop", ["a,b", "c"], (["a,b", "c"],)),
        ("data_path", ["a,b.jsonl"], ("a,b.jsonl",)),
        ("lr", ["1e-5..1e-3"], Range(1e-5, 1e-3)),
        ("lora_r", ["4..64"], Range(4, 64, whole=True)),
    ],
)
def test_values_are_separated_by_commas_unless_the_text_may_hold_them(name, texts, expected):
    assert values_of(name, texts) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("distill_temperature", "1,0", "distill_temperature is 0.0; expected a number above 0"),
        ("distill_temperature", "1,", "distill_temperature is ''"),
        ("distill_temperature", "1..2,3", "give values, or one range"),
        ("distill_temperature", "3..1", "give the lower end first"),
        ("distill_temperature", "1..x", "a range as two numbers"),
        ("lora_r", "1.5..4", "a whole number"),
        ("seed", "1,2", "seed has several values, but all trials have the same"),
        ("holdout", "0.1..0.2", "holdout has several values, but all trials are judged on the same held-out rows"),
    ],
)
def test_a_bad_value_is_named(name, text, message):
    with pytest.raises(ParamsError, match=message.replace("(", r"\(")):
        values_of(name, [text])


def test_a_space_in_python_has_lists_single_values_and_texts():
    given = {"distill_temperature": [1, 2], "lr": "1e-4,1e-3", "peft": True, "epochs": "1..3", "lora_r": range(4, 7)}
    assert read_space(given) == {
        "distill_temperature": (1.0, 2.0), "lr": (1e-4, 1e-3), "peft": (True,), "epochs": Range(1.0, 3.0),
        "lora_r": (4, 5, 6),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"distil_temperature": [1]}, "Did you mean 'distill_temperature'"),
        ({"learning_rate": [1]}, "It is called 'lr' here"),
        ({"use_int4": [True]}, "is no setting of a run; give quantization='int4'"),
        ({"data_path": ["a", "b"]}, "data_path cannot be tuned"),
        ({"lr": []}, "lr has no value"),
        ([("lr", 1)], "give the values of each setting"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(space, message):
    with pytest.raises(ParamsError, match=message):
        read_space(space)


def test_a_grid_has_every_combination_and_the_last_setting_changes_fastest():
    space = read_space({"distill_temperature": [1, 2], "distill_alpha": [0.5, 0.9]})
    assert [tuple(settings.values()) for settings in grid(space)] == [(1, 0.5), (1, 0.9), (2, 0.5), (2, 0.9)]
    assert grid_size(space) == 4
    assert grid_size({"lora_r": Range(1, 3, whole=True), "lr": (1.0,)}) == 3


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"lr": [1e-3]}, "nothing to tune"),
        ({"lr": "1e-4..1e-3"}, "which a grid cannot cover; add --trials 20"),
        ({"lora_r": list(range(1, 1002))}, "1,001 combinations and a grid at most 1,000"),
    ],
)
def test_a_space_that_a_grid_cannot_cover_needs_a_number_of_trials(space, message):
    with pytest.raises(ParamsError, match=message):
        check_space(read_space(space), trials=None)
    if "nothing" not in message:
        check_space(read_space(space), trials=5)


def test_a_range_over_a_factor_of_ten_is_logarithmic():
    assert Range(1e-5, 1e-3).is_log
    assert not Range(1, 4).is_log
    assert not Range(0, 1).is_log
