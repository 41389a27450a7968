"""Every kind of teacher, made from the tiny teacher's folder or beside it, for the contract suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from teachers.writers import make_other_llama, make_t5
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill.config.devices import accelerator
from trl_distill.embedded import embedded_path
from trl_distill.teachers.loading import load_teacher
from trl_distill.teachers.local.ema import MovingAverage
from trl_distill.teachers.local.teacher import LocalTeacher
from trl_distill.teachers.local.weights import SELF, AdapterOff
from trl_distill.teachers.target_store.folder import TargetFolder
from trl_distill.teachers.target_store.reader import StoredTeacher
from trl_distill.teachers.target_store.writer import TargetSettings, write_targets
from trl_distill.teachers.text.local_text import LocalTextTeacher

ROWS = [
    {"row": 0, "student_prompt": [5], "teacher_prompt": [5, 6, 7, 8], "completion": [10, 11, 12]},
    {"row": 1, "student_prompt": [6], "teacher_prompt": [9], "completion": [13]},
    {"row": 2, "student_prompt": [7, 8], "teacher_prompt": [9, 4, 6], "completion": [14, 15]},
]


def from_folder(folder: Path, scratch: Path, request: Any) -> Any:
    return load_teacher(str(folder), device=accelerator())


def from_loaded_model(folder: Path, scratch: Path, request: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return load_teacher(model, tokenizer=AutoTokenizer.from_pretrained(folder), device=accelerator())


def of_student(name: str, weights: Any, model: Any, folder: Path) -> LocalTeacher:
    return LocalTeacher(
        name, weights=weights, config=model.config, tokenizer=AutoTokenizer.from_pretrained(folder),
        generation_config=model.generation_config,
    )  # fmt: skip


def its_own(folder: Path, scratch: Path, request: Any) -> Any:
    """The model under an adapter that would change every score."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    adapter = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    student = get_peft_model(model, adapter).to(accelerator() or "cpu")
    return of_student(SELF, AdapterOff(lambda: student), model, folder)


def average(folder: Path, scratch: Path, request: Any) -> Any:
    """The average of a student whose weights have moved away from it since."""
    model = AutoModelForCausalLM.from_pretrained(folder).to(accelerator() or "cpu")
    teacher = of_student("ema", MovingAverage(lambda: model, decay=0.5), model, folder)
    teacher.attach_student(model, fresh=False)
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    return teacher


def stored(kind: str) -> Any:
    def make(folder: Path, scratch: Path, request: Any) -> Any:
        target = TargetFolder(scratch / kind)
        settings = TargetSettings(20, (1.0, 2.0), kind=kind)
        write_targets(load_teacher(str(folder), device=accelerator()), ROWS, target, settings, progress=False)
        return StoredTeacher(target.path)

    make.__name__ = f"stored_{kind}"
    return make


def server(folder: Path, scratch: Path, request: Any) -> Any:
    running = request.getfixturevalue("server")
    return load_teacher(running.teacher, tokenizer=AutoTokenizer.from_pretrained(embedded_path()))


def encoder_decoder(folder: Path, scratch: Path, request: Any) -> Any:
    return load_teacher(str(make_t5(scratch / "t5")), tokenizer=AutoTokenizer.from_pretrained(folder))


def other_tokenizer(folder: Path, scratch: Path, request: Any) -> Any:
    own = load_teacher(str(make_other_llama(scratch / "other")))
    return LocalTextTeacher(own, tokenizer=AutoTokenizer.from_pretrained(folder))


SCORING = [from_folder, from_loaded_model, its_own, average, stored("topk"), stored("sample"), stored("hidden")]
WHOLE = [make for make in SCORING if make.__name__ not in ("stored_topk", "stored_sample")]
WRITING = [from_folder, from_loaded_model, its_own, average]
TEXT = [server, encoder_decoder, other_tokenizer]
ALL = [*SCORING, *TEXT]
