"""The embedded model: a small language model that ships with the package, so that a first run needs no hub.

A Llama-type model of a few million parameters, trained from nothing by `tools.embedded_model.train` on
instructions that `tools.embedded_model.tasks` makes up. It follows several kinds of instruction given in its
prompt (see docs/embedded.md) on inputs it has not seen, and knows nothing else: it is there to try distillation,
to run the demo and the tests, not to be deployed. `--model embedded` names it. Standard library only.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["embedded_path"]


def embedded_path() -> str:
    """Return the folder of the embedded model, for `AutoModelForCausalLM.from_pretrained`.

    Raises:
        FileNotFoundError: The package was installed without the weights.
    """
    folder = Path(__file__).resolve().parent
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"the embedded model is not in {folder}; reinstall trl-distill, or make it with "
            f"`python -m tools.embedded_model.train --output {folder}`."
        )
    return str(folder)
