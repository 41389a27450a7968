"""How rows become token ids: the prompts, the columns, and who generates missing completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, Any

from ..prompts.assistant_turn import ChatTurns
from ..prompts.fitting import Limits
from ..prompts.prefix_tokenizer import PromptTokens
from ..prompts.rendering import KWARGS, OWN, TOOLS

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..losses.schedule import LossSchedule
    from ..models.generation import Completion
    from ..prompts.messages import Prompt
    from ..prompts.row import Row
    from ..prompts.template import Template
    from .cross_tokenizer.tokenizer_pair import TokenizerPair
    from .rows import Columns

    Write = Callable[[list[Any]], list[Completion]]


@dataclass(frozen=True)
class PromptSide:
    """What one model reads: tokenizer, template and length limit.

    Attributes:
        tokenizer: Tokenizer of the prompts.
        template: Renders a row's prompt.
        limit: Tokens a sequence may have; None is no limit.
        rows: Rows of the model's vocabulary, for a check of the ids it reads; None is no check.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    limit: int | None
    rows: int | None = None

    @cached_property
    def turns(self) -> ChatTurns:
        """Renders the assistant's turns of conversations."""
        return ChatTurns(self.tokenizer)

    @cached_property
    def prompt_tokens(self) -> PromptTokens:
        """Tokenizes rendered prompts, and their common prefix only once."""
        return PromptTokens(self.tokenizer)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How a run reads its rows, independent of the teacher.

    Attributes:
        columns: Where to look in the data.
        completions: "auto", "data" or "teacher", see `row_tokens.source_of`.
        plain_text: Under "auto", a row of text alone and two templates `{input}` is learned as SFT would.
        overflow: "error" or "left", see `fitting.fit`.
        prompt_dropout: Share of the training rows in which the student reads the teacher's prompt.
        seed: Seed for sampling those rows.
        num_proc: Processes that read and tokenize; None is this one.
        serves: Whether the saved chat template renders the student's prompt, see `serving_template`.
        options: Keywords of both chat templates; a row's own take their place.
    """

    columns: Columns
    completions: str = "auto"
    plain_text: bool = True
    overflow: str = "error"
    prompt_dropout: float = 0.0
    seed: int = 0
    num_proc: int | None = None
    serves: bool = True
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class RowRecipe(DataSettings):
    """How one row becomes token ids; `preparation.Recipe` does it with whole datasets.

    Attributes:
        student: The student's side.
        teacher: The teacher's side.
        write: Has the teacher write completions for its prompts: token ids, or text and messages (`reads_text`).
        vocabulary: Rows that both models share: a completion's ids are among them.
        reads_text: The teacher gets prompts as text or chat messages.
        format_prompt: Returns what of such a prompt its ids are made from; None is its text alone.
        estimates: Whether these ids only estimate the prompt's length.
        fetch_targets: Fetches a server's log-probabilities of prepared rows, and returns the share of completion
            tokens that have any; called with the rows and with whether at least one token must have some.
        schedule: The loss, with the settings that were changed; None if not known.
        tokenizer_pair: How the completion becomes tokens of a teacher with another tokenizer; None if it has the same.
        in_one_piece: Why a completion may have no gaps, as the end of a sentence; None if it may.
        teaches_nothing: Returns whether the teacher has nothing to teach if both read the same tokens, see
            `same_weights`; None is no check.
    """

    student: PromptSide
    teacher: PromptSide
    write: Write
    vocabulary: int | None = None
    reads_text: bool = False
    format_prompt: Callable[[Prompt], Prompt] | None = None
    estimates: bool = False
    fetch_targets: Callable[[Dataset, bool], float] | None = None
    schedule: LossSchedule | None = None
    tokenizer_pair: TokenizerPair | None = None
    in_one_piece: str | None = None
    teaches_nothing: Callable[[], bool] | None = None

    @cached_property
    def _dropped_tokens(self) -> PromptTokens:
        return PromptTokens(self.student.tokenizer)

    @property
    def gives_text_alone(self) -> bool:
        """Whether the teacher gives only text, no probabilities."""
        return self.reads_text and self.fetch_targets is None

    @property
    def fields(self) -> set[str]:
        """The columns that a row's prompts are made of, other than the input and the completion."""
        templates = (self.student.template, self.teacher.template)
        return {field for template in templates for field in template.fields} | {*OWN, TOOLS, KWARGS}

    def student_tokens(self, dropped: bool) -> PromptTokens:
        """Return what tokenizes the student's prompts; with `dropped`, the teacher's prompts for the student."""
        return self._dropped_tokens if dropped else self.student.prompt_tokens

    def limits(self, where: str) -> Limits:
        """Return the length limits of a row, which messages call `where`."""
        return Limits(self.student.limit, self.teacher.limit, self.overflow, where)

    def drops(self, row: Row) -> bool:
        """Whether the student reads the teacher's prompt in a row, sampled by seed, row number and text."""
        if self.prompt_dropout == 0:
            return False
        return Random(f"{self.seed} {row.number} {row.input}").random() < self.prompt_dropout  # nosec B311  # no secret
