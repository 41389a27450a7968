"""`queries_from_prompt`: a teacher's inputs for its own prompt, as a list of texts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..config.queries_settings import ANSWER_TOKENS, QUERIES_FIELDS, TEMPERATURE, TOP_P, QueriesSettings
from ..config.setting_names import in_python, settings_named_as
from ..config.training_params import FIELDS, LLMTrainingParams
from ..prompts.template import IDENTITY, messages_in, read_file
from .library_output import without_library_bars
from .query_checks import checked_prompt, held_out_inputs, share_held_out

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..data.input_collection import WrittenInput
    from ..teachers.base import Teacher
    from ..teachers.completions.store import CompletionStore
    from ..teachers.remote.request_pool import RemoteSettings

# what `queries_from_prompt` calls a setting of the command
NAMES = {
    **{f"teacher_{name}": name for name in ("revision", "dtype", "quantization", "device_map", "engine")},
    "teacher_model": "teacher",
    "teacher_system": "prompt",
    "holdout": "held_out",
    "kind": "kinds",
    "length": "lengths",
}


class Queries(list[str]):
    """Inputs to train on, in random order.

    Attributes:
        held_out: Inputs that are held out.
        kinds: The kind that each input was written for, the held-out ones included.
        report: How many there are of each kind, what was refused and why, and what a server was asked.
    """

    def __init__(
        self, inputs: Sequence[WrittenInput], held_out: Sequence[WrittenInput], report: dict[str, object]
    ) -> None:
        super().__init__(one.text for one in inputs)
        self.held_out = [one.text for one in held_out]
        self.kinds = {one.text: one.kind for one in (*inputs, *held_out)}
        self.report = report


@without_library_bars()
@settings_named_as(in_python({**FIELDS, **QUERIES_FIELDS}, NAMES))
def queries_from_prompt(
    teacher: str | PreTrainedModel | Teacher,
    prompt: Any,
    count: int = 500,
    *,
    holdout: float = 0.1,
    holdout_by: str = "rows",
    held_out: Any = None,
    most_kinds: int = 12,
    kinds: str | Sequence[str] = (),
    lengths: str | Sequence[str] = (),
    max_new_tokens: int = ANSWER_TOKENS,
    temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
    seed: int = 42,
    batch_size: int = 16,
    engine: str = "auto",
    store: str | os.PathLike[str] | CompletionStore | None = None,
    progress: bool = True,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    quantization: str | None = None,
    device_map: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
    remote: RemoteSettings | None = None,
) -> Queries:
    """Have a teacher write inputs for its own prompt: it lists kinds of inputs, then writes some of each.

    Near-duplicates, copies of the prompt's own examples and what is much like a held-out row are removed. The teacher
    samples, and its answers depend on the seed.

    Example:
        >>> queries = queries_from_prompt("openai:gpt-4o-mini", "You route a shop's mail. ...", 200)  # doctest: +SKIP
        >>> train(LLMTrainingParams(data_path=[{"text": query} for query in queries], ...))  # doctest: +SKIP

    Args:
        teacher: What `generate_with_teacher` takes as `model`.
        prompt: Its system message, or a template with `{input}`: text, `@file`, or chat messages.
        count: Inputs to write, held-out ones included.
        holdout: Share to hold out, from 0 to 0.9.
        holdout_by: "rows", or "kinds", which holds out all inputs of some kinds.
        held_out: Rows that no input may be a near-duplicate of: texts, or what `data_path` accepts.
        most_kinds: Kinds of inputs that the teacher lists, edge cases included; up to as many list items of the
            prompt, such as rules, are used as kinds, too.
        kinds: One kind of inputs, or several, instead of those of the teacher and of the prompt.
        lengths: One length of inputs, or several, instead of those that the teacher lists.
        max_new_tokens: Maximum number of tokens of an answer, which lists ten inputs.
        temperature: Sampling temperature.
        top_p: Nucleus probability of sampling.
        seed: Seed of sampling, and of what is held out.
        batch_size: Prompts per batch.
        engine: See `generate_with_teacher`.
        store: JSON-lines file for answers as they arrive, so that the same call resumes; None keeps them in memory.
        progress: Whether to show a progress bar.
        tokenizer: The tokenizer of a loaded model.
        revision: Revision of a Hub model.
        dtype: "auto" (as saved), "float32", "bfloat16" or "float16".
        quantization: "int4" or "int8" by bitsandbytes, else None.
        device_map: As in transformers; None puts the model on `device`.
        trust_remote_code: Allow a model that brings its own code.
        device: Where the model goes without a device map (default: this machine's accelerator).
        remote: Settings of requests to a server.

    Returns:
        A list of the inputs to train on; its `held_out` are the others, its `report` says what was refused.

    Raises:
        ParamsError: A value that is not accepted, or a prompt without text.
        TemplateError: A template with another field than `{input}`.
        TeacherError: See `load_teacher`.
        DistillError: The teacher writes too few distinct inputs, or its server fails.
    """
    own = QueriesSettings(
        count=count, holdout=str(holdout), holdout_by=holdout_by, kinds=most_kinds, kind=_listed(kinds),
        length=_listed(lengths), max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
    )  # fmt: skip
    share = share_held_out(own) or 0.0
    params = LLMTrainingParams(
        seed=seed, teacher_batch_size=batch_size, teacher_engine=engine, **_prompt_settings(prompt)
    )  # fmt: skip
    text = checked_prompt(params)
    apart = held_out_inputs(held_out, params)
    from ..teachers.completions.store import CompletionStore
    from ..teachers.remote.request_pool import RemoteSettings
    from .query_setup import generation_of, split
    from .query_writer import QueryWriter, Wanted, report_of
    from .writing_teacher import writing_teacher

    writes = writing_teacher(
        teacher, tokenizer, revision=revision, dtype=dtype, quantization=quantization, device_map=device_map,
        trust_remote_code=trust_remote_code, device=device,
        remote=replace(remote or RemoteSettings(), reasoning="keep"),
    )  # fmt: skip
    generation = generation_of(own, params, writes)
    name = teacher if isinstance(teacher, str) else writes.name
    kept = store if isinstance(store, CompletionStore) else CompletionStore(store)
    writer = QueryWriter(writes, Wanted.of(own, text, apart), generation, kept, name=name, progress=progress)
    written = writer.write()
    train, others = split(written, share, own.holdout_by, seed=params.seed)
    return Queries(train, others, report_of(written, writes))


def _prompt_settings(prompt: Any) -> dict[str, Any]:
    """Return a prompt as the setting of a run that it is: a template if it has {input}, else a system message."""
    text = prompt
    if isinstance(prompt, os.PathLike):
        prompt = text = f"@{os.fspath(prompt)}"
    if isinstance(text, str) and text.startswith("@"):
        text = read_file(text[1:], "prompt")
    is_template = not isinstance(text, str) or IDENTITY in text or messages_in(text) is not None
    return {"teacher_prompt_template" if is_template else "teacher_system": prompt}


def _listed(texts: str | Sequence[str]) -> list[str] | None:
    return [texts] if isinstance(texts, str) else list(texts) or None
