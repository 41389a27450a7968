"""The distillation settings: name, type, default and help text, each defined once.

`DistillationSFTConfig` (flags under TrlParser) and `LLMTrainingParams` (flags of `aitraining llm`) both
inherit them. Standard library only, so that a command line can show its help without loading torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

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
        False, "Learn from a teacher with the trainer 'sft' too; the trainer 'distillation' always does."
    )
    teacher_model: str | None = option(
        None,
        "Teacher, required without a --teacher-store, a --teacher-config or a column 'teacher' in the data: a folder, "
        "a Hub name, 'embedded', 'self' (with --peft), 'ema', openai:MODEL or http://host:port/v1#MODEL.",
        objects=True,
        path=True,
    )
    teacher_prompt_template: str = option(
        "{input}",
        "Prompt the teacher reads: text with {input} (and other columns), @file, or a JSON list of chat messages.",
        objects=True,
        escapes=True,
    )
    student_prompt_template: str = option(
        "{input}", "Prompt the student reads, in the same forms as the teacher's.", objects=True, escapes=True
    )
    teacher_system: str | None = option(
        None,
        "System message the teacher reads instead of the row's: text or @file. The student's is then dropped by "
        "default.",
        escapes=True,
    )
    student_system: str | None = option(
        None,
        "The student's system message: 'keep' (the row's; default), 'drop' (none; default with "
        "--teacher-system), or text or @file.",
        escapes=True,
    )
    distill_temperature: float = option(
        3.0,
        "Temperature T that softens both distributions in the divergence (2 to 4 is usual).",
        above=0.0,
        high=1000.0,
    )
    distill_alpha: float = option(
        0.7,
        "Weight of the divergence: 0 learns from the completions only, 1 from the teacher's distribution only.",
        low=0.0,
        high=1.0,
    )
    distill_max_teacher_length: int = option(512, "Maximum number of new tokens in a completion by the teacher.", low=1)
    distill_divergence: str = option("forward_kl", "Divergence of the student from the teacher.", choices=DIVERGENCES)
    distill_jsd_beta: float = option(
        0.5, "Weight of the teacher in the mixture, with the divergence jsd.", above=0.0, high=0.999999
    )
    distill_loss_impl: str = option(
        "fused",
        "Loss implementation; both give the same results: 'fused' computes in tiles to save memory, 'plain' with "
        "full logits.",
        choices=LOSS_IMPLEMENTATIONS,
    )
    distill_alpha_end: float | None = option(
        None, "Alpha at the end of training, starting from --distill-alpha.", low=0.0, high=1.0
    )
    distill_temperature_end: float | None = option(
        None, "Temperature at the end of training, starting from --distill-temperature.", above=0.0, high=1000.0
    )
    distill_schedule: str = option("linear", "How alpha and temperature change over training.", choices=SCHEDULES)
    distill_on_policy_fraction: float = option(
        0.0,
        "Share of batches whose completions the student generates under its prompt and the teacher scores.",
        low=0.0,
        high=1.0,
    )
    distill_on_policy_temperature: float = option(
        1.0, "Sampling temperature of these completions; 0 takes the likeliest token.", low=0.0, high=1000.0
    )
    distill_on_policy_max_new_tokens: int | None = option(
        None, "Maximum number of new tokens in these completions (default: --distill-max-teacher-length).", low=1
    )
    distill_online: bool = option(
        False, "Have the teacher generate new completions for every training batch, instead of once before training."
    )
    completions: str = option(
        "auto",
        "Where completions come from: 'data', 'teacher', or 'auto' (the row's own, else the teacher's).",
        choices=COMPLETIONS,
    )
    completion_column: str | None = option(
        None,
        "Column with the completion (default: 'completion' or 'response', if the data has one).",
        group="Data",
    )
    prompt_text_column: str | None = option(None, "Column with the input, if it is not --text-column.", group="Data")
    chat_template_kwargs: str | None = option(
        None,
        "Keyword arguments of both chat templates, as JSON, such as '{\"enable_thinking\": false}'; a row's column "
        "of this name replaces them.",
        group="Data",
        objects=True,
    )
    chat_template_date: str | None = option(
        None,
        "Date (YYYY-MM-DD) for chat templates that insert today's (default: the day on which the project or "
        "store was started).",
        group="Data",
    )
    prompt_overflow: str = option(
        "error",
        "What to do with a prompt that is too long for its model: 'error' names the row, 'left' cuts its start.",
        choices=OVERFLOWS,
        group="Data",
    )
    max_bad_rows: int = option(
        0, "Maximum number of rows with a missing or non-text value to skip before it is an error.", low=0, group="Data"
    )
    keep_chat_template: bool = option(
        False,
        "Save the model's own chat template, instead of one that renders the student's prompt for a user's message.",
        group="Data",
    )
    teacher_config: str | None = option(
        None,
        "Several teachers instead of --teacher-model: a YAML file with a list of model, template, weight and rows.",
        group="Teacher",
        objects=True,
        path=True,
    )
    teacher_prompt_mixture: str | None = option(
        None,
        "Several templates instead of --teacher-prompt-template, one for each row: a YAML file with a list of "
        "template and weight.",
        group="Teacher",
        objects=True,
        path=True,
    )
    teacher_prompt_dropout: float = option(
        0.0,
        "Share of the training rows in which the student reads the teacher's prompt, so that it still follows it.",
        low=0.0,
        high=1.0,
        group="Teacher",
    )
    retain_data: str | None = option(
        None,
        "Rows, in the forms of --data-path, on which the student learns to keep the behaviour it had before the run.",
        group="Teacher",
        objects=True,
        path=True,
    )
    retain_fraction: float = option(
        0.25, "Share of a training epoch's rows that come from --retain-data.", above=0.0, high=0.95, group="Teacher"
    )
    teacher_chat_template: str | None = option(
        None,
        "Chat template of the teacher, in the forms of --chat-template (default: its own, else the student's).",
        group="Teacher",
        path=True,
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
    teacher_batch_size: int = option(16, "Prompts per batch when the teacher generates.", low=1, group="Teacher")
    teacher_engine: str = option(
        "auto",
        "Engine a local teacher generates with before training: 'vllm' (which also computes a top-k store's "
        "targets at T = 1), 'transformers', or 'auto' (vLLM on a CUDA device if it is installed and there are "
        "many rows).",
        choices=ENGINES,
        group="Teacher",
    )
    teacher_do_sample: bool = option(
        False, "Sample the teacher's completions instead of taking the likeliest token.", group="Teacher"
    )
    teacher_sampling_temperature: float = option(
        1.0,
        "Sampling temperature of --teacher-do-sample; not the --distill-temperature.",
        above=0.0,
        high=1000.0,
        group="Teacher",
    )
    teacher_top_p: float = option(
        1.0,
        "Nucleus probability of --teacher-do-sample: the smallest set of tokens with this probability.",
        above=0.0,
        high=1.0,
        group="Teacher",
    )
    teacher_stop: list[str] | None = option(
        None,
        "Text that ends the teacher's completions and is left out of them, such as '\\nMessage:' for a base "
        "model, which does not stop by itself; repeat the flag for several.",
        escapes=True,
        group="Teacher",
    )
    teacher_ema_decay: float = option(
        0.95,
        "Share of the average that each optimizer step keeps, with the teacher 'ema'.",
        low=0.0,
        high=1.0,
        group="Teacher",
    )
    cross_tokenizer: bool = option(
        False,
        "Compare a local teacher that has another tokenizer with the student at positions where both have read "
        "the same text.",
        group="Teacher",
    )
    teacher_store: str | None = option(
        None,
        "Folder of stored targets: if it is complete, they are used without loading the teacher, else they are "
        "written first.",
        group="Teacher",
        path=True,
    )
    teacher_store_kind: str | None = option(
        None,
        "What to store: 'topk' (default; the likeliest tokens), 'sample' (sampled tokens; the smallest) or "
        "'hidden' (hidden states and LM head; everything).",
        choices=STORE_KINDS,
        group="Teacher",
    )
    teacher_top_k: int = option(
        64,
        "Tokens of each distribution to store or to request from a server, or samples to draw.",
        low=1,
        group="Teacher",
    )
    teacher_temperatures: str | None = option(
        None,
        "Temperatures to write a store for, separated by commas (default: --distill-temperature).",
        listed=True,
        group="Teacher",
    )
    teacher_key_env: str | None = option(
        None,
        "Environment variable with the key of the teacher's server (default: OPENAI_API_KEY for OpenAI, none for any "
        "other).",
        group="Teacher",
    )
    teacher_endpoint: str = option(
        "chat", "A server's endpoint; 'completions' takes text prompts only.", choices=ENDPOINTS, group="Teacher"
    )
    teacher_concurrency: int = option(
        8, "Maximum number of concurrent requests to a server.", low=1, high=4096, group="Teacher"
    )
    teacher_timeout: float = option(
        300.0,
        "Seconds that one response of a server may take as a whole.",
        above=0.0,
        high=604_800.0,
        group="Teacher",
    )
    teacher_max_requests: int | None = option(
        None, "Maximum number of requests that a run sends to a server, retries included.", low=1, group="Teacher"
    )
    teacher_max_tokens: int | None = option(
        None,
        "Total number of prompt and completion tokens after which a run sends no more requests.",
        low=1,
        high=10**15,
        group="Teacher",
    )
    teacher_max_cost: float | None = option(
        None,
        "Cost, in the unit of the two prices, after which a run sends no more requests.",
        above=0.0,
        group="Teacher",
    )
    teacher_price_input: float | None = option(
        None, "Price of a million prompt tokens of your server.", low=0.0, group="Teacher"
    )
    teacher_price_output: float | None = option(
        None, "Price of a million completion tokens of your server.", low=0.0, group="Teacher"
    )
    teacher_logprobs: str = option(
        "auto",
        "A server's log-probabilities to learn from if alpha is above 0: of given completions ('prompt'), of its "
        "own ('top'), 'none', or whatever it provides ('auto').",
        choices=LOGPROBS,
        group="Teacher",
    )
    teacher_reasoning: str = option(
        "drop",
        "A server model's reasoning before its answer: 'drop' it, or 'keep' it as a part of the completion.",
        choices=REASONINGS,
        group="Teacher",
    )
    allow_text_only_teacher: bool = option(
        False,
        "Accept a teacher that gives text only, even with --strict or if all rows have completions.",
        group="Teacher",
    )
    strict: bool = option(
        False,
        "Reject settings that the teacher does not support (alpha above 0 with one that gives text only, a "
        "server's log-probabilities at a temperature other than 1) instead of using the nearest.",
        group="Teacher",
    )
    use_vllm: bool = option(
        False,
        "Generate the student's completions (--distill-on-policy-fraction) with vLLM, as in GRPO.",
        group=VLLM,
    )
    vllm_mode: str = option(
        "colocate",
        "'colocate' runs vLLM in the training processes, 'server' uses a running `vllm serve`.",
        choices=VLLM_MODES,
        group=VLLM,
    )
    vllm_gpu_memory_utilization: float = option(
        0.3, "Share of a GPU's memory for a colocated vLLM.", above=0.0, high=1.0, group=VLLM
    )
    vllm_tensor_parallel_size: int = option(1, "GPUs that share a colocated vLLM.", low=1, high=4096, group=VLLM)
    vllm_max_model_length: int | None = option(
        None, "Context length of a colocated vLLM, prompt included (default: --block-size).", low=1, group=VLLM
    )
    vllm_model_impl: str = option(
        "vllm", "Implementation of the model in a colocated vLLM.", choices=VLLM_IMPLEMENTATIONS, group=VLLM
    )
    vllm_enable_sleep_mode: bool = option(False, "Free a colocated vLLM's memory during training steps.", group=VLLM)
    vllm_server_base_url: str | None = option(None, "URL of the server (default: http://0.0.0.0:8000).", group=VLLM)
    vllm_server_timeout: float = option(
        240.0, "Seconds to wait for the server to start.", above=0.0, high=604_800.0, group=VLLM
    )
    vllm_group_port: int = option(51216, "Port for sending weights to the server.", low=1, high=65535, group=VLLM)

    @property
    def fresh_completions(self) -> str | None:
        """The setting, with its value, that makes a run generate completions during training; None without one."""
        if self.distill_on_policy_fraction > 0:
            return f"distill_on_policy_fraction {self.distill_on_policy_fraction:g}"
        return "distill_online" if self.distill_online else None


def check_arguments(arguments: DistillationArguments) -> bool:
    """Check every distillation setting, and return whether any is set; a default needs no check.

    Raises:
        ParamsError: Naming the first setting outside what is accepted.
        TeacherError: A teacher's URL that cannot be used.
    """
    given = [spec for spec in fields(DistillationArguments) if getattr(arguments, spec.name) is not spec.default]
    for spec in given:
        setattr(arguments, spec.name, check_value(spec.name, getattr(arguments, spec.name), spec))
    if isinstance(arguments.teacher_model, str):
        parse_endpoint(arguments.teacher_model)  # a URL with a password goes no further
    return bool(given)
