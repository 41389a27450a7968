"""The sides of an evaluation: completions on the same rows, divergence from the teacher, timing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from ..data.collator import DistillationCollator
from ..data.cross_tokenizer.tokenizer_pair import COLUMNS as PAIR_COLUMNS
from ..data.preparation import COLUMNS
from ..data.row_tokens import RowTokens, fit_row
from ..models.generation import Completion, GenerationSettings
from ..prompts.tokenization import common_length, tokenize_completion
from ..teachers.base import reads_text
from ..teachers.completions.store import CompletionStore
from ..teachers.local.teacher import LocalTeacher
from ..teachers.remote.teacher import RemoteTeacher
from ..teachers.text.local_text import LocalTextTeacher
from .fidelity import RowFidelity, fidelity_of
from .questions import NAME, Question, QuestionReader, SidePrompt
from .result import AFTER, BEFORE, PROMPTED, TEACHER, Timing
from .timing import time_sides
from .writing import Writing, texts_of

if TYPE_CHECKING:
    from .models import EvaluatedModels

LABELS = {
    BEFORE: "student before",
    AFTER: "student after",
    TEACHER: "teacher",
    PROMPTED: "student, teacher's prompt",
}


@dataclass(frozen=True)
class Stores:
    """Stores of completions, which later evaluations reuse; by default in memory.

    Attributes:
        teacher: The teacher's.
        students: The students'.
    """

    teacher: CompletionStore = field(default_factory=lambda: CompletionStore(None))
    students: CompletionStore = field(default_factory=lambda: CompletionStore(None))


@dataclass(frozen=True)
class Written:
    """A side's completions, row by row.

    Attributes:
        model: Name or folder of the model.
        prompts: What it read.
        texts: What it wrote, without the end.
        tokens: The length of each completion in tokens, its end included.
        finished: Whether the model ended it.
    """

    model: str
    prompts: tuple[SidePrompt, ...]
    texts: tuple[str, ...]
    tokens: tuple[int, ...]
    finished: tuple[bool, ...]


@dataclass(frozen=True)
class Sides:
    """The compared models and the rows.

    Attributes:
        models: The students and the teacher.
        reader: Renders the rows.
        questions: The rows.
        settings: How all sides write; `stop` is the teacher's alone.
        stores: Where completions are kept.
        progress: Whether to show progress bars.
    """

    models: EvaluatedModels
    reader: QuestionReader
    questions: Sequence[Question]
    settings: GenerationSettings
    stores: Stores = field(default_factory=Stores)
    progress: bool = True

    def teacher(self) -> Written:
        """Generate the teacher's completions, and add them to the rows, on which the students are compared."""
        teacher, questions, recipe = self.models.teacher, self.questions, self.reader.recipe
        prompts = [question.teacher for question in questions]
        if reads_text(teacher):
            asked = [question.asked for question in questions if question.asked is not None]
            if isinstance(teacher, LocalTextTeacher):
                own = map(teacher.tokenize, asked)
                prompts = [SidePrompt(ids, prompt.text) for ids, prompt in zip(own, prompts, strict=True)]
            written = self._writing.of_text_teacher(teacher, asked, store=self.stores.teacher)
        else:
            assert isinstance(teacher, LocalTeacher)
            ids = [prompt.ids for prompt in prompts]
            label = LABELS[TEACHER].capitalize()
            written = self._writing.of_model(teacher, ids, store=self.stores.teacher, label=label)
        for question, completion in zip(questions, written, strict=True):
            RowTokens(question.row, recipe, name=NAME, out=question.aligned).put_written(completion)
            vars(question.aligned).update(vars(fit_row(question.aligned, recipe, name=NAME)))
        if isinstance(teacher, LocalTeacher):
            return _written(teacher.name, prompts, written, texts_of(teacher, [p.ids for p in prompts], written))
        texts = [completion.text or "" for completion in written]
        if isinstance(teacher, LocalTextTeacher):
            tokenizer = teacher.writer.tokenizer
            ends = zip(texts, written, strict=True)
            lengths = [len(tokenize_completion(tokenizer, text, finished=end.finished)) for text, end in ends]
        else:  # a server's own are not known
            lengths = [len(question.aligned.whole) for question in questions]
        return _written(teacher.name, prompts, written, texts, lengths)

    def student(self, name: str, model: LocalTeacher, prompts: Sequence[SidePrompt] | None = None) -> Written:
        """Generate a student's completions under its own prompts, or under others; call it after `teacher`."""
        prompts = [question.student for question in self.questions] if prompts is None else prompts
        ids = [prompt.ids for prompt in prompts]
        writing = replace(self._writing, settings=self._of_students)
        written = writing.of_model(model, ids, store=self.stores.students, label=LABELS[name].capitalize())
        return _written(model.name, prompts, written, texts_of(model, ids, written))

    def prompted(self) -> list[SidePrompt]:
        """Return the teacher's prompts as the student reads them."""
        return [self.reader.prompted(question) for question in self.questions]

    def fidelity(self, student: LocalTeacher) -> list[RowFidelity] | None:
        """Compare a student's distributions with the teacher's on the teacher's completions.

        None if the teacher gives no probabilities.
        """
        teacher, rows = self.models.teacher, [question.aligned for question in self.questions]
        if not teacher.capabilities.scores:
            return None
        if isinstance(teacher, RemoteTeacher):
            teacher.fetch_targets([vars(row) for row in rows if row.kept > 0], progress=self.progress)
        elif isinstance(teacher, LocalTeacher):
            teacher.expect_prompts([row.teacher_prompt for row in rows])
        student.expect_prompts([row.student_prompt for row in rows])
        pads = [side.tokenizer.pad_token_id for side in (student, teacher)]
        columns = COLUMNS if self.reader.recipe.tokenizer_pair is None else (*COLUMNS, *PAIR_COLUMNS)
        return fidelity_of(
            student,
            teacher,
            rows,
            collator=DistillationCollator(*pads),
            columns=columns,
            batch_size=self.settings.batch_size,
        )

    @property
    def times_the_student_twice(self) -> bool:
        """Whether the teacher is on a server, see `timings`."""
        return _local_model_of(self.models.teacher) is None

    def timings(self, queries: int) -> dict[str, Timing]:
        """Time a teacher's query and a student's on the first rows, one prompt at a time, each ended as it writes.

        A teacher on a server is not timed, which would be the network's time and cost money: the student under the
        teacher's prompt stands in its place.
        """
        questions = self.questions[:queries]
        after, settings = self.models.after, self.settings
        own = (after, [question.student.ids for question in questions], self._of_students)
        local = _local_model_of(self.models.teacher)
        if local is None:
            theirs = (after, [self.reader.prompted(question).ids for question in questions], self._of_students)
        elif isinstance(self.models.teacher, LocalTextTeacher):
            theirs = (local, [self.models.teacher.tokenize(question.asked or "") for question in questions], settings)
        else:
            theirs = (local, [question.teacher.ids for question in questions], settings)
        return time_sides({TEACHER: theirs, AFTER: own})

    @property
    def common_tokens(self) -> int:
        """With how many equal tokens all of the teacher's prompts begin."""
        first, *others = [question.teacher.ids for question in self.questions]
        return min((common_length(first, other) for other in others), default=len(first))

    @cached_property
    def _of_students(self) -> GenerationSettings:
        """How students write: as many tokens as the teacher's longest completion has in their tokenizer at least."""
        longest = max(len(question.aligned.completion) for question in self.questions)
        return replace(self.settings, stop=(), max_new_tokens=max(self.settings.max_new_tokens, longest))

    @cached_property
    def _writing(self) -> Writing:
        order = sorted(range(len(self.questions)), key=lambda i: -len(self.questions[i].student.ids))
        return Writing(self.settings, order, self.progress)


def _written(
    model: str,
    prompts: Sequence[SidePrompt],
    completions: Sequence[Completion],
    texts: Sequence[str],
    lengths: Sequence[int] | None = None,
) -> Written:
    lengths = [len(completion.ids) for completion in completions] if lengths is None else lengths
    finished = tuple(completion.finished for completion in completions)
    return Written(model, tuple(prompts), tuple(texts), tuple(lengths), finished)


def _local_model_of(teacher: object) -> LocalTeacher | None:
    """Return the causal model on this machine that a teacher writes with; None if there is none."""
    model = getattr(teacher, "writer", teacher)
    return model if isinstance(model, LocalTeacher) else None
