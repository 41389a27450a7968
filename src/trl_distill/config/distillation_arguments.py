"""The settings of distillation itself, each written once: name, type, default and help text.

`DistillationSFTConfig` (flags under TrlParser) and `LLMTrainingParams` (flags of `aitraining llm`) both
inherit them. Standard library only, so that a command line can show its help without loading torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from .choices import (
    COMPLETIONS,
    DIVERGENCES,
    DTYPES,
    ENDPOINTS,
    ENGINES,
    LOGPROBS,
    LOSS_IMPLEMENTATIONS,
    OVERFLOWS,
    QUANTIZATIONS,
    REASONINGS,
    SCHEDULES,
    STORE_KINDS,
    VLLM,
    VLLM_IMPLEMENTATIONS,
    VLLM_MODES,
)
from .endpoints import parse_endpoint
from .fields import check_value, option


@dataclass
class DistillationArguments:
    """Settings of the teacher, the two prompts and the loss.

    Raises:
        ParamsError: From `check_arguments`, for a value outside what is accepted.
    """

    use_distillation: bool = option(
        False, "Learn from a teacher where the trainer is sft; the trainer distillation always does."
    )
    teacher_model: str | None = option(
        None,
        "Teacher, required without a --teacher-store, a --teacher-config or a column 'teacher' in the data: a folder, "
        "a Hub name, 'embedded', 'self' (with --peft), 'ema', openai:MODEL or http://host:port/v1#MODEL.",
        objects=True,
    )
    teacher_prompt_template: str = option(
        "{input}",
        "Prompt the teacher reads: text with {input} (and other columns), @file, or a JSON list of chat messages.",
        objects=True,
        escapes=True,
    )
    student_prompt_template: str = option(
        "{input}", "Prompt the student reads; written like the teacher's.", objects=True, escapes=True
    )
    teacher_system: str | None = option(
        None,
        "System message the teacher reads, in the place of the row's: text or @file. The student's is dropped then.",
        escapes=True,
    )
    student_system: str | None = option(
        None,
        "The student's system message: 'keep' (the row's; default), 'drop' (none; default with --teacher-system), or "
        "another's text or @file.",
        escapes=True,
    )
    distill_temperature: float = option(
        3.0, "Temperature T that softens both distributions in the divergence (2 to 4 is usual).", above=0.0
    )
    distill_alpha: float = option(
        0.7,
        "Weight of the divergence: 0 learns from the completions only, 1 from the teacher's distribution only.",
        low=0.0,
        high=1.0,
    )
    distill_max_teacher_length: int = option(512, "New tokens at most in a completion that the teacher writes.", low=1)
    distill_divergence: str = option("forward_kl", "Divergence of the student from the teacher.", choices=DIVERGENCES)
    distill_jsd_beta: float = option(
        0.5, "With the divergence jsd: weight of the teacher in the mixture.", above=0.0, high=0.999999
    )
    distill_loss_impl: str = option(
        "fused",
        "Loss implementation, of equal results: 'fused' in tiles of little memory, 'plain' with full logits.",
        choices=LOSS_IMPLEMENTATIONS,
    )
    distill_alpha_end: float | None = option(
        None, "Alpha at the end of training, which it moves to from --distill-alpha.", low=0.0, high=1.0
    )
    distill_temperature_end: float | None = option(
        None, "Temperature at the end of training, which it moves to from --distill-temperature.", above=0.0
    )
    distill_schedule: str = option("linear", "How alpha and temperature move to their ends.", choices=SCHEDULES)
    distill_on_policy_fraction: float = option(
        0.0,
        "Share of batches whose completions the student writes under its prompt, to be scored by the teacher.",
        low=0.0,
        high=1.0,
    )
    distill_on_policy_temperature: float = option(
        1.0, "Temperature at which the student draws them; 0 takes the likeliest token.", low=0.0
    )
    distill_on_policy_max_new_tokens: int | None = option(
        None, "New tokens at most in one of them (default: --distill-max-teacher-length).", low=1
    )
    distill_online: bool = option(
        False, "Have the teacher write the completions of every training batch anew, instead of before training."
    )
    completions: str = option(
        "auto",
        "Where completions come from: 'data', 'teacher', or 'auto' (the row's own, else the teacher's).",
        choices=COMPLETIONS,
    )
    completion_column: str | None = option(
        None,
        "Column with the completion (default: 'completion' or 'response' where there is one).",
        group="Data",
    )
    prompt_text_column: str | None = option(None, "Column with the input, where it is not --text-column.", group="Data")
    chat_template_kwargs: str | None = option(
        None,
        "Keywords of both chat templates, as JSON, such as '{\"enable_thinking\": false}'; a row's column of this name "
        "takes their place.",
        group="Data",
        objects=True,
    )
    chat_template_date: str | None = option(
        None,
        "Date (YYYY-MM-DD) for chat templates that write today's (default: the day on which the project or store was "
        "begun).",
        group="Data",
    )
    prompt_overflow: str = option(
        "error",
        "A prompt too long for its model: 'error' names the row, 'left' cuts its start.",
        choices=OVERFLOWS,
        group="Data",
    )
    max_bad_rows: int = option(
        0, "Rows with a missing or non-text value to set aside before it is an error.", low=0, group="Data"
    )
    keep_chat_template: bool = option(
        False,
        "Save the model's own chat template, not one that renders the student's prompt for a user's message.",
        group="Data",
    )
    teacher_config: str | None = option(
        None,
        "Several teachers instead of --teacher-model: a YAML file with a list of model, template, weight and rows.",
        group="Teacher",
        objects=True,
    )
    teacher_prompt_mixture: str | None = option(
        None,
        "Several templates instead of --teacher-prompt-template, one of them for each row: a YAML file with a list of "
        "template and weight.",
        group="Teacher",
        objects=True,
    )
    teacher_prompt_dropout: float = option(
        0.0,
        "Share of the training rows in which the student reads the teacher's own prompt, so that it goes on following "
        "it.",
        low=0.0,
        high=1.0,
        group="Teacher",
    )
    retain_data: str | None = option(
        None,
        "Rows, as --data-path takes them, on which the student learns to stay what it was before the run.",
        group="Teacher",
        objects=True,
    )
    retain_fraction: float = option(
        0.25, "Share of a training epoch's rows that are of --retain-data.", above=0.0, high=0.95, group="Teacher"
    )
    teacher_chat_template: str | None = option(
        None,
        "Chat template of the teacher, given as --chat-template (default: its own, else the student's).",
        group="Teacher",
    )
    teacher_revision: str | None = option(None, "Revision of a Hub teacher.", group="Teacher")
    teacher_dtype: str = option("auto", "Precision the teacher is loaded in.", choices=DTYPES, group="Teacher")
    teacher_quantization: str | None = option(
        None, "Load the teacher quantized by bitsandbytes.", choices=QUANTIZATIONS, group="Teacher"
    )
    teacher_device_map: str | None = option(
        None,
        "device_map for the teacher, for example 'auto' (default: the student's device).",
        group="Teacher",
        objects=True,
    )
    teacher_batch_size: int = option(16, "Prompts per batch while the teacher writes.", low=1, group="Teacher")
    teacher_engine: str = option(
        "auto",
        "What a local teacher writes with before training: 'vllm' (which also computes a top-k store's targets at T = "
        "1), 'transformers', or 'auto' (on a CUDA device vLLM if it is installed and there are many rows).",
        choices=ENGINES,
        group="Teacher",
    )
    teacher_do_sample: bool = option(
        False, "Draw the teacher's completions instead of taking the likeliest token.", group="Teacher"
    )
    teacher_sampling_temperature: float = option(
        1.0,
        "Temperature of --teacher-do-sample; --distill-temperature is another setting.",
        above=0.0,
        group="Teacher",
    )
    teacher_top_p: float = option(
        1.0,
        "Nucleus of --teacher-do-sample: the smallest set of tokens with this probability.",
        above=0.0,
        high=1.0,
        group="Teacher",
    )
    teacher_stop: list[str] | None = option(
        None,
        r"Text in front of which the teacher's completions end, such as '\nMessage:' for a base model, which goes on; "
        "repeat the flag for several.",
        escapes=True,
        group="Teacher",
    )
    teacher_ema_decay: float = option(
        0.95,
        "With the teacher 'ema': share of the average that each optimizer step keeps.",
        low=0.0,
        high=1.0,
        group="Teacher",
    )
    cross_tokenizer: bool = option(
        False,
        "With a local teacher of another tokenizer: compare both where they have read the same text.",
        group="Teacher",
    )
    teacher_store: str | None = option(
        None,
        "Folder of stored targets: trained from where it is complete, without loading the teacher; else written first.",
        group="Teacher",
    )
    teacher_store_kind: str | None = option(
        None,
        "What a store is written with: 'topk' (default; the likeliest tokens), 'sample' (drawn ones, few bytes) or "
        "'hidden' (hidden states and LM head: everything).",
        choices=STORE_KINDS,
        group="Teacher",
    )
    teacher_top_k: int = option(
        64,
        "Tokens of each distribution that a store is written with or a server is asked for, or draws.",
        low=1,
        group="Teacher",
    )
    teacher_temperatures: str | None = option(
        None,
        "Temperatures that a store is written for, separated by commas (default: --distill-temperature).",
        listed=True,
        group="Teacher",
    )
    teacher_endpoint: str = option(
        "chat", "What of a server is asked; 'completions' takes text prompts only.", choices=ENDPOINTS, group="Teacher"
    )
    teacher_concurrency: int = option(8, "Requests to a server under way at a time.", low=1, group="Teacher")
    teacher_timeout: float = option(300.0, "Seconds to wait for a server's answer.", above=0.0, group="Teacher")
    teacher_max_requests: int | None = option(
        None, "Requests a run may send to a server, repeated ones included.", low=1, group="Teacher"
    )
    teacher_max_tokens: int | None = option(
        None,
        "Tokens, of prompts and completions, after which a run asks a server nothing more.",
        low=1,
        group="Teacher",
    )
    teacher_max_cost: float | None = option(
        None,
        "Money, in the unit of the two prices, after which a run asks a server nothing more.",
        above=0.0,
        group="Teacher",
    )
    teacher_price_input: float | None = option(
        None, "Price of a million tokens of prompts, as your server bills them.", low=0.0, group="Teacher"
    )
    teacher_price_output: float | None = option(
        None, "Price of a million tokens of completions, as your server bills them.", low=0.0, group="Teacher"
    )
    teacher_logprobs: str = option(
        "auto",
        "Log-probabilities of a server to learn from where alpha is above 0: of given completions ('prompt'), of what "
        "it writes ('top'), 'none', or what it is found to give.",
        choices=LOGPROBS,
        group="Teacher",
    )
    teacher_reasoning: str = option(
        "drop",
        "What a server's model thought before it answered: 'drop' it, or 'keep' it as a part of the completion.",
        choices=REASONINGS,
        group="Teacher",
    )
    allow_text_only_teacher: bool = option(
        False,
        "Accept a teacher that gives text only, also with --strict or beside rows that all have completions.",
        group="Teacher",
    )
    strict: bool = option(
        False,
        "Refuse settings that the teacher cannot serve (alpha above 0 with one that gives text only, a server's "
        "log-probabilities at another temperature than 1) instead of using the nearest.",
        group="Teacher",
    )
    use_vllm: bool = option(
        False,
        "Have vLLM write what the student writes (--distill-on-policy-fraction), as in GRPO.",
        group=VLLM,
    )
    vllm_mode: str = option(
        "colocate",
        "'colocate' runs vLLM in the training's own processes, 'server' asks a `vllm serve` elsewhere.",
        choices=VLLM_MODES,
        group=VLLM,
    )
    vllm_gpu_memory_utilization: float = option(
        0.3, "Share of a GPU's memory that a colocated vLLM takes.", above=0.0, high=1.0, group=VLLM
    )
    vllm_tensor_parallel_size: int = option(1, "GPUs that share a colocated vLLM.", low=1, group=VLLM)
    vllm_max_model_length: int | None = option(
        None, "Tokens, prompt included, that a colocated vLLM has room for (default: --block-size).", low=1, group=VLLM
    )
    vllm_model_impl: str = option(
        "vllm", "Whose code of the student a colocated vLLM runs.", choices=VLLM_IMPLEMENTATIONS, group=VLLM
    )
    vllm_enable_sleep_mode: bool = option(False, "Free a colocated vLLM's memory while the student learns.", group=VLLM)
    vllm_server_base_url: str | None = option(None, "URL of the server (default: http://0.0.0.0:8000).", group=VLLM)
    vllm_server_timeout: float = option(240.0, "Seconds to wait until the server is up.", above=0.0, group=VLLM)
    vllm_group_port: int = option(51216, "Port over which the server is sent weights.", low=1, high=65535, group=VLLM)


def check_arguments(arguments: Any) -> None:
    """Check every distillation setting of a dataclass that inherits `DistillationArguments`.

    Raises:
        ParamsError: Naming the first setting outside what is accepted.
        TeacherError: A teacher's URL that cannot be used.
    """
    for spec in fields(DistillationArguments):
        setattr(arguments, spec.name, check_value(spec.name, getattr(arguments, spec.name), spec))
    if isinstance(arguments.teacher_model, str):
        parse_endpoint(arguments.teacher_model)  # a URL with a password goes no further
