"""Merged weights: one model that transformers, and all that reads its files, loads without PEFT and without us."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .form import Form
from .verify import Answer, Runtime

if TYPE_CHECKING:
    from typing import Any

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .rows import Request
    from .student import TrainedStudent

ASK = (
    'from transformers import pipeline; print(pipeline("text-generation", {folder})'
    '([{{"role": "user", "content": "Hello"}}], return_full_text=False)[0]["generated_text"])'
)


class Merged(Form):
    """The student as one folder of weights and tokenizer."""

    runtime = "transformers"

    def check(self) -> list[str]:
        """Refuse what cannot be merged, and return what the user should know."""
        self.student.check_merges()
        return notes_on_merging(self.student)

    def write(self, folder: Path) -> None:
        self.student.write_merged(folder)

    def next_command(self, folder: Path) -> str:
        return f"python -c {shlex.quote(ASK.format(folder=json.dumps(str(folder), ensure_ascii=False)))}"

    @contextmanager
    def running(self, folder: Path, length: int) -> Iterator[Runtime]:
        """Load the folder by plain transformers."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from ...config.devices import accelerator

        trust = self.student.source.trust_remote_code
        device = str(accelerator() or "cpu")
        own = {"trust_remote_code": trust}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map=device, **own)  # nosec B615  # local
        tokenizer = AutoTokenizer.from_pretrained(folder, **own)  # nosec B615  # local
        yield Transformers(model, tokenizer)


def notes_on_merging(student: TrainedStudent) -> list[str]:
    """Return what a user should know of merged weights."""
    quantization = student.run.params.quantization
    if student.source.adapter is None or quantization is None:
        return []
    return [
        f"The adapter was trained on {quantization} weights and is merged into the base's own, so that some "
        "completions may differ; --verify counts them."
    ]


class Transformers:
    """Plain transformers, asked as its documentation says.

    Args:
        model: The exported model.
        tokenizer: Its tokenizer.
    """

    name, concurrency = "transformers", 1

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer

    def ask(self, request: Request, most: int) -> Answer:
        """See `Runtime`."""
        import torch

        how: dict[str, Any] = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        if request.message is None:
            ids = torch.tensor([request.ids])
            inputs: Any = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        else:
            messages = [{"role": "user", "content": request.message}]
            inputs = self.tokenizer.apply_chat_template(messages, **how)
        inputs = {name: values.to(self.model.device) for name, values in inputs.items()}
        written = self.model.generate(**inputs, max_new_tokens=most, do_sample=False)  # type: ignore[operator]
        new = written[0, inputs["input_ids"].shape[1] :].tolist()
        return Answer(str(self.tokenizer.decode(new, skip_special_tokens=True)), new)
