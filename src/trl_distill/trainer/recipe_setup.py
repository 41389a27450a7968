"""From a configuration and its teacher to the recipe by which rows become token ids."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.validation import chat_template_options
from ..data.preparation import Recipe
from ..data.recipe import PromptSide
from ..data.rows import Columns
from ..models.architectures import vocabulary_rows
from ..models.generation import length_limit
from ..prompts.fitting import Limit
from ..prompts.system_message import for_reader
from ..teachers.base import Teacher, reads_text, single_teachers
from ..teachers.completions.generate import complete
from ..teachers.completions.store import CompletionStore
from ..teachers.local.cross_tokenizer import CrossTokenizerTeacher
from ..teachers.multi.preparation import MultiTeacherRecipe
from ..teachers.multi.teacher import MultiTeacher
from ..teachers.remote.teacher import RemoteTeacher
from ..teachers.run_requirements import why_in_one_piece
from ..teachers.same_weights import teaches_nothing
from ..teachers.server_requirements import prompt_formatter, target_fetcher
from ..teachers.target_store.chat_template_date import TemplateDate
from ..teachers.target_store.folder import COMPLETIONS, TargetFolder
from ..teachers.text.local_text import LocalTextTeacher
from .teacher_setup import generation_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..config.sft_config import DistillationSFTConfig
    from ..data.recipe import Write
    from ..losses.settings import LossWeights
    from ..models.generation import Completion
    from ..prompts.template import Template
    from .plan import Plan, StudentModel

STORE = "teacher_completions.jsonl"
WHOLE = "the teachers of teacher_config score completions in one piece"


def recipe_of(
    args: DistillationSFTConfig,
    student: StudentModel,
    plan: Plan,
    teacher: Teacher,
    *,
    servers: Sequence[RemoteTeacher],
    loss_weights: LossWeights,
    date: TemplateDate,
    plain_text: bool,
) -> Recipe | MultiTeacherRecipe:
    """Return how rows become token ids under a configuration.

    Args:
        args: The configuration.
        student: The student, whose weights refuse a teacher that is the student reading the same tokens.
        plan: The templates of both sides.
        teacher: Who writes and scores; one, or several as one.
        servers: The teachers whose log-probabilities the run uses.
        loss_weights: Alpha and temperature of the run.
        date: The date that chat templates are given.
        plain_text: Whether a row of text alone may be learned as SFT would, see `Recipe`.
    """

    def recipe_for(one: Teacher, template: Template) -> Recipe:
        server = next((server for server in servers if server is one), None)
        return _one_recipe(
            args, student, one, (plan.student_template, template), server, loss_weights, date, plain_text
        )

    if not isinstance(teacher, MultiTeacher):
        return recipe_for(teacher, plan.teacher_template)
    listed, system = teacher.listed, plan.teacher_template.system
    alike = all(entry.template.is_identity for entry in listed.of_data) and args.teacher_system is None
    recipes = []
    for entry, one in zip(listed.teachers, teacher.teachers, strict=True):
        recipe = recipe_for(one, replace(entry.template, system=system))
        if entry.retained is None:
            plain = recipe.plain_text and (alike or not listed.mixed)
            recipes.append(replace(recipe, plain_text=plain, in_one_piece=WHOLE))
            continue
        own, theirs = (replace(side, template=entry.template) for side in (recipe.student, recipe.teacher))
        recipes.append(replace(recipe, student=own, teacher=theirs, prompt_dropout=0.0))  # both read the same prompt
    return MultiTeacherRecipe(tuple(recipes), listed, args.seed)


def _one_recipe(
    args: DistillationSFTConfig,
    student: StudentModel,
    teacher: Teacher,
    templates: tuple[Template, Template],
    server: RemoteTeacher | None,
    loss_weights: LossWeights,
    date: TemplateDate,
    plain_text: bool,
) -> Recipe:
    """Return how rows become token ids for one teacher; `server` is the same one if its log-probabilities are used."""
    student_template, teacher_template = templates
    options = {**chat_template_options(args), **date.options()}
    reader = teacher.writer.tokenizer if isinstance(teacher, LocalTextTeacher) else teacher.tokenizer
    if isinstance(teacher, LocalTextTeacher):
        teacher.options = options
    gives_text = reads_text(teacher)
    opens_chat = isinstance(teacher, RemoteTeacher) and teacher.settings.endpoint == "chat"
    return Recipe(
        student=PromptSide(
            student.tokenizer,
            for_reader(student_template, student.tokenizer),
            _students_limit(args, student),
            vocabulary_rows(student.config),
        ),
        teacher=PromptSide(
            teacher.tokenizer,
            for_reader(teacher_template, reader, opens_chat=opens_chat, moves=not student_template.system.keep),
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
        write=_writer(args, teacher, date),
        completions=args.completions,
        # a text teacher can only be asked, and fresh completions are written after prompts
        plain_text=plain_text and not gives_text and args.fresh_completions is None,
        overflow=args.prompt_overflow,
        vocabulary=teacher.vocabulary,
        reads_text=gives_text,
        tokenizer_pair=teacher.tokenizer_pair if isinstance(teacher, CrossTokenizerTeacher) else None,
        format_prompt=prompt_formatter(server),
        estimates=gives_text and prompt_formatter(server) is None,
        fetch_targets=target_fetcher(args, server),
        loss_weights=loss_weights,
        in_one_piece=why_in_one_piece(args, teacher, server),
        prompt_dropout=args.teacher_prompt_dropout,
        teaches_nothing=cache(lambda: teaches_nothing(args, teacher, student.weights)),
        seed=args.seed,
        serves=not args.keep_chat_template,
        options=options,
        num_proc=args.dataset_num_proc,
    )


def _writer(args: DistillationSFTConfig, teacher: Teacher, date: TemplateDate) -> Write:
    """Return what has a teacher write completions, kept in the run's folder or in its store of targets."""
    settings = generation_of(args)

    def write(prompts: list[Any]) -> list[Completion]:
        date.keep()
        if args.teacher_store is None:
            store = CompletionStore(Path(str(args.output_dir)) / STORE)
        else:
            store = CompletionStore(TargetFolder(args.teacher_store).folder / COMPLETIONS)
        if reads_text(teacher):
            return teacher.write(prompts, settings, store=store, progress=not args.disable_tqdm)
        return complete(teacher, prompts, settings, store=store, progress=not args.disable_tqdm)

    return write


def date_of(args: DistillationSFTConfig, student: StudentModel, teacher: Teacher) -> TemplateDate:
    """Return the date that the chat templates of a configuration are given."""
    folder = str(args.output_dir) if args.teacher_store is None else args.teacher_store
    readers = [one.writer if isinstance(one, LocalTextTeacher) else one for one in single_teachers(teacher)]
    templates = [student.tokenizer.chat_template, *(reader.tokenizer.chat_template for reader in readers)]
    return TemplateDate.of(templates, args.chat_template_date, Path(folder).expanduser())


def _students_limit(args: DistillationSFTConfig, student: StudentModel) -> Limit | None:
    own, limits = length_limit(student.config), []
    if own is not None:
        limits.append(Limit(own, "the student's own context length"))
    if args.max_length is not None:
        limits.append(Limit(args.max_length, "--block-size", "raise --block-size"))
    return min(limits, default=None)
