"""A checkpoint that a kill tore is passed over, by the command and by `resume_from_checkpoint=True`."""

from __future__ import annotations

import os
import signal

import pytest
from datasets import Dataset
from holding import another_process
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer
from trl_distill.config.devices import accelerator
from trl_distill.errors import ParamsError, ProjectError
from trl_distill.trainer.checkpoints import INCOMPLETE, fault_of, last_complete

pytestmark = pytest.mark.usefixtures("device")

PAIRS = {"prompt": ["a b", "c", "d e f", "g"], "completion": [" c d", " e f g a", " b", " d"]}


class Killed(BaseException):
    """What ends a run in the middle of a checkpoint."""


class KillInCheckpoint(ExportableState, TrainerCallback):
    """Ends a run at a step (None: at none), when all of its checkpoint but the state is written."""

    def __init__(self, step):
        self.step, self.now = step, 0

    def on_step_end(self, args, state, control, **kwargs):
        self.now = state.global_step

    def state(self):
        if self.now == self.step:
            raise Killed
        return {"args": {"step": self.step}, "attributes": {}}


def distilling(student, teacher, folder, *callbacks, **settings):
    given = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, **settings}
    config = DistillationSFTConfig(
        output_dir=str(folder), use_distillation=True, teacher_model=str(teacher), **given,
        logging_steps=1, per_device_train_batch_size=2, bf16=False, use_cpu=accelerator() is None,
        report_to="none",
        dataloader_pin_memory=False, gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    return DistillationSFTTrainer(
        str(student), config, train_dataset=Dataset.from_dict(PAIRS), callbacks=list(callbacks)
    )


def steps_logged(trainer):
    return [line["step"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("torn", ["", '{"best_metric": null, "epo', None], ids=["empty", "half", "missing"])
def test_a_script_resumes_from_the_checkpoint_before_a_torn_one(torn, tiny_model_dir, tiny_teacher_dir, tmp_path):
    distilling(tiny_model_dir, tiny_teacher_dir, tmp_path).train()
    state = tmp_path / "checkpoint-4" / "trainer_state.json"
    state.unlink() if torn is None else state.write_text(torn)
    (tmp_path / "checkpoint-old").mkdir()  # of another name than Trainer's
    assert last_complete(tmp_path) == tmp_path / "checkpoint-3"
    resumed = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path)
    begun = []
    resumed.add_callback(type("Begun", (TrainerCallback,), {
        "on_step_begin": lambda self, args, state, control, **kwargs: begun.append(state.global_step)
    }))  # fmt: skip
    resumed.train(resume_from_checkpoint=True)
    assert begun == [3]
    assert steps_logged(resumed) == [1, 2, 3, 4]
    assert fault_of(tmp_path / "checkpoint-4") is None


def test_resuming_without_a_complete_checkpoint_is_refused(tiny_model_dir, tiny_teacher_dir, tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path)
    with pytest.raises(ParamsError, match=r"holds no complete checkpoint; leave it out to start over\.$"):
        trainer.train(resume_from_checkpoint=True)


def test_a_checkpoint_is_incomplete_while_it_is_overwritten(tiny_model_dir, tiny_teacher_dir, tmp_path):
    distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, KillInCheckpoint(None)).train()
    again = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, KillInCheckpoint(4))
    with pytest.raises(Killed):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert fault_of(tmp_path / "checkpoint-4") == INCOMPLETE
    assert last_complete(tmp_path) == tmp_path / "checkpoint-3"


def test_a_kill_in_a_checkpoint_keeps_the_one_before(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, KillInCheckpoint(3))
    trainer.args.save_total_limit = 1
    with pytest.raises(Killed):
        trainer.train()
    assert [p.name for p in sorted(tmp_path.glob("checkpoint-*"))] == ["checkpoint-2", "checkpoint-3"]
    assert last_complete(tmp_path) == tmp_path / "checkpoint-2"


def test_two_runs_do_not_keep_checkpoints_in_one_folder(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path)
    said = r"output_dir '.*' is in use by process \d+ on this machine"
    with another_process(tmp_path, file="_.lock"), pytest.raises(ProjectError, match=said):
        trainer.train()
    trainer.train()
    assert last_complete(tmp_path).name == "checkpoint-4"
    assert not list(tmp_path.glob("_*"))


def test_a_script_gets_a_checkpoint_at_sigterm_from_transformers(tiny_model_dir, tiny_teacher_dir, tmp_path):
    class SendSigterm(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    settings = {"enable_jit_checkpoint": True, "max_steps": 10_000, "save_strategy": "no"}
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, SendSigterm(), **settings)
    for callback in trainer.callback_handler.callbacks:
        if hasattr(callback, "jit_manager"):
            callback.jit_manager.kill_wait = 0  # seconds before it saves
    trainer.train()
    assert last_complete(tmp_path).name == f"checkpoint-{trainer.state.global_step}"
    assert 2 <= trainer.state.global_step < 10_000


def test_a_script_that_resumes_at_the_last_step_trains_no_further(tiny_model_dir, tiny_teacher_dir, tmp_path):
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3}  # in the middle of an epoch
    first = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, **settings)
    first.train()
    again = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, **settings)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert one.equal(other)
