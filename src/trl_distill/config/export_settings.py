"""The settings of `aitraining export`. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .choices import DTYPES
from .fields import CheckedSettings, option

FORMS = ("merged", "vllm", "gguf", "ollama", "mlx")
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")


@dataclass
class ExportSettings(CheckedSettings):
    """In which form a trained student is handed over.

    Raises:
        ParamsError: An unknown name, or a value outside what is accepted.
    """

    to: str | None = option(None, "Form, required.", choices=FORMS, group="Basic")
    output: str | None = option(
        None, "Folder to write (default: exports/FORM in the project).", group="Basic", path=True
    )
    overwrite: bool = option(False, "Replace an earlier export in that folder.", group="Basic")
    name: str | None = option(
        None, "Name under which the student is served (default: the project's folder).", group="Form"
    )
    dtype: str | None = option(
        None,
        "Precision of merged weights, and of the server (default: the run's --dtype).",
        choices=DTYPES,
        group="Form",
    )
    merge: bool = option(
        False, "Have vLLM serve merged weights, not the base with the adapter.  [vllm only]", group="Form"
    )
    converter: str | None = option(
        None,
        "llama.cpp's folder or its convert_hf_to_gguf.py (default: $LLAMA_CPP, else what is on the PATH).  "
        "[gguf, ollama]",
        group="Form",
        path=True,
    )
    gguf_type: str | None = option(
        None,
        "Type of the weights in a GGUF file (default: --dtype).  [gguf, ollama]",
        choices=GGUF_TYPES,
        group="Form",
    )
    verify: int = option(
        0,
        "Rows to ask the exported form, to count greedy completions that equal the student's; needs its runtime.",
        low=0,
        group="Verification",
    )
    data_path: str | None = option(
        None, "Rows to verify on (default: those that the run held out).", group="Verification", objects=True, path=True
    )


EXPORT_FIELDS = {spec.name: spec for spec in fields(ExportSettings)}
