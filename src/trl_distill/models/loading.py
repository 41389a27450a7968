"""From the name a user gives to a configuration, a tokenizer and a model, with a sentence when there is none.

A folder that holds an adapter alone is its base with the adapter merged into it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError, TeacherError, UsageError, nearest
from .adapters import CONFIG, Adapter
from .embedded import embedded_path
from .own_chat_template import own_template

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"
TOKENIZER = "_trl_distill_tokenizer"  # a model that was trained here carries its tokenizer to the next stage


def resolve(name: str, *, role: str) -> str:
    """Return the folder that a name means, or the name itself for the Hub.

    Args:
        name: "embedded", a folder, or a Hub name.
        role: The setting it was given in, "model" or "teacher_model", for messages.

    Raises:
        ModelError, TeacherError: It looks like a folder (a path separator in front, `~`, or more than one `/`)
            and there is none, or the folder has no config.json.
    """
    if name == EMBEDDED:
        return embedded_path()
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
            raise _error(role)(f"{role} {name!r} is a folder without config.json; give a folder with a saved model.")
        return str(path.absolute())  # an adapter names its base by this, wherever it is loaded from
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or path.is_file():
        there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise _error(role)(
            f"{role} {name!r} is no folder.{nearest(path.name, there)} Give a folder, a Hub name or 'embedded'."
        )
    return name


def load_config(
    path: str, *, role: str, revision: str | None = None, trust_remote_code: bool = False
) -> PretrainedConfig:
    """Return a model's configuration, an adapter's base's.

    Raises:
        ModelError, TeacherError: It cannot be found or read.
    """
    from transformers import AutoConfig

    adapter = adapter_of(path, role=role)
    if adapter is not None:
        return load_config(adapter.base, role=role, revision=adapter.revision, trust_remote_code=trust_remote_code)
    return _load(AutoConfig, path, role, "configuration", revision=revision, trust_remote_code=trust_remote_code)


def load_generation_config(path: str, *, config: PretrainedConfig, revision: str | None = None) -> GenerationConfig:
    """Return how a model generates, from its files (an adapter's base's) or, where they are silent, its configuration.

    Args:
        path: What `resolve` returned.
        config: The model's configuration.
        revision: Revision of a Hub model.
    """
    from transformers import GenerationConfig

    adapter = adapter_of(path, role="teacher_model")
    if adapter is not None and not (Path(path) / "generation_config.json").is_file():
        return load_generation_config(adapter.base, config=config, revision=adapter.revision)
    try:
        return GenerationConfig.from_pretrained(path, revision=revision or "main")
    except OSError:
        return GenerationConfig.from_model_config(config)


def load_tokenizer(
    path: str, *, role: str, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return a model's tokenizer, with a padding token; an adapter's own, else its base's.

    Its chat template is the model's own, also if the student was saved with one that renders its trained prompt.

    Raises:
        ModelError, TeacherError: It cannot be found or read, or has no token that ends a sequence.
    """
    from transformers import AutoTokenizer

    adapter = adapter_of(path, role=role)
    if adapter is not None and not adapter.has_tokenizer:
        return load_tokenizer(adapter.base, role=role, revision=adapter.revision, trust_remote_code=trust_remote_code)
    tokenizer = _load(AutoTokenizer, path, role, "tokenizer", revision=revision, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise _error(role)(f"{role} {path!r}: its tokenizer has no end-of-sequence token; set eos_token in its files.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = own_template(tokenizer.chat_template)
    return tokenizer


def tokenizer_of(model: Any, *, role: str = "model", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a loaded model: the one that it carries from an earlier stage, else its folder's.

    Args:
        model: The model.
        role: The setting it was given in, for messages.
        trust_remote_code: Allow code that the tokenizer brings.

    Raises:
        ModelError, TeacherError: It does not say where it is, or see `load_tokenizer`.
    """
    carried, source = getattr(model, TOKENIZER, None), model.config._name_or_path
    if carried is not None:
        return carried
    if not source:
        raise _error(role)(
            f"{role} is a loaded model that does not say where its tokenizer is; save it to a folder with its "
            "tokenizer and give that."
        )
    return load_tokenizer(source, role=role, trust_remote_code=trust_remote_code)


def load_model(
    path: str,
    *,
    role: str,
    revision: str | None = None,
    dtype: str = "float32",
    quantization: str | None = None,
    device_map: str | None = None,
    device: Any = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    encoder_decoder: bool = False,
) -> PreTrainedModel:
    """Load a causal language model, or an encoder-decoder; an adapter is merged into its base.

    Args:
        path: What `resolve` returned.
        role: "model" or "teacher_model", for messages.
        revision: Revision of a Hub model.
        dtype: "auto", "float32", "bfloat16" or "float16".
        quantization: "int4" (nf4) or "int8" by bitsandbytes.
        device_map: As in transformers.
        device: Where the model is to go without a device map. It is loaded on the CPU, except that a quantized one is
            loaded where it stays: there, by default on the GPU if there is one.
        attn_implementation: As in transformers.
        trust_remote_code: Allow code that the model brings.
        encoder_decoder: Whether it is one; such a model only teaches.

    Raises:
        ModelError, TeacherError: It cannot be found or read, or is an adapter of a quantized base.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    adapter = adapter_of(path, role=role)
    if adapter is not None:
        check_can_merge(path, role=role, quantization=quantization, trust_remote_code=trust_remote_code)
        base = load_model(
            adapter.base,
            role=role,
            revision=adapter.revision,
            dtype=dtype,
            device_map=device_map,
            device=device,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            encoder_decoder=encoder_decoder,
        )
        merged = _told(lambda: adapter.merged_into(base), path, role, "adapter")
        if not encoder_decoder:
            merged.generation_config = load_generation_config(path, config=merged.config)  # it may end elsewhere
        return merged
    options: dict[str, Any] = {
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "device_map": device_map,
        "attn_implementation": attn_implementation,
        "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
    }
    if quantization is not None:
        options["quantization_config"] = quantization_config(quantization)
        if device_map is None and device is not None and torch.device(device).type == "cpu":
            options["device_map"] = {"": "cpu"}  # transformers takes a GPU that it finds
    kind = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    return _load(kind, path, role, "weights", **options)


def quantization_config(kind: str) -> Any:
    """Return the bitsandbytes configuration of "int4" (nf4, computed in bfloat16) or "int8"."""
    import torch
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )


def adapter_of(path: str, *, role: str) -> Adapter | None:
    """Return the adapter that a folder holds, its base found; None where it holds a whole model.

    Args:
        path: What `resolve` returned.
        role: "model" or "teacher_model", for messages.

    Raises:
        ModelError, TeacherError: Its configuration cannot be read, or its base is no longer where it says.
    """
    adapter: Adapter | None = _told(lambda: Adapter.of(path), path, role, CONFIG)
    if adapter is None:
        return None
    try:
        base = resolve(adapter.base, role=role) if adapter.base else path
    except UsageError:
        base = path
    if base == path:
        raise _error(role)(
            f"{role} {path!r} is an adapter of {adapter.base!r}, which is no folder with a model; set "
            f"base_model_name_or_path in its {CONFIG} to where that model is."
        ) from None
    return Adapter(adapter.folder, base, adapter.revision)


def check_can_merge(
    path: str,
    *,
    role: str,
    quantization: str | None = None,
    new_adapter: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Refuse an adapter that cannot become a plain model, or must not; a whole model passes.

    Args:
        path: What `resolve` returned.
        role: "model" or "teacher_model", for messages.
        quantization: What its base would be quantized to; nothing can be added to such weights.
        new_adapter: Whether another adapter will be saved that belongs to the merged model, which is in no folder.
        trust_remote_code: Allow code that the base brings.

    Raises:
        ModelError, TeacherError: Saying what to do.
    """
    if adapter_of(path, role=role) is None:
        return
    saved = load_config(path, role=role, trust_remote_code=trust_remote_code)
    flag = "--teacher-quantization" if role == "teacher_model" else "--quantization"
    if quantization is not None or getattr(saved, "quantization_config", None) is not None:
        do = f"drop {flag}" if quantization is not None else "set its base to the unquantized model"
        raise _error(role)(
            f"{role} {path!r} is an adapter, which cannot be merged into a quantized base; {do}, or merge the two and "
            "save a whole model first (--merge-adapter)."
        )
    if new_adapter:
        raise _error(role)(
            f"{role} {path!r} is an adapter, and a new one would belong to a model that is in no folder; add "
            "--merge-adapter to save a whole model, or drop --peft."
        )


def _load(kind: Any, path: str, role: str, what: str, **options: Any) -> Any:
    """Call `from_pretrained` and turn its many errors into one sentence."""
    given = {k: v for k, v in options.items() if v is not None}
    return _told(lambda: kind.from_pretrained(path, **given), path, role, what)


def _told(load: Callable[[], Any], path: str, role: str, what: str) -> Any:
    """Return what `load` returns, its errors as one sentence."""
    try:
        return load()
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        server = ""
        if role == "teacher_model" and not Path(path).exists():
            server = f" A model behind a server is openai:{path} at OpenAI, or http://host:port/v1#{path} elsewhere."
        raise _error(role)(
            f"{role} {path!r}: no {what} could be loaded ({reason.rstrip('.')}); give a folder with a saved model, a "
            f"Hub name that this machine can reach, or 'embedded'.{server}"
        ) from error


def _error(role: str) -> type[UsageError]:
    """Return the error class of the student or of the teacher."""
    return TeacherError if role == "teacher_model" else ModelError
