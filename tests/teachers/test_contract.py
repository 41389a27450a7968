"""What every teacher must do; a new kind of teacher is added to `TEACHERS` and nothing else."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill.collator import DistillationCollator
from trl_distill.losses import head_logits
from trl_distill.teachers import GenerationSettings, Teacher, load_teacher

ROWS = [
    {"student_prompt": [5], "teacher_prompt": [5, 6, 7, 8], "completion": [10, 11, 12]},
    {"student_prompt": [6], "teacher_prompt": [9], "completion": [13]},
]
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
GREEDY = GenerationSettings(max_new_tokens=5)
DRAWN = GenerationSettings(max_new_tokens=5, do_sample=True, seed=3)


def from_folder(folder):
    return load_teacher(str(folder))


def from_loaded_model(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    return load_teacher(model, tokenizer=AutoTokenizer.from_pretrained(folder))


TEACHERS = [from_folder, from_loaded_model]


@pytest.fixture(params=TEACHERS)
def teacher(request, tiny_teacher_dir):
    return request.param(tiny_teacher_dir)


def test_it_is_a_teacher(teacher):
    assert isinstance(teacher, Teacher)
    assert teacher.vocabulary_rows >= len(teacher.tokenizer)
    assert teacher.tokenizer.eos_token_id in teacher.stop_ids


def test_its_identity_is_its_content(request, teacher, tiny_teacher_dir, tmp_path):
    again = request.node.callspec.params["teacher"](shutil.copytree(tiny_teacher_dir, tmp_path / "copy"))
    assert again.identity() == teacher.identity()
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    with torch.no_grad():
        model.model.norm.weight[3] += 0.01
    model.save_pretrained(tmp_path / "copy")
    other = request.node.callspec.params["teacher"](tmp_path / "copy")
    assert other.identity() != teacher.identity()


def test_its_identity_tells_the_shared_vocabulary(teacher):
    before = teacher.identity()
    teacher.share(20)
    assert teacher.identity() != before


def test_nothing_is_written_that_is_not_shared(teacher):
    teacher.share(20)
    for settings in (GREEDY, DRAWN):
        assert all(i < 20 for c in teacher.generate(PROMPTS, settings) for i in c.ids)
    assert teacher.score(DistillationCollator(pad_token_id=0)(ROWS)).vocabulary == 20


def test_scores_are_the_hidden_states_that_predict_the_completions(teacher, tiny_teacher_dir):
    batch = DistillationCollator(pad_token_id=0)(ROWS)
    targets = teacher.score(batch)
    assert targets.hidden.shape[0] == 4
    assert not targets.hidden.requires_grad
    assert targets.hidden.grad_fn is None
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir).eval()
    ids = torch.tensor([[5, 6, 7, 8, 10, 11, 12]])
    expected = model(ids).logits[0, 3:6]
    found = head_logits(targets.hidden[:3], targets.head.weight, targets.head.bias)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_padding_changes_no_score(teacher):
    alone = teacher.score(DistillationCollator(pad_token_id=0)(ROWS[1:])).hidden
    together = teacher.score(DistillationCollator(pad_token_id=0)(ROWS)).hidden
    assert (together[3:] - alone).norm() <= 1e-5 * alone.norm()


def test_a_greedy_completion_does_not_depend_on_its_batch(teacher):
    together = teacher.generate(PROMPTS, GREEDY)
    assert [teacher.generate([prompt], GREEDY)[0] for prompt in PROMPTS] == together
    assert all(0 < len(c.ids) <= 5 for c in together)


def test_drawing_is_repeatable_and_leaves_the_random_state_alone(teacher):
    before = torch.random.get_rng_state()
    first = teacher.generate(PROMPTS, DRAWN)
    assert torch.equal(before, torch.random.get_rng_state())
    assert teacher.generate(PROMPTS, DRAWN) == first
    other = GenerationSettings(max_new_tokens=5, do_sample=True, seed=4)
    assert teacher.generate(PROMPTS, other) != first


def test_only_a_finished_completion_ends_in_a_stop_token(teacher):
    stops = teacher.stop_ids
    for completion in teacher.generate(PROMPTS, DRAWN):
        assert completion.finished == (completion.ids[-1] in stops)
        assert not {*stops} & {*completion.ids[:-1]}
