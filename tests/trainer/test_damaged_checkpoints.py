"""A checkpoint with a damaged file is never resumed from: an older one is, or nothing happens."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset
from huggingface_hub import RepoUrl
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoTokenizer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer
from trl_distill.config.devices import accelerator
from trl_distill.errors import DistillError, ParamsError
from trl_distill.trainer import checkpoints
from trl_distill.trainer.checkpoints import CHECKSUMS, STATE, begin, find_checkpoints, seal

pytestmark = pytest.mark.usefixtures("device")

PAIRS = {"prompt": ["a b", "c", "d e f", "g"], "completion": [" c d", " e f g a", " b", " d"]}
BEST = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
READ = ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "teacher_ema.safetensors"]


def distilling(student, folder, **settings):
    """Return a trainer of an adapter whose teacher is its moving average; every step is saved and evaluated."""
    config = DistillationSFTConfig(
        output_dir=str(folder), use_distillation=True, teacher_model="ema", teacher_ema_decay=0.5, max_steps=3,
        save_strategy="steps", save_steps=1, logging_steps=1, per_device_train_batch_size=2, bf16=False,
        use_cpu=accelerator() is None, report_to="none", dataloader_pin_memory=False, gradient_checkpointing=False,
        disable_tqdm=True, learning_rate=1e-2, teacher_prompt_template="g f {input}",
        student_prompt_template="{input}", **settings,
    )  # fmt: skip
    rows = Dataset.from_dict(PAIRS)
    return DistillationSFTTrainer(
        str(student), config, train_dataset=rows, eval_dataset=rows, peft_config=LoraConfig(lora_dropout=0.1),
        processing_class=AutoTokenizer.from_pretrained(student),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tiny_model_dir, tmp_path_factory):
    """The checkpoints of three steps."""
    folder = tmp_path_factory.mktemp("trained")
    distilling(tiny_model_dir, folder, save_total_limit=3, **BEST).train()
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def flip(path: Path, place: int | None = None) -> None:
    """Flip a bit in the middle of a file, or in the byte at `place`."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", [*READ, STATE, "rows.txt", "adapter_config.json", "tokenizer.json"])
def test_a_damaged_file_is_named_and_its_checkpoint_skipped(name, damage, folder):
    damage(folder / "checkpoint-3" / name)
    found = find_checkpoints(folder)
    assert found.usable == folder / "checkpoint-2"
    what = "is missing" if damage is Path.unlink else "is damaged (its checksum differs)"
    assert found.note == f"checkpoint-3: {name} {what}. Resuming from checkpoint-2."


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"crc32": 3, "own": ""}', "[" * 100_000, '{"crc32": {"../x": "0'])
def test_damaged_checksums_are_damage(text, folder):
    (folder / "checkpoint-3" / CHECKSUMS).write_text(text)
    assert find_checkpoints(folder).damaged == (("checkpoint-3", "checksums.json is damaged"),)


def test_files_that_are_not_read_may_change(folder):
    (folder / "checkpoint-3" / "training_args.bin").unlink()
    (folder / "checkpoint-3" / "README.md").write_text("of my own")
    (folder / "checkpoint-3" / "notes.txt").write_text("of my own")
    assert find_checkpoints(folder).usable == folder / "checkpoint-3"


@pytest.mark.parametrize("name", READ)
def test_without_checksums_a_cut_file_is_named_too(name, folder):
    (folder / "checkpoint-3" / CHECKSUMS).unlink()
    assert find_checkpoints(folder).usable == folder / "checkpoint-3"
    cut(folder / "checkpoint-3" / name)
    assert find_checkpoints(folder).damaged == (("checkpoint-3", f"{name} is damaged"),)


def test_optimizer_states_that_an_earlier_torch_has_written_are_whole(folder):
    (folder / "checkpoint-3" / CHECKSUMS).unlink()
    path = folder / "checkpoint-3" / "optimizer.pt"
    torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    assert find_checkpoints(folder).usable == folder / "checkpoint-3"


def test_what_was_just_sealed_is_not_read_again(tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint-1"
    begin(checkpoint)
    (checkpoint / STATE).write_text("{}")
    (checkpoint / "optimizer.pt").write_bytes(b"weights")
    seal(checkpoint)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "file_checksum", None)
        assert find_checkpoints(tmp_path).usable == checkpoint
    (checkpoint / "optimizer.pt").write_bytes(b"other weights")
    assert find_checkpoints(tmp_path).faults == "checkpoint-1: optimizer.pt is damaged (its checksum differs)"


class Hub:
    """A Hub that keeps checkpoints in a folder, as they are when they are uploaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create_repo(self, name: str, **kwargs: object) -> RepoUrl:
        return RepoUrl(f"https://huggingface.co/{name}")

    def upload_folder(self, *, folder_path: str, path_in_repo: str = "", **kwargs: object) -> Future[None]:
        if path_in_repo:
            shutil.copytree(folder_path, self.folder / path_in_repo)
        done: Future[None] = Future()
        done.set_result(None)
        return done


@pytest.mark.cpu
def test_an_uploaded_checkpoint_is_complete(tiny_model_dir, tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: hub)
    pushed = {"push_to_hub": True, "hub_model_id": "me/it", "hub_strategy": "all_checkpoints", "hub_always_push": True}
    distilling(tiny_model_dir, tmp_path / "run", save_total_limit=1, **pushed).train()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]
    downloaded = hub.folder / "checkpoint-2"
    distilling(tiny_model_dir, tmp_path / "resumed").train(resume_from_checkpoint=str(downloaded))
    weights = [tmp_path / run / "checkpoint-3" / "adapter_model.safetensors" for run in ("resumed", "run")]
    mine, theirs = map(load_file, weights)
    assert all(mine[name].equal(theirs[name]) for name in theirs)


@pytest.mark.cpu
def test_a_script_resumes_from_the_newest_intact_checkpoint_and_ends_with_the_same_weights(
    tiny_model_dir, folder, trained, capsys
):
    flip(folder / "checkpoint-3" / "optimizer.pt")
    cut(folder / "checkpoint-2" / "rng_state.pth")
    distilling(tiny_model_dir, folder, **BEST).train(resume_from_checkpoint=True)
    damaged = "checkpoint-3: optimizer.pt is damaged (its checksum differs); checkpoint-2: rng_state.pth is damaged"
    assert f"{damaged} (its checksum differs). Resuming from checkpoint-1.\n" in capsys.readouterr().out
    mine, theirs = (load_file(run / "checkpoint-3" / "adapter_model.safetensors") for run in (folder, trained))
    assert mine.keys() == theirs.keys()
    assert all(mine[name].equal(theirs[name]) for name in mine)
    assert find_checkpoints(folder).damaged == ()  # both were written again


def test_without_an_intact_checkpoint_nothing_is_resumed_or_changed(tiny_model_dir, folder):
    for step in (1, 2, 3):
        cut(folder / f"checkpoint-{step}" / "optimizer.pt")
    before = contents(folder)
    with pytest.raises(ParamsError, match=r"no checkpoint in output_dir .* is intact \(checkpoint-3: optimizer.pt is "):
        distilling(tiny_model_dir, folder).train(resume_from_checkpoint=True)
    assert contents(folder) == before


def test_a_damaged_checkpoint_that_is_named_is_refused(tiny_model_dir, folder):
    flip(folder / "checkpoint-3" / "teacher_ema.safetensors", -1)
    with pytest.raises(ParamsError) as refused:
        distilling(tiny_model_dir, folder).train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert str(refused.value) == (
        f"resume_from_checkpoint is '{folder / 'checkpoint-3'}', which cannot be resumed from: teacher_ema.safetensors "
        "is damaged (its checksum differs); give an older checkpoint, or True for the newest that is intact."
    )


def test_damaged_weights_of_the_best_evaluation_are_not_loaded(tiny_model_dir, folder):
    state = folder / "checkpoint-2" / STATE
    best = json.loads(state.read_text())["best_model_checkpoint"]
    shutil.rmtree(folder / "checkpoint-3")
    Path(best).mkdir(parents=True, exist_ok=True)
    flip(Path(best) / "adapter_model.safetensors")
    try:
        with pytest.raises(DistillError, match=r"weights of the best evaluation, in .* adapter_model.safetensors is"):
            distilling(tiny_model_dir, folder, **BEST).train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    finally:
        flip(Path(best) / "adapter_model.safetensors")


def test_the_saved_arguments_keep_the_limit_of_checkpoints(trained):
    args = torch.load(trained / "checkpoint-3" / "training_args.bin", weights_only=False)
    assert args.save_total_limit == 3
