"""Models, checkpoints, settings, templates and data of others run no code: each brings some that would leave a file."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from trl_distill.cli import main


class Touch:
    """Leaves a file when it is unpickled, as anything could be done."""

    def __init__(self, path: Path) -> None:
        self.command = f"touch {path}"

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def ran(tmp_path):
    """Return the path that code of others makes."""
    return tmp_path / "ran"


@pytest.fixture
def command(tiny_model_dir, tiny_teacher_dir, tmp_path):
    """Return a function that runs `aitraining llm` with some options and returns its result."""
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": w, "completion": " b"}) for w in "abcd"))

    def invoke(**options):
        base = {
            "model": tiny_model_dir, "teacher_model": tiny_teacher_dir, "data_path": tmp_path / "rows.jsonl",
            "teacher_prompt_template": "g f e {input}", "project_name": tmp_path / "run", "max_steps": 2,
            "save_strategy": "steps", "save_steps": 1, **options,
        }  # fmt: skip
        flags = [w for n, v in base.items() for w in (f"--{n.replace('_', '-')}", *([] if v is True else [str(v)]))]
        return CliRunner().invoke(main, ["llm", *flags])

    return invoke


def refused(done, ran, code=(1, 2)):
    """Whether a command ended with one sentence and ran nothing."""
    assert not ran.exists(), done.output
    assert done.exit_code in code, done.output
    last = done.stderr.strip().splitlines()[-1]
    return last.startswith("aitraining: error: ") and len(last) < 800


def test_the_file_that_code_would_leave_is_left_by_a_pickle(ran):
    pickle.loads(pickle.dumps(Touch(ran)))
    assert ran.exists()


@pytest.mark.parametrize("role", ["model", "teacher_model"])
def test_weights_in_a_pickle_are_not_executed(role, command, ran, tiny_model_dir, tmp_path):
    folder = tmp_path / "hostile"
    shutil.copytree(tiny_model_dir, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({**load_file(tiny_model_dir / "model.safetensors"), "x": Touch(ran)}, folder / "pytorch_model.bin")
    assert refused(command(**{role: folder}), ran)


def test_a_checkpoints_pickles_are_not_executed(command, ran, tmp_path):
    done = command(max_steps=1)
    assert done.exit_code == 0, done.output
    (tmp_path / "run" / "run.json").unlink()
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-*")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        content = (checkpoint / name).read_bytes()
        torch.save({"x": Touch(ran)}, checkpoint / name)
        assert refused(command(resume=True), ran), name
        (checkpoint / name).write_bytes(content)
    torch.save(Touch(ran), checkpoint / "training_args.bin")
    done = command(resume=True)
    assert done.exit_code == 0, done.output
    assert not ran.exists()


def test_code_beside_a_model_is_not_executed(command, ran, tiny_model_dir, tmp_path):
    folder = tmp_path / "hostile"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    mapped = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "theirs", "auto_map": mapped}))
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\n")
    assert refused(command(model=folder), ran)


@pytest.mark.parametrize("role", ["model", "teacher_model"])
def test_a_module_that_an_adapter_names_is_not_imported(role, command, ran, tiny_model_dir, tmp_path, monkeypatch):
    adapter = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir), LoraConfig(target_modules=["q_proj"])
    )
    adapter.save_pretrained(tmp_path / "hostile")
    config = json.loads((tmp_path / "hostile" / "adapter_config.json").read_text())
    named = {"megatron_config": {"a": 1}, "megatron_core": "module_that_an_adapter_names"}
    (tmp_path / "hostile" / "adapter_config.json").write_text(json.dumps({**config, **named}))
    (tmp_path / "module_that_an_adapter_names.py").write_text(f"open({str(ran)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert refused(command(**{role: tmp_path / "hostile"}), ran)


def test_a_tag_in_settings_makes_no_object(ran, tmp_path):
    (tmp_path / "run.yaml").write_text(f"model: !!python/object/apply:os.system ['touch {ran}']\n")
    assert refused(CliRunner().invoke(main, ["llm", "--config", str(tmp_path / "run.yaml")]), ran, code=(2,))


def test_a_chat_template_is_rendered_in_a_sandbox(command, ran, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 4
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    attack = f"{{{{ cycler.__init__.__globals__.os.system('touch {ran}') }}}}"
    (tmp_path / "chat.jinja").write_text(attack + "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert refused(command(chat_template=tmp_path / "chat.jinja", teacher_system="g"), ran)


@pytest.mark.parametrize("name", ["rows.pkl", "rows.pt", "rows.py", "rows.npy"])
def test_a_script_or_a_pickle_is_no_data(name, command, ran, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    if name.endswith(".py"):
        (folder / name).write_text(f"open({str(ran)!r}, 'w')\n")
    else:
        (folder / name).write_bytes(pickle.dumps(Touch(ran)))
    assert refused(command(data_path=folder), ran, code=(2,))
    assert refused(command(data_path=folder / name), ran, code=(2,))
