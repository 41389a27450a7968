"""`PPOConfig` and `PPOTrainer`: training a distilled student on rewards, over TRL's RLOOTrainer or GRPOTrainer."""

from __future__ import annotations

import pytest
import torch
from conftest import make_model
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification
from trl import GRPOTrainer, RLOOTrainer

from trl_distill import LLMTrainingParams, run, train
from trl_distill.errors import DataError, ModelError, ParamsError, ProjectError, TemplateError
from trl_distill.trainer.reinforcement import PPOConfig, PPOTrainer

ROWS = Dataset.from_dict({"text": ["red cat", "blue dog"], "goal": ["a", "b"], "completion": [" red", " blue"]})
SEEN = []


def reward(prompts, completions, goal, reference, **kwargs):
    """Return a reward for each letter "a", and keep what was asked."""
    SEEN.append((list(prompts), list(goal), list(reference)))
    return [float(text.count("a")) + 0.01 * len(text) for text in completions]


def settings(folder, **more):
    return {
        "reward_model": reward, "data_path": ROWS, "prompt_template": "{input}\nResult:", "max_new_tokens": 6,
        "max_steps": 2, "batch_size": 4, "num_generations": 2, "lr": 1e-3, "logging_steps": 1,
        "project_name": str(folder), **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def reward_dir(tmp_path_factory):
    """A reward model as TRL's RewardTrainer saves it."""
    folder = make_model(tmp_path_factory.mktemp("reward"))
    config = LlamaConfig.from_pretrained(folder)
    config.num_labels = 1
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("algorithm", "kind"), [("rloo", RLOOTrainer), ("grpo", GRPOTrainer)])
def test_a_distilled_student_learns_from_rewards(algorithm, kind, tmp_path, capsys):
    distilled = train(
        LLMTrainingParams(
            model="embedded", teacher_model="embedded", data_path=ROWS, max_steps=1,
            project_name=str(tmp_path / "distilled"), teacher_prompt_template="Copy.\n{input}\nResult:",
        )
    )  # fmt: skip
    before = {name: weight.clone() for name, weight in distilled.named_parameters()}
    SEEN.clear()
    trainer = PPOTrainer(PPOConfig(model=distilled, algorithm=algorithm, **settings(tmp_path / "rl")))
    capsys.readouterr()
    model = trainer.train()
    said = f"PPOTrainer: TRL has no PPO; its {kind.__name__} trains, with 2 prompts, 2 completions of each"
    assert said in capsys.readouterr().out
    assert type(trainer.trainer) is kind
    assert {prompt for prompts, _, _ in SEEN for prompt in prompts} == {"red cat\nResult:", "blue dog\nResult:"}
    assert {(goal, text) for _, goals, texts in SEEN for goal, text in zip(goals, texts, strict=True)} == {
        ("a", " red"), ("b", " blue"),
    }  # fmt: skip
    assert any(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert not model.training
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "rl")
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), model.parameters(), strict=True))
    ids = AutoTokenizer.from_pretrained(tmp_path / "rl")("red cat\nResult:", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=2).shape[1] > ids["input_ids"].shape[1]
    # it is a student or a teacher of the next stage, its tokenizer with it
    after = run(LLMTrainingParams(model=model, trainer="sft", data_path=ROWS, max_steps=1,
                                  project_name=str(tmp_path / "next")))  # fmt: skip
    assert after.paths["project"].is_dir()


def test_the_ids_that_are_rewarded_begin_with_the_prompt_of_training(tiny_model_dir, tmp_path):
    from trl_distill.prompts.prefix_tokenizer import PromptTokens

    asked = []
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(kwargs.get("input_ids")), with_kwargs=True
    )
    PPOTrainer(PPOConfig(model=model, **settings(tmp_path / "rl", prompt_template="a {input} b", max_steps=1))).train()
    tokens = PromptTokens(AutoTokenizer.from_pretrained(tiny_model_dir))("a red cat b", {})
    assert any(ids is not None and tokens == row[-len(tokens) :] for ids in asked[:1] for row in ids.tolist())


@pytest.mark.parametrize("given", ["name", "model"])
def test_ppo_trainer_takes_a_reward_model(given, reward_dir, tiny_model_dir, tmp_path):
    scorer = str(reward_dir)
    if given == "model":
        scorer = LlamaForSequenceClassification.from_pretrained(reward_dir)
    trainer = PPOTrainer(PPOConfig(model=str(tiny_model_dir), **settings(tmp_path / "rl", reward_model=scorer)))
    trainer.train()
    rewards = [line["reward"] for line in trainer.trainer.state.log_history if "reward" in line]
    assert len(rewards) == 2
    assert all(value != 0 for value in rewards)


def test_conversations_are_prompts_for_ppo_trainer(chat_model_dir, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]}] * 2
    asked = []

    def score(prompts, completions, **kwargs):
        asked.extend(prompts)
        return [float(len(completion[0]["content"])) for completion in completions]

    given = settings(tmp_path / "rl", reward_model=score, data_path=Dataset.from_list(rows), prompt_template="{input}",
                     max_steps=1)  # fmt: skip
    PPOTrainer(PPOConfig(model=str(chat_model_dir), **given)).train()
    assert asked[0] == [{"role": "user", "content": "a b"}]


def test_ppo_trainer_continues_a_students_adapter(tiny_model_dir, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir), LoraConfig(target_modules="all-linear")
    )
    trained = PPOTrainer(PPOConfig(model=model, **settings(tmp_path / "rl"))).train()
    assert list(trained.peft_config) == ["default"]
    assert (tmp_path / "rl" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "rl" / "ref").exists()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"model": None}, ParamsError, "model is missing; give a loaded model"),
        ({"reward_model": None}, ParamsError, "reward_model is missing; give a function"),
        ({"data_path": None}, ParamsError, "data_path is missing; give a file"),
        ({"reward_model": 3}, ParamsError, "reward_model is of type int"),
        (
            {"batch_size": 3},
            ParamsError,
            "batch_size 3 times gradient_accumulation 1 is not a multiple of num_generations 2",
        ),
        ({"prompt_template": "no field"}, TemplateError, "prompt_template"),
        ({"prompt_template": "{input} {nothing}"}, TemplateError, "has no such column"),
        ({"text_column": "query"}, DataError, "text_column"),
        ({"reward_model": "embedded"}, ModelError, "reward_model is .*, which gives no score"),
        ({"model": "./nowhere"}, ModelError, "model './nowhere' is not a folder"),
        ({"prompt_template": "a " * 600 + "{input}"}, DataError, "row 1: the prompt has .* lower max_new_tokens"),
    ],
)
def test_invalid_ppo_settings_are_refused_in_one_sentence(change, error, said, tiny_model_dir, tmp_path):
    given = {"model": str(tiny_model_dir), **settings(tmp_path / "rl"), **change}
    with pytest.raises(error, match=said) as raised:
        PPOTrainer(PPOConfig(**given)).train()
    assert "--" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "rl").exists()


def test_ppo_settings_are_checked_as_in_a_run(tmp_path):
    with pytest.raises(ParamsError, match=r"unknown parameter 'reward' of PPOConfig. Did you mean 'reward_model'"):
        PPOConfig(reward=reward)
    config = PPOConfig(lr="1e-4")
    assert config.lr == 1e-4
    with pytest.raises(ParamsError, match="num_generations is 1; expected a whole number of at least 2"):
        config.num_generations = 1
    with pytest.raises(ParamsError, match="PPOTrainer takes a PPOConfig, not dict"):
        PPOTrainer({})


def test_ppo_trainer_keeps_existing_files(tiny_model_dir, tmp_path):
    (tmp_path / "file").write_text("mine")
    given = {"model": str(tiny_model_dir), **settings(tmp_path, max_steps=1)}
    with pytest.raises(ProjectError, match="holds files already; give another project_name, or overwrite=True"):
        PPOTrainer(PPOConfig(**given))
    PPOTrainer(PPOConfig(**given, overwrite=True)).train()
    assert (tmp_path / "file").read_text() == "mine"


def test_kl_coef_refuses_a_student_changed_since_it_was_saved(tiny_model_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    given = settings(tmp_path / "rl", max_steps=1)
    with pytest.raises(ModelError, match=r"model is not what is saved in .*, or set kl_coef=0"):
        PPOTrainer(PPOConfig(model=model, **given)).train()
    PPOTrainer(PPOConfig(model=model, **given, kl_coef=0.0)).train()


def test_ppo_names_of_the_guide_are_importable():
    from autotrain.trainers import rl

    assert rl.PPOTrainer is PPOTrainer
    assert rl.PPOConfig is PPOConfig


@pytest.mark.parametrize("given", ["folder", "model"])
def test_the_chat_template_that_is_served_stays(given, chat_model_dir, tmp_path):
    done = run(
        LLMTrainingParams(
            model=str(chat_model_dir), teacher_model=str(chat_model_dir), data_path=ROWS, max_steps=1,
            teacher_system="g f", student_prompt_template="a {input} b", project_name=str(tmp_path / "distilled"),
        )
    )  # fmt: skip
    served = AutoTokenizer.from_pretrained(tmp_path / "distilled").chat_template
    student = done.model if given == "model" else str(tmp_path / "distilled")
    PPOTrainer(PPOConfig(model=student, **settings(tmp_path / "rl", max_steps=1))).train()
    assert AutoTokenizer.from_pretrained(tmp_path / "rl").chat_template == served
