"""No student learns and no teacher teaches from logits that are not the model's own, whatever the family."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from checks import check_close
from peft import LoraConfig
from small_runs import losses, make
from teachers.kinds import ROWS
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from trl_distill.data.collator import DistillationCollator
from trl_distill.errors import ModelError, TeacherError
from trl_distill.losses import distillation_loss_from_logits
from trl_distill.models.completion_forward import OWN_LOGITS, add_completion_forward, restore_forward
from trl_distill.models.logits_check import check_logits
from trl_distill.teachers.loading import load_teacher
from trl_distill.teachers.target_store.folder import TargetFolder
from trl_distill.teachers.target_store.reader import StoredTeacher
from trl_distill.teachers.target_store.writer import TargetSettings, write_targets

pytestmark = pytest.mark.usefixtures("device")

spec = importlib.util.spec_from_file_location("architectures", Path(__file__).parents[2] / "docs" / "architectures.py")
architectures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(architectures)

NAMED = ["modernbert-decoder", "recurrent_gemma", "xlstm", "mpt", "inkling_text", "llama4_text"]
UNKNOWN = "bert (is_decoder=True)"  # a layer and a bias stand between its backbone and its logits
LINE = "LM head alone does not compute the logits of"


class Louder(LlamaForCausalLM):
    """Logits that no LM head gives, by a forward that makes those of all positions."""

    def forward(self, input_ids=None, attention_mask=None, use_cache=None):
        out = super().forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)
        out.logits = out.logits * 3 + out.logits.roll(1, -1)
        return out


@pytest.fixture(scope="module")
def rows(tiny_model_dir):
    return len(AutoTokenizer.from_pretrained(tiny_model_dir))


def louder(rows):
    torch.manual_seed(0)
    return Louder(LlamaConfig(
        vocab_size=rows, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.3,
    ))  # fmt: skip


def by_hand(batch, student, teacher, **settings):
    """Return the mean loss of a batch from the models' own full logits, each row read alone."""
    parts = []
    for b in range(len(batch["input_ids"])):
        sides = []
        for model, prefix in ((student, ""), (teacher, "teacher_")):
            length = int(batch[f"{prefix}attention_mask"][b].sum())
            labels = batch[f"{prefix}labels"][b, 1:length]
            ids = batch[f"{prefix}input_ids"][b : b + 1, :length]
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1]
            sides.append((logits[labels != -100], labels[labels != -100]))
        parts.append((sides[0][0], sides[1][0].detach(), sides[0][1]))
    student_logits, teacher_logits, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return distillation_loss_from_logits(student_logits, teacher_logits, labels, **settings).loss / len(labels)


def check_a_step(trainer, student, teacher, *, at_most=2e-5, **settings):
    """Fail unless a batch's loss and gradients are those of `by_hand`; copies in evaluation mode are compared."""
    batch = next(iter(trainer.get_train_dataloader()))
    student, teacher = (model.to(trainer.args.device) for model in (student, teacher))
    if trainer.args.device.type != "cpu":  # kernels that add in another order for each shape
        at_most *= 5
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    expected = by_hand(batch, student, teacher, alpha=0.6, temperature=2.0, **settings)
    torch.testing.assert_close(loss, expected, rtol=at_most, atol=0.0)
    loss.backward()
    expected.backward()
    mine = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    right = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    largest = max(float(g.norm()) for g in right.values())
    check_close(
        {name: mine.get(name) for name, g in right.items() if g.norm() > 1e-6 * largest},
        {name: g for name, g in right.items() if g.norm() > 1e-6 * largest},
        at_most,
    )


LOSS = {"distill_alpha": 0.6, "distill_temperature": 2.0}


@pytest.mark.parametrize("kind", [*NAMED, UNKNOWN])
def test_a_trainer_learns_what_the_models_own_logits_say(
    kind, rows, tiny_model_dir, tiny_teacher_dir, tmp_path, capsys
):
    model = architectures.tiny(kind, rows=rows)
    bare = copy.deepcopy(model)
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, model=model, **LOSS)
    line = f"Student: the {LINE} {type(bare).__name__}"
    assert (line in capsys.readouterr().out) == (kind == UNKNOWN)
    teacher = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    check_a_step(trainer, bare, teacher, at_most=1e-4 if kind == "xlstm" else 2e-5)  # its gates round more


def test_a_module_before_the_head_is_trained_and_saved(rows, tiny_model_dir, tiny_teacher_dir, tmp_path):
    model = architectures.tiny("modernbert-decoder", rows=rows)
    before = model.lm_head.dense.weight.detach().clone()
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, model=model, **LOSS)
    trainer.processing_class.bos_token = "<|end|>"  # without one, transformers 5.17 fails for this family
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").lm_head.dense.weight
    assert torch.equal(saved, trainer.model.lm_head.dense.weight.cpu())
    assert (saved - before).norm() > 1e-3 * before.norm()


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd"])
def test_a_student_of_an_unknown_family_learns_from_its_own_logits(
    divergence, rows, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    """Its forward takes no `logits_to_keep`."""
    model = louder(rows)
    bare = copy.deepcopy(model)
    trainer = make(
        tiny_model_dir, tiny_teacher_dir, tmp_path, model=model, distill_divergence=divergence, **LOSS
    )  # fmt: skip
    assert not getattr(trainer.model, OWN_LOGITS).selects
    teacher = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    check_a_step(trainer, bare, teacher, divergence=divergence)


def teacher_of(kind, rows, tokenizer):
    given = louder(rows) if kind == "louder" else architectures.tiny(kind, rows=rows)
    return copy.deepcopy(given), given, load_teacher(given, tokenizer=tokenizer)


@pytest.mark.parametrize("student", ["llama", UNKNOWN])
@pytest.mark.parametrize("kind", [UNKNOWN, "louder"])
def test_a_teacher_of_an_unknown_family_teaches_by_its_own_logits(
    kind, student, rows, tiny_model_dir, tmp_path, capsys
):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model, given, teacher = teacher_of(kind, rows, tokenizer)
    bare = architectures.tiny(student, rows=rows)
    trainer = make(
        tiny_model_dir, "unused", tmp_path, model=copy.deepcopy(bare), more={"teacher_model": teacher}, **LOSS
    )
    assert f": the {LINE} {type(model).__name__}" in capsys.readouterr().out
    check_a_step(trainer, bare, model)
    assert not hasattr(given, OWN_LOGITS)  # a model of the caller's own stays as it came


@pytest.mark.parametrize("settings", [
    {"gradient_checkpointing": True}, {"bf16": True}, {"distill_loss_impl": "plain"},
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
], ids=lambda settings: next(iter(settings)))  # fmt: skip
def test_settings_that_change_no_loss_change_none_of_own_logits(
    settings, rows, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    model = architectures.tiny(UNKNOWN, rows=rows)
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain = losses(make(tiny_model_dir, tiny_teacher_dir, tmp_path, model=copy.deepcopy(model)))
    found = losses(make(tiny_model_dir, tiny_teacher_dir, tmp_path, model=model, **settings))
    assert found == pytest.approx(plain, rel=2e-2 if settings.get("bf16") else 1e-5)


@pytest.mark.parametrize("teacher", ["ema", "written by the student"])
def test_a_student_of_an_unknown_family_generates_and_is_averaged(
    teacher, rows, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    settings = {"distill_on_policy_fraction": 1.0, "distill_on_policy_max_new_tokens": 3}
    model = architectures.tiny(UNKNOWN, rows=rows)
    spec = tiny_teacher_dir if teacher != "ema" else "ema"
    found = losses(make(tiny_model_dir, spec, tmp_path, model=model, **({} if teacher == "ema" else settings)))
    assert len(found) == 3
    assert all(0 < value < 100 for value in found[1:])  # at the first step the average is the student


def test_an_adapter_on_an_unknown_family_learns_from_own_logits(rows, tiny_model_dir, tiny_teacher_dir, tmp_path):
    model = architectures.tiny(UNKNOWN, rows=rows)
    adapter = LoraConfig(r=4, target_modules=["query", "dense"], task_type="CAUSAL_LM", init_lora_weights=False)
    trainer = make(tiny_model_dir, "self", tmp_path, model=model, peft=adapter, **LOSS)
    student = copy.deepcopy(trainer.model)
    restore_forward(student.get_base_model())
    with torch.no_grad(), student.disable_adapter():
        bare = copy.deepcopy(student)
    check_a_step(trainer, student, _Disabled(bare))


class _Disabled(torch.nn.Module):
    """A model under its adapter."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        with torch.no_grad(), self.model.disable_adapter():
            return self.model(**inputs)


@pytest.mark.parametrize("kind", ["topk", "sample"])
def test_a_store_of_an_unknown_family_holds_its_own_logits(kind, rows, tiny_model_dir, tmp_path, capsys):
    model, _, teacher = teacher_of(UNKNOWN, rows, AutoTokenizer.from_pretrained(tiny_model_dir))
    folder = TargetFolder(tmp_path / kind)
    settings = TargetSettings(rows, (1.0, 2.0), kind=kind)
    write_targets(teacher, ROWS, folder, settings)
    assert LINE in capsys.readouterr().out
    row, prompt = ROWS[0], len(ROWS[0]["teacher_prompt"])
    ids = torch.tensor([[*row["teacher_prompt"], *row["completion"]]])
    with torch.no_grad():
        own = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, prompt - 1 : -1]
    stored = StoredTeacher(folder.path).score(DistillationCollator(pad_token_id=0)([row]))
    if kind == "topk":
        expected = own.log_softmax(-1).gather(1, stored.token_ids)
        assert (stored.log_probs - expected).abs().max() <= 2**-10 * expected.abs().max()  # they are kept in float16
    else:
        log_p = (own / 2.0).log_softmax(-1)
        negentropy = (log_p.exp() * log_p).sum(1)
        torch.testing.assert_close(stored.samples[2.0].negentropy, negentropy, rtol=1e-4, atol=1e-5)


def test_hidden_states_that_do_not_give_the_logits_are_not_stored(rows, tiny_model_dir, tmp_path):
    _, _, teacher = teacher_of(UNKNOWN, rows, AutoTokenizer.from_pretrained(tiny_model_dir))
    settings = TargetSettings(4, (1.0,), kind="hidden")
    with pytest.raises(TeacherError, match="store the kind topk or sample"):
        write_targets(teacher, ROWS, TargetFolder(tmp_path / "store"), settings, progress=False)
    assert not (tmp_path / "store" / "manifest.json").exists()


def test_rounding_does_not_fail_the_logits_check(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16)
    add_completion_forward(model)
    assert check_logits(model.eval(), model) == ""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        add_completion_forward(model)
        assert check_logits(model.eval(), model) == ""


def test_a_ruled_out_token_does_not_fail_the_logits_check(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.lm_head.bias = torch.nn.Parameter(
        torch.zeros(model.config.vocab_size).index_fill(0, torch.tensor([3]), -torch.inf)
    )
    add_completion_forward(model)
    assert check_logits(model.eval(), model) == ""


def test_a_model_without_logits_is_refused(tiny_model_dir):
    class Silent(LlamaForCausalLM):
        def forward(self, **inputs):
            return super().forward(**inputs).past_key_values

    model = Silent.from_pretrained(tiny_model_dir)
    add_completion_forward(model)
    with pytest.raises(ModelError, match="Silent gives no logits of a sequence"):
        check_logits(model.eval(), model)


def test_the_table_of_architectures_has_every_one_that_transformers_lists():
    text = architectures.PAGE.read_text()
    for kind in architectures.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        assert f"\n| {kind} |" in text, f"run `python docs/architectures.py`: {kind} is missing"
    assert architectures.tried("mpt")[0] == "head"
    assert "\n| mpt | head |" in text
    assert f"\n| {UNKNOWN} | own logits |" in text
