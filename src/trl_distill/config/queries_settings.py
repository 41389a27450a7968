"""The settings of `aitraining queries` that a run does not have. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .fields import CheckedSettings, option

# settings of a run that say who writes, under which prompt, and into which column
OF_RUNS = frozenset(
    (
        *("teacher_model", "teacher_system", "teacher_prompt_template", "text_column", "seed", "trust_remote_code"),
        "chat_template_kwargs",
        *("teacher_revision", "teacher_dtype", "teacher_quantization", "teacher_device_map"),
        *("teacher_batch_size", "teacher_engine", "teacher_stop"),
        *("teacher_key_env", "teacher_endpoint", "teacher_concurrency", "teacher_timeout"),
        *("teacher_max_requests", "teacher_max_tokens", "teacher_max_cost"),
        *("teacher_price_input", "teacher_price_output"),
    )
)
ANSWER_TOKENS = 1024
TEMPERATURE, TOP_P = 0.8, 0.95


@dataclass
class QueriesSettings(CheckedSettings):
    """How many inputs a teacher writes for its own prompt, and where they are written.

    Raises:
        ParamsError: An unknown name, or a value outside what is accepted.
    """

    output: str | None = option(
        None, "File to write, required; it ends in .jsonl or .ndjson.", group="Basic", path=True
    )
    count: int = option(500, "Inputs to write, held-out ones included.", low=1, high=1_000_000, group="Basic")
    holdout: str | None = option(
        "0.1",
        "Share to hold out and write to a file of their own (0 is none); or rows that no input may be a "
        "near-duplicate of: a file, a folder or a Hub dataset.",
        group="Basic",
        path=True,
    )
    holdout_by: str = option(
        "rows",
        "What a share is held out of: 'rows', or 'kinds' (all inputs of some kinds, which training then never sees).",
        choices=("rows", "kinds"),
        group="Basic",
    )
    chats: bool = option(
        False,
        "Write each input as a chat of one user message, for a student with a chat template.",
        group="Basic",
    )
    overwrite: bool = option(False, "Replace the files of an earlier run of this command.", group="Basic")
    kinds: int = option(
        12,
        "Kinds of inputs that the teacher lists for its prompt, edge cases included; up to as many list items of the "
        "prompt, such as rules, are used as kinds, too.",
        low=2,
        high=1000,
        group="Kinds",
    )
    kind: list[str] | None = option(
        None,
        "Kind of input, instead of those of the teacher and of the prompt; repeat the flag for several.",
        group="Kinds",
    )
    length: list[str] | None = option(
        None,
        "Length of an input in words, such as 'two paragraphs', instead of those that the teacher lists; repeat the "
        "flag for several.",
        group="Kinds",
    )
    max_new_tokens: int = option(
        ANSWER_TOKENS, "Maximum number of tokens of one answer, which lists ten inputs.", low=1, group="Sampling"
    )
    temperature: float = option(
        TEMPERATURE, "Temperature at which the teacher samples inputs.", above=0.0, high=1000.0, group="Sampling"
    )
    top_p: float = option(
        TOP_P,
        "Nucleus probability: the smallest set of tokens with this probability is sampled from.",
        above=0.0,
        high=1.0,
        group="Sampling",
    )


QUERIES_FIELDS = {spec.name: spec for spec in fields(QueriesSettings)}
