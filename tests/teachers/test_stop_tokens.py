"""Where a student ends: it is trained, saved, loaded with plain transformers, and must stop where its teacher would."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import make_model
from data.test_cross_tokenizer import make_other
from datasets import Dataset
from forms import QUICK
from peft import LoraConfig
from tokenizing import byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from trl import SFTConfig, SFTTrainer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams
from trl_distill.embedded import embedded_path
from trl_distill.models.loading import ModelSource
from trl_distill.runs.api import run
from trl_distill.teachers.target_store.folder import TargetFolder

PROMPTS = ["a b", "c", "d e f", "g h"]
COMPLETIONS = [" c d", " e f g", " b", " h a"]
CHAT = [{"role": "system", "content": "Go on."}, {"role": "user", "content": "{input}"}]
END = "<|im_end|>"


@pytest.fixture(scope="module")
def chat_teacher(tmp_path_factory):
    """A model that answers the four prompts as a chat and ends its turn, by TRL's own SFT; its eos is another token."""
    folder = make_model(tmp_path_factory.mktemp("models") / "chat_teacher", hidden=48, chat=True)
    rows = [
        {"prompt": [*CHAT[:1], {"role": "user", "content": p}], "completion": [{"role": "assistant", "content": c}]}
        for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder), SFTConfig(str(folder / "run"), max_steps=60, **QUICK),
        train_dataset=Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(folder))
    return folder


def data():
    """Rows whose completions are the data's: text, which ends in the end of a sequence."""
    return Dataset.from_dict({"prompt": PROMPTS, "completion": COMPLETIONS})


def stops_of(folder):
    stops = GenerationConfig.from_pretrained(folder).eos_token_id
    return stops if isinstance(stops, list) else [stops]


def written(folder, *, room=20):
    """Return what the saved student writes for each prompt, as plain transformers loads and asks it."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=room, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        found.append(ids.tolist())
    return found


def trained(student, teacher, folder, *, steps=60, alpha=0.9, peft=None, **settings):
    """Return a trainer that has learned from a chat under a text prompt, and its saved folder."""
    args = DistillationSFTConfig(
        str(folder / "run"), use_distillation=True, teacher_model=str(teacher), distill_alpha=alpha,
        distill_temperature=1.0, max_steps=steps, teacher_prompt_template=CHAT, **{**QUICK, **settings},
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(student), args, train_dataset=data(), peft_config=peft,
        processing_class=AutoTokenizer.from_pretrained(student),
    )  # fmt: skip
    if steps:
        trainer.train()
    trainer.save_model(str(folder / "saved"))
    return folder / "saved"


def test_a_text_student_of_a_chat_teacher_stops_where_the_teacher_does(tiny_model_dir, chat_teacher, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    eos, end = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END)
    saved = trained(tiny_model_dir, chat_teacher, tmp_path)
    assert stops_of(saved) == [eos, end]
    found = written(saved)
    assert [tokenizer.decode(ids[:-1]) for ids in found] == COMPLETIONS
    assert {ids[-1] for ids in found} == {end}  # it has learned the teacher's end, and ends there
    without = AutoModelForCausalLM.from_pretrained(saved)
    without.generation_config.eos_token_id = eos
    without.save_pretrained(tmp_path / "without")
    tokenizer.save_pretrained(tmp_path / "without")
    assert all(ids[-1] not in (eos, end) or ids.count(end) > 1 for ids in written(tmp_path / "without"))


def ids_of(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END)


@pytest.mark.parametrize(
    ("settings", "learns"),
    [
        ({"alpha": 0.0}, False), ({"alpha": 0.01}, True), ({"alpha": 0.0, "distill_alpha_end": 0.5}, True),
        ({"alpha": 0.0, "distill_on_policy_fraction": 0.5}, True),
    ],
)  # fmt: skip
def test_the_teachers_end_is_learned_only_with_its_distribution(
    settings, learns, tiny_model_dir, chat_teacher, tmp_path
):
    eos, end = ids_of(tiny_model_dir)
    saved = trained(tiny_model_dir, chat_teacher, tmp_path, steps=0, **settings)
    assert stops_of(saved) == ([eos, end] if learns else [eos])


@pytest.mark.parametrize("kind", ["topk", "sample", "hidden"])
def test_the_teachers_end_is_learned_from_stores_with_and_without_stop_ids(
    kind, tiny_model_dir, chat_teacher, tmp_path
):
    eos, end = ids_of(tiny_model_dir)
    store = tmp_path / "store"
    how = {"teacher_store": str(store), "teacher_store_kind": kind, "steps": 0}
    assert stops_of(trained(tiny_model_dir, chat_teacher, tmp_path / "new", **how)) == [eos, end]
    folder = TargetFolder(store)
    manifest = json.loads((store / "manifest.json").read_text())
    del manifest["stop_ids"]
    folder.write_manifest(manifest)
    assert stops_of(trained(tiny_model_dir, chat_teacher, tmp_path / "old", **how)) == [eos, end]


@pytest.mark.parametrize("teacher", ["self", "ema"])
def test_a_student_that_teaches_itself_ends_its_turn(teacher, chat_teacher, tmp_path):
    eos, end = ids_of(chat_teacher)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    saved = trained(chat_teacher, teacher, tmp_path, steps=0, peft=lora)
    assert stops_of(saved) == [eos, end]  # beside the adapter, since PEFT leaves it out


def test_several_teachers_add_the_ends_of_all_and_none_that_the_student_lacks(tiny_model_dir, chat_teacher, tmp_path):
    eos, end = ids_of(tiny_model_dir)
    wider = make_model(tmp_path / "wider", hidden=16, extra_rows=8)
    model = AutoModelForCausalLM.from_pretrained(wider)
    model.generation_config.eos_token_id = [20, model.config.vocab_size - 1]  # the last is no row of the student's
    model.save_pretrained(wider)
    listed = [{"model": str(chat_teacher), "template": CHAT}, {"model": str(wider)}]
    args = DistillationSFTConfig(
        str(tmp_path / "run"), use_distillation=True, teacher_config=listed, max_steps=1, **QUICK
    )
    trainer = DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir), args, train_dataset=data(),
        processing_class=AutoTokenizer.from_pretrained(tiny_model_dir),
    )  # fmt: skip
    assert trainer.model.generation_config.eos_token_id == [eos, end, 20]


def test_across_tokenizers_the_end_is_the_students_own_token(chat_model_dir, tmp_path):
    student = make_other(tmp_path / "other", byte_level())
    tokenizer = AutoTokenizer.from_pretrained(student)
    trainer = DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(student),
        DistillationSFTConfig(
            str(tmp_path / "run"), use_distillation=True, teacher_model=str(chat_model_dir), cross_tokenizer=True,
            **QUICK,
        ),
        train_dataset=data(), processing_class=tokenizer,
    )  # fmt: skip
    assert trainer.teacher.stop_ids == [*ids_of(chat_model_dir)]
    assert trainer.teacher.student_stop_ids == [tokenizer.eos_token_id]
    assert trainer.model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("merge", [False, True])
def test_a_run_saves_the_stop_tokens_with_an_adapter_and_a_merged_model(merge, tiny_model_dir, chat_teacher, tmp_path):
    eos, end = ids_of(tiny_model_dir)
    data().to_json(tmp_path / "rows.jsonl")
    params = LLMTrainingParams(
        model=str(tiny_model_dir), teacher_model=str(chat_teacher), data_path=str(tmp_path / "rows.jsonl"),
        text_column="prompt", project_name=str(tmp_path / "run"), peft=True, merge_adapter=merge, max_steps=1,
        teacher_prompt_template=CHAT,
    )  # fmt: skip
    result = run(params)
    assert stops_of(tmp_path / "run") == [eos, end]
    base = result.model if merge else result.model.get_base_model()
    assert base.generation_config.eos_token_id == [eos, end]
    again = ModelSource(str(tmp_path / "run")).load_model()  # as a next stage's student
    assert again.generation_config.eos_token_id == [eos, end]


def test_a_servers_distribution_brings_the_ends_of_the_students_own_tokenizer(server, tmp_path):
    server.give("prompt")
    args = DistillationSFTConfig(
        str(tmp_path / "run"), use_distillation=True, teacher_model=server.teacher, distill_temperature=1.0,
        teacher_logprobs="prompt", teacher_endpoint="completions", **QUICK,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(embedded_path())
    rows = Dataset.from_dict({"prompt": ["red cat\n"], "completion": ["cat red"]})
    trainer = DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(embedded_path()), args, train_dataset=rows, processing_class=tokenizer
    )
    stops = trainer.model.generation_config.eos_token_id
    assert trainer.distiller.learns_distribution
    assert {*trainer.teacher.stop_ids} <= {*(stops if isinstance(stops, list) else [stops])}
