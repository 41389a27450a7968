"""`--config run.yaml`: parameters by name, under the flags and over the defaults."""

from __future__ import annotations

import pytest

from trl_distill.cli.llm_command import params_from_command
from trl_distill.config.training_params import LLMTrainingParams
from trl_distill.config.yaml_file import read_yaml
from trl_distill.errors import ParamsError
from trl_distill.runs.project_folder import Project


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_flags_override_the_file_and_the_file_the_defaults(written):
    path = written("model: gpt2\nlr: 5e-4\ndistill-alpha: 0.25\nmax_seq_length: 77\npeft: true\nepochs: 2\n")
    params = params_from_command(["--config", path, "--epochs", "1", "--no-peft"])
    expected = LLMTrainingParams(model="gpt2", lr=5e-4, distill_alpha=0.25, block_size=77, epochs=1)
    assert params == expected


def test_a_flag_typed_with_its_default_overrides_the_file(written):
    path = written("distill_alpha: 0.25\nuse_distillation: true\n")
    params = params_from_command(["--distill-alpha", "0.7", "--config", path, "--no-use-distillation"])
    assert params == LLMTrainingParams()


def test_config_accepts_the_file_that_a_run_writes(tmp_path):
    params = LLMTrainingParams(
        model="gpt2", teacher_model="gpt2-large", project_name=str(tmp_path / "a"), lr=1e-3, peft=True,
        teacher_prompt_template="Über \\theta {input}\n", teacher_system="Be\t\\n{b}\n",
        quantization="int4", target_modules="q_proj,v_proj",
    )  # fmt: skip
    path = Project(params.project_name).begin(params)
    assert params_from_command(["--config", str(path)]) == params


def test_a_chat_template_may_be_a_list(written):
    chat = "[{role: system, content: Be brief.}, {role: user, content: '{input}'}]"
    path = written(f"teacher_prompt_template: {chat}\n")
    params = params_from_command(["--config", path])
    assert params.teacher_prompt_template[1] == {"role": "user", "content": "{input}"}


def test_the_word_no_is_a_choice_and_a_list_of_modules_is_accepted(written):
    path = written("mixed_precision: no\neval_strategy: no\nsave-strategy: no\ntarget_modules: [q_proj, v_proj]\n")
    params = params_from_command(["--config", path])
    assert (params.mixed_precision, params.eval_strategy, params.save_strategy) == ("no", "no", "no")
    assert params.target_modules == "q_proj,v_proj"


def test_a_model_that_was_an_object_must_be_named(written):
    path = written("model: <LlamaForCausalLM>\nteacher_model: t\n")
    with pytest.raises(ParamsError, match=r"model was a LlamaForCausalLM in memory.*give --model"):
        params_from_command(["--config", path])
    assert params_from_command(["--config", path, "--model", "m"]).model == "m"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("teacher_modle: x", "unknown parameter 'teacher_modle'. Did you mean 'teacher_model'"),
        ("lerning_rate: 1", "unknown parameter 'lerning_rate'. Did you mean 'learning_rate'"),
        ("distill_alpha: 7", "distill_alpha is 7.0; expected a number from 0 to 1."),
        ("project_name: 2026", "project_name is 2026; expected text."),
        ("distill_alpha:", "distill_alpha is empty; give a number from 0 to 1."),
        ("lr: 1e-4\nlearning-rate: 1e-4", "lr is given twice"),
        ("hub_token: hf_secret_secret", "set the environment variable HF_TOKEN"),
        ("unsloth: true", r"unknown parameter 'unsloth'; drop it: models load with transformers; peft"),
        (
            "task: llm-sft\ndata: {path: d}\nparams: {lr: 1}",
            r"AutoTrain's sections \(data, params\); give 'name: value'",
        ),
        ("- model", "holds a list; give 'name: value' lines"),
        ("model: [", r"is not YAML: .* in line 1"),
        ("a: b: c", r"is not YAML: .* in line 1"),
    ],
)
def test_an_invalid_config_file_is_named(text, said, written):
    path = written(text)
    with pytest.raises(ParamsError, match=said) as error:
        params_from_command(["--config", path])
    assert path in str(error.value)
    assert "\n" not in str(error.value)
    assert "hf_secret" not in str(error.value)


def test_an_unreadable_config_file_is_an_error(tmp_path):
    with pytest.raises(ParamsError, match=r"nowhere.yaml cannot be read: No such file"):
        params_from_command(["--config", str(tmp_path / "nowhere.yaml")])
    (tmp_path / "latin.yaml").write_bytes(b"model: \xe9")
    with pytest.raises(ParamsError, match="it is not UTF-8 text"):
        params_from_command(["--config", str(tmp_path / "latin.yaml")])


def test_an_empty_config_file_gives_the_defaults(written):
    assert params_from_command(["--config", written("# nothing\n")]) == LLMTrainingParams()


def test_merge_keys_may_be_overridden_at_any_depth(written):
    path = written("base:\n  a: &a {x: 1}\n  b: &b {<<: *a, x: 2}\nc: {<<: *b, y: 3}\n")
    read = read_yaml(path, name="run.yaml")
    assert read == {"base": {"a": {"x": 1}, "b": {"x": 2}}, "c": {"x": 2, "y": 3}}
