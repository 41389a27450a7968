"""The local teacher: frozen, in evaluation mode, and refused with a sentence where it cannot teach."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
)

from trl_distill.errors import TeacherError
from trl_distill.teachers import GenerationSettings, LocalTeacher, load_teacher
from trl_distill.teachers.local import cut_at_stop, stop_ids


def test_no_weight_is_read_before_it_is_needed(tiny_teacher_dir):
    loads = []
    teacher = load_teacher(str(tiny_teacher_dir))
    inner = teacher._load
    teacher._load = lambda: loads.append(1) or inner()
    assert teacher.vocabulary_rows > 0
    assert teacher.length_limit > 0
    assert not loads
    teacher.generate([[5]], GenerationSettings(max_new_tokens=1))
    teacher.generate([[5]], GenerationSettings(max_new_tokens=1))
    assert loads == [1]


def test_it_is_frozen_and_in_evaluation_mode(tiny_teacher_dir):
    model = load_teacher(str(tiny_teacher_dir)).model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_an_encoder_is_refused(tmp_path):
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match=r"\(bert\) is no causal language model.*decoder-only"):
        load_teacher(str(tmp_path))


def test_an_encoder_decoder_is_refused(tmp_path):
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1, vocab_size=32)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match="encoder-decoder"):
        load_teacher(str(tmp_path))


def test_a_missing_folder_is_named_with_its_neighbours(tiny_teacher_dir):
    wrong = str(tiny_teacher_dir) + "x"
    with pytest.raises(TeacherError, match="is no folder"):
        load_teacher(wrong)


def test_a_hub_name_that_cannot_be_had_is_one_sentence():
    with pytest.raises(TeacherError, match="teacher_model 'nobody/nothing': no configuration could be loaded") as error:
        load_teacher("nobody/nothing")
    assert "\n" not in str(error.value)


def test_several_stop_tokens_end_a_completion(tiny_teacher_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher_dir)
    model.generation_config.eos_token_id = [7, tokenizer.eos_token_id]
    stops = stop_ids(model, tokenizer)
    assert set(stops) == {7, tokenizer.eos_token_id}
    assert cut_at_stop([4, 7, 5], stops).ids == (4, 7)
    assert not cut_at_stop([4, 5], stops).finished


def test_generation_stays_within_the_models_length(tiny_teacher_dir):
    teacher = load_teacher(str(tiny_teacher_dir))
    prompt = [5] * (teacher.length_limit - 2)
    written = teacher.generate([prompt], GenerationSettings(max_new_tokens=50))
    assert len(written[0].ids) <= 2


def test_scoring_keeps_no_graph(tiny_teacher_dir):
    from trl_distill.collator import DistillationCollator

    teacher = load_teacher(str(tiny_teacher_dir))
    row = {"student_prompt": [5], "teacher_prompt": [5, 6], "completion": [7, 8]}
    targets = teacher.score(DistillationCollator(pad_token_id=0)([row]))
    assert isinstance(teacher, LocalTeacher)
    assert targets.hidden.grad_fn is None
    assert targets.hidden.dtype == torch.float32
