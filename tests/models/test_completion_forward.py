"""A model that was taught to end at the completion is its own model still: called, copied and given back as before."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM

from trl_distill.losses.signals import DenseSignal, LossSettings, TopKSignal
from trl_distill.models.completion_forward import add_completion_forward, completion_view, restore_forward
from trl_distill.models.lm_head import lm_head_of

IDS = torch.tensor([[5, 6, 7, 8]])
LABELS = torch.tensor([[-100, -100, 7, 8]])


def test_the_forward_without_labels_equals_the_models_own(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    before = model(IDS, labels=IDS)
    written = model.generate(IDS, max_new_tokens=3, do_sample=False)
    add_completion_forward(model)
    after = model(IDS, labels=IDS)
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.loss, before.loss)
    assert torch.equal(model.generate(IDS, max_new_tokens=3, do_sample=False), written)


def test_a_copied_model_computes_with_its_own_weights(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    add_completion_forward(model)
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        torch.nn.init.zeros_(parameter)
    assert twin(IDS).logits.abs().max() == 0
    assert twin(input_ids=IDS, completion_labels=LABELS).hidden.abs().max() == 0
    assert model(IDS).logits.abs().max() > 0


def test_the_completion_forward_is_added_once_and_removed(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    plain = model(IDS).logits
    for _ in range(2):
        add_completion_forward(model)
    assert model(input_ids=IDS, completion_labels=LABELS).hidden.shape == (2, 32)
    restore_forward(model)
    restore_forward(model)
    assert "forward" not in vars(model)
    assert torch.equal(pickle.loads(pickle.dumps(model))(IDS).logits, plain)


def test_a_forward_that_was_hooked_before_stays_hooked(tiny_model_dir):
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Counting(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            Counting.calls += 1
            return args, kwargs

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    add_hook_to_module(model, Counting())
    add_completion_forward(model)
    model(IDS)
    restore_forward(model)
    model(IDS)
    assert Counting.calls == 2


@pytest.mark.parametrize("extended", [False, True])
def test_a_view_reads_with_the_models_weights_and_leaves_the_model_as_it_is(extended, tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    plain = model(IDS).logits
    if extended:
        add_completion_forward(model)
    before = dict(vars(model))
    view = completion_view(model)
    hidden = view(input_ids=IDS, completion_labels=LABELS).hidden
    torch.testing.assert_close(hidden @ model.lm_head.weight.T, plain[0, 1:3])
    assert torch.equal(view(IDS).logits, plain)
    assert isinstance(view, type(model))
    assert vars(model) == before
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert view(IDS).logits.abs().max() == 0
    if not extended:
        assert torch.equal(pickle.loads(pickle.dumps(model))(IDS).logits, model(IDS).logits)


def test_a_view_frees_the_weights_with_its_last_reference(tiny_model_dir):
    view = completion_view(AutoModelForCausalLM.from_pretrained(tiny_model_dir))
    weight = weakref.ref(view.lm_head.weight)
    gc.disable()
    try:
        del view
        assert weight() is None
    finally:
        gc.enable()


def topk_of_all(model, *, k, temperature):
    """Return a model's targets for the two labelled tokens, its hidden states and both as the loss takes them."""
    add_completion_forward(model)
    hidden = model(input_ids=IDS, completion_labels=LABELS).hidden.detach()
    head = lm_head_of(model)
    log_p = (hidden @ head.weight.detach().T).log_softmax(-1)
    top = log_p.topk(k)
    normalizers = {temperature: torch.logsumexp(log_p / temperature, -1)}
    return DenseSignal(hidden, head), TopKSignal(top.indices, top.values, normalizers, log_p.shape[1])


def test_stored_targets_of_every_token_give_the_teachers_own_loss(tiny_model_dir, tiny_teacher_dir):
    teacher = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    teacher.resize_token_embeddings(286)
    full, stored = topk_of_all(teacher, k=286, temperature=2.0)
    student = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    student.resize_token_embeddings(286)
    add_completion_forward(student)
    settings = LossSettings(alpha=0.6, temperature=2.0)
    for field in ("loss", "kl", "ce", "top1_agreement"):
        outs = [
            student(input_ids=IDS, completion_labels=LABELS, teacher_signal=targets, loss_settings=settings)[field]
            for targets in (full, stored)
        ]
        torch.testing.assert_close(*outs)


def test_stored_targets_at_another_temperature_are_refused(tiny_model_dir):
    student = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    _, stored = topk_of_all(student, k=4, temperature=2.0)
    with pytest.raises(ValueError, match=r"temperature 3 is not among those of the stored targets \(2\)"):
        student(
            input_ids=IDS, completion_labels=LABELS, teacher_signal=stored, loss_settings=LossSettings(0.5, 3.0)
        )  # fmt: skip
