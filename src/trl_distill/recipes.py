"""From a configuration to a teacher and a recipe: the part of the set-up that needs no student's weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .alignment import shared_vocabulary, stop_of_turn
from .config import DistillationSFTConfig
from .endpoints import is_openai_name
from .errors import ParamsError, TeacherError
from .preparation import Columns, Reading, Recipe
from .prompts import parse_template
from .teachers import (
    Completion,
    CompletionStore,
    GenerationSettings,
    RemoteSettings,
    Teacher,
    TextTeacher,
    complete,
    load_teacher,
)
from .teachers.local import length_limit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

STORE = "teacher_completions.jsonl"


def teacher_of(
    args: DistillationSFTConfig,
    given: Any = None,
    *,
    tokenizer: PreTrainedTokenizerBase,
    student: PretrainedConfig,
    device: Any = None,
) -> Teacher:
    """Return the teacher that a configuration names, or the one given in its place, its vocabulary checked.

    Args:
        args: The configuration.
        given: A loaded model, a teacher or a name; None takes the configuration's.
        tokenizer: The student's.
        student: The student's configuration.
        device: Where a local model goes.

    Raises:
        ParamsError: There is none.
        TeacherError: See `load_teacher`, `shared_vocabulary` and `alpha_of`.
    """
    spec = given if given is not None else args.teacher_model
    if spec is None:
        raise ParamsError(
            "teacher_model is missing; use_distillation needs a teacher: a folder, a Hub name or 'embedded'."
        )
    teacher = load_teacher(
        spec,
        tokenizer=tokenizer,
        revision=args.teacher_revision,
        dtype=args.teacher_dtype,
        quantization=args.teacher_quantization,
        device_map=args.teacher_device_map,
        trust_remote_code=args.trust_remote_code,
        device=device,
        remote=RemoteSettings(
            args.teacher_endpoint,
            args.teacher_concurrency,
            args.teacher_timeout,
            args.teacher_max_requests,
            args.teacher_max_tokens,
        ),
    )
    rows = student.get_text_config().vocab_size
    if isinstance(teacher, TextTeacher):
        alpha_of(args, teacher)  # before anything is asked
        teacher.share(rows)
        return teacher
    if teacher.tokenizer.chat_template is None:
        teacher.tokenizer.chat_template = tokenizer.chat_template  # a base model reads chats as its student does
    teacher.share(
        shared_vocabulary(
            tokenizer,
            teacher.tokenizer,
            student_rows=rows,
            teacher_rows=teacher.vocabulary_rows,
            teacher_name=teacher.name,
        )
    )
    return teacher


def alpha_of(args: DistillationSFTConfig, teacher: Teacher) -> float:
    """Return the weight of the divergence: none where the teacher gives text only and that is allowed.

    Raises:
        TeacherError: A divergence is asked for, and the teacher gives nothing for it.
    """
    if args.distill_alpha == 0 or not isinstance(teacher, TextTeacher):
        return args.distill_alpha
    if args.allow_text_only_teacher:
        return 0.0
    raise TeacherError(
        f"teacher_model {teacher.name!r} gives text only, which has nothing for the divergence that --distill-alpha "
        f"{args.distill_alpha:g} weighs; give --distill-alpha 0, or --allow-text-only-teacher to learn from its "
        "completions alone."
    )


def told(given: Any, teacher: Teacher) -> str:
    """Return a line on what a teacher's name was taken for, empty where it can mean but one thing.

    Args:
        given: What was given for teacher_model.
        teacher: What it became.
    """
    if isinstance(teacher, TextTeacher):
        return f"Teacher: {teacher.describe()}"
    if isinstance(given, str) and is_openai_name(given):
        return f"Teacher: the folder {given} (openai:{given} is the model of this name at OpenAI)"
    return ""


def recipe_of(
    args: DistillationSFTConfig,
    teacher: Teacher,
    *,
    tokenizer: PreTrainedTokenizerBase,
    student: PretrainedConfig,
) -> Recipe:
    """Return how rows become token ids under a configuration.

    Args:
        args: The configuration.
        teacher: Who writes and scores.
        tokenizer: The student's.
        student: The student's configuration, for its length limit.

    Raises:
        TemplateError: A template that does not parse.
    """
    limits = [limit for limit in (args.max_length, length_limit(student)) if limit is not None]
    settings = GenerationSettings(
        max_new_tokens=args.distill_max_teacher_length,
        do_sample=args.teacher_do_sample,
        temperature=args.teacher_sampling_temperature,
        top_p=args.teacher_top_p,
        seed=args.seed,
        batch_size=args.teacher_batch_size,
    )

    def write(prompts: list[Any]) -> list[Completion]:
        store = CompletionStore(Path(str(args.output_dir)) / STORE)
        if isinstance(teacher, TextTeacher):
            return teacher.write(prompts, settings, store=store, progress=not args.disable_tqdm)
        return complete(teacher, prompts, settings, store=store, progress=not args.disable_tqdm)

    return Recipe(
        student=Reading(
            tokenizer,
            parse_template(args.student_prompt_template, name="student_prompt_template"),
            min(limits) if limits else None,
            student.get_text_config().vocab_size,
        ),
        teacher=Reading(
            teacher.tokenizer,
            parse_template(args.teacher_prompt_template, name="teacher_prompt_template"),
            teacher.length_limit,
            teacher.vocabulary_rows,
        ),
        columns=Columns(args.dataset_text_field, args.prompt_text_column, args.completion_column, args.max_bad_rows),
        write=write,
        completions=args.completions,
        plain_text=args.distill_plain_text and not isinstance(teacher, TextTeacher),  # it can only be asked
        overflow=args.prompt_overflow,
        vocabulary=teacher.vocabulary,
        reads_text=isinstance(teacher, TextTeacher),
    )


def add_taught_ends(
    generation: GenerationConfig,
    completions: Iterable[Sequence[int]],
    *,
    teacher: Teacher,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Have a student stop at the tokens that end the completions it learns: a turn's end, the teacher's own stop.

    Args:
        generation: The student's generation configuration, whose own stop tokens stay in front.
        completions: Token ids; one that was cut ends in no stop token and adds none.
        teacher: Who scored them.
        tokenizer: The student's.
    """
    ends = {tokenizer.eos_token_id, stop_of_turn(tokenizer), *teacher.stop_ids}
    own = generation.eos_token_id
    stops = [*own] if isinstance(own, (list, tuple)) else [own]
    taught = sorted({ids[-1] for ids in completions if ids} & ends)
    stops = [stop for stop in dict.fromkeys([*stops, *taught]) if stop is not None]
    generation.eos_token_id = stops if len(stops) > 1 else stops[0] if stops else None
