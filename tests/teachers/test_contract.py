"""What every teacher must do; a new kind of teacher is added to the lists in `kinds.py` and nothing else.

All teachers say who they are. Those that score give targets for a batch, those that write take token ids, and those
that give text take text.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from teachers.kinds import ALL, ROWS, SCORING, TEXT, WHOLE, WRITING, from_folder, from_loaded_model
from transformers import AutoModelForCausalLM

from trl_distill.data.collator import DistillationCollator
from trl_distill.errors import TeacherError
from trl_distill.losses.lm_head import LMHead, ModelSide
from trl_distill.losses.signals import DenseSignal, LossSettings
from trl_distill.models.generation import GenerationSettings
from trl_distill.teachers.base import Teacher, TextTeacher
from trl_distill.teachers.completions.store import CompletionStore

pytestmark = pytest.mark.usefixtures("device")

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
TEXTS = ["why is the sky blue", "a red cat", "a dog and a house near the tall tree"]
GREEDY = GenerationSettings(max_new_tokens=5, batch_size=2)
DRAWN = GenerationSettings(max_new_tokens=5, do_sample=True, seed=3)
SETTINGS = LossSettings(alpha=0.7, temperature=2.0)


def made(kinds):
    """Return a fixture of teachers of these kinds."""

    @pytest.fixture(params=kinds, ids=lambda make: make.__name__)
    def teacher(request, tiny_teacher_dir, tmp_path):
        return request.param(tiny_teacher_dir, tmp_path, request)

    return teacher


anyone, scorer, whole, writer, author = (made(kinds) for kinds in (ALL, SCORING, WHOLE, WRITING, TEXT))


def collate(*numbers):
    rows = ROWS if not numbers else [ROWS[i] for i in numbers]
    return DistillationCollator(pad_token_id=0)(rows)


def labels_of(batch):
    shifted = batch["labels"][:, 1:]
    return shifted[shifted != -100]


# -- all


def test_every_teacher_has_the_teacher_protocol(anyone):
    assert isinstance(anyone, Teacher)
    assert anyone.vocabulary_rows >= len(anyone.tokenizer)
    assert anyone.tokenizer.eos_token_id in anyone.stop_ids
    assert anyone.name


def test_a_teachers_identity_is_plain_data_and_constant(anyone):
    identity = anyone.identity()
    assert json.loads(json.dumps(identity)) == json.loads(json.dumps(anyone.identity()))
    anyone.restrict_vocabulary(anyone.vocabulary_rows)
    assert isinstance(identity, dict)


def test_what_it_can_do_agrees_with_what_it_does(anyone):
    can = anyone.capabilities
    assert (can.reads == "text") == isinstance(anyone, TextTeacher)
    if can.reads == "ids" and can.writes:
        assert anyone.generate(PROMPTS[:1], GREEDY)[0].ids
    elif can.reads == "ids":
        with pytest.raises(TeacherError, match="no completion for a prompt"):
            anyone.generate(PROMPTS[:1], GREEDY)
    if can.scores:
        assert can.dense == isinstance(anyone.score(collate()), DenseSignal)


# -- those that score


def student_of(teacher, tokens):
    """Return hidden states [N, 8] and the head of a student with the teacher's vocabulary, in float64."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(teacher.vocabulary_rows, 8, generator=generator, dtype=torch.float64).requires_grad_()
    hidden = torch.randn(tokens, 8, generator=generator, dtype=torch.float64).requires_grad_()
    return ModelSide(hidden, LMHead(weight))


def test_a_teachers_targets_are_those_of_the_completion_tokens(scorer):
    batch = collate()
    before = torch.random.get_rng_state()
    targets = scorer.score(batch)
    assert torch.equal(before, torch.random.get_rng_state())
    assert targets.tokens == 6
    student = student_of(scorer, 6)
    out = targets.loss(student, labels_of(batch), SETTINGS)
    out.loss.backward()
    assert out.kl.shape == (6,)
    assert student.head.weight.grad.norm() > 0
    assert student.hidden.grad.norm() > 0
    with torch.no_grad():
        expected = targets.loss(student, labels_of(batch), LossSettings(1.0, 2.0)).kl.sum()
    assert out.kl.detach().sum() == pytest.approx(expected.item())


def test_no_gradient_reaches_a_teacher(scorer):
    targets = scorer.score(collate())
    tensors = [value for value in vars(targets).values() if isinstance(value, torch.Tensor)]
    assert all(tensor.grad_fn is None and not tensor.requires_grad for tensor in tensors)


def test_padding_and_order_do_not_change_a_teachers_targets(scorer):
    together, places = collate(), [slice(0, 3), slice(3, 4), slice(4, 6)]
    student = student_of(scorer, 6)
    with torch.no_grad():
        whole = scorer.score(together).loss(student, labels_of(together), SETTINGS).kl
        for i, place in enumerate(places):
            alone = collate(i)
            kl = scorer.score(alone).loss(student.at(place), labels_of(alone), SETTINGS).kl
            assert (kl - whole[place]).norm() <= 1e-5 * whole[place].norm()
        turned = collate(2, 0, 1)
        order = torch.tensor([4, 5, 0, 1, 2, 3])
        kl = scorer.score(turned).loss(student.at(order), labels_of(turned), SETTINGS).kl
    assert (kl - whole[order]).norm() <= 1e-5 * whole.norm()


def test_a_teachers_hidden_states_are_those_that_predict_the_completions(whole, tiny_teacher_dir):
    targets = whole.score(collate())
    assert isinstance(targets, DenseSignal)
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir).eval()
    expected = model(torch.tensor([[5, 6, 7, 8, 10, 11, 12]])).logits[0, 3:6]
    found = LMHead(targets.head.weight, targets.head.bias).logits(targets.hidden[:3]).cpu()
    assert (found - expected).norm() <= 1e-5 * expected.norm()


# -- those that write token ids


@pytest.mark.parametrize("make", [from_folder, from_loaded_model], ids=lambda make: make.__name__)
def test_a_teachers_identity_depends_on_its_content_only(make, request, tiny_teacher_dir, tmp_path):
    first = make(tiny_teacher_dir, tmp_path, request)
    again = make(shutil.copytree(tiny_teacher_dir, tmp_path / "copy"), tmp_path, request)
    assert again.identity() == first.identity()
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    with torch.no_grad():
        model.model.norm.weight[3] += 0.01
    model.save_pretrained(tmp_path / "copy")
    assert make(tmp_path / "copy", tmp_path, request).identity() != first.identity()


def test_a_teachers_identity_includes_the_shared_vocabulary(writer):
    before = writer.identity()
    writer.restrict_vocabulary(20)
    assert writer.identity() != before


def test_a_teacher_generates_shared_tokens_only(writer):
    writer.restrict_vocabulary(20)
    for settings in (GREEDY, DRAWN):
        assert all(i < 20 for c in writer.generate(PROMPTS, settings) for i in c.ids)
    assert writer.score(collate()).vocabulary == 20


def test_a_greedy_completion_does_not_depend_on_its_batch(writer):
    together = writer.generate(PROMPTS, GREEDY)
    assert [writer.generate([prompt], GREEDY)[0] for prompt in PROMPTS] == together
    assert all(0 < len(c.ids) <= 5 for c in together)


def test_a_teachers_sampling_is_repeatable_and_leaves_the_random_state(writer):
    before = torch.random.get_rng_state()
    first = writer.generate(PROMPTS, DRAWN)
    assert torch.equal(before, torch.random.get_rng_state())
    assert writer.generate(PROMPTS, DRAWN) == first
    other = GenerationSettings(max_new_tokens=5, do_sample=True, seed=4)
    assert writer.generate(PROMPTS, other) != first


def test_only_a_finished_completion_ends_in_a_stop_token(writer):
    stops = writer.stop_ids
    for completion in writer.generate(PROMPTS, DRAWN):
        assert completion.finished == (completion.ids[-1] in stops)
        assert not {*stops} & {*completion.ids[:-1]}


# -- those that give text


def test_a_text_teacher_reads_and_gives_text(author):
    assert isinstance(author, TextTeacher)
    assert author.name in author.describe() or author.identity()["model"] in author.describe()
    for completion in author.write(TEXTS, GREEDY, progress=False):
        assert isinstance(completion.text, str)
        assert completion.ids == ()


def test_a_greedy_text_does_not_depend_on_its_batch(author):
    together = author.write(TEXTS, GREEDY, progress=False)
    assert [author.write([text], GREEDY, progress=False)[0] for text in TEXTS] == together


def test_stored_completions_are_not_generated_again(author, tmp_path):
    first = author.write(TEXTS, GREEDY, store=CompletionStore(tmp_path / "kept.jsonl"), progress=False)
    lines = (tmp_path / "kept.jsonl").read_text()
    again = author.write(TEXTS, GREEDY, store=CompletionStore(tmp_path / "kept.jsonl"), progress=False)
    assert again == first
    assert (tmp_path / "kept.jsonl").read_text() == lines


def test_a_text_teacher_refuses_to_score(author):
    with pytest.raises(TeacherError, match="text"):
        author.score(collate())
    with pytest.raises(TeacherError, match="text"):
        author.generate(PROMPTS, GREEDY)
