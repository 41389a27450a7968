"""Weights for Apple's MLX, by mlx_lm."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ...config.user_files import shell_path
from ...errors import DistillError
from .form import Form
from .merged import notes_on_merging
from .verify import Answer, Runtime

if TYPE_CHECKING:
    from typing import Any

    from .rows import Request


class MLX(Form):
    """The student as a folder of mlx_lm."""

    runtime = "mlx_lm"

    def check(self) -> list[str]:
        """Refuse what cannot be merged, and return what the user should know."""
        self.student.check_merges()
        return notes_on_merging(self.student)

    def write(self, folder: Path) -> None:
        """Write the merged model into a folder that is deleted, and convert it."""
        from mlx_lm import convert

        with tempfile.TemporaryDirectory(prefix=".merged-", dir=folder.parent) as merged:
            self.student.write_merged(Path(merged))
            converted = Path(merged) / "mlx"
            try:
                convert(hf_path=merged, mlx_path=str(converted), dtype=self.dtype)
            except ValueError as error:
                raise DistillError(f"mlx_lm does not convert the student: {error}.") from error
            for path in converted.iterdir():
                path.rename(folder / path.name)

    def next_command(self, folder: Path) -> str:
        return f"mlx_lm.generate --model {shell_path(folder)} --prompt Hello"

    @contextmanager
    def running(self, folder: Path, length: int) -> Iterator[Runtime]:
        """Load the folder by mlx_lm."""
        from mlx_lm import load

        model, tokenizer, *_ = load(str(folder))
        yield InProcess(model, tokenizer)


class InProcess:
    """mlx_lm in this process.

    Args:
        model: What it loaded.
        tokenizer: Its wrapper of the tokenizer.
    """

    name, concurrency = "mlx_lm", 1

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def ask(self, request: Request, most: int) -> Answer:
        """See `Runtime`; it takes the likeliest token by default."""
        from mlx_lm import stream_generate

        ids = request.ids
        if request.message is not None:
            messages = [{"role": "user", "content": request.message}]
            ids = list(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True))
        new = [int(part.token) for part in stream_generate(self.model, self.tokenizer, ids, max_tokens=most)]
        return Answer(str(self.tokenizer.decode(new)), new)
