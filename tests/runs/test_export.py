"""`aitraining export` and `export`: two small runs of the embedded model, handed over in each form."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from small_runs import no_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from trl_distill import LLMTrainingParams, export, run
from trl_distill.cli import main
from trl_distill.embedded import embedded_path
from trl_distill.errors import DataError, ModelError, ParamsError, ProjectError
from trl_distill.models.loading import ModelSource
from trl_distill.runs.export.modelfile import go_template
from trl_distill.runs.export.student import TrainedStudent

TOPICS = ("invoice", "parcel", "password", "screen", "order", "keyboard")
FRAMES = (
    "The {} is wrong.", "My {} does not work.", "Where is my {}?", "{} please", "I lost the {}.", "Look at my {}?",
    "There is a problem with the {}.", "Please look at the {}.", "The {} never came.", "We need the {}.", "No {} here.",
    "Is the {} ready?", "Send the {} again.", "Who has my {}?", "Fix the {}.", "Thanks for the {}.", "A {}?", "New {}!",
    "About the {}.", "This {} is broken.", "Change the {}.",
)  # fmt: skip
ROWS = [{"text": frame.format(topic), "completion": f" [{topic}]"} for frame in FRAMES for topic in TOPICS]
SETTINGS = {
    "model": "embedded", "teacher_model": "embedded", "student_prompt_template": "{input}\nAnswer:",
    "teacher_prompt_template": "Write the topic in square brackets.\n{input}\nAnswer:", "gradient_accumulation": 1,
    "distill_max_teacher_length": 8, "lr": 1e-3, "logging_steps": 100, "eval_strategy": "no", "batch_size": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with an adapter, which kept 100 rows aside, in a folder whose name has a space."""
    project = str(tmp_path_factory.mktemp("handed over") / "first run")
    params = LLMTrainingParams(
        **SETTINGS, project_name=project, data_path=ROWS, holdout=100 / len(ROWS), max_steps=6, peft=True, lora_r=4,
        save_steps=6,
    )  # fmt: skip
    return run(params)


@pytest.fixture(scope="module")
def adapter(trained):
    return trained.paths["project"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that trained all weights."""
    project = str(tmp_path_factory.mktemp("whole") / "project")
    params = LLMTrainingParams(
        **SETTINGS, project_name=project, data_path=ROWS[:12], max_steps=1, save_strategy="no"
    )  # fmt: skip
    return run(params).paths["project"]


def command(*arguments):
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def copied(project, folder, **changes):
    """Return a copy of a project in which a file's JSON has other values."""
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns("exports", "checkpoints"))
    for name, values in changes.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def answers(folder, messages):
    """Return what plain transformers, asked as its documentation says, answers to user messages."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = []
    for message in messages:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        written = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        texts.append(tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def test_merged_weights_answer_a_plain_message_as_the_student_does(adapter, tmp_path):
    done = command(adapter, "--to", "merged", "--output", tmp_path / "merged", "--verify", "20")
    assert done.exit_code == 0, done.stderr
    assert "20 of 20 greedy completions (100.0%) equal the trained student's, by transformers in float32" in done.stdout
    asked = [row["text"] for row in ROWS[:6]]
    assert answers(tmp_path / "merged", asked) == answers(adapter, asked)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    kept = json.loads((tmp_path / "merged" / "export.json").read_text())
    assert kept["verification"]["rows"] == kept["verification"]["equal"] == kept["verification"]["by_message"] == 20


def test_merged_weights_are_base_and_adapter(adapter, trained, tmp_path):
    export(adapter, to="merged", output=tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.tensor([[5, 9, 12, 40]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, trained.model(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_merged_model_stops_at_every_end_that_was_learned(adapter, tmp_path):
    project = copied(adapter, tmp_path / "project", generation_config={"eos_token_id": [2, 7]})
    folder = export(project, to="merged").folder
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [2, 7]


def test_a_whole_model_is_copied_byte_for_byte(whole):
    folder = export(whole, to="merged").folder
    assert folder == whole / "exports" / "merged"
    names = {path.name for path in folder.iterdir()} - {"export.json"}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= names
    assert names.isdisjoint({"README.md", "training_args.bin", "metrics.json", "config.yaml"})
    for name in names:
        if (folder / name).is_file():
            assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("form", ["merged", "vllm"])
def test_weights_that_are_no_numbers_are_not_exported_from_a_run_without_checksums(form, whole, tmp_path):
    project = copied(whole, tmp_path / "project", run={"crc32": {}})
    weights = load_file(project / "model.safetensors")
    name = min(weights)
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, project / "model.safetensors", metadata={"format": "pt"})
    done = command(project, "--to", form)
    assert done.exit_code == 2, done.output
    assert f"model.safetensors' has weights that are not finite numbers ({name})" in done.stderr
    assert not (project / "exports" / form).exists()


def test_a_precision_that_is_asked_for_is_written(whole, tmp_path):
    folder = export(whole, to="merged", dtype="bfloat16", output=tmp_path / "half").folder
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}


def test_a_model_that_a_run_returned_knows_its_project(trained, tmp_path):
    done = export(trained.model, to="merged", output=tmp_path / "merged", verify=3)
    assert done.verification.equal == done.verification.rows == 3
    with pytest.raises(ParamsError, match="nor a model that a run returned"):
        export(object(), to="merged")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_weights_are_as_readable_as_other_files(adapter, whole):
    files = [*adapter.rglob("*.safetensors"), *whole.rglob("*.safetensors")]
    files += [*export(adapter, to="merged", overwrite=True).folder.glob("*.safetensors")]
    assert any("checkpoint" in str(path) for path in files)
    for path in files:
        assert path.stat().st_mode & 0o777 == (adapter / "config.yaml").stat().st_mode & 0o777, path


def test_completions_of_other_weights_are_counted_as_unequal(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(
        TrainedStudent,
        "write_merged",
        lambda self, folder: shutil.copytree(embedded_path(), folder, dirs_exist_ok=True),
    )
    done = command(adapter, "--to", "merged", "--output", tmp_path / "base", "--verify", "12")
    assert done.exit_code == 0, done.stderr
    found = json.loads((tmp_path / "base" / "export.json").read_text())["verification"]
    assert found["equal"] < found["rows"] == 12
    assert f"exported {found['first_difference']['exported']!r}" in done.stdout


def served_by(script, tmp_path, *more):
    """Run serve.sh with a `vllm` that prints its arguments, and return them."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "vllm").write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    (programs / "vllm").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
    done = subprocess.run([script, *more], capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout)


def test_serve_sh_has_vllm_serve_the_base_with_the_adapter(adapter, tmp_path):
    done = export(adapter, to="vllm")
    given = served_by(done.folder / "serve.sh", tmp_path, "--port", "9000")
    folder, after = str(done.folder), dict(pairwise(given))
    assert given[:2] == ["serve", embedded_path()]
    assert after["--lora-modules"] == f"first-run={folder}"
    assert after["--max-lora-rank"] == "8"
    assert after["--tokenizer"] == after["--generation-config"] == folder
    assert after["--dtype"] == "float32"
    assert json.loads(after["--override-generation-config"]) == {"temperature": 0}
    assert given[-2:] == ["--port", "9000"]
    assert load_file(done.folder / "adapter_model.safetensors").keys()
    assert GenerationConfig.from_pretrained(folder).eos_token_id is not None


def test_serve_sh_serves_merged_weights_on_request(adapter, tmp_path):
    done = export(adapter, to="vllm", merge=True, name="my student", output=tmp_path / "served", dtype="bfloat16")
    given = served_by(done.folder / "serve.sh", tmp_path)
    after = dict(pairwise(given))
    assert given[1] == str(tmp_path / "served" / "model")
    assert after["--served-model-name"] == "my-student"
    assert after["--dtype"] == "bfloat16"
    assert "--enable-lora" not in given
    assert len(answers(given[1], ["The order is wrong."])) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_dora": True}, "this one has use_dora"),
        ({"modules_to_save": ["lm_head"]}, "this one has modules_to_save"),
        ({"alpha_pattern": {"q_proj": 3}}, "this one has alpha_pattern"),
        ({"peft_type": "LOHA"}, "of the kind LOHA"),
        ({"r": 1024}, "of rank 512 at most, and this one has 1024"),
    ],
)
def test_an_adapter_that_vllm_does_not_apply_is_refused_before_a_model_loads(
    changes, reason, adapter, tmp_path, monkeypatch
):
    monkeypatch.setattr(ModelSource, "load_model", no_model)
    project = copied(adapter, tmp_path / "project", adapter_config=changes)
    done = command(project, "--to", "vllm")
    assert done.exit_code == 2
    assert reason in done.stderr
    assert "add --merge to serve merged weights." in done.stderr
    assert not (project / "exports").exists()


def test_a_learned_prompt_cannot_be_merged(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelSource, "load_model", no_model)
    project = copied(adapter, tmp_path / "project")
    settings = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}
    settings["base_model_name_or_path"] = embedded_path()
    (project / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="a learned prompt \\(PROMPT_TUNING\\), which cannot be merged"):
        export(project, to="merged")


def test_what_cannot_be_written_is_refused_before_a_model_loads(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelSource, "load_model", no_model)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for arguments, reason in (
        ([adapter], "--to is missing; give --to merged, vllm, gguf, ollama, mlx."),
        ([adapter, "--to", "onnx"], "--to is 'onnx'; expected one of 'merged', 'vllm', 'gguf', 'ollama', 'mlx'."),
        ([tmp_path, "--to", "merged"], "holds no finished run"),
        ([adapter, "--to", "merged", "--output", adapter], "is the project, or holds it"),
        ([adapter, "--to", "merged", "--output", adapter.parent], "is the project, or holds it"),
        ([adapter, "--to", "vllm", "--output", tmp_path / "mine", "--overwrite"], "are not from an export"),
        ([adapter, "--to", "vllm", "--output", tmp_path / "mine" / "notes.txt"], "is a file"),
        ([adapter, "--to", "merged", "--output", tmp_path / "new", "--data-path", "rows.jsonl"], "give --verify"),
        ([adapter, "--to", "gguf", "--output", tmp_path / "new", "--converter", tmp_path], "convert_hf_to_gguf.py"),
    ):
        done = command(*arguments)
        assert done.exit_code == 2, arguments
        assert reason in done.stderr, done.stderr
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_files_outside_the_project_are_not_exported(whole, tmp_path):
    (tmp_path / "secret").write_text("key")
    for number, name in enumerate(("../secret", str(tmp_path / "secret"), "linked")):
        project = copied(whole, tmp_path / f"project-{number}", run={"files": {name: 3}})
        (project / "linked").symlink_to(tmp_path / "secret")
        done = command(project, "--to", "merged")
        assert done.exit_code == 2
        assert f"cannot be exported: {name!r} is " in done.stderr
        assert not (project / "exports").exists()
    (project / "run.json").write_text("{")
    assert "run.json cannot be read" in command(project, "--to", "merged").stderr


def test_an_export_goes_to_the_disk_that_its_folder_links_to(whole, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "merged").symlink_to(tmp_path / "disk")
    export(whole, to="merged", output=tmp_path / "merged")
    export(whole, to="merged", output=tmp_path / "merged", overwrite=True)
    assert (tmp_path / "merged").is_symlink()
    assert (tmp_path / "disk" / "export.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "merged"}


def test_an_export_is_replaced_on_request_only(whole, tmp_path):
    folder = export(whole, to="merged", output=tmp_path / "merged").folder
    (folder / "old").write_text("of the earlier export")
    with pytest.raises(ProjectError, match="give overwrite=True to replace it"):
        export(whole, to="merged", output=folder)
    assert (folder / "old").exists()
    export(whole, to="merged", output=folder, overwrite=True)
    assert not (folder / "old").exists()
    assert (folder / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_an_export_that_is_killed_while_it_replaces_another_leaves_a_whole_one(whole, tmp_path, monkeypatch):
    folder = export(whole, to="merged", output=tmp_path / "merged").folder

    def killed(path, **_):
        (Path(path) / "model.safetensors").unlink(missing_ok=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            export(whole, to="merged", output=folder, overwrite=True)
    assert AutoModelForCausalLM.from_pretrained(folder)
    export(whole, to="merged", output=folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_project_that_is_overwritten_meanwhile_is_not_exported(whole, tmp_path, monkeypatch):
    project = copied(whole, tmp_path / "project")
    copyfile = shutil.copyfile

    def overwriting(*names):
        (project / "run.json").unlink(missing_ok=True)
        return copyfile(*names)

    monkeypatch.setattr(shutil, "copyfile", overwriting)
    with pytest.raises(ProjectError, match="was overwritten by another run while it was exported"):
        export(project, to="merged", output=tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["project"]


def test_verifying_needs_rows_that_the_student_was_not_trained_on(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ModelSource, "load_model", no_model)
        with pytest.raises(DataError, match="there are no rows to evaluate on"):
            export(whole, to="merged", output=tmp_path / "merged", verify=5)
    done = export(whole, to="merged", output=tmp_path / "merged", verify=5, data_path=ROWS[40:50])
    assert done.verification.equal == done.verification.rows == 5


def test_rows_that_a_plain_message_does_not_render_are_asked_by_their_ids(whole, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": "yes"},
                      {"role": "user", "content": "and now?"}]}
        for row in ROWS[:3]
    ]  # fmt: skip
    student = copied(whole, tmp_path / "project")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (student / "chat_template.jinja").write_text(template)
    shutil.rmtree(student / "additional_chat_templates")
    done = export(student, to="merged", verify=3, data_path=rows)
    assert done.verification.by_message == 0
    assert done.verification.equal == done.verification.rows == 3


# a stand-in for llama.cpp's converter, which writes what it was given
CONVERTER = """
import json, pathlib, sys
folder, arguments = pathlib.Path(sys.argv[1]), sys.argv[2:]
given = dict(zip(arguments[::2], arguments[1::2]))
given["files"] = sorted(path.name for path in folder.iterdir())
pathlib.Path(given["--outfile"]).write_text(json.dumps(given))
"""


@pytest.fixture(scope="module")
def converter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama.cpp")
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER)
    return folder


def test_gguf_is_made_by_the_converter_from_merged_weights(adapter, converter, tmp_path):
    folder = export(adapter, to="gguf", converter=converter, gguf_type="q8_0", output=tmp_path / "gguf").folder
    given = json.loads((folder / "first-run-q8_0.gguf").read_text())
    assert given["--outtype"] == "q8_0"
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= {*given["files"]}
    assert "adapter_config.json" not in given["files"]
    assert {path.name for path in folder.iterdir()} == {"first-run-q8_0.gguf", "Modelfile", "export.json"}


def test_the_modelfile_has_the_students_prompt_and_every_end_and_no_system_message(adapter, converter, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("A")]
    project = copied(adapter, tmp_path / "project", generation_config={"eos_token_id": ends})
    lines = (export(project, to="ollama", converter=converter).folder / "Modelfile").read_text()
    assert "FROM ./project-f32.gguf\n" in lines
    assert 'TEMPLATE """{{ .Prompt }}\nAnswer:"""\n' in lines
    assert [line for line in lines.splitlines() if line.startswith("PARAMETER stop")] == [
        f'PARAMETER stop "{end}"' for end in (tokenizer.eos_token, "A")
    ]
    assert "PARAMETER temperature 0\n" in lines
    assert "SYSTEM" not in lines
    assert ".System" not in lines


def test_braces_and_quotes_of_a_prompt_are_none_of_gos_templates():
    tokenizer = AutoTokenizer.from_pretrained(embedded_path())
    tokenizer.chat_template = "{{ 'say {{x}} \"\"\" ' }}{{ messages[0].content }}{{ ' and \"' }}"
    found = go_template(tokenizer)
    first, last = found.split("{{ .Prompt }}")
    assert json.loads(first.removeprefix("{{ ").removesuffix(" }}")) == 'say {{x}} """ '
    assert json.loads(last.removeprefix("{{ ").removesuffix(" }}")) == ' and "'
    assert '"""' not in found.replace('\\"', "")


def test_a_converter_that_does_not_know_the_tokenizer_is_a_sentence(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelSource, "load_model", no_model)
    text = "BPE pre-tokenizer was not recognized - update get_vocab_base_pre()"
    (tmp_path / "convert_hf_to_gguf.py").write_text(f"raise NotImplementedError({text!r})\n")
    done = command(adapter, "--to", "gguf", "--converter", tmp_path, "--output", tmp_path / "gguf")
    assert done.exit_code == 2
    assert "it does not know the tokenizer" in done.stderr
    assert not (tmp_path / "gguf").exists()


@pytest.mark.skipif(find_spec("mlx_lm") is not None, reason="mlx_lm is installed")
def test_without_mlx_the_error_has_the_command_for_a_machine_that_has_it(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelSource, "load_model", no_model)
    done = command(adapter, "--to", "mlx", "--output", tmp_path / "mlx")
    assert done.exit_code == 2
    assert "mlx_lm.convert --hf-path FOLDER --mlx-path first-run-mlx" in done.stderr


@pytest.mark.skipif(find_spec("mlx_lm") is None, reason="mlx_lm is not installed")
def test_mlx_answers_plain_messages_as_the_student_does(adapter, tmp_path):
    done = export(adapter, to="mlx", verify=20, output=tmp_path / "mlx")
    assert done.verification.rows == done.verification.by_message == 20
    assert done.verification.equal >= 19
    assert {path.name for path in tmp_path.iterdir()} == {"mlx"}


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_its_runtime_an_export_is_written_and_says_that_it_is_not_verified(adapter, tmp_path):
    done = command(adapter, "--to", "vllm", "--output", tmp_path / "vllm", "--verify", "3")
    assert done.exit_code == 0, done.stderr
    assert "Not verified: vLLM is not installed here" in done.stdout
    assert (tmp_path / "vllm" / "serve.sh").is_file()


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.parametrize("merge", [False, True])
def test_vllm_answers_plain_messages_as_the_student_does(merge, adapter, tmp_path):
    done = export(adapter, to="vllm", merge=merge, verify=100, output=tmp_path / "vllm")
    assert done.verification.rows == done.verification.by_message == 100
    assert done.verification.equal >= 99


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_an_architecture_that_vllm_does_not_know_is_refused(whole, tmp_path):
    project = copied(whole, tmp_path / "project", config={"architectures": ["NobodysForCausalLM"]})
    with pytest.raises(ModelError, match="is a NobodysForCausalLM, which the installed vLLM does not know"):
        export(project, to="vllm", output=tmp_path / "vllm")
