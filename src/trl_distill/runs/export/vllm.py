"""`serve.sh`, which serves the student by vLLM: its base with the adapter, or merged weights."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...config.user_files import shell_path
from ...data.atomic_file import make_readable
from ...errors import ModelError
from ...teachers.completions.engines.vllm import CPU_CACHE, LORA_RANKS, why_not_applied
from .form import Form
from .merged import notes_on_merging
from .server import free_port, served
from .verify import Runtime

if TYPE_CHECKING:
    from ...config.export_settings import ExportSettings
    from .student import TrainedStudent

SCRIPT, MODEL = "serve.sh", "model"
# prints what vLLM knows of an architecture
KNOWS = """
import json, sys
from vllm.model_executor.models.interfaces import supports_lora
from vllm.model_executor.models.registry import ModelRegistry
name = sys.argv[1]
known = name in ModelRegistry.get_supported_archs()
print(json.dumps([known, bool(known and supports_lora(ModelRegistry.models[name].load_model_cls()))]))
"""
TEXT = """\
#!/bin/sh
# Serves the student by vLLM as the model {name}, at http://127.0.0.1:8000/v1; further arguments go to vLLM, such as
#   sh serve.sh --port 9000
# {ask}
# With PYTHON=/path/to/python it is the vLLM of that Python that serves.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
serve() {{
  if [ -n "${{PYTHON:-}}" ]; then
    exec "$PYTHON" -m vllm.entrypoints.openai.api_server --model "$@"
  fi
  exec vllm serve "$@"
}}
serve {model} \\
{arguments} \\
  --host 127.0.0.1 --port 8000 "$@"
"""
HERE = '"$here"'


class VLLMServer(Form):
    """A folder with `serve.sh`.

    Args:
        student: The student.
        settings: How it is exported; `merge` serves merged weights.
    """

    runtime = "vLLM"

    def __init__(self, student: TrainedStudent, settings: ExportSettings) -> None:
        super().__init__(student, settings)
        self.adapter = None if settings.merge else student.source.adapter

    def check(self) -> list[str]:
        """Refuse what vLLM does not serve, and return what the user should know.

        Raises:
            ModelError: An adapter that vLLM does not apply, or an architecture that the installed vLLM does not know.
        """
        if self.adapter is None:
            self.student.check_merges()
        else:
            self._check_adapter()
        notes = notes_on_merging(self.student) if self.adapter is None else self._notes_on_base()
        return [*notes, *self._check_architecture(), *self._notes_on_chat()]

    def write(self, folder: Path) -> None:
        if self.adapter is None:
            (folder / MODEL).mkdir()
            self.student.write_merged(folder / MODEL)
        else:
            self._write_adapter(folder)
        (folder / SCRIPT).write_text(self._script(), encoding="utf-8")
        (folder / SCRIPT).chmod((folder / SCRIPT).stat().st_mode | 0o111)

    def next_command(self, folder: Path) -> str:
        return f"sh {shell_path(folder / SCRIPT)}"

    def why_not_run(self) -> str | None:
        """Why it cannot be verified here."""
        return None if find_spec("vllm") is not None else "vLLM is not installed here (`pip install vllm`)"

    @contextmanager
    def running(self, folder: Path, length: int) -> Iterator[Runtime]:
        """Run the script with this Python's vLLM."""
        port = free_port()
        command = ["sh", str(folder / SCRIPT), "--port", str(port), "--max-model-len", str(length)]
        environment = {"PYTHON": sys.executable}
        if not torch.cuda.is_available():
            command.append("--enforce-eager")  # compiling costs more than it saves
            environment["VLLM_CPU_KVCACHE_SPACE"] = CPU_CACHE
        name = self.student.name
        with served(command, name="vLLM", port=port, model=name, environment=environment) as runtime:
            yield runtime

    def _check_adapter(self) -> None:
        reason = why_not_applied(self.adapter)
        rank = self.student.adapter_settings.get("r")
        if reason is None and isinstance(rank, int) and rank > LORA_RANKS[-1]:
            reason = f"vLLM applies adapters of rank {LORA_RANKS[-1]} at most, and this one has {rank}"
        if reason is not None:
            raise ModelError(
                f"the student in {str(self.student.folder)!r} cannot be served with its adapter: {reason}; add --merge "
                "to serve merged weights."
            )

    def _check_architecture(self) -> list[str]:
        """Refuse an architecture that the installed vLLM does not know."""
        names = self.student.source.config.architectures or []
        name = names[0] if names else type(self.student.source.config).__name__
        if self.why_not_run() is not None:
            return [f"vLLM is not installed here: nothing checked whether it knows {name}."]
        done = subprocess.run(  # nosec B603  # no shell
            [sys.executable, "-c", KNOWS, name], capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode != 0:
            return [f"The installed vLLM does not say whether it knows {name}."]
        known, applies = json.loads(done.stdout.strip().splitlines()[-1])
        if not known and not _runs_through_transformers(name):
            raise ModelError(
                f"the student in {str(self.student.folder)!r} is a {name}, which the installed vLLM does not know; "
                "install a newer vLLM, or export it --to merged and serve it by transformers."
            )
        if known and not applies and self.adapter is not None:
            raise ModelError(
                f"the student in {str(self.student.folder)!r} cannot be served with its adapter: vLLM applies no "
                f"adapter to a {name}; add --merge to serve merged weights."
            )
        return []

    def _notes_on_base(self) -> list[str]:
        base, quantization = self.student.source.base.path, self.student.run.params.quantization
        notes = [f"The base is not copied: vLLM reads it from {base}."]
        if quantization is not None:
            notes.append(f"The adapter was trained on {quantization} weights, and the base is served in {self.dtype}.")
        return notes

    def _notes_on_chat(self) -> list[str]:
        if self.student.tokenizer.chat_template is not None:
            return []
        return ["The student has no chat template: ask it at /v1/completions, not as a chat."]

    def _write_adapter(self, folder: Path) -> None:
        """Write adapter, tokenizer and generation configuration."""
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(self.student.file(name), folder / name)
        self.student.tokenizer.save_pretrained(folder)
        self.student.generation_config.save_pretrained(folder)
        make_readable(folder)

    def _script(self) -> str:
        name, base = self.student.name, self.student.source.base
        lines = [f"--dtype {self.dtype}"]
        model = f'"$here/{MODEL}"'
        if self.adapter is None:
            lines.append(f"--served-model-name {name}")
        else:
            model = shell_path(base.path)
            rank = self.student.adapter_settings["r"]
            assert isinstance(rank, int)
            room = next(r for r in LORA_RANKS if r >= rank)
            lines += [
                f"--tokenizer {HERE} --generation-config {HERE}",
                f'--enable-lora --max-lora-rank {room} --lora-modules {name}="$here"',
            ]
            if base.revision is not None:
                lines.append(f"--revision {shlex.quote(base.revision)}")
        if self.student.is_greedy:  # as transformers generates; vLLM would sample unless a request says otherwise
            lines.append("""--override-generation-config '{"temperature": 0}'""")
        if self.student.source.trust_remote_code:
            lines.append("--trust-remote-code")
        arguments = " \\\n".join(f"  {line}" for line in lines)
        return TEXT.format(name=name, ask=self._ask(), model=model, arguments=arguments)

    def _ask(self) -> str:
        body = {"model": self.student.name, "messages": [{"role": "user", "content": "Hello"}]}
        return (
            "curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' "
            f"-d '{json.dumps(body)}'"
        )


def _runs_through_transformers(name: str) -> bool:
    """Whether vLLM runs an architecture that it does not know through transformers' own model."""
    import transformers

    found = getattr(transformers, name, None)
    backs = getattr(found, "is_backend_compatible", None)
    return bool(backs is not None and backs())
