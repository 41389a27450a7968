"""What runs a teacher while it writes changes no greedy completion; vLLM's tests run where it is installed."""

from __future__ import annotations

import json
import random
from importlib.util import find_spec

import pytest
import torch
from click.testing import CliRunner
from conftest import make_model

from trl_distill import LLMTrainingParams, ParamsError, TeacherError, generate_with_teacher
from trl_distill.cli import main
from trl_distill.sources import load_model
from trl_distill.teachers import CompletionStore, GenerationSettings, complete, engines, load_teacher
from trl_distill.teachers.continuous import Continuous

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
    for some in Continuous(teacher).completions({str(i): prompt for i, prompt in enumerate(prompts)}, settings):
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
    """On a GPU continuous batching; for `auto`, with more than eight batches, vLLM where it is installed."""
    prompts, alone = expected
    teacher = load_teacher("embedded", dtype="float32", device=device)
    settings = GenerationSettings(max_new_tokens=24, batch_size=batch_size, engine=engine)
    first = engines.engines_of(teacher, settings, len(prompts))[0]
    on_gpu = Continuous if missing or engine == "transformers" else engines.VLLM
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
    teacher.share(20)
    written, _ = by_continuous(teacher, prompts, settings)
    assert written == teacher.generate(prompts, settings)
    assert all(token < 20 for completion in written for token in completion.ids)


def test_continuous_batching_draws_again_what_it_drew(embedded, expected):
    drawn = GenerationSettings(max_new_tokens=24, batch_size=4, do_sample=True)
    first, again = (by_continuous(embedded, expected[0], drawn)[0] for _ in range(2))
    assert first == again != expected[1]


def test_continuous_batching_is_held_against_generate_before_it_is_used(embedded, expected):
    prompts = {str(i): prompt for i, prompt in enumerate(expected[0])}
    written = {}
    for some in Continuous(embedded).write(prompts, IN_FLOAT32):
        written |= some
    assert [written[key] for key in prompts] == expected[1]
    with pytest.raises(engines.EngineError, match=r"^$"):  # it looks for no text
        next(Continuous(embedded).write(prompts, GenerationSettings(stop=("x",), batch_size=4)))
    other = Continuous(embedded)
    other.completions = lambda prompts, settings: iter([{key: engines.Completion((), False) for key in prompts}])
    with pytest.raises(engines.EngineError, match="not those that `generate` writes"):
        next(other.write(prompts, IN_FLOAT32))


def test_what_one_engine_wrote_is_kept_for_all(embedded, expected, tmp_path):
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


def test_where_an_engine_fails_transformers_goes_on(embedded, expected, monkeypatch, caplog):
    prompts, alone = expected
    both = [Failing(embedded), engines.Batches(embedded)]
    monkeypatch.setattr(engines, "engines_of", lambda *_: both)
    assert complete(embedded, prompts, IN_FLOAT32, progress=False) == alone
    assert f"A failing one does not write for teacher {embedded.name!r}: it has no more memory." in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_model": "http://localhost:1/v1#m"}, "teacher_model 'http://localhost:1/v1#m' is a server"),
        ({"teacher_model": "ema"}, "teacher_model is 'ema', an average in memory that vLLM cannot load"),
        ({"teacher_model": "embedded", "distill_online": True}, "distill_online has the teacher write while training"),
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


def test_another_word_is_refused():
    with pytest.raises(ParamsError, match="engine is 'sglang'; accepted are 'auto', 'transformers', 'vllm'"):
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


@foreign
@needs_vllm
def test_vllm_applies_an_adapter_and_writes_no_row_that_the_student_lacks(expected, on_cpu, tmp_path):
    import peft

    base = load_model(load_teacher("embedded").source.path, role="model")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    peft.get_peft_model(base, config).save_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path), dtype="float32")
    teacher.share(1200)
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
def test_a_loaded_model_is_none_that_vllm_loads(embedded):
    with pytest.raises(TeacherError, match="its weights are in memory alone, and vLLM loads a model by its folder"):
        generate_with_teacher(embedded.model, "{input}", ["a"], engine="vllm", tokenizer=embedded.tokenizer)
