"""The interface of a distilling trainer that its parts use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..models.adapters import base_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from transformers import PreTrainedTokenizerBase
    from trl import SFTTrainer as _Base

    from ..config.sft_config import DistillationSFTConfig
    from ..prompts.serving_template import Serving
    from ..teachers.base import Teacher
    from .on_policy import BatchRandom
    from .setup import DistillationSetup
else:
    _Base = object  # so that it can precede any subclass of SFTTrainer


class DistillingTrainer(_Base):
    """The student, its tokenizers and its teacher, as a trainer has them.

    Attributes:
        distilling: Whether it learns from a teacher.
        setup: The teacher, the recipe and the schedule.
        own_tokenizer: The student's, with the chat template that it is trained with.
    """

    args: DistillationSFTConfig
    model: Any
    distilling: bool
    setup: DistillationSetup
    own_tokenizer: PreTrainedTokenizerBase

    @property
    def base_student(self) -> Any:
        """The student without PEFT's wrapper."""
        return base_of(self.model)

    @property
    def saved_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of `processing_class`, whose chat template renders the student's prompt."""
        processing: Any = self.processing_class
        return getattr(processing, "tokenizer", processing)

    def put_chat_template(self, serving: Serving) -> None:
        """Set the chat templates to save; the processor of a multimodal student saves its own over the tokenizer's."""
        serving.put(self.saved_tokenizer)
        if serving.source is not None:
            processing: Any = self.processing_class
            processing.chat_template = self.saved_tokenizer.chat_template

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The student's tokenizer; when distilling a copy with the chat template that it was trained with."""
        return self.own_tokenizer if self.distilling else self.saved_tokenizer

    @property
    def teacher(self) -> Teacher:
        """The teacher."""
        return self.setup.teacher

    @property
    def vocabulary(self) -> int | None:
        """Rows of the LM head that teacher and student share; None is all."""
        return self.setup.vocabulary

    @property
    def online(self) -> bool:
        """Whether the teacher generates new completions for every training batch."""
        return bool(self.args.distill_online)

    def check_teacher(self) -> None:
        """Refuse a teacher or settings that a subclass cannot use; called before the teacher generates.

        Raises:
            ParamsError: Naming the setting and what to do.
        """

    def by_teacher(self, batch: Mapping[str, torch.Tensor], randomness: BatchRandom) -> dict[str, torch.Tensor]:
        """Return a training batch with completions that the teacher generates now, under its prompts."""
        raise NotImplementedError
