"""The local teacher: frozen, in evaluation mode, and refused with a sentence if it cannot teach."""

from __future__ import annotations

import copy
import logging
import shutil
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import make_model_that_writes
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
)

from trl_distill.data.collator import DistillationCollator
from trl_distill.errors import TeacherError
from trl_distill.losses import LMHead
from trl_distill.models.generation import GenerationSettings, cut_at_stop
from trl_distill.prompts.chat_template import ChatTemplate
from trl_distill.teachers.loading import load_teacher
from trl_distill.teachers.local.teacher import LocalTeacher

BATCH = DistillationCollator(pad_token_id=0)(
    [{"student_prompt": [5], "teacher_prompt": [5, 6], "completion": [7, 8]}],
)


def row_by_row(module, query, key, value, attention_mask, **more):
    """Attend within each row of one sequence, by its bounds, as kernels of variable length do."""
    bounds, found = more.get("cu_seq_lens_q"), []
    assert attention_mask is None
    assert len(query) == 1
    assert bounds is not None
    for start, end in pairwise(bounds.tolist()):
        rows = (states[:, :, start:end] for states in (query, key, value))
        found.append(F.scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=True))
    return torch.cat(found, 2).transpose(1, 2), None


def test_rows_are_read_without_padding_by_an_attention_that_takes_them_so(tiny_teacher_dir):
    AttentionInterface.register("flash_on_a_cpu", row_by_row)
    rows = [
        {"student_prompt": [5], "teacher_prompt": [5, 6, *range(30, 30 + n)], "completion": [7, 8 + n]}
        for n in (1, 9, 4)
    ]
    batch = DistillationCollator(pad_token_id=0)(rows)
    padded, flat = (load_teacher(str(tiny_teacher_dir)) for _ in range(2))
    flat.check_logits()  # by a row alone, which comes without bounds
    flat.model.config._attn_implementation = "flash_on_a_cpu"
    shapes = []
    flat.model.base_model.register_forward_pre_hook(
        lambda _, args, more: shapes.append(tuple(more["input_ids"].shape)), with_kwargs=True
    )
    torch.testing.assert_close(flat.score(batch).hidden, padded.score(batch).hidden, rtol=1e-5, atol=1e-5)
    assert shapes[-1] == (1, 5 + 13 + 8)


def test_no_weight_is_read_before_it_is_needed(tiny_teacher_dir, monkeypatch):
    loads = []
    teacher = load_teacher(str(tiny_teacher_dir))
    read = teacher.weights.model
    monkeypatch.setattr(teacher.weights, "model", lambda: loads.append(1) or read())
    assert teacher.vocabulary_rows > 0
    assert teacher.length_limit > 0
    assert not loads
    teacher.generate([[5]], GenerationSettings(max_new_tokens=1))
    teacher.generate([[5]], GenerationSettings(max_new_tokens=1))
    assert loads == [1]


def test_a_local_teacher_is_frozen_and_in_evaluation_mode(tiny_teacher_dir):
    model = load_teacher(str(tiny_teacher_dir)).model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_an_encoder_is_refused(tmp_path):
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match=r"\(bert\) is not a causal language model.*decoder-only"):
        load_teacher(str(tmp_path))


def test_a_missing_folder_is_named_with_its_neighbours(tiny_teacher_dir):
    wrong = str(tiny_teacher_dir) + "x"
    with pytest.raises(TeacherError, match="is not a folder"):
        load_teacher(wrong)


def test_an_unavailable_hub_model_is_a_one_sentence_error():
    with pytest.raises(TeacherError, match="teacher_model 'nobody/nothing': no configuration could be loaded") as error:
        load_teacher("nobody/nothing")
    assert "\n" not in str(error.value)


def test_several_stop_tokens_end_a_completion(tiny_teacher_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher_dir)
    model.generation_config.eos_token_id = [7, tokenizer.eos_token_id]
    stops = ChatTemplate(tokenizer).stop_ids(model.generation_config)
    assert set(stops) == {7, tokenizer.eos_token_id}
    assert cut_at_stop([4, 7, 5], stops).ids == (4, 7)
    assert not cut_at_stop([4, 5], stops).finished


def test_generation_stays_within_the_models_length(tiny_teacher_dir):
    teacher = load_teacher(str(tiny_teacher_dir))
    prompt = [5] * (teacher.length_limit - 2)
    written = teacher.generate([prompt], GenerationSettings(max_new_tokens=50))
    assert len(written[0].ids) <= 2


def test_scoring_keeps_no_graph(tiny_teacher_dir):
    teacher = load_teacher(str(tiny_teacher_dir))
    targets = teacher.score(BATCH)
    assert isinstance(teacher, LocalTeacher)
    assert targets.hidden.grad_fn is None
    assert targets.hidden.dtype == torch.float32


def loaded(folder, model=None):
    """Return a model and the teacher that uses it."""
    model = AutoModelForCausalLM.from_pretrained(folder) if model is None else model
    return model, load_teacher(model, tokenizer=AutoTokenizer.from_pretrained(folder))


def test_a_chat_teacher_stops_at_the_end_of_its_turn(tmp_path):
    end = 3
    teacher = load_teacher(str(make_model_that_writes(tmp_path, end, chat=True)))
    assert teacher.tokenizer.convert_ids_to_tokens(end) == "<|im_end|>"
    assert teacher.tokenizer.eos_token_id != end
    (written,) = teacher.generate([[5, 6]], GenerationSettings(max_new_tokens=6))
    assert written.ids == (end,)
    assert written.finished


def test_a_callers_model_is_restored_after_use(tiny_teacher_dir):
    model, teacher = loaded(tiny_teacher_dir)
    model.train()
    model.model.layers[0].eval()
    model.model.norm.weight.requires_grad_(False)
    before = ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])
    config = copy.deepcopy(model.generation_config.to_dict())
    teacher.restrict_vocabulary(100)
    teacher.generate([[5, 6]], GenerationSettings(max_new_tokens=3, do_sample=True))
    teacher.score(BATCH)
    assert ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]) == before
    assert model.generation_config.to_dict() == config


def test_a_callers_model_scores_and_generates_in_evaluation_mode(tiny_teacher_dir):
    model, teacher = loaded(tiny_teacher_dir)
    calm, settings = teacher.score(BATCH).hidden, GenerationSettings(max_new_tokens=8)
    written = teacher.generate([[5, 6]], settings)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    model.train()
    assert torch.equal(teacher.score(BATCH).hidden, calm)
    assert teacher.generate([[5, 6]], settings) == written


def test_a_model_with_an_adapter_teaches_with_it(tiny_teacher_dir):
    _, plain = loaded(tiny_teacher_dir)
    without = plain.score(BATCH).hidden
    lora = LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False, lora_dropout=0.5)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_teacher_dir), lora)
    _, teacher = loaded(tiny_teacher_dir, adapted)
    teacher.generate([[5, 6]], GenerationSettings(max_new_tokens=2))
    targets = teacher.score(BATCH)
    assert not torch.equal(targets.hidden, without)
    expected = adapted.eval()(torch.tensor([[5, 6, 7, 8]])).logits[0, 1:3]
    found = LMHead(targets.head.weight, targets.head.bias).logits(targets.hidden)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_an_adapter_that_is_a_prompt_is_refused(tiny_teacher_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(TeacherError, match=r"PROMPT_TUNING.*give a model with a LoRA adapter"):
        loaded(tiny_teacher_dir, tuned)


def test_sharing_a_vocabulary_keeps_the_loaded_model(tiny_teacher_dir):
    teacher = load_teacher(str(tiny_teacher_dir))
    model = teacher.model
    for rows in (100, 100, 90):
        teacher.restrict_vocabulary(rows)
        assert teacher.model is model


OWN_WAYS = {
    "repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "max_length": 3, "min_new_tokens": 6, "bad_words_ids": [[9]],
    "begin_suppress_tokens": [5], "forced_eos_token_id": 1, "exponential_decay_length_penalty": (1, 9.0),
}  # fmt: skip


@pytest.mark.parametrize("load", [lambda folder: loaded(folder)[1], lambda folder: load_teacher(str(folder))])
def test_the_models_own_penalties_and_limits_change_nothing_that_is_written(load, tiny_teacher_dir, tmp_path, caplog):
    settings, prompts = GenerationSettings(max_new_tokens=12), [[5, 6], [7], [8, 9, 10]]
    plain = load_teacher(str(tiny_teacher_dir)).generate(prompts, settings)
    folder = shutil.copytree(tiny_teacher_dir, tmp_path / "own")
    model = AutoModelForCausalLM.from_pretrained(folder)
    for name, value in OWN_WAYS.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert load(folder).generate(prompts, settings) == plain
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


def test_everything_that_changes_a_completion_changes_the_identity(tiny_teacher_dir, tmp_path):
    settings = [{}, {"quantization": "int8"}, {"quantization": "int4"}, {"dtype": "bfloat16"}]
    identities = [load_teacher(str(tiny_teacher_dir), **more).identity() for more in settings]
    folder = shutil.copytree(tiny_teacher_dir, tmp_path / "stops")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = [1, 9]
    model.generation_config.save_pretrained(folder)
    stops = load_teacher(str(folder))
    assert 9 in stops.stop_ids
    identities.append(stops.identity())
    assert all(one != other for i, one in enumerate(identities) for other in identities[:i])
    assert load_teacher(str(tiny_teacher_dir)).identity() == identities[0]


def test_loading_changes_no_identity(tiny_teacher_dir):
    teacher = load_teacher(str(tiny_teacher_dir))
    before = teacher.identity()
    teacher.generate([[5]], GenerationSettings(max_new_tokens=1))
    assert teacher.identity() == before
