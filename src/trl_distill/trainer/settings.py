"""Group a flat configuration into the typed settings of a distilling run's parts, each created once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.validation import chat_template_options, temperatures_of
from ..data.recipe import DataSettings
from ..data.rows import Columns
from ..losses.schedule import LossSchedule
from ..losses.settings import LossSettings
from ..models.generation import GenerationSettings
from ..teachers.remote.request_pool import RemoteSettings
from ..teachers.settings import StoreSettings, TeacherSettings
from .vllm import VLLMSettings

if TYPE_CHECKING:
    from ..config.distillation_arguments import DistillationArguments
    from ..config.sft_config import DistillationSFTConfig

# fields of `RemoteSettings` that are settings of a teacher
OF_SERVERS = (
    *("endpoint", "concurrency", "timeout", "max_requests", "max_tokens", "max_cost", "price_input", "price_output"),
    *("top_k", "reasoning", "key_env"),
)


@dataclass(frozen=True)
class CompletionSettings:
    """How completions are generated during training.

    Attributes:
        fraction: Share of the batches with the student's completions.
        online: Whether the teacher generates the others.
        student: How the student generates.
        vllm: vLLM's settings; None if transformers generates.
    """

    fraction: float
    online: bool
    student: GenerationSettings
    vllm: VLLMSettings | None


@dataclass(frozen=True)
class DistillationSettings:
    """A run's settings of distillation.

    Attributes:
        teacher: The teacher settings, including the loss.
        data: How it reads its rows.
        completions: How completions are generated during training.
        max_length: Tokens of a student's sequence at most; None is no limit.
        chat_template_date: The date that chat templates are given, as it was set.
    """

    teacher: TeacherSettings
    data: DataSettings
    completions: CompletionSettings
    max_length: int | None
    chat_template_date: str | None


def settings_of(args: DistillationSFTConfig, *, plain_text: bool = True) -> DistillationSettings:
    """Return a configuration's settings of distillation.

    Args:
        args: The configuration.
        plain_text: Whether a row of text alone may be learned as SFT would, see `DataSettings`.
    """
    data = DataSettings(
        columns=Columns.of(args),
        completions=args.completions,
        plain_text=plain_text and args.fresh_completions is None,  # which are written after prompts
        overflow=args.prompt_overflow,
        prompt_dropout=args.teacher_prompt_dropout,
        seed=args.seed,
        num_proc=args.dataset_num_proc,
        serves=not args.keep_chat_template,
        options=chat_template_options(args),
    )
    completions = CompletionSettings(
        args.distill_on_policy_fraction, args.distill_online, _students_generation(args), _vllm(args)
    )
    return DistillationSettings(_teacher(args), data, completions, args.max_length, args.chat_template_date)


def remote_settings(args: DistillationArguments) -> RemoteSettings:
    """Return how requests to a teacher's server are made."""
    return RemoteSettings(**{name: getattr(args, f"teacher_{name}") for name in OF_SERVERS})


def loss_of(args: DistillationSFTConfig) -> LossSchedule:
    """Return the loss that a configuration requests."""
    start = LossSettings(
        args.distill_alpha,
        args.distill_temperature,
        args.distill_divergence,
        args.distill_jsd_beta,
        args.distill_loss_impl,
    )
    ends = {"alpha": args.distill_alpha_end, "temperature": args.distill_temperature_end}
    moving = {name: end for name, end in ends.items() if end is not None}
    return LossSchedule(start, moving, args.distill_schedule)


def _teacher(args: DistillationSFTConfig) -> TeacherSettings:
    store = None
    if args.teacher_store is not None:
        store = StoreSettings(args.teacher_store, args.teacher_store_kind, args.teacher_top_k, temperatures_of(args))
    generation = GenerationSettings(
        max_new_tokens=args.distill_max_teacher_length,
        do_sample=args.teacher_do_sample,
        temperature=args.teacher_sampling_temperature,
        top_p=args.teacher_top_p,
        seed=args.seed,
        batch_size=args.teacher_batch_size,
        stop=tuple(args.teacher_stop or ()),
        engine=args.teacher_engine,
    )
    return TeacherSettings(
        loss=loss_of(args),
        generation=generation,
        remote=remote_settings(args),
        folder=Path(str(args.output_dir)),
        progress=not args.disable_tqdm,
        store=store,
        fresh_completions=args.fresh_completions,
        logprobs=args.teacher_logprobs,
        strict=args.strict,
        allow_text_only=args.allow_text_only_teacher,
        cross_tokenizer=args.cross_tokenizer,
        chat_template=args.teacher_chat_template,
        revision=args.teacher_revision,
        dtype=args.teacher_dtype,
        quantization=args.teacher_quantization,
        device_map=args.teacher_device_map,
        trust_remote_code=args.trust_remote_code,
        ema_decay=args.teacher_ema_decay,
    )


def _students_generation(args: DistillationSFTConfig) -> GenerationSettings:
    """Return how the student writes; a temperature of 0 takes the likeliest token."""
    temperature = args.distill_on_policy_temperature
    return GenerationSettings(
        max_new_tokens=args.distill_on_policy_max_new_tokens or args.distill_max_teacher_length,
        do_sample=temperature > 0,
        temperature=temperature or 1.0,
    )


def _vllm(args: DistillationSFTConfig) -> VLLMSettings | None:
    if not args.use_vllm:
        return None
    return VLLMSettings(
        mode=args.vllm_mode,
        server_base_url=args.vllm_server_base_url,
        server_timeout=args.vllm_server_timeout,
        group_port=args.vllm_group_port,
        tensor_parallel_size=args.vllm_tensor_parallel_size,
        gpu_memory_utilization=args.vllm_gpu_memory_utilization,
        max_model_length=args.vllm_max_model_length,
        max_num_seqs=args.per_device_train_batch_size * args.vllm_tensor_parallel_size,
        enable_sleep_mode=args.vllm_enable_sleep_mode,
        model_impl=args.vllm_model_impl,
        trust_remote_code=args.trust_remote_code,
        temperature=args.distill_on_policy_temperature,
    )
