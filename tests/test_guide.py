"""The user's guide, run: its three commands and all its snippets, verbatim (`guide_snippets.txt`).

The guide's names of models and files are folders and files of those names here, with tiny models; gpt-3.5-turbo is a
local server. What the guide uses and never defines, or leaves to a comment, is defined in `DEFINITIONS`.
"""

from __future__ import annotations

import functools
import json
import random
import shlex
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from click.testing import CliRunner
from conftest import make_model, make_model_that_writes, make_tokenizer
from datasets import Dataset
from guide import COMMANDS, TEXT, blocks_of, snippet
from teachers.writers import make_t5
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import (
    DistillationSFTConfig,
    LLMTrainingParams,
    TeacherError,
    distillation_loss_from_logits,
    evaluate,
    generate_with_teacher,
    prepare_distillation_data,
    train,
)
from trl_distill.cli import main
from trl_distill.trainer.reinforcement import PPOConfig
from trl_distill.trainer.trainer import PromptDistillationTrainer

QUERIES = ["What is 2+2?", "Name a colour.", "red cat", "Spell 'cat'."]
SHORT = {"max_steps": 1, "distill_max_teacher_length": 4, "overwrite": True}


def shortened(**more):
    """Return LLMTrainingParams with more settings, for a snippet whose comment stands for them."""
    return functools.partial(LLMTrainingParams, **{"data_path": "./queries.json", **SHORT, **more})


def answers(model, inputs, template):
    """Return what a model writes behind each prompt."""
    tokenizer = AutoTokenizer.from_pretrained("gpt2")
    texts = []
    for text in inputs:
        ids = tokenizer(template.format(input=text), return_tensors="pt")
        new = model.generate(**ids, max_new_tokens=4, do_sample=False)[0, ids["input_ids"].shape[1] :]
        texts.append(tokenizer.decode(new, skip_special_tokens=True))
    return texts


def seconds(model, template):
    """Return how long a model takes to answer."""
    start = time.perf_counter()
    answers(model, QUERIES, template)
    return time.perf_counter() - start


def agreement(one, other):
    """Return the share of equal texts."""
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


# what each snippet is given in addition to its text, and why
DEFINITIONS = {
    "The Distillation Process": (
        "pseudo-code: the names are any models and losses, and ² is written **2 in Python",
        lambda: {
            "teacher_model": lambda text: Logits.of(text, 0), "student_model": lambda text: Logits.of(text, 1),
            "teacher_prompt": "Think. ", "student_prompt": "", "input": "2+2", "temperature": 3.0, "alpha": 0.7,
            "softmax": lambda logits: logits.softmax(-1), "targets": torch.tensor([1, 2, 3]),
            "KL_div": lambda student, teacher: (teacher * (teacher / student).log()).sum(-1).mean(),
            "CrossEntropy": torch.nn.functional.cross_entropy,
        },
    ),
    "Integrated with SFT (Recommended)": (
        "it continues with the imports of the snippet before it",
        lambda: {"LLMTrainingParams": LLMTrainingParams},
    ),
    "Example 2: Large to Small Model Distillation": (
        "it continues with the imports of Example 1",
        lambda: {"LLMTrainingParams": LLMTrainingParams, "train": train},
    ),
    "Example 3: Chain-of-Thought Distillation": (
        "it continues with the imports of Example 1",
        lambda: {"LLMTrainingParams": LLMTrainingParams, "train": train},
    ),
    "Example 4: Multi-Teacher Distillation": (
        "generate_with_teacher and queries are not imported or defined, bert-large is a decoder here (BERT writes "
        "nothing and is refused), and the file that the run reads is not written by the snippet",
        lambda: {
            "generate_with_teacher": functools.partial(generate_with_teacher, max_new_tokens=4, progress=False),
            "queries": QUERIES, "LLMTrainingParams": shortened(),
        },
    ),
    "3. Temperature Tuning": (
        '"# ... other params" stands for a model, a teacher, data and rows held out',
        lambda: {
            "LLMTrainingParams": shortened(
                model="gpt2", teacher_model="gpt2-large", teacher_prompt_template="Expert: {input}", holdout=0.5
            ),
            "train": train, "evaluate": evaluate,
        },
    ),
    "4. Data Diversity": (
        "random is not imported, and categorize_queries is the user's",
        lambda: {"random": random, "categorize_queries": lambda queries: [queries[:2], queries[2:]]},
    ),
    "5. Progressive Distillation": (
        '"# ..." stands for a teacher and data, and base_model is any model',
        lambda: {
            "base_model": "gpt2", "LLMTrainingParams": shortened(teacher_model="gpt2-large"), "train": train,
        },
    ),
    "Online Distillation": (
        "it continues with the import of the snippet before it, and torch is not imported",
        lambda: {"torch": torch, "PromptDistillationTrainer": PromptDistillationTrainer},
    ),
    "Distillation with Reinforcement": (
        'PPOConfig is not imported, and its "# ..." stands for prompts and the length of the run',
        lambda: {
            "train": train,
            "PPOConfig": functools.partial(
                PPOConfig, data_path="./queries.json", prompt_template="Q: {input}\nA:", max_new_tokens=3, max_steps=1,
                batch_size=4, num_generations=2, project_name="rewarded", overwrite=True,
            ),
        },
    ),
    "Evaluation Metrics": (
        "the prompts and the four functions are the user's",
        lambda: {
            "simple_prompt": "{input}", "complex_prompt": "You are an expert. {input}", "generate": answers,
            "compute_similarity": agreement, "measure_inference_time": seconds,
        },
    ),
}  # fmt: skip


class Logits:
    """The pseudo-code's models: fixed logits of 3 tokens."""

    seen: ClassVar[list[str]] = []

    @classmethod
    def of(cls, text, seed):
        cls.seen.append(text)
        return torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_teacher(folder):
    """Save a model that writes " a" behind anything and stops, which is quick to write and to learn."""
    tokenizer = make_tokenizer()
    word = tokenizer.convert_tokens_to_ids("Ġa")
    make_model_that_writes(folder, word)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():  # what is read goes through as it is: one direction for the word, the other for all else
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        model.model.embed_tokens.weight[:, 0] = 1
        model.model.embed_tokens.weight[word] = torch.eye(32)[1]
        model.lm_head.weight[word, 0] = model.lm_head.weight[tokenizer.eos_token_id, 1] = 2
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which the guide's names are folders and files."""
    folder = tmp_path_factory.mktemp("guide")
    for name, width in {"gpt2": 32, "meta-llama/Llama-2-7b-hf": 64}.items():
        make_model(folder / name, hidden=width)
    for name in ("gpt2-large", "gpt2-xl", "bert-large", "meta-llama/Llama-2-70b-hf", "smaller-teacher"):
        make_teacher(folder / name)
    make_t5(folder / "t5-large")
    for name, column in (
        ("queries", "text"), ("instructions", "text"), ("questions", "question"), ("math_problems", "problem"),
        ("diverse_instructions", "instruction"),
    ):  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps([{column: text} for text in QUERIES]))
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in QUERIES))
    return folder


@pytest.fixture
def place(made, server, monkeypatch):
    """That folder as the working directory, and OpenAI's address as the local server's."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    return made


def ran(heading, **more):
    """Run a snippet with what is defined for it and return its names."""
    names = {**DEFINITIONS.get(heading, ("", dict))[1](), **more}
    exec(compile(snippet(heading).replace("²", "**2"), heading, "exec"), names)
    return names


def test_snippets_are_those_of_the_guide():
    page = next(
        (p / "shared" / "GUIDE.md" for p in Path(__file__).parents if (p / "shared" / "GUIDE.md").is_file()), None
    )
    if page is None:
        pytest.skip("the guide is not here")
    assert blocks_of(TEXT) == blocks_of(page.read_text(encoding="utf-8"))
    assert set(DEFINITIONS) <= {heading for heading, _ in blocks_of(TEXT)}


@pytest.mark.parametrize("number", [0, 1, 2], ids=["basic", "sft", "lora"])
def test_the_guides_commands_run(number, place):
    done = CliRunner().invoke(main, shlex.split(COMMANDS[number].replace("\\\n", " "))[1:], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "Pre-flight (train)" in done.stdout
    project = place / ("distilled-model", "efficient-model", "project-name")[number]
    settings = yaml.safe_load((project / "config.yaml").read_text())
    assert settings["trainer"] == ("distillation", "sft", "distillation")[number]
    history = json.loads((project / "metrics.json").read_text())["history"]
    assert history
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in history if "loss" in entry)
    model = AutoModelForCausalLM.from_pretrained(project)
    ids = AutoTokenizer.from_pretrained(project)("What is 2+2?", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=3).shape[1] > ids["input_ids"].shape[1]
    if number == 1:
        assert "cross-entropy alone" in done.stdout


def test_the_guides_python_interface_runs(place):
    names = ran("Python API")
    before = AutoModelForCausalLM.from_pretrained("gpt2").lm_head.weight
    assert not torch.equal(names["model"].lm_head.weight, before)
    assert (place / "distilled-gpt2" / "model.safetensors").is_file()


def test_the_guides_sft_with_a_teacher_runs(place):
    assert train(ran("Integrated with SFT (Recommended)")["config"]).config.hidden_size == 32
    assert "Expert: {input}" in (place / "sft-distilled" / "README.md").read_text()


def test_the_guides_loss_is_the_librarys():
    names = ran("The Distillation Process")
    assert Logits.seen == ["Think. 2+2", "2+2"]
    ours = distillation_loss_from_logits(
        names["student_logits"], names["teacher_logits"], names["targets"], alpha=0.7, temperature=3.0
    )
    assert torch.isclose(getattr(ours, "loss", ours) / (3 if hasattr(ours, "loss") else 1), names["total_loss"])


def test_the_guides_student_answers_without_the_prompt(place):
    """What the two blocks of "The Distillation Advantage" show: the student answers alone as with the whole prompt."""
    before, after = (
        block.splitlines()[0] for heading, block in blocks_of(TEXT) if heading == "The Distillation Advantage"
    )
    prompt, question = json.loads(before.removeprefix("Input: ")), json.loads(after.removeprefix("Input: "))
    assert prompt.endswith(question)
    student = train(
        LLMTrainingParams(
            model="gpt2", teacher_model="gpt2-large", teacher_prompt_template=prompt.replace(question, "{input}"),
            data_path=Dataset.from_dict({"text": [question]}), lr=1e-2, epochs=12, gradient_accumulation=1,
            distill_max_teacher_length=4, project_name="advantage",
        )
    )  # fmt: skip
    teacher = AutoModelForCausalLM.from_pretrained("gpt2-large")
    assert answers(student, [question], "{input}") == answers(teacher, [prompt], "{input}") == [" a"]


@pytest.mark.parametrize(
    ("heading", "model", "project"),
    [
        ("Example 1: Basic Prompt Internalization", "model", "internalized-prompts"),
        ("Example 2: Large to Small Model Distillation", "small_model", "llama-7b-distilled"),
        ("Example 3: Chain-of-Thought Distillation", "reasoning_model", "cot-distilled"),
    ],
)
def test_the_guides_examples_run(heading, model, project, place):
    assert ran(heading)[model].generate(torch.tensor([[9, 10]]), max_new_tokens=2).shape[1] > 2
    assert (place / project / "README.md").is_file()


def test_the_guides_several_teachers_run(place):
    names = ran("Example 4: Multi-Teacher Distillation")
    rows = names["combined_data"]
    assert len(rows) == 3 * len(QUERIES)
    assert {row["teacher"] for row in rows} == {"gpt2-xl", "bert-large", "t5-large"}
    Path("combined_teacher_outputs.json").write_text(json.dumps(rows))
    train(names["config"])
    assert (place / "multi-teacher-distilled" / "model.safetensors").is_file()


def test_the_guides_teacher_choices_run(place):
    names = ran("1. Teacher Selection")
    assert (names["student"], names["teacher"]) == ("gpt2", "t5-base")


def test_the_guides_template_with_other_fields_runs(place):
    names = ran("2. Prompt Engineering")
    rows = [{"text": text, "role": "teacher", "context": "school"} for text in QUERIES]
    train(
        shortened(
            model="gpt2", teacher_model="gpt2-xl", data_path=Dataset.from_list(rows), project_name="fields",
            teacher_prompt_template=names["teacher_template"], student_prompt_template=names["student_template"],
        )()
    )  # fmt: skip
    card = (place / "fields" / "README.md").read_text()
    assert "### Role: Expert {role}" in card
    assert "{input}:" in card


def test_the_guides_temperature_tuning_runs(place):
    names = ran("3. Temperature Tuning")
    assert set(names["results"]) == set(names["temperatures"])
    assert names["optimal_temp"] in names["temperatures"]
    assert (place / "distill_temp_2.0" / "model.safetensors").is_file()


def test_the_guides_data_preparation_runs(place):
    data = ran("4. Data Diversity")["prepare_distillation_data"](QUERIES)
    assert sorted(data) == sorted(QUERIES)
    of_library = prepare_distillation_data(QUERIES, DEFINITIONS["4. Data Diversity"][1]()["categorize_queries"])
    assert sorted(of_library) == sorted(data)
    train(shortened(model="gpt2", teacher_model="gpt2-xl", data_path=Dataset.from_dict({"text": data}),
                    teacher_prompt_template="Expert: {input}", project_name="diverse")())  # fmt: skip


def test_the_guides_progressive_distillation_runs(place, capsys):
    assert ran("5. Progressive Distillation")["model"].config.hidden_size == 32
    assert capsys.readouterr().out.count("has no {input}, so a blank line and {input} are added at its end") == 3
    assert [(place / f"stage_{n}" / "model.safetensors").is_file() for n in (1, 2, 3)] == [True] * 3


def trainer_of(kind, folder, **more):
    """Return a trainer of the guide's class on the guide's data."""
    config = DistillationSFTConfig(
        output_dir=str(folder), use_distillation=True, teacher_model="gpt2-large", max_steps=1, use_cpu=True,
        bf16=False, report_to="none", save_strategy="no", per_device_train_batch_size=2, distill_max_teacher_length=4,
        gradient_checkpointing=False, disable_tqdm=True, **more,
    )  # fmt: skip
    return kind("gpt2", config, train_dataset=Dataset.from_dict({"text": QUERIES}))


def test_the_guides_custom_loss_runs(place, tmp_path):
    """The guide's names of a batch's inputs and loss are global; both prompts are the same, as its logits must be."""
    names = ran("Custom Distillation Loss")
    guides = names["CustomDistillationTrainer"]

    class Defined(guides):
        def compute_regularization(self, outputs):
            return outputs.logits.square().mean()

        def compute_loss(self, model, inputs):
            names["teacher_inputs"] = self.prepare_sequences(inputs, teacher=True)
            names["student_inputs"] = self.prepare_sequences(inputs)
            logits = self.completion_logits(model(**names["student_inputs"]).logits, inputs)
            names["ce_loss"] = torch.nn.functional.cross_entropy(logits, self.completion_targets(inputs))
            self.losses = [super().compute_loss(model, inputs)]
            return self.losses[0]

    trainer = trainer_of(Defined, tmp_path)
    trainer.train()
    assert trainer.losses[0].item() > 0
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(trainer.losses[0].item(), rel=1e-5)


def test_the_guides_online_distillation_runs(place, tmp_path):
    trainer = trainer_of(
        ran("Online Distillation")["OnlineDistillationTrainer"], tmp_path, teacher_prompt_template="Expert: {input}"
    )
    assert trainer.online
    trainer.train()
    assert trainer.state.global_step == 1


def test_the_guides_reinforcement_runs(place, capsys):
    config = shortened(model="gpt2", teacher_model="gpt2-large", student_prompt_template="Q: {input}\nA:",
                       project_name="to-be-rewarded")()  # fmt: skip
    distil = ran("Distillation with Reinforcement")["distill_with_rewards"]
    final = distil(config, lambda prompts, completions, **columns: [float(len(text)) for text in completions])
    assert final.generate(torch.tensor([[9, 10]]), max_new_tokens=2).shape[1] > 2
    assert (place / "rewarded" / "model.safetensors").is_file()
    assert "its RLOOTrainer trains, with 4 prompts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("Issue: Student Not Learning", {"distill_temperature": 4.0, "distill_alpha": 0.5}),
        ("Issue: Quality Degradation", {"teacher_model": "larger-better-model", "distill_temperature": 2.0}),
        (
            "Issue: OOM with Teacher",
            {"gradient_checkpointing": True, "teacher_model": "smaller-teacher", "batch_size": 1,
             "gradient_accumulation": 16},
        ),
    ],
)  # fmt: skip
def test_the_guides_troubleshooting_runs(heading, expected, place):
    config = shortened(model="gpt2", teacher_model="gpt2-large", teacher_prompt_template="Expert: {input}",
                       project_name="mended")()  # fmt: skip
    ran(heading, config=config)
    assert {name: getattr(config, name) for name in expected} == expected
    if "better" in config.teacher_model:
        with pytest.raises(TeacherError, match="teacher_model 'larger-better-model'"):
            train(config)
        return
    train(config)


def test_the_guides_evaluation_runs(place):
    student, teacher = (AutoModelForCausalLM.from_pretrained(name) for name in ("gpt2", "gpt2-large"))
    metrics = ran("Evaluation Metrics")["evaluate_distillation"](student, teacher, QUERIES)
    assert 0 <= metrics["output_similarity"] <= 1
    assert metrics["speedup"] > 0
    assert metrics["prompt_compression"] == len("You are an expert. {input}") / len("{input}")
