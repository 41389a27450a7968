"""Completions for many prompts: once each, sorted by length, and never paid for twice."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill.models.generation import GenerationSettings
from trl_distill.teachers.completions.generate import complete
from trl_distill.teachers.completions.store import CompletionStore
from trl_distill.teachers.loading import load_teacher

PROMPTS = [[5, 6], [7], [8, 9, 10], [5, 6], [11, 12, 13, 14]]
SETTINGS = GenerationSettings(max_new_tokens=4, batch_size=2)


class Counting:
    """A real teacher that counts what it is asked."""

    def __init__(self, teacher):
        self._teacher = teacher
        self.asked = []

    def __getattr__(self, name):
        return getattr(self._teacher, name)

    def generate(self, prompts, settings):
        self.asked.append([list(p) for p in prompts])
        return self._teacher.generate(prompts, settings)


@pytest.fixture
def teacher(tiny_teacher_dir):
    return Counting(load_teacher(str(tiny_teacher_dir)))


def test_each_distinct_prompt_is_written_once_the_longest_first(teacher):
    done = complete(teacher, PROMPTS, SETTINGS, progress=False)
    assert len(done) == len(PROMPTS)
    assert done[0] == done[3]
    lengths = [len(p) for batch in teacher.asked for p in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert sum(map(len, teacher.asked)) == 4


def test_batch_size_changes_no_completion(teacher):
    one = complete(teacher, PROMPTS, GenerationSettings(max_new_tokens=4, batch_size=1), progress=False)
    assert one == complete(teacher, PROMPTS, SETTINGS, progress=False)


def test_a_run_that_was_stopped_asks_only_for_the_rest(teacher, tmp_path):
    path = tmp_path / "store.jsonl"
    complete(teacher, PROMPTS[:2], SETTINGS, store=CompletionStore(path), progress=False)
    teacher.asked.clear()
    done = complete(teacher, PROMPTS, SETTINGS, store=CompletionStore(path), progress=False)
    assert sorted(p for batch in teacher.asked for p in batch) == [[8, 9, 10], [11, 12, 13, 14]]
    assert done == complete(teacher, PROMPTS, SETTINGS, progress=False)


def test_a_damaged_completion_alone_is_written_again(teacher, tmp_path, capsys):
    path = tmp_path / "store.jsonl"
    done = complete(teacher, PROMPTS, SETTINGS, store=CompletionStore(path), progress=False)
    assert capsys.readouterr().out == ""
    lines = path.read_bytes().splitlines(keepends=True)
    place = lines[1].index(b"[") + 1  # the first digit of a token
    lines[1] = lines[1][:place] + bytes([lines[1][place] ^ 1]) + lines[1][place + 1 :]
    path.write_bytes(b"".join(lines))
    for asked in (1, 0):  # the line stays where it is, and is ignored
        teacher.asked.clear()
        assert complete(teacher, PROMPTS, SETTINGS, store=CompletionStore(path), progress=False) == done
        assert sum(map(len, teacher.asked)) == asked
        said = f"{path}: line 2 is damaged and ignored; what is missing is made again.\n"
        assert capsys.readouterr().out == (said if asked else "")


def test_other_generation_settings_write_other_completions(teacher, tmp_path):
    path = tmp_path / "store.jsonl"
    complete(teacher, PROMPTS, SETTINGS, store=CompletionStore(path), progress=False)
    teacher.asked.clear()
    longer = GenerationSettings(max_new_tokens=6, batch_size=2)
    complete(teacher, PROMPTS, longer, store=CompletionStore(path), progress=False)
    assert sum(map(len, teacher.asked)) == 4


def test_equal_prompts_get_different_samples(teacher):
    drawn = GenerationSettings(max_new_tokens=8, do_sample=True, batch_size=8)
    done = complete(teacher, [[5, 6]] * 6, drawn, progress=False)
    assert len({c.ids for c in done}) > 1
    assert done == complete(teacher, [[5, 6]] * 6, drawn, progress=False)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_equal_prompts_get_different_samples_in_different_batches(batch_size, teacher):
    drawn = GenerationSettings(max_new_tokens=8, do_sample=True, batch_size=batch_size)
    done = complete(teacher, [[5, 6]] * 6, drawn, progress=False)
    assert len({c.ids for c in done}) == 6


def test_interrupted_sampling_resumes_with_the_same_samples(teacher, tmp_path):
    path, drawn = tmp_path / "store.jsonl", GenerationSettings(max_new_tokens=8, do_sample=True, batch_size=2)
    whole = complete(teacher, PROMPTS, drawn, store=CompletionStore(path), progress=False)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]))
    teacher.asked.clear()
    assert complete(teacher, PROMPTS, drawn, store=CompletionStore(path), progress=False) == whole
    assert sum(map(len, teacher.asked)) == 3


def test_another_seed_gives_other_samples(teacher):
    one, two = (GenerationSettings(max_new_tokens=8, do_sample=True, seed=seed) for seed in (1, 2))
    assert complete(teacher, PROMPTS, one, progress=False) != complete(teacher, PROMPTS, two, progress=False)


def test_two_loaded_models_share_no_completion(tiny_teacher_dir, tmp_path):
    tokenizer, store = AutoTokenizer.from_pretrained(tiny_teacher_dir), CompletionStore(tmp_path / "store.jsonl")
    one = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    other = copy.deepcopy(one)
    with torch.no_grad():
        other.lm_head.weight.copy_(one.lm_head.weight.flip(0))
    for model in (one, other):
        fresh = complete(load_teacher(model, tokenizer=tokenizer), PROMPTS, SETTINGS, progress=False)
        assert (
            complete(load_teacher(model, tokenizer=tokenizer), PROMPTS, SETTINGS, store=store, progress=False) == fresh
        )
    assert len(store) == 8


def test_a_teacher_that_was_moved_is_asked_nothing_again(tiny_teacher_dir, tmp_path):
    path, moved = tmp_path / "store.jsonl", tmp_path / "moved"
    done = complete(load_teacher(str(tiny_teacher_dir)), PROMPTS, SETTINGS, store=CompletionStore(path), progress=False)
    teacher = Counting(load_teacher(str(shutil.copytree(tiny_teacher_dir, moved))))
    assert complete(teacher, PROMPTS, SETTINGS, store=CompletionStore(path), progress=False) == done
    assert not teacher.asked


def test_progress_is_shown_while_it_writes(teacher, capsys):
    complete(teacher, PROMPTS, SETTINGS)
    assert "Teacher generates completions" in capsys.readouterr().err
