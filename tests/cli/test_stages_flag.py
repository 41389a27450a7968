"""`aitraining llm --stages FILE`: what is no list of stages ends in a sentence that names the file and the stage."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from trl_distill.cli import main

RUN = ["llm", "--model", "m", "--teacher-model", "t"]


def ended(text, tmp_path, *more):
    """Return what the command says of a file of stages, whose name is FILE in it."""
    path = tmp_path / "stages.yaml"
    path.write_text(text)
    result = CliRunner().invoke(main, [*RUN, *more, "--stages", str(path)])
    assert result.exit_code == 2
    assert result.stdout == ""
    return result.stderr.replace(str(path), "FILE")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: 2\n", "--stages FILE holds a dict; give a list with the settings of each stage"),
        ("", "--stages FILE holds a NoneType; give a list"),
        ("[]\n", "--stages FILE has 0 stages; give 1 to 100."),
        ("- epochs: 2\n- a prompt\n", "--stages FILE: stage 2 is 'a prompt'; give 'name: value' lines"),
        ("- [1, a]\n- [1, b]\n", "--stages FILE: stage 2 has the number 1; number the stages"),
        ("- epochs: 2\n  epochs: 3\n", "--stages FILE is not YAML: the key 'epochs' is given twice in line 2."),
        ("- epochs: 2\n- project_name: x\n", "stage 2: --project-name cannot differ"),
        ("- epochs: 2\n- distill_temprature: 2\n", "stage 2: unknown parameter 'distill_temprature'. Did you mean"),
        ("- epochs: 2\n- hub_token: hf_Q7w8E9r0T1y2U3i4\n", "stage 2: hub_token is not accepted, so that the token is"),
        ("- hf_Q7w8E9r0T1y2U3i4\n", "stage 1 is 'hf_***'; give"),
        ("- teacher_model: https://me:Q7w8E9r0@host/v1#m\n", "stage 1: --teacher-model"),
        ("- epochs: none\n", "stage 1: epochs is 'none'; expected a number above 0"),
        ("- epochs: 2\n- teacher_prompt_template: '{input'\n", "stage 2: --teacher-prompt-template has no {input}"),
    ],
)
def test_a_wrong_stage_is_named(text, said, tmp_path):
    found = ended(text, tmp_path)
    assert said in found
    assert "Q7w8E9r0" not in found


def test_a_file_that_is_not_there_is_named(tmp_path):
    result = CliRunner().invoke(main, [*RUN, "--stages", str(tmp_path / "nowhere.yaml")])
    assert result.exit_code == 2
    assert "nowhere.yaml cannot be read: No such file or directory" in result.stderr
