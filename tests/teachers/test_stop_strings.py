"""Stop strings: a base model as teacher answers and goes on, and its completions end where its user says."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from conftest import make_model, make_tokenizer
from datasets import Dataset
from forms import QUICK
from teachers.kinds import TEXT, WRITING
from teachers.writers import make_trained_tokenizer
from tokenizing import llama
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, PromptDistillationTrainer, generate_with_teacher
from trl_distill.cli import main
from trl_distill.cli.llm_command import params_from_command
from trl_distill.config.training_params import LLMTrainingParams
from trl_distill.embedded import embedded_path
from trl_distill.errors import ParamsError
from trl_distill.models.generation import Completion, GenerationSettings
from trl_distill.prompts.tokenization import tokenize_after
from trl_distill.teachers.base import TextTeacher
from trl_distill.teachers.completions.generate import settings_identity
from trl_distill.teachers.completions.stop_strings import cut_at_string
from trl_distill.teachers.completions.store import CompletionStore
from trl_distill.teachers.loading import load_teacher
from trl_distill.teachers.remote.request_pool import RemoteSettings

PROMPTS = ["a b", "c", "d e f", "g h"]
ANSWERS = [" c d", " e f g", " b", " h a"]
STOP = "\nm:"
TEMPLATE = "Write the words in reverse order.\n{input}\n"


@pytest.fixture(scope="module")
def base_teacher(tmp_path_factory):
    """A model that answers the four prompts and then writes the next message, by TRL's own SFT; it never ends."""
    folder = make_model(tmp_path_factory.mktemp("models") / "base_teacher", hidden=48)
    following = f"{STOP} x y z x y z x y z x y z x y z x y z"
    rows = [{"prompt": p, "completion": a + following} for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder), SFTConfig(str(folder / "run"), max_steps=60, **QUICK),
        train_dataset=Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(folder))
    return folder


def flags(student, teacher, folder, *more):
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": p}) + "\n" for p in PROMPTS))
    return [
        "llm", "--model", str(student), "--teacher-model", str(teacher), "--data-path", str(folder / "rows.jsonl"),
        "--distill-max-teacher-length", "12", "--project-name", str(folder / "run"), "--lr", "1e-2", "--epochs", "60",
        "--gradient-accumulation", "1", "--scheduler", "constant", "--warmup-ratio", "0", *more,
    ]  # fmt: skip


def test_a_student_of_a_base_model_learns_its_answers_and_where_they_end(tiny_model_dir, base_teacher, tmp_path):
    result = CliRunner().invoke(
        main, flags(tiny_model_dir, base_teacher, tmp_path, "--distill-alpha", "0", "--teacher-stop", r"\nm:")
    )
    assert result.exit_code == 0, result.output
    assert "; 0 cut\n" in result.stdout
    assert "warning" not in result.stdout
    model, tokenizer = (kind.from_pretrained(tmp_path / "run") for kind in (AutoModelForCausalLM, AutoTokenizer))
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
        assert tokenizer.decode(ids) == answer + tokenizer.eos_token


def test_the_preflight_says_what_to_do_if_completions_are_cut_or_empty(tiny_model_dir, base_teacher, tmp_path):
    result = CliRunner().invoke(main, flags(tiny_model_dir, base_teacher, tmp_path, "--dry-run"))
    assert result.exit_code == 0, result.output
    assert "; 4 cut (trained without an end of sequence)" in result.stdout
    assert (
        "4 were not ended by the teacher; raise --distill-max-teacher-length, or give --teacher-stop" in result.stdout
    )
    assert (
        "warning       the teacher ends 0 of its 4 completions: the student does not learn to stop either"
        in result.stdout
    )
    result = CliRunner().invoke(main, flags(tiny_model_dir, base_teacher, tmp_path, "--dry-run", "--teacher-stop", " "))
    assert "warning       the teacher writes nothing in 4 of its 4 completions, and the student" in result.stdout


def texts(teacher, prompts, settings):
    """Return what a teacher writes as text, without the token that ends it, and whether it is finished."""
    if isinstance(teacher, TextTeacher):
        return [(c.text, c.finished) for c in teacher.write(prompts, settings, progress=False)]
    tokenizer = teacher.tokenizer
    written = teacher.generate([tokenizer(p)["input_ids"] for p in prompts], settings)
    assert all(c.ids[-1] in teacher.stop_ids for c in written if c.finished)
    return [(tokenizer.decode(c.ids[:-1] if c.finished else c.ids), c.finished) for c in written]


@pytest.mark.parametrize("make", [*WRITING, *TEXT], ids=lambda make: make.__name__)
def test_every_teacher_ends_before_the_first_stop_string(make, tiny_teacher_dir, tmp_path, request):
    """Completions are those without stop strings, cut; which ones they are is taken from what is written."""
    teacher, prompts = make(tiny_teacher_dir, tmp_path, request), ["a b c", "red cat", "d"]
    whole = texts(teacher, prompts, GenerationSettings(16))
    longest = max((text for text, _ in whole), key=len)
    assert len(longest) > 6
    stop = ("not there", longest[5:7], longest[3:5])
    found = texts(teacher, prompts, GenerationSettings(16, stop=stop))
    for (text, finished), (before, ended) in zip(found, whole, strict=True):
        places = [before.find(s) for s in stop if s in before]
        assert text == (before[: min(places)] if places else before)
        assert finished is (ended or bool(places))
    assert any(text != before for (text, _), (before, _) in zip(found, whole, strict=True))


def test_a_cut_inside_a_token_retokenizes_the_rest():
    tokenizer = make_tokenizer()
    ids = tokenizer(" c d m e m")["input_ids"]
    found = cut_at_string(Completion((*ids, 1), True), ["m", "e"], tokenizer, end=1)
    assert found == Completion((*tokenizer(" c d ")["input_ids"], 1), True)
    assert cut_at_string(Completion(tuple(ids), False), [" m"], tokenizer, end=1).ids == (*ids[:2], 1)
    assert cut_at_string(Completion(tuple(ids), False), [" c"], tokenizer, end=1).ids == (1,)
    other = make_trained_tokenizer(encodes=False)  # SentencePiece's kind, which loses a space in front
    ids = other("a red cat sat", add_special_tokens=False)["input_ids"][1:]
    text = other.decode(other("a", add_special_tokens=False)["input_ids"] + ids)[1:]
    found = cut_at_string(Completion(tuple(ids), False), ["at s"], other, end=1)
    assert text == " red cat sat"
    assert other.decode(other("a", add_special_tokens=False)["input_ids"] + [*found.ids[:-1]]) == "a red c"
    assert cut_at_string(Completion(tuple(ids), False), [" red"], other, end=1).ids == (1,)
    none = Completion(tuple(ids), False)
    assert cut_at_string(none, ["q"], other, end=1) is none
    other = llama()  # which would put a space in front
    ids = tokenize_after(other, "fox the", prompt="\n")
    found = cut_at_string(Completion(tuple(ids), False), ["he"], other, end=1)
    assert other.convert_ids_to_tokens(found.ids[:-1]) == ["f", "o", "x", "▁", "t"]


def test_generation_stops_soon_after_a_stop_string_of_the_completion(base_teacher):
    teacher = load_teacher(str(base_teacher))
    ids = [teacher.tokenizer(p)["input_ids"] for p in PROMPTS]
    steps = []
    hook = teacher.model.register_forward_hook(lambda *_: steps.append(1))
    written = teacher.generate(ids, GenerationSettings(200, stop=(STOP,)))
    assert [teacher.tokenizer.decode(c.ids[:-1]) for c in written] == ANSWERS
    assert len(steps) < 12
    hook.remove()
    # the prompt ends in what the stop string begins with, and the completion continues with the rest of it
    start = teacher.tokenizer("a b c d\n")["input_ids"]
    (whole,) = teacher.generate([start], GenerationSettings(8))
    assert teacher.tokenizer.decode(whole.ids).startswith("m:")
    assert teacher.generate([start], GenerationSettings(8, stop=(STOP,))) == [whole]


def test_completions_are_kept_by_their_stop_strings():
    assert settings_identity(GenerationSettings(8)) == {"max_new_tokens": 8}  # as stores of before have it
    assert "stop" not in settings_identity(GenerationSettings(8, do_sample=True))
    one = settings_identity(GenerationSettings(8, stop=("a", "b")))
    assert one == settings_identity(GenerationSettings(8, stop=("b", "a", "b")))
    assert one == {"max_new_tokens": 8, "stop": ["a", "b"]}
    assert settings_identity(GenerationSettings(8, do_sample=True, stop=("a",)))["stop"] == ["a"]


def test_generate_with_teacher_takes_one_or_several(base_teacher, tmp_path):
    store = CompletionStore(tmp_path / "kept.jsonl")
    how = {"max_new_tokens": 12, "progress": False, "store": store}
    for stop in (STOP, [STOP, "never"]):
        rows = generate_with_teacher(str(base_teacher), "{input}", PROMPTS, stop=stop, **how)
        assert [row["completion"] for row in rows] == ANSWERS
        assert all(row["finished"] for row in rows)
    without = generate_with_teacher(str(base_teacher), "{input}", PROMPTS, **how)
    assert not any(row["finished"] for row in without)
    with pytest.raises(ParamsError, match="stop is '';"):
        generate_with_teacher(str(base_teacher), "{input}", PROMPTS, stop="", **how)


class Own(PromptDistillationTrainer):
    def generate_teacher_outputs(self, batch):
        inputs = self.prepare_teacher_inputs(batch)
        return self.teacher_model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)


@pytest.mark.parametrize("kind", [DistillationSFTTrainer, PromptDistillationTrainer, Own])
@pytest.mark.parametrize("how", ["before", "online", "several"])
def test_stop_strings_apply_to_every_way_of_generating(kind, how, tiny_model_dir, base_teacher, tmp_path):
    if (kind is Own) and how != "online":
        pytest.skip("it writes while training")
    settings = {
        "before": {"teacher_model": str(base_teacher)},
        "online": {"teacher_model": str(base_teacher), "distill_online": kind is not Own},
        "several": {"teacher_config": [{"model": str(base_teacher)}, {"model": str(base_teacher), "rows": 0.5}]},
    }[how]  # fmt: skip
    args = DistillationSFTConfig(
        str(tmp_path), use_distillation=True, completions="teacher", distill_max_teacher_length=12, max_steps=1,
        teacher_stop=STOP, **settings, **QUICK,
    )  # fmt: skip
    trainer = kind(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir), args, train_dataset=Dataset.from_dict({"text": PROMPTS}),
        processing_class=AutoTokenizer.from_pretrained(tiny_model_dir),
    )  # fmt: skip
    (batch,), _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
    learned = [row[row != -100].tolist() for row in batch["labels"]]
    assert {trainer.tokenizer.decode(ids) for ids in learned} <= {a + trainer.tokenizer.eos_token for a in ANSWERS}
    assert len(learned) == 4


def asked(server, stop=()):
    """Return what a server writes for a prompt."""
    (row,) = generate_with_teacher(
        server.teacher, TEMPLATE, ["red cat"], max_new_tokens=12, progress=False, stop=stop,
        remote=RemoteSettings("completions"),
    )  # fmt: skip
    return row


def test_a_server_is_sent_four_and_the_answer_is_cut_here_as_well(server):
    whole = asked(server)["completion"]
    stop = ["1", "2", "3", "4", whole[3:5]]
    cut = asked(server, stop)  # the server does not know stop strings, and was not sent the last
    assert cut["completion"] == whole[: whole.find(stop[-1])]
    assert cut["finished"]
    first, second = (request["request"] for request in server.requests())
    assert "stop" not in first
    assert second["stop"] == stop[:4]


def test_a_servers_log_probabilities_end_where_the_answer_does(server, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(embedded_path())
    whole = asked(server)["completion"]
    kept = tokenizer.decode(tokenizer(whole)["input_ids"][:2])
    server.give("top")
    args = DistillationSFTConfig(
        str(tmp_path), use_distillation=True, teacher_model=server.teacher, completions="teacher", max_steps=1,
        teacher_prompt_template=TEMPLATE, distill_temperature=1.0, teacher_logprobs="top", logging_steps=1,
        teacher_endpoint="completions", distill_max_teacher_length=12, teacher_stop=whole.removeprefix(kept)[:3],
        **QUICK,
    )  # fmt: skip
    trainer = DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(embedded_path()), args, processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"text": ["red cat"]}),
    )  # fmt: skip
    (row,) = trainer.train_dataset
    assert tokenizer.decode(row["completion"]) == kept + tokenizer.eos_token
    trainer.train()
    coverage = [line["teacher_coverage"] for line in trainer.state.log_history if "teacher_coverage" in line]
    assert 0 < coverage[0] < 1  # the text, and not its end, which the server did not write


@pytest.mark.parametrize("given", ["", [""], [1], 3, {"a": 1}])
def test_stop_strings_that_are_no_text_are_refused(given):
    with pytest.raises(ParamsError, match=r"teacher_stop is .*; expected text, or a list of texts"):
        LLMTrainingParams(teacher_stop=given)


def test_a_newline_is_typed_as_a_flag_and_means_itself_elsewhere(tmp_path):
    typed = ["--model", "a", "--teacher-model", "b", "--teacher-stop", r"\nUser:", "--teacher-stop", "###"]
    assert params_from_command(typed).teacher_stop == ["\nUser:", "###"]
    (tmp_path / "run.yaml").write_text('teacher_stop: ["\\nUser:", "\\\\theta"]\n')
    assert params_from_command(["--config", str(tmp_path / "run.yaml")]).teacher_stop == ["\nUser:", "\\theta"]
    assert LLMTrainingParams(teacher_stop="\\nUser:").teacher_stop == ["\\nUser:"]
    assert LLMTrainingParams(teacher_stop=[]).teacher_stop is None
