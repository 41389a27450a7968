"""What the trainer's constructor leaves behind when it fails, and what it refuses where nothing is distilled."""

from __future__ import annotations

import json
import re

import pytest
from datasets import Dataset, IterableDataset
from forms import settings
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, PromptDistillationTrainer, run
from trl_distill.errors import DataError, ModelError, ParamsError, TeacherError

PAIRS = [{"prompt": f"{a} b", "completion": f" {a}"} for a in "abcdefgh"]
DATA = Dataset.from_list(PAIRS)


class Writes(PromptDistillationTrainer):
    def generate_teacher_outputs(self, batch):
        return super().generate_teacher_outputs(batch)


def config(folder, teacher, **more):
    return DistillationSFTConfig(
        **settings(folder, teacher_prompt_template="g {input}", **more), use_distillation=True,
        teacher_model=None if teacher is None else str(teacher),
    )  # fmt: skip


@pytest.mark.parametrize("fault", ["data", "teacher", "evaluation", "subclass", "stream"])
def test_a_constructor_that_fails_leaves_the_configuration_as_it_was(fault, tiny_model_dir, tiny_teacher_dir, tmp_path):
    more = {"packing": True, "eval_packing": False} if fault != "stream" else {}
    data, error, kind, evaluation = DATA, DataError, DistillationSFTTrainer, None
    teacher = tmp_path if fault == "teacher" else tiny_teacher_dir
    if fault == "data":
        data = Dataset.from_list([{"other": "a"}])
        more |= {"dataset_kwargs": {"mine": 1}}
    elif fault == "teacher":
        error = TeacherError
    elif fault == "evaluation":
        evaluation = {"train": Dataset.from_list([{"other": "a"}])}
    elif fault == "subclass":
        kind, error = Writes, ParamsError
    else:
        data, evaluation = DATA.to_iterable_dataset(), IterableDataset.from_generator(lambda: iter(()))
    args = config(tmp_path, teacher, **more)
    before, dispatch = dict(vars(args)), args.accelerator_config.dispatch_batches
    with pytest.raises(error):
        kind(str(tiny_model_dir), args, train_dataset=data, eval_dataset=evaluation)
    assert vars(args) == before
    assert args.accelerator_config.dispatch_batches == dispatch
    if fault in ("teacher", "data"):  # the same object then works
        args.teacher_model = str(tiny_teacher_dir)
        assert DistillationSFTTrainer(str(tiny_model_dir), args, train_dataset=DATA).train_dataset


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"teacher_model": "t"},
            "teacher_model is 't', but use_distillation is False; set use_distillation=True, or drop",
        ),
        ({"distill_alpha": 0.2}, "distill_alpha is 0.2, but use_distillation is False"),
        ({"completion_column": "x"}, "completion_column is 'x', but use_distillation is False"),
    ],
)
def test_settings_of_distillation_without_it_are_refused(given, said, tiny_model_dir, tmp_path):
    args = DistillationSFTConfig(**settings(tmp_path), **given)
    with pytest.raises(ParamsError, match=said):
        DistillationSFTTrainer(str(tiny_model_dir), args, train_dataset=DATA)
    with pytest.raises(ParamsError, match="Writes is for distillation only; set use_distillation=True"):
        Writes(str(tiny_model_dir), args, train_dataset=DATA)


def test_settings_that_contradict_each_other_are_refused_also_if_they_were_set_later(tiny_model_dir, tmp_path):
    args = config(tmp_path, "somewhere")
    args.teacher_config = [{"model": "other", "template": "{input}"}]
    with pytest.raises(ParamsError, match="teacher_model is 'somewhere', which cannot be used with teacher_conf"):
        DistillationSFTTrainer(str(tiny_model_dir), args, train_dataset=DATA)


def test_values_outside_what_is_accepted_are_refused_also_if_they_were_set_later(tiny_model_dir, tmp_path):
    args = config(tmp_path, "somewhere")
    args.distill_temperature = -1
    with pytest.raises(ParamsError, match=r"distill_temperature is -1\.0; expected"):
        DistillationSFTTrainer(str(tiny_model_dir), args, train_dataset=DATA)


def test_a_student_that_is_no_language_model_is_refused_by_its_logits(tiny_model_dir, tiny_teacher_dir, tmp_path):
    model = AutoModel.from_pretrained(tiny_model_dir)
    args = config(tmp_path, str(tiny_teacher_dir))
    with pytest.raises(ModelError, match="LlamaModel gives no logits of a sequence"):
        DistillationSFTTrainer(
            model, args, train_dataset=DATA, processing_class=AutoTokenizer.from_pretrained(tiny_model_dir)
        )


SMALL_BERT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
SMALL_T5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: BertForMaskedLM(BertConfig(vocab_size=512, **SMALL_BERT)), r"\(bert\) is not .* but an encoder"),
        (lambda: T5ForConditionalGeneration(T5Config(vocab_size=512, **SMALL_T5)), r"is an encoder-decoder \(t5\)"),
    ],
    ids=["bert", "t5"],
)
def test_a_student_that_is_no_decoder_is_named(make, said, loaded, tiny_model_dir, tiny_teacher_dir, tmp_path):
    model, folder = make(), str(tmp_path / "model")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    with pytest.raises(ModelError, match=f"^model '.*{said}"):
        DistillationSFTTrainer(
            model if loaded else folder, config(tmp_path, str(tiny_teacher_dir)), train_dataset=DATA,
            processing_class=AutoTokenizer.from_pretrained(folder),
        )  # fmt: skip


def test_a_teacher_with_trls_own_configuration_is_refused(tiny_model_dir, tmp_path):
    for args in (SFTConfig(**settings(tmp_path)), DistillationSFTConfig(**settings(tmp_path))):
        with pytest.raises(ParamsError, match="teacher_model is given, but use_distillation is False"):
            DistillationSFTTrainer(str(tiny_model_dir), args, train_dataset=DATA, teacher_model=str(tiny_model_dir))


def test_tags_are_trls_own_where_nothing_is_distilled(tiny_model_dir, tiny_teacher_dir, tmp_path):
    ours = DistillationSFTTrainer(str(tiny_model_dir), DistillationSFTConfig(**settings(tmp_path)), train_dataset=DATA)
    theirs = SFTTrainer(str(tiny_model_dir), SFTConfig(**settings(tmp_path)), train_dataset=DATA)
    distils = DistillationSFTTrainer(str(tiny_model_dir), config(tmp_path, tiny_teacher_dir), train_dataset=DATA)
    for trainer, tags in ((ours, {"trl", "sft"}), (theirs, {"trl", "sft"}), (distils, {"trl", "distillation"})):
        folder = tmp_path / "card"
        trainer.args.output_dir = str(folder)
        folder.mkdir(exist_ok=True)
        trainer.create_model_card()
        card = (folder / "README.md").read_text()
        assert tags <= set(re.findall(r"^- (\S+)$", card.split("---")[1], re.MULTILINE))
        if trainer is not distils:
            assert "distillation" not in card.lower()


@pytest.mark.parametrize("sampling", [{}, {"do_sample": False}])
@pytest.mark.parametrize("trainer", ["sft", "distillation"])
def test_an_invalid_generation_config_is_repaired_before_training(
    sampling, trainer, tiny_model_dir, tiny_teacher_dir, tmp_path, capsys
):
    student = tmp_path / "student"
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.save_pretrained(student)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(student)
    path = student / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **sampling, "temperature": 0.6, "top_p": 0.9}))
    teacher = {"teacher_model": str(tiny_teacher_dir)} if trainer == "distillation" else {}
    done = run(
        LLMTrainingParams(
            model=str(student),
            trainer=trainer,
            data_path=DATA,
            project_name=str(tmp_path / "run"),
            max_steps=1,
            **teacher,
        )
    )
    shown = capsys.readouterr().out
    assert shown.count("does not save temperature=0.6, top_p=0.9") == 1
    assert load_file(done.paths["project"] / "model.safetensors")
    saved = AutoModelForCausalLM.from_pretrained(done.paths["project"]).generation_config
    assert saved.temperature in (None, 1.0)
    end = model.generation_config.eos_token_id
    assert saved.eos_token_id in (end, [end])  # transformers 5.17 saves a list


class Spoils(TrainerCallback):
    """Leaves a configuration that transformers refuses to save, for a reason that names no setting."""

    def on_step_end(self, args, state, control, model, **kwargs):
        model.generation_config.num_return_sequences = 4


def test_weights_are_saved_after_any_callback(tiny_model_dir, tiny_teacher_dir, tmp_path, capsys):
    trainer = DistillationSFTTrainer(
        str(tiny_model_dir), config(tmp_path, tiny_teacher_dir, save_strategy="no"), train_dataset=DATA,
        callbacks=[Spoils()],
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert load_file(tmp_path / "saved" / "model.safetensors")
    said = re.search(r"does not save (.*?) with the", capsys.readouterr().out)
    assert said
    assert said[1] == "num_return_sequences=4"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").generation_config.eos_token_id is not None


def test_hyperparameter_search_is_refused_with_the_alternative(tiny_model_dir, tiny_teacher_dir, tmp_path):
    args = config(tmp_path, tiny_teacher_dir)
    how = r"optuna call trl_distill\.run\(params\)\.metrics"
    with pytest.raises(ParamsError, match=rf"model_init cannot be used when distilling: needs a new student.*{how}"):
        DistillationSFTTrainer(None, args, train_dataset=DATA, model_init=lambda: None)
    trainer = DistillationSFTTrainer(str(tiny_model_dir), args, train_dataset=DATA)
    with pytest.raises(ParamsError, match=rf"hyperparameter_search needs a new student.*{how}"):
        trainer.hyperparameter_search(n_trials=2)
