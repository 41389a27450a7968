"""What runs a teacher while it writes changes no greedy completion; vLLM's tests run if it is installed."""

from __future__ import annotations

import json
import random
from importlib.util import find_spec

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from conftest import make_model
from transformers import ContinuousBatchingConfig, Gemma2Config, Gemma2ForCausalLM

from trl_distill import LLMTrainingParams, ParamsError, TeacherError, generate_with_teacher
from trl_distill.cli import main
from trl_distill.models.generation import GenerationSettings
from trl_distill.models.loading import ModelSource
from trl_distill.teachers.completions.engines import selection as engines
from trl_distill.teachers.completions.engines.continuous_batching import ContinuousBatching
from trl_distill.teachers.completions.generate import complete
from trl_distill.teachers.completions.store import CompletionStore
from trl_distill.teachers.loading import load_teacher
from trl_distill.teachers.target_store import writer as teaching
from trl_distill.teachers.target_store.folder import TargetFolder, sequence_key
from trl_distill.teachers.target_store.folder import rows_of as rows_of_shard
from trl_distill.teachers.target_store.reader import StoredTeacher
from trl_distill.teachers.target_store.writer import TargetSettings, write_targets

WORDS = ["where", "is", "my", "parcel", "and", "why", "was", "the", "card", "charged", "twice", "please", "refund"]
FRONT = "You sort messages of customers into queues, and answer with the name of a queue alone.\n"
missing = find_spec("vllm") is None
needs_vllm = pytest.mark.skipif(missing, reason="vLLM is not installed")
foreign = pytest.mark.filterwarnings("ignore")  # vLLM's environment holds libraries back
IN_FLOAT32 = GenerationSettings(max_new_tokens=24, batch_size=4)


def prompts_of(tokenizer, count=12):
    """Return prompts of unequal lengths that begin alike."""
    lot = random.Random(3)
    texts = [FRONT + " ".join(lot.choices(WORDS, k=lot.randint(1, 25))) for _ in range(count)]
    return [tokenizer(text)["input_ids"] for text in texts]


@pytest.fixture(scope="module")
def embedded():
    return load_teacher("embedded", dtype="float32")


@pytest.fixture(scope="module")
def expected(embedded):
    """The prompts, and what `generate` writes behind each of them alone."""
    prompts = prompts_of(embedded.tokenizer)
    own = load_teacher("embedded", dtype="float32")
    own.prefix.off = "compared with"
    return prompts, [own.generate([prompt], IN_FLOAT32)[0] for prompt in prompts]


def by_continuous(teacher, prompts, settings):
    """Return completions and the order in which they came."""
    found = {}
    for some in ContinuousBatching(teacher).completions({str(i): prompt for i, prompt in enumerate(prompts)}, settings):
        found |= some
    return [found[str(i)] for i in range(len(prompts))], list(found)


@pytest.mark.parametrize("engine", ["auto", "transformers"])
def test_on_a_cpu_batches_write_what_each_prompt_gets_alone(engine, embedded, expected):
    prompts, alone = expected
    settings = GenerationSettings(max_new_tokens=24, batch_size=4, engine=engine)
    assert complete(embedded, prompts, settings, progress=False) == alone
    assert embedded.prefix.off is None
    assert len(embedded.prefix.ids) > 10


@pytest.mark.parametrize(("engine", "batch_size"), [("transformers", 4), ("auto", 1)])
def test_the_engine_for_the_device_at_hand_writes_what_generate_does(engine, batch_size, device, expected):
    """On a GPU continuous batching; for `auto`, with more than eight batches, vLLM if it is installed."""
    prompts, alone = expected
    teacher = load_teacher("embedded", dtype="float32", device=device)
    settings = GenerationSettings(max_new_tokens=24, batch_size=batch_size, engine=engine)
    first = engines.engines_for(teacher, settings, len(prompts))[0]
    on_gpu = ContinuousBatching if missing or engine == "transformers" else engines.VLLM
    assert type(first) is (on_gpu if device.type == "cuda" else engines.Batches)
    written = complete(teacher, prompts, settings, progress=False)
    same = sum(a == b for a, b in zip(written, alone, strict=True))
    assert same >= (len(alone) if device.type == "cpu" else 0.8 * len(alone))  # a near tie may fall otherwise on a GPU


def test_continuous_batching_writes_what_generate_does(embedded, expected):
    prompts, alone = expected
    attention, before = embedded.model.config._attn_implementation, torch.random.get_rng_state()
    written, order = by_continuous(embedded, prompts, IN_FLOAT32)
    assert written == alone
    assert {completion.finished for completion in alone} == {True, False}
    assert order != [str(i) for i in range(len(prompts))]  # each as it was finished
    assert embedded.model.config._attn_implementation == attention
    assert torch.equal(before, torch.random.get_rng_state())


def test_continuous_batching_cuts_at_the_limit_and_writes_no_row_without_a_token(tmp_path):
    teacher = load_teacher(str(make_model(tmp_path, extra_rows=40)))
    prompts = [[5, 6], [7, 8, 9, 10], [11]]
    settings = GenerationSettings(max_new_tokens=6)
    written, _ = by_continuous(teacher, prompts, settings)
    assert written == teacher.generate(prompts, settings)
    assert not all(completion.finished for completion in written)
    assert all(token < len(teacher.tokenizer) for completion in written for token in completion.ids)
    teacher.restrict_vocabulary(20)
    written, _ = by_continuous(teacher, prompts, settings)
    assert written == teacher.generate(prompts, settings)
    assert all(token < 20 for completion in written for token in completion.ids)


def test_continuous_batching_samples_the_same_completions_again(embedded, expected):
    drawn = GenerationSettings(max_new_tokens=24, batch_size=4, do_sample=True)
    first, again = (by_continuous(embedded, expected[0], drawn)[0] for _ in range(2))
    assert first == again != expected[1]


@pytest.mark.skipif(not hasattr(ContinuousBatchingConfig, "page_size"), reason="it is used from transformers 5.18 on")
def test_continuous_batching_is_compared_with_generate_before_it_is_used(embedded, expected):
    prompts = {str(i): prompt for i, prompt in enumerate(expected[0])}
    written = {}
    for some in ContinuousBatching(embedded).write(prompts, IN_FLOAT32):
        written |= some
    assert [written[key] for key in prompts] == expected[1]
    with pytest.raises(engines.EngineError, match=r"^$"):  # it looks for no text
        next(ContinuousBatching(embedded).write(prompts, GenerationSettings(stop=("x",), batch_size=4)))
    other = ContinuousBatching(embedded)
    other.completions = lambda prompts, settings: iter([{key: engines.Completion((), False) for key in prompts}])
    with pytest.raises(engines.EngineError, match="its first tokens differ from those of `generate`"):
        next(other.write(prompts, IN_FLOAT32))


def test_completions_of_one_engine_are_stored_for_all_engines(embedded, expected, tmp_path):
    prompts, alone = expected
    store = CompletionStore(tmp_path / "store.jsonl")
    complete(embedded, prompts, IN_FLOAT32, store=store, progress=False)
    named = GenerationSettings(max_new_tokens=24, engine="vllm")
    assert complete(embedded, prompts, named, store=CompletionStore(store.path), progress=False) == alone


class Failing:
    """An engine that writes one completion and fails."""

    name = "A failing one"

    def __init__(self, teacher):
        self.teacher = teacher

    def write(self, prompts, settings):
        key, prompt = next(iter(prompts.items()))
        yield {key: self.teacher.generate([prompt], settings)[0]}
        raise engines.EngineError("it has no more memory")


def test_transformers_continues_if_an_engine_fails(embedded, expected, monkeypatch, caplog):
    prompts, alone = expected
    both = [Failing(embedded), engines.Batches(embedded)]
    monkeypatch.setattr(engines, "engines_for", lambda *_: both)
    assert complete(embedded, prompts, IN_FLOAT32, progress=False) == alone
    assert f"A failing one does not generate for teacher {embedded.name!r}: it has no more memory." in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_model": "http://localhost:1/v1#m"}, "teacher_model 'http://localhost:1/v1#m' is a server"),
        ({"teacher_model": "ema"}, "teacher_model is 'ema', an average in memory that vLLM cannot load"),
        (
            {"teacher_model": "embedded", "distill_online": True},
            "distill_online has the teacher generate during training",
        ),
    ],
)
def test_vllm_is_refused_where_nothing_is_written_before_training(settings, message):
    params = LLMTrainingParams(
        model="embedded", trainer="distillation", data_path="rows.jsonl", teacher_engine="vllm", **settings
    )
    with pytest.raises(ParamsError, match=f"teacher_engine is 'vllm', but {message}.*; drop teacher_engine"):
        params.validate()


@pytest.mark.skipif(not missing, reason="vLLM is installed")
def test_vllm_is_refused_where_it_is_missing_before_anything_is_read():
    flags = ["--model", "nowhere", "--teacher-model", "nowhere", "--data-path", "nowhere", "--trainer", "distillation"]
    done = CliRunner().invoke(main, ["llm", *flags, "--teacher-engine", "vllm"])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "--teacher-engine is 'vllm', which is not installed; `pip install vllm`, or drop" in done.stderr
    with pytest.raises(TeacherError, match=r"^engine is 'vllm', and it cannot write for model .*pip install vllm"):
        generate_with_teacher("embedded", "{input}", ["a"], engine="vllm")


def test_an_unknown_engine_is_refused():
    with pytest.raises(ParamsError, match="engine is 'sglang'; expected one of 'auto', 'transformers', 'vllm'"):
        generate_with_teacher("embedded", "{input}", ["a"], engine="sglang")


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


@foreign
@needs_vllm
def test_vllm_writes_what_generate_does_and_ends_where_it_does(embedded, expected, on_cpu, tmp_path):
    prompts, alone = expected
    store = CompletionStore(tmp_path / "store.jsonl")
    named = GenerationSettings(max_new_tokens=24, engine="vllm")
    assert complete(embedded, prompts, named, store=store, progress=False) == alone
    assert complete(embedded, prompts, IN_FLOAT32, store=CompletionStore(store.path), progress=False) == alone
    text = embedded.tokenizer.decode(max(alone, key=lambda one: len(one.ids)).ids[:-1])
    stop = GenerationSettings(max_new_tokens=24, stop=(text[1:3],))
    here, there = (complete(embedded, prompts, stop, progress=False) for stop in (stop, with_vllm(stop)))
    assert here == there != alone


def with_vllm(settings):
    return GenerationSettings(**{**vars(settings), "engine": "vllm"})


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """The folder of a LoRA adapter of the embedded model."""
    import peft

    folder = tmp_path_factory.mktemp("adapted")
    base = ModelSource(load_teacher("embedded").source.path).load_model()
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    peft.get_peft_model(base, config).save_pretrained(folder)
    return str(folder)


@foreign
@needs_vllm
def test_vllm_applies_an_adapter_and_writes_no_row_that_the_student_lacks(expected, adapted, on_cpu):
    teacher = load_teacher(adapted, dtype="float32")
    teacher.restrict_vocabulary(1200)
    written = [complete(teacher, expected[0], how, progress=False) for how in (IN_FLOAT32, with_vllm(IN_FLOAT32))]
    assert written[0] == written[1] != expected[1]
    assert max(token for one in written[1] for token in one.ids) < 1200


@foreign
@needs_vllm
def test_a_run_whose_teacher_is_the_student_itself_has_vllm_write(on_cpu, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": word}) + "\n" for word in WORDS[:6]))
    flags = ["--model", "embedded", "--teacher-model", "self", "--peft", "--data-path", str(tmp_path / "rows.jsonl")]
    flags += ["--trainer", "distillation", "--teacher-prompt-template", FRONT + "{input}", "--max-steps", "1"]
    flags += ["--distill-max-teacher-length", "8"]
    stores = []
    for engine in ("transformers", "vllm"):
        project = tmp_path / engine
        done = CliRunner().invoke(main, ["llm", *flags, "--teacher-engine", engine, "--project-name", str(project)])
        assert done.exit_code == 0, done.output
        stores.append(sorted((project / "teacher_completions.jsonl").read_text().splitlines()))
    assert stores[0] == stores[1]


@foreign
@needs_vllm
def test_a_model_that_vllm_cannot_run_is_a_sentence_that_names_its_log(tiny_teacher_dir, on_cpu):
    with pytest.raises(TeacherError, match=r"engine is 'vllm', and it cannot write for .*; its log is /.*vllm\.log"):
        generate_with_teacher(str(tiny_teacher_dir), "{input}", ["a"], engine="vllm", progress=False)


@foreign
@needs_vllm
@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"use_dora": True}, "plain LoRA adapters, and this one has use_dora"),
        ({"bias": "all"}, "plain LoRA adapters, and this one has bias"),
        ({"peft_type": "IA3"}, "this one is of the kind IA3"),
    ],
)
def test_adapters_that_vllm_does_not_apply_are_refused(settings, why, tmp_path):
    path = load_teacher("embedded").source.path
    saved = {"peft_type": "LORA", "base_model_name_or_path": path, "r": 4, "task_type": "CAUSAL_LM", **settings}
    (tmp_path / "adapter_config.json").write_text(json.dumps(saved))
    with pytest.raises(TeacherError, match=why):
        generate_with_teacher(str(tmp_path), "{input}", ["a"], engine="vllm")


@foreign
@needs_vllm
def test_vllm_refuses_a_loaded_model(embedded):
    with pytest.raises(TeacherError, match="its weights are only in memory, and vLLM loads a model by its folder"):
        generate_with_teacher(embedded.model, "{input}", ["a"], engine="vllm", tokenizer=embedded.tokenizer)


# -- a store's targets

BF16 = {"log_probs": 0.05, "mass": 0.02, "tokens": 0.5}
AT_ONE = TargetSettings(k=12, temperatures=(1.0,), batch_size=4)


def rows_of(expected, teacher):
    """Return rows with completions of unequal lengths, one of a single token and one behind an empty prompt."""
    prompts, alone = expected
    given = [list(one.ids) for one in alone] + [teacher.tokenizer(word)["input_ids"] for word in WORDS]
    fronts = [*prompts, *(prompts[0][: 3 + i] for i in range(len(WORDS)))]
    rows = [{"teacher_prompt": front, "completion": ids} for front, ids in zip(fronts, given, strict=True)]
    rows += [{"teacher_prompt": [], "completion": ids} for ids in (given[0], given[0][:1])]
    rows.append({"teacher_prompt": prompts[1], "completion": given[1][:1]})
    return [{"row": i, "student_prompt": [5], **row} for i, row in enumerate(rows)]


def rows_of_table(folder):
    """Return the rows of a store in the order of their keys."""
    shards = [rows_of_shard(pq.read_table(path)) for path in sorted(folder.glob("*.parquet"))]
    return sorted((row for shard in shards for row in shard), key=lambda row: row.key)


def stored_by(engine, teacher, rows, folder, **changes):
    """Write a store and return its manifest, and its rows by key."""
    target = TargetFolder(folder / engine)
    settings = TargetSettings(**{**vars(AT_ONE), "engine": engine, **changes})
    write_targets(teacher, rows, target, settings)
    manifest = target.manifest()
    table = target.rows(manifest)
    keys = [sequence_key(row["teacher_prompt"], row["completion"]) for row in rows]
    return manifest, [table.get(key) for key in keys]


def check_alike(ours, theirs, *, log_probs=2**-10, mass=1e-5, tokens=0.99):
    """Compare rows: log-probabilities by rank, by default to float16's rounding, the tail's mass, and the tokens."""
    same = total = 0
    for row, other in zip(ours, theirs, strict=True):
        assert row.key == other.key
        assert row.completion.tolist() == other.completion.tolist()
        mine, yours = row.arrays, other.arrays
        assert mine.keys() == yours.keys()
        assert {name: (a.dtype, a.shape) for name, a in mine.items()} == {
            name: (a.dtype, a.shape) for name, a in yours.items()
        }
        values, expected = (own["log_probs"].astype(np.float64) for own in (mine, yours))
        assert (np.abs(values - expected) <= log_probs * np.maximum(1, np.abs(expected))).all()
        masses = [np.exp(v - own["log_normalizers"]).sum(1) for v, own in ((values, mine), (expected, yours))]
        assert np.abs(masses[0] - masses[1]).max(initial=0) <= mass
        same += (mine["token_ids"] == yours["token_ids"]).sum()
        total += mine["token_ids"].size
    assert same >= tokens * total > 0


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """A random model whose head has more rows than its tokenizer has tokens, with a soft cap on its logits."""
    folder, tokenizer = tmp_path_factory.mktemp("padded"), load_teacher("embedded").tokenizer
    config = Gemma2Config(
        vocab_size=len(tokenizer) + 52, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=64, max_position_embeddings=128,
        final_logit_softcapping=5.0, attn_logit_softcapping=None, initializer_range=0.3, query_pre_attn_scalar=64,
        pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    Gemma2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@foreign
@needs_vllm
def test_vllm_scores_as_transformers_does(embedded, expected, on_cpu, tmp_path):
    rows = rows_of(expected, embedded)
    _, theirs = stored_by("transformers", embedded, rows, tmp_path)
    fresh = load_teacher("embedded", dtype="float32")
    manifest, ours = stored_by("vllm", fresh, rows, tmp_path)
    assert not fresh.loaded
    assert [shard["engine"] for shard in manifest["shards"]] == ["vLLM"]
    check_alike(ours, theirs)


@foreign
@needs_vllm
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vllm_counts_rows_that_pad_a_vocabulary_and_reads_to_the_limit(dtype, padded, expected, on_cpu, tmp_path):
    teacher = load_teacher(padded, dtype=dtype)
    rows = rows_of(expected, teacher)
    rows.append({**rows[0], "row": 99, "teacher_prompt": [7] * 100, "completion": [9] * 28})
    theirs = stored_by("transformers", teacher, rows, tmp_path)[1]
    ours = stored_by("vllm", teacher, rows, tmp_path)[1]
    assert any((row.arrays["token_ids"] >= len(teacher.tokenizer)).any() for row in ours)
    check_alike(ours, theirs, **({} if dtype == "float32" else BF16))


@foreign
@needs_vllm
def test_vllm_resumes_a_store_that_transformers_began(expected, on_cpu, tmp_path, monkeypatch):
    """Shards are kept; of the one that was stopped no batch is, since a shard says what scored it."""
    monkeypatch.setattr(teaching, "ROWS", 10)
    teacher = load_teacher("embedded", dtype="float32")
    rows = rows_of(expected, teacher)
    theirs = stored_by("transformers", teacher, rows, tmp_path / "whole")[1]
    score, asked = teacher.score, []
    monkeypatch.setattr(teacher, "score", lambda batch: asked.append(batch) or (score(batch) if asked[4:] == [] else 1))
    target = tmp_path / "stopped" / "vllm"
    with pytest.raises(TeacherError, match="gives no full distribution"):
        write_targets(teacher, rows, TargetFolder(target), AT_ONE, progress=False)
    assert len(list((target / ".parts").iterdir())) == 1
    manifest, ours = stored_by("vllm", teacher, rows, tmp_path / "stopped")
    assert [shard["engine"] for shard in manifest["shards"]] == ["transformers", "vLLM", "vLLM"]
    assert len(asked) == 5
    check_alike(ours, theirs)
    assert not (target / ".parts").exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"temperatures": (1.0, 3.0)}, "it has probabilities at T = 1, and the store is for T = 1, 3"),
        ({"temperatures": (2.0,)}, "it has probabilities at T = 1, and the store is for T = 2"),
        ({"kind": "sample"}, "targets of the kind sample are more than the likeliest tokens"),
        ({"kind": "hidden"}, "targets of the kind hidden are more than the likeliest tokens"),
        ({}, "its probabilities are over the teacher's 2,560 tokens, of which the student has 2,000"),
    ],
)
def test_what_vllm_does_not_give_is_computed_by_transformers(changes, why, expected, tmp_path, capsys):
    teacher = load_teacher("embedded", dtype="float32")
    teacher.restrict_vocabulary(2560 if changes else 2000)
    rows = [{**row, "completion": [5, 6]} for row in rows_of(expected, teacher)[:3]]
    manifest, ours = stored_by("vllm", teacher, rows, tmp_path, **changes)
    assert f"Targets are computed by transformers, not by vLLM: {why}.\n" in capsys.readouterr().out
    assert [shard["engine"] for shard in manifest["shards"]] == ["transformers"]
    _, theirs = stored_by("transformers", teacher, rows, tmp_path, **changes)
    for row, other in zip(ours, theirs, strict=True):
        for name, array in row.arrays.items():
            assert np.array_equal(array, other.arrays[name])
    assert capsys.readouterr().out == ""


def test_a_teacher_with_an_adapter_is_scored_by_transformers(expected, adapted, tmp_path, capsys):
    teacher = load_teacher(adapted, dtype="float32")
    manifest, _ = stored_by("vllm", teacher, rows_of(expected, teacher)[:3], tmp_path)
    assert "transformers, not by vLLM: for a teacher with an adapter it gives no" in capsys.readouterr().out
    assert [shard["engine"] for shard in manifest["shards"]] == ["transformers"]


@foreign
@needs_vllm
def test_a_teacher_that_vllm_cannot_run_scores_nothing(tiny_teacher_dir, on_cpu, tmp_path):
    teacher = load_teacher(str(tiny_teacher_dir))
    rows = [{"row": 0, "student_prompt": [5], "teacher_prompt": [5, 6], "completion": [7, 8]}]
    with pytest.raises(TeacherError, match=r"it cannot score for teacher_model .*; its log is /.*vllm\.log"):
        stored_by("vllm", teacher, rows, tmp_path)


@foreign
@needs_vllm
def test_the_command_has_vllm_write_and_score_and_trains_from_the_store(on_cpu, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": word}) + "\n" for word in WORDS[:6]))
    flags = ["--model", "embedded", "--data-path", str(tmp_path / "rows.jsonl"), "--distill-max-teacher-length", "8"]
    flags += ["--teacher-prompt-template", FRONT + "{input}", "--distill-temperature", "1"]
    stores = {}
    for engine in ("transformers", "vllm"):
        own = ["--teacher-model", "embedded", "--teacher-engine", engine, "--output", str(tmp_path / engine)]
        own += ["--teacher-dtype", "float32"]
        done = CliRunner().invoke(main, ["teach", *flags, *own])
        assert done.exit_code == 0, done.output
        assert "not by vLLM" not in done.output
        stored = StoredTeacher(tmp_path / engine)
        stores[engine] = rows_of_table(stored.folder.path)
        assert {shard["engine"] for shard in stored.manifest["shards"]} == {{"vllm": "vLLM"}.get(engine, engine)}
    check_alike(stores["vllm"], stores["transformers"])
    own = ["--teacher-store", str(tmp_path / "vllm"), "--max-steps", "1", "--project-name", str(tmp_path / "run")]
    done = CliRunner().invoke(main, ["llm", "--trainer", "distillation", *flags, *own])
    assert done.exit_code == 0, done.output
