"""From a configuration to a teacher and a recipe: the part of the set-up that needs no student's weights."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.endpoints import is_openai_name
from ..config.sft_config import DistillationSFTConfig
from ..config.validation import chat_template_options, freshness
from ..data.recipe import PromptSide, Recipe
from ..data.rows import Columns
from ..errors import ParamsError, TeacherError
from ..models.architectures import vocabulary_rows
from ..models.generation import Completion, GenerationSettings, length_limit
from ..models.loading import ModelSource
from ..prompts.chat_template_choice import set_chat_template
from ..prompts.fitting import Limit
from ..prompts.shared_vocabulary import shared_vocabulary
from ..prompts.system_message import for_reader, templates_of
from ..teachers.base import Teacher, TextTeacher
from ..teachers.completions.engines.selection import check_engine
from ..teachers.completions.generate import complete, settings_identity
from ..teachers.completions.store import CompletionStore
from ..teachers.loading import load_teacher
from ..teachers.local.cross_tokenizer import CrossTeacher, check_brings_tokenizer, with_cross_tokenizer
from ..teachers.local.ema import EMA, EmaTeacher
from ..teachers.local.self_teacher import SELF, SelfTeacher
from ..teachers.local.teacher import LocalTeacher
from ..teachers.remote.request_pool import RemoteSettings
from ..teachers.remote.teacher import RemoteTeacher
from ..teachers.same_weights import Student, teaches_nothing
from ..teachers.server_requirements import find_targets, prompt_formatter, target_fetcher, weighing
from ..teachers.target_store.chat_template_date import TemplateDate
from ..teachers.target_store.folder import COMPLETIONS, TargetFolder
from ..teachers.target_store.reader import StoredTeacher, tokenizer_hash
from ..teachers.text.local_text import LocalTextTeacher
from ..teachers.text.recorded import WrittenTeacher, writers_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datasets import Dataset
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

STORE = "teacher_completions.jsonl"
MISSING = (
    "teacher_model is missing; distillation needs a teacher: a folder, a Hub name, 'embedded', a teacher_store "
    "that is complete, or data whose column 'teacher' says of every row who wrote its completion."
)


def teacher_of(
    args: DistillationSFTConfig,
    given: Any = None,
    *,
    tokenizer: PreTrainedTokenizerBase,
    student: PretrainedConfig,
    device: Any = None,
    own: Callable[[], Any] | None = None,
    own_source: ModelSource | None = None,
    generation_config: GenerationConfig | None = None,
    writing: bool = False,
    written_by: Sequence[str] = (),
) -> Teacher:
    """Return the teacher that a configuration names, or the one given in its place, its vocabulary checked.

    With a complete `teacher_store` it is the store, held against the teacher where one is named.

    Args:
        args: The configuration.
        given: A loaded model, a teacher or a name; None takes the configuration's.
        tokenizer: The student's.
        student: The student's configuration.
        device: Where a local model goes.
        own: Returns the student, for a teacher that is the student itself.
        own_source: Where the student is loaded from, for that teacher too; None if its weights are only in memory.
        generation_config: The student's, for that teacher too.
        writing: Whether the store is to be written, so that the teacher itself is needed.
        written_by: Who wrote the data's completions, where no teacher is named; see `writers_of_data`.

    Raises:
        ParamsError: There is none, or the store cannot be used with these settings.
        TeacherError: See `load_teacher`, `shared_vocabulary` and `find_targets`; a store that is damaged or of
            something else.
    """
    spec = given if given is not None else args.teacher_model
    stored = None
    if args.teacher_store is not None and not writing and TargetFolder(args.teacher_store).complete:
        stored = StoredTeacher(args.teacher_store)
    if spec is None and written_by:
        spec = WrittenTeacher(written_by, tokenizer=tokenizer)
    if spec is None and stored is None:
        raise ParamsError(MISSING)
    if spec == SELF and own is not None:
        own_sides: dict[str, Any] = {"config": student, "tokenizer": tokenizer, "generation_config": generation_config}
        spec = SelfTeacher(own, source=own_source, **own_sides)
    if spec == EMA and own is not None:
        own_sides = {"config": student, "tokenizer": tokenizer, "generation_config": generation_config}
        spec = EmaTeacher(own, decay=args.teacher_ema_decay, **own_sides)
    if args.cross_tokenizer:
        check_brings_tokenizer(spec)
    teacher = load_teacher(
        stored if stored is not None and spec is None else spec,  # type: ignore[arg-type]
        tokenizer=tokenizer,
        revision=args.teacher_revision,
        dtype=args.teacher_dtype,
        quantization=args.teacher_quantization,
        device_map=args.teacher_device_map,
        trust_remote_code=args.trust_remote_code,
        device=device,
        remote=_remote_settings(args),
    )
    teacher = _in_text(args, teacher, tokenizer=tokenizer, student=student)
    if not isinstance(teacher, (StoredTeacher, WrittenTeacher)):  # which have written
        check_engine(teacher, args.teacher_engine)
    if args.teacher_chat_template is not None:
        _set_chat_template(args, teacher)
    if isinstance(teacher, TextTeacher) and not args.cross_tokenizer:
        if args.teacher_store is not None:
            raise ParamsError(
                f"teacher_store keeps a teacher's probabilities, and {teacher.name!r} gives text only; drop "
                "--teacher-store."
            )
        teacher.restrict_vocabulary(vocabulary_rows(student))
        find_targets(args, teacher)  # before anything costly is asked
        return teacher
    if teacher.tokenizer.chat_template is None:
        teacher.tokenizer.chat_template = tokenizer.chat_template  # a base model reads chats as its student does
    if args.cross_tokenizer:
        return with_cross_tokenizer(teacher, tokenizer=tokenizer, student_rows=vocabulary_rows(student))
    _share(teacher, tokenizer, student)
    stored = teacher if isinstance(teacher, StoredTeacher) else stored
    return teacher if stored is None else _checked_store(args, stored, teacher, tokenizer=tokenizer, student=student)


def _checked_store(
    args: DistillationSFTConfig,
    stored: StoredTeacher,
    teacher: Teacher,
    *,
    tokenizer: PreTrainedTokenizerBase,
    student: PretrainedConfig,
) -> StoredTeacher:
    """Return a complete store in the place of its teacher, held against that and against the configuration."""
    if stored is not teacher:
        _check_teacher(stored, teacher)
        _share(stored, tokenizer, student)
    settings = {**prompts_and_writing(args), "kind": args.teacher_store_kind}
    if COMPLETIONS not in stored.manifest["files"]:
        settings["generation"] = None  # the teacher wrote nothing
    stored.check_matches(settings)
    stored.check_loss(args.distill_temperature, args.distill_divergence)
    return stored


def _remote_settings(args: DistillationSFTConfig) -> RemoteSettings:
    """Return how a server is asked."""
    return RemoteSettings(
        args.teacher_endpoint,
        args.teacher_concurrency,
        args.teacher_timeout,
        args.teacher_max_requests,
        args.teacher_max_tokens,
        args.teacher_max_cost,
        args.teacher_price_input,
        args.teacher_price_output,
        args.teacher_top_k,
        args.teacher_reasoning,
    )


def prompts_and_writing(args: DistillationSFTConfig) -> dict[str, Any]:
    """Return what a store keeps of a configuration: what the teacher reads around an input, and how it writes."""
    _, template = templates_of(args)
    return {
        "teacher_prompt_template": template.content,
        "teacher_system": template.system.text or "",
        "generation": settings_identity(generation_of(args)),
    }


def _in_text(
    args: DistillationSFTConfig, teacher: Teacher, *, tokenizer: PreTrainedTokenizerBase, student: PretrainedConfig
) -> Teacher:
    """Return a local teacher of another tokenizer as one that gives text, unless more is demanded of it."""
    text_alone = not args.strict or args.distill_alpha == 0 or args.allow_text_only_teacher
    if type(teacher) is not LocalTeacher or not text_alone or args.teacher_store is not None or args.cross_tokenizer:
        return teacher
    try:
        _share(teacher, tokenizer, student)
    except TeacherError:
        return LocalTextTeacher(teacher, tokenizer=tokenizer)
    return teacher


def _set_chat_template(args: DistillationSFTConfig, teacher: Teacher) -> None:
    """Give a teacher the chat template that was asked for; the student may share its tokenizer, which stays as it is.

    Raises:
        ParamsError: The teacher renders chats itself.
        TeacherError: A store that was made with another chat template.
        TemplateError: See `set_chat_template`.
    """
    source = str(args.teacher_chat_template)
    owner = teacher.writer if isinstance(teacher, LocalTextTeacher) else teacher
    if isinstance(owner, TextTeacher):
        raise ParamsError(
            f"teacher_chat_template is {source!r}, but teacher_model {teacher.name!r} is sent messages and renders "
            "them itself; drop --teacher-chat-template."
        )
    own = copy.deepcopy(owner.tokenizer)
    set_chat_template(own, source, role="teacher_chat_template", trust_remote_code=args.trust_remote_code)
    if not isinstance(owner, StoredTeacher):
        owner.tokenizer = own  # type: ignore[misc]
    elif own.chat_template != owner.tokenizer.chat_template:
        raise TeacherError(
            f"teacher_store {str(args.teacher_store)!r} was made with another chat template than "
            f"--teacher-chat-template {source!r}; give the same, or make a new store."
        )


def writers_of_data(args: DistillationSFTConfig, given: Any, dataset: Dataset | None) -> tuple[str, ...]:
    """Return who wrote the data's completions, where no teacher is named; nothing where one is.

    Args:
        args: The configuration.
        given: A teacher in the place of the configuration's, or None.
        dataset: The rows to train on.

    Raises:
        ParamsError: No teacher is named, and the data does not say of every row who wrote its completion.
    """
    if not (given is args.teacher_model is args.teacher_store is args.teacher_config is None):
        return ()
    names = () if args.completions == "teacher" else writers_of(dataset)
    if not names:
        raise ParamsError(MISSING)
    return names


def _share(teacher: Teacher, tokenizer: PreTrainedTokenizerBase, student: PretrainedConfig) -> None:
    """Check a teacher's vocabulary against the student's and restrict it to what both have."""
    rows = vocabulary_rows(student)
    teacher.restrict_vocabulary(
        shared_vocabulary(
            tokenizer,
            teacher.tokenizer,
            student_rows=rows,
            teacher_rows=teacher.vocabulary_rows,
            teacher_name=teacher.name,
        )
    )


def _check_teacher(stored: StoredTeacher, teacher: Teacher) -> None:
    """Refuse a store that was made by another teacher."""
    if stored.vocabulary is not None:
        teacher.restrict_vocabulary(stored.vocabulary)
    stored.check_matches({"teacher": teacher.identity(), "tokenizer": tokenizer_hash(teacher.tokenizer)})


def generation_of(args: DistillationSFTConfig) -> GenerationSettings:
    """Return how the teacher of a configuration writes."""
    return GenerationSettings(
        max_new_tokens=args.distill_max_teacher_length,
        do_sample=args.teacher_do_sample,
        temperature=args.teacher_sampling_temperature,
        top_p=args.teacher_top_p,
        seed=args.seed,
        batch_size=args.teacher_batch_size,
        stop=tuple(args.teacher_stop or ()),
        engine=args.teacher_engine,
    )


def describe_teacher(given: Any, teacher: Teacher) -> str:
    """Return a line on what a teacher's name was taken for, empty if it can mean only one thing.

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
    weights: Student | None = None,
) -> Recipe:
    """Return how rows become token ids under a configuration.

    Args:
        args: The configuration.
        teacher: Who writes and scores.
        tokenizer: The student's.
        student: The student's configuration, for its length limit.
        weights: The student's weights, to refuse a teacher that is the student reading the same tokens; None is no
            check.

    Raises:
        TemplateError: A template that does not parse.
    """
    settings = generation_of(args)
    student_template, teacher_template = templates_of(args)
    targets = None if args.teacher_store is None else TargetFolder(args.teacher_store).folder
    day = template_date(args, teacher, tokenizer)
    options = {**chat_template_options(args), **day.options()}
    if isinstance(teacher, LocalTextTeacher):
        teacher.options = options

    def write(prompts: list[Any]) -> list[Completion]:
        day.keep()
        store = CompletionStore(Path(str(args.output_dir)) / STORE if targets is None else targets / COMPLETIONS)
        if isinstance(teacher, TextTeacher):
            return teacher.write(prompts, settings, store=store, progress=not args.disable_tqdm)
        return complete(teacher, prompts, settings, store=store, progress=not args.disable_tqdm)

    return Recipe(
        student=PromptSide(
            tokenizer,
            for_reader(student_template, tokenizer),
            _students_limit(args, student),
            vocabulary_rows(student),
        ),
        teacher=PromptSide(
            teacher.tokenizer,
            for_reader(
                teacher_template,
                _reads(teacher),
                opens_chat=_opens_chat(teacher),
                moves=not student_template.system.keep,
            ),
            None if teacher.length_limit is None else Limit(teacher.length_limit, "the teacher's own context length"),
            teacher.vocabulary_rows,
        ),
        columns=Columns(
            args.dataset_text_field,
            args.prompt_text_column,
            args.completion_column,
            args.max_bad_rows,
            bool(args.assistant_only_loss),
        ),
        write=write,
        completions=args.completions,
        # a text teacher can only be asked, and fresh completions are written behind prompts
        plain_text=args.distill_plain_text and not isinstance(teacher, TextTeacher) and freshness(args) is None,
        overflow=args.prompt_overflow,
        vocabulary=teacher.vocabulary,
        reads_text=isinstance(teacher, TextTeacher),
        tokenizer_pair=teacher.tokenizer_pair if isinstance(teacher, CrossTeacher) else None,
        format_prompt=prompt_formatter(args, teacher),
        estimates=isinstance(teacher, TextTeacher) and prompt_formatter(args, teacher) is None,
        fetch_targets=target_fetcher(args, teacher),
        weighing=weighing(args, teacher),
        in_one_piece=_in_one_piece(args, teacher),
        prompt_dropout=args.teacher_prompt_dropout,
        teaches_nothing=None if weights is None else cache(lambda: teaches_nothing(args, teacher, weights)),
        seed=args.seed,
        serves=not args.keep_chat_template,
        options=options,
        num_proc=args.dataset_num_proc,
    )


def _students_limit(args: DistillationSFTConfig, student: PretrainedConfig) -> Limit | None:
    """Return the smaller of the limit that was set and the student's own."""
    own, limits = length_limit(student), []
    if own is not None:
        limits.append(Limit(own, "the student's own context length"))
    if args.max_length is not None:
        limits.append(Limit(args.max_length, "--block-size", "raise --block-size"))
    return min(limits, default=None)


def _reads(teacher: Teacher) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the model that reads a teacher's prompts."""
    return teacher.writer.tokenizer if isinstance(teacher, LocalTextTeacher) else teacher.tokenizer


def _opens_chat(teacher: Teacher) -> bool:
    """Whether a teacher is a server to which a text prompt is a user message."""
    return isinstance(teacher, RemoteTeacher) and teacher.settings.endpoint == "chat"


def template_date(args: DistillationSFTConfig, teacher: Teacher, tokenizer: PreTrainedTokenizerBase) -> TemplateDate:
    """Return the date that the chat templates of a configuration are given.

    Args:
        args: The configuration.
        teacher: Who writes and scores.
        tokenizer: The student's.
    """
    folder = str(args.output_dir) if args.teacher_store is None else args.teacher_store
    writer = teacher.writer if isinstance(teacher, LocalTextTeacher) else teacher
    templates = (tokenizer.chat_template, writer.tokenizer.chat_template)
    return TemplateDate.of(templates, args.chat_template_date, Path(folder).expanduser())


def _in_one_piece(args: DistillationSFTConfig, teacher: Teacher) -> str | None:
    """Return why a teacher takes no completion with gaps, None where it does."""
    if args.teacher_store is not None or isinstance(teacher, StoredTeacher):
        return "a teacher_store keeps targets of completions in one piece"
    if isinstance(teacher, CrossTeacher):
        return "cross_tokenizer compares completions in one piece"
    if target_fetcher(args, teacher) is not None:
        return "a server's log-probabilities are taken of completions in one piece"
    return None
