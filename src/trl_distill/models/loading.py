"""From a model's name to its configuration, tokenizer and weights, with one sentence if they cannot be loaded.

A folder with only an adapter is loaded as its base with the adapter merged, or with the adapter to be trained further.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.user_files import check_ordinary, user_path
from ..errors import UsageError, first_line, model_error, nearest
from .adapters import CONFIG, Adapter
from .architectures import vocabulary_rows
from .config_values import check_fits, check_sizes, check_token_ids
from .embedded import embedded_path
from .loading_errors import clear_errors, not_loaded
from .own_chat_template import own_template
from .quantization import quantization_config
from .template_trial import fault_of

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ..config.training_params import LLMTrainingParams

EMBEDDED = "embedded"
GENERATION = "generation_config.json"
CONFIG_FILE = "config.json"
ANSWERS = 5  # seconds that the Hub has to say whether a model is there
_TOKENIZER = "_trl_distill_tokenizer"  # the attribute of `keep_tokenizer`


def resolve(name: str, *, role: str) -> str:
    """Return the folder that a name means ("embedded", or a path), or the name itself for the Hub.

    Raises:
        ModelError, TeacherError: It looks like a folder (a path separator in front, `~`, or more than one `/`)
            and there is none, or the folder has no config.json, or a pipe or a device.
    """
    if name == EMBEDDED:
        return embedded_path()
    path = user_path(name, name=role, error=model_error(role))
    if path.is_dir():
        if not (path / CONFIG_FILE).is_file() and not (path / CONFIG).is_file():
            raise model_error(role)(
                f"{role} {name!r} is a folder without config.json; give a folder with a saved model."
            )
        for file in path.iterdir():
            check_ordinary(file, name=f"{role} {name!r}: {file.name!r}", error=model_error(role))
        return str(path.absolute())  # an adapter names its base by this, wherever it is loaded from
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or path.is_file():
        there = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        raise model_error(role)(
            f"{role} {name!r} is not a folder.{nearest(path.name, there)} Give a folder, a Hub name or 'embedded'."
        )
    return name


def check_found(name: str, *, role: str, revision: str | None = None) -> None:
    """Refuse a model that is nowhere: neither a folder, nor in the Hub's cache, nor on the Hub if that answers.

    Needs no torch. A gated model, and a Hub that does not answer, are left to the loading of the configuration.

    Args:
        name: A folder, "embedded" or a Hub name.
        role: The setting that named it, for messages: "model" or "teacher_model".
        revision: Revision of a Hub model.

    Raises:
        ModelError, TeacherError: See `resolve`; a Hub model that is not there.
    """
    path = resolve(name, role=role)
    if Path(path).is_dir():
        return
    import httpx
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        cached = (try_to_load_from_cache(path, file, revision=revision) for file in (CONFIG_FILE, CONFIG))
        if any(isinstance(found, str) for found in cached):
            return
        if constants.HF_HUB_OFFLINE:
            raise not_loaded(
                "configuration", "it is not in the cache, and the Hub is switched off", path=path, role=role
            )
        HfApi().model_info(path, revision=revision, timeout=ANSWERS)
    except GatedRepoError:
        return  # transformers says how to ask for access
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise not_loaded("configuration", first_line(error), path=path, role=role) from error
    except (OSError, httpx.HTTPError, OfflineModeIsEnabled):
        return


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are and how to load its weights, also in another process.

    Every property and method raises a ModelError, or a TeacherError for a teacher, if files are missing or cannot be
    read.

    Attributes:
        path: What `resolve` returned: a folder or a Hub name.
        role: The setting that named it, for messages: "model" or "teacher_model".
        revision: Revision of a Hub model.
        dtype: "auto" (as saved), "float32", "bfloat16" or "float16".
        quantization: "int4" or "int8" by bitsandbytes, else None.
        device_map: As in transformers.
        device: Where the model goes without a device map; None is the CPU.
        attn_implementation: As in transformers.
        trust_remote_code: Whether the model's own code may run.
        trains_adapter: Whether an adapter that the folder holds is trained further, and not merged.
    """

    path: str
    role: str = "model"
    revision: str | None = None
    dtype: str = "float32"
    quantization: str | None = None
    device_map: str | None = None
    device: str | torch.device | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    trains_adapter: bool = False

    @property
    def is_placed(self) -> bool:
        """Whether a device map or bitsandbytes decides where the model goes, not `device`."""
        return self.device_map is not None or self.quantization is not None

    @cached_property
    def adapter(self) -> Adapter | None:
        """The adapter that the folder holds, its base found; None for a whole model."""
        with self.clear_errors(CONFIG):
            adapter = Adapter.of(self.path)
        if adapter is None:
            return None
        try:
            base = resolve(adapter.base, role=self.role) if adapter.base else self.path
        except UsageError:
            base = self.path
        if base == self.path:
            raise self._error(
                f"is an adapter of {adapter.base!r}, which is not a folder with a model; set base_model_name_or_path "
                f"in its {CONFIG} to where that model is."
            )
        return replace(adapter, base=base)

    @cached_property
    def base(self) -> ModelSource:
        """The source of the adapter's base; the source itself for a whole model."""
        if self.adapter is None:
            return self
        quantization = self.quantization if self.trains_adapter else None
        return replace(self, path=self.adapter.base, revision=self.adapter.revision, quantization=quantization)

    @property
    def under_adapter(self) -> ModelSource:
        """The source of the weights below the adapter that is trained, an old or a new one."""
        return self.base if self.trains_adapter else self

    @cached_property
    def config(self) -> PretrainedConfig:
        """The model's configuration, an adapter's base's."""
        from transformers import AutoConfig, PreTrainedConfig

        if self.adapter is not None:
            return self.base.config
        with self.clear_errors("configuration"):
            written, _ = PreTrainedConfig.get_config_dict(self.path, revision=self.revision)
            check_sizes(written)
            files = [file for end in ("safetensors", "bin") for file in Path(self.path).glob(f"*.{end}")]
            check_fits(written, weights=sum(file.stat().st_size for file in files))
            check_token_ids(written)
        return self._from_files(AutoConfig, "configuration")

    def load_generation_config(self) -> GenerationConfig:
        """Return the generation configuration of the files (an adapter's own, else its base's), else a derived one."""
        from transformers import GenerationConfig

        if self.adapter is not None and not (Path(self.path) / GENERATION).is_file():
            return self.base.load_generation_config()
        there = (Path(self.path) / GENERATION).is_file()
        with self.clear_errors("generation configuration"):
            try:
                config = GenerationConfig.from_pretrained(self.path, revision=self.revision or "main")
            except OSError:
                if there:
                    raise
                config = GenerationConfig.from_model_config(self.config)
            check_token_ids(config.to_dict())
        return config

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer, with a padding token; an adapter's own, else its base's.

        Its chat template is the model's own, also if the student was saved with one that renders its trained prompt.

        Raises:
            ModelError, TeacherError: It has no token that ends a sequence, or pads with one that the model has not.
        """
        from transformers import AutoTokenizer

        if self.adapter is not None and not self.adapter.has_tokenizer:
            return self.base.load_tokenizer()
        tokenizer: PreTrainedTokenizerBase = self._from_files(AutoTokenizer, "tokenizer")
        with self.clear_errors("tokenizer"):
            tokenizer("A first text.")  # its files may have values of any type
        if tokenizer.eos_token_id is None:
            raise self._error("has a tokenizer with no end-of-sequence token; set eos_token in its files.")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        rows = vocabulary_rows(self.config)
        if self.adapter is None and tokenizer.pad_token_id >= rows:
            raise self._error(
                f"pads with {tokenizer.pad_token!r}, token {tokenizer.pad_token_id:,}, and the model has the tokens 0 "
                f"to {rows - 1:,}; set pad_token in its tokenizer_config.json to one that it has, such as "
                f"{tokenizer.eos_token!r}."
            )
        tokenizer.chat_template = own_template(tokenizer.chat_template)
        self._check_templates(tokenizer.chat_template)
        return tokenizer

    def _check_templates(self, templates: str | dict[str, str] | None) -> None:
        """Refuse a chat template that does not end; trainers of TRL render it too."""
        for source in templates.values() if isinstance(templates, dict) else [templates]:
            fault = None if source is None else fault_of(source)
            if fault is not None:
                raise self._error(f"has a chat template that {fault}; repair its chat_template.jinja.")

    def load_model(self) -> PreTrainedModel:
        """Load a causal language model, or an encoder-decoder that teaches; of an adapter also its base.

        Raises:
            ModelError, TeacherError: It is an adapter of a quantized base, or of another model; its weights hold NaN or
                an infinity.
        """
        from .broken_weights import check_finite
        from .out_of_memory import doing

        with doing("loading the teacher" if self.role == "teacher_model" else "loading the student"):
            model = self._weights()
            check_finite(model, self.role, self.path)
        return model

    def outline(self) -> PreTrainedModel:
        """Return the model, an adapter's base, on the meta device: modules and sizes without weights."""
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

        kind = AutoModelForSeq2SeqLM if self.config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"), self.clear_errors("model"):
            return kind.from_config(self.config, trust_remote_code=self.trust_remote_code)

    def _weights(self) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

        from .broken_weights import named

        if self.adapter is not None:
            self.check_can_merge()
            base = self.base._weights()
            if not self._is_encoder_decoder:
                base.generation_config = self.load_generation_config()  # it may end elsewhere
            with self.clear_errors("adapter"):
                return self.adapter.on(base) if self.trains_adapter else self.adapter.merged_into(base)
        device_map: str | dict[str, str] | None = self.device_map
        if self.quantization is not None and device_map is None and self.device is not None:
            # transformers uses a GPU that it finds
            device_map = {"": "cpu"} if torch.device(self.device).type == "cpu" else None
        model, found = self._from_files(
            AutoModelForSeq2SeqLM if self._is_encoder_decoder else AutoModelForCausalLM,
            "weights",
            output_loading_info=True,
            dtype=self.dtype if self.dtype == "auto" else getattr(torch, self.dtype),
            device_map=device_map,
            attn_implementation=self.attn_implementation,
            quantization_config=None if self.quantization is None else quantization_config(self.quantization),
        )
        if found["missing_keys"] and getattr(model.config, "quantization_config", None) is None:
            raise self._error(
                f"has no {named(sorted(found['missing_keys']))} in its files, which would be random numbers; save all "
                "of its weights, or correct its config.json."
            )
        return model

    def check_can_merge(self) -> None:
        """Refuse an adapter that is to be merged into a plain model and cannot be; a whole model passes."""
        if self.adapter is None or self.trains_adapter:
            return
        flag = "--teacher-quantization" if self.role == "teacher_model" else "--quantization"
        if self.quantization is not None or getattr(self.config, "quantization_config", None) is not None:
            do = f"drop {flag}" if self.quantization is not None else "set its base to the unquantized model"
            raise self._error(
                f"is an adapter, which cannot be merged into a quantized base; {do}, or merge the two and save a whole "
                "model first (--merge-adapter)."
            )

    def check_adapter(self, params: LLMTrainingParams) -> None:
        """Refuse settings of an adapter that are not those of the one to be trained further; a whole model passes.

        Args:
            params: The run's parameters.
        """
        if self.adapter is None or not self.trains_adapter:
            return
        with self.clear_errors(CONFIG):
            differs = self.adapter.difference(params)
        if differs is not None:
            name, there, given = differs
            raise self._error(
                f"is an adapter with {name} {there!r}, which is trained further, but {name} is {given!r}; give "
                f"--{name.replace('_', '-')} {there}, or add --merge-adapter to merge it and train a new one."
            )

    @property
    def _is_encoder_decoder(self) -> bool:
        """Whether it is an encoder-decoder that teaches; one that is named as a student is refused."""
        return self.role == "teacher_model" and self.config.is_encoder_decoder

    def _from_files(self, kind: Any, what: str, **options: object) -> Any:
        options |= {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        with self.clear_errors(what):
            return kind.from_pretrained(self.path, **{k: v for k, v in options.items() if v is not None})

    def clear_errors(self, what: str) -> AbstractContextManager[None]:
        """Turn loading errors into one sentence; `what` is what is loaded."""
        return clear_errors(what, path=self.path, role=self.role)

    def _error(self, problem: str) -> UsageError:
        return model_error(self.role)(f"{self.role} {self.path!r} {problem}")


def keep_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Attach its tokenizer to a trained model, for a later stage that receives only the model.

    The folder of a model with an adapter is its base's, whose tokenizer may have another chat template.
    """
    setattr(model, _TOKENIZER, tokenizer)


def kept_tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that `keep_tokenizer` attached to a model, or to the original of a copy."""
    return getattr(model, _TOKENIZER, None)


def tokenizer_of(
    model: PreTrainedModel, *, role: str = "model", trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a loaded model: the one that an earlier stage attached, else its folder's.

    Raises:
        ModelError, TeacherError: It has no path, or see `ModelSource.load_tokenizer`.
    """
    kept, source = kept_tokenizer(model), model.config._name_or_path
    if kept is not None:
        return kept
    if not source:
        raise model_error(role)(
            f"{role} is a loaded model that does not say where its tokenizer is; save it to a folder with its "
            "tokenizer and give that."
        )
    return ModelSource(source, role, trust_remote_code=trust_remote_code).load_tokenizer()
