"""Settings of an evaluation that a training run does not have. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .fields import CheckedSettings, option

ROWS = "test"  # the rows of an evaluation in messages


@dataclass
class EvaluationSettings(CheckedSettings):
    """How a student is evaluated; its run's settings define the teacher and the prompts.

    Raises:
        ParamsError: An unknown name, or a value outside what is accepted.
    """

    student: str | None = option(
        None, "Trained student: a folder or a Hub name (default: the project).", group="Basic", objects=True, path=True
    )
    split: str | None = option(
        None,
        "Split of the data to evaluate on (default: its test split, else its validation split, else all of it).",
        group="Data",
    )
    max_rows: int | None = option(
        None, "Maximum number of rows to evaluate on, from the first (default: all).", low=1, group="Data"
    )
    reference_column: str | None = option(
        None, "Column with the reference (default: the data's completions, if it has some).", group="Data"
    )
    metric: list[str] | None = option(
        None,
        "Metric: exact_match, contains, json, json_valid, regex, regex:PATTERN, chrf, or a Python function as "
        "module:name; repeat the flag for several, of which the first decides (default: exact_match if every reference "
        "has at most five words, else chrf).",
        group="Figures",
    )
    judge: str | None = option(
        None,
        "Model that judges pairs of completions, in both orders: openai:MODEL or http://host:port/v1#MODEL.",
        group="Figures",
    )
    judge_key_env: str | None = option(
        None,
        "Environment variable with the key of the judge's server (default: OPENAI_API_KEY for OpenAI, none for any "
        "other).",
        group="Figures",
    )
    with_teacher_prompt: bool = option(
        False, "Also evaluate the trained student under the teacher's prompt.", group="Figures"
    )
    timed_queries: int = option(
        8, "Queries to time on each side, one at a time, after a warm-up; 0 skips timing.", low=0, group="Figures"
    )
    max_new_tokens: int | None = option(
        None,
        "Maximum number of tokens of a completion (default: --distill-max-teacher-length).",
        low=1,
        group="Writing",
    )
    use_vllm: bool = option(False, "Generate with vLLM on local models.", group="Writing")
    teacher_price_cached_input: float | None = option(
        None, "Price of a million prompt tokens that your server bills as cached.", low=0.0, group="Figures"
    )
    student_price_input: float | None = option(
        None, "Price of a million prompt tokens of the student (default: the teacher's).", low=0.0, group="Figures"
    )
    student_price_output: float | None = option(
        None, "Price of a million completion tokens of the student (default: the teacher's).", low=0.0, group="Figures"
    )
    run_cost: float | None = option(None, "What training cost, in the unit of the prices.", low=0.0, group="Figures")
    output: str | None = option(
        None,
        "Folder of the report (default: the project; without one, the folder evaluation).",
        group="Basic",
        path=True,
    )


EVALUATION_FIELDS = {spec.name: spec for spec in fields(EvaluationSettings)}
