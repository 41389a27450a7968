"""Data as it lies in memory, given to the trainer and the library in Python."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from forms import distilling
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTTrainer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, run
from trl_distill.errors import DataError

ROWS = [{"prompt": "a b", "completion": " c", "k": {"x": None}}, {"prompt": "d", "completion": " e f", "k": {"y": 1}}]
TEACHER = {"teacher_prompt_template": "g f {input} d"}


class Listed(torch.utils.data.Dataset):
    """A dataset of torch."""

    def __len__(self):
        return 1

    def __getitem__(self, i):
        return ROWS[i]


@pytest.mark.parametrize("made", [list, pd.DataFrame])
def test_a_trainer_takes_rows_in_memory_of_every_kind(made, tiny_model_dir, tiny_teacher_dir, tmp_path):
    dirs = (tiny_model_dir, tiny_teacher_dir, tmp_path)
    trainer = trained_on(dirs, made(ROWS), evaluation={"near": made(ROWS[:1])})
    usual = trained_on(dirs, Dataset.from_list(ROWS))
    assert list(trainer.train_dataset) == list(usual.train_dataset)
    assert len(trainer.eval_dataset["near"]) == 1
    named = trainer.evaluate()
    assert trainer.evaluate(made(ROWS[:1]))["eval_loss"] == pytest.approx(named["eval_near_loss"], rel=1e-6)
    assert trainer.evaluate("near")["eval_loss"] == pytest.approx(named["eval_near_loss"], rel=1e-6)


def trained_on(dirs, data, evaluation=None):
    student, teacher, folder = dirs
    config = {"output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", **TEACHER}
    return DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(student),
        DistillationSFTConfig(**config, use_distillation=True, teacher_model=str(teacher)),
        train_dataset=data,
        eval_dataset=evaluation,
        processing_class=AutoTokenizer.from_pretrained(student),
    )


DATA = Dataset.from_list(ROWS)
BAD = [
    (DatasetDict(train=DATA, test=DATA), r"a DatasetDict of 'train', 'test'; give one of them, such as {0}\['train'\]"),
    (Listed(), r"a torch dataset \(Listed\); convert it with datasets.Dataset.from_list\(\[{0}\[i\] for i in range"),
    ((row for row in ROWS), r"a generator, which .* convert it with datasets.Dataset.from_list\(list\({0}\)\)"),
    ("rows.json", r"a path, 'rows.json'; load it with trl_distill.data.load_data\('rows.json'\)\[0\]"),
    ({"prompt": ["a"], "completion": ["b"]}, r"a dict of columns; convert it with datasets.Dataset.from_dict\({0}\)"),
    (None, "a NoneType; give a datasets.Dataset, a list of dicts or a pandas DataFrame, or an IterableDataset"),
    ([], "has no rows"),
    (DATA.select([]), "has no rows"),
    (pd.DataFrame(), "has no rows"),
    (IterableDataset.from_generator(lambda: iter([])), "has no rows"),
]


@pytest.mark.parametrize(("data", "message"), BAD)
@pytest.mark.parametrize("role", ["train_dataset", "eval_dataset"])
def test_what_a_trainer_cannot_take_is_named(role, data, message, tiny_model_dir, tiny_teacher_dir, tmp_path):
    if role == "eval_dataset" and (data is None or isinstance(data, dict)):
        pytest.skip("nothing to evaluate on, and sets by name, are fine")
    given = {"data": DATA, "evaluation": None} | {"data" if role == "train_dataset" else "evaluation": data}
    with pytest.raises(DataError, match=f"^{role} (is )?{message.format(role)}"):
        trained_on((tiny_model_dir, tiny_teacher_dir, tmp_path), **given)


def test_named_evaluation_sets_are_checked(tiny_model_dir, tiny_teacher_dir, tmp_path):
    dirs = (tiny_model_dir, tiny_teacher_dir, tmp_path)
    with pytest.raises(DataError, match=r"eval_dataset\['near'\] is a torch dataset"):
        trained_on(dirs, DATA, {"near": Listed()})
    trainer = trained_on(dirs, DATA)
    with pytest.raises(DataError, match=r"eval_dataset is a path, 'near'"):
        trainer.evaluate("near")
    with pytest.raises(DataError, match="eval_dataset has no rows"):
        trainer.evaluate([])


def test_a_trainer_without_distillation_is_trls(tiny_model_dir, tmp_path):
    said = []
    for kind in (SFTTrainer, DistillationSFTTrainer):
        config = DistillationSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever TRL says
            kind(
                AutoModelForCausalLM.from_pretrained(tiny_model_dir),
                config,
                train_dataset=ROWS,
                processing_class=AutoTokenizer.from_pretrained(tiny_model_dir),
            )
        said.append((type(caught.value), str(caught.value)))
    assert said[0] == said[1]


def test_a_run_takes_rows_and_its_files_do_not_hold_them(tiny_model_dir, tiny_teacher_dir, tmp_path):
    folder = tmp_path / "run"
    params = LLMTrainingParams(
        model=str(tiny_model_dir), teacher_model=str(tiny_teacher_dir), data_path=ROWS * 4, text_column="prompt",
        retain_data=pd.DataFrame([{"prompt": "f g", "completion": " a"}]), project_name=str(folder), max_steps=1,
        **TEACHER,
    )  # fmt: skip
    assert params.to_dict()["data_path"] == "<list>"
    result = run(params)
    assert len(result.trainer.train_dataset) == 11
    written = (folder / "config.yaml").read_text()
    assert "data_path: <list>" in written
    assert "retain_data: <DataFrame>" in written
    assert "| data | &lt;list&gt; |" in (folder / "README.md").read_text()


def test_rows_of_token_ids_may_be_a_list(tiny_model_dir, tiny_teacher_dir, tmp_path):
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}]
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, pd.DataFrame(rows))
    assert trainer.train_dataset[0]["completion"] == [6, 7]
