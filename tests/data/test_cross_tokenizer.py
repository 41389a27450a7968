"""A teacher with another tokenizer: through the command, the library and the trainer."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from click.testing import CliRunner
from conftest import CHAT_TEMPLATE
from datasets import Dataset
from ranks import run_in
from tokenizers import AddedToken, normalizers
from tokenizing import byte_level, llama, pieces
from trainer.test_trainer import distilling, losses
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from trl_distill import (
    DistillationSFTConfig,
    DistillationSFTTrainer,
    LLMTrainingParams,
    PromptDistillationTrainer,
    load_teacher,
    run,
)
from trl_distill.cli import main
from trl_distill.data.cross_tokenizer.token_bytes import token_bytes
from trl_distill.data.cross_tokenizer.tokenizer_pair import TokenizerPair
from trl_distill.embedded import embedded_path
from trl_distill.errors import DataError, ParamsError, TeacherError
from trl_distill.losses.reference import cross_divergence_from_logits
from trl_distill.teachers.local.cross_tokenizer import CrossTokenizerTeacher

PAIRS = {
    "prompt": ["the quick", "brown", "fox jumps", "over the", "lazy", "dog", "Köln", "déjà"],
    "completion": [" brown fox", " the lazy dog", " quick", " 東京 は 🎉", " dog", " fox the", " vu", " jumps over"],
}
RANK = """
from data.test_cross_tokenizer import PAIRS
from trainer.test_trainer import distilling, losses
trainer = distilling({student!r}, {teacher!r}, {folder!r}, PAIRS, cross_tokenizer=True, max_steps=3,
                     per_device_train_batch_size={batch})
trainer.train()
result = losses(trainer)
"""
TEMPLATE = "dog lazy the over jumps {input} the"


def make_other(folder, tokenizer, *, hidden=32, positions=256):
    """Save a random Llama with a tokenizer of its own."""
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3, hidden_size=hidden, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=positions, initializer_range=0.1, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hidden)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[byte_level, pieces, llama], ids=["byte-level", "unigram", "llama"])
def other(request, tmp_path_factory):
    return make_other(tmp_path_factory.mktemp("other"), request.param())


def crossing(student, teacher):
    rows = {"student_rows": len(student), "teacher_rows": len(teacher)}
    return TokenizerPair(student, teacher, **rows)


def test_the_loss_is_the_formula_on_full_logits_where_both_have_read_the_same_text(other, tiny_model_dir, tmp_path):
    """Everything is computed again from texts and full logits, the spans by prefixes of the text."""
    trainer = distilling(
        tiny_model_dir, other, tmp_path, PAIRS, cross_tokenizer=True, teacher_prompt_template=TEMPLATE,
        distill_alpha=0.6, distill_temperature=2.0, per_device_train_batch_size=8,
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    sides = {}
    for prefix, folder in (("", tiny_model_dir), ("teacher_", other)):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        ids, mask = batch[f"{prefix}input_ids"], batch[f"{prefix}attention_mask"]
        sides[prefix] = model(input_ids=ids, attention_mask=mask).logits.detach(), tokenizer
    labels, both = batch["labels"], crossing(sides[""][1], sides["teacher_"][1])
    total, compared, ended = 0.0, 0, 0
    for b in range(len(labels)):
        completions = {}
        for prefix, (logits, tokenizer) in sides.items():
            places = (batch[f"{prefix}labels"][b] != -100).nonzero()[:, 0].tolist()
            texts = []
            for k in range(len(places)):  # what has been read before each token
                ids = batch[f"{prefix}input_ids"][b, places[0] : places[k]]
                front = tokenizer("x ")["input_ids"]
                texts.append(tokenizer.decode([*front, *ids], skip_special_tokens=True))
            completions[prefix] = (places, texts, logits[b])
        marked = [int(k) for k in batch["student_spans"][b].nonzero()[:, 0]]
        theirs = [int(k) for k in (batch["teacher_spans"][b] != -100).nonzero()[:, 0]]
        assert len(marked) == len(theirs) > 0
        for mine, other_place in zip(marked, theirs, strict=True):
            before = completions[""][1][completions[""][0].index(mine)]
            read = completions["teacher_"][1][completions["teacher_"][0].index(other_place)]
            if "\ufffd" not in before + read:
                assert before.split() == read.split()
            kind = int(batch["student_spans"][b, mine])
            total += cross_divergence_from_logits(
                completions[""][2][mine - 1][None], completions["teacher_"][2][other_place - 1][None],
                both.matched[kind], temperature=2.0,
            ).item()  # fmt: skip
            compared += 1
            ended += int(labels[b, mine]) == trainer.tokenizer.eos_token_id
    assert ended == len(labels)
    count = int((labels != -100).sum())
    ce = torch.nn.functional.cross_entropy(sides[""][0][:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert loss.item() == pytest.approx(0.6 * 4 * total / count + 0.4 * ce.item(), rel=1e-5)
    figures = trainer.evaluate()
    assert figures["eval_teacher_coverage"] == pytest.approx(compared / count)
    assert figures["eval_kl"] == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("impl", ["fused", "plain"])
def test_cross_tokenizer_with_equal_tokenizers_is_the_ordinary_run(
    kind, impl, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    def trained(**more):
        data = {"prompt": ["a b", "c", "d e f", "g"], "completion": [" c d", " e f g a", " b", " d c b"]}
        trainer = distilling(
            tiny_model_dir, tiny_teacher_dir, tmp_path, data, teacher_prompt_template="g f {input}", max_steps=4,
            distill_divergence=kind, distill_loss_impl=impl, **more,
        )  # fmt: skip
        trainer.train()
        return trainer

    crossed, ordinary = trained(cross_tokenizer=True), trained()
    assert isinstance(crossed.teacher, CrossTokenizerTeacher)
    assert losses(crossed) == pytest.approx(losses(ordinary), rel=1e-6)
    for name in ("kl", "ce", "top1_agreement", "grad_norm"):
        lines = [[line[name] for line in t.state.log_history if name in line] for t in (crossed, ordinary)]
        assert lines[0] == pytest.approx(lines[1], rel=1e-5, abs=1e-6), name
    assert {line["teacher_coverage"] for line in crossed.state.log_history if "loss" in line} == {1.0}
    assert not any("teacher_coverage" in line for line in ordinary.state.log_history)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_cross_tokenizer_loss_does_not_depend_on_batch_and_accumulation(accumulation, other, tiny_model_dir, tmp_path):
    trainer = distilling(
        tiny_model_dir, other, tmp_path, PAIRS, cross_tokenizer=True, gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=8 // accumulation, max_steps=1,
    )  # fmt: skip
    trainer.train()
    whole = distilling(tiny_model_dir, other, tmp_path, PAIRS, cross_tokenizer=True, max_steps=1).evaluate()
    assert losses(trainer)[0] == pytest.approx(whole["eval_loss"], rel=1e-5)


def test_two_cross_tokenizer_processes_have_the_losses_of_one(small, tiny_model_dir, tmp_path):
    names = {"student": str(tiny_model_dir), "teacher": str(small), "folder": str(tmp_path / "out")}
    one, two = (run_in(ranks, RANK.format(**names, batch=4 // ranks), tmp_path) for ranks in (1, 2))
    assert two == pytest.approx(one, rel=1e-5)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A student whose tokenizer is not the embedded model's."""
    return make_other(tmp_path_factory.mktemp("small"), byte_level(size=400), hidden=64)


def test_the_command_learns_from_the_embedded_model(small, tmp_path):
    data = tmp_path / "rows.jsonl"
    rows = [{"text": f"make it upper case: {word}"} for word in ("moon", "sun", "river", "clock", "stone", "tree")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    arguments = [
        "llm", "--model", str(small), "--teacher-model", "embedded", "--data-path", str(data), "--epochs", "12",
        "--gradient-accumulation", "1", "--batch-size", "8", "--lr", "5e-3", "--logging-steps", "1",
        "--distill-max-teacher-length", "12", "--teacher-prompt-template", "Write the word again.\n{input}",
        "--distill-temperature", "1", "--distill-alpha", "1",
    ]  # fmt: skip
    refused = CliRunner().invoke(main, [*arguments, "--strict", "--project-name", str(tmp_path / "no")])
    assert refused.exit_code == 2
    assert "another tokenizer" in refused.output
    assert "--cross-tokenizer" in refused.output
    assert "--distill-alpha 0" in refused.output
    teach = ["teach", *arguments[1:7], "--output", str(tmp_path / "store"), "--distill-max-teacher-length", "12"]
    refused = CliRunner().invoke(main, teach)
    assert refused.exit_code == 2
    assert "family, or train without a store, with --cross-tokenizer." in refused.output
    done = CliRunner().invoke(main, [*arguments, "--cross-tokenizer", "--project-name", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "tokens matched" in done.output
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())["history"]
    kl = [line["kl"] for line in history if "kl" in line]
    assert kl[-1] < 0.5 * kl[0]
    assert all(0 < line["teacher_coverage"] <= 1 for line in history if "kl" in line)
    AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    written = (tmp_path / "run" / "teacher_completions.jsonl").read_text()
    assert written


def test_the_embedded_model_learns_from_another(other, tmp_path):
    result = run(LLMTrainingParams(
        model="embedded", teacher_model=load_teacher(
            AutoModelForCausalLM.from_pretrained(other), tokenizer=AutoTokenizer.from_pretrained(other)
        ), data_path=Dataset.from_dict(PAIRS), cross_tokenizer=True, epochs=6, batch_size=8, gradient_accumulation=1,
        lr=2e-3, logging_steps=1, project_name=str(tmp_path / "run"), teacher_prompt_template=TEMPLATE,
    ))  # fmt: skip
    kl = [line["kl"] for line in result.trainer.state.log_history if "kl" in line]
    assert kl[-1] < kl[0]


def test_what_the_teacher_writes_is_read_by_both(small, tmp_path):
    """The teacher's own ids on its side; the student's ids of their text, ended by the student's token, on its own."""
    config = DistillationSFTConfig(
        output_dir=str(tmp_path), use_distillation=True, teacher_model=embedded_path(), cross_tokenizer=True,
        completions="teacher", distill_max_teacher_length=12, use_cpu=True, bf16=False, report_to="none",
        disable_tqdm=True,
    )  # fmt: skip
    trainer = DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(small), config,
        train_dataset=Dataset.from_dict({"prompt": ["Answer: moon", "Upper case: sun"]}),
        processing_class=AutoTokenizer.from_pretrained(small),
    )  # fmt: skip
    theirs = trainer.teacher.tokenizer
    wrote = [json.loads(line)["ids"] for line in (tmp_path / "teacher_completions.jsonl").read_text().splitlines()]
    for row in trainer.train_dataset:
        ids = row["teacher_completion"]
        assert any(ids == w[: len(ids)] for w in wrote)
        text = theirs.decode(next(w for w in wrote if ids == w[: len(ids)]), skip_special_tokens=True)
        assert trainer.tokenizer.decode(row["completion"], skip_special_tokens=True).strip() == text.strip()
        assert row["student_starts"]


@pytest.mark.parametrize("limit", [6, 8, 11])
def test_spans_that_a_limit_cuts_are_left_out(limit, other, tiny_model_dir, tmp_path):
    def rows(**more):
        data = {"prompt": ["a"], "completion": ["the quick brown fox jumps over"]}
        return distilling(tiny_model_dir, other, tmp_path, data, cross_tokenizer=True, **more).train_dataset[0]

    whole, cut = rows(max_length=256), rows(max_length=limit)
    kept = limit - len(cut["student_prompt"])
    assert cut["completion"] == whole["completion"][:kept]
    ends = [*whole["student_starts"][1:], len(whole["completion"])]
    inside = [start for start, end in zip(whole["student_starts"], ends, strict=True) if end <= kept]
    assert cut["student_starts"] == inside
    assert cut["teacher_starts"] == whole["teacher_starts"][: len(inside)]
    assert len(cut["teacher_completion"]) <= max(1, whole["teacher_starts"][len(inside)])


def test_the_teachers_limit_cuts_its_side_alone(tiny_model_dir, tmp_path):
    short = make_other(tmp_path / "short", byte_level(), positions=12)
    data = {"prompt": ["a"], "completion": ["the quick brown fox jumps over"]}
    settings = {"data": data, "cross_tokenizer": True, "max_length": 256}
    trainer = distilling(tiny_model_dir, short, tmp_path, **settings)
    row = trainer.train_dataset[0]
    assert trainer.tokenizer.decode(row["completion"], skip_special_tokens=True) == data["completion"][0]
    assert 0 < len(row["teacher_completion"]) + len(row["teacher_prompt"]) <= 12
    assert 0 < len(row["student_starts"]) < len(row["completion"])
    trainer.train()
    with pytest.raises(DataError, match="row 1: the teacher's prompt has"):
        distilling(tiny_model_dir, short, tmp_path, **settings, teacher_prompt_template=3 * TEMPLATE)


def test_ends_of_both_tokenizers_match_and_special_tokens_match_by_name():
    student, teacher = byte_level(), llama()
    teacher.add_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>", "<|pad|>")])
    teacher.chat_template = CHAT_TEMPLATE
    both = crossing(student, teacher)
    end, pad = student.eos_token_id, student.convert_tokens_to_ids("<|pad|>")
    assert both.ends == {end: teacher.convert_tokens_to_ids("<|im_end|>")}
    pairs = {tuple(pair) for pair in zip(*(ids.tolist() for ids in both.matched[1][:2]), strict=True)}
    assert {(end, both.ends[end]), (pad, teacher.convert_tokens_to_ids("<|pad|>"))} <= pairs
    letter = student.convert_tokens_to_ids("t"), teacher.convert_tokens_to_ids("t")
    assert letter in pairs  # not the byte piece
    new_line = student.convert_tokens_to_ids("Ċ"), teacher.convert_tokens_to_ids("<0x0A>")
    assert new_line in pairs or "\n" in teacher.get_vocab()


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_matched_tokens_have_equal_text_and_every_token_is_matched_or_not(kind):
    student, teacher = byte_level(), pieces(scheme="always")
    both = crossing(student, teacher)
    mine, theirs = token_bytes(student), token_bytes(teacher)
    matched = both.matched[kind]

    def texts(table, spaced):
        return Counter(t[1:] if spaced else t for t in table if t and (not spaced or (t[0] == 32 and len(t) > 1)))

    pairs = [
        (mine[s], theirs[t])
        for s, t in zip(matched.student.tolist(), matched.teacher.tolist(), strict=True)
        if s not in both.ends
    ]
    found = [(s[kind == 2 :], t[kind == 3 :]) for s, t in pairs]
    assert all(s == t for s, t in found)
    assert Counter(s for s, _ in found) == texts(mine, kind == 2) & texts(theirs, kind == 3) != Counter()
    for tokenizer, *ids in (
        (student, matched.student, matched.student_rest),
        (teacher, matched.teacher, matched.teacher_rest),
    ):
        assert sorted(torch.cat(ids).tolist()) == sorted(set(tokenizer.get_vocab().values()))


def test_a_space_that_one_tokenizer_puts_in_front_hides_nothing():
    student, teacher = byte_level(prefix=True), byte_level(size=400)
    both = crossing(student, teacher)
    ids = [student("the fox")["input_ids"], teacher("the fox")["input_ids"]]
    spans = both.spans(*ids)
    assert spans[0].kind == 2
    assert [student.convert_ids_to_tokens(ids[0])[0], teacher.convert_ids_to_tokens(ids[1])[0]] == ["Ġthe", "the"]
    pairs = list(zip(*(side.tolist() for side in both.matched[2][:2]), strict=True))
    assert (ids[0][0], ids[1][0]) in pairs


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"teacher_store": "store"}, ParamsError, "cross_tokenizer cannot be used with teacher_store"),
        ({"teacher_model": "self", "peft": True}, ParamsError, "cannot be used with teacher_model 'self'"),
        (
            {"teacher_model": None, "teacher_config": [{"model": "embedded"}]},
            ParamsError,
            "cross_tokenizer cannot be used with teacher_config",
        ),
        (
            {"teacher_model": "openai:gpt-4o-mini"},
            ParamsError,
            "cannot be used with teacher_model 'openai:gpt-4o-mini'",
        ),
        ({"trainer": "sft"}, ParamsError, "cross_tokenizer is True, but trainer 'sft' does not distil"),
    ],
)
def test_cross_tokenizer_refuses_unsupported_settings_before_anything_loads(settings, error, sentence, tmp_path):
    base = {"model": "nowhere", "teacher_model": "nowhere", "data_path": "nowhere", "cross_tokenizer": True}
    base |= {"teacher_model": None} if settings.get("trainer") == "sft" else {}
    with pytest.raises(error, match=sentence):
        LLMTrainingParams(**{**base, **settings}).validate()


def test_a_loaded_model_has_to_bring_its_tokenizer(other, tiny_model_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(other)
    data, folder = Dataset.from_dict(PAIRS), str(tmp_path / "run")
    params = LLMTrainingParams(
        model=str(tiny_model_dir), teacher_model=model, data_path=data, cross_tokenizer=True, project_name=folder
    )
    with pytest.raises(TeacherError, match="needs its tokenizer too"):
        run(params)


def test_prefix_reuse_changes_no_score(other, tiny_model_dir, tmp_path):
    template = "the quick brown fox jumps over the lazy dog and the quick brown fox jumps again: {input}"
    trainers = [
        distilling(tiny_model_dir, other, tmp_path, PAIRS, cross_tokenizer=True, teacher_prompt_template=template)
        for _ in range(2)
    ]
    trainers[1].teacher.prefix.off = "for comparison"
    figures = [trainer.evaluate() for trainer in trainers]
    assert len(trainers[0].teacher.prefix.ids) > 0
    assert figures[0]["eval_kl"] == pytest.approx(figures[1]["eval_kl"], rel=1e-4)


def test_chats_are_compared_turn_by_turn(tmp_path, chat_model_dir):
    teacher = byte_level(size=400)
    teacher.add_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")])
    teacher.chat_template = CHAT_TEMPLATE
    folder = make_other(tmp_path / "teacher", teacher)
    data = {"messages": [[{"role": "user", "content": "a b"}, {"role": "assistant", "content": "the fox"}]]}
    trainer = distilling(chat_model_dir, folder, tmp_path, data, cross_tokenizer=True, max_length=256)
    row = trainer.train_dataset[0]
    assert trainer.tokenizer.convert_ids_to_tokens(row["completion"][-1]) == "<|im_end|>"
    assert teacher.convert_ids_to_tokens(row["teacher_completion"][-1]) == "<|im_end|>"
    assert row["student_starts"][-1] == len(row["completion"]) - 1
    trainer.train()


def test_a_batch_in_which_nothing_can_be_compared_learns_nothing_from_the_teacher(tiny_model_dir, tmp_path):
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    folder = make_other(tmp_path / "teacher", tokenizer)
    data = {"prompt": ["a", "b"], "completion": ["e\u0301 a b", "e\u0301"]}  # composed by the teacher's tokenizer
    trainer = distilling(tiny_model_dir, folder, tmp_path, data, cross_tokenizer=True, distill_alpha=1.0, max_steps=1)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    line = trainer.state.log_history[0]
    assert (line["loss"], line["kl"], line["teacher_coverage"], line["grad_norm"]) == (0, 0, 0, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_an_adapter_learns_from_a_teacher_with_another_tokenizer(small, tmp_path):
    result = run(LLMTrainingParams(
        model=str(small), teacher_model="embedded", data_path=Dataset.from_dict(PAIRS), cross_tokenizer=True, peft=True,
        epochs=8, batch_size=8, gradient_accumulation=1, lr=2e-2, logging_steps=1, distill_alpha=1.0,
        project_name=str(tmp_path / "run"), mixed_precision="bf16",
    ))  # fmt: skip
    kl = [line["kl"] for line in result.trainer.state.log_history if "kl" in line]
    assert kl[-1] < kl[0]


def test_a_subclass_reaches_the_model_but_cannot_write_for_every_batch(other, tiny_model_dir, tmp_path):
    class Online(PromptDistillationTrainer):
        def generate_teacher_outputs(self, batch):
            return super().generate_teacher_outputs(batch)

    def make(trainer_class):
        config = DistillationSFTConfig(
            output_dir=str(tmp_path), use_distillation=True, teacher_model=str(other), cross_tokenizer=True,
            use_cpu=True, bf16=False, report_to="none",
        )  # fmt: skip
        return trainer_class(
            AutoModelForCausalLM.from_pretrained(tiny_model_dir), config, train_dataset=Dataset.from_dict(PAIRS),
            processing_class=AutoTokenizer.from_pretrained(tiny_model_dir),
        )  # fmt: skip

    trainer = make(PromptDistillationTrainer)
    batch = next(iter(trainer.get_train_dataloader()))
    logits = trainer.teacher_model(**trainer.prepare_sequences(batch, teacher=True)).logits
    assert len(trainer.completion_logits(logits, batch, teacher=True)) == (batch["teacher_labels"] != -100).sum()
    with pytest.raises(ParamsError, match="cross_tokenizer cannot be used with a generate_teacher_outputs"):
        make(Online)
