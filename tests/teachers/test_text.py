"""Local teachers that give text: encoder-decoders, and causal models with another tokenizer than their student."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from conftest import make_model
from datasets import Dataset
from teachers.writers import make_bart, make_other_llama, make_t5
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from trl_distill import (
    DataError,
    DistillationSFTConfig,
    DistillationSFTTrainer,
    LLMTrainingParams,
    TeacherError,
    load_teacher,
    run,
)
from trl_distill.cli import main
from trl_distill.errors import ModelError
from trl_distill.models.generation import GenerationSettings
from trl_distill.models.loading import ModelSource
from trl_distill.teachers.base import Teacher, TextTeacher
from trl_distill.teachers.completions.store import CompletionStore
from trl_distill.teachers.text.local_text import LocalTextTeacher

PROMPTS = ["why is the sky blue", "a red cat", "2+2", "a dog and a house near the tall tree"]
GREEDY = GenerationSettings(max_new_tokens=6, batch_size=2)
DRAWN = GenerationSettings(max_new_tokens=8, do_sample=True, seed=3)
TURNS = [{"role": "user", "content": "a red cat"}]


@pytest.fixture(scope="module")
def t5_dir(tmp_path_factory):
    return make_t5(tmp_path_factory.mktemp("models") / "t5")


@pytest.fixture(scope="module")
def bart_dir(tmp_path_factory):
    return make_bart(tmp_path_factory.mktemp("models") / "bart", seed=2)


@pytest.fixture(scope="module")
def other_dir(tmp_path_factory):
    return make_other_llama(tmp_path_factory.mktemp("models") / "other")


@pytest.fixture(params=["t5", "bart", "other"])
def folder(request):
    return request.getfixturevalue(f"{request.param}_dir")


@pytest.fixture
def teacher(folder, tiny_model_dir):
    return text_teacher(folder, tiny_model_dir)


def text_teacher(folder, student, **more):
    """Return the teacher of a folder as one that gives text to a student."""
    tokenizer = AutoTokenizer.from_pretrained(student)
    teacher = load_teacher(str(folder), tokenizer=tokenizer, **more)
    return teacher if isinstance(teacher, TextTeacher) else LocalTextTeacher(teacher, tokenizer=tokenizer)


def written(teacher, prompts, settings, **more):
    return teacher.write(prompts, settings, progress=False, **more)


def by_itself(folder, prompt):
    """Return what a model writes greedily when transformers alone is asked, prompt and completion, as token ids."""
    kind = AutoModelForCausalLM if folder.name == "other" else AutoModelForSeq2SeqLM
    model, tokenizer = kind.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    return model.generate(**ids, do_sample=False, max_new_tokens=6)[0].tolist(), tokenizer


def test_an_encoder_decoder_is_a_text_teacher(teacher, tiny_model_dir):
    assert isinstance(teacher, Teacher)
    assert isinstance(teacher, TextTeacher)
    assert teacher.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(tiny_model_dir).get_vocab()
    assert teacher.stop_ids == [teacher.tokenizer.eos_token_id]
    for refused in (lambda: teacher.score({}), lambda: teacher.generate([[1]], GREEDY)):
        with pytest.raises(TeacherError, match=r"gives text only|reads text"):
            refused()


def test_an_encoder_decoder_writes_what_its_model_generates(teacher, folder):
    for prompt, completion in zip(PROMPTS, written(teacher, PROMPTS, GREEDY), strict=True):
        ids, tokenizer = by_itself(folder, prompt)
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        assert (prompt if folder.name == "other" else "") + completion.text == whole
        assert completion.text
        assert not completion.ids
        assert not completion.finished


def test_the_space_in_front_of_a_completion_is_kept(other_dir, tiny_model_dir):
    teacher = text_teacher(other_dir, tiny_model_dir)
    texts = [c.text for c in written(teacher, PROMPTS, GREEDY)]
    assert any(text.startswith(" ") for text in texts)  # SentencePiece's decoder drops it where a text begins


def test_only_what_ended_is_finished_and_the_stop_token_is_no_text(teacher):
    done = written(teacher, ["a red cat"] * 200, DRAWN)
    assert {c.finished for c in done} == {True, False}
    assert not any("</s>" in c.text or "<pad>" in c.text for c in done)


def test_drawing_is_repeatable_and_leaves_the_random_state_alone(teacher):
    before = torch.random.get_rng_state()
    first = written(teacher, ["a red cat"] * 4, DRAWN)
    assert torch.equal(before, torch.random.get_rng_state())
    assert len({c.text for c in first}) > 1
    assert written(teacher, ["a red cat"] * 4, DRAWN) == first
    assert written(teacher, ["a red cat"] * 4, GenerationSettings(max_new_tokens=8, do_sample=True, seed=4)) != first


def test_a_batch_changes_no_greedy_completion(teacher):
    together = written(teacher, PROMPTS, GenerationSettings(max_new_tokens=6, batch_size=4))
    assert together == written(teacher, PROMPTS, GenerationSettings(max_new_tokens=6, batch_size=1))


def test_stored_texts_are_not_written_again(folder, tiny_model_dir, tmp_path, capsys):
    path = tmp_path / "store.jsonl"
    done = written(text_teacher(folder, tiny_model_dir), PROMPTS[:3], GREEDY, store=CompletionStore(path))
    again = text_teacher(folder, tiny_model_dir)
    assert written(again, PROMPTS[:3], GREEDY, store=CompletionStore(path)) == done
    assert "model" not in vars(again.writer)  # it was not even loaded
    again.write(PROMPTS, GREEDY, store=CompletionStore(path))
    assert len(path.read_text().splitlines()) == len(PROMPTS)
    assert "Teacher generates completions: 100%" in capsys.readouterr().err


def test_other_weights_are_another_teacher(tmp_path):
    one, other = (load_teacher(str(make_t5(tmp_path / str(seed), seed=seed))) for seed in (1, 2))
    assert one.identity() != other.identity()
    assert one.identity() == load_teacher(str(tmp_path / "1")).identity()


def test_padding_and_rows_that_pad_the_vocabulary_are_never_written(t5_dir):
    teacher = load_teacher(str(t5_dir))
    with torch.no_grad():
        teacher.writer.model.lm_head.weight[len(teacher.tokenizer) :] = 50.0
    ids = [i for c in teacher.writer.generate([[5, 1], [6, 7, 1]], DRAWN) for i in c.ids]
    assert max(ids) < len(teacher.tokenizer)
    with torch.no_grad():
        teacher.writer.model.lm_head.weight[teacher.tokenizer.pad_token_id] = 50.0
    pads = [c.ids.count(0) for c in teacher.writer.generate([[5, 1], [6, 7, 1]], DRAWN)]
    assert pads == [0, 0]


def test_precision_and_quantization_are_those_asked_for(t5_dir):
    half = load_teacher(str(t5_dir), dtype="bfloat16")
    assert written(half, PROMPTS, GREEDY)[0].text
    assert half.writer.model.dtype == torch.bfloat16
    eight = load_teacher(str(t5_dir), quantization="int8")
    assert written(eight, PROMPTS[:1], GREEDY)[0].text
    assert eight.writer.model.is_quantized


def test_a_loaded_encoder_decoder_reads_with_its_own_tokenizer_and_stays_as_it_was(t5_dir, tiny_model_dir):
    model = AutoModelForSeq2SeqLM.from_pretrained(t5_dir).train()
    student = AutoTokenizer.from_pretrained(tiny_model_dir)
    teacher = load_teacher(model, tokenizer=student)
    assert written(teacher, PROMPTS, GREEDY) == written(load_teacher(str(t5_dir)), PROMPTS, GREEDY)
    assert teacher.tokenizer is student
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    model.config._name_or_path = ""
    with pytest.raises(TeacherError, match="does not say where its tokenizer is"):
        load_teacher(model, tokenizer=student)


def test_a_prompt_that_is_too_long_is_named(bart_dir, other_dir, tiny_model_dir):
    for folder, most in ((bart_dir, 24), (other_dir, 127)):
        teacher = text_teacher(folder, tiny_model_dir)
        with pytest.raises(DataError, match=f"reads at most {most} tokens and the prompt 'cat cat"):
            written(teacher, ["a red cat", "cat " * 200], GREEDY)
        assert "model" not in vars(teacher.writer)
    long = GenerationSettings(max_new_tokens=200)
    assert written(text_teacher(bart_dir, tiny_model_dir), ["a red cat"], long)[0].text  # its decoder has 24 positions


def test_chat_messages_need_a_chat_template(teacher):
    with pytest.raises(TeacherError, match=r"prompt of chat messages, and its tokenizer has no chat template; give"):
        written(teacher, [TURNS], GREEDY)
    teacher.writer.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    said = written(teacher, [TURNS], GREEDY)
    assert said == written(teacher, ["user a red cat" + "</s>" * (teacher.writer.name.endswith("other"))], GREEDY)
    assert said != written(teacher, ["a red cat"], GREEDY)


def test_encoders_and_models_of_sounds_are_refused(tmp_path):
    from transformers import BertConfig, WhisperConfig

    BertConfig().save_pretrained(tmp_path / "bert-large")
    with pytest.raises(TeacherError, match=r"\(bert\) is not a causal language model but an encoder"):
        load_teacher(str(tmp_path / "bert-large"))
    WhisperConfig().save_pretrained(tmp_path / "whisper")
    with pytest.raises(TeacherError, match=r"\(whisper\) is not an encoder-decoder that reads and writes text"):
        load_teacher(str(tmp_path / "whisper"))


def test_a_folder_without_a_tokenizer_is_refused(t5_dir, tmp_path):
    AutoModelForSeq2SeqLM.from_pretrained(t5_dir).save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match=r"tokenizer with an empty vocabulary|no tokenizer could be loaded"):
        load_teacher(str(tmp_path))


@pytest.fixture
def command(t5_dir, tiny_model_dir, tmp_path):
    """Return a function that runs the command with settings of a small run and others."""
    (tmp_path / "data.json").write_text(json.dumps([{"text": text} for text in PROMPTS]))
    settings = {
        "model": tiny_model_dir, "teacher_model": t5_dir, "data_path": tmp_path / "data.json",
        "teacher_prompt_template": "Tell me: {input}", "distill_max_teacher_length": 6, "epochs": 1,
        "project_name": tmp_path / "run", "gradient_accumulation": 1,
    }  # fmt: skip

    def go(*more, **changed):
        flags = [word for k, v in {**settings, **changed}.items() for word in (f"--{k.replace('_', '-')}", str(v))]
        return CliRunner().invoke(main, ["llm", *flags, *more])

    return go


def test_the_command_learns_from_an_encoder_decoder(command, t5_dir, tmp_path):
    result = command(distill_alpha=0)
    assert result.exit_code == 0, result.output
    assert f"Teacher: {t5_dir}, an encoder-decoder (t5)" in result.stdout
    assert "4 from the teacher, under its prompt" in result.stdout
    assert "cross-entropy alone" in result.stdout
    assert "4 cut (trained without an end of sequence)" in result.stdout
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    assert figures["train_loss"] == pytest.approx(figures["train_ce"])
    before = (tmp_path / "run" / "teacher_completions.jsonl").read_text()
    assert len(before.splitlines()) == len(PROMPTS)
    assert command("--overwrite", distill_alpha=0).exit_code == 0
    assert (tmp_path / "run" / "teacher_completions.jsonl").read_text() == before


@pytest.mark.parametrize("kind", ["t5", "other"])
def test_strict_refuses_a_divergence_with_what_to_do(kind, command, request, monkeypatch, tmp_path):
    for loader in (AutoModelForSeq2SeqLM, AutoModelForCausalLM):
        monkeypatch.setattr(loader, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded"))
    result = command("--strict", teacher_model=request.getfixturevalue(f"{kind}_dir"))
    assert result.exit_code == 2
    assert "--distill-alpha 0" in result.stderr
    assert ("--cross-tokenizer" if kind == "other" else "drop --strict") in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [{"distill_alpha": 0}, {}, {"allow_text_only_teacher": True, "strict": True}])
def test_a_teacher_with_another_tokenizer_is_learned_from_by_its_text(
    more, other_dir, tiny_model_dir, tmp_path, capsys
):
    (tmp_path / "data.json").write_text(json.dumps([{"text": text} for text in PROMPTS]))
    result = run(LLMTrainingParams(
        model=str(tiny_model_dir), teacher_model=str(other_dir), data_path=str(tmp_path / "data.json"), epochs=1,
        distill_max_teacher_length=6, project_name=str(tmp_path / "run"), **more,
    ))  # fmt: skip
    ids, tokenizer = by_itself(other_dir, PROMPTS[0])
    text = tokenizer.decode(ids)[len(PROMPTS[0]) :]
    assert result.trainer.train_dataset["completion"][0] == list(result.tokenizer(text)["input_ids"])
    assert result.metrics["train_loss"] == pytest.approx(result.metrics["train_ce"])
    asked = "" if "distill_alpha" in more else "; 0.7 was given"
    assert f"0 (the teacher gives text only{asked})" in (tmp_path / "run" / "README.md").read_text()
    said = capsys.readouterr().out
    assert "add cross_tokenizer=True to compare the distributions" in said
    assert ("alpha 0.7 counts as 0" in said) == bool(asked)


@pytest.mark.parametrize("kind", ["t5", "other"])
def test_a_text_teacher_teaches_nothing_if_the_data_has_completions_and_is_refused(kind, command, request, tmp_path):
    rows = [{"prompt": text, "completion": text} for text in PROMPTS]
    (tmp_path / "done.json").write_text(json.dumps(rows))
    result = command(teacher_model=request.getfixturevalue(f"{kind}_dir"), data_path=tmp_path / "done.json")
    assert result.exit_code == 2
    assert "teaches nothing: it gives text only, and every row has a completion of its own" in result.stderr
    assert "--completions teacher" in result.stderr
    assert not (tmp_path / "run" / "README.md").exists()


def test_a_teacher_of_the_students_tokenizer_still_writes_tokens(tiny_model_dir, tiny_teacher_dir, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([{"text": text} for text in PROMPTS]))
    result = run(LLMTrainingParams(
        model=str(tiny_model_dir), teacher_model=str(tiny_teacher_dir), data_path=str(tmp_path / "data.json"), epochs=1,
        distill_max_teacher_length=6, project_name=str(tmp_path / "run"), distill_alpha=0,
    ))  # fmt: skip
    assert not isinstance(result.trainer.teacher, TextTeacher)


def test_a_store_of_targets_takes_no_teacher_of_text(command, tmp_path):
    result = command(distill_alpha=0, teacher_store=tmp_path / "store")
    assert result.exit_code == 2
    assert "drop --teacher-store" in result.stderr


def test_a_script_learns_from_an_encoder_decoder(t5_dir, tiny_model_dir, tmp_path, capsys):
    args = DistillationSFTConfig(
        output_dir=str(tmp_path), use_distillation=True, teacher_model=str(t5_dir), distill_alpha=0.0,
        distill_max_teacher_length=6, completions="teacher", use_cpu=True, report_to="none", max_steps=1,
    )  # fmt: skip
    data = Dataset.from_list([{"text": text} for text in PROMPTS])
    trainer = DistillationSFTTrainer(str(tiny_model_dir), args, train_dataset=data)
    assert "an encoder-decoder (t5)" in capsys.readouterr().out
    assert "model" not in vars(trainer.teacher.writer)  # its memory is the student's now
    ids, tokenizer = by_itself(t5_dir, PROMPTS[1])
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert trainer.processing_class.decode(trainer.train_dataset["completion"][1]) == text
    trainer.train()


def test_an_adapter_of_an_encoder_decoder_is_merged(t5_dir, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        AutoModelForSeq2SeqLM.from_pretrained(t5_dir), LoraConfig(task_type="SEQ_2_SEQ_LM", init_lora_weights=False)
    )
    model.save_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path))
    assert teacher.identity() != load_teacher(str(t5_dir)).identity()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[5, 6, 1]]), decoder_input_ids=torch.tensor([[0]])).logits
        found = teacher.writer.model(input_ids=torch.tensor([[5, 6, 1]]), decoder_input_ids=torch.tensor([[0]])).logits
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_an_encoder_decoder_is_loaded_as_a_teacher_alone(t5_dir):
    assert ModelSource(str(t5_dir), role="teacher_model").load_model().config.is_encoder_decoder
    with pytest.raises(ModelError, match="no weights could be loaded"):
        ModelSource(str(t5_dir)).load_model()


def test_a_student_that_is_an_encoder_decoder_is_refused(command, t5_dir, tmp_path):
    result = command(model=t5_dir, teacher_model=make_model(tmp_path / "teacher"), distill_alpha=0)
    assert result.exit_code == 2
    assert "is an encoder-decoder (t5); choose a decoder-only model" in result.stderr
