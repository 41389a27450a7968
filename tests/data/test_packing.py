"""Rows that share a sequence are learned as rows that do not, and what cannot be packed is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from checks import check_close
from conftest import make_tokenizer
from data.test_cross_tokenizer import make_other
from datasets import Dataset
from peft import LoraConfig
from ranks import run_in
from tokenizing import llama
from trainer.test_trainer import PLAIN, quick
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, PromptDistillationTrainer, run
from trl_distill.config.devices import accelerator
from trl_distill.data.collator import DistillationCollator
from trl_distill.data.packing import PackedRows, best_fit
from trl_distill.errors import ModelError, ParamsError
from trl_distill.teachers.local import forward_batches as passes
from trl_distill.teachers.local.teacher import LocalTeacher
from trl_distill.teachers.local.weights import CallersModel

pytestmark = pytest.mark.usefixtures("device")

LETTERS = "abcdefg"
ROWS = {
    "prompt": [" ".join(LETTERS[(n + k) % 7] for k in range(1 + n % 4)) for n in range(8)],
    "completion": ["".join(f" {LETTERS[(3 * n + k) % 7]}" for k in range(1 + n % 5)) for n in range(8)],
}
ROOM = 16  # tokens: several rows a sequence, and several sequences
TEMPLATES = {"teacher_prompt_template": "g f e {input} d"}
LONG = {"teacher_prompt_template": " ".join("gfedcba" * 4) + " {input}"}
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.1,
}  # fmt: skip
GPT2 = {
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.1,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
# a window shorter than a row, so that one which counted the tokens of other rows would be seen
WINDOW = {"head_dim": 8, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, SHAPE),
    "gpt2": (GPT2LMHeadModel, GPT2Config, GPT2),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {**SHAPE, "head_dim": 8}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {**SHAPE, **WINDOW}),
}


def built(kind, config, shape, seed=0, **more):
    """Return a random model of the tests' vocabulary."""
    tokenizer = make_tokenizer()
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind._from_config(config(vocab_size=len(tokenizer), **ids, **shape), **more)


def trainer_of(student, teacher, folder, *, peft=None, evaluated=False, **settings):
    """Return a trainer of one batch a step over all rows, for three steps."""
    config = DistillationSFTConfig(
        **{
            "output_dir": str(folder), "per_device_train_batch_size": 8, "num_train_epochs": 3, "learning_rate": 1e-2,
            "bf16": False, "use_cpu": accelerator() is None, "report_to": "none", "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True, "gradient_checkpointing": False, "dataloader_pin_memory": False, "max_length": ROOM,
            "lr_scheduler_type": "constant", "optim": "sgd", **TEMPLATES, **settings,
        },
        use_distillation=True,
    )  # fmt: skip
    return DistillationSFTTrainer(
        student, config, train_dataset=Dataset.from_dict(ROWS), processing_class=make_tokenizer(),
        eval_dataset=Dataset.from_dict(ROWS) if evaluated else None, teacher_model=teacher, peft_config=peft,
    )  # fmt: skip


TIMES = ("_runtime", "_per_second", "tokens_per_second", "train_runtime")


def figures(trainer):
    """Return the logged figures by step and name, without times."""
    return {
        f"{line['step']} {name}": torch.tensor(float(value))
        for line in trainer.state.log_history
        for name, value in line.items()
        if not name.endswith(TIMES) and name not in ("step", "total_flos")
    }


def changes_of(trainer):
    """Train, and return the figures and the weights that changed."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    after = {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}
    moved = {name: after[name] - before[name] for name in before}
    assert all(change.norm() > 0 for name, change in moved.items() if "bias" not in name), "nothing was learned"
    return figures(trainer), moved


def check_alike(packed, plain):
    """Fail if two runs differ by more than rounding: figures at 1e-5, what the weights moved by at 1e-4."""
    check_close(packed[0], plain[0], 1e-5)
    check_close(packed[1], plain[1], 1e-4)  # a key's bias moves by rounding alone


def run_of(family, folder, *, peft=None, attention="sdpa", **settings):
    """Return what a student of a family learns from a teacher of the same."""
    student, teacher = (built(*FAMILIES[family], seed=seed, attn_implementation=attention) for seed in (1, 2))
    return changes_of(trainer_of(student, teacher, folder, peft=peft, **settings))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_give_the_losses_of_unpacked_rows(family, attention, tmp_path):
    plain = run_of(family, tmp_path, attention=attention)
    for settings in ({"padding_free": True}, {"packing": True}):
        check_alike(run_of(family, tmp_path, attention=attention, **settings), plain)


@pytest.mark.parametrize(
    "settings",
    [
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"pad_to_multiple_of": 16},
        {"gradient_checkpointing": True},
        {"distill_alpha": 0.0},
        {"distill_divergence": "jsd", "student_prompt_template": "{input} a"},
    ],
    ids=["accumulation", "multiple", "checkpointing", "no teacher", "jsd"],
)
def test_packing_gives_the_same_losses_with_other_settings(settings, tmp_path):
    check_alike(run_of("llama", tmp_path, packing=True, **settings), run_of("llama", tmp_path, **settings))


@pytest.mark.parametrize("name", ["padding_free", "packing"])
def test_an_adapter_learns_the_same_from_packed_rows(name, tmp_path):
    runs = []
    for settings in ({}, {name: True}):
        torch.manual_seed(0)  # the adapter's first weights
        runs.append(run_of("llama", tmp_path, peft=LORA, **settings))
    check_close(runs[1][0], runs[0][0], 1e-5)
    check_close(runs[1][1], runs[0][1], 1e-4)


UNEQUAL = [(3, 30), (1, 2), (2, 1), (1, 3), (2, 2), (1, 1)]  # tokens of prompt and completion


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
@pytest.mark.parametrize(("most", "passes"), [(1, 6), (48, 2), (4096, 1)], ids=["a row a pass", "some", "all at once"])
@pytest.mark.parametrize("front", [0, 28], ids=["flattened", "behind a prefix"])
def test_the_teacher_says_the_same_in_passes(front, most, passes, family, tmp_path, monkeypatch):
    """Rows of unequal lengths are flattened, and padded where they begin alike and a cache has that."""
    monkeypatch.setattr("trl_distill.teachers.local.teacher.MOST", most)
    teacher = built(*FAMILIES[family], seed=2)
    trainer = trainer_of(built(*FAMILIES["llama"], seed=1), teacher, tmp_path, packing=True)
    prefix, rows = list(range(40, 40 + front)), []
    for n, (prompt, completion) in enumerate(UNEQUAL):
        ids = [5 + (7 * n + k) % 200 for k in range(prompt + completion)]
        sides = {"student_prompt": ids[:1], "teacher_prompt": prefix + ids[:prompt]}
        rows.append({**sides, "completion": ids[prompt:]})
    trainer.teacher.expect_prompts([row["teacher_prompt"] for row in rows])
    batch = trainer.data_collator([rows])
    if most < 4096:
        layout, student = batch["layout"], batch["layout"].student  # its tokens would be room enough
        batch["layout"] = replace(layout, student=replace(student, lengths=0 * student.lengths))
    trainer.teacher.score(batch)  # looks whether rows are kept apart, and reads the prefix
    shapes = []
    hook = teacher.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    packed = trainer.teacher.score(batch)
    hook.remove()
    assert len(trainer.teacher.prefix.ids) == front
    assert len(shapes) == passes
    assert sum(rows for rows, _ in shapes) == (len(UNEQUAL) if front else passes)
    plain = DistillationCollator(trainer.tokenizer.pad_token_id)(rows)
    weights = CallersModel(teacher)
    alone = LocalTeacher("alone", weights=weights, config=teacher.config, tokenizer=trainer.tokenizer)
    expected = alone.score(plain)
    check_close({"hidden": packed.hidden}, {"hidden": expected.hidden}, 1e-5)


def planned(lengths, *, start=0, flattens=True, most=None, hidden_size=1000, masked=True):
    """Return the passes over rows and whether they are flattened."""
    how = {"start": start, "flattens": flattens, "most": most, "hidden_size": hidden_size, "masked": masked}
    return [(rows.start, rows.stop, flat) for rows, flat in passes.plan(lengths, **how)]


def test_rows_are_read_the_way_that_has_less_to_compute():
    lengths = [30, 34, 31]
    assert planned(lengths) == [(0, 3, True)]
    assert planned(lengths, start=28) == [(0, 3, False)]  # what a cache has is not read again
    assert planned(lengths, flattens=False) == [(0, 3, False)]
    assert planned(lengths, hidden_size=32) == [(0, 3, False)]  # it would look at rows that are masked
    assert planned(lengths, hidden_size=32, masked=False) == [(0, 3, True)]
    assert planned(lengths, most=64) == [(0, 2, True), (2, 3, True)]
    assert planned(lengths, start=28, most=8) == [(0, 1, False), (1, 2, False), (2, 3, False)]


def test_every_row_is_in_one_group_and_none_is_too_full():
    generator = torch.Generator().manual_seed(0)
    for room in (8, 64, 1000):
        lengths = torch.randint(1, room + 1, (300,), generator=generator).tolist()
        groups = best_fit(lengths, room)
        assert sorted(place for group in groups for place in group) == list(range(300))
        fullness = [sum(lengths[place] for place in group) for group in groups]
        assert max(fullness) <= room
        assert len(groups) <= 11 / 9 * -(-sum(lengths) // room) + 4  # what best fit decreasing is known to keep
    assert best_fit([3, 5, 2, 4, 1], 8) == [[1, 0], [3, 2, 4]]


def test_packed_sequences_are_full_and_count_each_token_once(tmp_path):
    trainer = trainer_of(built(*FAMILIES["llama"]), built(*FAMILIES["llama"], seed=2), tmp_path, packing=True)
    data = trainer.train_dataset
    assert isinstance(data, PackedRows)
    tokens = sum(len(row["student_prompt"]) + len(row["completion"]) for row in data.rows)
    assert len(data) == -(-tokens // ROOM) < len(ROWS["prompt"])
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape == batch["position_ids"].shape == (1, batch["layout"].student_tokens)
    assert (batch["labels"] != -100).sum() == sum(len(row["completion"]) for row in data.rows)
    assert batch["labels"][batch["position_ids"] == 0].tolist() == [-100] * len(ROWS["prompt"])


def test_the_first_token_under_an_empty_prompt_is_no_target_of_the_row_before():
    rows = [
        {"student_prompt": [], "teacher_prompt": [5, 6], "completion": [10, 11]},
        {"student_prompt": [7], "teacher_prompt": [], "completion": [12, 13]},
        {"student_prompt": [], "teacher_prompt": [8], "completion": [14]},
    ]
    batch = DistillationCollator(pad_token_id=0, padding_free=True)(rows)
    assert batch["input_ids"].tolist() == [[10, 11, 7, 12, 13, 14]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0]]
    assert batch["labels"].tolist() == [[-100, 11, -100, -100, 13, -100]]
    assert batch["teacher_labels"][batch["teacher_labels"] != -100].tolist() == [11, 13]


def test_filler_of_a_packed_sequence_is_neither_learned_nor_counted():
    rows = [{"student_prompt": [5], "teacher_prompt": [6, 5], "completion": [10, 11]}] * 2
    batch = DistillationCollator(pad_token_id=3, pad_to_multiple_of=8, padding_free=True)(rows)
    assert batch["input_ids"].tolist() == [[5, 10, 11, 5, 10, 11, 3, 3]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]]
    assert batch["labels"][0, 6:].tolist() == [-100, -100]
    assert batch["layout"].student.lengths.tolist() == [3, 3]


@pytest.mark.parametrize("settings", [{}, {"packing": True}, {"padding_free": True}], ids=["no", "packing", "free"])
@pytest.mark.parametrize("eval_packing", [None, True, False])
def test_packed_evaluation_gives_the_same_metrics(settings, eval_packing, tmp_path):
    models = [(built(*FAMILIES["llama"], seed=1), built(*FAMILIES["llama"], seed=2)) for _ in range(2)]
    plain = trainer_of(*models[0], tmp_path, evaluated=True)
    trainer = trainer_of(*models[1], tmp_path, evaluated=True, eval_packing=eval_packing, **settings)
    packs = settings.get("packing", False) if eval_packing is None else eval_packing
    assert isinstance(trainer.eval_dataset, PackedRows) == packs
    expected = plain.evaluate()
    given = Dataset.from_dict(ROWS)
    for found in (trainer.evaluate(), trainer.evaluate(given), trainer.evaluate(trainer.train_dataset)):
        same = [name for name in expected if not name.endswith(TIMES)]
        assert "eval_kl" in same
        assert {n: found[n] for n in same} == {n: pytest.approx(expected[n], rel=1e-5) for n in same}
    assert trainer.evaluate({"x": given})["eval_x_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    assert trainer.predict(given).metrics["test_kl"] == pytest.approx(expected["eval_kl"], rel=1e-5)


def stored(folder, **settings):
    """Return what a run with a store of targets learns."""
    student, teacher = (built(*FAMILIES["llama"], seed=seed) for seed in (1, 2))
    return changes_of(trainer_of(student, teacher, folder, teacher_store=str(folder / "store"), **settings))


def own(folder, **settings):
    """Return what an adapter learns from the model under it."""
    torch.manual_seed(0)
    return changes_of(trainer_of(built(*FAMILIES["llama"], seed=1), "self", folder, peft=LORA, **settings))


def several(combine):
    """Return a run with two teachers, both or either of which take a row."""

    def runs(folder, **settings):
        teachers = []
        for seed, template, rows in ((2, "g f {input}", 0.5), (3, "{input} d", "all")):
            share = {"weight": seed, "rows": "all"} if combine == "mixture" else {"rows": rows}
            teachers.append({"model": built(*FAMILIES["llama"], seed=seed), "template": template, **share})
        settings |= {"teacher_config": {"combine": combine, "teachers": teachers}, "teacher_prompt_template": "{input}"}
        return changes_of(trainer_of(built(*FAMILIES["llama"], seed=1), None, folder, **settings))

    return runs


def crossed(folder, **settings):
    """Return what a student learns from a teacher of another tokenizer."""
    other = folder / "other"
    if not other.exists():
        make_other(other, llama())
    return changes_of(
        trainer_of(built(*FAMILIES["llama"], seed=1), str(other), folder, cross_tokenizer=True, **settings)
    )


@pytest.mark.parametrize("settings", [{"packing": True}, {"padding_free": True}], ids=["packing", "padding_free"])
@pytest.mark.parametrize(
    "runs",
    [stored, own, several("mixture"), several("completions"), crossed],
    ids=["stored", "self", "mixture", "several", "cross-tokenizer"],
)
def test_every_kind_of_teacher_teaches_packed_rows_the_same(runs, settings, tmp_path):
    batch = {"per_device_train_batch_size": 16}  # a list of teachers may make two rows of one
    check_alike(runs(tmp_path, **batch, **settings), runs(tmp_path, **batch))


def recurrent(seed):
    """Return a model that carries a state from each token to the next, whatever is between."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "initializer_range": 0.1}
    return built(MambaForCausalLM, MambaConfig, shape, seed=seed)


def test_a_teacher_that_cannot_keep_rows_apart_reads_them_padded(tmp_path):
    runs = []
    for settings in ({}, {"packing": True}):
        student = built(*FAMILIES["llama"], seed=1)
        runs.append(changes_of(trainer_of(student, recurrent(2), tmp_path, **settings)))
    check_alike(runs[1], runs[0])


OPT = {
    "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256,
    "word_embed_proj_dim": 32, "dropout": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("name", ["packing", "padding_free", "eval_packing"])
@pytest.mark.parametrize(
    ("student", "kind"),
    [(lambda: recurrent(1), "mamba"), (lambda: built(OPTForCausalLM, OPTConfig, OPT), "opt")],
    ids=["a state", "positions of its own"],
)
def test_a_student_that_cannot_keep_rows_apart_is_refused(student, kind, name, tmp_path):
    with pytest.raises(ModelError, match=f"^{name} puts several rows .* model '{kind}' with the attention '"):
        trainer_of(student(), built(*FAMILIES["llama"]), tmp_path, **{name: True})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"packing": True, "packing_strategy": "wrapped"}, "packing_strategy 'wrapped' cuts rows apart"),
        ({"eval_packing": True, "packing_strategy": "bfd_split"}, "packing_strategy 'bfd_split' cuts rows apart"),
        ({"packing": True, "max_length": None}, "packing fills sequences up to max_length, which is None"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches sends out batches that one process"),
    ],
)
def test_settings_that_cannot_be_packed_are_refused_before_a_model_loads(settings, sentence, tmp_path):
    with pytest.raises(ParamsError, match=sentence):
        trainer_of("no such model", "no such teacher", tmp_path, **settings)


class Online(PromptDistillationTrainer):
    def generate_teacher_outputs(self, batch):
        return super().generate_teacher_outputs(batch)


@pytest.mark.parametrize("name", ["packing", "padding_free"])
def test_completions_that_are_written_for_every_batch_are_not_packed(name, tmp_path):
    config = DistillationSFTConfig(**quick(tmp_path, **{name: True}), use_distillation=True)
    with pytest.raises(ParamsError, match="packing and padding_free cannot be used with a generate_teacher_outputs"):
        Online(
            built(*FAMILIES["llama"]), config, train_dataset=Dataset.from_dict(ROWS), processing_class=make_tokenizer(),
            teacher_model=built(*FAMILIES["llama"]),
        )  # fmt: skip


class Own(PromptDistillationTrainer):
    def compute_loss(self, model, inputs):
        logits = model(**self.prepare_sequences(inputs)).logits
        with torch.no_grad():
            theirs = self.teacher_model(**self.prepare_sequences(inputs, teacher=True)).logits
        both = self.completion_logits(logits, inputs), self.completion_logits(theirs, inputs, teacher=True)
        return self.compute_kl_loss(*both)


def test_a_custom_loss_gives_the_same_on_packed_rows(tmp_path):
    found = []
    for settings in ({}, {"packing": True}):
        config = DistillationSFTConfig(
            **quick(tmp_path, per_device_train_batch_size=8, max_length=ROOM, max_steps=1, **settings),
            use_distillation=True, **TEMPLATES,
        )  # fmt: skip
        trainer = Own(
            built(*FAMILIES["llama"], seed=1), config, train_dataset=Dataset.from_dict(ROWS),
            processing_class=make_tokenizer(), teacher_model=built(*FAMILIES["llama"], seed=2),
        )  # fmt: skip
        trainer.train()
        found.append(trainer.state.log_history[0]["loss"])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


RANKS = """
from data.test_packing import ran_with
every = [dict(packing=True, per_device_train_batch_size=2), dict(padding_free=True, per_device_train_batch_size=4)]
result = ran_with({folder!r}, every)  # of packed rows there are four sequences
"""


def ran_with(folder, every):
    """Return the figures of runs with each of some settings."""
    found = []
    for settings in every:
        models = [built(*FAMILIES["llama"], seed=seed) for seed in (1, 2)]
        trainer = trainer_of(*models, folder, **settings)
        trainer.train()
        lines = [line for line in trainer.state.log_history if "kl" in line]
        found.append([line[name] for line in lines for name in ("loss", "kl", "num_tokens")])
    return found


def test_two_processes_with_packed_rows_have_the_losses_of_one_without(tmp_path):
    packed = run_in(2, RANKS.format(folder=str(tmp_path / "out")), tmp_path)
    (plain,) = ran_with(str(tmp_path / "out"), [{}])
    assert len(plain) == 9  # three steps
    assert packed == [pytest.approx(plain, rel=1e-5)] * 2


@pytest.mark.parametrize("name", ["packing", "padding_free"])
def test_a_run_packs(name, tiny_model_dir, tiny_teacher_dir, tmp_path):
    def lost(folder, **settings):
        params = LLMTrainingParams(
            model=str(tiny_model_dir), teacher_model=str(tiny_teacher_dir), data_path=Dataset.from_dict(ROWS),
            project_name=str(tmp_path / folder), batch_size=8, gradient_accumulation=1, logging_steps=1, block_size=20,
            teacher_prompt_template="g f {input}", **settings,
        )  # fmt: skip
        result = run(params)
        return [line["loss"] for line in result.trainer.state.log_history if "loss" in line], result.trainer

    (packed, trainer), (plain, _) = lost("packed", **{name: True}), lost("plain")
    assert trainer.padding_free
    assert isinstance(trainer.train_dataset, PackedRows) == (name == "packing")
    assert packed == pytest.approx(plain, rel=1e-5)


def test_plain_sft_packs_as_trl_does(tiny_model_dir, tmp_path):
    settings = {
        "model": str(tiny_model_dir), "trainer": "sft", "data_path": Dataset.from_dict(PLAIN), "block_size": 16,
        "project_name": str(tmp_path / "sft"), "epochs": 1,
    }  # fmt: skip
    result = run(LLMTrainingParams(packing=True, **settings))
    assert "seq_lengths" in result.trainer.train_dataset.column_names
    with pytest.raises(ParamsError, match="padding_free without a teacher is for packed rows only"):
        run(LLMTrainingParams(padding_free=True, **settings))
