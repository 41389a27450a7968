"""What the tests of data forms share: chat templates with marks and tools, and a trainer for any data."""

from __future__ import annotations

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer
from trl_distill.config.devices import accelerator

IGNORE = -100

# writes the tools first, a tool's call as its name, and marks what the assistant says as TRL wants it
MARKED = (
    "{% if tools %}<|im_start|>tools\n{% for tool in tools %}{{ tool['function']['name'] }} {% endfor %}<|im_end|>\n"
    "{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}<call>{{ call['function']['name'] }}</call>{% endfor %}<|im_end|>"
    "{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM = [{"role": "system", "content": "g f e d"}, {"role": "user", "content": "{input}"}]


# settings with which a small model learns a few rows by heart
QUICK = {
    "per_device_train_batch_size": 4, "learning_rate": 1e-2, "use_cpu": True, "bf16": False, "report_to": "none",
    "save_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False, "dataloader_pin_memory": False,
    "lr_scheduler_type": "constant",
}  # fmt: skip


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def settings(folder, **more):
    """Settings of a short run on the CPU."""
    return {
        "output_dir": str(folder), "per_device_train_batch_size": 2, "max_steps": 2, "learning_rate": 1e-3,
        "bf16": False, "use_cpu": accelerator() is None, "report_to": "none", "logging_steps": 1, "save_strategy": "no",
        "disable_tqdm": True, "gradient_checkpointing": False, "dataloader_pin_memory": False, "max_length": 128,
        **more,
    }  # fmt: skip


def distilling(student, teacher, folder, data, *, chat_template=None, evaluation=None, formatting=None, **more):
    """Return a trainer of any data, its tokenizer with a chat template if one is given."""
    tokenizer = AutoTokenizer.from_pretrained(student)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    config = DistillationSFTConfig(**settings(folder, **more), use_distillation=True, teacher_model=str(teacher))
    return DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(student), config, eval_dataset=evaluation, processing_class=tokenizer,
        train_dataset=Dataset.from_list(data) if isinstance(data, list) else data, formatting_func=formatting,
    )  # fmt: skip


def learned_texts(trainer, row, side=""):
    """Return the prompt of a prepared row, and the pieces of one side that are learned, as texts."""
    batch = trainer.data_collator([row])
    ids, labels = batch[f"{side}input_ids"][0].tolist(), batch[f"{side}labels"][0].tolist()
    first = next(k for k, label in enumerate(labels) if label != IGNORE)
    pieces, open_ = [], False
    for token, label in zip(ids[first:], labels[first:], strict=True):
        if label != IGNORE:
            pieces = [*pieces, [token]] if not open_ else [*pieces[:-1], [*pieces[-1], token]]
        open_ = label != IGNORE
    tokenizer = trainer.processing_class
    return tokenizer.decode(ids[:first]), [tokenizer.decode(piece) for piece in pieces]


def losses(trainer):
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]
