"""Values of a model's configurations that transformers takes as they are.

It builds a module for each layer that config.json names, without weights too.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import quoted

PER_BYTE = 16  # weights for each byte of their files; with four bits there are two
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")

# the ends of names of sizes, with what no model comes near; lengths of a context and ids of tokens have no limit
LIMITS = {
    ("layers", "n_layer"): 10_000,
    ("heads", "n_head"): 100_000,
    ("experts",): 100_000,
    ("vocab_size", "hidden_size", "intermediate_size", "ffn_dim", "n_embd", "n_inner", "d_model", "d_ff"): 2**27,
}


def check_sizes(config: Mapping[str, object]) -> None:
    """Refuse sizes that would take minutes, or all memory, before any weights are read.

    Args:
        config: The content of a config.json, in which parts may have configurations of their own.

    Raises:
        ValueError: Naming the size.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_sizes(value)
        limit = next((limit for ends, limit in LIMITS.items() if name.endswith(ends)), None)
        if limit is not None and isinstance(value, int) and value > limit:
            raise ValueError(f"its config.json says that {name} is more than {limit:,}")


def check_fits(config: Mapping[str, object], *, weights: int) -> None:
    """Refuse a vocabulary or layers that the files of weights cannot hold, for which memory would be allocated.

    Args:
        config: The content of a config.json.
        weights: Bytes of the files of weights; 0 if that is not known.

    Raises:
        ValueError: Naming both.
    """

    def size(*names: str) -> int:
        return next((given for name in names if isinstance(given := config.get(name), int)), 0)

    hidden = size("hidden_size", "n_embd", "d_model")
    named = hidden * (size("vocab_size") + hidden * size("num_hidden_layers", "n_layer"))
    if weights and named > PER_BYTE * weights:
        raise ValueError(
            f"its config.json says that there are {named:,} weights or more, and their files have {weights:,} bytes"
        )


def check_token_ids(config: Mapping[str, object]) -> None:
    """Refuse ids of tokens that are no whole numbers.

    Args:
        config: The content of a config.json or a generation_config.json.

    Raises:
        ValueError: Naming the id.
    """
    for name in TOKEN_IDS:
        given = config.get(name)
        ids = given if isinstance(given, list) else [given]
        if given is not None and not all(
            isinstance(i, int) and not isinstance(i, bool) and abs(i) < 2**31 for i in ids
        ):
            raise ValueError(f"{name} is {quoted(given)}, not the number of a token")
