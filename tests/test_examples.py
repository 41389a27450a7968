"""Each example runs as it stands, in a folder of its own; the demo on fewer messages."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from forks import run_fork
from safetensors.torch import load_file

from trl_distill.config.devices import accelerator
from trl_distill.embedded import embedded_path

pytestmark = pytest.mark.usefixtures("device")

EXAMPLES = Path(__file__).parents[1] / "examples"


def started(name, folder, *more):
    """Run an example, or a module by its name, and return what it printed."""
    program = [str(EXAMPLES / name)] if name.endswith(".py") else ["-m", name]
    done = run_fork([*program, "--output-dir", "out", "--max-steps", "4", *more], folder)
    assert done.code == 0, done.errors
    return done.printed


def logged(folder):
    """Return the lines that a trainer logged for each of its four steps."""
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    lines = [line for line in state["log_history"] if "loss" in line]
    assert len(lines) == 4
    assert all(math.isfinite(line["loss"]) for line in lines)
    return lines


@pytest.mark.parametrize("name", ["custom_loss.py", "online_distillation.py"])
def test_an_example_trains(name, tmp_path):
    printed = started(name, tmp_path, "--save-strategy", "steps", "--save-steps", "4")
    assert "Pre-flight (train)" in printed
    logged(tmp_path / "out")


@pytest.fixture
def queries(tmp_path):
    (tmp_path / "queries").mkdir()
    lines = [json.dumps({"text": f"{a} {b} sun"}) for a in ("red", "blue", "green") for b in ("cat", "dog")]
    (tmp_path / "queries" / "train.jsonl").write_text("\n".join(lines))
    return tmp_path


SHORT = "use_cpu: true\nbf16: false\nreport_to: none\nlogging_steps: 1\nper_device_train_batch_size: 2\n"


def test_trls_script_with_two_imports_replaced_is_trls_script(queries):
    (queries / "run.yaml").write_text(SHORT + f"dataset_name: ./queries\nmodel_name_or_path: {embedded_path()}\n")
    started("trl_sft.py", queries, "--config", "run.yaml", "--learning_rate", "1e-3")
    (queries / "out").rename(queries / "ours")
    started("trl.scripts.sft", queries, "--config", "run.yaml", "--learning_rate", "1e-3")
    mine, theirs = logged(queries / "ours"), logged(queries / "out")
    assert [line["loss"] for line in mine] == [line["loss"] for line in theirs]
    weights, others = (load_file(queries / name / "model.safetensors") for name in ("ours", "out"))
    assert all(weights[name].equal(tensor) for name, tensor in others.items())
    assert weights.keys() == others.keys()


def test_trls_script_distils_where_a_flag_says_so(queries):
    (queries / "run.yaml").write_text(SHORT + "teacher_prompt_template: 'Put a comma between the words. {input}'\n")
    printed = started(
        "trl_sft.py", queries, "--config", "run.yaml", "--use-distillation", "--teacher_model", "embedded",
        "--model-name-or-path", "embedded", "--dataset_name", "./queries", "--distill-max-teacher-length", "8",
        "--use_peft", "--lora_r", "4",
    )  # fmt: skip
    assert "6 from the teacher, under its prompt" in printed
    assert all("kl" in line for line in logged(queries / "out"))
    assert (queries / "out" / "adapter_model.safetensors").is_file()


def test_a_distilled_student_can_be_trained_with_dpo(tmp_path):
    started("distil_then_dpo.py", tmp_path)
    assert (tmp_path / "out" / "distilled" / "run.json").is_file()
    lines = logged(tmp_path / "out" / "dpo")
    rounding = 1e-3 if accelerator() is None else 2e-2  # on a GPU the example trains in bfloat16
    assert lines[0]["loss"] == pytest.approx(math.log(2), rel=rounding)  # student and reference are the same model
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize("trainer", ["grpo", "rloo"])
def test_a_distilled_student_can_be_trained_with_rewards(trainer, tmp_path):
    started("distil_then_reward.py", tmp_path, "--trainer", trainer)
    assert (tmp_path / "out" / "distilled" / "run.json").is_file()
    lines = logged(tmp_path / "out" / trainer)
    assert any(line["reward_std"] > 0 for line in lines)  # else there is nothing to learn from
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-4)  # the reference is the distilled student
    assert (tmp_path / "out" / trainer / "model.safetensors").is_file()


def test_the_demo_ends_in_a_verdict_with_its_interval_and_the_path_of_the_page(tmp_path):
    """With fewer messages than `make demo` has, so that the student need not reach the demo's goals."""
    done = run_fork([str(EXAMPLES / "demo.py"), "--folder", "demo", "--messages", "240", "--unseen", "30"], tmp_path)
    *_, verdict, outcome, page = done.printed.splitlines()
    assert re.match(r"It works: the student closes \d+% \(95% interval \d+% to \d+%\) of the gap", verdict)
    kept = done.code == 0
    assert outcome == ("The student kept the policy without its prompt." if kept else "The promise was not kept.")
    report = tmp_path / "demo" / "student" / "report.html"
    assert page == f"Open {report.resolve()} in a browser."
    assert verdict.split(":")[0] in report.read_text(encoding="utf-8")


def test_every_example_is_short_and_tested():
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    for path in EXAMPLES.glob("*.py"):
        assert path.name in tests, path.name
        assert path.name == "demo.py" or len(path.read_text().splitlines()) <= 80, path.name
