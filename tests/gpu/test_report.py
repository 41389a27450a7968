"""On a GPU a run's page has what the student writes there, and the divergence as evaluation measures it."""

from __future__ import annotations

import json

import pytest

from trl_distill import LLMTrainingParams, run


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_rows_of_a_page_are_measured_as_in_evaluation(precision, tiny_model_dir, tiny_teacher_dir, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, count in (("train", 8), ("validation", 4)):
        rows = [{"text": "abcdefgh"[i], "completion": "a b c d"} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model": str(tiny_model_dir), "teacher_model": str(tiny_teacher_dir), "data_path": str(folder), "epochs": 1,
        "teacher_prompt_template": "e f {input}", "student_prompt_template": "{input}", "mixed_precision": precision,
        "project_name": str(tmp_path / "run"), "gradient_accumulation": 1,
    }  # fmt: skip
    result = run(LLMTrainingParams(**settings))
    training = json.loads(result.paths["report"].read_text())["training"]
    values = [value for row in training["rows"] for value in row["divergence"]]
    assert sum(values) / len(values) == pytest.approx(
        result.metrics["eval_kl"], rel=1e-3 if precision == "no" else 5e-2
    )
    assert all(row["tokens"] > 0 for row in training["rows"])
    assert "GPU" in training["versions"]
