"""The student of a finished run, as it is handed over."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ...data.atomic_file import make_readable
from ...data.folder_names import file_in
from ...errors import ModelError, ProjectError, printable
from ...models.loading import ModelSource, resolve
from ...prompts.chat_template import stops_of
from ..evaluation_inputs import KnownRun
from ..project_folder import MANIFEST, OURS
from ..result_files import has_checksum

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

OF_TRAINING = (*OURS, "training_args.bin")  # files of a project that are no part of its model


@dataclass(frozen=True)
class TrainedStudent:
    """A student in its project.

    Attributes:
        run: Its finished run.
        source: Its files, loaded in the precision in which it is handed over.
        name: The name under which it is served.
    """

    run: KnownRun
    source: ModelSource
    name: str

    @classmethod
    def of(cls, run: KnownRun, *, name: str | None, dtype: str | None) -> TrainedStudent:
        """Return the student of a run.

        Args:
            run: The run.
            name: Under which it is served (default: the name of its folder).
            dtype: Its precision (default: that in which it was trained).

        Raises:
            ModelError: Its project holds no model.
        """
        path = resolve(str(run.folder.absolute()), role="model")
        source = ModelSource(path, dtype=dtype or run.params.dtype, trust_remote_code=run.params.trust_remote_code)
        served = re.sub(r"[^A-Za-z0-9._-]+", "-", name or run.folder.resolve().name).strip("-.") or "student"
        return cls(run, source, served)

    @property
    def folder(self) -> Path:
        return self.run.folder

    @cached_property
    def dtype(self) -> str:
        """The precision in which it is handed over, such as "float32"."""
        found = self.source.dtype if self.source.dtype != "auto" else self.source.base.config.dtype
        return str(found or "float32").removeprefix("torch.")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer as it was saved, with the chat template that renders a user's message as in training."""
        from transformers import AutoTokenizer

        adapter = self.source.adapter
        path = self.source.base.path if adapter is not None and not adapter.has_tokenizer else self.source.path
        return AutoTokenizer.from_pretrained(path, trust_remote_code=self.source.trust_remote_code)  # nosec B615  # local

    @cached_property
    def generation_config(self) -> GenerationConfig:
        """How it generates, with a stop token for every end that was learned."""
        return self.source.load_generation_config()

    @property
    def stops(self) -> list[int]:
        """The ids of the tokens at which it stops."""
        return stops_of(self.generation_config)

    @property
    def is_greedy(self) -> bool:
        """Whether it takes the likeliest token unless it is asked to sample."""
        return not self.generation_config.do_sample

    @cached_property
    def adapter_settings(self) -> dict[str, object]:
        """What its adapter's configuration says; empty if it has none."""
        adapter = self.source.adapter
        if adapter is None:
            return {}
        return dict(json.loads((Path(adapter.folder) / "adapter_config.json").read_text(encoding="utf-8")))

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Refuse what was made of its files if another run has replaced any of them meanwhile.

        Raises:
            ProjectError: Naming the project.
        """
        before = self._manifest()
        yield
        if self._manifest() != before:
            raise ProjectError(
                f"{str(self.folder)!r} was overwritten by another run while it was exported; export it again when that "
                "run has ended."
            )

    def _manifest(self) -> bytes | None:
        """Return the manifest, which is deleted before any file is replaced; None if there is none."""
        try:
            return (self.folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            return None

    def check_merges(self) -> None:
        """Refuse an adapter that cannot become part of the weights.

        Raises:
            ModelError: A learned prompt, or an adapter of a base whose files are quantized.
        """
        if self.source.adapter is None:
            return
        from peft import PeftConfig

        with self.source.clear_errors("adapter"):
            is_prompt = PeftConfig.from_pretrained(self.source.path).is_prompt_learning
        if is_prompt:
            kind = self.adapter_settings.get("peft_type")
            raise ModelError(
                f"{str(self.folder)!r} holds a learned prompt ({kind}), which cannot be merged into weights; serve it "
                "with PEFT, or train with --peft, which makes a LoRA adapter."
            )
        self.source.check_can_merge()

    def check_finite(self) -> None:
        """Refuse weights that are not finite numbers, in a project of an earlier version, which has no checksums.

        Raises:
            ModelError: Naming the file and the weights.
        """
        from ...models.broken_weights import broken_in_file, named

        for path in sorted(self.folder.glob("*.safetensors")):
            found = [] if has_checksum(self.folder, path.name) else broken_in_file(path)
            if found:
                raise ModelError(
                    f"{str(path)!r} has weights that are not finite numbers ({named(found)}); restore it, or train "
                    "again with --overwrite."
                )

    def write_merged(self, folder: Path) -> None:
        """Write a whole model in its precision: an adapter merged into its base, or the model as it is.

        Raises:
            ModelError: An adapter that does not fit its base.
        """
        if self.source.adapter is None and self._is_saved_so:
            for name in self._files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.file(name), folder / name)
        else:
            from ...models.generation_config import make_saveable

            model = self.source.load_model()
            make_saveable(model, lambda line: print(printable(line)))
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        make_readable(folder)

    @property
    def _is_saved_so(self) -> bool:
        """Whether a whole model's files have the precision in which it is handed over."""
        return str(self.source.config.dtype).removeprefix("torch.") == self.dtype

    @property
    def _files(self) -> list[str]:
        """The files of a whole model and its tokenizer."""
        try:
            listed = list(json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))["files"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{MANIFEST} cannot be read ({type(error).__name__})"
            raise ProjectError(f"{str(self.folder)!r} holds no whole run: {reason}; train again.") from error
        return [name for name in listed if name not in OF_TRAINING and self.file(name).is_file()]

    def file(self, name: object) -> Path:
        """Return a file of its project by name.

        Raises:
            ProjectError: It is outside the project, or a link: what it leads to is not copied into an export.
        """
        try:
            return file_in(self.folder, name)
        except ValueError as error:
            raise ProjectError(
                f"{str(self.folder)!r} cannot be exported: {error}; put the file itself into the folder."
            ) from None
